//! virtio 1.2 over virtio-mmio or PCI: the transport, its queues, and the devices behind it. Everything that the driver
//! writes, in registers and in rings, counts as hostile: a breach of the rules stops the device until its driver resets
//! it.

pub(crate) mod block;
pub(crate) mod net;
pub(crate) mod queue;
pub(crate) mod rng;
pub(crate) mod transport;

use crate::spec::{BusKind, MachineSpec};
use ft_ram::layout::{
    RTC_GSI, SCI_GSI, VIRTIO_DEVICES_MAX, VIRTIO_GSI_BASE, VIRTIO_MMIO_BASE, VIRTIO_MMIO_SIZE,
};

/// Where one virtio-mmio device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioWindow {
    /// Its place among the machine's virtio devices.
    pub index: usize,
    /// Guest-physical address of its registers, [`VIRTIO_MMIO_SIZE`] bytes.
    pub base: u64,
    /// Its interrupt.
    pub gsi: u32,
}

/// The windows of a machine's virtio devices: the network card, the disks in order, the rng; none where they are on
/// another bus.
pub fn windows(spec: &MachineSpec) -> impl Iterator<Item = VirtioWindow> + use<> {
    let count = match spec.bus {
        BusKind::Mmio => spec.virtio_devices().min(VIRTIO_DEVICES_MAX),
        BusKind::Pci => 0,
    };
    (0..count).map(|index| VirtioWindow {
        index,
        base: VIRTIO_MMIO_BASE + index as u64 * VIRTIO_MMIO_SIZE,
        gsi: mmio_gsi(index),
    })
}

/// The interrupt of a device by its place: in order, around the RTC's and ACPI's. Each is level-triggered and driven by
/// one device alone.
fn mmio_gsi(index: usize) -> u32 {
    let gsi = VIRTIO_GSI_BASE + index as u32;
    if gsi < RTC_GSI { gsi } else { gsi - RTC_GSI + SCI_GSI + 1 }
}

/// What a driver did wrong. Its device is stopped until it is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("queue of {0} entries")]
    QueueSize(u32),
    #[error("queue parts at {desc:#x}, {avail:#x}, {used:#x}: misaligned or not in RAM")]
    QueueAddress { desc: u64, avail: u64, used: u64 },
    #[error("available index jumps by {0}")]
    AvailIndex(u16),
    #[error("ring in memory that cannot be accessed")]
    Ring,
    #[error("chain {head}: descriptors that loop, lead nowhere, or number more than the queue's size")]
    Chain { head: u16 },
    #[error("chain {head}: buffer of {bytes} bytes at {address:#x}: not in RAM")]
    Buffer { head: u16, address: u64, bytes: u32 },
    #[error("chain {head}: a buffer to read after one to write")]
    Order { head: u16 },
    #[error("chain {head}: wrong number or size of buffers for this device")]
    Shape { head: u16 },
    #[error("chain {head}: given to the device twice")]
    Twice { head: u16 },
    #[error("chain {head}: changed while the device had it")]
    Changed { head: u16 },
    #[error("frame asks for offloads that were not negotiated")]
    Offload,
    #[error("status {from:#x} to {to:#x}")]
    Status { from: u32, to: u32 },
}

#[cfg(test)]
mod tests {
    use super::*;
    use ft_ram::layout::COM1_GSI;

    #[test]
    fn each_device_on_mmio_has_a_pin_of_the_ioapic_for_itself() {
        let gsis: Vec<_> = (0..VIRTIO_DEVICES_MAX).map(mmio_gsi).collect();
        assert!(gsis.is_sorted_by(|a, b| a < b) && gsis.iter().all(|gsi| *gsi < 24), "{gsis:?}");
        assert!([COM1_GSI, RTC_GSI, SCI_GSI].iter().all(|taken| !gsis.contains(taken)), "{gsis:?}");
    }
}
