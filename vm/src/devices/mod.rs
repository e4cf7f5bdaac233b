//! The device model. `Devices` owns every device, dispatches port and memory-mapped accesses from the vCPU threads to
//! them, and captures and restores them all.

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
