//! A 64-bit digest for comparing memories: fast, seedless, not cryptographic. The multiply-and-fold step is that of
//! wyhash (Wang Yi); the fingerprint is the guests' own.

/// A running digest.
#[derive(Clone, Copy, Debug, Default)]
pub struct Digest(u64);

const K0: u64 = 0xa076_1d64_78bd_642f;
const K1: u64 = 0xe703_7ed1_a0b4_28db;

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ (product >> 64) as u64
}

impl Digest {
    /// Takes in one word.
    pub fn word(&mut self, word: u64) {
        self.0 = fold(self.0.rotate_left(23) ^ word ^ K0, K1) ^ word;
    }

    /// Takes in bytes and their number, so that `("ab", "c")` and `("a", "bc")` differ.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.word(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.word(u64::from_le_bytes(last));
    }

    /// The digest of what was taken in.
    pub fn finish(self) -> u64 {
        fold(self.0 ^ K0, K1 ^ self.0)
    }
}
