//! The thread that encodes captures and streams them out while the guest already runs its next epoch.

use super::Input;
use super::pairing::Pairing;
use crate::role::Event;
use crate::telemetry::Telemetry;
use ft_checkpoint::arena::Capture;
use ft_checkpoint::encoder::Encoder;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// The checkpointer's end of the shipper.
pub struct Shipper {
    captures: Option<Sender<Capture>>,
    returned: Receiver<Capture>,
    thread: Option<JoinHandle<()>>,
    spare: Vec<Capture>,
    pages_max: usize,
}

impl Shipper {
    /// Starts the thread. It owns the encoder, which has sent the full copy.
    pub fn start(
        encoder: Encoder,
        pairing: Arc<Pairing>,
        pages_max: usize,
        inputs: Sender<Input>,
        telemetry: Arc<Telemetry>,
    ) -> std::io::Result<Self> {
        let (captures, work) = channel::<Capture>();
        let (give_back, returned) = channel();
        let thread = std::thread::Builder::new().name("ftd-ship".into()).spawn(move || {
            let mut encoder = encoder;
            while let Ok(capture) = work.recv() {
                if let Err(why) = ship(&mut encoder, &pairing, &capture, &telemetry) {
                    let _ = inputs.send(Input::Event(Event::PairingBroken { pairing: pairing.nonce, why }));
                    return;
                }
                if give_back.send(capture).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { captures: Some(captures), returned, thread: Some(thread), spare: Vec::new(), pages_max })
    }

    /// An empty capture, used before if there is one.
    pub fn empty_capture(&mut self) -> Capture {
        while let Ok(capture) = self.returned.try_recv() {
            self.spare.push(capture);
        }
        let mut capture = self.spare.pop().unwrap_or_else(|| Capture::new(self.pages_max));
        capture.reset();
        capture
    }

    /// Hands a capture over. A shipper that has failed has said so itself.
    pub fn ship(&self, capture: Capture) {
        if let Some(captures) = &self.captures {
            let _ = captures.send(capture);
        }
    }
}

impl Drop for Shipper {
    /// Ends the thread. The connection is closed by then, so that it waits for nobody.
    fn drop(&mut self) {
        self.captures = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ship(
    encoder: &mut Encoder,
    pairing: &Arc<Pairing>,
    capture: &Capture,
    telemetry: &Telemetry,
) -> Result<(), String> {
    let (reuse, mut sink) = pairing.begin(capture.epoch).map_err(|e| e.to_string())?;
    let encoded = encoder.encode(capture, reuse, &mut sink).map_err(|e| e.to_string())?;
    telemetry.encoded(&encoded.stats);
    // A failure to send is the connection's, and known there; the checkpoint is owed all the same.
    pairing.keep(encoded.checkpoint).map_err(|e| e.to_string())
}
