//! The machine's output: frames and console output. The guest's view of sending does not depend on the host: the card
//! hands a frame over when the guest notifies it, and gives the buffer back. Frames that the sink has no room for wait
//! here, and the guest does not execute until they are gone; so at most one notification's frames ever wait. Beyond a
//! few megabytes of them more are lost, as where a switch is full: they are a part of the machine's state.

use super::state::SentFrame;
use crate::devices::{ConsoleSink, FrameSink, Offloads, Transmit};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::devices::inbox::Bell;

/// Most bytes that wait: some 60 of the longest segments, or 256 of the longest frames.
pub(super) const WAITING_BYTES_MAX: usize = 4 << 20;

/// Between the card and the sink.
pub(super) struct Outbox {
    sink: Option<Arc<dyn FrameSink>>,
    refused: Mutex<VecDeque<SentFrame>>,
    /// Frames go nowhere.
    pub mute: AtomicBool,
    bell: Arc<Bell>,
}

impl Outbox {
    pub(super) fn new(sink: Option<Arc<dyn FrameSink>>, bell: Arc<Bell>) -> Self {
        Self { sink, refused: Mutex::default(), mute: AtomicBool::new(false), bell }
    }

    /// Offers again what the sink has refused; whether it is all gone.
    pub(super) fn flush(&self) -> bool {
        let mut refused = self.refused.lock();
        while let (Some(frame), Some(sink)) = (refused.front(), &self.sink) {
            if sink.transmit(frame.card, &frame.packet) == Transmit::Full {
                return false;
            }
            refused.pop_front();
        }
        refused.clear();
        true
    }

    /// Frames that the guest has sent and the sink has not taken: a part of the machine's state.
    pub(super) fn waiting(&self) -> Vec<SentFrame> {
        self.refused.lock().iter().cloned().collect()
    }

    pub(super) fn set_waiting(&self, frames: &[SentFrame]) {
        *self.refused.lock() = frames.iter().cloned().collect();
    }
}

impl FrameSink for Outbox {
    fn transmit(&self, card: u8, packet: &[u8]) -> Transmit {
        if let (Some(sink), false) = (&self.sink, self.mute.load(Ordering::Relaxed)) {
            let mut refused = self.refused.lock();
            if !refused.is_empty() || sink.transmit(card, packet) == Transmit::Full {
                let waiting: usize = refused.iter().map(|frame| frame.packet.len()).sum();
                if waiting + packet.len() <= WAITING_BYTES_MAX {
                    refused.push_back(SentFrame { card, packet: packet.to_vec() });
                }
                self.bell.ring_self();
            }
        }
        Transmit::Taken
    }

    /// Said whether or not frames go anywhere: whoever goes on from here is to find it so.
    fn set_offloads(&self, card: u8, offloads: Offloads) {
        if let Some(sink) = &self.sink {
            sink.set_offloads(card, offloads);
        }
    }
}

/// Between the devices and the console's sink.
pub(super) struct Console {
    pub sink: Box<dyn ConsoleSink>,
    pub mute: Arc<AtomicBool>,
}

impl ConsoleSink for Console {
    fn write(&mut self, bytes: &[u8]) {
        if !self.mute.load(Ordering::Relaxed) {
            self.sink.write(bytes);
        }
    }
}
