//! What lies beside the images of a replicated disk, so that two images on two hosts are one disk.
//!
//! - The **journal** of a backup: the primary's changes, in order, until the image has them. Its image is at every
//!   moment that of a sealed checkpoint, or becomes it by carrying out what the journal holds, however often that is
//!   begun.
//! - The **intent map** of either host: which extents its image may have changed since both images were equal.
//! - The **presence map** of an overlay: which units of the disk it has; the others are in the base image under it.
//! - The **stamp** of an image: how it came to hold what it holds, from which [`judge`] tells whether it is right.
//!
//! Everything is bytes on a [`Medium`], which may lose or tear what was not flushed.
//!
//! ```
//! use ft_mirror::{Change, Journal, MemoryMedium, SealedEpoch};
//!
//! let medium = MemoryMedium::new(1 << 20);
//! let mut journal = Journal::create(&medium, 7)?;
//! journal.append(&Change::write(0, 4096, b"letters"))?;
//! journal.seal(SealedEpoch { pairing: 5, epoch: 9 })?;
//! journal.append(&Change::write(0, 8192, b"of an epoch that was never sealed"))?;
//! drop(journal);
//!
//! let mut journal = Journal::open(&medium)?;
//! assert_eq!(journal.sealed(), Some(SealedEpoch { pairing: 5, epoch: 9 }));
//! journal.sync()?;
//! let mut applied = Vec::new();
//! journal.apply(u64::MAX, |change| -> std::io::Result<()> {
//!     applied.push(change.offset());
//!     Ok(())
//! })?;
//! assert_eq!(applied, [4096]);
//! journal.release()?; // after the image was flushed
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod change;
mod intent;
mod journal;
mod medium;
mod presence;
mod slots;
mod stamp;

pub use change::{Change, Extent, Space};
pub use intent::{Damage, IntentError, IntentMap};
pub use journal::{ApplyError, Glance, Journal, JournalError, JournalFlush, Portion, SealedEpoch};
pub use medium::{Medium, MemoryMedium};
pub use presence::{BaseFacts, BaseFormat, OverlayOf, PresenceError, PresenceMap};
pub use stamp::{
    CellView, Foreign, History, Holder, ImageOf, Judgement, Stamp, StampError, StampFile, judge,
};
