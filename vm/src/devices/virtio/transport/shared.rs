//! A virtio device with its lock, and what the buses and the capture need of it whatever its type.

use super::{Backend, Checked, Face, Virtio, VirtioState};
use crate::devices::error::DeviceStateError;
use crate::devices::pci::{Decoded, PciFunctionState};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;

/// A virtio device whatever its type, with its lock. `changed` tells who waits for the device that a driver's write
/// may have changed what they wait for.
pub(crate) struct Shared<B> {
    pub(crate) device: Mutex<Virtio<B>>,
    pub(crate) changed: Condvar,
}

impl<B: Backend> Shared<B> {
    pub(crate) fn new(device: Virtio<B>) -> Arc<Self> {
        Arc::new(Self { device: Mutex::new(device), changed: Condvar::new() })
    }
}

/// What the buses and the capture need of a virtio device.
pub(crate) trait Window: Send + Sync {
    /// Reads its registers: those of its window, or of its BAR.
    fn read(&self, offset: u64, data: &mut [u8]);
    fn write(&self, offset: u64, data: &[u8]);
    /// Reads its configuration space, within its bounds. Only on PCI.
    fn config_read(&self, at: usize, data: &mut [u8]);
    fn config_write(&self, at: usize, data: &[u8]);
    /// As after power-on.
    fn reset(&self);
    /// Returns when nobody is working on the device.
    fn settle(&self);
    /// Where its BAR is decoded, if it has one.
    fn decoded(&self) -> Option<Decoded>;
    fn capture(&self) -> VirtioState;
    /// What it is on PCI, if it is there.
    fn capture_function(&self) -> Option<PciFunctionState>;
    /// Checks a state, which is untrusted, without taking it over. Where the device is on PCI, its function is given.
    fn check(
        &self,
        state: &VirtioState,
        function: Option<&PciFunctionState>,
    ) -> Result<Checked, DeviceStateError>;
    /// Takes over what [`Self::check`] passed. Leaves the interrupt line alone.
    fn restore(&self, checked: Checked);
    /// Puts the interrupt line to where the device's state says it is.
    fn drive_line(&self);
}

impl<B: Backend> Window for Shared<B> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut device = self.device.lock();
        match device.face {
            Face::Mmio(_) => device.read_window(offset, data),
            Face::Pci(_) => device.read_bar(offset, data),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut device = self.device.lock();
        match device.face {
            Face::Mmio(_) => device.write_window(offset, data),
            Face::Pci(_) => device.write_bar(offset, data),
        }
        drop(device);
        self.changed.notify_all();
    }

    fn config_read(&self, at: usize, data: &mut [u8]) {
        self.device.lock().read_config_space(at, data);
    }

    fn config_write(&self, at: usize, data: &[u8]) {
        self.device.lock().write_config_space(at, data);
        self.changed.notify_all();
    }

    fn reset(&self) {
        let mut device = self.device.lock();
        device.reset();
        if let Face::Pci(function) = &mut device.face {
            function.reset_function();
        }
        drop(device);
        self.changed.notify_all();
    }

    fn settle(&self) {
        drop(self.device.lock());
    }

    fn decoded(&self) -> Option<Decoded> {
        match &self.device.lock().face {
            Face::Mmio(_) => None,
            Face::Pci(function) => Some(function.decoded()),
        }
    }

    fn capture(&self) -> VirtioState {
        self.device.lock().capture()
    }

    fn capture_function(&self) -> Option<PciFunctionState> {
        match &self.device.lock().face {
            Face::Mmio(_) => None,
            Face::Pci(function) => Some(function.capture()),
        }
    }

    fn check(
        &self,
        state: &VirtioState,
        function: Option<&PciFunctionState>,
    ) -> Result<Checked, DeviceStateError> {
        self.device.lock().check(state, function)
    }

    fn restore(&self, checked: Checked) {
        self.device.lock().restore(checked);
    }

    fn drive_line(&self) {
        let device = self.device.lock();
        match &device.face {
            Face::Mmio(line) => line.drive(device.registers.interrupt_status, &*device.around.chip),
            Face::Pci(function) => function.drive_line(),
        }
    }
}
