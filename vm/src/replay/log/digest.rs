//! The digest of the recorder's machine at a count. The replayer compares it, so that a divergence is found where it
//! shows first, and by name.

use super::bytes::{Reader, put_varint};
use super::format::DIGEST_PAGES_MAX;
use ft_ram::PageIndex;
use ft_ram::layout::PAGE_SIZE;

/// Names of [`Digest::registers`], in order. Those that are marked as hashes stand for state of which it is enough to
/// know that it differs.
pub const REGISTERS: [&str; 43] = [
    "rax",
    "rcx",
    "rdx",
    "rbx",
    "rsp",
    "rbp",
    "rsi",
    "rdi",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
    "rip",
    "rflags",
    "cs",
    "ss",
    "ds",
    "es",
    "fs",
    "gs",
    "fs base",
    "gs base",
    "kernel gs base",
    "cpl",
    "cr0",
    "cr2",
    "cr3",
    "cr4",
    "cr8",
    "efer",
    "gdtr base",
    "idtr base",
    "tr base",
    "halted",
    "virtual time (ns)",
    "other system registers (hash)",
    "x87 and SSE (hash)",
    "interrupt chips and timers (hash)",
    "devices (hash)",
];

/// Registers and the content of pages at a count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// As named by [`REGISTERS`].
    pub registers: [u64; REGISTERS.len()],
    /// Pages written since the last digest, ascending, each with the [`page_hash`] of its content.
    pub pages: Vec<(PageIndex, u32)>,
}

/// A difference between what was recorded and what the replay came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// In a register.
    #[error("register {name}: {recorded:#x} was recorded, the replay has {replayed:#x}")]
    Register {
        /// Its name in [`REGISTERS`].
        name: &'static str,
        /// Value then.
        recorded: u64,
        /// Value now.
        replayed: u64,
    },
    /// In the content of a page.
    #[error("page {page}: content with hash {recorded:#010x} was recorded, the replay has {replayed:#010x}")]
    Page {
        /// Which.
        page: PageIndex,
        /// Hash then.
        recorded: u32,
        /// Hash now.
        replayed: u32,
    },
    /// A page that one side wrote and the other did not.
    #[error("page {page} was written in the {} only", if *.in_replay { "replay" } else { "recording" })]
    Written {
        /// Which.
        page: PageIndex,
        /// By the replay, not by the recorder.
        in_replay: bool,
    },
}

/// The hash of a page's content in a digest.
pub fn page_hash(page: &[u8; PAGE_SIZE]) -> u32 {
    crc32c::crc32c(page)
}

impl Digest {
    /// The first difference between this recorded digest and the replay's own.
    pub fn mismatch(&self, replay: &Self) -> Option<Mismatch> {
        let registers = self.registers.iter().zip(&replay.registers).zip(REGISTERS);
        for ((&recorded, &replayed), name) in registers {
            if recorded != replayed {
                return Some(Mismatch::Register { name, recorded, replayed });
            }
        }
        let (mut then, mut now) = (self.pages.iter(), replay.pages.iter());
        loop {
            let (page, in_replay) = match (then.next(), now.next()) {
                (None, None) => return None,
                (Some(&(page, recorded)), Some(&(same, replayed))) if page == same => {
                    if recorded != replayed {
                        return Some(Mismatch::Page { page, recorded, replayed });
                    }
                    continue;
                }
                (Some(&(page, _)), Some(&(other, _))) => (page.min(other), other < page),
                (Some(&(page, _)), None) => (page, false),
                (None, Some(&(page, _))) => (page, true),
            };
            return Some(Mismatch::Written { page, in_replay });
        }
    }

    pub(super) fn size_max(&self) -> usize {
        10 * REGISTERS.len() + 10 + (5 + 4) * self.pages.len()
    }

    /// Pages are written as their distance from the one before (the first: from page 0), so a digest's pages ascend
    /// however it is read.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        for &register in &self.registers {
            put_varint(out, register);
        }
        put_varint(out, self.pages.len() as u64);
        let mut next = 0;
        for &(page, hash) in &self.pages {
            put_varint(out, u64::from(page).saturating_sub(next));
            out.extend_from_slice(&hash.to_le_bytes());
            next = u64::from(page) + 1;
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, &'static str> {
        let mut registers = [0; REGISTERS.len()];
        for register in &mut registers {
            *register = reader.varint()?;
        }
        let count = reader.length(DIGEST_PAGES_MAX, "more pages than a digest has")?;
        if count > reader.rest().len() / 5 {
            return Err("more pages than bytes for them");
        }
        let mut pages = Vec::with_capacity(count);
        let mut next = 0_u64;
        for _ in 0..count {
            let page = next.checked_add(reader.varint()?).and_then(|page| PageIndex::try_from(page).ok());
            let page = page.ok_or("page number out of range")?;
            pages.push((page, reader.u32()?));
            next = u64::from(page) + 1;
        }
        Ok(Self { registers, pages })
    }
}
