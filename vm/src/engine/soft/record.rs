//! A machine's recorder keeps the log, and the count at which the next digest is due.

use crate::replay::LogError;
use crate::replay::log::{Digest, LogCut, LogInput, LogWriter};
use std::time::{Duration, Instant};

/// A digest after so many instructions...
const DIGEST_EVERY: u64 = 50_000_000;
/// ...or after so much of the host's time, if the guest did anything at all.
const DIGEST_WITHIN: Duration = Duration::from_secs(1);
/// With so much of the log not cut, the guest has to wait.
const PENDING_BYTES_MAX: usize = 64 << 20;

pub(super) struct Recorder {
    log: LogWriter,
    /// Why the log is not whole. Said by the next cut; then recording is at an end.
    broken: Option<LogError>,
    digest_count: u64,
    digest_at: Instant,
}

impl Recorder {
    pub(super) fn new(count: u64) -> Self {
        Self { log: LogWriter::new(count), broken: None, digest_count: count, digest_at: Instant::now() }
    }

    pub(super) fn note(&mut self, count: u64, input: &LogInput) {
        if self.broken.is_none() {
            self.broken = self.log.append(count, input).err();
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.log.pending_bytes() >= PENDING_BYTES_MAX
    }

    /// The count up to which the guest may run before it is looked whether a digest is due.
    pub(super) fn digest_due(&self) -> u64 {
        self.digest_count.saturating_add(DIGEST_EVERY)
    }

    pub(super) fn wants_digest(&self, count: u64) -> bool {
        let executed = count.saturating_sub(self.digest_count);
        executed >= DIGEST_EVERY || (executed > 0 && self.digest_at.elapsed() >= DIGEST_WITHIN)
    }

    pub(super) fn note_digest(&mut self, count: u64, digest: Digest) {
        self.note(count, &LogInput::Digest(Box::new(digest)));
        (self.digest_count, self.digest_at) = (count, Instant::now());
    }

    pub(super) fn cut(&mut self, count: u64, out: &mut Vec<u8>) -> Result<LogCut, LogError> {
        match self.broken.take() {
            Some(e) => {
                self.broken = Some(e.clone());
                Err(e)
            }
            None => self.log.cut(count, out),
        }
    }
}
