//! The code cache: decoded basic blocks by physical address and mode.
//!
//! A block does not cross a page; an instruction that does is a block of its own, whose second page is translated again
//! every time. Pages with blocks are known by granules of 64 bytes: a write that touches none of them leaves the blocks
//! alone, and a write that touches one drops all blocks of the page. Dropped blocks are freed between blocks, never
//! under a running one.

use super::cpu::Cpu;
use super::exec;
use super::interrupt::vector;
use super::kind::Kind;
use super::op::{Mem, NONE, Op, RIP_BASE, Stop};
use super::tlb::{PAGE, PAGE_MASK};
use super::walk::Access;
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, OpKind, Register};
use std::cell::Cell;
use std::collections::HashMap;

/// Ops a block has at most.
const OPS: usize = 64;
/// Bytes an instruction has at most.
const INSTRUCTION: usize = 15;
/// Ops that all blocks together have at most; then all are dropped.
const CACHED_OPS: usize = 1 << 20;
/// Entries of the direct-mapped table in front of the map.
const FRONT: usize = 1 << 13;

/// In a block's key, besides its physical address: it is 32-bit code.
const CODE32: u64 = 1 << 63;

/// Straight-line code.
pub(crate) struct Block {
    pub ops: Box<[Op]>,
    /// Bytes of all its instructions.
    pub bytes: u32,
    /// Physical address of the first byte, and mode.
    key: u64,
    /// Physical address of the page where its only instruction ends, when it begins on the page before.
    second: Option<u64>,
    /// Blocks on the same page that followed it last: where it jumped to, and what comes after it in memory.
    links: [Cell<Link>; 2],
}

/// A block that followed another, and under what circumstances it is the right one again (see [`Cpu::link_key`]).
#[derive(Clone, Copy)]
struct Link {
    key: u64,
    block: *const Block,
}

/// The block that was executed last and its address, if the next one may be found by its links: when both are on the
/// same virtual page and nothing was flushed since, the code TLB still has what it gave for the first.
#[derive(Clone, Copy)]
pub(super) struct Trail {
    pub block: *const Block,
    pub rip: u64,
    /// The cache's generation when the block was found: it has not been dropped if that is still the same.
    generation: u64,
}

impl Trail {
    pub(super) const NONE: Self = Self { block: std::ptr::null(), rip: 0, generation: 0 };
}

#[derive(Default)]
struct Page {
    /// 64-byte granules from which something was decoded.
    granules: u64,
    keys: Vec<u64>,
}

#[derive(Clone, Copy)]
struct Front {
    key: u64,
    block: *const Block,
}

pub(crate) struct CodeCache {
    front: Box<[Front]>,
    blocks: HashMap<u64, Box<Block>>,
    pages: HashMap<u64, Page>,
    ops: usize,
    /// Counts the times that blocks were dropped: links from before are void.
    generation: u64,
    /// Dropped, perhaps under a running block; freed at the next fetch.
    #[expect(clippy::vec_box, reason = "a block stays where it is while it runs")]
    dropped: Vec<Box<Block>>,
    /// Reports of unknown instructions still to be logged.
    reports: u32,
}

// SAFETY: the pointers in `front` and in links are to boxes that `blocks` owns.
unsafe impl Send for CodeCache {}

impl CodeCache {
    pub(crate) fn new() -> Self {
        let none = Front { key: u64::MAX, block: std::ptr::null() };
        Self {
            front: vec![none; FRONT].into_boxed_slice(),
            blocks: HashMap::new(),
            pages: HashMap::new(),
            ops: 0,
            generation: 0,
            dropped: Vec::new(),
            reports: 64,
        }
    }

    #[inline(always)]
    fn front_index(key: u64) -> usize {
        (key ^ (key >> 12)) as usize & (FRONT - 1)
    }

    /// Whether anything decoded came from this page.
    pub(crate) fn contains(&self, page: u64) -> bool {
        self.pages.contains_key(&page)
    }

    /// Bytes within a page were written. Whether code went.
    pub(crate) fn written(&mut self, addr: u64, bytes: u64) -> bool {
        let Some(page) = self.pages.get(&(addr & PAGE_MASK)) else { return false };
        let offset = addr % PAGE;
        let first = offset / 64;
        let last = (offset + bytes.max(1) - 1).min(PAGE - 1) / 64;
        let touched = (u64::MAX << first) & (u64::MAX >> (63 - last));
        if page.granules & touched == 0 {
            return false;
        }
        self.drop_page(addr & PAGE_MASK);
        true
    }

    fn drop_page(&mut self, page: u64) {
        let Some(page) = self.pages.remove(&page) else { return };
        self.generation += 1;
        for key in page.keys {
            // A block that crosses a page is listed at both; its key at the other page is left behind, harmless.
            if let Some(block) = self.blocks.remove(&key) {
                self.ops -= block.ops.len();
                let front = &mut self.front[Self::front_index(key)];
                if front.key == key {
                    front.key = u64::MAX;
                }
                self.dropped.push(block);
            }
        }
    }

    fn drop_all(&mut self) {
        self.generation += 1;
        for (_, block) in self.blocks.drain() {
            self.dropped.push(block);
        }
        self.pages.clear();
        self.ops = 0;
        self.front.iter_mut().for_each(|front| front.key = u64::MAX);
    }

    fn insert(&mut self, block: Block) -> *const Block {
        if self.ops > CACHED_OPS {
            self.drop_all();
        }
        let first = self.pages.entry(block.key & PAGE_MASK & !CODE32).or_default();
        if block.second.is_none() || !first.keys.contains(&block.key) {
            first.keys.push(block.key);
        }
        let offset = block.key % PAGE;
        let last = (offset + u64::from(block.bytes) - 1).min(PAGE - 1);
        first.granules |= (u64::MAX << (offset / 64)) & (u64::MAX >> (63 - last / 64));
        if let Some(second) = block.second {
            let page = self.pages.entry(second).or_default();
            if !page.keys.contains(&block.key) {
                page.keys.push(block.key);
            }
            page.granules |= 1;
        }
        let key = block.key;
        let crosses = block.second.is_some();
        self.ops += block.ops.len();
        let block = Box::new(block);
        let pointer: *const Block = &*block;
        if let Some(old) = self.blocks.insert(key, block) {
            self.ops -= old.ops.len();
            self.generation += 1;
            self.dropped.push(old);
        }
        if !crosses {
            self.front[Self::front_index(key)] = Front { key, block: pointer };
        }
        pointer
    }
}

impl Cpu {
    /// What a link depends on, besides the page: offset on it, mode, privilege, and that no block was dropped.
    #[inline(always)]
    fn link_key(&self) -> u64 {
        self.code.generation << 16
            | u64::from(self.long) << 13
            | u64::from(self.user()) << 12
            | (self.rip % PAGE)
    }

    /// The block at `rip`. Valid until the next fetch.
    #[inline(always)]
    pub(super) fn next_block(&mut self) -> Result<*const Block, Stop> {
        let trail = self.trail;
        if trail.block.is_null() || (trail.rip ^ self.rip) & PAGE_MASK != 0 {
            return self.fetch();
        }
        let key = self.link_key();
        // SAFETY: blocks, dropped ones too, live until a fetch after the drop, which also sets a new trail.
        let block = unsafe { &*trail.block };
        let place = &block.links[usize::from(self.rip == trail.rip.wrapping_add(u64::from(block.bytes)))];
        let link = place.get();
        if link.key == key {
            return Ok(link.block);
        }
        let next = self.fetch()?;
        // SAFETY: just found; it lives until the next fetch.
        if self.code.generation == trail.generation && unsafe { &*next }.second.is_none() {
            place.set(Link { key, block: next });
        }
        Ok(next)
    }

    /// `block`, at `rip`, is about to be executed.
    #[inline(always)]
    pub(super) fn leave_trail(&mut self, block: *const Block) {
        self.trail = Trail { block, rip: self.rip, generation: self.code.generation };
    }

    #[inline(always)]
    fn fetch(&mut self) -> Result<*const Block, Stop> {
        let entry = self.tlb.code[usize::from(self.user())].at(self.rip);
        if entry.read == self.rip & PAGE_MASK {
            let key = entry.frame & PAGE_MASK | (self.rip % PAGE) | if self.long { 0 } else { CODE32 };
            let front = &self.code.front[CodeCache::front_index(key)];
            if front.key == key {
                return Ok(front.block);
            }
        }
        self.fetch_slow()
    }

    #[cold]
    #[inline(never)]
    fn fetch_slow(&mut self) -> Result<*const Block, Stop> {
        self.ops = std::ptr::null();
        self.code.dropped.clear();
        if !self.long && self.sys.segs[1].attributes & 1 << 14 == 0 {
            // 16-bit code is not implemented.
            self.unknown_instructions += 1;
            return Err(self.raise(vector::UD, None));
        }
        let frame = self.translate(self.rip, Access::Fetch, self.user())? & PAGE_MASK;
        let key = frame | (self.rip % PAGE) | if self.long { 0 } else { CODE32 };
        if let Some(block) = self.code.blocks.get(&key) {
            let pointer: *const Block = &**block;
            match block.second {
                None => {
                    self.code.front[CodeCache::front_index(key)] = Front { key, block: pointer };
                    return Ok(pointer);
                }
                Some(second) => {
                    let next = (self.rip & PAGE_MASK).wrapping_add(PAGE);
                    if self.translate(next, Access::Fetch, self.user())? & PAGE_MASK == second {
                        return Ok(pointer);
                    }
                }
            }
        }
        let block = self.decode(frame, key)?;
        for page in [Some(frame), block.second].into_iter().flatten() {
            if !self.code.contains(page) {
                self.tlb.close_writes_to(page);
            }
        }
        Ok(self.code.insert(block))
    }

    fn decode(&mut self, frame: u64, key: u64) -> Result<Block, Stop> {
        let offset = (self.rip % PAGE) as usize;
        let mut bytes = [0; PAGE as usize + INSTRUCTION];
        let mut available = PAGE as usize;
        self.copy_code(frame, &mut bytes[..available])?;

        let bitness = if self.long { 64 } else { 32 };
        let mut ops: Vec<Op> = Vec::new();
        let mut second = None;
        let mut at = offset;
        while ops.len() < OPS {
            let left = available - at;
            let mut decoder =
                Decoder::with_ip(bitness, &bytes[at..available], (at - offset) as u64, DecoderOptions::NONE);
            let mut instruction = Instruction::default();
            decoder.decode_out(&mut instruction);
            let cut = instruction.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes;
            if cut && second.is_none() {
                if !ops.is_empty() {
                    break;
                }
                let next = (self.rip & PAGE_MASK).wrapping_add(PAGE);
                let page = self.translate(next, Access::Fetch, self.user())? & PAGE_MASK;
                self.copy_code(page, &mut bytes[available..])?;
                second = Some(page);
                available += INSTRUCTION;
                continue;
            }
            if instruction.is_invalid() && instruction.len() >= INSTRUCTION {
                // iced's answer when 15 bytes did not suffice.
                let len = INSTRUCTION as u8;
                ops.push(Op { len, ..Op::of(Kind::TooLong, (at - offset) as u16) });
                at += INSTRUCTION;
                break;
            }
            let mut op = prepare(&instruction, (at - offset) as u16);
            let known = exec::lower(&instruction, &mut op);
            if !known {
                self.report_unknown(&bytes[at..at + left.min(INSTRUCTION)], &instruction);
                // An instruction that no processor has is not counted as one that this processor lacks.
                let kind = if instruction.is_invalid() { Kind::Undefined } else { Kind::Unknown };
                op = Op { len: op.len, ..Op::of(kind, op.offset) };
            }
            let last = !known || ends_block(&instruction);
            if let Some(previous) = ops.last_mut()
                && let Some(both) = exec::fuse(previous, &op)
            {
                previous.run = both;
            }
            at += instruction.len().max(1);
            ops.push(op);
            if last || second.is_some() {
                break;
            }
        }
        let unlinked = || Cell::new(Link { key: u64::MAX, block: std::ptr::null() });
        let links = [unlinked(), unlinked()];
        Ok(Block { ops: ops.into_boxed_slice(), bytes: (at - offset) as u32, key, second, links })
    }

    /// Copies code from the start of a physical page. Code outside RAM is refused.
    fn copy_code(&mut self, page: u64, into: &mut [u8]) -> Result<(), Stop> {
        let Some((host, _)) = self.ram.page(page) else { return Err(self.raise(vector::GP, Some(0))) };
        // SAFETY: at most a page, from a page of RAM.
        unsafe { host.copy_to_nonoverlapping(into.as_mut_ptr(), into.len().min(PAGE as usize)) };
        Ok(())
    }

    fn report_unknown(&mut self, bytes: &[u8], instruction: &Instruction) {
        if self.code.reports > 0 {
            self.code.reports -= 1;
            let shown =
                if instruction.is_invalid() { bytes } else { &bytes[..instruction.len().min(bytes.len())] };
            tracing::warn!(rip = %format_args!("{:#x}", self.rip), bytes = ?shown, mnemonic = ?instruction.mnemonic(),
                "the guest's code has an instruction that this processor does not have: it raises #UD");
        }
    }
}

/// Instructions after which nothing may follow in a block, because they never simply retire. (Others that stop do so by
/// what their handlers return; what follows them in the block is then merely not executed.)
fn ends_block(instruction: &Instruction) -> bool {
    use iced_x86::FlowControl::*;
    !matches!(instruction.flow_control(), Next)
}

/// What can be said about an op without knowing the instruction: its memory operand, the numbers of its first two
/// operands where they are registers, its last immediate, and its length.
fn prepare(instruction: &Instruction, offset: u16) -> Op {
    let mut op = Op { len: instruction.len() as u8, ..Op::of(Kind::Undefined, offset) };
    for operand in 0..instruction.op_count() {
        match instruction.op_kind(operand) {
            OpKind::Register => {
                let number = register_number(instruction.op_register(operand));
                match operand {
                    0 => op.dst = number,
                    1 => op.src = number,
                    _ => {}
                }
            }
            OpKind::Memory => op.mem = memory_operand(instruction),
            kind if (OpKind::Immediate8..=OpKind::Immediate32to64).contains(&kind) => {
                op.imm = instruction.immediate(operand);
            }
            _ => {}
        }
    }
    op
}

/// Number of a register in its class; AH, CH, DH and BH are 16 to 19.
pub(crate) fn register_number(register: Register) -> u8 {
    match register {
        Register::AH => 16,
        Register::CH => 17,
        Register::DH => 18,
        Register::BH => 19,
        Register::SPL | Register::BPL | Register::SIL | Register::DIL => {
            register.full_register().number() as u8
        }
        _ if register.is_gpr8() => register.full_register().number() as u8,
        _ => register.number() as u8,
    }
}

/// Whether the instruction runs in 64-bit mode.
pub(crate) fn is_long(instruction: &Instruction) -> bool {
    instruction.code_size() == iced_x86::CodeSize::Code64
}

/// The segment whose base is added: none in 64-bit mode but for FS and GS.
pub(crate) fn segment_of(instruction: &Instruction, segment: Register) -> u8 {
    match segment {
        Register::FS => 4,
        Register::GS => 5,
        Register::None => NONE,
        _ if is_long(instruction) => NONE,
        _ => segment.number() as u8,
    }
}

fn memory_operand(instruction: &Instruction) -> Mem {
    let number = |register: Register| match register {
        Register::None => NONE,
        Register::RIP | Register::EIP => RIP_BASE,
        _ => register.number() as u8,
    };
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let bits = if base != Register::None {
        base.size() * 8
    } else if index != Register::None {
        index.size() * 8
    } else {
        instruction.memory_displ_size() as usize * 8
    };
    // Without registers the displacement's size tells the address size.
    let cut = match bits {
        16 => 48,
        64 => 0,
        _ => 32,
    };
    Mem {
        base: number(base),
        index: number(index),
        scale: instruction.memory_index_scale().trailing_zeros() as u8,
        seg: segment_of(instruction, instruction.memory_segment()),
        disp: instruction.memory_displacement64() as i64,
        cut,
    }
}
