//! The border between devices and the host: the host's parts that devices are given, and the requests that devices
//! make.

use super::pci::msix::Msi;
use ft_disk::{IoFault, Store};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// The longest frame on the wire that is taken from the guest or given to it.
pub const FRAME_BYTES_MAX: usize = 9216;
/// The longest segment that is to be cut into such frames: an IP packet of 64 KiB behind an Ethernet header with a VLAN
/// tag.
pub const SEGMENT_BYTES_MAX: usize = 18 + 65_535;
/// The header before every frame that goes in or out: `virtio_net_hdr` with the number of buffers (virtio 1.2 §5.1.6),
/// little-endian. All zero: the frame is complete.
pub const NET_HEADER_BYTES: usize = 12;
/// The longest frame or segment with its header.
pub const PACKET_BYTES_MAX: usize = NET_HEADER_BYTES + SEGMENT_BYTES_MAX;

/// A complete frame behind the header that says so.
#[must_use]
pub fn plain_packet(frame: &[u8]) -> Vec<u8> {
    [&[0; NET_HEADER_BYTES], frame].concat()
}

/// What the guest's driver does itself with frames for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// A checksum may be missing.
    pub checksum: bool,
    /// TCP over IPv4 need not be cut into frames.
    pub tso4: bool,
    /// TCP over IPv6 need not be.
    pub tso6: bool,
    /// Nor TCP that tells of congestion (ECN).
    pub ecn: bool,
}

/// Takes the frames that the guest transmits.
///
/// Called on a vCPU thread with the network device locked; must not block.
pub trait FrameSink: Send + Sync {
    /// Offers one Ethernet frame behind its header of [`NET_HEADER_BYTES`], without FCS, from the machine's card of
    /// this number. The header was checked: it fits the frame.
    fn transmit(&self, card: u8, packet: &[u8]) -> Transmit;

    /// What frames for this card may be like from now on; complete before this is called for the first time. Frames
    /// that its driver does not take are lost.
    fn set_offloads(&self, card: u8, offloads: Offloads);
}

/// What became of an offered frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Transmit {
    /// Taken: it will leave in order, or the VM will never have sent it.
    Taken,
    /// No room. The frame stays in the guest's queue; the sink's owner calls `NetPort::resume_transmit` when there is.
    Full,
}

/// Takes what the guest writes to its console. Must not block; may drop.
pub trait ConsoleSink: Send {
    /// Bytes as the guest wrote them.
    fn write(&mut self, bytes: &[u8]);
}

/// Raises and lowers interrupt lines of the interrupt chips, and sends them messages.
///
/// Synchronous: when it returns, the chip has it (KVM_IRQ_LINE and KVM_SIGNAL_MSI, not irqfd), so that nothing is in
/// flight when the machine is captured.
pub trait IrqChip: Send + Sync {
    /// Sets the level of a line.
    fn set_level(&self, gsi: u32, high: bool);

    /// Sends an interrupt message, which is one (its address is an interrupt controller's).
    fn signal(&self, message: Msi);
}

/// What a device asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceEvent {
    /// The guest powered the machine off.
    PoweredOff,
    /// The guest reset the machine.
    Reset,
    /// The guest gives the processor up for so many microseconds, or until a virtio device signals. Only where the
    /// engine keeps time: elsewhere the access itself blocks.
    Idle {
        /// At most so long.
        us: u64,
    },
    /// The guest's kernel has panicked. It goes on as it likes.
    Panicked {
        /// Another kernel writes its memory to a disk.
        dumps: bool,
    },
}

/// Where devices get random bytes from.
pub(crate) trait Random: Send {
    /// Fills `bytes` from the front, and says how many it gave.
    fn fill(&mut self, bytes: &mut [u8]) -> usize;
}

/// A disk on the host: its image, and how trouble with it is handled.
pub struct Disk {
    /// Does the I/O.
    pub store: Box<dyn Store>,
    /// What the guest sees of a request that the host cannot do.
    pub on_io_error: OnIoError,
    /// How long requests under way are waited for when the machine is to stop. The guest still runs meanwhile.
    pub drain_within: Duration,
    /// Told of each change, if anybody is.
    pub owner: Option<Arc<dyn DiskOwner>>,
}

/// How long requests under way are waited for unless it is said.
const DRAIN_WITHIN: Duration = Duration::from_micros(200);

impl Disk {
    /// A disk that reports errors to its guest, and whose changes are nobody else's business.
    pub fn new(store: impl Store + 'static) -> Self {
        Self {
            store: Box::new(store),
            on_io_error: OnIoError::default(),
            drain_within: DRAIN_WITHIN,
            owner: None,
        }
    }
}

/// What becomes of a request that the host cannot do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnIoError {
    /// The guest gets an I/O error.
    #[default]
    Report,
    /// The guest is told nothing: the request stays in flight until it is
    /// [tried again](super::DiskPort::try_again), here or where the machine goes on. The owner is told.
    Stop,
}

/// Who is told of what happens to a disk. Called with the disk locked, on a vCPU's thread or the disk's own; must not
/// block.
pub trait DiskOwner: Send + Sync {
    /// A change is about to be made, after all that were told before. In this order they are made wherever they touch
    /// the same sectors. If it is refused, it and all later ones wait. It is told again when the machine goes on, when
    /// the guest asks for something else, or when [`DiskPort::try_again`](super::DiskPort::try_again) is called.
    fn change(&self, change: &DiskChange<'_>) -> DiskAnswer;

    /// The guest has a change of these bytes back: it is made.
    fn shown(&self, bytes: &Range<u64>);

    /// The host could not do a request, which stays in flight ([`OnIoError::Stop`]).
    fn stopped(&self, fault: &IoFault);
}

/// A change to a disk. Offsets and lengths are bytes, multiples of a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskChange<'a> {
    /// Bytes are written.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: &'a [u8],
    },
    /// Bytes become zero.
    Zeroes {
        /// Where.
        offset: u64,
        /// How many.
        bytes: u64,
        /// Their space may be given back.
        unmap: bool,
    },
    /// What the guest has seen completed is to be durable.
    Flush,
}

/// What a disk's owner answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum DiskAnswer {
    /// The change may be made.
    Taken,
    /// Not now.
    Full,
}

/// The host's side of the devices.
pub struct Wiring {
    /// Takes the frames that the guest transmits; without it the card's cable is unplugged.
    pub frames: Option<Arc<dyn FrameSink>>,
    /// Takes the guest's console output.
    pub console: Box<dyn ConsoleSink>,
    /// One for each disk of the specification.
    pub disks: Vec<Disk>,
}

/// What became of a frame for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Delivered {
    /// The guest has it.
    Yes,
    /// The guest has no receive buffer now: try again after
    /// [`NetPort::wait_for_buffers`](super::NetPort::wait_for_buffers).
    NoBuffers,
    /// The machine is paused: try again after [`NetPort::wait_for_buffers`](super::NetPort::wait_for_buffers).
    Paused,
    /// The guest runs no driver: the frame is lost, as with any card.
    NotReady,
    /// Longer than the guest's receive buffer, which goes back empty, or not such as its driver takes: the frame is
    /// lost, and counted.
    Unfit,
}
