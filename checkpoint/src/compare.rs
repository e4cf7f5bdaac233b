//! A full copy to a backup that still has the guest's memory of an earlier time: what is the same is not sent.
//!
//! The backup receives into that memory, and tells the hash of each page in it, some way ahead of the copy
//! (`receiver/copying.rs`). The primary compares its page as it is about to send it. Where the hashes agree, a record
//! says so. What is compared is what would be sent: so a guest that writes meanwhile changes nothing. Its page is dirty
//! then, and is sent again like any other.
//!
//! A hash is the first 16 bytes of BLAKE3 under a key that is made of the pairing's name. The name is another one for
//! each copy, and no guest knows it: so none can make up two pages with the same hash. By chance two different pages
//! have the same one once in 2^128 comparisons. A copy makes less than 2^32 of them, so that happens less than once in
//! 2^96 copies. Each host also counts the page as it has it into the pairing's digest: where a hash was told that is
//! not that of the page, no checkpoint is sealed.

use crate::page::Page;
use crate::receiver::TOLD_AHEAD;
use crate::wire::pages::{HASH_BYTES, PageHash, PageHashes};
use ft_ram::PageIndex;
use parking_lot::Mutex;
use std::collections::VecDeque;

/// Hashes that wait at the primary for the copy to come to their pages, at most: more than an honest backup tells
/// ahead.
const WAITING_MAX: usize = 4 * TOLD_AHEAD as usize;

/// Why what a backup tells of its memory is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompareError {
    /// Every page is told of once, in order.
    #[error("the backup tells of its page {first}, where page {due} was due")]
    OutOfOrder {
        /// The first page that it tells of.
        first: PageIndex,
        /// The one that was due.
        due: PageIndex,
    },
    /// It tells of more than is asked for.
    #[error("the backup tells of {waiting} pages ahead of the copy, at most {WAITING_MAX} are allowed")]
    TooMany {
        /// Hashes that would wait.
        waiting: usize,
    },
}

/// Hashes the pages of one pairing's copy.
#[derive(Clone, Copy)]
pub struct PageHasher {
    key: [u8; blake3::KEY_LEN],
}

impl PageHasher {
    /// That of the pairing of this name.
    #[must_use]
    pub fn of_pairing(pairing: u64) -> Self {
        Self { key: blake3::derive_key("ftd: a page in a full copy", &pairing.to_le_bytes()) }
    }

    /// A page's hash.
    #[must_use]
    pub fn hash(&self, page: &Page) -> PageHash {
        let mut hash = [0; HASH_BYTES];
        hash.copy_from_slice(&blake3::keyed_hash(&self.key, page).as_bytes()[..HASH_BYTES]);
        hash
    }
}

/// On the primary: what the backup has told of the memory that it kept. The connection's reader adds to it, the copy
/// uses it up.
pub struct KeptPages {
    hasher: PageHasher,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    /// Of each page before this one it has told what it has.
    until: PageIndex,
    /// By page, ascending. It has nothing of those that are not here.
    hashes: VecDeque<(PageIndex, PageHash)>,
}

impl KeptPages {
    /// For the copy that begins this pairing. Nothing is told yet.
    #[must_use]
    pub fn of_pairing(pairing: u64) -> Self {
        Self { hasher: PageHasher::of_pairing(pairing), told: Mutex::default() }
    }

    /// The backup tells more. After an error the pairing is of no use.
    pub fn tell(&self, said: &PageHashes) -> Result<(), CompareError> {
        let mut told = self.told.lock();
        if said.first != told.until {
            return Err(CompareError::OutOfOrder { first: said.first, due: told.until });
        }
        let waiting = told.hashes.len() + said.hashes().count();
        if waiting > WAITING_MAX {
            return Err(CompareError::TooMany { waiting });
        }
        told.hashes.extend(said.hashes());
        told.until = said.end();
        Ok(())
    }

    /// The copy has come to this page: those before it are not asked about any more. Of each page before the one that
    /// is returned the backup has told.
    pub fn come_to(&self, page: PageIndex) -> PageIndex {
        let mut told = self.told.lock();
        let before = told.hashes.partition_point(|(of, _)| *of < page);
        told.hashes.drain(..before);
        told.until
    }

    /// Whether the backup has this page with this content.
    pub fn has(&self, page: PageIndex, content: &Page) -> bool {
        let told = self.told.lock();
        let at = told.hashes.partition_point(|(of, _)| *of < page);
        let hash = told.hashes.get(at).filter(|(of, _)| *of == page).map(|(_, hash)| *hash);
        drop(told);
        hash.is_some_and(|hash| hash == self.hasher.hash(content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench_support::noise_page;
    use crate::page::ZERO_PAGE;
    use crate::wire::pages::HashRun;

    fn said(first: PageIndex, holes: u32, hashes: Vec<PageHash>) -> PageHashes {
        PageHashes { first, runs: vec![HashRun { holes, hashes }] }
    }

    #[test]
    fn a_page_is_there_only_if_its_hash_was_told_at_its_place() {
        let (kept, hasher) = (KeptPages::of_pairing(7), PageHasher::of_pairing(7));
        kept.tell(&said(0, 2, vec![hasher.hash(&noise_page(2)), hasher.hash(&noise_page(3))])).unwrap();
        kept.tell(&said(4, 10, vec![hasher.hash(&noise_page(14))])).unwrap();
        assert_eq!(kept.come_to(1), 15);
        assert!(!kept.has(1, &ZERO_PAGE), "of a hole nothing is told");
        assert!(!kept.has(2, &noise_page(3)));
        assert!(kept.has(3, &noise_page(3)));
        assert!(!kept.has(13, &noise_page(14)));
        assert!(kept.has(14, &noise_page(14)));
        assert!(!kept.has(15, &noise_page(15)), "it was not told yet");
        kept.come_to(14);
        assert!(!kept.has(3, &noise_page(3)), "the copy is past it");
        assert!(kept.has(14, &noise_page(14)));
    }

    #[test]
    fn hashes_of_two_pairings_differ() {
        let [one, other] = [1, 2].map(|pairing| PageHasher::of_pairing(pairing).hash(&ZERO_PAGE));
        assert_ne!(one, other);
    }

    #[test]
    fn what_is_out_of_order_or_too_much_is_refused() {
        let kept = KeptPages::of_pairing(1);
        kept.tell(&said(0, 5, vec![[0; HASH_BYTES]])).unwrap();
        for first in [0, 5, 7] {
            let refused = kept.tell(&said(first, 1, vec![]));
            assert_eq!(refused, Err(CompareError::OutOfOrder { first, due: 6 }));
        }
        let mut next = 6;
        let error = loop {
            let more = said(next, 0, vec![[0; HASH_BYTES]; 1000]);
            next = more.end();
            if let Err(error) = kept.tell(&more) {
                break error;
            }
        };
        assert!(
            matches!(error, CompareError::TooMany { waiting } if waiting <= WAITING_MAX + 1000),
            "{error}"
        );
        let until = kept.come_to(0);
        assert_eq!(kept.come_to(until), until, "what the copy has passed waits no more");
        kept.tell(&said(until, 0, vec![[0; HASH_BYTES]; 1000])).unwrap();
    }
}
