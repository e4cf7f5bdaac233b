//! The virtio-mmio face (virtio 1.2 §4.2, version 2): a window of 32-bit registers, and an interrupt line.

use super::{Backend, Cause, Face, INT_CONFIG, INT_QUEUE, Virtio, set_high, set_low};
use crate::devices::counters::add;
use crate::devices::host::IrqChip;
use crate::devices::virtio::queue::Ring;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"ftd\0");
const CONFIG_SPACE: u64 = 0x100;

/// The interrupt line: high while the interrupt status is not zero.
pub(super) struct Line {
    gsi: u32,
}

impl Line {
    pub(super) fn new(gsi: u32) -> Self {
        Self { gsi }
    }

    pub(super) fn raise(&self, cause: Cause, status: &mut u32, chip: &dyn IrqChip) {
        let was = *status;
        *status |= match cause {
            Cause::Queue(_) => INT_QUEUE,
            Cause::Config => INT_CONFIG,
        };
        if was == 0 {
            chip.set_level(self.gsi, true);
        }
    }

    pub(super) fn acknowledge(&self, bits: u32, status: &mut u32, chip: &dyn IrqChip) {
        let was = *status;
        *status &= !bits;
        if *status == was {
            return;
        }
        chip.set_level(self.gsi, false);
        if *status != 0 {
            // An edge for a pin that is programmed as edge triggered: what is left would otherwise stay unseen.
            chip.set_level(self.gsi, true);
        }
    }

    /// Puts the line to where the interrupt status says it is.
    pub(super) fn drive(&self, status: u32, chip: &dyn IrqChip) {
        chip.set_level(self.gsi, status != 0);
    }
}

impl<B: Backend> Virtio<B> {
    pub(super) fn read_window(&self, offset: u64, data: &mut [u8]) {
        let answered = if let Some(offset) = offset.checked_sub(CONFIG_SPACE) {
            self.read_config(offset, data)
        } else if let Ok(data) = <&mut [u8; 4]>::try_from(&mut *data) {
            self.read_register(offset).map(|value| *data = value.to_le_bytes()).is_some()
        } else {
            false
        };
        if !answered {
            data.fill(0xff);
            add(&self.around.counters.unknown_io, 1);
        }
    }

    fn read_register(&self, offset: u64) -> Option<u32> {
        Some(match offset {
            0x000 => MAGIC,
            0x004 => VERSION,
            0x008 => B::DEVICE_ID,
            0x00c => VENDOR,
            0x010 => self.offered_features(),
            0x034 => self.selected().map_or(0, |ring| u32::from(ring.max_size())),
            0x044 => u32::from(self.selected().is_some_and(Ring::ready)),
            // Queue reset: not offered, so none is under way.
            0x0c0 => 0,
            0x060 => self.registers.interrupt_status,
            0x070 => self.registers.status,
            // Shared memory regions: none, which reads as a length and a base of all ones.
            0x0b0 | 0x0b4 | 0x0b8 | 0x0bc => u32::MAX,
            0x0fc => self.registers.config_generation,
            _ => return None,
        })
    }

    pub(super) fn write_window(&mut self, offset: u64, data: &[u8]) {
        let written = <[u8; 4]>::try_from(data)
            .ok()
            .filter(|_| offset < CONFIG_SPACE)
            .is_some_and(|data| self.write_register(offset, u32::from_le_bytes(data)));
        if !written {
            add(&self.around.counters.unknown_io, 1);
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) -> bool {
        match offset {
            0x014 => self.registers.device_features_select = value,
            0x020 => return self.take_features(value),
            0x024 => self.registers.driver_features_select = value,
            0x030 => self.registers.queue_select = value,
            0x038 => self.set_up_queue(|ring| ring.size = value),
            0x044 if value & 1 == 0 => self.disable_queue(),
            0x044 => self.enable_queue(),
            0x050 => self.notify(value),
            0x064 => {
                if let Face::Mmio(line) = &self.face {
                    line.acknowledge(value, &mut self.registers.interrupt_status, &*self.around.chip);
                }
            }
            0x070 => self.set_status(value),
            0x080 => self.set_up_queue(|ring| set_low(&mut ring.desc, value)),
            0x084 => self.set_up_queue(|ring| set_high(&mut ring.desc, value)),
            0x090 => self.set_up_queue(|ring| set_low(&mut ring.avail, value)),
            0x094 => self.set_up_queue(|ring| set_high(&mut ring.avail, value)),
            0x0a0 => self.set_up_queue(|ring| set_low(&mut ring.used, value)),
            0x0a4 => self.set_up_queue(|ring| set_high(&mut ring.used, value)),
            // Shared memory region select.
            0x0ac => {}
            _ => return false,
        }
        true
    }
}
