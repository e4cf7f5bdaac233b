//! System calls: syscall, sysret, swapgs. sysenter and sysexit are undefined in long mode, as on AMD's processors, and
//! not offered elsewhere.

use super::state::{EFER_SCE, GS, SS, SegmentRegister};
use crate::cpu::Cpu;
use crate::flags::{AC, ALL, NT, RF, VM};
use crate::op::{Op, Step, Stop};

/// Bits that sysret takes from R11: all that there are but RF and VM.
const SYSRET_FLAGS: u64 = ALL & !RF;
const _: () = assert!(SYSRET_FLAGS & (NT | AC) == NT | AC && SYSRET_FLAGS & VM == 0);

pub(super) fn syscall(cpu: &mut Cpu, op: &Op) -> Step {
    if cpu.sys.efer & EFER_SCE == 0 || !cpu.sys.is_long_mode() {
        return Err(cpu.undefined());
    }
    let flags = cpu.rflags() & !RF;
    let target = if cpu.sys.is_64bit() { cpu.sys.lstar } else { cpu.sys.cstar };
    cpu.regs[1] = cpu.next_address(op);
    cpu.regs[11] = flags;
    cpu.set_rflags(flags & !cpu.sys.fmask);
    let selector = (cpu.sys.star >> 32) as u16 & !3;
    cpu.set_code(SegmentRegister::flat_code(selector, 0, true), 0);
    cpu.sys.segs[SS] = SegmentRegister::flat_data(selector.wrapping_add(8), 0);
    cpu.rip = target;
    Err(Stop::Jump)
}

/// `src`: 1 for the 64-bit operand size, a return to 64-bit mode. An RIP that is not canonical faults on the other
/// side, as on AMD's processors.
pub(super) fn sysret(cpu: &mut Cpu, op: &Op) -> Step {
    if cpu.sys.efer & EFER_SCE == 0 || !cpu.sys.is_long_mode() {
        return Err(cpu.undefined());
    }
    cpu.require_kernel()?;
    let base = (cpu.sys.star >> 48) as u16;
    let flags = cpu.regs[11] & SYSRET_FLAGS | 2;
    cpu.set_rflags(flags);
    if op.src != 0 {
        cpu.set_code(SegmentRegister::flat_code(base.wrapping_add(16), 3, true), 3);
        cpu.rip = cpu.regs[1];
    } else {
        cpu.set_code(SegmentRegister::flat_code(base, 3, false), 3);
        cpu.rip = cpu.regs[1] & 0xffff_ffff;
    }
    cpu.sys.segs[SS] = SegmentRegister::flat_data(base.wrapping_add(8) | 3, 3);
    Err(Stop::Jump)
}

pub(super) fn swapgs(cpu: &mut Cpu, _: &Op) -> Step {
    if !cpu.sys.is_64bit() {
        return Err(cpu.undefined());
    }
    cpu.require_kernel()?;
    std::mem::swap(&mut cpu.sys.segs[GS].base, &mut cpu.sys.kernel_gs_base);
    Ok(())
}
