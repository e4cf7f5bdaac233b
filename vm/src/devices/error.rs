//! Reasons why devices cannot be made, or refuse a captured state.

use super::virtio::block::flight::RequestState;
use crate::spec::{NETS_MAX, SECTOR_BYTES};
use ft_ram::layout::VIRTIO_DEVICES_MAX;

/// Why the devices could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// More virtio devices than there is room for.
    #[error("{0} virtio devices: at most {VIRTIO_DEVICES_MAX}")]
    TooMany(usize),
    /// More network cards than there is room for.
    #[error("{0} network cards: at most {NETS_MAX}")]
    TooManyCards(usize),
    /// The images do not match the specification.
    #[error("{images} disk images for {disks} disks")]
    DiskCount {
        /// Disks in the specification.
        disks: usize,
        /// Images given.
        images: usize,
    },
    /// An image that was opened for reading alone.
    #[error("disk {0} is writable, and its image was opened for reading only")]
    DiskReadOnly(usize),
    /// Its I/O cannot be done.
    #[error("disk {index}: {source}")]
    DiskEngine {
        /// Place in the specification.
        index: usize,
        /// Why.
        source: ft_disk::StoreError,
    },
    /// The specified size is not one that a disk can have.
    #[error("disk {index}: {bytes} bytes is not a positive multiple of {SECTOR_BYTES}")]
    DiskSectors {
        /// Place in the specification.
        index: usize,
        /// Size there.
        bytes: u64,
    },
    /// The image has another size than the specification says.
    #[error("disk {index}: the image has {image_bytes} bytes, the machine's specification says {spec_bytes}")]
    DiskSize {
        /// Place in the specification.
        index: usize,
        /// Size there.
        spec_bytes: u64,
        /// Size of the image.
        image_bytes: u64,
    },
}

/// Why a captured state is refused. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceStateError {
    /// The PCI bus or a function on it cannot be in this state.
    #[error("PCI: {0}")]
    Pci(String),
    /// The RTC cannot be in this state, or the engine has it.
    #[error("RTC: {0}")]
    Rtc(String),
    /// The watchdog has more left than it can be given.
    #[error("the watchdog has {left_ns} ns left, which is more than it counts")]
    Watchdog {
        /// In the state.
        left_ns: u64,
    },
    /// Another number of virtio devices.
    #[error("state of {state} virtio devices for a machine that has {machine}")]
    DeviceCount {
        /// In the state.
        state: usize,
        /// In the machine.
        machine: usize,
    },
    /// A virtio device's state is not one that it can be in.
    #[error("{device} (virtio device {index}): {why}")]
    Virtio {
        /// Type of the device.
        device: &'static str,
        /// Its place.
        index: usize,
        /// What is wrong.
        why: String,
    },
    /// A queue's state is not one that it can be in.
    #[error("queue: {0}")]
    Queue(String),
    /// Requests in flight, where the queue says another number.
    #[error("{requests} requests in flight for {taken} chains taken")]
    Requests {
        /// In the state.
        requests: usize,
        /// By the queue's position.
        taken: u16,
    },
    /// A request in flight that no disk like this takes.
    #[error("no request that can be in flight: {0:?}")]
    Request(RequestState),
    /// More received bytes than the UART holds.
    #[error("COM1: {bytes} bytes in the receive FIFO")]
    SerialFifo {
        /// In the state.
        bytes: usize,
    },
    /// Power-management registers with bits set that never are.
    #[error("power management status register {status:#x}, control register {control:#x}")]
    Power {
        /// In the state.
        status: u16,
        /// In the state.
        control: u16,
    },
    /// A guest time that no machine reaches.
    #[error("guest time of {guest_time_ns} ns")]
    GuestTime {
        /// In the state.
        guest_time_ns: u64,
    },
    /// Guest time is the engine's virtual time, and the state says two.
    #[error("guest time of {guest_time_ns} ns, and {virtual_ns} ns by the processor's count")]
    TwoTimes {
        /// In the devices' state.
        guest_time_ns: u64,
        /// By the engine's state.
        virtual_ns: u64,
    },
}
