//! The processor's accesses to memory: translation, permissions, RAM or bus, and the parts that must hear of a write.
//!
//! The fast path is one comparison: the tag of the entry for an access's first byte against the page of its last byte,
//! which also sends every access that crosses a page the slow way.

use super::block::Trail;
use super::cpu::Cpu;
use super::debug::Touch;
use super::dirty::Tracker;
use super::op::{NONE, RIP_BASE, Step, Stop};
use super::tlb::{DIRTY, Entry, PAGE, PAGE_MASK, WRITABLE};
use super::walk::{Access, canonical};
use ft_ram::{GuestRam, PageIndex, Slot};

/// Where RAM is, in guest-physical space and in this process.
pub(crate) struct Ram {
    slots: Vec<Slot>,
    /// Keeps the mapping.
    _ram: GuestRam,
}

// SAFETY: the slots' pointers are into the mapping that `_ram` keeps; it is plain memory, valid from any thread.
unsafe impl Send for Ram {}

impl Ram {
    pub(crate) fn new(ram: &GuestRam) -> Self {
        Self { slots: ram.slots(), _ram: ram.clone() }
    }

    /// The page that holds `addr`, if it is RAM: its host address and number.
    pub(crate) fn page(&self, addr: u64) -> Option<(*mut u8, PageIndex)> {
        self.slots.iter().find_map(|slot| {
            let offset = addr.checked_sub(slot.guest_base).filter(|offset| *offset < slot.bytes)?;
            let page = offset / PAGE;
            // SAFETY: the offset is within the slot's mapping.
            let host = unsafe { slot.host.add((page * PAGE) as usize) };
            Some((host, slot.first_page + page as PageIndex))
        })
    }

    /// Guest-physical address of a page.
    pub(crate) fn address_of(&self, page: PageIndex) -> Option<u64> {
        self.slots.iter().find_map(|slot| {
            let offset = u64::from(page.checked_sub(slot.first_page)?) * PAGE;
            (offset < slot.bytes).then(|| slot.guest_base + offset)
        })
    }
}

/// What a load or store moves: plain integers, little-endian in memory.
pub(crate) trait Value: Copy + Send + Sync + 'static {
    const BYTES: u64 = size_of::<Self>() as u64;
    fn truncate(wide: u128) -> Self;
    fn widen(self) -> u128;
}

macro_rules! value {
    ($($ty:ty),*) => {$(
        impl Value for $ty {
            #[inline(always)]
            fn truncate(wide: u128) -> Self { wide as $ty }
            #[inline(always)]
            fn widen(self) -> u128 { self as u128 }
        }
    )*};
}
value!(u8, u16, u32, u64, u128);

#[inline(always)]
fn host<T>(entry: &Entry, addr: u64) -> *mut T {
    std::ptr::with_exposed_provenance_mut(addr.wrapping_add(entry.addend) as usize)
}

/// The page on which an access of `bytes` at `addr` ends.
#[inline(always)]
fn last_page(addr: u64, bytes: u64) -> u64 {
    addr.wrapping_add(bytes - 1) & PAGE_MASK
}

impl Cpu {
    #[inline(always)]
    pub(crate) fn user(&self) -> bool {
        self.cpl == 3
    }

    /// Reads memory with the current privilege.
    #[inline(always)]
    pub(crate) fn load<T: Value>(&mut self, addr: u64) -> Result<T, Stop> {
        let entry = self.tlb.data[usize::from(self.user())].at(addr);
        if entry.read == last_page(addr, T::BYTES) {
            // SAFETY: a tag without flags is a page of RAM at `addend`, and the access ends on that page.
            return Ok(unsafe { host::<T>(entry, addr).read_unaligned() });
        }
        self.load_slow(addr, T::BYTES as u32, self.user())?;
        Ok(T::truncate(self.scratch))
    }

    /// Writes memory with the current privilege. Nothing is written if any byte cannot be.
    #[inline(always)]
    pub(crate) fn store<T: Value>(&mut self, addr: u64, value: T) -> Step {
        let entry = self.tlb.data[usize::from(self.user())].at(addr);
        if entry.write == last_page(addr, T::BYTES) {
            // SAFETY: as in `load`.
            unsafe { host::<T>(entry, addr).write_unaligned(value) };
            return Ok(());
        }
        self.scratch = value.widen();
        self.store_slow(addr, T::BYTES as u32, self.user())
    }

    /// Reads, changes and writes memory; faults as a write, before `change` is called.
    #[inline(always)]
    pub(crate) fn modify<T: Value>(&mut self, addr: u64, change: impl FnOnce(&mut Self, T) -> T) -> Step {
        let entry = self.tlb.data[usize::from(self.user())].at(addr);
        if entry.write == last_page(addr, T::BYTES) {
            let place = host::<T>(entry, addr);
            // SAFETY: as in `load`; `change` works on registers and flags and leaves the translation alone.
            unsafe {
                let old = place.read_unaligned();
                place.write_unaligned(change(self, old));
            }
            return Ok(());
        }
        self.probe_write(addr, T::BYTES)?;
        self.load_slow(addr, T::BYTES as u32, self.user())?;
        let new = change(self, T::truncate(self.scratch));
        self.scratch = new.widen();
        self.store_slow(addr, T::BYTES as u32, self.user())
    }

    /// Reads memory as the processor itself does (descriptor tables, TSS): supervisor's rights whatever the CPL.
    pub(crate) fn load_system<T: Value>(&mut self, addr: u64) -> Result<T, Stop> {
        self.load_slow(addr, T::BYTES as u32, false)?;
        Ok(T::truncate(self.scratch))
    }

    /// Writes memory as the processor itself does.
    pub(crate) fn store_system<T: Value>(&mut self, addr: u64, value: T) -> Step {
        self.scratch = value.widen();
        self.store_slow(addr, T::BYTES as u32, false)
    }

    /// Faults as a write of `bytes` bytes at `addr` would.
    pub(crate) fn probe_write(&mut self, addr: u64, bytes: u64) -> Step {
        self.probe(addr, bytes, Access::Write)
    }

    /// Faults as a read of `bytes` bytes at `addr` would.
    pub(crate) fn probe_read(&mut self, addr: u64, bytes: u64) -> Step {
        self.probe(addr, bytes, Access::Read)
    }

    fn probe(&mut self, addr: u64, bytes: u64, access: Access) -> Step {
        self.check_canonical(addr, bytes)?;
        let user = self.user();
        let mut page = addr;
        loop {
            self.translate(page, access, user)?;
            page = (page & PAGE_MASK).wrapping_add(PAGE);
            if page.wrapping_sub(addr) >= bytes {
                return Ok(());
            }
        }
    }

    /// Linear address of the op's memory operand.
    #[inline(always)]
    pub(crate) fn address(&self, op: &super::op::Op) -> u64 {
        let mem = &op.mem;
        let mut addr = match mem.base {
            NONE => 0,
            RIP_BASE => self.rip,
            base => self.regs[usize::from(base & 15)],
        };
        if mem.index != NONE {
            addr = addr.wrapping_add(self.regs[usize::from(mem.index & 15)] << (mem.scale & 3));
        }
        addr = addr.wrapping_add(mem.disp as u64);
        if mem.cut != 0 {
            addr &= mem.mask();
        }
        if mem.seg != NONE {
            addr = addr.wrapping_add(self.sys.segs[usize::from(mem.seg)].base);
            if !self.long {
                addr &= 0xffff_ffff;
            }
        }
        addr
    }

    /// Translates one address: the frame with its flags. Fills the TLB.
    pub(crate) fn translate(&mut self, addr: u64, access: Access, user: bool) -> Result<u64, Stop> {
        let page = addr & PAGE_MASK;
        let entry = match access {
            Access::Fetch => self.tlb.code[usize::from(user)].at(addr),
            _ => self.tlb.data[usize::from(user)].at(addr),
        };
        if entry.maps(page) {
            let frame = entry.frame;
            if access != Access::Write || frame & (WRITABLE | DIRTY) == WRITABLE | DIRTY {
                return Ok(frame);
            }
        }
        if !canonical(addr) {
            return Err(self.not_canonical());
        }
        let frame = self.walk(addr, access, user)?;
        let host = self.ram.page(frame).map(|(host, _)| host.expose_provenance() as u64);
        match access {
            Access::Fetch => self.tlb.code[usize::from(user)].fill(page, frame, host),
            _ => {
                let host = host.filter(|_| !self.sys.watches_page(page));
                self.tlb.data[usize::from(user)].fill(page, frame, host);
            }
        }
        Ok(frame)
    }

    /// An operand that is not canonical as a whole is refused before any of its bytes is translated.
    fn check_canonical(&mut self, addr: u64, bytes: u64) -> Step {
        if canonical(addr) && canonical(addr.wrapping_add(bytes.saturating_sub(1))) {
            Ok(())
        } else {
            Err(self.not_canonical())
        }
    }

    /// What an access to the stack raises: #SS where another would raise #GP.
    #[cold]
    pub(crate) fn stack_fault(&mut self, stop: Stop) -> Stop {
        if self.fault.vector == 13 {
            self.fault.vector = 12;
        }
        stop
    }

    /// #SS for operands that are addressed through RSP or RBP, #GP for others.
    #[cold]
    pub(crate) fn not_canonical(&mut self) -> Stop {
        let stack = self.current_op().is_some_and(|op| matches!(op.mem.base, 4 | 5) && op.mem.seg == NONE);
        self.raise(if stack { 12 } else { 13 }, Some(0))
    }

    /// Reads `bytes` bytes into `scratch`.
    #[cold]
    #[inline(never)]
    fn load_slow(&mut self, addr: u64, bytes: u32, user: bool) -> Step {
        self.check_canonical(addr, u64::from(bytes))?;
        let first = self.translate(addr, Access::Read, user)?;
        let head = (PAGE - addr % PAGE).min(u64::from(bytes)) as usize;
        let mut data = [0; 16];
        if head < bytes as usize {
            let second = self.translate(addr.wrapping_add(head as u64), Access::Read, user)?;
            self.read_frame(second & PAGE_MASK, &mut data[head..bytes as usize]);
        }
        self.read_frame((first & PAGE_MASK) + addr % PAGE, &mut data[..head]);
        self.scratch = u128::from_le_bytes(data);
        self.touched(addr, u64::from(bytes), Touch::Read);
        Ok(())
    }

    /// Writes `bytes` bytes of `scratch`.
    #[cold]
    #[inline(never)]
    fn store_slow(&mut self, addr: u64, bytes: u32, user: bool) -> Step {
        self.check_canonical(addr, u64::from(bytes))?;
        let first = self.translate(addr, Access::Write, user)?;
        let head = (PAGE - addr % PAGE).min(u64::from(bytes)) as usize;
        let data = self.scratch.to_le_bytes();
        if head < bytes as usize {
            let next = addr.wrapping_add(head as u64);
            let second = self.translate(next, Access::Write, user)?;
            self.write_frame(second & PAGE_MASK, &data[head..bytes as usize]);
            self.open_writes(next, user);
        }
        self.write_frame((first & PAGE_MASK) + addr % PAGE, &data[..head]);
        self.open_writes(addr, user);
        self.touched(addr, u64::from(bytes), Touch::Write);
        Ok(())
    }

    /// Lets further writes to a page that was just written the slow way go there directly, if nobody need hear of them.
    pub(crate) fn open_writes(&mut self, addr: u64, user: bool) {
        let entry = self.tlb.data[usize::from(user)].at_mut(addr);
        if !entry.maps(addr & PAGE_MASK) || entry.frame & (WRITABLE | DIRTY) != WRITABLE | DIRTY {
            return;
        }
        if !self.code.contains(entry.frame & PAGE_MASK) {
            entry.open_writes();
        }
    }

    /// Reads within one physical page.
    fn read_frame(&mut self, addr: u64, data: &mut [u8]) {
        if let Some((page, _)) = self.ram.page(addr) {
            // SAFETY: callers stay within the page, which is RAM.
            unsafe {
                page.add((addr % PAGE) as usize).copy_to_nonoverlapping(data.as_mut_ptr(), data.len());
            }
            return;
        }
        let now_ns = self.now_ns();
        let mut at = 0;
        while at < data.len() {
            let bytes = bus_bytes(addr + at as u64, data.len() - at);
            self.bus.mmio_read(now_ns, addr + at as u64, &mut data[at..at + bytes]);
            at += bytes;
        }
        self.after_bus(None);
    }

    /// Writes within one physical page.
    fn write_frame(&mut self, addr: u64, data: &[u8]) {
        if let Some((page, index)) = self.ram.page(addr) {
            // SAFETY: callers stay within the page, which is RAM.
            unsafe {
                page.add((addr % PAGE) as usize).copy_from_nonoverlapping(data.as_ptr(), data.len());
            }
            self.wrote(addr, data.len() as u64, index);
            return;
        }
        let now_ns = self.now_ns();
        let mut at = 0;
        while at < data.len() {
            let bytes = bus_bytes(addr + at as u64, data.len() - at);
            let event = self.bus.mmio_write(now_ns, addr + at as u64, &data[at..at + bytes]);
            self.after_bus(event);
            at += bytes;
        }
    }

    /// Bytes of RAM were written: marks the page, and drops code that was decoded from them.
    pub(crate) fn wrote(&mut self, addr: u64, bytes: u64, index: PageIndex) {
        self.dirty.mark(index);
        if self.code.written(addr, bytes) {
            self.leave_block();
        }
    }

    /// A page table entry; what is not RAM reads as not present.
    pub(crate) fn read_physical(&mut self, addr: u64) -> u64 {
        let mut data = [0; 8];
        if self.ram.page(addr).is_some() {
            self.read_frame(addr, &mut data);
        }
        u64::from_le_bytes(data)
    }

    pub(crate) fn write_physical(&mut self, addr: u64, value: u64) {
        if self.ram.page(addr).is_some() {
            self.write_frame(addr, &value.to_le_bytes());
        }
    }

    /// After every access to the bus (memory-mapped or port): the block ends with this instruction, interrupts and
    /// timers are looked at again, and what the device asked for is kept for the owner.
    pub(crate) fn after_bus(&mut self, event: Option<super::bus::BusEvent>) {
        self.event = self.event.or(event);
        self.recheck();
        self.leave_block();
    }

    /// Flushes what a write to CR3 flushes: all but global pages.
    pub(crate) fn flush_tlb(&mut self) {
        self.tlb.flush_local();
        self.trail = Trail::NONE;
    }

    /// Flushes everything.
    pub fn flush_tlb_all(&mut self) {
        self.tlb.flush_all();
        self.trail = Trail::NONE;
    }

    /// Flushes the page that holds `addr` (the whole of it, if it is a large one).
    pub(crate) fn flush_tlb_page(&mut self, addr: u64) {
        self.tlb.flush_page(addr);
        self.trail = Trail::NONE;
    }

    /// CR0, CR4, EFER or the code segment's mode changed: nothing translated or decoded under the old ones counts.
    pub fn paging_changed(&mut self) {
        self.tlb.flush_all();
        self.trail = Trail::NONE;
        self.mode_changed();
    }

    /// Starts or stops recording which pages are written.
    pub fn track_dirty(&mut self, tracker: Tracker, on: bool) {
        self.dirty.set_tracking(tracker, on);
        self.tlb.close_writes();
    }

    /// Appends the pages that the guest wrote since the last call, in ascending order.
    pub fn take_dirty(&mut self, tracker: Tracker, into: &mut Vec<PageIndex>) {
        self.dirty.take(tracker, into);
        self.tlb.close_writes();
    }

    /// This page counts as written, for all who track that.
    pub fn mark_dirty(&mut self, page: PageIndex) {
        self.dirty.mark(page);
    }

    /// Somebody else (a device) wrote this page of RAM: code decoded from it goes.
    pub fn invalidate_code_page(&mut self, page: PageIndex) {
        if let Some(addr) = self.ram.address_of(page)
            && self.code.written(addr, PAGE)
        {
            self.leave_block();
        }
    }
}

/// The largest naturally aligned access of 1, 2, 4 or 8 bytes at `addr` that `left` bytes have room for.
fn bus_bytes(addr: u64, left: usize) -> usize {
    [8, 4, 2].into_iter().find(|bytes| *bytes <= left && addr.is_multiple_of(*bytes as u64)).unwrap_or(1)
}
