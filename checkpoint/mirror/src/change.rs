//! A change of a disk, as the primary's guest made it.

use std::borrow::Cow;
use std::ops::Range;

/// Which bytes of which disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The disk's number in the configuration, from 0.
    pub disk: u16,
    /// Bytes of the disk.
    pub bytes: Range<u64>,
}

/// What becomes of the space under zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// It stays allocated.
    Keep,
    /// It may be given back.
    May,
}

/// Offsets and lengths are bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// These bytes are there now.
    Write {
        /// The disk's number.
        disk: u16,
        /// Where.
        offset: u64,
        /// What.
        data: Cow<'a, [u8]>,
    },
    /// Zeroes are there now.
    Zeroes {
        /// Where.
        extent: Extent,
        /// Whether their space may be given back.
        space: Space,
    },
    /// Anything may be there now.
    Discard {
        /// Where.
        extent: Extent,
    },
}

impl<'a> Change<'a> {
    /// A write of borrowed bytes.
    #[must_use]
    pub fn write(disk: u16, offset: u64, data: &'a [u8]) -> Self {
        Self::Write { disk, offset, data: Cow::Borrowed(data) }
    }

    /// Its disk.
    #[must_use]
    pub fn disk(&self) -> u16 {
        match self {
            Self::Write { disk, .. } => *disk,
            Self::Zeroes { extent, .. } | Self::Discard { extent } => extent.disk,
        }
    }

    /// Its first byte.
    #[must_use]
    pub fn offset(&self) -> u64 {
        match self {
            Self::Write { offset, .. } => *offset,
            Self::Zeroes { extent, .. } | Self::Discard { extent } => extent.bytes.start,
        }
    }

    /// Which bytes it concerns.
    #[must_use]
    pub fn extent(&self) -> Extent {
        match self {
            Self::Write { disk, offset, data } => {
                Extent { disk: *disk, bytes: *offset..offset.saturating_add(data.len() as u64) }
            }
            Self::Zeroes { extent, .. } | Self::Discard { extent } => extent.clone(),
        }
    }
}
