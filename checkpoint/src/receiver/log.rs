//! An epoch of the event log while it is being received. Its bytes are kept as they come; the digest proves them, and
//! whoever executes them reads them.

use super::{Holding, ReceiveError, Received, Receiver};
use crate::digest::Chain;
use crate::encoder::LOG_BYTES_MAX;
use crate::wire::FrameType;
use crate::wire::message::{EpochEnd, LogBegin, Mode};

/// An epoch of the log being received.
pub(super) struct IncomingLog {
    epoch: u64,
    announced: usize,
    chain: Chain,
    log: Vec<u8>,
}

impl Receiver {
    pub(super) fn log_begin(&mut self, epoch: u64, begin: LogBegin) -> Result<Received, ReceiveError> {
        let unexpected = |when| Err(ReceiveError::Unexpected { kind: FrameType::LogBegin, when });
        let sealed = match &self.holding {
            _ if self.mode != Mode::Replay => return unexpected("in checkpoint mode"),
            Holding::Sealed(sealed) => sealed,
            _ => return unexpected("before a checkpoint"),
        };
        if begin.pairing != sealed.pairing {
            return Err(ReceiveError::Pairing { theirs: begin.pairing, ours: sealed.pairing });
        }
        let due = sealed.epoch.saturating_add(1);
        if epoch != due {
            return Err(ReceiveError::Epoch { theirs: epoch, ours: due });
        }
        let announced = begin.log_bytes as usize;
        if announced > LOG_BYTES_MAX {
            let what = "bytes of log";
            return Err(ReceiveError::TooMuch { epoch, what, announced, max: LOG_BYTES_MAX });
        }
        // Memory for what comes, not for what is announced.
        self.incoming_log = Some(IncomingLog { epoch, announced, chain: sealed.chain, log: Vec::new() });
        Ok(Received::Nothing)
    }

    pub(super) fn log_part(&mut self, epoch: u64, part: &[u8]) -> Result<Received, ReceiveError> {
        let incoming = due(&mut self.incoming_log, epoch, FrameType::Log)?;
        if part.len() > incoming.announced - incoming.log.len() {
            return Err(incoming.miscounted("bytes of log or more", incoming.log.len() + part.len()));
        }
        incoming.log.extend_from_slice(part);
        Ok(Received::Nothing)
    }

    pub(super) fn log_end(&mut self, epoch: u64, end: EpochEnd) -> Result<Received, ReceiveError> {
        let incoming = due(&mut self.incoming_log, epoch, FrameType::EpochEnd)?;
        if incoming.log.len() != incoming.announced {
            return Err(incoming.miscounted("bytes of log", incoming.log.len()));
        }
        incoming.chain.log(epoch, &incoming.log);
        let (computed, stated) = (incoming.chain.value(), end.digest);
        if computed != stated {
            return Err(ReceiveError::Digest { epoch, computed, stated });
        }
        let (chain, log) = (incoming.chain, std::mem::take(&mut incoming.log));
        self.incoming_log = None;
        if let Holding::Sealed(sealed) = &mut self.holding {
            (sealed.epoch, sealed.chain) = (epoch, chain);
        }
        Ok(Received::SealedLog { epoch, stamp_us: end.stamp_us, log })
    }
}

impl IncomingLog {
    fn miscounted(&self, what: &'static str, received: usize) -> ReceiveError {
        ReceiveError::Count { epoch: self.epoch, what, received, announced: self.announced }
    }
}

fn due(
    incoming: &mut Option<IncomingLog>,
    epoch: u64,
    kind: FrameType,
) -> Result<&mut IncomingLog, ReceiveError> {
    match incoming {
        None => Err(ReceiveError::Unexpected { kind, when: "outside an epoch of the log" }),
        Some(incoming) if incoming.epoch != epoch => {
            Err(ReceiveError::Epoch { theirs: epoch, ours: incoming.epoch })
        }
        Some(incoming) => Ok(incoming),
    }
}
