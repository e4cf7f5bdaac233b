//! An epoch of the event log while it is being received. The bytes are kept as they come. The digest proves them; the
//! machine that executes the log decodes them.

use super::{Holding, ReceiveError, Received, Receiver};
use crate::encoder::LOG_BYTES_MAX;
use crate::wire::FrameType;
use crate::wire::message::{LogEnd, Mode};

/// An epoch of the log being received.
pub(super) struct IncomingLog {
    epoch: u64,
    log: Vec<u8>,
}

impl Receiver {
    /// A part of an epoch's log. The first one begins the epoch.
    pub(super) fn log_part(
        &mut self,
        kind: FrameType,
        epoch: u64,
        part: &[u8],
    ) -> Result<Received<'static>, ReceiveError> {
        let due = match (&self.incoming_log, &self.holding) {
            (Some(incoming), _) => incoming.epoch,
            _ if self.mode != Mode::Replay => {
                return Err(ReceiveError::Unexpected { kind, when: "in checkpoint mode" });
            }
            (None, Holding::Sealed(sealed)) => sealed.epoch.saturating_add(1),
            _ => return Err(ReceiveError::Unexpected { kind, when: "before a checkpoint" }),
        };
        if epoch != due {
            return Err(ReceiveError::Epoch { theirs: epoch, ours: due });
        }
        let incoming = self.incoming_log.get_or_insert_with(|| IncomingLog { epoch, log: Vec::new() });
        let announced = incoming.log.len() + part.len();
        if announced > LOG_BYTES_MAX {
            let what = "bytes of log";
            return Err(ReceiveError::TooMuch { epoch, what, announced, max: LOG_BYTES_MAX });
        }
        incoming.log.extend_from_slice(part);
        Ok(Received::Nothing)
    }

    /// The epoch has all its parts.
    pub(super) fn log_end(&mut self, epoch: u64, end: LogEnd) -> Result<Received<'static>, ReceiveError> {
        let (Some(incoming), Holding::Sealed(sealed)) = (self.incoming_log.take(), &mut self.holding) else {
            return Err(ReceiveError::Unexpected {
                kind: FrameType::LogEnd,
                when: "outside an epoch of the log",
            });
        };
        let mut chain = sealed.chain;
        chain.log(epoch, &incoming.log);
        let (computed, stated) = (chain.value(), end.digest);
        if computed != stated {
            return Err(ReceiveError::Digest { epoch, computed, stated });
        }
        (sealed.epoch, sealed.chain) = (epoch, chain);
        Ok(Received::SealedLog { pairing: sealed.pairing, epoch, stamp_us: end.stamp_us, log: incoming.log })
    }
}
