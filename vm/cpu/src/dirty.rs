//! The pages of RAM that the guest has written, for two consumers that ask independently.

use ft_ram::PageIndex;

/// Who asks for written pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracker {
    /// Checkpoints and full copies.
    Harvest,
    /// Divergence digests.
    Digest,
}

/// A bitmap for each tracker.
pub(crate) struct Dirty {
    maps: [Vec<u64>; 2],
    on: [bool; 2],
}

impl Dirty {
    pub(crate) fn new(pages: PageIndex) -> Self {
        let words = (pages as usize).div_ceil(64);
        Self { maps: [vec![0; words], vec![0; words]], on: [false; 2] }
    }

    pub(crate) fn mark(&mut self, page: PageIndex) {
        for (map, on) in self.maps.iter_mut().zip(self.on) {
            if on && let Some(word) = map.get_mut(page as usize / 64) {
                *word |= 1 << (page % 64);
            }
        }
    }

    /// Starts or stops tracking, with nothing written yet.
    pub(crate) fn set_tracking(&mut self, tracker: Tracker, on: bool) {
        self.on[tracker as usize] = on;
        self.maps[tracker as usize].fill(0);
    }

    /// Appends the pages written since the last call, in ascending order, and forgets them.
    pub(crate) fn take(&mut self, tracker: Tracker, into: &mut Vec<PageIndex>) {
        for (index, word) in self.maps[tracker as usize].iter_mut().enumerate() {
            let mut rest = std::mem::take(word);
            while rest != 0 {
                into.push(index as PageIndex * 64 + rest.trailing_zeros());
                rest &= rest - 1;
            }
        }
    }
}
