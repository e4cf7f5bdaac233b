//! The driver's way to a device's registers. Tests name them as virtio-mmio has them; on PCI they are where the same
//! thing is.

use super::*;

/// A register of the common configuration: its offset and width there.
fn common(register: u64) -> Option<(u64, usize)> {
    Some(match register {
        0x10 => (0x04, 4),
        0x14 => (0x00, 4),
        0x20 => (0x0c, 4),
        0x24 => (0x08, 4),
        0x30 => (0x16, 2),
        0x34 | 0x38 => (0x18, 2),
        0x44 => (0x1c, 2),
        0x70 => (0x14, 1),
        0x80 | 0x84 => (register - 0x60, 4),
        0x90 | 0x94 => (register - 0x68, 4),
        0xa0 | 0xa4 => (register - 0x70, 4),
        _ => return None,
    })
}

impl Rig {
    /// The device of a window.
    pub(super) fn index(window: u64) -> usize {
        ((window - VIRTIO_MMIO_BASE) / VIRTIO_MMIO_SIZE) as usize
    }

    /// Where firmware places the BAR of a window's device.
    pub(super) fn bar(window: u64) -> u64 {
        PCI_WINDOW_BASE + Self::index(window) as u64 * 0x8000
    }

    /// Sets a configuration register of a window's device.
    pub(super) fn configure(&self, window: u64, register: u32, data: &[u8]) {
        self.select(Self::index(window) as u32 + 1, register);
        assert_eq!(self.devices.pio_write(0xcfc + (register & 3) as u16, data), None);
    }

    /// Selects a configuration register.
    pub(super) fn select(&self, device: u32, register: u32) {
        let address = 1 << 31 | device << 11 | register & 0xfc;
        assert_eq!(self.devices.pio_write(0xcf8, &address.to_le_bytes()), None);
    }

    /// The interrupt status, without its being acknowledged by that.
    fn interrupt_status(&self, window: u64) -> u32 {
        self.devices.capture().virtio[Self::index(window)].interrupt_status
    }

    pub(super) fn get(&self, address: u64) -> u32 {
        let mut data = [0; 4];
        let (window, register) = (address & !0xfff, address & 0xfff);
        let at = match (BUS.get(), register) {
            (BusKind::Mmio, _) => Some((address, 4)),
            (_, 0x60) => return self.interrupt_status(window),
            (_, 0x100..) => Some((Self::bar(window) + 0x2000 + register - 0x100, 4)),
            _ => common(register).map(|(offset, width)| (Self::bar(window) + offset, width)),
        };
        let (address, width) = at.expect("a register of both");
        self.devices.mmio_read(address, &mut data[..width]);
        u32::from_le_bytes(data)
    }

    pub(super) fn set(&self, address: u64, value: u32) {
        let data = value.to_le_bytes();
        let (window, register) = (address & !0xfff, address & 0xfff);
        let write = |address, data: &[u8]| assert_eq!(self.devices.mmio_write(address, data), None);
        match (BUS.get(), register) {
            (BusKind::Mmio, _) => write(address, &data),
            (_, 0x50) => write(Self::bar(window) + 0x3000 + 4 * u64::from(value), &data[..2]),
            // A read acknowledges all.
            (_, 0x64) => self.devices.mmio_read(Self::bar(window) + 0x1000, &mut [0]),
            _ => {
                let (offset, width) = common(register).expect("a register of both");
                write(Self::bar(window) + offset, &data[..width]);
            }
        }
    }

    /// An access as it is, to the window or, for what PCI has elsewhere, beyond the common configuration.
    pub(super) fn raw(&self, window: u64, offset: u64, data: &mut [u8], write: bool) {
        let both = data.len() == 4 && (common(offset).is_some() || matches!(offset, 0x50 | 0x64));
        let address = match BUS.get() {
            BusKind::Mmio => window + offset,
            BusKind::Pci if write && both => {
                return self.set(window + offset, u32::from_le_bytes(data.try_into().unwrap()));
            }
            BusKind::Pci => Self::bar(window) + 0x1000 + offset * 7,
        };
        match write {
            true => drop(self.devices.mmio_write(address, data)),
            false => self.devices.mmio_read(address, data),
        }
    }

    pub(super) fn status(&self, window: u64) -> u32 {
        self.get(window + 0x70)
    }

    pub(super) fn features(&self, window: u64) -> u64 {
        let half = |select| {
            self.set(window + 0x14, select);
            u64::from(self.get(window + 0x10))
        };
        half(0) | half(1) << 32
    }

    /// Resets a device and negotiates up to FEATURES_OK. On PCI it may reach memory from then on.
    pub(super) fn negotiate(&self, window: u64, features: u64) {
        if BUS.get() == BusKind::Pci {
            self.configure(window, 4, &6u16.to_le_bytes());
        }
        self.set(window + 0x70, 0);
        self.set(window + 0x70, ACKNOWLEDGE);
        self.set(window + 0x70, ACKNOWLEDGE | DRIVER);
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.set(window + 0x24, select);
            self.set(window + 0x20, half);
        }
        self.set(window + 0x70, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }
}
