//! Model-specific registers: rdmsr and wrmsr. A register that is not named here raises #GP, as on hardware; kernels
//! probe with accesses that recover from it. Each such access is counted and some are logged.

use super::state::{
    CR0_PG, EFER_LMA, EFER_LME, EFER_MASK, FS, GS, MTRR_FIXED, MTRR_VARIABLE, Mtrrs, PHYSICAL_MASK,
    is_canonical,
};
use crate::cpu::Cpu;
use crate::op::{Op, Step, Stop};
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) const TSC: u32 = 0x10;
pub(crate) const APIC_BASE: u32 = 0x1b;
pub(crate) const TSC_ADJUST: u32 = 0x3b;
const PATCH_LEVEL: u32 = 0x8b;
const MTRR_CAP: u32 = 0xfe;
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;
const DEBUG_CTL: u32 = 0x1d9;
const MTRR_VARIABLE_FIRST: u32 = 0x200;
const MTRR_VARIABLE_LAST: u32 = MTRR_VARIABLE_FIRST + 2 * MTRR_VARIABLE as u32 - 1;
const MTRR_FIXED_MSRS: [u32; MTRR_FIXED] =
    [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
pub(crate) const PAT: u32 = 0x277;
pub(crate) const MTRR_DEF_TYPE: u32 = 0x2ff;
pub(crate) const TSC_DEADLINE: u32 = 0x6e0;
pub(crate) const EFER: u32 = 0xc000_0080;
pub(crate) const STAR: u32 = 0xc000_0081;
pub(crate) const LSTAR: u32 = 0xc000_0082;
pub(crate) const CSTAR: u32 = 0xc000_0083;
pub(crate) const SFMASK: u32 = 0xc000_0084;
pub(crate) const FS_BASE: u32 = 0xc000_0100;
pub(crate) const GS_BASE: u32 = 0xc000_0101;
pub(crate) const KERNEL_GS_BASE: u32 = 0xc000_0102;
pub(crate) const TSC_AUX: u32 = 0xc000_0103;
/// AMD's, which Linux reads without a net on every AMD processor since family 0xf.
const SYSCFG: u32 = 0xc001_0010;
const HWCR: u32 = 0xc001_0015;
const NB_CFG: u32 = 0xc001_001f;
const INT_PENDING: u32 = 0xc001_0055;
const DE_CFG: u32 = 0xc001_1029;

/// Eight variable ranges, the fixed ones, write combining.
const MTRR_CAP_VALUE: u64 = 1 << 10 | 1 << 8 | MTRR_VARIABLE as u64;
/// MTRRdefType: enable, enable fixed, type.
const MTRR_DEF_TYPE_MASK: u64 = 1 << 11 | 1 << 10 | 0xff;
/// MTRRphysMask: valid.
const MTRR_VALID: u64 = 1 << 11;
/// As KVM says it to AMD guests: nothing newer will be tried.
const PATCH_LEVEL_VALUE: u64 = 0x0100_0065;
/// LFENCE is serialising.
const DE_CFG_VALUE: u64 = 1 << 1;

/// Uncacheable, write combining, write through, write protected, write back.
fn is_memory_type(value: u8) -> bool {
    matches!(value, 0 | 1 | 4 | 5 | 6)
}

/// The above, and UC-.
pub(super) fn is_pat(value: u64) -> bool {
    value.to_le_bytes().into_iter().all(|kind| is_memory_type(kind) || kind == 7)
}

fn is_def_type(value: u64) -> bool {
    value & !MTRR_DEF_TYPE_MASK == 0 && is_memory_type(value as u8)
}

fn is_fixed(value: u64) -> bool {
    value.to_le_bytes().into_iter().all(is_memory_type)
}

fn is_variable_base(value: u64) -> bool {
    value & !(PHYSICAL_MASK & !0xfff | 0xff) == 0 && is_memory_type(value as u8)
}

fn is_variable_mask(value: u64) -> bool {
    value & !(PHYSICAL_MASK & !0xfff | MTRR_VALID) == 0
}

pub(super) fn are_mtrrs(mtrrs: &Mtrrs) -> bool {
    is_def_type(mtrrs.def_type)
        && mtrrs.fixed.iter().all(|&value| is_fixed(value))
        && mtrrs.variable.iter().all(|&[base, mask]| is_variable_base(base) && is_variable_mask(mask))
}

/// The index among all variable registers, for the numbers that are ones.
fn variable(index: u32) -> Option<(usize, usize)> {
    (MTRR_VARIABLE_FIRST..=MTRR_VARIABLE_LAST).contains(&index).then(|| {
        let at = (index - MTRR_VARIABLE_FIRST) as usize;
        (at / 2, at % 2)
    })
}

fn fixed(index: u32) -> Option<usize> {
    MTRR_FIXED_MSRS.iter().position(|&msr| msr == index)
}

/// Accesses to unknown registers, of all processors of this process: for the log alone.
static UNKNOWN: AtomicU64 = AtomicU64::new(0);

/// Logs the first few, then ever fewer.
#[cold]
fn note_unknown(access: &'static str, index: u32, value: u64) {
    let number = UNKNOWN.fetch_add(1, Ordering::Relaxed) + 1;
    if number <= 16 || number.is_power_of_two() {
        tracing::debug!(number, "guest's {access} of MSR {index:#x} (value {value:#x}) raises #GP");
    }
}

/// Accesses to unknown registers so far.
#[cfg(test)]
pub(crate) fn unknown_accesses() -> u64 {
    UNKNOWN.load(Ordering::Relaxed)
}

impl Cpu {
    /// The time stamp counter: virtual time and what the guest has added to it.
    #[inline]
    pub(crate) fn tsc(&self) -> u64 {
        self.now_ns().wrapping_add(self.sys.tsc_adjust)
    }

    /// A register's value; none: there is no such register.
    pub(crate) fn read_msr(&self, index: u32) -> Option<u64> {
        let sys = &self.sys;
        Some(match index {
            TSC => self.tsc(),
            APIC_BASE => self.bus.apic_base(),
            TSC_ADJUST => sys.tsc_adjust,
            PATCH_LEVEL => PATCH_LEVEL_VALUE,
            MTRR_CAP => MTRR_CAP_VALUE,
            SYSENTER_CS => sys.sysenter_cs,
            SYSENTER_ESP => sys.sysenter_esp,
            SYSENTER_EIP => sys.sysenter_eip,
            DEBUG_CTL | SYSCFG | HWCR | NB_CFG | INT_PENDING => 0,
            DE_CFG => DE_CFG_VALUE,
            PAT => sys.pat,
            MTRR_DEF_TYPE => sys.mtrrs.def_type,
            TSC_DEADLINE => match self.bus.tsc_deadline() {
                0 => 0,
                deadline => deadline.wrapping_add(sys.tsc_adjust),
            },
            EFER => sys.efer,
            STAR => sys.star,
            LSTAR => sys.lstar,
            CSTAR => sys.cstar,
            SFMASK => sys.fmask,
            FS_BASE => sys.segs[FS].base,
            GS_BASE => sys.segs[GS].base,
            KERNEL_GS_BASE => sys.kernel_gs_base,
            TSC_AUX => sys.tsc_aux,
            _ => {
                if let Some((range, part)) = variable(index) {
                    return Some(sys.mtrrs.variable[range][part]);
                }
                return fixed(index).map(|at| sys.mtrrs.fixed[at]);
            }
        })
    }

    /// Sets a register; false: there is no such register, or it does not take that value. Where the change is one of
    /// how memory is addressed, the caller is at the end of a block.
    pub(crate) fn write_msr(&mut self, index: u32, value: u64) -> bool {
        let (low, high) = (value as u32, value >> 32);
        let sys = &mut self.sys;
        match index {
            TSC => {
                let by = value.wrapping_sub(self.tsc());
                return self.adjust_tsc(self.sys.tsc_adjust.wrapping_add(by));
            }
            TSC_ADJUST => return self.adjust_tsc(value),
            APIC_BASE => {
                // The boot processor's flag, the enable flag and the base; no x2APIC.
                if value & !(PHYSICAL_MASK & !0xfff | 1 << 11 | 1 << 8) != 0 {
                    return false;
                }
                self.bus.set_apic_base(value);
            }
            TSC_DEADLINE => {
                // The bus counts in virtual time. A deadline that lies before its beginning is due at once.
                let at = match value.wrapping_sub(sys.tsc_adjust) {
                    _ if value == 0 => 0,
                    at if value < sys.tsc_adjust && (sys.tsc_adjust as i64) >= 0 => at.min(1),
                    at => at.max(1),
                };
                let now_ns = self.now_ns();
                self.bus.set_tsc_deadline(now_ns, at);
            }
            PATCH_LEVEL | HWCR | DE_CFG | SYSCFG | NB_CFG | INT_PENDING => {}
            DEBUG_CTL => return value == 0,
            // As on AMD's processors, where 32 bits are kept.
            SYSENTER_CS => sys.sysenter_cs = low.into(),
            SFMASK => sys.fmask = low.into(),
            TSC_AUX if high == 0 => sys.tsc_aux = value,
            SYSENTER_ESP if is_canonical(value) => sys.sysenter_esp = value,
            SYSENTER_EIP if is_canonical(value) => sys.sysenter_eip = value,
            STAR => sys.star = value,
            LSTAR if is_canonical(value) => sys.lstar = value,
            CSTAR if is_canonical(value) => sys.cstar = value,
            FS_BASE if is_canonical(value) => sys.segs[FS].base = value,
            GS_BASE if is_canonical(value) => sys.segs[GS].base = value,
            KERNEL_GS_BASE if is_canonical(value) => sys.kernel_gs_base = value,
            PAT if is_pat(value) => sys.pat = value,
            MTRR_DEF_TYPE if is_def_type(value) => sys.mtrrs.def_type = value,
            EFER => return self.write_efer(value),
            _ => {
                if let Some((range, part)) = variable(index) {
                    let good = if part == 0 { is_variable_base(value) } else { is_variable_mask(value) };
                    if good {
                        sys.mtrrs.variable[range][part] = value;
                    }
                    return good;
                }
                let Some(at) = fixed(index).filter(|_| is_fixed(value)) else { return false };
                sys.mtrrs.fixed[at] = value;
            }
        }
        true
    }

    /// Moves the counter; an armed deadline stays at its tick, so it moves in virtual time.
    fn adjust_tsc(&mut self, adjust: u64) -> bool {
        let deadline = self.read_msr(TSC_DEADLINE).unwrap_or(0);
        self.sys.tsc_adjust = adjust;
        if deadline != 0 {
            self.write_msr(TSC_DEADLINE, deadline);
        }
        true
    }

    /// LMA follows from LME and paging; LME cannot change under paging.
    fn write_efer(&mut self, value: u64) -> bool {
        let old = self.sys.efer;
        let paging = self.sys.cr0 & CR0_PG != 0;
        if value & !EFER_MASK != 0 || paging && (value ^ old) & EFER_LME != 0 {
            return false;
        }
        self.sys.efer = value & !EFER_LMA | old & EFER_LMA;
        self.paging_changed();
        true
    }
}

pub(super) fn rdmsr(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.require_kernel()?;
    let index = cpu.regs[1] as u32;
    let Some(value) = cpu.read_msr(index) else {
        note_unknown("read", index, 0);
        return Err(cpu.general_protection());
    };
    cpu.regs[0] = value & 0xffff_ffff;
    cpu.regs[2] = value >> 32;
    Ok(())
}

pub(super) fn wrmsr(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.require_kernel()?;
    let index = cpu.regs[1] as u32;
    let value = cpu.regs[0] & 0xffff_ffff | cpu.regs[2] << 32;
    if !cpu.write_msr(index, value) {
        note_unknown("write", index, value);
        return Err(cpu.general_protection());
    }
    Err(Stop::End)
}
