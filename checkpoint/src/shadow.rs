//! The shadow: the primary's bounded memory of the last sent copy of each page, which the backup holds too. The hottest
//! pages keep their place (a clock over reference bits). A page that lost its place is sent without a delta next time.

use crate::arena::PageArena;
use crate::page::Page;
use ft_ram::PageIndex;
use ft_ram::layout::PAGE_SIZE;

const UNKNOWN: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Slot {
    owner: PageIndex,
    referenced: bool,
}

/// Copies of pages as last sent.
pub struct Shadow {
    slot_of: Vec<u32>,
    slots: Vec<Slot>,
    copies: PageArena,
    hand: usize,
    max: usize,
}

impl Shadow {
    /// A shadow of a memory of `pages`, with at most `bytes` of copies (and 4 bytes a page of memory for the table).
    pub fn new(pages: PageIndex, bytes: usize) -> Self {
        let max = (bytes / PAGE_SIZE).min(pages as usize);
        Self {
            slot_of: vec![UNKNOWN; pages as usize],
            slots: Vec::new(),
            copies: PageArena::new(max),
            hand: 0,
            max,
        }
    }

    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        self.slot_of.fill(UNKNOWN);
        self.slots.clear();
        self.copies.clear();
        self.hand = 0;
    }

    /// Bytes of copies held.
    pub fn bytes(&self) -> usize {
        self.copies.len() * PAGE_SIZE
    }

    /// The copy of a page as last sent, if it is remembered.
    ///
    /// # Panics
    /// When the memory has no such page.
    pub fn get(&mut self, page: PageIndex) -> Option<&mut Page> {
        let slot = self.slot_of[page as usize];
        if slot == UNKNOWN {
            return None;
        }
        self.slots[slot as usize].referenced = true;
        Some(self.copies.page_mut(slot as usize))
    }

    /// Remembers a page that was not, in place of a page that was not used lately if need be. Where the system has no
    /// memory for more copies, the shadow stays as large as it is.
    ///
    /// # Panics
    /// When the memory has no such page.
    pub fn insert(&mut self, page: PageIndex, content: &Page) {
        debug_assert_eq!(self.slot_of[page as usize], UNKNOWN);
        // Not referenced yet: a page that is sent once (all of them in a full copy) does not push out the hot ones.
        let entry = Slot { owner: page, referenced: false };
        if self.slots.len() < self.max && self.copies.push().is_err() {
            self.max = self.slots.len();
        }
        let slot = if self.slots.len() < self.max {
            self.slots.push(entry);
            self.slots.len() - 1
        } else if self.max == 0 {
            return;
        } else {
            let victim = self.victim();
            self.slot_of[self.slots[victim].owner as usize] = UNKNOWN;
            self.slots[victim] = entry;
            victim
        };
        self.slot_of[page as usize] = slot as u32;
        self.copies.page_mut(slot).copy_from_slice(content);
    }

    /// Ends: the second time round at the latest, a slot's bit has been cleared.
    fn victim(&mut self) -> usize {
        loop {
            let slot = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            if !std::mem::take(&mut self.slots[slot].referenced) {
                return slot;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench_support::{Noise, noise_page};

    #[test]
    fn what_is_remembered_is_what_was_sent_last_within_the_bound() {
        let (pages, slots) = (300, 50);
        let mut shadow = Shadow::new(pages, slots * PAGE_SIZE + 5);
        let mut sent = vec![0; pages as usize];
        let mut noise = Noise::new(1);
        for stamp in 1..5000_u64 {
            let page = noise.below(pages as usize) as PageIndex;
            if let Some(copy) = shadow.get(page) {
                assert!(*copy == noise_page(sent[page as usize]));
                copy.copy_from_slice(&noise_page(stamp));
            } else {
                shadow.insert(page, &noise_page(stamp));
            }
            sent[page as usize] = stamp;
            assert!(shadow.bytes() <= slots * PAGE_SIZE);
        }
        assert_eq!(shadow.slot_of.iter().filter(|slot| **slot != UNKNOWN).count(), slots);
        shadow.clear();
        assert!((0..pages).all(|page| shadow.get(page).is_none()));
    }

    #[test]
    fn a_hot_page_outlives_a_stream_of_cold_ones() {
        let mut shadow = Shadow::new(1000, 10 * PAGE_SIZE);
        shadow.insert(0, &noise_page(0));
        for page in 1..1000 {
            assert!(shadow.get(0).is_some(), "before page {page}");
            shadow.insert(page, &noise_page(1));
        }
    }

    #[test]
    fn a_shadow_without_room_remembers_nothing() {
        let mut shadow = Shadow::new(10, 100);
        shadow.insert(3, &noise_page(3));
        assert!(shadow.get(3).is_none());
    }
}
