//! The primary's debt to its backup: every checkpoint from the start of its encoding until its ack (invariant I4). A
//! failed send forgets nothing. After a reconnect of the same pairing, the checkpoints that the backup lacks are sent
//! again from here.

use crate::encoder::EncodedCheckpoint;
use std::collections::VecDeque;
use std::sync::Arc;

/// Buffers of acked checkpoints kept for the encoder.
const SPARES: usize = 4;

/// Why an event does not fit what is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OwedError {
    /// Epochs have no gaps.
    #[error("epoch {epoch} does not follow epoch {last}")]
    OutOfOrder {
        /// The new one.
        epoch: u64,
        /// The one before.
        last: u64,
    },
    /// An ack for what was never sent.
    #[error("the backup acked epoch {epoch}, but the last one sent is {last:?}")]
    AckOfUnsent {
        /// The ack's.
        epoch: u64,
        /// The newest begun.
        last: Option<u64>,
    },
    /// The backup is further behind than anything kept, or ahead: a new pairing is needed.
    #[error(
        "the backup holds epoch {held}, but the epochs kept for it are those after {acked:?} up to {last:?}"
    )]
    CannotResume {
        /// What the backup holds.
        held: u64,
        /// The last acked.
        acked: Option<u64>,
        /// The newest begun.
        last: Option<u64>,
    },
}

/// The checkpoints not acked yet, oldest first.
pub struct Owed {
    kept: VecDeque<Arc<EncodedCheckpoint>>,
    bytes: usize,
    bytes_max: usize,
    span: Option<Span>,
    spares: Vec<EncodedCheckpoint>,
}

/// Everything up to `acked` is acked, everything after it up to `last` is owed.
#[derive(Clone, Copy)]
struct Span {
    acked: u64,
    last: u64,
}

impl Owed {
    /// Owes nothing; [`Self::is_full`] beyond `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self { kept: VecDeque::new(), bytes: 0, bytes_max, span: None, spares: Vec::new() }
    }

    /// Forgets everything: a new pairing begins, or the VM goes on alone.
    pub fn reset(&mut self) {
        while let Some(checkpoint) = self.kept.pop_front() {
            self.recycle(checkpoint);
        }
        (self.bytes, self.span) = (0, None);
    }

    /// A buffer for the next checkpoint.
    pub fn spare(&mut self) -> EncodedCheckpoint {
        self.spares.pop().unwrap_or_default()
    }

    /// An epoch's encoding begins: from now on its ack may arrive, even before [`Self::keep`].
    pub fn begin(&mut self, epoch: u64) -> Result<(), OwedError> {
        let last = self.last().unwrap_or(epoch.saturating_sub(1));
        if epoch == 0 || last.checked_add(1) != Some(epoch) {
            return Err(OwedError::OutOfOrder { epoch, last });
        }
        self.span.get_or_insert(Span { acked: last, last }).last = epoch;
        Ok(())
    }

    /// Keeps the checkpoint of the epoch begun last until its ack (which may have come already).
    pub fn keep(&mut self, checkpoint: EncodedCheckpoint) -> Result<(), OwedError> {
        let epoch = checkpoint.epoch();
        let newest = self.kept.back().map(|newest| newest.epoch());
        match self.span {
            Some(span) if span.last == epoch && newest != Some(epoch) => {
                if span.acked >= epoch {
                    self.recycle(Arc::new(checkpoint));
                } else {
                    self.bytes += checkpoint.bytes();
                    self.kept.push_back(Arc::new(checkpoint));
                }
                Ok(())
            }
            _ => Err(OwedError::OutOfOrder { epoch, last: newest.or(self.last()).unwrap_or(0) }),
        }
    }

    /// The backup has sealed `epoch`: forgets it and those before it, and nothing else. Returns how many epochs this
    /// commits (0 for an ack heard before).
    pub fn ack(&mut self, epoch: u64) -> Result<u64, OwedError> {
        let last = self.last();
        let Some(span) = self.span.as_mut().filter(|span| epoch <= span.last) else {
            return Err(OwedError::AckOfUnsent { epoch, last });
        };
        let committed = epoch.saturating_sub(span.acked);
        span.acked += committed;
        let covered = self.kept.partition_point(|checkpoint| checkpoint.epoch() <= epoch);
        for checkpoint in self.kept.drain(..covered).collect::<Vec<_>>() {
            self.bytes -= checkpoint.bytes();
            self.recycle(checkpoint);
        }
        Ok(committed)
    }

    /// The backup is back and holds `held` of this pairing: takes that as its ack and returns what it lacks, in order.
    /// To be called where epochs are encoded, so that none is between [`Self::begin`] and [`Self::keep`].
    pub fn resume(&mut self, held: u64) -> Result<Vec<Arc<EncodedCheckpoint>>, OwedError> {
        if !self.span.is_some_and(|span| (span.acked..=span.last).contains(&held)) {
            return Err(OwedError::CannotResume { held, acked: self.acked(), last: self.last() });
        }
        self.ack(held)?;
        Ok(self.unacked_from(held.saturating_add(1)))
    }

    /// The checkpoints from `epoch` on that are not acked.
    pub fn unacked_from(&self, epoch: u64) -> Vec<Arc<EncodedCheckpoint>> {
        self.kept.iter().filter(|checkpoint| checkpoint.epoch() >= epoch).cloned().collect()
    }

    /// Whether no further epoch should be captured until an ack comes, beside so many bytes that are captured and not
    /// kept yet. The last one let in may exceed the bound.
    pub fn is_full(&self, unkept_bytes: usize) -> bool {
        self.bytes.saturating_add(unkept_bytes) >= self.bytes_max
    }

    /// Bytes kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Epochs begun and not acked.
    pub fn in_flight(&self) -> u64 {
        self.span.map_or(0, |span| span.last - span.acked)
    }

    /// Everything of this pairing up to here is committed.
    pub fn acked(&self) -> Option<u64> {
        self.span.map(|span| span.acked)
    }

    fn last(&self) -> Option<u64> {
        self.span.map(|span| span.last)
    }

    fn recycle(&mut self, checkpoint: Arc<EncodedCheckpoint>) {
        if self.spares.len() < SPARES {
            self.spares.extend(Arc::into_inner(checkpoint));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::Encoder;
    use crate::{arena::Capture, copy::FullCopy, wire::frame::NoSink};
    use ft_ram::GuestRam;

    fn checkpoints(epochs: std::ops::Range<u64>) -> Vec<EncodedCheckpoint> {
        let view = GuestRam::new(16 << 20).unwrap().view().unwrap();
        let mut encoder = Encoder::new(view.pages(), 0);
        FullCopy::begin(&mut encoder, 1, &view, &mut NoSink).unwrap();
        let mut capture = Capture::new(1);
        let mut encode = |epoch| {
            capture.epoch = epoch;
            encoder.encode(&capture, EncodedCheckpoint::default(), &mut NoSink).unwrap().checkpoint
        };
        epochs.map(&mut encode).collect()
    }

    fn owing(epochs: std::ops::Range<u64>) -> Owed {
        let mut owed = Owed::new(1 << 20);
        for checkpoint in checkpoints(epochs) {
            owed.begin(checkpoint.epoch()).unwrap();
            owed.keep(checkpoint).unwrap();
        }
        owed
    }

    fn epochs(owed: &Owed) -> Vec<u64> {
        owed.unacked_from(0).iter().map(|c| c.epoch()).collect()
    }

    #[test]
    fn an_ack_forgets_exactly_what_it_covers() {
        let mut owed = owing(5..10);
        assert_eq!((epochs(&owed), owed.in_flight()), (vec![5, 6, 7, 8, 9], 5));
        assert_eq!(owed.ack(6), Ok(2));
        assert_eq!(owed.ack(6), Ok(0));
        assert_eq!(owed.ack(4), Ok(0));
        assert_eq!((epochs(&owed), owed.in_flight(), owed.acked()), (vec![7, 8, 9], 3, Some(6)));
        assert_eq!(owed.ack(10), Err(OwedError::AckOfUnsent { epoch: 10, last: Some(9) }));
        assert_eq!(owed.ack(9), Ok(3));
        assert_eq!((owed.bytes(), owed.in_flight()), (0, 0));
    }

    #[test]
    fn an_ack_may_overtake_the_keeping() {
        let mut owed = owing(1..2);
        let next = checkpoints(2..3).remove(0);
        owed.begin(2).unwrap();
        assert_eq!(owed.ack(2), Ok(2));
        owed.keep(next).unwrap();
        assert_eq!((epochs(&owed), owed.bytes()), (vec![], 0));
    }

    #[test]
    fn gaps_and_strangers_are_refused() {
        let mut owed = owing(1..3);
        assert_eq!(owed.begin(4), Err(OwedError::OutOfOrder { epoch: 4, last: 2 }));
        assert!(owed.keep(checkpoints(2..3).remove(0)).is_err(), "kept already");
        assert!(owed.keep(checkpoints(3..4).remove(0)).is_err(), "never begun");
        assert!(Owed::new(1).begin(0).is_err());
        assert!(Owed::new(1).ack(0).is_err());
    }

    #[test]
    fn after_a_reconnect_what_the_backup_lacks_is_sent_again() {
        let mut owed = owing(1..6);
        owed.ack(2).unwrap();
        let lacking: Vec<u64> = owed.resume(3).unwrap().iter().map(|c| c.epoch()).collect();
        assert_eq!(lacking, [4, 5]);
        for held in [2, 6] {
            let error = owed.resume(held).unwrap_err();
            assert_eq!(error, OwedError::CannotResume { held, acked: Some(3), last: Some(5) });
        }
        assert!(owed.resume(5).unwrap().is_empty());
        owed.reset();
        assert!(owed.resume(5).is_err());
    }

    #[test]
    fn the_bound_is_a_signal_and_buffers_come_back() {
        let mut owed = Owed::new(1);
        assert!(!owed.is_full(0));
        assert!(owed.is_full(1), "what is captured and not kept yet counts");
        let checkpoint = checkpoints(1..2).remove(0);
        owed.begin(1).unwrap();
        owed.keep(checkpoint).unwrap();
        assert!(owed.is_full(0));
        owed.ack(1).unwrap();
        assert!(!owed.is_full(0));
        assert_eq!(owed.spare().epoch(), 1, "the acked one's buffer");
    }
}
