//! The I/O APIC (82093AA): 24 pins, each with an entry that says which interrupt message it sends.
//!
//! A level triggered pin sends once, then waits for the end of that interrupt (remote IRR); if its line is still high
//! then, it sends again. An edge on a masked pin is lost, as in the chip. The polarity bit is stored and means nothing:
//! a line that is set high is asserted. SMI, INIT and ExtINT entries send nothing that this machine would receive.

use super::ChipError;
use super::lapic::{Lapic, Message};
use serde::{Deserialize, Serialize};

pub(super) const PINS: usize = 24;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const REG_ID: u8 = 0;
const REG_VERSION: u8 = 1;
const REG_ARBITRATION: u8 = 2;
const REG_TABLE: u8 = 0x10;
const REG_TABLE_LAST: u8 = REG_TABLE + 2 * PINS as u8 - 1;
/// The number of the last pin, and a version without an EOI register.
const VERSION_VALUE: u32 = (PINS as u32 - 1) << 16 | 0x11;
const ID_BITS: u32 = 0x0f00_0000;

const LOGICAL: u64 = 1 << 11;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// All but delivery status, which is never seen busy, and remote IRR.
const WRITABLE: u64 = 0xff00_0000_0001_afff;

/// The I/O APIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct IoApic {
    select: u8,
    id: u32,
    table: [u64; PINS],
    /// Levels of the lines, a bit a pin.
    lines: u32,
}

impl IoApic {
    pub(super) fn new() -> IoApic {
        IoApic { select: 0, id: 0, table: [MASKED; PINS], lines: 0 }
    }

    pub(super) fn validate(&self) -> Result<(), ChipError> {
        let extra = self.table.iter().fold(0, |extra, entry| extra | entry & !(WRITABLE | REMOTE_IRR));
        ChipError::none_of("IOAPIC", "redirection table", extra, u64::MAX)?;
        ChipError::none_of("IOAPIC", "lines", self.lines.into(), !0 << PINS)?;
        ChipError::none_of("IOAPIC", "ID", self.id.into(), !u64::from(ID_BITS))
    }

    pub(super) fn read(&self, offset: u64) -> u32 {
        match (offset, self.select) {
            (SELECT, select) => select.into(),
            (WINDOW, REG_ID | REG_ARBITRATION) => self.id,
            (WINDOW, REG_VERSION) => VERSION_VALUE,
            (WINDOW, select @ REG_TABLE..=REG_TABLE_LAST) => {
                let (pin, shift) = entry(select);
                (self.table[pin] >> shift) as u32
            }
            _ => 0,
        }
    }

    pub(super) fn write(&mut self, offset: u64, value: u32, lapic: &mut Lapic) {
        match (offset, self.select) {
            (SELECT, _) => self.select = value as u8,
            (WINDOW, REG_ID) => self.id = value & ID_BITS,
            (WINDOW, select @ REG_TABLE..=REG_TABLE_LAST) => {
                let (pin, shift) = entry(select);
                let writable = WRITABLE & 0xffff_ffff << shift;
                self.table[pin] = self.table[pin] & !writable | u64::from(value) << shift & writable;
                // Making a pin edge triggered is how kernels clear the remote IRR without an EOI register.
                if self.table[pin] & LEVEL == 0 {
                    self.table[pin] &= !REMOTE_IRR;
                }
                self.send_level(pin, lapic);
            }
            _ => {}
        }
    }

    pub(super) fn set_line(&mut self, pin: usize, high: bool, lapic: &mut Lapic) {
        let rises = high && self.lines >> pin & 1 == 0;
        self.lines = self.lines & !(1 << pin) | u32::from(high) << pin;
        if self.table[pin] & LEVEL != 0 {
            self.send_level(pin, lapic);
        } else if rises && self.table[pin] & MASKED == 0 {
            self.send(pin, lapic);
        }
    }

    /// The local APIC ended a level triggered interrupt with this vector.
    pub(super) fn end(&mut self, vector: u8, lapic: &mut Lapic) {
        for pin in 0..PINS {
            if self.table[pin] & REMOTE_IRR != 0 && self.table[pin] as u8 == vector {
                self.table[pin] &= !REMOTE_IRR;
                self.send_level(pin, lapic);
            }
        }
    }

    fn send_level(&mut self, pin: usize, lapic: &mut Lapic) {
        let entry = self.table[pin];
        let high = self.lines >> pin & 1 != 0;
        if high && entry & LEVEL != 0 && entry & (MASKED | REMOTE_IRR) == 0 && self.send(pin, lapic) {
            self.table[pin] |= REMOTE_IRR;
        }
    }

    fn send(&self, pin: usize, lapic: &mut Lapic) -> bool {
        let entry = self.table[pin];
        lapic.receive(Message {
            destination: (entry >> 56) as u8,
            logical: entry & LOGICAL != 0,
            bits: entry as u32 & 0x7ff,
            level: entry & LEVEL != 0,
        })
    }
}

/// The pin of a table register, and the shift of its half.
fn entry(select: u8) -> (usize, u32) {
    let index = select - REG_TABLE;
    (usize::from(index / 2), u32::from(index % 2) * 32)
}
