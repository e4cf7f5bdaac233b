//! Page table walks: 4 levels, 4 KiB, 2 MiB and 1 GiB pages, all permissions, reserved bits, accessed and dirty bits.

use super::cpu::Cpu;
use super::exec::system::System;
use super::interrupt::vector;
use super::op::Stop;
use super::tlb::{DIRTY, GLOBAL, HUGE, LARGE, PAGE, PAGE_MASK, WRITABLE};

pub(crate) const CR0_WP: u64 = 1 << 16;
pub(crate) const CR0_PG: u64 = 1 << 31;
pub(crate) const CR4_PGE: u64 = 1 << 7;
pub(crate) const EFER_LMA: u64 = 1 << 10;
pub(crate) const EFER_NXE: u64 = 1 << 11;

/// Width of physical addresses, as CPUID states it.
pub(crate) const PHYSICAL_BITS: u32 = 40;
const PHYSICAL: u64 = (1 << PHYSICAL_BITS) - 1;

/// Page table entry bits.
const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const MODIFIED: u64 = 1 << 6;
const LARGE_PAGE: u64 = 1 << 7;
const GLOBAL_PAGE: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;

/// Page fault error code bits.
const PF_PRESENT: u32 = 1;
const PF_WRITE: u32 = 2;
const PF_USER: u32 = 4;
const PF_RESERVED: u32 = 8;
const PF_FETCH: u32 = 16;

/// What an access wants of a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Fetch,
}

/// Whether a 48-bit address space has this address.
#[inline(always)]
pub(crate) fn canonical(addr: u64) -> bool {
    ((addr << 16) as i64 >> 16) as u64 == addr
}

impl System {
    fn paging(&self) -> bool {
        self.cr0 & CR0_PG != 0
    }
}

impl Cpu {
    /// Walks the page tables for `addr`, which is canonical. Answers the frame with its flags as [`super::tlb::Entry`]
    /// keeps them, or raises #PF.
    #[cold]
    #[inline(never)]
    pub(crate) fn walk(&mut self, addr: u64, access: Access, user: bool) -> Result<u64, Stop> {
        if !self.sys.paging() {
            return Ok((addr & PAGE_MASK & 0xffff_ffff) | WRITABLE | DIRTY);
        }
        if self.sys.efer & EFER_LMA == 0 {
            // Paging outside long mode is refused where it is enabled.
            return Err(self.raise(vector::GP, Some(0)));
        }
        let no_execute = self.sys.efer & EFER_NXE != 0;
        let fault = |cpu: &mut Self, more: u32| {
            let code = more
                | if access == Access::Write { PF_WRITE } else { 0 }
                | if user { PF_USER } else { 0 }
                | if access == Access::Fetch && no_execute { PF_FETCH } else { 0 };
            cpu.sys.cr2 = addr;
            Err(cpu.raise(vector::PF, Some(code)))
        };

        // Entries on the way, to set their accessed bits once the access is known to be permitted to proceed so far.
        let mut table = self.sys.cr3 & PHYSICAL & PAGE_MASK;
        let mut allowed = WRITE | USER;
        let mut forbidden = 0;
        let mut level = 3;
        loop {
            let shift = 12 + 9 * level;
            let place = table + ((addr >> shift) & 0x1ff) * 8;
            let entry = self.read_physical(place);
            if entry & PRESENT == 0 {
                return fault(self, 0);
            }
            let leaf = level == 0 || (entry & LARGE_PAGE != 0 && level < 3);
            let bytes = 1u64 << shift;
            let mut reserved = !PHYSICAL & 0x000f_ffff_ffff_f000;
            if !no_execute {
                reserved |= NO_EXECUTE;
            }
            if level == 3 {
                reserved |= LARGE_PAGE;
            } else if leaf && level > 0 {
                // Bit 12 of a large page's entry is its memory type's third bit.
                reserved |= (bytes - 1) & !0x1fff;
            }
            if entry & reserved != 0 {
                return fault(self, PF_PRESENT | PF_RESERVED);
            }
            allowed &= entry;
            forbidden |= entry & NO_EXECUTE;
            if !leaf {
                if entry & ACCESSED == 0 {
                    self.write_physical(place, entry | ACCESSED);
                }
                table = entry & PHYSICAL & PAGE_MASK;
                level -= 1;
                continue;
            }

            let writable = allowed & WRITE != 0 || (!user && self.sys.cr0 & CR0_WP == 0);
            if (user && allowed & USER == 0)
                || (access == Access::Write && !writable)
                || (access == Access::Fetch && forbidden != 0)
            {
                return fault(self, PF_PRESENT);
            }
            let marks = ACCESSED | if access == Access::Write { MODIFIED } else { 0 };
            if entry & marks != marks {
                self.write_physical(place, entry | marks);
            }
            let base = entry & PHYSICAL & !(bytes - 1) & PAGE_MASK;
            let mut frame = base | (addr & (bytes - 1) & PAGE_MASK);
            debug_assert_eq!(frame % PAGE, 0);
            if writable {
                frame |= WRITABLE;
            }
            if (entry | marks) & MODIFIED != 0 {
                frame |= DIRTY;
            }
            if entry & GLOBAL_PAGE != 0 && self.sys.cr4 & CR4_PGE != 0 {
                frame |= GLOBAL;
            }
            frame |= match level {
                0 => 0,
                1 => LARGE,
                _ => HUGE,
            };
            return Ok(frame);
        }
    }
}
