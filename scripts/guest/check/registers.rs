//! Registers that keep what is in them.

use crate::fault;
use std::arch::asm;

/// How often the processor counts down while it holds the values.
const COUNT: u64 = 3_000_000;

/// A general register, the x87's, SSE's and, where the processor has them, AVX's.
pub struct Registers {
    processor: usize,
    has_avx: bool,
    round: u64,
}

impl Registers {
    pub fn new(processor: usize) -> Self {
        Self { processor, has_avx: std::is_x86_feature_detected!("avx"), round: 0 }
    }

    /// Holds values for a while.
    pub fn hold(&mut self) {
        self.round += 1;
        let (round, processor) = (self.round, self.processor as u64);
        let (sse, general) = ([round, !round], round.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let x87 = round as f64 * 1.25 + 0.1;
        let (mut sse_after, mut general_after, mut x87_after) = ([0_u64; 2], 0_u64, 0_f64);
        // SAFETY: the registers that are named are clobbered, and the x87's stack is as before at the end.
        unsafe {
            asm!(
                "fld qword ptr [{x87}]",
                "movdqu xmm7, [{sse}]",
                "2: dec {count}",
                "jnz 2b",
                "movdqu [{sse_after}], xmm7",
                "fstp qword ptr [{x87_after}]",
                "mov {after}, {general}",
                x87 = in(reg) &x87, sse = in(reg) &sse, sse_after = in(reg) &mut sse_after,
                x87_after = in(reg) &mut x87_after, general = in(reg) general, after = lateout(reg) general_after,
                count = inout(reg) COUNT => _,
                out("xmm7") _, out("st(0)") _,
            );
        }
        if (sse, general, x87) != (sse_after, general_after, x87_after) {
            fault(format_args!(
                "registers of processor {processor}: {sse_after:x?} {general_after:x} {x87_after}"
            ));
        }
        if self.has_avx {
            // SAFETY: it was asked for AVX.
            unsafe { hold_avx(round, processor) };
        }
    }
}

/// # Safety
/// The processor has AVX.
#[target_feature(enable = "avx")]
unsafe fn hold_avx(round: u64, processor: u64) {
    let given =
        [[round, !round, round.wrapping_mul(3), processor], [!round, round, round << 1, processor + 1]];
    let mut after = [[0_u64; 4]; 2];
    // SAFETY: the registers that are named are clobbered.
    unsafe {
        asm!(
            "vmovdqu ymm5, [{given}]",
            "vmovdqu ymm14, [{given} + 32]",
            "2: dec {count}",
            "jnz 2b",
            "vmovdqu [{after}], ymm5",
            "vmovdqu [{after} + 32], ymm14",
            given = in(reg) &given, after = in(reg) &mut after, count = inout(reg) COUNT => _,
            out("ymm5") _, out("ymm14") _,
        );
    }
    if given != after {
        fault(format_args!("AVX registers of processor {processor}: {after:x?}"));
    }
}
