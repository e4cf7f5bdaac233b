//! Integer work for comparing processors, real and emulated: the same instructions in every run, announced and ended on
//! the console so that who watches it can take the time. About a billion instructions.

const ROUNDS: u64 = 20;
const NUMBERS: usize = 1 << 17;

/// Runs it; prints `bench: begin`, then `bench: end` with a checksum.
pub fn run() {
    println!("bench: begin");
    let mut sum = 0u64;
    for round in 0..ROUNDS {
        let mut numbers = random(round + 1);
        sum = sum.rotate_left(1) ^ checksum(&numbers);
        numbers.sort_unstable();
        sum = sum.rotate_left(1) ^ checksum(&numbers) ^ primes(1 << 20);
    }
    println!("bench: end {sum:016x}");
}

/// xorshift64.
fn random(seed: u64) -> Vec<u64> {
    let mut state = seed;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    })
    .take(NUMBERS)
    .collect()
}

/// FNV-1a, byte by byte.
fn checksum(numbers: &[u64]) -> u64 {
    let bytes = numbers.iter().flat_map(|number| number.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// How many primes are below `limit`, by Eratosthenes' sieve.
fn primes(limit: usize) -> u64 {
    let mut composite = vec![false; limit];
    let mut count = 0;
    for number in 2..limit {
        if !composite[number] {
            count += 1;
            composite.iter_mut().skip(number * number).step_by(number).for_each(|multiple| *multiple = true);
        }
    }
    count
}
