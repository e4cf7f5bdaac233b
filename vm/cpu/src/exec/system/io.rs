//! Port I/O. A repeated instruction moves one element at a time, each of which counts as an instruction.

use super::write_register;
use crate::cpu::Cpu;
use crate::flags::{DF, IOPL};
use crate::op::{Op, Step, Stop};

/// Where a TSS (32- or 64-bit) says how far into it the I/O permission bitmap is.
const TSS_IO_BITMAP: u64 = 0x66;
/// [`Op::imm`] of the string instructions.
pub(super) const REPEATED: u64 = 1;
const RCX: usize = 1;
const RDX: usize = 2;
const RSI: usize = 6;
const RDI: usize = 7;

impl Cpu {
    /// #GP for a program that may not use these ports: by its privilege level, or else by the TSS's bitmap.
    fn require_ports(&mut self, port: u16, bytes: u8) -> Step {
        if u64::from(self.cpl) <= (self.rflags() & IOPL) >> 12 {
            return Ok(());
        }
        let tr = self.sys.tr;
        if !tr.is_present() || u64::from(tr.limit) < TSS_IO_BITMAP + 1 {
            return Err(self.general_protection());
        }
        let bitmap = self.load_system::<u16>(tr.base.wrapping_add(TSS_IO_BITMAP))?;
        let at = u64::from(bitmap) + u64::from(port / 8);
        // Two bytes are read always: the bitmap ends with one more byte of ones.
        if at + 1 > u64::from(tr.limit) {
            return Err(self.general_protection());
        }
        let bits = self.load_system::<u16>(tr.base.wrapping_add(at))? >> (port % 8);
        if bits & ((1 << bytes) - 1) != 0 {
            return Err(self.general_protection());
        }
        Ok(())
    }

    fn port_read(&mut self, port: u16, bytes: u8) -> u32 {
        let mut data = [0; 4];
        let now_ns = self.now_ns();
        self.bus.pio_read(now_ns, port, &mut data[..usize::from(bytes)]);
        self.after_bus(None);
        self.touched_port(port, bytes);
        u32::from_le_bytes(data)
    }

    fn port_write(&mut self, port: u16, bytes: u8, value: u32) {
        let now_ns = self.now_ns();
        let event = self.bus.pio_write(now_ns, port, &value.to_le_bytes()[..usize::from(bytes)]);
        self.after_bus(event);
        self.touched_port(port, bytes);
    }

    /// Moves a string instruction's pointer by an element, and counts; `mask` cuts to the address size.
    fn string_step(&mut self, pointer: usize, op: &Op) -> Step {
        let by = if self.rflags() & DF == 0 { i64::from(op.aux) } else { -i64::from(op.aux) };
        let mask = op.mem.mask();
        self.regs[pointer] = self.regs[pointer].wrapping_add(by as u64) & mask;
        if op.imm == REPEATED {
            let left = self.regs[RCX].wrapping_sub(1) & mask;
            self.regs[RCX] = left;
            if left != 0 {
                return Err(Stop::Again);
            }
        }
        Err(Stop::End)
    }

    fn is_done(&self, op: &Op) -> bool {
        op.imm == REPEATED && self.regs[RCX] & op.mem.mask() == 0
    }
}

/// The port of an `in` or `out`: immediate, or DX (`src` is 1).
fn port(cpu: &Cpu, op: &Op) -> u16 {
    if op.src == 1 { cpu.regs[RDX] as u16 } else { op.imm as u16 }
}

/// `aux`: bytes.
pub(super) fn input(cpu: &mut Cpu, op: &Op) -> Step {
    let port = port(cpu, op);
    cpu.require_ports(port, op.aux)?;
    let value = cpu.port_read(port, op.aux);
    write_register(cpu, 0, op.aux, value.into());
    Err(Stop::End)
}

pub(super) fn output(cpu: &mut Cpu, op: &Op) -> Step {
    let port = port(cpu, op);
    cpu.require_ports(port, op.aux)?;
    cpu.port_write(port, op.aux, cpu.regs[0] as u32);
    Err(Stop::End)
}

/// `ins`: the place is known to be writable before the port is read.
pub(super) fn input_string(cpu: &mut Cpu, op: &Op) -> Step {
    let port = cpu.regs[RDX] as u16;
    cpu.require_ports(port, op.aux)?;
    if cpu.is_done(op) {
        return Ok(());
    }
    let address = cpu.address(op);
    cpu.probe_write(address, op.aux.into())?;
    let value = cpu.port_read(port, op.aux);
    match op.aux {
        1 => cpu.store::<u8>(address, value as u8)?,
        2 => cpu.store::<u16>(address, value as u16)?,
        _ => cpu.store::<u32>(address, value)?,
    }
    cpu.string_step(RDI, op)
}

/// `outs`.
pub(super) fn output_string(cpu: &mut Cpu, op: &Op) -> Step {
    let port = cpu.regs[RDX] as u16;
    cpu.require_ports(port, op.aux)?;
    if cpu.is_done(op) {
        return Ok(());
    }
    let address = cpu.address(op);
    let value = match op.aux {
        1 => cpu.load::<u8>(address)?.into(),
        2 => cpu.load::<u16>(address)?.into(),
        _ => cpu.load::<u32>(address)?,
    };
    cpu.port_write(port, op.aux, value);
    cpu.string_step(RSI, op)
}
