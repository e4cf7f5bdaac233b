//! The digest of a pairing: one number that both sides carry along over everything decoded since the copy began: every
//! page's number and content in order, every epoch's changes of disks, its number, and its state or log. It agrees at
//! the end of an epoch only if the backup holds exactly the primary's history. So a wrong base for a delta, a lost page
//! or an epoch out of order shows at once. It guards against mistakes and damage, not against an adversary.

use crate::page::Page;
use ft_ram::PageIndex;
use xxhash_rust::xxh3::xxh3_64;

/// Stands for the content of a run of zero pages.
const ZERO_RUN: u64 = 0x2f6b_01d4_8c35_97ae;

/// The running digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain(u64);

impl Chain {
    /// The digest of a pairing in which nothing was sent yet.
    pub fn new(pairing: u64) -> Self {
        Self(xxh3_64(&pairing.to_le_bytes()))
    }

    /// Adds a page.
    pub fn page(&mut self, index: PageIndex, page: &Page) {
        self.fold(u64::from(index), xxh3_64(page));
    }

    /// Adds a run of zero pages.
    pub fn zero_run(&mut self, first: PageIndex, pages: u32) {
        self.fold(u64::from(pages) << 32 | u64::from(first), ZERO_RUN);
    }

    /// Adds the end of an epoch: its number and state.
    pub fn epoch(&mut self, epoch: u64, state: &[u8]) {
        self.fold(epoch, xxh3_64(state));
    }

    /// Adds what an epoch changed on the disks.
    pub fn changes(&mut self, changes: Changes) {
        if changes != Changes::default() {
            self.fold(changes.count, changes.chain.0);
        }
    }

    /// Adds an epoch of the log: its number and bytes.
    pub fn log(&mut self, epoch: u64, log: &[u8]) {
        self.fold(!epoch, xxh3_64(log));
    }

    /// The digest so far.
    pub fn value(&self) -> u64 {
        self.0
    }

    /// Each step is a bijection of the running value and mixes order in.
    fn fold(&mut self, number: u64, hash: u64) {
        let mixed = self.0 ^ hash ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(29);
    }
}

/// The changes of disks since the last epoch's end, in order. They travel beside the pages, so they have a digest of
/// their own until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changes {
    chain: Chain,
    count: u64,
}

impl Default for Changes {
    fn default() -> Self {
        Self { chain: Chain(0), count: 0 }
    }
}

impl Changes {
    /// Adds the payload of a change's frame.
    pub fn add(&mut self, payload: &[u8]) {
        self.count += 1;
        self.chain.fold(self.count, xxh3_64(payload));
    }
}
