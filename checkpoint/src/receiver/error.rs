//! The backup's reasons to refuse a frame.

use crate::page::PageError;
use crate::wire::{FrameError, FrameType};
use ft_ram::PageIndex;
use ft_ram::layout::PAGE_SIZE;

/// Why a frame is refused.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// Its payload does not parse.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A page record does not decode.
    #[error("epoch {epoch}: {source}")]
    Page {
        /// The epoch, 0 in a copy.
        epoch: u64,
        /// What is wrong.
        source: PageError,
    },
    /// No place for this type of frame.
    #[error("{kind:?} {when}")]
    Unexpected {
        /// The frame's type.
        kind: FrameType,
        /// Where it came.
        when: &'static str,
    },
    /// The generation rose without the message that says so.
    #[error("{kind:?} is of generation {theirs}, but this pair is at {ours}")]
    Generation {
        /// The frame's type.
        kind: FrameType,
        /// The frame's.
        theirs: u64,
        /// Ours.
        ours: u64,
    },
    /// The copy is of another size of memory.
    #[error("the full copy has {theirs} pages, but this node's memory has {ours}")]
    MemorySize {
        /// The copy's.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// The epoch belongs to another pairing.
    #[error("the epoch is of pairing {theirs:#x}, but pairing {ours:#x} is held")]
    Pairing {
        /// The epoch's.
        theirs: u64,
        /// Ours.
        ours: u64,
    },
    /// An epoch is missing, repeated or mixed into another.
    #[error("epoch {theirs} where {ours} was due")]
    Epoch {
        /// The frame's.
        theirs: u64,
        /// The one due.
        ours: u64,
    },
    /// An epoch before the copy is complete.
    #[error("the copy is incomplete: {received} of {total} pages")]
    CopyIncomplete {
        /// Pages received.
        received: PageIndex,
        /// Pages of RAM.
        total: PageIndex,
    },
    /// A page that does not exist, or not at this place.
    #[error("epoch {epoch}: page {page} is out of order or outside the memory of {pages} pages")]
    PageIndex {
        /// The epoch, 0 in a copy.
        epoch: u64,
        /// The page.
        page: PageIndex,
        /// Pages of RAM.
        pages: PageIndex,
    },
    /// More than is allowed.
    #[error("epoch {epoch}: {what} {announced}, at most {max}")]
    TooMuch {
        /// The epoch.
        epoch: u64,
        /// Of what.
        what: &'static str,
        /// What it announces.
        announced: usize,
        /// The bound.
        max: usize,
    },
    /// A change of a disk that the machine does not change, of what is not on it, or of parts of sectors.
    #[error(
        "epoch {epoch}: a change of bytes {} to {} of disk {}, {what}",
        .extent.bytes.start, .extent.bytes.end, u32::from(.extent.disk) + 1
    )]
    Change {
        /// The epoch, 0 in a copy.
        epoch: u64,
        /// What it changes.
        extent: ft_mirror::Extent,
        /// What is wrong with it.
        what: &'static str,
    },
    /// More or less came than was announced.
    #[error("epoch {epoch}: {received} {what} came, but {announced} were announced")]
    Count {
        /// The epoch.
        epoch: u64,
        /// Of what.
        what: &'static str,
        /// What came.
        received: usize,
        /// What was announced.
        announced: usize,
    },
    /// What was decoded is not what was encoded.
    #[error("epoch {epoch}: the digest is {computed:#018x}, but the primary's is {stated:#018x}")]
    Digest {
        /// The epoch.
        epoch: u64,
        /// Over what was decoded.
        computed: u64,
        /// The primary's.
        stated: u64,
    },
    /// The same epoch came once more over a stream without damage, and is another one again: the pages that its deltas
    /// are made from are wrong here. What is held cannot be trusted any more.
    #[error(
        "epoch {epoch}: the digest is {computed:#018x}, but the primary's is {stated:#018x}, the second time: a page \
         held here is wrong"
    )]
    Base {
        /// The epoch.
        epoch: u64,
        /// Over what was decoded.
        computed: u64,
        /// The primary's.
        stated: u64,
    },
    /// A page that no checkpoint had to carry is another one here. What is held cannot be trusted any more.
    #[error(
        "epoch {epoch}: page {page} (guest address {:#x}) has hash {computed:#018x} here, but {stated:#018x} on the \
         primary", u64::from(*page) * PAGE_SIZE as u64
    )]
    Scrub {
        /// The epoch.
        epoch: u64,
        /// The page.
        page: PageIndex,
        /// The hash of the page here.
        computed: u64,
        /// The primary's.
        stated: u64,
    },
    /// No memory for the checkpoint.
    #[error(transparent)]
    Memory(#[from] crate::arena::ArenaError),
}

impl ReceiveError {
    /// Whether it shows that what is held is not the primary's memory.
    #[must_use]
    pub fn is_distrust(&self) -> bool {
        matches!(self, Self::Base { .. } | Self::Scrub { .. })
    }
}
