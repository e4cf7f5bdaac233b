//! What a backup tells of the memory that it kept: see [`crate::compare`].

use ft_ram::PageIndex;
use serde::{Deserialize, Serialize};

/// Bytes of a page's hash.
pub const HASH_BYTES: usize = 16;
/// A page's hash.
pub type PageHash = [u8; HASH_BYTES];
/// Most hashes in a message, and most runs.
pub const HASHES_MAX: usize = 1024;

/// Backup to primary, while a copy is under way: the hashes of pages that it still has of an earlier time. Messages go
/// on where the one before ended, from page 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageHashes {
    /// The first page that it tells of.
    pub first: PageIndex,
    /// What it has, page after page; at most [`HASHES_MAX`] runs and hashes.
    pub runs: Vec<HashRun>,
}

/// Pages in a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashRun {
    /// So many of which it has nothing...
    pub holes: u32,
    /// ...then these.
    pub hashes: Vec<PageHash>,
}

impl PageHashes {
    /// The page after the last one that it tells of.
    #[must_use]
    pub fn end(&self) -> PageIndex {
        self.runs.iter().fold(self.first, |page, run| page + run.holes + run.hashes.len() as PageIndex)
    }

    /// The hashes, each with its page, ascending.
    pub fn hashes(&self) -> impl Iterator<Item = (PageIndex, PageHash)> {
        let mut page = self.first;
        self.runs.iter().flat_map(move |run| {
            let first = page + run.holes;
            page = first + run.hashes.len() as PageIndex;
            (first..).zip(run.hashes.iter().copied())
        })
    }

    /// What is wrong with one that came from outside: no other function is to be called then.
    pub(super) fn fault(&self) -> Option<&'static str> {
        let hashes: usize = self.runs.iter().map(|run| run.hashes.len()).sum();
        if self.runs.len() > HASHES_MAX || hashes > HASHES_MAX {
            return Some("it has too many hashes");
        }
        let holes: u64 = self.runs.iter().map(|run| u64::from(run.holes)).sum();
        let end = u64::from(self.first) + holes + hashes as u64;
        (end > u64::from(PageIndex::MAX)).then_some("its end is beyond every memory")
    }
}
