//! PCI, as far as virtio devices need it: bus 0 with a host bridge and one function a device, reached by configuration
//! mechanism #1; base addresses that the guest may move within one window; interrupts by MSI-X, or by shared lines.
//!
//! ```text
//!   ports 0xcf8, 0xcfc ──> Bus ─┬─> Header: identity, command, BAR, capabilities ─┐
//!   the window's addresses ─────┴─> BAR of a function ──> registers, Msix table   ├─> a virtio device
//!                                                 Msix ──> Msi ──> IrqChip <──────┤
//!                                                 Intx ──> GSI ──> IrqChip <──────┘
//! ```
//!
//! References: PCI Local Bus Specification 3.0, §3.2.2.3.2 (mechanism #1), §6.1 (header), §6.8.2 (MSI-X).

pub(crate) mod header;
pub(crate) mod intx;
pub(crate) mod msix;

use super::error::DeviceStateError;
use super::virtio::transport::Window;
use crate::spec::{BusKind, MachineSpec};
use ft_ram::layout::{
    PCI_CONFIG_PORT, PCI_GSI_BASE, PCI_LINES, PCI_WINDOW_BASE, PCI_WINDOW_SIZE, VIRTIO_DEVICES_MAX,
};
use header::{CONFIG_BYTES, Header, Identity};
use msix::MsixState;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a function's one BAR.
pub(crate) const BAR_BYTES: u32 = 0x8000;

const DATA_PORT: u16 = PCI_CONFIG_PORT + 4;
const ENABLE: u32 = 1 << 31;
/// Enable, bus, device, function, register.
const ADDRESS_BITS: u32 = ENABLE | 0x00ff_fffc;
/// Red Hat's generic host bridge, which no driver has a word to say about.
const HOST_BRIDGE: Identity =
    Identity { vendor: 0x1b36, device: 0x0008, class: 0x06_0000, subsystem: 0, interrupt_pin: 0 };

/// The function of one virtio device, as after power-on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioFunction {
    /// Its place among the machine's virtio devices.
    pub index: usize,
    /// Its device number on bus 0; its function number is 0.
    pub device: u8,
    /// Where firmware would place its BAR 0.
    pub bar: u32,
    /// The interrupt of its pin INTA#, which it may share.
    pub gsi: u32,
}

/// The functions of a machine's virtio devices, in the order of the devices; none where they are not on PCI.
pub fn functions(spec: &MachineSpec) -> impl Iterator<Item = VirtioFunction> + use<> {
    let count = match spec.bus {
        BusKind::Pci => spec.virtio_devices().min(VIRTIO_DEVICES_MAX),
        BusKind::Mmio => 0,
    };
    (0..count as u32).map(|index| VirtioFunction {
        index: index as usize,
        device: index as u8 + 1,
        bar: PCI_WINDOW_BASE as u32 + index * BAR_BYTES,
        gsi: PCI_GSI_BASE + index % PCI_LINES,
    })
}

/// All that the guest can set in its PCI devices, apart from what is virtio's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciState {
    /// The configuration address register.
    pub address: u32,
    /// The functions of the virtio devices, in the devices' order.
    pub functions: Vec<PciFunctionState>,
}

/// One function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciFunctionState {
    /// Command register.
    pub command: u16,
    /// BAR 0.
    pub bar: u32,
    /// Interrupt line register, which means nothing to the machine.
    pub interrupt_line: u8,
    /// What the virtio capability for access by configuration space is set to.
    pub access: PciAccess,
    /// Vectors and their masks.
    pub msix: MsixState,
    /// The vector for changes of configuration; 0xffff is none.
    pub config_vector: u16,
    /// The vector of each queue; 0xffff is none.
    pub queue_vectors: Vec<u16>,
}

/// A place that is reached by configuration space (virtio 1.2 §4.1.4.9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciAccess {
    /// Which BAR; there is only 0.
    pub bar: u8,
    /// Bytes from its start.
    pub offset: u32,
    /// Bytes: 1, 2 or 4 mean something.
    pub bytes: u32,
}

/// Where a function's BAR is decoded; 0 is nowhere. Written with the device locked, read by every vCPU.
pub(crate) type Decoded = Arc<AtomicU32>;

/// Where a BAR with this base is decoded: in the window as a whole, or nowhere.
pub(crate) fn decoded_at(bar: u32) -> u32 {
    let window = PCI_WINDOW_BASE..PCI_WINDOW_BASE + PCI_WINDOW_SIZE;
    let whole = window.contains(&u64::from(bar)) && u64::from(bar) + u64::from(BAR_BYTES) <= window.end;
    if whole { bar } else { 0 }
}

/// The bus.
pub(crate) struct Bus {
    address: AtomicU32,
    host_bridge: Header,
    decoded: Vec<Decoded>,
}

impl Bus {
    /// With functions that are decoded there, in the order of the devices.
    pub(crate) fn new(decoded: Vec<Decoded>) -> Self {
        Self { address: AtomicU32::new(0), host_bridge: Header::new(HOST_BRIDGE), decoded }
    }

    pub(crate) fn owns(port: u16) -> bool {
        (PCI_CONFIG_PORT..DATA_PORT + 4).contains(&port)
    }

    /// An `in` that begins at a port of the bus's. What is not there reads as all ones.
    pub(crate) fn pio_read(&self, port: u16, data: &mut [u8], functions: &[Arc<dyn Window>]) {
        data.fill(0xff);
        let address = self.address.load(Ordering::Relaxed);
        if port == PCI_CONFIG_PORT && data.len() == 4 {
            data.copy_from_slice(&address.to_le_bytes());
        } else if let Some((device, registers)) = Self::target(address, port, data.len()) {
            let data = &mut data[..registers.len()];
            match device.checked_sub(1) {
                None => data.copy_from_slice(&self.host_bridge.bytes()[registers]),
                Some(index) => {
                    if let Some(function) = functions.get(index) {
                        function.config_read(registers.start, data);
                    }
                }
            }
        }
    }

    /// An `out` that begins at a port of the bus's.
    pub(crate) fn pio_write(&self, port: u16, data: &[u8], functions: &[Arc<dyn Window>]) {
        if let (PCI_CONFIG_PORT, Ok(address)) = (port, <[u8; 4]>::try_from(data)) {
            self.address.store(u32::from_le_bytes(address) & ADDRESS_BITS, Ordering::Relaxed);
        } else if let Some((device, registers)) =
            Self::target(self.address.load(Ordering::Relaxed), port, data.len())
            && let Some(function) = device.checked_sub(1).and_then(|index| functions.get(index))
        {
            function.config_write(registers.start, &data[..registers.len()]);
        }
    }

    /// The device on bus 0, and the bytes of its configuration space, that an access to the data port is for.
    fn target(address: u32, port: u16, bytes: usize) -> Option<(usize, Range<usize>)> {
        let within = usize::from(port.checked_sub(DATA_PORT)?);
        // Enabled, bus 0, function 0.
        if address & (ENABLE | 0xff << 16 | 7 << 8) != ENABLE {
            return None;
        }
        let register = (address & 0xfc) as usize + within;
        Some(((address >> 11 & 0x1f) as usize, register..register + bytes.min(4 - within)))
    }

    /// The device whose BAR this address is in, and the offset there. Where BARs overlap, the first device has it.
    pub(crate) fn place(&self, addr: u64) -> Option<(usize, u64)> {
        let addr = u32::try_from(addr).ok()?;
        self.decoded.iter().enumerate().find_map(|(index, decoded)| {
            let base = decoded.load(Ordering::Acquire);
            let offset = addr.checked_sub(base).filter(|&offset| base != 0 && offset < BAR_BYTES)?;
            Some((index, offset.into()))
        })
    }

    pub(crate) fn reset(&self) {
        self.address.store(0, Ordering::Relaxed);
    }

    pub(crate) fn address(&self) -> u32 {
        self.address.load(Ordering::Relaxed)
    }

    pub(crate) fn check(address: u32) -> Result<(), DeviceStateError> {
        match address & !ADDRESS_BITS {
            0 => Ok(()),
            _ => Err(DeviceStateError::Pci(format!("configuration address {address:#x}"))),
        }
    }

    /// Takes over what [`Self::check`] passed.
    pub(crate) fn restore(&self, address: u32) {
        self.address.store(address, Ordering::Relaxed);
    }
}

const _: () =
    assert!(VIRTIO_DEVICES_MAX < 32 && VIRTIO_DEVICES_MAX as u64 * BAR_BYTES as u64 <= PCI_WINDOW_SIZE);
const _: () = assert!(CONFIG_BYTES == 256);
