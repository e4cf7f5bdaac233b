//! The pvpanic port, as QEMU specifies it: a guest's kernel says that it has panicked. The port keeps
//! nothing that a guest could see. What it said is told once: a guest that says it again and again is not heard again
//! before it resets.

use super::host::DeviceEvent;

/// The kernel has panicked, and does nothing more.
const PANICKED: u8 = 1 << 0;
/// It has panicked, and another kernel writes its memory to a disk (kdump).
const CRASH_LOADED: u8 = 1 << 1;

/// See the module.
#[derive(Default)]
pub(crate) struct Pvpanic {
    told: u8,
}

impl Pvpanic {
    /// The events that may be written.
    pub(crate) fn read() -> u8 {
        PANICKED | CRASH_LOADED
    }

    /// Writes the port.
    pub(crate) fn write(&mut self, value: u8) -> Option<DeviceEvent> {
        let news = value & Self::read() & !self.told;
        self.told |= news;
        (news != 0).then_some(DeviceEvent::Panicked { dumps: news & PANICKED == 0 })
    }

    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_is_told_once_a_boot_and_unknown_ones_never() {
        let mut port = Pvpanic::default();
        assert_eq!(Pvpanic::read(), 3);
        assert_eq!([0, 4, 0xfc].map(|value| port.write(value)), [None; 3]);
        assert_eq!(port.write(2), Some(DeviceEvent::Panicked { dumps: true }));
        assert_eq!(port.write(0xff), Some(DeviceEvent::Panicked { dumps: false }));
        assert_eq!((0..=u8::MAX).find_map(|value| port.write(value)), None, "a flood is not told");
        port.reset();
        assert_eq!(port.write(1), Some(DeviceEvent::Panicked { dumps: false }));
    }
}
