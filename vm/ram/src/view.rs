//! A second mapping of a guest's memory, for threads that copy whole pages and touch nothing that the guest runs on.

use crate::backing::Backing;
use crate::error::MemoryError;
use crate::layout::PAGE_SIZE;
use crate::memory::Sharing;
use crate::page::PageIndex;
use crate::resident::keep_out_of_dumps;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::Whence;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

/// A second mapping of a guest's RAM (see [`GuestRam::view`](crate::GuestRam::view)).
pub struct RamView {
    base: NonNull<u8>,
    bytes: usize,
    file: Arc<File>,
    sharing: Sharing,
}

/// Pages in a row for all of which the kernel holds memory, or for none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PageRun {
    /// They may hold anything.
    Held(Range<PageIndex>),
    /// They are zero, and reading them would make the kernel hold memory for them.
    Hole(Range<PageIndex>),
}

// SAFETY: the mapping is plain shared memory that stays valid until drop; all access goes through the copying methods
// below, which make no references into it.
unsafe impl Send for RamView {}
// SAFETY: as above; concurrent access to guest memory is a race of bytes, not of Rust objects.
unsafe impl Sync for RamView {}

impl RamView {
    /// Maps the first `ram_bytes` bytes of a guest's memfd.
    pub(crate) fn of(
        file: &Arc<File>,
        ram_bytes: u64,
        sharing: Sharing,
        backing: Backing,
    ) -> Result<Self, MemoryError> {
        let bytes = usize::try_from(ram_bytes).map_err(|e| MemoryError::Map(e.to_string()))?;
        let length = NonZeroUsize::new(bytes).ok_or(MemoryError::Size(0))?;
        let (protection, flags) =
            (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::from_bits_retain(sharing.flags()));
        // SAFETY: a fresh mapping of our own memfd at an address of the kernel's choice aliases no Rust object.
        let base = unsafe { mmap(None, length, protection, flags, file.as_fd(), 0) }
            .map_err(|e| MemoryError::Allocate { bytes: ram_bytes, source: e.into() })?;
        let view = Self { base: base.cast(), bytes, file: Arc::clone(file), sharing };
        keep_out_of_dumps(view.base, bytes)?;
        backing.apply(view.base, bytes)?;
        Ok(view)
    }

    /// Number of pages.
    pub fn pages(&self) -> PageIndex {
        (self.bytes / PAGE_SIZE) as PageIndex
    }

    /// Address of a page in this mapping. The memory is shared with the guest: copy, do not make references.
    ///
    /// # Panics
    /// When `page` is not a page of this memory: callers have bounds-checked what came from outside.
    pub fn page_ptr(&self, page: PageIndex) -> *mut u8 {
        assert!(page < self.pages(), "page {page} is outside guest memory");
        // SAFETY: within the mapping by the assertion.
        unsafe { self.base.as_ptr().add(page as usize * PAGE_SIZE) }
    }

    /// Calls `each` with every run of pages that the kernel holds memory for, ascending. All others are zero, and
    /// asking here, unlike reading them, does not make the kernel hold memory for them.
    pub fn held<E: From<std::io::Error>>(
        &self,
        mut each: impl FnMut(Range<PageIndex>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut next = 0;
        while next < self.pages() {
            let run = match self.run_from(next)? {
                PageRun::Held(run) => {
                    each(run.clone())?;
                    run
                }
                PageRun::Hole(run) => run,
            };
            next = run.end;
        }
        Ok(())
    }

    /// The pages from this one on that are alike. What is a hole now may be written at any time; who copies pages then
    /// finds it in the dirty log, if that was on before this was asked.
    pub fn run_from(&self, from: PageIndex) -> std::io::Result<PageRun> {
        if self.sharing == Sharing::Private {
            // What a private mapping holds of its own is not in the file.
            return Ok(PageRun::Held(from..self.pages()));
        }
        let at = from as i64 * PAGE_SIZE as i64;
        match self.seek(at, Whence::SeekData)? {
            None => Ok(PageRun::Hole(from..self.pages())),
            Some(data) if data > from => Ok(PageRun::Hole(from..data)),
            Some(_) => {
                // A hole that was made meanwhile begins here at the earliest.
                let end = self.seek(at, Whence::SeekHole)?.unwrap_or(self.pages());
                Ok(PageRun::Held(from..end.max(from + 1)))
            }
        }
    }

    /// The file's offset is of no use to anybody else.
    fn seek(&self, from: i64, whence: Whence) -> std::io::Result<Option<PageIndex>> {
        match nix::unistd::lseek(&*self.file, from, whence) {
            Ok(at) => Ok(Some((at as u64 / PAGE_SIZE as u64) as PageIndex)),
            Err(nix::errno::Errno::ENXIO) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Copies a page out.
    pub fn read_page(&self, page: PageIndex, into: &mut [u8; PAGE_SIZE]) {
        // SAFETY: source is a mapped page, destination is a distinct array of its size.
        unsafe { std::ptr::copy_nonoverlapping(self.page_ptr(page), into.as_mut_ptr(), PAGE_SIZE) }
    }

    /// Copies a page in.
    pub fn write_page(&self, page: PageIndex, from: &[u8; PAGE_SIZE]) {
        // SAFETY: destination is a mapped page, source is a distinct array of its size.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.page_ptr(page), PAGE_SIZE) }
    }

    /// Copies bytes into a page at `offset`.
    ///
    /// # Panics
    /// When the bytes would leave the page.
    pub fn write_in_page(&self, page: PageIndex, offset: usize, from: &[u8]) {
        assert!(offset + from.len() <= PAGE_SIZE, "write at {offset}+{} leaves the page", from.len());
        // SAFETY: within one mapped page by the assertion.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.page_ptr(page).add(offset), from.len()) }
    }
}

impl Drop for RamView {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody holds references into it.
        let _ = unsafe { munmap(self.base.cast(), self.bytes) };
    }
}
