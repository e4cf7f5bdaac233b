//! The border between devices and the host: the host's parts that devices are given, and the requests that devices
//! make.

use std::fs::File;
use std::sync::Arc;

/// The longest frame taken from the guest or given to it.
pub const FRAME_BYTES_MAX: usize = 9216;

/// Takes the frames that the guest transmits.
///
/// Called on a vCPU thread with the network device locked; must not block.
pub trait FrameSink: Send + Sync {
    /// Offers one Ethernet frame (no virtio header, no FCS).
    fn transmit(&self, frame: &[u8]) -> Transmit;
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

/// Raises and lowers interrupt lines of the in-kernel chips.
///
/// Synchronous: when it returns, the chip has it (KVM_IRQ_LINE, not irqfd), so that nothing is in flight when the
/// machine is captured.
pub trait IrqChip: Send + Sync {
    /// Sets the level of a line.
    fn set_level(&self, gsi: u32, high: bool);
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
}

/// Where devices get random bytes from.
pub(crate) trait Random: Send {
    /// Fills `bytes` from the front, and says how many it gave.
    fn fill(&mut self, bytes: &mut [u8]) -> usize;
}

/// The host's side of the devices.
pub struct Wiring {
    /// Takes the frames that the guest transmits; without it the card's cable is unplugged.
    pub frames: Option<Arc<dyn FrameSink>>,
    /// Takes the guest's console output.
    pub console: Box<dyn ConsoleSink>,
    /// The disks' images, one for each disk of the specification.
    pub disks: Vec<File>,
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
    /// Longer than the guest's receive buffer: the frame is lost, and counted.
    TooLong,
}
