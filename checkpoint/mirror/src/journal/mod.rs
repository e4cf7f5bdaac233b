//! The journal of a backup: a ring of fixed size, so that it cannot fill a disk, of the primary's changes in order and
//! the seals between them.
//!
//! ```text
//!   head                applied            durable             sealed        tail
//!    │ the image has it, │ to be carried out │ waits for a sync  │ of an epoch  │
//!    │ maybe not durably │                   │                   │ not sealed   │
//! ```
//!
//! Nothing reaches an image before it is durable here together with its seal. So an image that power failed under is
//! made whole by carrying out again what stands from the head on, up to the last seal: changes are in order, and each
//! says what is there afterwards.
//!
//! A stretch that power may have torn is told from damage: what lies before the **cut** was made durable, and the ring
//! has marks that say how far later syncs came. From the cut on, only records of the newest **session** count, so
//! nothing of an epoch that was dropped comes back between what was written in its place.
//!
//! Storage may take its time to flush, and to carry changes out: both are begun and ended here, and done in between by
//! whoever has the journal to share with others ([`JournalFlush`], [`Portion`]).

mod flush;
mod mend;
mod portion;
mod record;
mod recover;
mod ring;
mod superblock;

pub use flush::JournalFlush;
pub use portion::Portion;
pub use recover::Glance;

use self::flush::{Flushing, Releasing};
use self::record::{Entry, HEAD_BYTES, PAYLOAD_BYTES_MAX, Place, span};
use self::ring::Ring;
use self::superblock::{JOURNAL_VERSION, Position, RING_START, Superblock};
use crate::change::Change;
use crate::medium::Medium;
use std::io;

/// A sealed checkpoint: the pairing, and the epoch in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SealedEpoch {
    /// The pairing.
    pub pairing: u64,
    /// The epoch.
    pub epoch: u64,
}

/// Why the journal does not take something, or is none.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The storage.
    #[error("cannot be read or written: {0}")]
    Io(#[from] io::Error),
    /// There is none.
    #[error("is no journal of ftd")]
    NoJournal,
    /// Another version wrote it.
    #[error("is a journal of format {0}, this ftd reads {JOURNAL_VERSION}")]
    Version(u32),
    /// It says of itself what cannot be.
    #[error("is a journal of {says} bytes in a file of {has}: it was cut or moved")]
    Cut {
        /// What it says.
        says: u64,
        /// What is there.
        has: u64,
    },
    /// The storage is too small to be one.
    #[error("a journal takes at least {least} bytes, this one has {has}")]
    Small {
        /// What it takes.
        least: u64,
        /// What there is.
        has: u64,
    },
    /// A record that was durable is not what was written.
    #[error("is damaged: record {sequence}, at byte {at}, was durable and cannot be read any more")]
    Damaged {
        /// The record's number.
        sequence: u64,
        /// In the file.
        at: u64,
    },
    /// There is no room before more of it is carried out.
    #[error("is full: {free} bytes are free, {need} are needed")]
    Full {
        /// What it takes.
        need: u64,
        /// What is left.
        free: u64,
    },
    /// It must not be done while the storage is being flushed.
    #[error("is being flushed")]
    Busy,
    /// The storage failed before, and nobody knows what it has taken before it is mended.
    #[error("failed before, and was not mended since")]
    Unknown,
    /// It never fits.
    #[error("a change of {0} bytes is larger than the journal takes")]
    Large(usize),
}

/// Why a change was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError<E> {
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The image.
    #[error(transparent)]
    Image(E),
}

/// See the module.
pub struct Journal<M> {
    ring: Ring<M>,
    superblock: Superblock,
    tail: Position,
    /// Behind the last seal.
    sealed: (Position, Option<SealedEpoch>),
    /// Behind the last seal that is durable.
    durable: Position,
    /// Behind the last record that was carried out, and the last seal before that.
    applied: (Position, Option<SealedEpoch>),
    /// The head's way into its slots.
    releasing: Option<Releasing>,
    flushing: Flushing,
    health: Health,
}

/// Whether the storage has what this process thinks that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Sound,
    /// A write or a sync failed: nobody knows what is there.
    Unknown,
}

/// What is kept free for a seal, a mark, and a second seal after a restart.
const RESERVE: u64 = 3 * HEAD_BYTES as u64;
const RING_BYTES_MIN: u64 = 64 << 10;

impl<M: Medium> Journal<M> {
    /// A new and empty one in all of the medium. Whatever was there is gone. `session` differs from that of any journal
    /// that was there before: a random number.
    pub fn create(medium: M, session: u64) -> Result<Self, JournalError> {
        let has = medium.bytes()?;
        let ring_bytes = has.saturating_sub(RING_START) / 8 * 8;
        if ring_bytes < RING_BYTES_MIN {
            return Err(JournalError::Small { least: RING_START + RING_BYTES_MIN, has });
        }
        let start = Position::default();
        let count = Superblock::read(&medium).map_or(0, |old| old.count);
        let mut superblock =
            Superblock { count, head: start, cut: start, session, ring_bytes, applied: None, behind: None };
        superblock.write(&medium)?;
        Ok(Self {
            ring: Ring { medium, bytes: ring_bytes },
            superblock,
            tail: start,
            sealed: (start, None),
            durable: start,
            applied: (start, None),
            releasing: None,
            flushing: Flushing::Idle,
            health: Health::Sound,
        })
    }

    /// The last seal: what this backup holds. What was appended behind it is in no checkpoint.
    pub fn sealed(&self) -> Option<SealedEpoch> {
        self.sealed.1
    }

    /// The checkpoint that the image is of, when everything sealed was carried out; else it is on its way from this
    /// one.
    pub fn applied(&self) -> Option<SealedEpoch> {
        self.applied.1
    }

    /// Bytes that wait to be carried out.
    pub fn waiting(&self) -> u64 {
        self.sealed.0.at - self.applied.0.at
    }

    /// Bytes that are durable, and wait to be carried out.
    pub fn ready(&self) -> u64 {
        self.durable.at - self.applied.0.at
    }

    /// Whether the image has everything that is sealed, durably.
    pub fn is_carried_out(&self) -> bool {
        self.superblock.head == self.sealed.0
    }

    /// Where it lies.
    pub fn medium(&self) -> &M {
        &self.ring.medium
    }

    /// Bytes that changes may still take.
    pub fn free(&self) -> u64 {
        (self.ring.bytes - (self.tail.at - self.superblock.head.at)).saturating_sub(RESERVE)
    }

    /// Bytes that a change takes here.
    pub fn cost(change: &Change<'_>) -> u64 {
        match change {
            Change::Write { data, .. } => span(data.len()),
            Change::Zeroes { .. } | Change::Discard { .. } => span(0),
        }
    }

    /// Takes the next change of the epoch that is coming in.
    pub fn append(&mut self, change: &Change<'_>) -> Result<(), JournalError> {
        let (need, free) = (Self::cost(change), self.free());
        if let Change::Write { data, .. } = change
            && (data.len() > PAYLOAD_BYTES_MAX || need + RESERVE > self.ring.bytes)
        {
            return Err(JournalError::Large(data.len()));
        }
        if need > free {
            return Err(JournalError::Full { need, free });
        }
        self.put(&Entry::Change(change.clone()))
    }

    /// What was appended since the last seal is this checkpoint's.
    pub fn seal(&mut self, sealed: SealedEpoch) -> Result<(), JournalError> {
        self.room_for_seal()?;
        self.put(&Entry::Seal(sealed))?;
        self.sealed = (self.tail, Some(sealed));
        Ok(())
    }

    /// The image may lack what was carried out since the last release: all of it is carried out again. A portion that
    /// was taken before is not given back.
    pub fn again(&mut self) {
        // A head that is on its way may be in a slot: what is before it was flushed.
        let Superblock { head, applied, .. } = self.newest();
        self.applied = (head, applied);
    }

    /// Drops what was appended since the last seal: the connection that it came over is gone. Flushes the storage, and
    /// must not be called while somebody else does.
    pub fn drop_unsealed(&mut self) -> Result<(), JournalError> {
        if self.flushing == Flushing::UnderWay {
            return Err(JournalError::Busy);
        }
        let cut = self.sealed.0;
        let session = self.superblock.session.wrapping_add(1);
        self.publish(Superblock { cut, session, ..self.newest() })?;
        self.releasing = None;
        (self.tail, self.durable) = (cut, cut);
        Ok(())
    }

    /// The newest that a slot may hold.
    fn newest(&self) -> Superblock {
        self.releasing.as_ref().map_or(self.superblock, |releasing| releasing.next)
    }

    fn sound(&self) -> Result<(), JournalError> {
        match self.health {
            Health::Sound => Ok(()),
            Health::Unknown => Err(JournalError::Unknown),
        }
    }

    fn failed<E>(&mut self, error: E) -> E {
        self.health = Health::Unknown;
        error
    }

    fn publish(&mut self, mut next: Superblock) -> Result<(), JournalError> {
        self.sound()?;
        next.write(&self.ring.medium).map_err(|e| self.failed(e))?;
        self.superblock = next;
        Ok(())
    }

    fn room_for_seal(&self) -> Result<(), JournalError> {
        let free = self.ring.bytes - (self.tail.at - self.superblock.head.at);
        let need = HEAD_BYTES as u64;
        if free < need { Err(JournalError::Full { need, free }) } else { Ok(()) }
    }

    fn put(&mut self, entry: &Entry<'_>) -> Result<(), JournalError> {
        let Position { at, sequence } = self.tail;
        let place = Place { session: self.superblock.session, sequence };
        self.sound()?;
        let bytes = self.ring.put(at, place, entry).map_err(|e| self.failed(e))?;
        self.tail = Position { at: at + bytes, sequence: sequence + 1 };
        Ok(())
    }
}
