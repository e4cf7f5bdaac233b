//! virtio-net: one receive and one transmit queue, no offloads. The card tells its driver the MTU; a frame that is
//! longer than any card takes, or shorter than an Ethernet header, is dropped and counted, as on a real wire. Frames
//! out go to the [`FrameSink`]; frames in come from a pump outside through [`NetPort`].
//!
//! A frame that the sink has no room for stays in the guest's queue, which is part of the machine's state, so it is
//! never lost: it is offered again by [`NetPort::resume_transmit`], and by `Devices::resume`.

use super::Malformed;
use super::queue::{Chain, Ring};
use super::transport::{Backend, Shared};
use crate::devices::counters::{Counters, add};
use crate::devices::host::{Delivered, FRAME_BYTES_MAX, FrameSink, Transmit};
use crate::devices::inbox::Inbox;
use crate::spec::NetSpec;
use ft_ram::GuestMemory;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MTU, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE,
};

/// virtio_net_hdr with num_buffers, always there with VERSION_1 (virtio 1.2 §5.1.6).
const HEADER_BYTES: usize = 12;
/// Ethernet header without payload.
const FRAME_BYTES_MIN: usize = 14;
const RX: usize = 0;
const TX: usize = 1;

/// mac, status, max_virtqueue_pairs, mtu (virtio 1.2 §5.1.4).
const CONFIG_BYTES: usize = 12;

pub(crate) struct Net {
    config: [u8; CONFIG_BYTES],
    sink: Option<Arc<dyn FrameSink>>,
    counters: Arc<Counters>,
    chain: Chain,
    frame: Vec<u8>,
}

impl Net {
    /// A card as specified. Without a sink its cable is unplugged: frames are taken and lost.
    pub(crate) fn new(spec: &NetSpec, sink: Option<Arc<dyn FrameSink>>, counters: Arc<Counters>) -> Self {
        let frame = Vec::with_capacity(HEADER_BYTES + FRAME_BYTES_MAX);
        let mut config = [0; CONFIG_BYTES];
        config[..6].copy_from_slice(&spec.mac);
        config[10..].copy_from_slice(&spec.mtu.to_le_bytes());
        Self { config, sink, counters, chain: Chain::default(), frame }
    }

    fn transmit(&mut self, rings: &mut [Ring], memory: &GuestMemory) -> Result<bool, Malformed> {
        let Self { config: _, sink, counters, chain, frame } = self;
        let ring = &mut rings[TX];
        let mut sent = false;
        for _ in 0..ring.available(memory)? {
            if !ring.pop(memory, chain)? {
                break;
            }
            let bytes = chain.readable_bytes();
            let fits = (HEADER_BYTES + FRAME_BYTES_MIN) as u64..=(HEADER_BYTES + FRAME_BYTES_MAX) as u64;
            if !chain.writable.is_empty() || bytes < HEADER_BYTES as u64 {
                return Err(Malformed::Shape { head: chain.head });
            }
            if !fits.contains(&bytes) {
                add(&counters.tx_dropped, 1);
                ring.complete(memory, chain, 0)?;
                sent = true;
                continue;
            }
            frame.clear();
            chain.read_all(memory, frame)?;
            let (header, frame) = frame.split_at(HEADER_BYTES);
            // flags and gso_type: without negotiated offloads the frame must be complete as it is.
            if u32::from(header[0]) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0
                || u32::from(header[1]) != VIRTIO_NET_HDR_GSO_NONE
            {
                return Err(Malformed::Offload);
            }
            if let Some(sink) = sink {
                if sink.transmit(frame) == Transmit::Full {
                    ring.unpop();
                    add(&counters.tx_stalls, 1);
                    break;
                }
                add(&counters.frames_out, 1);
                add(&counters.bytes_out, frame.len() as u64);
            }
            ring.complete(memory, chain, 0)?;
            sent = true;
        }
        Ok(sent && ring.wants_interrupt(memory)?)
    }

    /// Puts one frame into the receive queue.
    fn receive(
        &mut self,
        frame: &[u8],
        rings: &mut [Ring],
        memory: &GuestMemory,
    ) -> Result<(Delivered, bool), Malformed> {
        let Self { config: _, sink: _, counters, chain, frame: _ } = self;
        let ring = &mut rings[RX];
        if !ring.pop(memory, chain)? {
            return Ok((Delivered::NoBuffers, false));
        }
        if !chain.readable.is_empty() {
            return Err(Malformed::Shape { head: chain.head });
        }
        let bytes = HEADER_BYTES + frame.len();
        if chain.writable_bytes() < bytes as u64 {
            ring.unpop();
            add(&counters.rx_dropped, 1);
            return Ok((Delivered::TooLong, false));
        }
        // No offloads, one buffer.
        let mut header = [0; HEADER_BYTES];
        header[10..].copy_from_slice(&1u16.to_le_bytes());
        chain.write_at(memory, 0, &header)?;
        chain.write_at(memory, HEADER_BYTES, frame)?;
        ring.complete(memory, chain, bytes as u32)?;
        add(&counters.frames_in, 1);
        add(&counters.bytes_in, frame.len() as u64);
        Ok((Delivered::Yes, ring.wants_interrupt(memory)?))
    }
}

impl Backend for Net {
    const DEVICE_ID: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_NET;
    const QUEUES: &'static [u16] = &[256, 256];
    const NAME: &'static str = "net";

    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_MTU
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn notify(&mut self, queue: usize, rings: &mut [Ring], memory: &GuestMemory) -> Result<bool, Malformed> {
        match queue {
            TX => self.transmit(rings, memory),
            // New receive buffers: whoever waits for them is woken by the transport.
            _ => Ok(false),
        }
    }
}

/// What became of a frame that was put into the receive queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// The guest can tell that it was there: it has it, or its driver broke the rules and the device has stopped.
    Done,
    /// The guest has no receive buffer now, and can tell nothing.
    NoBuffers,
    /// It is lost, for want of a driver or of a large enough buffer, and the guest can tell nothing.
    Lost,
}

impl Shared<Net> {
    /// Puts one frame into the receive queue, whoever else waits.
    pub(crate) fn put(&self, frame: &[u8]) -> Put {
        let mut card = self.device.lock();
        if !card.running() || !card.registers.rings[RX].ready() || frame.len() > FRAME_BYTES_MAX {
            add(&card.around.counters.rx_dropped, 1);
            return Put::Lost;
        }
        let mut put = Put::Done;
        card.serve(RX, |net, rings, memory| {
            let (outcome, interrupt) = net.receive(frame, rings, memory)?;
            put = match outcome {
                Delivered::NoBuffers => Put::NoBuffers,
                Delivered::TooLong => Put::Lost,
                _ => Put::Done,
            };
            Ok(interrupt)
        });
        put
    }

    /// Offers frames again that the sink had no room for.
    pub(crate) fn retry_transmit(&self) {
        let mut card = self.device.lock();
        if card.running() {
            card.serve(TX, |net, rings, memory| net.transmit(rings, memory));
        }
    }
}

/// The host's side of the network card, for other threads. Clones are the same card.
#[derive(Clone)]
pub struct NetPort(pub(crate) Port);

#[derive(Clone)]
pub(crate) enum Port {
    /// To the card itself.
    Card {
        card: Arc<Shared<Net>>,
        /// Checked under the card's lock.
        quiesced: Arc<AtomicBool>,
    },
    /// To where the engine takes inputs from when it wants.
    Inbox(Arc<Inbox>),
}

impl NetPort {
    /// Gives the guest one Ethernet frame (no FCS). Never blocks for long; touches nothing while the machine is paused.
    ///
    /// On a deterministic engine `Yes` says that the frame waits for the guest's driver, and is lost if there is none
    /// by then.
    pub fn deliver(&self, frame: &[u8]) -> Delivered {
        let (card, quiesced) = match &self.0 {
            Port::Card { card, quiesced } => (card, quiesced),
            Port::Inbox(inbox) => return inbox.put_frame(frame),
        };
        let mut card = card.device.lock();
        if quiesced.load(Ordering::Relaxed) {
            return Delivered::Paused;
        }
        if !card.running() || !card.registers.rings[RX].ready() {
            add(&card.around.counters.rx_dropped, 1);
            return Delivered::NotReady;
        }
        if frame.len() > FRAME_BYTES_MAX {
            add(&card.around.counters.rx_dropped, 1);
            return Delivered::TooLong;
        }
        let mut delivered = Delivered::NotReady;
        card.serve(RX, |net, rings, memory| {
            let (outcome, interrupt) = net.receive(frame, rings, memory)?;
            delivered = outcome;
            Ok(interrupt)
        });
        delivered
    }

    /// Waits until [`Self::deliver`] would not answer `NoBuffers` or `Paused`, or until the time is over; says which.
    pub fn wait_for_buffers(&self, limit: Duration) -> bool {
        let (card, quiesced) = match &self.0 {
            Port::Card { card, quiesced } => (card, quiesced),
            Port::Inbox(inbox) => return inbox.wait_for_room(limit),
        };
        let deadline = Instant::now() + limit;
        let Shared { device, changed } = &**card;
        let mut card = device.lock();
        loop {
            let paused = quiesced.load(Ordering::Relaxed);
            // A broken ring counts as one with buffers: delivering finds out and stops the device.
            let empty =
                card.running() && card.registers.rings[RX].available(card.around.ram.memory()) == Ok(0);
            if !paused && !empty {
                return true;
            }
            if changed.wait_until(&mut card, deadline).timed_out() {
                return false;
            }
        }
    }

    /// Offers the frames again that the sink had no room for. It calls [`FrameSink::transmit`], so not to be called
    /// from within that, nor with a lock held that the sink takes (on a deterministic engine it only has the engine's
    /// thread do so, soon). While the machine is paused this does nothing: resuming offers them again.
    pub fn resume_transmit(&self) {
        match &self.0 {
            Port::Inbox(inbox) => inbox.ring(),
            Port::Card { card, quiesced } => {
                let mut card = card.device.lock();
                if !quiesced.load(Ordering::Relaxed) && card.running() {
                    card.serve(TX, |net, rings, memory| net.transmit(rings, memory));
                }
            }
        }
    }
}
