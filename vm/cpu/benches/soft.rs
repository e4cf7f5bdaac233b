//! How many guest instructions a second the software engine executes, on small loops of integer code:
//! `cargo bench -p ft-cpu --bench soft [NAME]`.

use ft_cpu::CpuExit;
use ft_cpu::testing::{machine, run_to};
use nix::time::{ClockId, clock_gettime};
use std::arch::global_asm;
use std::time::Duration;

/// A program: code that ends in hlt, with its answer in RAX. RDI is a megabyte of zeroed memory that it may use.
macro_rules! program {
    ($name:ident, $($line:literal),* $(,)?) => {
        mod $name {
            use super::global_asm;
            global_asm!(
                concat!(".global ftd_bench_", stringify!($name), ", ftd_bench_", stringify!($name), "_end"),
                concat!("ftd_bench_", stringify!($name), ":"),
                $($line,)*
                "hlt",
                concat!("ftd_bench_", stringify!($name), "_end:"),
            );
        }
    };
}

macro_rules! bytes_of {
    ($start:ident, $end:ident) => {{
        unsafe extern "C" {
            static $start: u8;
            static $end: u8;
        }
        let (start, end) = (&raw const $start, &raw const $end);
        // SAFETY: the two labels enclose assembled bytes in the text segment.
        unsafe { std::slice::from_raw_parts(start, end.offset_from(start) as usize) }
    }};
}

// Sieve of Eratosthenes over 512 Ki bytes, again and again.
program!(
    sieve,
    "mov r15d, 40",
    "2: mov rcx, 0",
    "3: mov byte ptr [rdi + rcx], 0",
    "inc rcx",
    "cmp rcx, 524288",
    "jb 3b",
    "mov rbx, 2",
    "xor eax, eax",
    "4: cmp byte ptr [rdi + rbx], 0",
    "jne 6f",
    "inc rax",
    "lea rcx, [rbx + rbx]",
    "cmp rcx, 524288",
    "jae 6f",
    "5: mov byte ptr [rdi + rcx], 1",
    "add rcx, rbx",
    "cmp rcx, 524288",
    "jb 5b",
    "6: inc rbx",
    "cmp rbx, 524288",
    "jb 4b",
    "dec r15d",
    "jnz 2b",
);

// A multiplicative hash over 64 KiB, as compilers write it.
program!(
    hash,
    "mov rax, 0xcbf29ce484222325",
    "mov r8, 0x100000001b3",
    "mov r9d, 300",
    "2: lea rsi, [rdi + 65536]",
    "mov rdx, rdi",
    "3: movzx ecx, byte ptr [rdx]",
    "xor rax, rcx",
    "imul rax, r8",
    "mov r10, rax",
    "shr r10, 29",
    "xor rax, r10",
    "add rdx, 1",
    "cmp rdx, rsi",
    "jne 3b",
    "sub r9d, 1",
    "jne 2b",
);

// Copies of 256 KiB by words.
program!(
    copy,
    "mov r9d, 1000",
    "2: xor ecx, ecx",
    "3: mov rax, [rdi + rcx]",
    "mov rdx, [rdi + rcx + 8]",
    "mov [rdi + rcx + 262144], rax",
    "mov [rdi + rcx + 262152], rdx",
    "add rcx, 16",
    "cmp rcx, 262144",
    "jne 3b",
    "sub r9d, 1",
    "jne 2b",
);

// Recursive Fibonacci numbers: calls, returns, stack.
program!(
    calls,
    "mov edi, 32",
    "call 3f",
    "jmp 9f",
    "3: push rbp",
    "mov rbp, rsp",
    "push rbx",
    "sub rsp, 8",
    "mov ebx, edi",
    "mov eax, edi",
    "cmp edi, 2",
    "jl 4f",
    "lea edi, [rbx - 1]",
    "call 3b",
    "mov [rbp - 16], eax",
    "lea edi, [rbx - 2]",
    "call 3b",
    "add eax, [rbp - 16]",
    "4: add rsp, 8",
    "pop rbx",
    "pop rbp",
    "ret",
    "9: nop",
);

// Insertion sorts of 1,024 pseudo-random words: data-dependent branches.
program!(
    sort,
    "mov r15d, 60",
    "mov rax, 88172645463325252",
    "2: xor ecx, ecx",
    "3: mov rdx, rax",
    "shl rdx, 13",
    "xor rax, rdx",
    "mov rdx, rax",
    "shr rdx, 7",
    "xor rax, rdx",
    "mov rdx, rax",
    "shl rdx, 17",
    "xor rax, rdx",
    "mov [rdi + rcx*8], rax",
    "inc ecx",
    "cmp ecx, 1024",
    "jne 3b",
    "mov ecx, 1",
    "4: mov r8, [rdi + rcx*8]",
    "mov rdx, rcx",
    "5: mov r9, [rdi + rdx*8 - 8]",
    "cmp r9, r8",
    "jle 6f",
    "mov [rdi + rdx*8], r9",
    "dec rdx",
    "jnz 5b",
    "6: mov [rdi + rdx*8], r8",
    "inc ecx",
    "cmp ecx, 1024",
    "jne 4b",
    "dec r15d",
    "jnz 2b",
);

/// Runs code until it halts, with RDI pointing at zeroed memory: instructions, processor time (of this thread, so that
/// a busy host does not count), and RAX at the end.
fn measure(code: &[u8]) -> (u64, Duration, u64) {
    let used = || {
        Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every thread has this clock"))
    };
    let (mut cpu, _ram) = machine(code);
    cpu.regs[7] = 0x40_0000;
    let start = used();
    let exit = run_to(&mut cpu, u64::MAX);
    let took = used() - start;
    assert_eq!(exit, CpuExit::Halted, "at {:#x}", cpu.rip);
    (cpu.count, took, cpu.regs[0])
}

fn main() {
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let programs: [(&str, &[u8]); 5] = [
        ("sieve", bytes_of!(ftd_bench_sieve, ftd_bench_sieve_end)),
        ("hash", bytes_of!(ftd_bench_hash, ftd_bench_hash_end)),
        ("copy", bytes_of!(ftd_bench_copy, ftd_bench_copy_end)),
        ("calls", bytes_of!(ftd_bench_calls, ftd_bench_calls_end)),
        ("sort", bytes_of!(ftd_bench_sort, ftd_bench_sort_end)),
    ];
    println!("{:<8} {:>14} {:>10} {:>10}", "program", "instructions", "seconds", "MIPS");
    let (mut instructions, mut time) = (0, Duration::ZERO);
    for (name, code) in programs {
        if wanted.as_deref().is_some_and(|wanted| wanted != name) {
            continue;
        }
        let (count, took, answer) = measure(code);
        instructions += count;
        time += took;
        let mips = count as f64 / took.as_secs_f64() / 1e6;
        println!("{name:<8} {count:>14} {:>10.3} {mips:>10.1}   rax {answer:#x}", took.as_secs_f64());
    }
    println!(
        "{:<8} {instructions:>14} {:>10.3} {:>10.1}",
        "all",
        time.as_secs_f64(),
        instructions as f64 / time.as_secs_f64() / 1e6
    );
}
