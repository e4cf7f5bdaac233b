//! Control and debug registers, and the flushes that keep the TLB in step with them.
//!
//! Only long mode and protected mode without paging exist: turning on paging outside of long mode, and leaving
//! protected mode, raise #GP.

use super::state::{
    CR0_CD, CR0_EM, CR0_ET, CR0_MASK, CR0_MP, CR0_NW, CR0_PE, CR0_PG, CR0_TS, CR4_DE, CR4_MASK, CR4_PAE,
    DR6_FIXED, DR6_MASK, DR7_FIXED, DR7_MASK, EFER_LMA, EFER_LME, PHYSICAL_MASK,
};
use super::write_register;
use crate::cpu::Cpu;
use crate::op::{Op, Step, Stop};

impl Cpu {
    fn write_cr0(&mut self, value: u64) -> Step {
        let sys = &self.sys;
        let old = sys.cr0;
        let new = value & CR0_MASK | CR0_ET;
        let paging = new & CR0_PG != 0;
        let turned = (old ^ new) & CR0_PG != 0;
        let long_code = sys.is_64bit();
        let bad = value >> 32 != 0
            || new & CR0_PE == 0
            || new & (CR0_NW | CR0_CD) == CR0_NW
            || turned && paging && (sys.efer & EFER_LME == 0 || sys.cr4 & CR4_PAE == 0)
            || turned && paging && sys.segs[super::state::CS].is_long()
            || turned && !paging && long_code;
        if bad {
            return Err(self.general_protection());
        }
        self.sys.cr0 = new;
        if turned {
            self.sys.efer = self.sys.efer & !EFER_LMA | if paging { EFER_LMA } else { 0 };
        }
        // Caching, task switched and the like change nothing in how memory is addressed.
        if (old ^ new) & !(CR0_TS | CR0_MP | CR0_EM | CR0_CD | CR0_NW) != 0 {
            self.paging_changed();
        }
        Err(Stop::End)
    }

    fn write_cr3(&mut self, value: u64) -> Step {
        if value & !PHYSICAL_MASK != 0 {
            return Err(self.general_protection());
        }
        self.sys.cr3 = value;
        self.flush_tlb();
        Err(Stop::End)
    }

    fn write_cr4(&mut self, value: u64) -> Step {
        if value & !CR4_MASK != 0 || self.sys.is_long_mode() && value & CR4_PAE == 0 {
            return Err(self.general_protection());
        }
        let old = std::mem::replace(&mut self.sys.cr4, value);
        if old != value {
            self.paging_changed();
        }
        Err(Stop::End)
    }

    /// A value that is to be written, as wide as registers are in this mode.
    fn operand(&self, register: u8) -> u64 {
        let value = self.regs[usize::from(register)];
        if self.sys.is_64bit() { value } else { value & 0xffff_ffff }
    }
}

/// `mov r, cr`. `dst`: general register, `src`: control register.
pub(super) fn mov_from_control(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_kernel()?;
    let value = match op.src {
        0 => cpu.sys.cr0,
        2 => cpu.sys.cr2,
        3 => cpu.sys.cr3,
        4 => cpu.sys.cr4,
        8 => cpu.bus.cr8().into(),
        _ => return Err(cpu.undefined()),
    };
    write_register(cpu, op.dst, op.aux, value);
    Ok(())
}

/// `mov cr, r`. `dst`: control register, `src`: general register.
pub(super) fn mov_to_control(cpu: &mut Cpu, op: &Op) -> Step {
    if !matches!(op.dst, 0 | 2 | 3 | 4 | 8) {
        return Err(cpu.undefined());
    }
    cpu.require_kernel()?;
    let value = cpu.operand(op.src);
    match op.dst {
        0 => cpu.write_cr0(value),
        2 => {
            cpu.sys.cr2 = value;
            Ok(())
        }
        3 => cpu.write_cr3(value),
        4 => cpu.write_cr4(value),
        _ if value > 15 => Err(cpu.general_protection()),
        _ => {
            cpu.bus.set_cr8(value as u8);
            cpu.after_bus(None);
            Err(Stop::End)
        }
    }
}

/// DR4 and DR5 are DR6 and DR7, unless CR4.DE says that they are not there.
fn debug_register(cpu: &mut Cpu, number: u8) -> Result<usize, Stop> {
    match number {
        0..=3 | 6 | 7 => Ok(number.into()),
        4 | 5 if cpu.sys.cr4 & CR4_DE == 0 => Ok(usize::from(number) + 2),
        _ => Err(cpu.undefined()),
    }
}

/// `mov r, dr`.
pub(super) fn mov_from_debug(cpu: &mut Cpu, op: &Op) -> Step {
    let number = debug_register(cpu, op.src)?;
    cpu.require_kernel()?;
    let value = cpu.sys.dr[number];
    write_register(cpu, op.dst, op.aux, value);
    Ok(())
}

/// `mov dr, r`.
pub(super) fn mov_to_debug(cpu: &mut Cpu, op: &Op) -> Step {
    let number = debug_register(cpu, op.dst)?;
    cpu.require_kernel()?;
    let value = cpu.operand(op.src);
    if number >= 6 && value >> 32 != 0 {
        return Err(cpu.general_protection());
    }
    let watched = cpu.sys.watches();
    cpu.sys.dr[number] = match number {
        6 => value & DR6_MASK | DR6_FIXED,
        7 => value & DR7_MASK | DR7_FIXED,
        _ => value,
    };
    if watched || cpu.sys.watches() {
        // Pages may be watched now that were not, or the other way round.
        cpu.flush_tlb_all();
    }
    Err(Stop::End)
}

pub(super) fn clts(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.require_kernel()?;
    cpu.sys.cr0 &= !CR0_TS;
    Ok(())
}

/// `lmsw`: CR0's low four bits, of which PE can be set and not cleared.
pub(super) fn lmsw(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_kernel()?;
    let value = if op.src == super::MEMORY {
        let address = cpu.address(op);
        cpu.load::<u16>(address)?
    } else {
        cpu.regs[usize::from(op.src)] as u16
    };
    let low = u64::from(value) & 0xf | cpu.sys.cr0 & CR0_PE;
    cpu.write_cr0(cpu.sys.cr0 & !0xf | low)
}

pub(super) fn smsw(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.sys.cr0;
    if op.dst == super::MEMORY {
        let address = cpu.address(op);
        return cpu.store::<u16>(address, value as u16);
    }
    write_register(cpu, op.dst, op.aux, value);
    Ok(())
}

pub(super) fn invlpg(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_kernel()?;
    let address = cpu.address(op);
    cpu.flush_tlb_page(address);
    Err(Stop::End)
}

/// `invd`, `wbinvd`: there are no caches that a guest could tell from memory.
pub(super) fn invalidate_caches(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.require_kernel()
}
