//! The thread that encodes captures and streams them out while the guest already runs its next epoch.

use super::error::ShipError;
use super::news::KeeperNews;
use super::pairing::Pairing;
use crate::disks::Told;
use crate::observe::Telemetry;
use crate::outlet::Outlet;
use ft_checkpoint::arena::Capture;
use ft_checkpoint::encoder::Encoder;
use ft_checkpoint::wire::FrameType;
use ft_confine::ThreadKind;
use ft_ram::layout::PAGE_SIZE;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// An epoch of the log, cut and not yet encoded.
pub struct LogEpoch {
    /// Its number.
    pub epoch: u64,
    /// This node's clock before the cut.
    pub stamp_us: u64,
    /// The log.
    pub log: Vec<u8>,
}

/// What the shipper is given, in order.
pub(super) enum Shipment {
    /// A checkpoint.
    Checkpoint(Capture),
    /// An epoch of the log.
    Log(LogEpoch),
    /// A part of an epoch that goes ahead of its checkpoint: changes of disks.
    Ahead(Told),
}

impl Shipment {
    fn bytes(&self) -> usize {
        match self {
            Self::Checkpoint(capture) => capture.bytes(),
            Self::Log(log) => log.log.len(),
            Self::Ahead(_) => 0,
        }
    }
}

/// The way to the shipper, which is open before there is one.
pub(super) struct Dispatch {
    pub(super) work: Sender<Shipment>,
    pub(super) queue: Receiver<Shipment>,
}

impl Dispatch {
    pub(super) fn open() -> Self {
        let (work, queue) = channel();
        Self { work, queue }
    }
}

/// Pages for which the captures that wait to be used again have memory, at most; but a single one is always kept.
const SPARE_PAGES_MAX: usize = (64 << 20) / PAGE_SIZE;

/// The keeper's end of the shipper.
pub struct Shipper {
    work: Option<Sender<Shipment>>,
    returned: Receiver<Capture>,
    thread: Option<JoinHandle<()>>,
    spare: Vec<Capture>,
    pairing: Arc<Pairing>,
    pages_max: usize,
}

impl Shipper {
    /// Starts the thread. It owns the encoder, which has sent the full copy.
    pub fn start(
        encoder: Encoder,
        dispatch: Dispatch,
        pairing: Arc<Pairing>,
        pages_max: usize,
        news: Outlet<KeeperNews>,
        telemetry: Arc<Telemetry>,
    ) -> std::io::Result<Self> {
        let Dispatch { work: sender, queue } = dispatch;
        let (give_back, returned) = channel();
        let shipped_to = Arc::clone(&pairing);
        let thread = std::thread::Builder::new().name("ftd-ship".into()).spawn(move || {
            ft_confine::this_thread(ThreadKind::Checkpoint);
            let mut ahead = Ahead::default();
            let mut encoder = encoder;
            while let Ok(work) = queue.recv() {
                // A panic must not leave a guest waiting for the ack of what never goes out.
                let shipped = catch_unwind(AssertUnwindSafe(|| match work {
                    Shipment::Checkpoint(capture) => {
                        ship(&mut encoder, &pairing, &capture, &telemetry)?;
                        ahead.shipped(capture.epoch, &mut encoder, &pairing);
                        Ok(Some(capture))
                    }
                    Shipment::Log(log) => ship_log(&mut encoder, &pairing, &log).map(|()| None),
                    Shipment::Ahead(told) => {
                        ahead.ship(told, &mut encoder, &pairing);
                        Ok(None)
                    }
                }));
                match shipped.unwrap_or(Err(ShipError::Panicked)) {
                    Err(why) => {
                        // The daemon may be ending: then nobody misses it.
                        let _ = news.tell(KeeperNews::PairingBroken { pairing: pairing.nonce, why });
                        return;
                    }
                    Ok(Some(capture)) => {
                        if give_back.send(capture).is_err() {
                            return;
                        }
                    }
                    Ok(None) => {}
                }
            }
        })?;
        Ok(Self {
            work: Some(sender),
            returned,
            thread: Some(thread),
            spare: Vec::new(),
            pairing: shipped_to,
            pages_max,
        })
    }

    /// An empty capture, used before if there is one.
    pub fn empty_capture(&mut self) -> Capture {
        while let Ok(capture) = self.returned.try_recv() {
            let spare: usize = self.spare.iter().map(|spare| spare.arena.capacity()).sum();
            if spare == 0 || spare + capture.arena.capacity() <= SPARE_PAGES_MAX {
                self.spare.push(capture);
            }
        }
        let mut capture = self.spare.pop().unwrap_or_else(|| Capture::new(self.pages_max));
        capture.reset();
        capture
    }

    /// Hands a capture over. A shipper that has failed has said so itself.
    pub fn ship(&self, capture: Capture) {
        self.queue(Shipment::Checkpoint(capture));
    }

    /// Hands an epoch of the log over.
    pub fn ship_log(&self, log: LogEpoch) {
        self.queue(Shipment::Log(log));
    }

    fn queue(&self, work: Shipment) {
        if let Some(sender) = &self.work {
            self.pairing.captured(work.bytes());
            let _ = sender.send(work);
        }
    }
}

impl Drop for Shipper {
    /// Ends the thread. The connection is closed by then, so that it waits for nobody.
    fn drop(&mut self) {
        self.work = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Changes of disks. A guest that runs on before its checkpoint is handed over may be ahead of it: what it changes then
/// waits here for that.
#[derive(Default)]
struct Ahead {
    /// The newest epoch that was shipped.
    shipped: u64,
    early: VecDeque<Told>,
}

impl Ahead {
    fn ship(&mut self, told: Told, encoder: &mut Encoder, pairing: &Pairing) {
        if told.epoch > self.shipped + 1 {
            return self.early.push_back(told);
        }
        if told.kind != FrameType::Disk {
            // A question: who asked it does so again if it is lost.
            return pairing.ship_once(told.kind, told.epoch, told.payload);
        }
        encoder.change(&told.payload);
        pairing.ship_ahead(told.epoch, told.payload);
    }

    fn shipped(&mut self, epoch: u64, encoder: &mut Encoder, pairing: &Pairing) {
        self.shipped = epoch;
        for told in std::mem::take(&mut self.early) {
            self.ship(told, encoder, pairing);
        }
    }
}

fn ship(
    encoder: &mut Encoder,
    pairing: &Arc<Pairing>,
    capture: &Capture,
    telemetry: &Telemetry,
) -> Result<(), ShipError> {
    let (reuse, mut sink) = pairing.begin(capture.epoch)?;
    let encoded = encoder.encode(capture, reuse, &mut sink)?;
    telemetry.encoded(&encoded.stats);
    // A failure to send is the connection's, and known there; the checkpoint is owed all the same.
    Ok(pairing.keep(encoded.checkpoint, capture.bytes())?)
}

/// It goes out as one piece: there is nothing to overlap with.
fn ship_log(encoder: &mut Encoder, pairing: &Arc<Pairing>, log: &LogEpoch) -> Result<(), ShipError> {
    let reuse = pairing.begin_whole(log.epoch)?;
    let encoded = encoder.encode_log(log.epoch, &log.log, log.stamp_us, reuse)?;
    Ok(pairing.keep(encoded, log.log.len())?)
}
