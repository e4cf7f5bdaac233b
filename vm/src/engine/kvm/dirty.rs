//! The pages that were written: KVM's dirty log has the guest's writes, and the VMM's own bitmap has the devices'. Both
//! are joined.
//!
//! With manual protection (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) reading the log leaves it as it is, and
//! KVM_CLEAR_DIRTY_LOG clears and write-protects just the ranges that are named: work and time under KVM's lock go with
//! the dirty pages, not with the guest's size. KVM_DIRTY_LOG_INITIALLY_SET is used where the kernel has it: without it,
//! switching the log on write-protects (and splits) the whole guest at once while it runs; with it that happens piece
//! by piece, at the first clearing, which is [`DirtyLog::start`].
//!
//! A page that is dirtied between reading and clearing loses nothing: it is reported by this harvest, and its content
//! is copied after the clearing.

use super::error::KvmError;
use super::host::Host;
use super::ioctl;
use super::vm::set_slots;
use ft_ram::layout::PAGE_SIZE;
use ft_ram::{GuestRam, PageIndex};
use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    KVM_MEM_LOG_DIRTY_PAGES, kvm_enable_cap,
};
use kvm_ioctls::VmFd;

/// Words (of 64 pages) between two dirty ones that are cleared along: scanning these costs the kernel less than
/// another call.
const GAP_WORDS: usize = 64;
/// Words that one call clears at most: 256 MiB of guest memory, to bound the time under KVM's lock.
const CLEAR_WORDS_MAX: usize = 1024;

pub(crate) struct DirtyLog {
    slots: Vec<SlotPages>,
    manual: bool,
    initially_set: bool,
    on: bool,
    /// One bit for each page, as KVM says now.
    log: Vec<u64>,
    /// Pages that were dirtied and not yet reported: the devices' ones, and those of a harvest that failed.
    unreported: Vec<PageIndex>,
}

#[derive(Clone, Copy)]
struct SlotPages {
    first: PageIndex,
    count: u64,
}

impl DirtyLog {
    pub(crate) fn new(vm: &VmFd, host: &Host, ram: &GuestRam) -> Result<Self, KvmError> {
        let flags = host.manual_protect & (KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
        if flags != 0 {
            let cap = kvm_enable_cap {
                cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
                args: [flags.into(), 0, 0, 0],
                ..Default::default()
            };
            vm.enable_cap(&cap).map_err(KvmError::of("KVM_ENABLE_CAP(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)"))?;
        }
        let slots = ram
            .slots()
            .iter()
            .map(|slot| SlotPages { first: slot.first_page, count: slot.bytes / PAGE_SIZE as u64 })
            .collect();
        let words = ram.pages().div_ceil(64) as usize;
        Ok(Self {
            slots,
            manual: flags & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE != 0,
            initially_set: flags & KVM_DIRTY_LOG_INITIALLY_SET != 0,
            on: false,
            log: vec![0; words],
            unreported: Vec::new(),
        })
    }

    pub(crate) fn is_on(&self) -> bool {
        self.on
    }

    /// Starts afresh: what was written before is not reported.
    pub(crate) fn start(&mut self, vm: &VmFd, ram: &GuestRam) -> Result<(), KvmError> {
        if self.on {
            self.stop(vm, ram)?;
        }
        self.unreported.clear();
        ram.take_vmm_dirty(|_| ());
        set_slots(vm, ram, KVM_MEM_LOG_DIRTY_PAGES)?;
        self.on = true;
        if self.initially_set {
            for slot in 0..self.slots.len() {
                let range = self.read(vm, slot)?;
                clear(vm, slot as u32, &self.log[range])?;
            }
        }
        Ok(())
    }

    /// What was written and not reported is forgotten.
    pub(crate) fn stop(&mut self, vm: &VmFd, ram: &GuestRam) -> Result<(), KvmError> {
        set_slots(vm, ram, 0)?;
        self.on = false;
        self.unreported.clear();
        Ok(())
    }

    /// Appends the pages written since the last harvest, in order, each once. On an error nothing is appended and
    /// nothing is forgotten.
    pub(crate) fn harvest(
        &mut self,
        vm: &VmFd,
        ram: &GuestRam,
        dirty: &mut Vec<PageIndex>,
    ) -> Result<(), KvmError> {
        ram.take_vmm_dirty(|page| self.unreported.push(page));
        let before = dirty.len();
        let harvested = self.harvest_slots(vm, dirty);
        if harvested.is_err() {
            // KVM may have forgotten them.
            self.unreported.extend(dirty.drain(before..));
        }
        harvested
    }

    fn harvest_slots(&mut self, vm: &VmFd, dirty: &mut Vec<PageIndex>) -> Result<(), KvmError> {
        for slot in 0..self.slots.len() {
            let words = self.read(vm, slot)?;
            let log = &mut self.log[words.clone()];
            let pages = self.slots[slot].first..self.slots[slot].first + self.slots[slot].count as PageIndex;
            for &page in self.unreported.iter().filter(|page| pages.contains(page)) {
                log[(page - pages.start) as usize / 64] |= 1 << (page % 64);
            }
            // From here on they are to be reported, whatever becomes of the clearing.
            let mut next = 0;
            while let Some(word) = next_set(log, next) {
                let first = pages.start + word as PageIndex * 64;
                let mut rest = log[word];
                while rest != 0 {
                    dirty.push(first + rest.trailing_zeros());
                    rest &= rest - 1;
                }
                next = word + 1;
            }
            if self.manual {
                clear(vm, slot as u32, log)?;
            }
        }
        self.unreported.clear();
        Ok(())
    }

    /// Reads a slot's log; the words of `self.log` that it is in.
    fn read(&mut self, vm: &VmFd, slot: usize) -> Result<std::ops::Range<usize>, KvmError> {
        // Slots begin and end at multiples of 2 MiB, so at whole words.
        let SlotPages { first, count } = self.slots[slot];
        let first = first as usize / 64;
        let range = first..first + count.div_ceil(64) as usize;
        ioctl::get_dirty_log(vm, slot as u32, count, &mut self.log[range.clone()])
            .map_err(KvmError::io("KVM_GET_DIRTY_LOG"))?;
        Ok(range)
    }
}

/// The first word from this one on that is not zero. Most are: several are looked at in one go.
fn next_set(log: &[u64], from: usize) -> Option<usize> {
    const AT_ONCE: usize = 16;
    let skipped =
        log[from..].chunks(AT_ONCE).take_while(|words| words.iter().fold(0, |any, word| any | word) == 0);
    let at = from + skipped.count() * AT_ONCE;
    Some(at + log.get(at..)?.iter().position(|&word| word != 0)?)
}

/// Clears what is set in `log`, in as few calls as the gaps allow.
fn clear(vm: &VmFd, slot: u32, log: &[u64]) -> Result<(), KvmError> {
    for run in runs(log) {
        ioctl::clear_dirty_log(vm, slot, run.start as u64 * 64, &log[run])
            .map_err(KvmError::io("KVM_CLEAR_DIRTY_LOG"))?;
    }
    Ok(())
}

/// The ranges of words to clear: every non-zero word is in exactly one, gaps up to [`GAP_WORDS`] are closed, none is
/// longer than [`CLEAR_WORDS_MAX`].
fn runs(log: &[u64]) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = next_set(log, at)?;
        let limit = log.len().min(start + CLEAR_WORDS_MAX);
        let mut end = start + 1;
        let mut look = end;
        while look < limit && look - end <= GAP_WORDS {
            if log[look] != 0 {
                end = look + 1;
            }
            look += 1;
        }
        at = end;
        Some(start..end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_dirty_word_is_cleared_exactly_once_and_runs_are_bounded(
            set in proptest::collection::vec(0usize..6000, 0..200)
        ) {
            let mut log = vec![0u64; 6000];
            set.iter().for_each(|&word| log[word] = 1);
            let mut covered = vec![false; log.len()];
            let mut last_end = 0;
            for run in runs(&log) {
                prop_assert!(run.start >= last_end && run.len() <= CLEAR_WORDS_MAX);
                prop_assert!(log[run.start] != 0 && log[run.end - 1] != 0);
                last_end = run.end;
                covered[run].fill(true);
            }
            prop_assert!((0..log.len()).all(|word| log[word] == 0 || covered[word]));
        }
    }
}
