//! Guest RAM: one memfd, mapped once for the guest (and the device model), and again wherever another part needs to
//! look at it. Pages are numbered by their offset in the memfd, so that no other part needs to know the hole below 4
//! GiB.
//!
//! Writes by the VMM itself are not in KVM's dirty log; those that go through [`GuestMemory`] are in the bitmap that
//! vm-memory keeps, which [`GuestRam::take_vmm_dirty`] drains.

use crate::backing::Backing;
use crate::error::MemoryError;
use crate::layout::{HIGH_RAM_BASE, LOW_RAM_END, PAGE_SIZE};
use crate::page::PageIndex;
use crate::resident;
use crate::view::RamView;
use crate::written::{Journal, WrittenPages};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;
use std::sync::Arc;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

/// Unit of `st_blocks` (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;

/// vm-memory's view of the guest's RAM, with the VMM's own record of what it wrote.
pub type GuestMemory = vm_memory::GuestMemoryMmap<WrittenPages>;

/// A guest's RAM. Cheap to clone; all clones are the same memory.
#[derive(Clone)]
pub struct GuestRam {
    memory: GuestMemory,
    file: Arc<File>,
    ram_bytes: u64,
    journal: Arc<Journal>,
    sharing: Sharing,
    backing: Backing,
}

/// Who sees what is written to a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Everybody who maps the memory.
    Shared,
    /// Nobody else: a page that is written becomes a copy.
    Private,
}

impl Sharing {
    pub(crate) fn flags(self) -> libc::c_int {
        libc::MAP_NORESERVE
            | match self {
                Self::Shared => libc::MAP_SHARED,
                Self::Private => libc::MAP_PRIVATE,
            }
    }
}

impl GuestRam {
    /// Allocates `ram_bytes` of zeroed guest RAM in a memfd.
    pub fn new(ram_bytes: u64) -> Result<Self, MemoryError> {
        Self::held(ram_bytes, Backing::default())
    }

    /// The same, held by the host in this way.
    pub fn held(ram_bytes: u64, backing: Backing) -> Result<Self, MemoryError> {
        backing.check()?;
        if !ram_bytes.is_multiple_of(2 << 20) || !((16 << 20)..=(4 << 40)).contains(&ram_bytes) {
            return Err(MemoryError::Size(ram_bytes));
        }
        let allocate = |source: std::io::Error| MemoryError::Allocate { bytes: ram_bytes, source };
        let fd = nix::sys::memfd::memfd_create(c"ftd-guest-ram", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
            .map_err(|e| allocate(e.into()))?;
        let file = File::from(fd);
        file.set_len(ram_bytes).map_err(allocate)?;
        let ram = Self::map(Arc::new(file), ram_bytes, Sharing::Shared, backing)?;
        if backing.lock {
            ram.lock()?;
        }
        Ok(ram)
    }

    /// The same memory for a machine whose writes nobody else sees: a page that it writes becomes a copy. A page that
    /// it has not written is this memory's, as it is when it is looked at.
    pub fn private_copy(&self) -> Result<Self, MemoryError> {
        Self::map(Arc::clone(&self.file), self.ram_bytes, Sharing::Private, self.backing)
    }

    fn map(file: Arc<File>, ram_bytes: u64, sharing: Sharing, backing: Backing) -> Result<Self, MemoryError> {
        let low = ram_bytes.min(LOW_RAM_END);
        let journal = Arc::new(Journal::default());
        let mut regions = vec![Self::map_region(&file, sharing, 0, 0, low, &journal)?];
        if ram_bytes > low {
            regions.push(Self::map_region(&file, sharing, low, HIGH_RAM_BASE, ram_bytes - low, &journal)?);
        }
        for region in &regions {
            let start = NonNull::new(region.as_ptr()).ok_or_else(|| MemoryError::Map("at zero".into()))?;
            backing.apply(start, region.len() as usize)?;
        }
        let memory = GuestMemory::from_regions(regions).map_err(|e| MemoryError::Map(e.to_string()))?;
        Ok(Self { memory, file, ram_bytes, journal, sharing, backing })
    }

    fn map_region(
        file: &Arc<File>,
        sharing: Sharing,
        offset: u64,
        base: u64,
        bytes: u64,
        journal: &Arc<Journal>,
    ) -> Result<GuestRegionMmap<WrittenPages>, MemoryError> {
        let map = |e: &dyn std::fmt::Display| MemoryError::Map(e.to_string());
        let bytes = usize::try_from(bytes).map_err(|e| map(&e))?;
        let written = WrittenPages::new(bytes, offset, Arc::clone(journal));
        let region = MmapRegionBuilder::new_with_bitmap(bytes, written)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(sharing.flags())
            .with_file_offset(FileOffset::from_arc(Arc::clone(file), offset))
            .build()
            .map_err(|e| map(&e))?;
        let start = NonNull::new(region.as_ptr()).ok_or_else(|| map(&"mapped at zero"))?;
        resident::keep_out_of_dumps(start, bytes)?;
        GuestRegionMmap::new(region, GuestAddress(base)).ok_or_else(|| map(&"guest address overflow"))
    }

    /// Keeps the memory from being swapped out: each page from the time on at which it is first touched.
    fn lock(&self) -> Result<(), MemoryError> {
        self.memory.iter().try_for_each(|region| resident::lock(region.as_ptr(), region.len()))
    }

    /// vm-memory's view, for devices and loaders. Writes through it are tracked.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Whether nobody else has this memory: no other clone is left, and no view or private copy.
    pub fn is_sole(&self) -> bool {
        // Each region has the file as well.
        Arc::strong_count(&self.file) == 1 + self.memory.num_regions()
    }

    /// Bytes that the kernel holds for it, in memory or in swap.
    pub fn held_bytes(&self) -> std::io::Result<u64> {
        Ok(self.file.metadata()?.blocks() * STAT_BLOCK_BYTES)
    }

    /// Bytes of RAM.
    pub fn bytes(&self) -> u64 {
        self.ram_bytes
    }

    /// Number of RAM pages.
    pub fn pages(&self) -> PageIndex {
        (self.ram_bytes / PAGE_SIZE as u64) as PageIndex
    }

    /// First address after the RAM that lies below the hole.
    pub fn low_end(&self) -> u64 {
        self.ram_bytes.min(LOW_RAM_END)
    }

    /// The regions as KVM memory slots need them: `(guest base, bytes, host address, first page)`.
    pub fn slots(&self) -> Vec<Slot> {
        self.memory
            .iter()
            .map(|region| Slot {
                guest_base: region.start_addr().0,
                bytes: region.len(),
                host: region.as_ptr(),
                first_page: (region.file_offset().map_or(0, FileOffset::start) / PAGE_SIZE as u64)
                    as PageIndex,
            })
            .collect()
    }

    /// Drains the VMM's own dirty bitmap: calls `each` with every page that was written through [`Self::memory`]
    /// since the last call. The caller has quiesced the device model.
    pub fn take_vmm_dirty(&self, mut each: impl FnMut(PageIndex)) {
        for region in self.memory.iter() {
            (**region).bitmap().drain(&mut each);
        }
    }

    /// Keeps a journal of the pages written through [`Self::memory`] from now on, for the engine that has to know at
    /// once. It is apart from what [`Self::take_vmm_dirty`] drains.
    pub fn keep_journal(&self) {
        self.journal.keep();
    }

    /// Whether the journal has entries, without taking a lock.
    pub fn journal_is_empty(&self) -> bool {
        self.journal.is_empty()
    }

    /// Moves the journal's pages to `into`: in no order, and a page may be there more than once.
    pub fn take_journal(&self, into: &mut Vec<PageIndex>) {
        self.journal.take(into);
    }

    /// A second mapping of the same memory, contiguous over all pages. Not tracked and not the one that the guest
    /// runs on: for applying checkpoints behind the guest's mapping and for reading pages out. That of a private copy
    /// is private too, and does not show what the machine has written.
    pub fn view(&self) -> Result<RamView, MemoryError> {
        RamView::of(&self.file, self.ram_bytes, self.sharing, self.backing)
    }
}

/// One KVM memory slot's worth of RAM.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Guest-physical address of the first byte.
    pub guest_base: u64,
    /// Bytes.
    pub bytes: u64,
    /// Where the guest's mapping of it is in this process.
    pub host: *mut u8,
    /// Number of its first page.
    pub first_page: PageIndex,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::PageRun;
    use vm_memory::Bytes;

    #[test]
    fn writes_through_the_memory_are_dirty_once_and_visible_in_the_view() {
        let ram = GuestRam::new(16 << 20).unwrap();
        ram.memory().write_slice(&[7; 10], GuestAddress(5 * 4096 - 5)).unwrap();
        let mut dirty = Vec::new();
        ram.take_vmm_dirty(|page| dirty.push(page));
        assert_eq!(dirty, [4, 5]);
        dirty.clear();
        ram.take_vmm_dirty(|page| dirty.push(page));
        assert!(dirty.is_empty());
        let mut page = [0; PAGE_SIZE];
        ram.view().unwrap().read_page(5, &mut page);
        assert_eq!(page[..6], [7, 7, 7, 7, 7, 0]);
    }

    #[test]
    fn memory_is_ones_own_while_nobody_else_has_any_of_it_mapped() {
        // Below the hole, and beyond it.
        for bytes in [16 << 20, 4 << 30] {
            let ram = GuestRam::new(bytes).unwrap();
            assert!(ram.is_sole());
            let (clone, view, copy) = (ram.clone(), ram.view().unwrap(), ram.private_copy().unwrap());
            drop((view, copy));
            assert!(!ram.is_sole(), "a clone is left");
            drop(clone);
            let view = ram.view().unwrap();
            assert!(!ram.is_sole(), "a view is left");
            drop(view);
            assert!(ram.is_sole());
        }
    }

    #[test]
    fn what_the_kernel_holds_of_a_memory_is_what_was_written() {
        let ram = GuestRam::new(64 << 20).unwrap();
        assert_eq!(ram.held_bytes().unwrap(), 0);
        ram.memory().write_slice(&[1; 5 << 20], GuestAddress(1 << 20)).unwrap();
        let held = ram.held_bytes().unwrap();
        assert!((5 << 20..=8 << 20).contains(&held), "{held}");
    }

    #[test]
    fn what_is_written_to_a_private_copy_stays_in_it() {
        let ram = GuestRam::new(16 << 20).unwrap();
        ram.memory().write_slice(&[7; 10], GuestAddress(4096)).unwrap();
        let copy = ram.private_copy().unwrap();
        let mut seen = [0; 2];
        copy.memory().read_slice(&mut seen, GuestAddress(4096)).unwrap();
        assert_eq!(seen, [7, 7]);
        copy.memory().write_slice(&[8], GuestAddress(4096)).unwrap();
        copy.view().unwrap().write_page(2, &[9; PAGE_SIZE]);
        ram.memory().read_slice(&mut seen, GuestAddress(4096)).unwrap();
        assert_eq!(seen, [7, 7]);
        ram.memory().read_slice(&mut seen, GuestAddress(8192)).unwrap();
        assert_eq!(seen, [0, 0]);
    }

    #[test]
    fn what_was_never_touched_is_not_held_and_asking_does_not_touch_it() {
        let ram = GuestRam::new(64 << 20).unwrap();
        ram.memory().write_slice(&[1], GuestAddress(0)).unwrap();
        ram.memory().write_slice(&[1; 5000], GuestAddress(33 << 20)).unwrap();
        let view = ram.view().unwrap();
        for _ in 0..2 {
            let mut held = Vec::new();
            view.held(|pages| {
                held.extend(pages);
                Ok::<_, std::io::Error>(())
            })
            .unwrap();
            let written = [0, (33 << 20) / 4096, (33 << 20) / 4096 + 1];
            assert!(written.iter().all(|page| held.contains(page)) && held.is_sorted(), "{held:?}");
            // The kernel may hold huge pages.
            assert!(held.len() <= 1024, "{}", held.len());
        }
    }

    #[test]
    fn extents_follow_each_other_and_all_of_a_private_copy_counts_as_held() {
        let ram = GuestRam::new(16 << 20).unwrap();
        let view = ram.view().unwrap();
        view.write_page(9, &[1; PAGE_SIZE]);
        let PageRun::Hole(hole) = view.run_from(0).unwrap() else { panic!("page 0 is held") };
        let PageRun::Held(held) = view.run_from(hole.end).unwrap() else {
            panic!("page {} is not", hole.end)
        };
        assert!(hole.start == 0 && held.contains(&9), "{hole:?} {held:?}");
        assert_eq!(view.run_from(held.end).unwrap(), PageRun::Hole(held.end..4096));
        // What a machine over it has written is not in the file.
        let copy = ram.private_copy().unwrap().view().unwrap();
        assert_eq!(copy.run_from(5).unwrap(), PageRun::Held(5..4096));
    }

    /// The fields of the mappings of `ram` that begin with `field`. A mapping is told from those of the tests beside
    /// this one, which may be half made, by its file's inode.
    fn of_mappings(ram: &GuestRam, field: &str) -> Vec<String> {
        let inode = ram.file.metadata().unwrap().ino().to_string();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut ours = false;
        let mut found = Vec::new();
        for line in smaps.lines() {
            if line.split(' ').next().is_some_and(|range| range.contains('-')) {
                ours = line.contains("ftd-guest-ram") && line.split_whitespace().nth(4) == Some(&inode);
            } else if ours && line.starts_with(field) {
                found.push(line[field.len()..].trim().to_owned());
            }
        }
        found
    }

    #[test]
    fn guest_memory_is_in_no_core_dump_and_is_locked_on_request_without_becoming_resident() {
        let ram = GuestRam::new(64 << 20).unwrap();
        let _view = ram.view().unwrap();
        let flags = of_mappings(&ram, "VmFlags:");
        assert!(
            flags.len() == 2 && flags.iter().all(|flags| flags.split(' ').any(|flag| flag == "dd")),
            "{flags:?}"
        );
        match ram.lock() {
            Ok(()) => {
                let locked = of_mappings(&ram, "VmFlags:")
                    .iter()
                    .any(|flags| flags.split(' ').any(|flag| flag == "lo"));
                assert!(locked);
                let mut held = 0;
                let count = |pages: std::ops::Range<PageIndex>| {
                    held += pages.len();
                    Ok::<_, std::io::Error>(())
                };
                ram.view().unwrap().held(count).unwrap();
                assert!(held < 512, "{held} pages were made resident");
            }
            Err(e) => assert!(e.to_string().contains("LimitMEMLOCK"), "{e}"),
        }
    }

    #[test]
    fn a_size_that_no_machine_has_is_refused() {
        for bytes in [0, 1 << 20, (16 << 20) + 4096, 5 << 40] {
            assert!(matches!(GuestRam::new(bytes), Err(MemoryError::Size(_))), "{bytes}");
        }
    }

    #[test]
    fn memory_above_the_hole_continues_the_page_numbers() {
        let ram = GuestRam::new(4 << 30).unwrap();
        ram.memory().write_slice(&[1], GuestAddress(HIGH_RAM_BASE)).unwrap();
        let mut dirty = Vec::new();
        ram.take_vmm_dirty(|page| dirty.push(page));
        assert_eq!(dirty, [(LOW_RAM_END / 4096) as PageIndex]);
    }
}
