//! virtio-net: one receive and one transmit queue. The card tells its driver the MTU, and offers to leave checksums and
//! the cutting of TCP segments to whoever is better at it; its `header` says which frame has what left to do, and goes
//! with the frame wherever that goes. A frame that is longer than any card takes, shorter than an Ethernet header, or
//! whose header does not fit it, is dropped and counted, as on a real wire; so is one for which the guest's buffers are
//! too small, and they go back empty. Frames out go to the [`FrameSink`]; frames in come from a pump outside through
//! [`NetPort`].
//!
//! Where the VM lives on another host now, a driver that has said it can is asked to announce the guest's addresses, by
//! the status in the card's configuration; it answers through the control queue, which takes nothing else.
//!
//! A frame that the sink has no room for stays in the guest's queue, which is part of the machine's state, so it is
//! never lost: it is offered again by [`NetPort::resume_transmit`], and by `Devices::resume`.

mod header;

use super::Malformed;
use super::queue::{Chain, Ring};
use super::transport::{Backend, Shared};
use crate::devices::counters::{Counters, add};
use crate::devices::host::{Delivered, FrameSink, NET_HEADER_BYTES, Offloads, PACKET_BYTES_MAX, Transmit};
use crate::devices::inbox::Inbox;
use crate::spec::NetSpec;
use ft_ram::GuestMemory;
use header::{Header, Sends};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_ERR, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_OK, VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP,
};

const RX: usize = 0;
const TX: usize = 1;
const CONTROL: usize = 2;
const QUEUE_SIZE: u16 = 256;
const CONTROL_SIZE: u16 = 64;

/// mac, status, max_virtqueue_pairs, mtu (virtio 1.2 §5.1.4).
const CONFIG_BYTES: usize = 12;
const CONFIG_STATUS: std::ops::Range<usize> = 6..8;
const LINK_UP: u16 = VIRTIO_NET_S_LINK_UP as u16;
const ANNOUNCE: u16 = VIRTIO_NET_S_ANNOUNCE as u16;

pub(crate) struct Net {
    /// Which of the machine's cards it is.
    number: u8,
    config: [u8; CONFIG_BYTES],
    sink: Option<Arc<dyn FrameSink>>,
    counters: Arc<Counters>,
    /// What the driver leaves to do in frames that it sends, and what it takes.
    sends: Sends,
    takes: Offloads,
    /// A frame for the guest may lie in several of its buffers.
    spreads: bool,
    /// The driver announces its addresses when it is asked.
    announces: bool,
    chains: Vec<Chain>,
    packet: Vec<u8>,
    /// The machine is to stand still.
    quiesced: Arc<AtomicBool>,
}

impl Net {
    /// A card as specified. Without a sink its cable is unplugged: frames are taken and lost.
    pub(crate) fn new(
        number: u8,
        spec: &NetSpec,
        sink: Option<Arc<dyn FrameSink>>,
        counters: Arc<Counters>,
        quiesced: Arc<AtomicBool>,
    ) -> Self {
        let mut config = [0; CONFIG_BYTES];
        config[..6].copy_from_slice(&spec.mac);
        config[10..].copy_from_slice(&spec.mtu.to_le_bytes());
        let mut card = Self {
            number,
            config,
            sink,
            counters,
            sends: Sends::default(),
            takes: Offloads::default(),
            spreads: false,
            announces: false,
            chains: vec![Chain::default()],
            packet: Vec::with_capacity(PACKET_BYTES_MAX),
            quiesced,
        };
        card.set_config_status(LINK_UP);
        card.negotiated(0);
        card
    }

    /// Sends what is in the queue, until the sink is full or nothing is left, of which the driver is told. Another vCPU
    /// may fill the queue as fast as this empties it: what is there when the machine is to stand still stays, until
    /// `Devices::resume`.
    fn transmit(&mut self, rings: &mut [Ring], memory: &GuestMemory) -> Result<bool, Malformed> {
        let mut sent = false;
        while self.transmit_available(rings, memory, &mut sent)?
            && !self.quiesced.load(Ordering::Relaxed)
            && rings[TX].rearm(memory)?
        {}
        Ok(sent && rings[TX].wants_interrupt(memory)?)
    }

    /// Whether the sink took all that was available.
    fn transmit_available(
        &mut self,
        rings: &mut [Ring],
        memory: &GuestMemory,
        sent: &mut bool,
    ) -> Result<bool, Malformed> {
        let Self { number, sink, counters, sends, chains, packet, .. } = self;
        let (ring, chain) = (&mut rings[TX], &mut chains[0]);
        for _ in 0..ring.available(memory)? {
            if !ring.pop(memory, chain)? {
                break;
            }
            let bytes = chain.readable_bytes();
            if !chain.writable.is_empty() || bytes < NET_HEADER_BYTES as u64 {
                return Err(Malformed::Shape { head: chain.head });
            }
            let mut said = [0; NET_HEADER_BYTES];
            chain.read_at(memory, 0, &mut said)?;
            let header = if bytes <= PACKET_BYTES_MAX as u64 {
                packet.clear();
                chain.read_all(memory, packet)?;
                Header::read(&said).outgoing(packet.get(NET_HEADER_BYTES..).unwrap_or_default(), *sends)?
            } else {
                None
            };
            let Some(header) = header else {
                add(&counters.tx_dropped, 1);
                ring.complete(memory, chain, 0)?;
                *sent = true;
                continue;
            };
            packet[..NET_HEADER_BYTES].copy_from_slice(&header.bytes(0));
            if let Some(sink) = sink {
                if sink.transmit(*number, packet) == Transmit::Full {
                    ring.unpop();
                    add(&counters.tx_stalls, 1);
                    return Ok(false);
                }
                add(&counters.frames_out, 1);
                add(&counters.bytes_out, (packet.len() - NET_HEADER_BYTES) as u64);
            }
            ring.complete(memory, chain, 0)?;
            *sent = true;
        }
        Ok(true)
    }

    /// Puts one frame into the receive queue. Says whether to interrupt. For one that finds no buffer now, the driver
    /// is asked to notify of the next one if `asks`: that is written into the guest's memory. Else it leaves no trace
    /// there.
    fn receive(
        &mut self,
        packet: &[u8],
        asks: bool,
        rings: &mut [Ring],
        memory: &GuestMemory,
    ) -> Result<(Received, bool), Malformed> {
        let ring = &mut rings[RX];
        let fitting = packet
            .split_first_chunk()
            .and_then(|(header, frame)| Header::read(header).incoming(frame, self.takes));
        let Some(header) = fitting else {
            add(&self.counters.rx_dropped, 1);
            return Ok((Received::Unfit, false));
        };
        let taken = match self.take_buffers(packet.len(), asks, ring, memory)? {
            Buffers::Enough(taken) => taken,
            Buffers::None => return Ok((Received::NoBuffers, false)),
            Buffers::TooSmall(taken) => {
                add(&self.counters.rx_dropped, 1);
                let empty = self.chains[..taken].iter().map(|chain| (chain.head, 0));
                ring.complete_all(memory, empty)?;
                return Ok((Received::TooLong, ring.wants_interrupt(memory)?));
            }
        };
        let chains = &self.chains[..taken];
        let mut rest = packet;
        let mut given = Vec::with_capacity(taken);
        for chain in chains {
            let bytes = rest.len().min(usize::try_from(chain.writable_bytes()).unwrap_or(usize::MAX));
            let (now, later) = rest.split_at(bytes);
            chain.write_at(memory, 0, now)?;
            given.push((chain.head, bytes as u32));
            rest = later;
        }
        chains[0].write_at(memory, 0, &header.bytes(taken as u16))?;
        ring.complete_all(memory, given)?;
        add(&self.counters.frames_in, 1);
        add(&self.counters.bytes_in, (packet.len() - NET_HEADER_BYTES) as u64);
        Ok((Received::Whole, ring.wants_interrupt(memory)?))
    }

    /// Takes buffers for so many bytes from the ring. If there are too few now, it takes none; if they can never be
    /// enough, it takes those that are in the way.
    fn take_buffers(
        &mut self,
        bytes: usize,
        asks: bool,
        ring: &mut Ring,
        memory: &GuestMemory,
    ) -> Result<Buffers, Malformed> {
        let most = if self.spreads { QUEUE_SIZE } else { 1 };
        let (mut taken, mut room) = (0u16, 0u64);
        while room < bytes as u64 {
            if taken == most {
                return Ok(Buffers::TooSmall(taken.into()));
            }
            if self.chains.len() == usize::from(taken) {
                self.chains.push(Chain::default());
            }
            let chain = &mut self.chains[usize::from(taken)];
            if !ring.pop(memory, chain)? {
                if asks && ring.rearm(memory)? {
                    continue;
                }
                if taken == ring.entries() {
                    return Ok(Buffers::TooSmall(taken.into()));
                }
                ring.unpop_all(taken);
                return Ok(Buffers::None);
            }
            taken += 1;
            let writable = chain.writable_bytes();
            // The header lies in one buffer where a frame may lie in several (virtio 1.2 §5.1.6.3.1).
            if !chain.readable.is_empty() || self.spreads && writable < NET_HEADER_BYTES as u64 {
                return Err(Malformed::Shape { head: chain.head });
            }
            room += writable;
        }
        Ok(Buffers::Enough(usize::from(taken)))
    }
}

impl Net {
    /// Answers commands, as many as a driver that waits for each answer has at a time and some more.
    fn control(&mut self, rings: &mut [Ring], memory: &GuestMemory) -> Result<bool, Malformed> {
        let mut answered = false;
        for _ in 0..CONTROL_SIZE {
            for _ in 0..rings[CONTROL].available(memory)? {
                let chain = &mut self.chains[0];
                if !rings[CONTROL].pop(memory, chain)? {
                    break;
                }
                let mut command = [0; 2];
                if chain.readable_bytes() < command.len() as u64 || chain.writable_bytes() < 1 {
                    return Err(Malformed::Shape { head: chain.head });
                }
                chain.read_at(memory, 0, &mut command)?;
                let is_ack =
                    command.map(u32::from) == [VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK];
                let answer = if is_ack && self.announces { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
                chain.write_at(memory, 0, &[answer as u8])?;
                rings[CONTROL].complete(memory, chain, 1)?;
                answered = true;
                if answer == VIRTIO_NET_OK {
                    self.set_config_status(self.config_status() & !ANNOUNCE);
                }
            }
            if !rings[CONTROL].rearm(memory)? {
                break;
            }
        }
        Ok(answered && rings[CONTROL].wants_interrupt(memory)?)
    }
}

/// What the guest has for a frame.
enum Buffers {
    /// So many chains, which were taken.
    Enough(usize),
    /// Too few now.
    None,
    /// Never enough: so many, which were taken.
    TooSmall(usize),
}

/// What became of a frame for the guest.
enum Received {
    /// The guest has it.
    Whole,
    /// The guest has no buffer now.
    NoBuffers,
    /// It is lost, and its buffers, which are too small, went back empty: the next frame finds others.
    TooLong,
    /// It is lost: the driver takes no such frames.
    Unfit,
}

impl Backend for Net {
    const DEVICE_ID: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_NET;
    const QUEUES: &'static [u16] = &[QUEUE_SIZE, QUEUE_SIZE, CONTROL_SIZE];
    const NAME: &'static str = "net";
    const CONFIG_STATUS: u16 = LINK_UP | ANNOUNCE;

    fn features(&self) -> u64 {
        let others = [
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_MTU,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_CTRL_VQ,
            VIRTIO_NET_F_GUEST_ANNOUNCE,
        ];
        others.iter().fold(header::FEATURES, |features, bit| features | 1 << bit)
    }

    fn negotiated(&mut self, features: u64) {
        (self.sends, self.takes) = header::negotiated(features);
        self.spreads = features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        let announces =
            1 << VIRTIO_NET_F_STATUS | 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_GUEST_ANNOUNCE;
        self.announces = features & announces == announces;
        // The link is as it was, whatever the driver does.
        self.set_config_status(self.config_status() & LINK_UP);
        if let Some(sink) = &self.sink {
            sink.set_offloads(self.number, self.takes);
        }
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn config_status(&self) -> u16 {
        u16::from_le_bytes([self.config[CONFIG_STATUS.start], self.config[CONFIG_STATUS.start + 1]])
    }

    fn set_config_status(&mut self, status: u16) {
        self.config[CONFIG_STATUS].copy_from_slice(&status.to_le_bytes());
    }

    fn notify(&mut self, queue: usize, rings: &mut [Ring], memory: &GuestMemory) -> Result<bool, Malformed> {
        match queue {
            TX => self.transmit(rings, memory),
            CONTROL => self.control(rings, memory),
            // New receive buffers: whoever waits for them is woken by the transport.
            _ => Ok(false),
        }
    }
}

/// What became of a frame that was put into the receive queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// The guest can tell that it was there: it has it, or its buffers back, or its driver broke the rules and the
    /// device has stopped.
    Done,
    /// The guest has no receive buffer now, and can tell nothing.
    NoBuffers,
    /// It is lost, for want of a driver that takes it, and the guest can tell nothing.
    Lost,
}

impl Shared<Net> {
    /// Puts one frame into the receive queue, whoever else waits. Its caller offers a frame again that found no buffer,
    /// without being asked to: what it does not log must leave no trace in the guest.
    pub(crate) fn put(&self, packet: &[u8]) -> Put {
        let mut card = self.device.lock();
        if !card.running() || !card.registers.rings[RX].ready() {
            add(&card.around.counters.rx_dropped, 1);
            return Put::Lost;
        }
        let mut put = Put::Done;
        card.serve(RX, |net, rings, memory| {
            let (outcome, interrupt) = net.receive(packet, false, rings, memory)?;
            put = match outcome {
                Received::Whole | Received::TooLong => Put::Done,
                Received::NoBuffers => Put::NoBuffers,
                Received::Unfit => Put::Lost,
            };
            Ok(interrupt)
        });
        put
    }

    /// Asks the driver to announce the guest's addresses, if it does such things.
    pub(crate) fn announce(&self) {
        let mut card = self.device.lock();
        if card.running() && card.backend.announces {
            card.change_config(|status| status | ANNOUNCE);
        }
    }

    /// Has the card tell of a link, or of none.
    pub(crate) fn set_link(&self, up: bool) {
        let mut card = self.device.lock();
        let change = move |status: u16| if up { status | LINK_UP } else { status & !LINK_UP };
        if card.running() {
            card.change_config(change);
        } else {
            let status = card.backend.config_status();
            card.backend.set_config_status(change(status));
        }
    }

    /// Whether the card tells of a link.
    pub(crate) fn has_link(&self) -> bool {
        self.device.lock().backend.config_status() & LINK_UP != 0
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
    /// To where the engine takes inputs from when it wants, for the card of this number.
    Inbox(u8, Arc<Inbox>),
}

impl NetPort {
    /// Gives the guest one Ethernet frame (no FCS) behind its header of [`NET_HEADER_BYTES`]. Never blocks for long;
    /// touches nothing while the machine is paused.
    ///
    /// On a deterministic engine `Yes` says that the frame waits for the guest's driver, and is lost if there is none
    /// by then.
    pub fn deliver(&self, packet: &[u8]) -> Delivered {
        let (card, quiesced) = match &self.0 {
            Port::Card { card, quiesced } => (card, quiesced),
            Port::Inbox(number, inbox) => return inbox.put_frame(*number, packet),
        };
        let mut card = card.device.lock();
        if quiesced.load(Ordering::Relaxed) {
            return Delivered::Paused;
        }
        if !card.running() || !card.registers.rings[RX].ready() {
            add(&card.around.counters.rx_dropped, 1);
            return Delivered::NotReady;
        }
        let mut delivered = Delivered::NotReady;
        card.serve(RX, |net, rings, memory| {
            let (outcome, interrupt) = net.receive(packet, true, rings, memory)?;
            delivered = match outcome {
                Received::Whole => Delivered::Yes,
                Received::NoBuffers => Delivered::NoBuffers,
                Received::TooLong | Received::Unfit => Delivered::Unfit,
            };
            Ok(interrupt)
        });
        delivered
    }

    /// Waits until [`Self::deliver`] would not answer `NoBuffers` or `Paused`, or until the time is over; says which.
    pub fn wait_for_buffers(&self, limit: Duration) -> bool {
        let (card, quiesced) = match &self.0 {
            Port::Card { card, quiesced } => (card, quiesced),
            Port::Inbox(_, inbox) => return inbox.wait_for_room(limit),
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
            Port::Inbox(_, inbox) => inbox.ring(),
            Port::Card { card, quiesced } => {
                let mut card = card.device.lock();
                if !quiesced.load(Ordering::Relaxed) && card.running() {
                    card.serve(TX, |net, rings, memory| net.transmit(rings, memory));
                }
            }
        }
    }
}
