//! movs, stos, lods, cmps, scas, with and without REP.
//!
//! A repeated instruction works in chunks: the rest of the count, or up to the end of an operand's page, whichever is
//! less. Each chunk counts as one instruction and leaves registers as between two iterations, so that interrupts,
//! limits and faults find an exact state. The size of a chunk depends on registers alone.
//!
//! With addresses of 32 bits, an element that is done clears the upper halves of the registers that it moves. A count
//! of zero, or a first element that faults, leaves all registers as they were, as on AMD's processors; Intel's
//! processors differ.

use super::int::*;
use crate::block::{is_long, segment_of};
use crate::cpu::Cpu;
use crate::flags::{DF, TF};
use crate::kind::Kind;
use crate::op::{Handler, NONE, Op, Step, Stop};
use crate::tlb::{PAGE, PAGE_MASK};
use crate::walk::Access;
use ft_ram::PageIndex;
use iced_x86::{Instruction, Mnemonic, OpKind};

const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;

/// Which repeat prefix, in `aux`.
const ONCE: u8 = 0;
const WHILE_EQUAL: u8 = 1;
const WHILE_UNEQUAL: u8 = 2;

/// What is done with each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    Movs,
    Stos,
    Lods,
    Cmps,
    Scas,
}

const MOVS: u8 = Element::Movs as u8;
const STOS: u8 = Element::Stos as u8;
const LODS: u8 = Element::Lods as u8;
const CMPS: u8 = Element::Cmps as u8;
const SCAS: u8 = Element::Scas as u8;

const fn reads_source(f: u8) -> bool {
    f == MOVS || f == LODS || f == CMPS
}

const fn uses_destination(f: u8) -> bool {
    f != LODS
}

/// A register as an address or count: cut to the address size (`op.mem`).
fn get(cpu: &Cpu, op: &Op, register: usize) -> u64 {
    cpu.regs[register] & op.mem.mask()
}

fn set(cpu: &mut Cpu, op: &Op, register: usize, value: u64) {
    cpu.regs[register] = value & op.mem.mask();
}

fn source(cpu: &Cpu, op: &Op) -> u64 {
    segmented(cpu, op.mem.seg, get(cpu, op, RSI))
}

fn destination(cpu: &Cpu, op: &Op) -> u64 {
    segmented(cpu, if cpu.long { NONE } else { 0 }, get(cpu, op, RDI))
}

fn segmented(cpu: &Cpu, segment: u8, offset: u64) -> u64 {
    if segment == NONE {
        return offset;
    }
    let addr = offset.wrapping_add(cpu.sys.segs[usize::from(segment)].base);
    if cpu.long { addr } else { addr & 0xffff_ffff }
}

/// One iteration, up to but without the moving of RSI and RDI. Whether REPE or REPNE, if it is one, goes on.
fn element<T: Int, const F: u8>(cpu: &mut Cpu, op: &Op) -> Result<bool, Stop> {
    let (from, to) = (source(cpu, op), destination(cpu, op));
    match F {
        MOVS => {
            let value = cpu.load::<T>(from)?;
            cpu.store::<T>(to, value)?;
        }
        STOS => {
            let value = T::get(cpu, 0);
            cpu.store::<T>(to, T::from_wide(value))?;
        }
        LODS => {
            let value = cpu.load::<T>(from)?.wide();
            T::set(cpu, 0, value);
        }
        _ => {
            let a = if F == CMPS { cpu.load::<T>(from)?.wide() } else { T::get(cpu, 0) };
            let b = cpu.load::<T>(to)?.wide();
            sub::<T>(cpu, a, b);
            return Ok(if op.aux == WHILE_UNEQUAL { a != b } else { a == b });
        }
    }
    Ok(true)
}

fn advance<const F: u8>(cpu: &mut Cpu, op: &Op, bytes: u64) {
    let by = if cpu.control_flags() & DF != 0 { bytes.wrapping_neg() } else { bytes };
    if reads_source(F) {
        let value = get(cpu, op, RSI).wrapping_add(by);
        set(cpu, op, RSI, value);
    }
    if uses_destination(F) {
        let value = get(cpu, op, RDI).wrapping_add(by);
        set(cpu, op, RDI, value);
    }
}

fn once<T: Int, const F: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    element::<T, F>(cpu, op)?;
    advance::<F>(cpu, op, T::BYTES);
    Ok(())
}

/// Elements from `addr` on, in the direction of DF, that lie wholly on its page. One that crosses counts as one.
fn on_page(addr: u64, bytes: u64, down: bool) -> u64 {
    let offset = addr % PAGE;
    if !down {
        return ((PAGE - offset) / bytes).max(1);
    }
    if offset + bytes > PAGE { 1 } else { offset / bytes + 1 }
}

fn repeated<T: Int, const F: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let count = get(cpu, op, RCX);
    if count == 0 {
        return Ok(());
    }
    let down = cpu.control_flags() & DF != 0;
    let (from, to) = (source(cpu, op), destination(cpu, op));
    let mut chunk = count;
    if reads_source(F) {
        chunk = chunk.min(on_page(from, T::BYTES, down));
    }
    if uses_destination(F) {
        chunk = chunk.min(on_page(to, T::BYTES, down));
    }
    if cpu.control_flags() & TF != 0 || cpu.sys.watches() {
        chunk = 1;
    }
    let whole = match F {
        MOVS if !down && chunk > 1 => copy(cpu, from, to, chunk * T::BYTES, T::BYTES)?,
        STOS if !down && chunk > 1 => fill::<T>(cpu, to, chunk)?,
        _ => false,
    };
    let mut left = count;
    let mut more = true;
    if whole {
        left -= chunk;
        advance::<F>(cpu, op, chunk * T::BYTES);
    } else {
        for _ in 0..chunk {
            match element::<T, F>(cpu, op) {
                Ok(on) => more = on,
                Err(stop) => {
                    if left != count {
                        set(cpu, op, RCX, left);
                    }
                    return Err(stop);
                }
            }
            left -= 1;
            advance::<F>(cpu, op, T::BYTES);
            if !more {
                break;
            }
        }
    }
    set(cpu, op, RCX, left);
    if left == 0 || !more { Ok(()) } else { Err(Stop::Again) }
}

/// The page of RAM behind a virtual address, ready for the access; none if it is not RAM.
fn ram(cpu: &mut Cpu, addr: u64, access: Access) -> Result<Option<(*mut u8, u64, PageIndex)>, Stop> {
    let user = cpu.user();
    let physical = (cpu.translate(addr, access, user)? & PAGE_MASK) + addr % PAGE;
    Ok(cpu.ram.page(physical).map(|(page, index)| {
        // SAFETY: an offset within the page.
        (unsafe { page.add((physical % PAGE) as usize) }, physical, index)
    }))
}

fn wrote(cpu: &mut Cpu, addr: u64, physical: u64, bytes: u64, index: PageIndex) {
    cpu.wrote(physical, bytes, index);
    let user = cpu.user();
    cpu.open_writes(addr, user);
}

/// Copies upwards within one page each, as `unit` by `unit` would. False, and nothing done, if it is not all RAM.
fn copy(cpu: &mut Cpu, from: u64, to: u64, bytes: u64, unit: u64) -> Result<bool, Stop> {
    let Some((source, _, _)) = ram(cpu, from, Access::Read)? else { return Ok(false) };
    let Some((target, physical, index)) = ram(cpu, to, Access::Write)? else { return Ok(false) };
    let ahead = (target as u64).wrapping_sub(source as u64);
    if ahead != 0 && ahead < bytes {
        if ahead < unit {
            return Ok(false);
        }
        // The copy overtakes its source: what was copied is copied again.
        let mut at = 0;
        while at < bytes {
            let part = ahead.min(bytes - at) as usize;
            // SAFETY: both stay within their pages; parts of at most `ahead` bytes do not overlap.
            unsafe { target.add(at as usize).copy_from_nonoverlapping(source.add(at as usize), part) };
            at += part as u64;
        }
    } else {
        // SAFETY: both ranges are within a page of RAM.
        unsafe { target.copy_from(source, bytes as usize) };
    }
    wrote(cpu, to, physical, bytes, index);
    Ok(true)
}

fn fill<T: Int>(cpu: &mut Cpu, to: u64, count: u64) -> Result<bool, Stop> {
    let Some((target, physical, index)) = ram(cpu, to, Access::Write)? else { return Ok(false) };
    let value = T::from_wide(T::get(cpu, 0));
    for at in 0..count as usize {
        // SAFETY: `count` elements fit on the page.
        unsafe { target.cast::<T>().add(at).write_unaligned(value) };
    }
    wrote(cpu, to, physical, count * T::BYTES, index);
    Ok(true)
}

macro_rules! handlers {
    ($width:expr, $repeated:expr, $f:expr) => {
        match ($width, $repeated) {
            (Width::Byte, false) => once::<u8, { $f }> as Handler,
            (Width::Word, false) => once::<u16, { $f }> as Handler,
            (Width::Dword, false) => once::<u32, { $f }> as Handler,
            (Width::Qword, false) => once::<u64, { $f }> as Handler,
            (Width::Byte, true) => repeated::<u8, { $f }> as Handler,
            (Width::Word, true) => repeated::<u16, { $f }> as Handler,
            (Width::Dword, true) => repeated::<u32, { $f }> as Handler,
            (Width::Qword, true) => repeated::<u64, { $f }> as Handler,
        }
    };
}

impl Element {
    pub(crate) fn handler(self, width: Width, repeated: bool) -> Handler {
        match self {
            Self::Movs => handlers!(width, repeated, MOVS),
            Self::Stos => handlers!(width, repeated, STOS),
            Self::Lods => handlers!(width, repeated, LODS),
            Self::Cmps => handlers!(width, repeated, CMPS),
            Self::Scas => handlers!(width, repeated, SCAS),
        }
    }
}

pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Kind> {
    use Mnemonic::*;
    if !instruction.is_string_instruction() {
        return None;
    }
    let what = match instruction.mnemonic() {
        Movsb | Movsw | Movsd | Movsq => Element::Movs,
        Stosb | Stosw | Stosd | Stosq => Element::Stos,
        Lodsb | Lodsw | Lodsd | Lodsq => Element::Lods,
        Cmpsb | Cmpsw | Cmpsd | Cmpsq => Element::Cmps,
        Scasb | Scasw | Scasd | Scasq => Element::Scas,
        _ => return None,
    };
    let kinds = [instruction.op0_kind(), instruction.op1_kind()];
    let uses = |wanted: &[OpKind]| kinds.iter().any(|kind| wanted.contains(kind));
    op.mem.cut = if uses(&[OpKind::MemorySegRSI, OpKind::MemoryESRDI]) {
        0
    } else if uses(&[OpKind::MemorySegESI, OpKind::MemoryESEDI]) {
        32
    } else {
        return None;
    };
    op.mem.base = NONE;
    if uses(&[OpKind::MemorySegRSI, OpKind::MemorySegESI]) {
        op.mem.seg = segment_of(instruction, instruction.memory_segment());
    }
    op.aux = if instruction.has_repne_prefix() {
        WHILE_UNEQUAL
    } else if instruction.has_rep_prefix() {
        WHILE_EQUAL
    } else {
        ONCE
    };
    debug_assert!(is_long(instruction) || op.mem.cut != 0);
    let width = Width::of(instruction.memory_size().size())?;
    Some(Kind::String { what, width, repeated: op.aux != ONCE })
}
