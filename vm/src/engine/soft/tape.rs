//! Random bytes for devices: from the host, noted down where the machine is recorded, and taken from the log where it
//! is replayed. They are read in the middle of an instruction, while the log is elsewhere, so they pass through here.

use crate::devices::Random;
use crate::devices::inbox::Bell;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;

/// Shared by the device and the vCPU's thread.
pub(super) struct Tape {
    state: Mutex<State>,
    bell: Arc<Bell>,
}

enum State {
    Live,
    /// What was read and is not in the log yet.
    Record(Vec<Vec<u8>>),
    Replay {
        /// From the log, each with the count of the instruction boundary after the one that read it.
        ahead: VecDeque<(u64, Vec<u8>)>,
        /// Counts of those that the device has taken and that were not checked yet.
        taken: Vec<u64>,
        /// The device asked for what the log does not have, or for another number of bytes.
        wrong: bool,
    },
}

/// The replay reads other random bytes than the recorder did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wrong;

impl Tape {
    pub(super) fn new(bell: Arc<Bell>) -> Self {
        Self { state: Mutex::new(State::Live), bell }
    }

    pub(super) fn live(&self) {
        *self.state.lock() = State::Live;
    }

    pub(super) fn record(&self) {
        *self.state.lock() = State::Record(Vec::new());
    }

    pub(super) fn replay(&self) {
        *self.state.lock() = State::Replay { ahead: VecDeque::new(), taken: Vec::new(), wrong: false };
    }

    /// What was read since the last call, to be logged now.
    pub(super) fn take_recorded(&self) -> Vec<Vec<u8>> {
        match &mut *self.state.lock() {
            State::Record(read) => std::mem::take(read),
            _ => Vec::new(),
        }
    }

    /// Adds what the log has at `count`.
    pub(super) fn feed(&self, count: u64, bytes: Vec<u8>) {
        if let State::Replay { ahead, .. } = &mut *self.state.lock() {
            ahead.push_back((count, bytes));
        }
    }

    /// The replay has come to `count`: whether all that was to be read by then was, and nothing else.
    pub(super) fn check(&self, count: u64) -> Result<(), Wrong> {
        let State::Replay { ahead, taken, wrong } = &mut *self.state.lock() else { return Ok(()) };
        let missed = ahead.front().is_some_and(|(due, _)| *due <= count);
        let elsewhere = taken.drain(..).any(|due| due != count);
        if missed || elsewhere || *wrong { Err(Wrong) } else { Ok(()) }
    }
}

/// The device's end.
pub(super) struct Source(pub Arc<Tape>);

impl Random for Source {
    fn fill(&mut self, bytes: &mut [u8]) -> usize {
        let Self(tape) = self;
        match &mut *tape.state.lock() {
            State::Live => host(bytes),
            State::Record(read) => {
                let got = host(bytes);
                read.push(bytes[..got].to_vec());
                // The guest stops behind this instruction, so that its count is known.
                tape.bell.ring_self();
                got
            }
            State::Replay { ahead, taken, wrong } => {
                tape.bell.ring_self();
                match ahead.pop_front() {
                    Some((count, recorded)) if recorded.len() <= bytes.len() => {
                        bytes[..recorded.len()].copy_from_slice(&recorded);
                        taken.push(count);
                        recorded.len()
                    }
                    _ => {
                        *wrong = true;
                        0
                    }
                }
            }
        }
    }
}

fn host(bytes: &mut [u8]) -> usize {
    crate::devices::HostRandom.fill(bytes)
}
