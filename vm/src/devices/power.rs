//! Power-off, reset and the power button: the ACPI PM1a event and control blocks, the ACPI reset register, and the
//! i8042's reset pulse.
//!
//! The power button is a fixed one (ACPI 6.5 §4.8.2.2.1): pressed, it sets a status bit, and while that and its enable
//! bit are set the SCI is high. Other status bits are always clear. There is no SMI, so the machine is always in ACPI
//! mode (SCI_EN reads as one; §4.8.3).

use super::error::DeviceStateError;
use super::host::{DeviceEvent, IrqChip};
use ft_ram::layout::{
    I8042_COMMAND_PORT, PM1A_CNT_PORT, PM1A_EVT_PORT, RESET_PORT, RESET_VALUE, SCI_GSI, SLP_TYP_S5,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const PM1_EN_PORT: u16 = PM1A_EVT_PORT + 2;
/// PWRBTN_STS, and PWRBTN_EN in the enable register.
const POWER_BUTTON: u16 = 1 << 8;
const SCI_EN: u16 = 1 << 0;
const SLP_TYP_SHIFT: u16 = 10;
const SLP_TYP_MASK: u16 = 0b111 << SLP_TYP_SHIFT;
const SLP_EN: u16 = 1 << 13;
const I8042_PULSE_RESET: u8 = 0xfe;

/// The power registers that keep what was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerState {
    /// PM1 status: the power button alone.
    pub status: u16,
    /// PM1 enable.
    pub enable: u16,
    /// PM1 control, without SLP_EN, which is write-only.
    pub control: u16,
}

pub(crate) struct Power {
    state: PowerState,
    irq: Arc<dyn IrqChip>,
}

impl Power {
    pub(crate) fn new(irq: Arc<dyn IrqChip>) -> Self {
        Self { state: PowerState::default(), irq }
    }

    /// The power button is pressed. It counts as pressed until the guest clears the status bit.
    pub(crate) fn press_button(&mut self) {
        self.state.status |= POWER_BUTTON;
        self.drive_line();
    }

    /// Whether the button was pressed, and the guest has not taken notice yet.
    pub(crate) fn is_pressed(&self) -> bool {
        self.state.status & POWER_BUTTON != 0
    }

    /// Puts the SCI to where status and enable bits say it is.
    pub(crate) fn drive_line(&self) {
        self.irq.set_level(SCI_GSI, self.state.status & self.state.enable != 0);
    }

    /// Whether the port is one of these registers'.
    pub(crate) fn owns(port: u16) -> bool {
        (PM1A_EVT_PORT..=PM1_EN_BLOCK_END).contains(&port)
            || (PM1A_CNT_PORT..=PM1_CNT_BLOCK_END).contains(&port)
            || matches!(port, RESET_PORT | I8042_COMMAND_PORT)
    }

    /// Reads one byte.
    pub(crate) fn read(&self, port: u16) -> u8 {
        let byte = |register: u16, offset: u16| register.to_le_bytes()[usize::from(offset & 1)];
        match port {
            PM1A_EVT_PORT..PM1_EN_PORT => byte(self.state.status, port - PM1A_EVT_PORT),
            PM1_EN_PORT..=PM1_EN_BLOCK_END => byte(self.state.enable, port - PM1_EN_PORT),
            PM1A_CNT_PORT..=PM1_CNT_BLOCK_END => byte(self.state.control | SCI_EN, port - PM1A_CNT_PORT),
            // The reset register, and the i8042's status: input buffer empty, nothing to read.
            _ => 0,
        }
    }

    /// Writes one byte.
    pub(crate) fn write(&mut self, port: u16, value: u8) -> Option<DeviceEvent> {
        let store = |register: u16, offset: u16| {
            let mut bytes = register.to_le_bytes();
            bytes[usize::from(offset & 1)] = value;
            u16::from_le_bytes(bytes)
        };
        match port {
            // Ones clear.
            PM1A_EVT_PORT..PM1_EN_PORT => {
                self.state.status &= !store(0, port - PM1A_EVT_PORT);
                self.drive_line();
            }
            PM1_EN_PORT..=PM1_EN_BLOCK_END => {
                self.state.enable = store(self.state.enable, port - PM1_EN_PORT);
                self.drive_line();
            }
            PM1A_CNT_PORT..=PM1_CNT_BLOCK_END => {
                let control = store(self.state.control, port - PM1A_CNT_PORT);
                self.state.control = control & !SLP_EN;
                let s5 = (control & SLP_TYP_MASK) >> SLP_TYP_SHIFT == u16::from(SLP_TYP_S5);
                if control & SLP_EN != 0 && s5 {
                    return Some(DeviceEvent::PoweredOff);
                }
            }
            RESET_PORT if value == RESET_VALUE => return Some(DeviceEvent::Reset),
            I8042_COMMAND_PORT if value == I8042_PULSE_RESET => return Some(DeviceEvent::Reset),
            _ => {}
        }
        None
    }

    pub(crate) fn reset(&mut self) {
        self.state = PowerState::default();
        self.drive_line();
    }

    pub(crate) fn capture(&self) -> PowerState {
        self.state
    }

    pub(crate) fn check(state: &PowerState) -> Result<(), DeviceStateError> {
        let &PowerState { status, enable: _, control } = state;
        if control & SLP_EN != 0 || status & !POWER_BUTTON != 0 {
            return Err(DeviceStateError::Power { status, control });
        }
        Ok(())
    }

    /// Leaves the interrupt line alone.
    pub(crate) fn restore(&mut self, state: PowerState) {
        self.state = state;
    }
}

const PM1_EN_BLOCK_END: u16 = PM1_EN_PORT + 1;
const PM1_CNT_BLOCK_END: u16 = PM1A_CNT_PORT + 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::Msi;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Default)]
    struct Line(AtomicBool);

    impl IrqChip for Line {
        fn set_level(&self, gsi: u32, high: bool) {
            assert_eq!(gsi, SCI_GSI);
            self.0.store(high, Ordering::Relaxed);
        }

        fn signal(&self, message: Msi) {
            panic!("{message:?}");
        }
    }

    #[test]
    fn a_pressed_button_interrupts_while_it_is_enabled_until_its_status_is_cleared() {
        let line = Arc::new(Line::default());
        let high = || line.0.load(Ordering::Relaxed);
        let mut power = Power::new(Arc::clone(&line) as Arc<dyn IrqChip>);
        power.press_button();
        assert!(power.is_pressed() && !high(), "the guest has not enabled it");
        power.write(PM1_EN_PORT + 1, 1);
        assert!(high());
        power.write(PM1A_EVT_PORT + 1, 0xfe);
        power.write(PM1A_EVT_PORT, 0xff);
        assert!(high() && power.read(PM1A_EVT_PORT + 1) == 1, "other bits do not clear it");
        let captured = power.capture();
        power.write(PM1A_EVT_PORT + 1, 1);
        assert!(!power.is_pressed() && !high() && power.read(PM1A_EVT_PORT + 1) == 0);
        power.restore(captured);
        assert!(power.is_pressed() && !high(), "a state that is taken over leaves the line alone");
        power.drive_line();
        assert!(high());
        power.reset();
        assert!(!power.is_pressed() && !high());
    }

    #[test]
    fn only_s5_with_slp_en_powers_off() {
        let mut power = Power::new(Arc::new(Line::default()));
        let s5 = u16::from(SLP_TYP_S5) << SLP_TYP_SHIFT;
        let mut write = |control: u16| {
            let [low, high] = control.to_le_bytes();
            power.write(PM1A_CNT_PORT, low).or(power.write(PM1A_CNT_PORT + 1, high))
        };
        assert_eq!(write(s5), None);
        assert_eq!(write(SLP_EN | (1 << SLP_TYP_SHIFT)), None);
        assert_eq!(write(SLP_EN | s5), Some(DeviceEvent::PoweredOff));
        assert_eq!(power.read(PM1A_CNT_PORT) & 1, 1, "the machine is in ACPI mode");
        assert_eq!(power.read(PM1A_CNT_PORT + 1) & (SLP_EN >> 8) as u8, 0, "SLP_EN reads as zero");
    }

    #[test]
    fn reset_register_and_keyboard_controller_reset_on_their_values_only() {
        let mut power = Power::new(Arc::new(Line::default()));
        assert_eq!(power.write(RESET_PORT, 0), None);
        assert_eq!(power.write(RESET_PORT, RESET_VALUE), Some(DeviceEvent::Reset));
        assert_eq!(power.write(I8042_COMMAND_PORT, 0xad), None);
        assert_eq!(power.write(I8042_COMMAND_PORT, 0xfe), Some(DeviceEvent::Reset));
    }
}
