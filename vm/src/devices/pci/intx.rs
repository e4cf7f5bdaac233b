//! Lines INTA# of the functions, wired to a few interrupts that they share: an interrupt is high while a function that
//! is wired to it asserts its line.

use crate::devices::host::IrqChip;
use ft_ram::layout::{PCI_GSI_BASE, PCI_LINES};
use parking_lot::Mutex;
use std::sync::Arc;

/// All lines.
pub(crate) struct Intx {
    chip: Arc<dyn IrqChip>,
    /// Of each interrupt, who asserts it: a bit a device.
    asserted: Mutex<[u32; PCI_LINES as usize]>,
}

impl Intx {
    pub(crate) fn new(chip: Arc<dyn IrqChip>) -> Self {
        Self { chip, asserted: Mutex::default() }
    }

    /// The line of this device changes, or stays.
    pub(crate) fn set(&self, gsi: u32, index: usize, high: bool) {
        let mut asserted = self.asserted.lock();
        let line = &mut asserted[(gsi - PCI_GSI_BASE) as usize];
        let was = *line;
        *line = was & !(1 << index) | u32::from(high) << index;
        if (*line != 0) != (was != 0) {
            self.chip.set_level(gsi, high);
        }
    }

    /// The same without a word to the chips, which know.
    pub(crate) fn note(&self, gsi: u32, index: usize, high: bool) {
        let line = &mut self.asserted.lock()[(gsi - PCI_GSI_BASE) as usize];
        *line = *line & !(1 << index) | u32::from(high) << index;
    }

    /// Puts the interrupt to where its lines say that it is.
    pub(crate) fn drive(&self, gsi: u32) {
        let asserted = self.asserted.lock();
        self.chip.set_level(gsi, asserted[(gsi - PCI_GSI_BASE) as usize] != 0);
    }
}
