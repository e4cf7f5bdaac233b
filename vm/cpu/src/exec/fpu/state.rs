//! The floating point and vector unit's registers, and their image in memory as FXSAVE writes it.
//!
//! x87 registers are kept by their physical number (R0 to R7), as MMX sees them; `top` says which of them is ST(0).

use serde::{Deserialize, Serialize};

/// Bits of MXCSR that exist (denormals-are-zero included). The others are reserved: writing them is a #GP.
pub(crate) const MXCSR_MASK: u32 = 0xffff;
/// MXCSR after reset: all exceptions masked, round to nearest.
pub(crate) const MXCSR_RESET: u32 = 0x1f80;

/// Bits of the x87 control word that can be written; bit 6 always reads as one.
const CONTROL_WRITABLE: u16 = 0x1f3f;
const CONTROL_ONE: u16 = 0x0040;

/// Bytes of the FXSAVE area that an FXSAVE writes in 64-bit mode; the rest is the software's.
pub(crate) const FXSAVE_WRITTEN: usize = 416;

/// An 80-bit extended precision number as it lies in a register: any bits, valid number or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extended {
    /// Significand with its explicit integer bit; an MMX register.
    pub(crate) significand: u64,
    /// Sign in bit 15, biased exponent below.
    pub(crate) sign_exponent: u16,
}

/// A restored state that no processor could be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FpuStateError {
    /// MXCSR.
    #[error("MXCSR {0:#x} has reserved bits set")]
    Mxcsr(u32),
    /// The stack top.
    #[error("x87 stack top {0} is not a register number")]
    Top(u8),
    /// The control word.
    #[error("x87 control word {0:#x} has reserved bits wrong")]
    Control(u16),
    /// Status and control word.
    #[error("x87 status word {0:#x} does not agree with its control word {1:#x}")]
    Status(u16, u16),
}

/// x87, MMX and SSE state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fpu {
    pub(crate) xmm: [u128; 16],
    pub(crate) mxcsr: u32,
    /// R0 to R7; MM0 to MM7 are their significands.
    pub(crate) x87: [Extended; 8],
    /// Which of `x87` is ST(0).
    pub(crate) top: u8,
    /// A bit for each physical register that is not empty.
    pub(crate) full: u8,
    pub(crate) control: u16,
    /// Without the stack top (bits 11 to 13).
    pub(crate) status: u16,
    /// Address of the last x87 instruction that was not a control instruction.
    pub(crate) fip: u64,
    /// Address of its memory operand, if it had one; else of the one before.
    pub(crate) fdp: u64,
    /// Last opcode. Never recorded (as by processors whose opcode field is only for compatibility); kept when restored.
    pub(crate) fop: u16,
}

impl Default for Fpu {
    /// As after power-on, but with the x87 initialised as by FNINIT, which is how firmware hands it over.
    fn default() -> Fpu {
        Fpu {
            xmm: [0; 16],
            mxcsr: MXCSR_RESET,
            x87: [Extended::default(); 8],
            top: 0,
            full: 0,
            control: 0x37f,
            status: 0,
            fip: 0,
            fdp: 0,
            fop: 0,
        }
    }
}

/// Exceptions pending and unmasked: the summary bits.
const SUMMARY: u16 = 0x8080;

impl Fpu {
    /// FNINIT: everything of the x87 but the registers' contents.
    pub(crate) fn initialise(&mut self) {
        self.control = 0x37f;
        self.status = 0;
        self.top = 0;
        self.full = 0;
        self.fip = 0;
        self.fdp = 0;
        self.fop = 0;
    }

    /// Refuses a state (from a peer or a file) that no sequence of instructions leads to.
    pub fn validate(&self) -> Result<(), FpuStateError> {
        if self.mxcsr & !MXCSR_MASK != 0 {
            return Err(FpuStateError::Mxcsr(self.mxcsr));
        }
        if self.top > 7 {
            return Err(FpuStateError::Top(self.top));
        }
        if self.control & !CONTROL_WRITABLE != CONTROL_ONE {
            return Err(FpuStateError::Control(self.control));
        }
        let mut expected = self.clone();
        expected.summarise();
        if expected.status != self.status || self.status & 0x3800 != 0 {
            return Err(FpuStateError::Status(self.status, self.control));
        }
        Ok(())
    }

    /// The status word with the stack top in it.
    pub(crate) fn status_word(&self) -> u16 {
        self.status | u16::from(self.top & 7) << 11
    }

    pub(crate) fn set_status_word(&mut self, word: u16) {
        self.status = word & !0x3800;
        self.top = (word >> 11 & 7) as u8;
        self.summarise();
    }

    pub(crate) fn set_control_word(&mut self, word: u16) {
        self.control = word & CONTROL_WRITABLE | CONTROL_ONE;
        self.summarise();
    }

    /// Makes the summary bits say whether an unmasked exception is pending.
    pub(crate) fn summarise(&mut self) {
        let pending = self.status & !self.control & 0x3f != 0;
        self.status = self.status & !SUMMARY | if pending { SUMMARY } else { 0 };
    }

    /// Whether the next waiting x87 or MMX instruction raises #MF.
    pub(crate) fn pending(&self) -> bool {
        self.status & 0x80 != 0
    }

    /// ST(i).
    pub(crate) fn st(&self, i: u8) -> Extended {
        self.x87[self.physical(i)]
    }

    /// Number of ST(i)'s register.
    pub(crate) fn physical(&self, i: u8) -> usize {
        usize::from(self.top.wrapping_add(i) & 7)
    }

    pub(crate) fn is_empty(&self, i: u8) -> bool {
        self.full >> self.physical(i) & 1 == 0
    }

    /// The FXSAVE image, in the 64-bit form (`wide`: FXSAVE64, 64-bit pointers) or the 32-bit one, of all sixteen
    /// vector registers. Bytes from [`FXSAVE_WRITTEN`] are zero.
    pub(crate) fn to_fxsave_form(&self, wide: bool) -> [u8; 512] {
        let mut area = [0; 512];
        area[0..2].copy_from_slice(&self.control.to_le_bytes());
        area[2..4].copy_from_slice(&self.status_word().to_le_bytes());
        area[4] = self.full;
        area[6..8].copy_from_slice(&self.fop.to_le_bytes());
        let pointer = if wide { 8 } else { 4 };
        area[8..8 + pointer].copy_from_slice(&self.fip.to_le_bytes()[..pointer]);
        area[16..16 + pointer].copy_from_slice(&self.fdp.to_le_bytes()[..pointer]);
        area[24..28].copy_from_slice(&self.mxcsr.to_le_bytes());
        area[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
        for i in 0..8 {
            let register = self.st(i);
            let at = 32 + usize::from(i) * 16;
            area[at..at + 8].copy_from_slice(&register.significand.to_le_bytes());
            area[at + 8..at + 10].copy_from_slice(&register.sign_exponent.to_le_bytes());
        }
        for (slot, value) in area[160..FXSAVE_WRITTEN].chunks_exact_mut(16).zip(&self.xmm) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        area
    }

    /// Takes the state from an FXSAVE image. Reserved bits of MXCSR are refused, with nothing changed.
    pub(crate) fn set_fxsave_form(&mut self, area: &[u8; 512], wide: bool) -> Result<(), FpuStateError> {
        let half = |at: usize| u16::from_le_bytes([area[at], area[at + 1]]);
        let bytes = |at: usize, count: usize| {
            let mut value = [0; 16];
            value[..count].copy_from_slice(&area[at..at + count]);
            u128::from_le_bytes(value)
        };
        let mxcsr = bytes(24, 4) as u32;
        if mxcsr & !MXCSR_MASK != 0 {
            return Err(FpuStateError::Mxcsr(mxcsr));
        }
        self.mxcsr = mxcsr;
        self.set_control_word(half(0));
        self.set_status_word(half(2));
        self.full = area[4];
        self.fop = half(6) & 0x7ff;
        let pointer = if wide { 8 } else { 4 };
        self.fip = bytes(8, pointer) as u64;
        self.fdp = bytes(16, pointer) as u64;
        for i in 0..8 {
            let at = 32 + usize::from(i) * 16;
            let physical = self.physical(i);
            self.x87[physical] = Extended { significand: bytes(at, 8) as u64, sign_exponent: half(at + 8) };
        }
        for (i, value) in self.xmm.iter_mut().enumerate() {
            *value = bytes(160 + i * 16, 16);
        }
        Ok(())
    }

    /// The x87 tag word: two bits a physical register, from what is in it.
    pub(crate) fn tag_word(&self) -> u16 {
        (0..8).fold(0, |word, i| {
            let register = self.x87[i];
            let tag = if self.full >> i & 1 == 0 {
                3
            } else {
                match register.sign_exponent & 0x7fff {
                    0 if register.significand == 0 => 1,
                    0 | 0x7fff => 2,
                    _ if register.significand >> 63 == 0 => 2,
                    _ => 0,
                }
            };
            word | tag << (2 * i)
        })
    }

    pub(crate) fn set_tag_word(&mut self, word: u16) {
        self.full = (0..8).fold(0, |full, i| full | u8::from(word >> (2 * i) & 3 != 3) << i);
    }
}

#[cfg(test)]
impl Fpu {
    /// The FXSAVE64 image.
    pub(crate) fn to_fxsave(&self) -> [u8; 512] {
        self.to_fxsave_form(true)
    }

    /// The state that an FXSAVE64 image holds.
    pub(crate) fn from_fxsave(area: &[u8; 512]) -> Result<Fpu, FpuStateError> {
        let mut fpu = Fpu::default();
        fpu.set_fxsave_form(area, true)?;
        Ok(fpu)
    }
}
