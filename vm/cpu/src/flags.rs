//! RFLAGS bits, and the arithmetic flags in the form in which instructions leave them.
//!
//! The six arithmetic flags are kept as two words from which each flag is a few branch-free operations away, whatever
//! instruction set them, so that setting them is cheap and reading one needs no look at the last instruction that wrote
//! them (the representation is Bochs's idea).

/// Carry.
pub const CF: u64 = 1 << 0;
/// Parity.
pub const PF: u64 = 1 << 2;
/// Adjust.
pub const AF: u64 = 1 << 4;
/// Zero.
pub const ZF: u64 = 1 << 6;
/// Sign.
pub const SF: u64 = 1 << 7;
/// Trap: single steps.
pub const TF: u64 = 1 << 8;
/// Interrupts are let in.
pub const IF: u64 = 1 << 9;
/// String instructions go down.
pub const DF: u64 = 1 << 10;
/// Overflow.
pub const OF: u64 = 1 << 11;
/// I/O privilege level.
pub const IOPL: u64 = 3 << 12;
/// Nested task.
pub const NT: u64 = 1 << 14;
/// Resume: no instruction breakpoint for one instruction.
pub const RF: u64 = 1 << 16;
/// Virtual-8086 mode, which this processor does not have.
pub const VM: u64 = 1 << 17;
/// Alignment check.
pub const AC: u64 = 1 << 18;
/// Virtual interrupt flag.
pub const VIF: u64 = 1 << 19;
/// Virtual interrupt pending.
pub const VIP: u64 = 1 << 20;
/// CPUID is there.
pub const ID: u64 = 1 << 21;
/// The six that arithmetic sets.
pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
/// All that exist, without the fixed bit 1.
pub const ALL: u64 = STATUS | TF | IF | DF | IOPL | NT | RF | AC | VIF | VIP | ID;

/// The arithmetic flags.
///
/// * ZF: `result` is zero.
/// * SF: bit 63 of `result`, flipped by bit 0 of `aux`.
/// * PF: even parity of the low byte of `result`, flipped by each of the bits 8 to 15 of `aux`.
/// * CF: bit 63 of `aux`. OF: bit 63 xor bit 62 of `aux` (the carries out of and into the sign bit).
/// * AF: bit 4 of `aux`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flags {
    /// The last result, sign-extended from its size.
    pub result: u64,
    pub aux: u64,
}

impl Flags {
    pub(crate) const CARRY: u64 = 1 << 63;
    /// Flipped together with [`Self::CARRY`], changes CF alone; alone, changes OF alone.
    pub(crate) const OVERFLOW: u64 = 1 << 62;
    pub(crate) const ADJUST: u64 = 1 << 4;

    /// From the six bits as they stand in RFLAGS.
    pub(crate) fn from_status(bits: u64) -> Self {
        // A result of zero has SF clear and even parity; a result of 2^16 the same without ZF.
        let result = if bits & ZF != 0 { 0 } else { 1 << 16 };
        let mut aux = (bits & SF) >> 7 | (bits & AF);
        if bits & PF == 0 {
            aux |= 1 << 8;
        }
        let carry = bits & CF;
        let overflow = (bits & OF) >> 11;
        aux |= carry << 63 | (carry ^ overflow) << 62;
        Self { result, aux }
    }

    /// The six bits as they stand in RFLAGS.
    pub(crate) fn status(self) -> u64 {
        (u64::from(self.carry()) * CF)
            | (u64::from(self.parity()) * PF)
            | (self.aux & AF)
            | (u64::from(self.zero()) * ZF)
            | (u64::from(self.sign()) * SF)
            | (u64::from(self.overflow()) * OF)
    }

    #[inline(always)]
    pub(crate) fn carry(self) -> bool {
        (self.aux as i64) < 0
    }

    #[inline(always)]
    pub(crate) fn zero(self) -> bool {
        self.result == 0
    }

    #[inline(always)]
    pub(crate) fn sign(self) -> bool {
        ((self.result ^ (self.aux << 63)) as i64) < 0
    }

    #[inline(always)]
    pub(crate) fn overflow(self) -> bool {
        ((self.aux ^ (self.aux << 1)) as i64) < 0
    }

    #[inline(always)]
    pub(crate) fn parity(self) -> bool {
        ((self.result ^ (self.aux >> 8)) as u8).count_ones() & 1 == 0
    }

    #[inline(always)]
    fn less(self) -> bool {
        ((self.result ^ (self.aux << 63) ^ self.aux ^ (self.aux << 1)) as i64) < 0
    }

    /// Whether condition code `cc` (low four bits of the opcode) holds.
    #[inline(always)]
    pub(crate) fn condition(self, cc: u8) -> bool {
        let holds = match (cc >> 1) & 7 {
            0 => self.overflow(),
            1 => self.carry(),
            2 => self.zero(),
            3 => self.carry() || self.zero(),
            4 => self.sign(),
            5 => self.parity(),
            6 => self.less(),
            _ => self.less() || self.zero(),
        };
        holds ^ (cc & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_flags_survives_the_representation() {
        for bits in 0..1u64 << 12 {
            let bits = bits & STATUS;
            let flags = Flags::from_status(bits);
            assert_eq!(flags.status(), bits);
            let sign_not_overflow = (bits & SF != 0) != (bits & OF != 0);
            assert_eq!(flags.condition(0xc), sign_not_overflow);
            assert_eq!(flags.condition(0xe), sign_not_overflow || bits & ZF != 0);
            assert_eq!(flags.condition(0x7), bits & (CF | ZF) == 0);
        }
    }
}
