//! One pairing as the primary's threads share it: the checkpoints that are captured and not yet acked, and the
//! connection that carries them.
//!
//! The keeper reserves a place before it captures. The shipper keeps the encoded checkpoints here. The executor removes
//! the acked ones and, when the backup is back over a new connection, sends the rest again. A dirty page is owed from
//! its capture until the ack (I4): first in the shipper's queue, then here. Nothing else forgets it.
//!
//! What each of them does to the checkpoints in flight, the flow learns here: it says how fast the guest may run.

use super::flow::{Flow, Service};
use crate::clock;
use crate::peer::{Bulk, Closed, PeerOutbox};
use ft_checkpoint::compare::KeptPages;
use ft_checkpoint::encoder::EncodedCheckpoint;
use ft_checkpoint::owed::{Owed, OwedError};
use ft_checkpoint::wire::handshake::Agreed;
use ft_checkpoint::wire::{FrameError, FrameType, SharedPayload, WireSink};
use parking_lot::Mutex;
use std::sync::Arc;

/// See the module.
pub struct Pairing {
    /// Its name.
    pub nonce: u64,
    /// The version in which the backup reads the machine's state.
    pub state_version: u16,
    /// What the backup tells of the memory that it kept, if it does.
    pub kept: Option<Arc<KeptPages>>,
    inner: Mutex<Inner>,
    depth_max: u64,
}

struct Inner {
    owed: Owed,
    outbox: Option<Arc<PeerOutbox>>,
    /// Captured, not yet given to `owed`.
    unencoded: u64,
    /// Bytes captured, as they are: until they are encoded they count beside what is owed.
    raw_bytes: usize,
    /// The epoch that is being encoded and streamed, if its frames went to the current outbox from the first on.
    streaming: Option<u64>,
    /// Changes of disks that went ahead of a checkpoint that is not begun: its epoch, and the frames' contents.
    ahead: (u64, Vec<SharedPayload>),
    /// Somebody was refused a place, or waits for acks.
    wanting: bool,
    flow: Flow,
}

impl Pairing {
    /// A new pairing over a connection, in the versions in which the two talk: at most `depth_max` checkpoints and
    /// about `bytes_max` bytes in flight, and less where the service asks for it.
    pub fn new(
        nonce: u64,
        outbox: Arc<PeerOutbox>,
        agreed: Agreed,
        depth_max: u64,
        bytes_max: usize,
        service: Service,
    ) -> Arc<Self> {
        let inner = Inner {
            owed: Owed::new(bytes_max),
            outbox: Some(outbox),
            unencoded: 0,
            raw_bytes: 0,
            streaming: None,
            ahead: (0, Vec::new()),
            wanting: false,
            flow: Flow::new(service, bytes_max as u64),
        };
        let tells = agreed.protocol >= FrameType::PageHashes.since();
        let kept = tells.then(|| Arc::new(KeptPages::of_pairing(nonce)));
        let inner = Mutex::new(inner);
        Arc::new(Self { nonce, state_version: agreed.state, kept, inner, depth_max })
    }

    /// Takes a place in the pipeline for one more checkpoint, if there is one.
    pub fn reserve(&self) -> bool {
        let mut inner = self.inner.lock();
        let room =
            inner.owed.in_flight() + inner.unencoded < self.depth_max && !inner.owed.is_full(inner.raw_bytes);
        inner.unencoded += u64::from(room);
        inner.wanting |= !room;
        room
    }

    /// A checkpoint or a log of a reserved place is captured, and has so many bytes. [`Self::keep`] takes them off.
    pub fn captured(&self, raw_bytes: usize) {
        self.inner.lock().raw_bytes += raw_bytes;
    }

    /// Looks at the flow, or tells it something. Who finds that the guest is to stand still waits for acks.
    pub fn with_flow<T>(&self, run: impl FnOnce(&mut Flow) -> T) -> T {
        run(&mut self.inner.lock().flow)
    }

    /// The next ack is waited for.
    pub fn want_ack(&self) {
        self.inner.lock().wanting = true;
    }

    /// Whether a connection carries it.
    pub fn is_linked(&self) -> bool {
        self.inner.lock().outbox.is_some()
    }

    /// Whether somebody waits for acks since this was last asked.
    pub fn was_wanting(&self) -> bool {
        std::mem::take(&mut self.inner.lock().wanting)
    }

    /// A change of a disk goes out ahead of the checkpoint of its epoch, the next that is begun, and is kept with it.
    pub fn ship_ahead(&self, epoch: u64, change: SharedPayload) {
        let outbox = {
            let mut inner = self.inner.lock();
            inner.ahead.0 = epoch;
            inner.ahead.1.push(Arc::clone(&change));
            inner.outbox.clone()
        };
        if let Some(outbox) = outbox {
            let bytes = change.len();
            // If that connection is gone or goes, it is sent again over the next one.
            let _ = outbox.ship(Bulk::Frame(FrameType::Disk, epoch, change), bytes);
        }
    }

    /// What belongs to no checkpoint goes out in order with what does, if a connection is there.
    pub fn ship_once(&self, kind: FrameType, epoch: u64, payload: SharedPayload) {
        let outbox = self.inner.lock().outbox.clone();
        if let Some(outbox) = outbox {
            let bytes = payload.len();
            let _ = outbox.ship(Bulk::Frame(kind, epoch, payload), bytes);
        }
    }

    /// Encoding of a reserved epoch begins: a buffer for it, and the sink for its frames.
    pub fn begin(self: &Arc<Self>, epoch: u64) -> Result<(EncodedCheckpoint, PairingSink), OwedError> {
        let mut inner = self.inner.lock();
        inner.owed.begin(epoch)?;
        inner.unencoded = inner.unencoded.saturating_sub(1);
        inner.streaming = Some(epoch);
        let outbox = inner.outbox.clone();
        let mut reuse = inner.owed.spare();
        reuse.ahead(std::mem::take(&mut inner.ahead.1));
        Ok((reuse, PairingSink { outbox }))
    }

    /// As [`Self::begin`], for an epoch that goes out as a whole when it is kept.
    pub fn begin_whole(&self, epoch: u64) -> Result<EncodedCheckpoint, OwedError> {
        let mut inner = self.inner.lock();
        inner.owed.begin(epoch)?;
        inner.unencoded = inner.unencoded.saturating_sub(1);
        Ok(inner.owed.spare())
    }

    /// A begun epoch, captured as `raw_bytes`, is encoded: it is kept until its ack. If the connection changed
    /// meanwhile, it goes out whole.
    pub fn keep(&self, checkpoint: EncodedCheckpoint, raw_bytes: usize) -> Result<(), OwedError> {
        let mut inner = self.inner.lock();
        inner.raw_bytes = inner.raw_bytes.saturating_sub(raw_bytes);
        let epoch = checkpoint.epoch();
        let ahead = checkpoint.ahead_bytes();
        inner.flow.encoded(epoch, raw_bytes as u64, (checkpoint.bytes() - ahead) as u64);
        inner.flow.ahead(epoch, ahead as u64);
        inner.owed.keep(checkpoint)?;
        if inner.streaming.take() != Some(epoch) {
            let inner = &*inner;
            send_again(inner.outbox.as_ref(), inner.owed.unacked_from(epoch));
        }
        Ok(())
    }

    /// The backup has sealed `epoch`. Returns how many checkpoints that commits.
    pub fn ack(&self, epoch: u64) -> Result<u64, OwedError> {
        let mut inner = self.inner.lock();
        let committed = inner.owed.ack(epoch)?;
        inner.flow.acked(clock::now_us(), epoch);
        Ok(committed)
    }

    /// The backup is back over another connection and holds `held`: what it lacks is sent again.
    pub fn resume(&self, held: u64, outbox: Arc<PeerOutbox>) -> Result<(), OwedError> {
        let mut inner = self.inner.lock();
        let lacking = inner.owed.resume(held)?;
        inner.flow.acked(clock::now_us(), held);
        inner.streaming = None;
        inner.outbox = Some(outbox);
        send_again(inner.outbox.as_ref(), lacking);
        let (epoch, changes) = &inner.ahead;
        for change in changes {
            // Bounded by the tap, as what is owed is by its bound.
            let piece = Bulk::Frame(FrameType::Disk, *epoch, Arc::clone(change));
            if inner.outbox.as_ref().is_none_or(|outbox| outbox.ship_now(piece).is_err()) {
                break;
            }
        }
        Ok(())
    }

    /// The connection is gone; what is owed stays.
    pub fn unlink(&self) {
        let mut inner = self.inner.lock();
        inner.outbox = None;
        inner.streaming = None;
    }

    /// The pairing is over: threads that wait for its connection stop waiting.
    pub fn close(&self) {
        let mut inner = self.inner.lock();
        inner.streaming = None;
        if let Some(outbox) = inner.outbox.take() {
            outbox.finish();
        }
    }

    /// Whether less than so much waits in front of the connection; a copy without one has failed, and need not wait.
    pub fn has_copy_room(&self, bytes_max: usize) -> bool {
        self.inner.lock().outbox.as_ref().is_none_or(|outbox| outbox.bulk_bytes() < bytes_max)
    }

    /// A sink for what is not kept: the full copy, which begins anew when it fails.
    pub fn copy_sink(&self) -> PairingSink {
        PairingSink { outbox: self.inner.lock().outbox.clone() }
    }
}

/// Queues whole checkpoints. They are kept, so a connection that closes meanwhile loses nothing.
fn send_again(outbox: Option<&Arc<PeerOutbox>>, checkpoints: Vec<Arc<EncodedCheckpoint>>) {
    let Some(outbox) = outbox else { return };
    for checkpoint in checkpoints {
        // Bounded by `owed`; the lock is held, so this must not wait for the peer.
        if outbox.ship_now(Bulk::Again(checkpoint)) == Err(Closed) {
            return;
        }
    }
}

/// Where the encoder's frames go: the outbox of the connection that was current when the sink was made.
pub struct PairingSink {
    outbox: Option<Arc<PeerOutbox>>,
}

impl WireSink for PairingSink {
    fn frame(&mut self, kind: FrameType, epoch: u64, payload: &[u8]) -> Result<(), FrameError> {
        self.shared(kind, epoch, &Arc::new(payload.to_vec()))
    }

    fn shared(&mut self, kind: FrameType, epoch: u64, payload: &SharedPayload) -> Result<(), FrameError> {
        let Some(outbox) = &self.outbox else { return Err(FrameError::Closed) };
        outbox
            .ship(Bulk::Frame(kind, epoch, Arc::clone(payload)), payload.len())
            .map_err(|Closed| FrameError::Closed)
    }

    fn flush(&mut self) -> Result<(), FrameError> {
        Ok(())
    }
}
