//! Power-off and reset: the ACPI PM1a event and control blocks, the ACPI reset register, and the i8042's reset pulse.
//!
//! There is no SMI and no fixed button, so the status bits are always clear and the machine is always in ACPI mode
//! (SCI_EN reads as one). ACPI 6.5 §4.8.3.

use super::error::DeviceStateError;
use super::host::DeviceEvent;
use ft_ram::layout::{I8042_COMMAND_PORT, PM1A_CNT_PORT, PM1A_EVT_PORT, RESET_PORT, RESET_VALUE, SLP_TYP_S5};
use serde::{Deserialize, Serialize};

const PM1_EN_PORT: u16 = PM1A_EVT_PORT + 2;
const SCI_EN: u16 = 1 << 0;
const SLP_TYP_SHIFT: u16 = 10;
const SLP_TYP_MASK: u16 = 0b111 << SLP_TYP_SHIFT;
const SLP_EN: u16 = 1 << 13;
const I8042_PULSE_RESET: u8 = 0xfe;

/// The power registers that keep what was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerState {
    /// PM1 enable.
    pub enable: u16,
    /// PM1 control, without SLP_EN, which is write-only.
    pub control: u16,
}

#[derive(Default)]
pub(crate) struct Power {
    state: PowerState,
}

impl Power {
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
            PM1_EN_PORT..=PM1_EN_BLOCK_END => byte(self.state.enable, port - PM1_EN_PORT),
            PM1A_CNT_PORT..=PM1_CNT_BLOCK_END => byte(self.state.control | SCI_EN, port - PM1A_CNT_PORT),
            // PM1 status, the reset register, and the i8042's status: input buffer empty, nothing to read.
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
            PM1_EN_PORT..=PM1_EN_BLOCK_END => {
                self.state.enable = store(self.state.enable, port - PM1_EN_PORT);
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
    }

    pub(crate) fn capture(&self) -> PowerState {
        self.state
    }

    pub(crate) fn check(state: &PowerState) -> Result<(), DeviceStateError> {
        if state.control & SLP_EN != 0 {
            return Err(DeviceStateError::Power { control: state.control });
        }
        Ok(())
    }

    pub(crate) fn restore(&mut self, state: PowerState) {
        self.state = state;
    }
}

const PM1_EN_BLOCK_END: u16 = PM1_EN_PORT + 1;
const PM1_CNT_BLOCK_END: u16 = PM1A_CNT_PORT + 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_s5_with_slp_en_powers_off() {
        let mut power = Power::default();
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
        let mut power = Power::default();
        assert_eq!(power.write(RESET_PORT, 0), None);
        assert_eq!(power.write(RESET_PORT, RESET_VALUE), Some(DeviceEvent::Reset));
        assert_eq!(power.write(I8042_COMMAND_PORT, 0xad), None);
        assert_eq!(power.write(I8042_COMMAND_PORT, 0xfe), Some(DeviceEvent::Reset));
    }
}
