//! The frames of one buffer in order, and the epochs' ends among them. Plain data: no locks, no clock, no wire.
//!
//! Payloads lie in one byte ring whose memory is reused, so that taking a frame allocates nothing once the ring has
//! grown to the traffic. Frames are numbered; an epoch's end is the number of the first frame after it.

use std::collections::VecDeque;
use std::time::Instant;

#[derive(Debug)]
struct HeldFrame {
    /// Which wire it leaves by.
    wire: u8,
    len: usize,
    taken_at: Instant,
}

#[derive(Debug, Clone, Copy)]
struct EpochMark {
    epoch: u64,
    /// Number of the first frame that is not covered.
    end: u64,
}

/// Frames waiting to leave, oldest first.
#[derive(Debug, Default)]
pub(crate) struct FrameQueue {
    payload: VecDeque<u8>,
    frames: VecDeque<HeldFrame>,
    closed: VecDeque<EpochMark>,
    /// Number of the oldest frame.
    first: u64,
}

impl FrameQueue {
    pub(crate) fn frames(&self) -> usize {
        self.frames.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.payload.len()
    }

    /// When the oldest frame was taken.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.frames.front().map(|frame| frame.taken_at)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether no frame belongs to the open epoch.
    pub(crate) fn is_open_empty(&self) -> bool {
        self.closed
            .back()
            .map_or(self.frames.is_empty(), |mark| mark.end == self.first + self.frames.len() as u64)
    }

    /// Appends a frame to the open epoch, for a wire.
    pub(crate) fn push(&mut self, wire: u8, frame: &[u8], taken_at: Instant) {
        self.payload.extend(frame);
        self.frames.push_back(HeldFrame { wire, len: frame.len(), taken_at });
    }

    /// Ends the open epoch: its frames are covered by checkpoint `epoch`. Epochs come in rising order; a number that
    /// does not rise is taken as the last one, which holds its frames no shorter than asked.
    pub(crate) fn close_epoch(&mut self, epoch: u64) {
        let (last, last_end) = self.closed.back().map_or((0, self.first), |mark| (mark.epoch, mark.end));
        let end = self.first + self.frames.len() as u64;
        // An epoch without frames needs no mark, so there are never more marks than frames.
        if end > last_end {
            self.closed.push_back(EpochMark { epoch: epoch.max(last), end });
        }
    }

    /// How many frames at the head are covered by checkpoints up to `epoch`.
    pub(crate) fn covered_through(&self, epoch: u64) -> usize {
        let end =
            self.closed.iter().take_while(|mark| mark.epoch <= epoch).last().map_or(self.first, |m| m.end);
        (end - self.first) as usize
    }

    /// Makes all frames one open epoch again.
    pub(crate) fn forget_epochs(&mut self) {
        self.closed.clear();
    }

    /// Copies the oldest frame into `into` (replacing what is there), and says which wire it leaves by; none if there
    /// is no frame.
    pub(crate) fn copy_first(&self, into: &mut Vec<u8>) -> Option<u8> {
        let frame = self.frames.front()?;
        into.clear();
        let (head, tail) = self.payload.as_slices();
        if frame.len <= head.len() {
            into.extend_from_slice(&head[..frame.len]);
        } else {
            into.extend_from_slice(head);
            into.extend_from_slice(&tail[..frame.len - head.len()]);
        }
        Some(frame.wire)
    }

    /// Removes the oldest frame and says when it was taken.
    pub(crate) fn remove_first(&mut self) -> Option<Instant> {
        let frame = self.frames.pop_front()?;
        self.payload.drain(..frame.len);
        self.first += 1;
        while self.closed.front().is_some_and(|mark| mark.end <= self.first) {
            self.closed.pop_front();
        }
        Some(frame.taken_at)
    }

    /// Removes everything; says how many frames that were.
    pub(crate) fn clear(&mut self) -> usize {
        let dropped = self.frames.len();
        self.first += dropped as u64;
        self.payload.clear();
        self.frames.clear();
        self.closed.clear();
        dropped
    }
}
