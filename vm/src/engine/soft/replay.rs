//! The part of the log that a replaying machine has and has not executed yet.

use crate::replay::log::{Batch, LogEntry, LogInput};
use std::collections::VecDeque;

pub(super) struct Replayer {
    fed: u64,
    ahead: VecDeque<LogEntry>,
    /// Frames delivered, for the build that delivers one of them wrongly.
    #[cfg(feature = "misreplay")]
    frames: u64,
}

impl Replayer {
    pub(super) fn new(count: u64) -> Self {
        Self {
            fed: count,
            ahead: VecDeque::new(),
            #[cfg(feature = "misreplay")]
            frames: 0,
        }
    }

    /// The machine may execute up to here.
    pub(super) fn fed(&self) -> u64 {
        self.fed
    }

    /// Takes in what was read of the log. Random bytes are given to `random`, since it is the device that asks for
    /// them.
    pub(super) fn feed(&mut self, batches: Vec<Batch>, mut random: impl FnMut(u64, Vec<u8>)) {
        for batch in batches {
            for entry in batch.entries {
                match entry.input {
                    LogInput::Random(bytes) => random(entry.count, bytes),
                    _ => self.ahead.push_back(entry),
                }
            }
            self.fed = batch.cut;
        }
    }

    /// The count at which the next input takes effect, or where the log ends.
    pub(super) fn next(&self) -> u64 {
        self.ahead.front().map_or(self.fed(), |entry| entry.count)
    }

    /// The next input, if it is due at `count`.
    pub(super) fn take(&mut self, count: u64) -> Option<LogInput> {
        self.ahead.front().filter(|entry| entry.count == count)?;
        let entry = self.ahead.pop_front()?;
        #[cfg(feature = "misreplay")]
        return Some(self.spoil(entry.input));
        #[cfg(not(feature = "misreplay"))]
        Some(entry.input)
    }

    /// Puts back what was taken at `count`: the machine is not ready for it.
    pub(super) fn put_back(&mut self, count: u64, input: LogInput) {
        self.ahead.push_front(LogEntry { count, input });
    }

    /// A machine at `count`, which has taken what it could, waits for a disk.
    pub(super) fn awaits_disk(&self, count: u64) -> bool {
        let next = self.ahead.front().filter(|entry| entry.count == count);
        next.is_some_and(|entry| matches!(entry.input, LogInput::Disk { .. }))
    }

    /// A machine at `count` has executed all there is.
    pub(super) fn is_done(&self, count: u64) -> bool {
        self.ahead.is_empty() && self.fed() == count
    }

    /// The 20th frame loses its last byte.
    #[cfg(feature = "misreplay")]
    fn spoil(&mut self, input: LogInput) -> LogInput {
        let LogInput::Frame { card, mut packet } = input else { return input };
        self.frames += 1;
        if self.frames == 20 {
            packet.pop();
        }
        LogInput::Frame { card, packet }
    }
}
