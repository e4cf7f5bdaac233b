//! The two 8259A interrupt controllers: the slave's output is the master's input 2.
//!
//! As in the PIIX: trigger modes come from the ELCR, not from ICW1, and an edge stays latched when its line falls, so
//! that a short pulse is an interrupt. Left out, as KVM's users do without them: the poll command, the special fully
//! nested mode (an interrupt of the slave in service holds back the slave's others until its end), MCS-80 vectors.

use super::ChipError;
use serde::{Deserialize, Serialize};

/// Inputs that can be level triggered: not the timer, keyboard and cascade, and not the clock and coprocessor.
const ELCR_BITS: [u8; 2] = [0xf8, 0xde];
const CASCADE: u8 = 2;
const SPURIOUS: u8 = 7;

/// Which initialisation word the data port expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Expects {
    Mask,
    Icw2,
    Icw3,
    Icw4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Chip {
    irr: u8,
    isr: u8,
    imr: u8,
    /// Levels of the inputs.
    lines: u8,
    /// Inputs that are level triggered.
    elcr: u8,
    vector_base: u8,
    expects: Expects,
    /// ICW1 said: no ICW3, an ICW4.
    single: bool,
    needs_icw4: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    /// The input with the highest priority.
    first: u8,
    special_mask: bool,
    /// A read of the command port shows the ISR rather than the IRR.
    reads_isr: bool,
}

impl Chip {
    fn new() -> Chip {
        Chip {
            irr: 0,
            isr: 0,
            imr: 0,
            lines: 0,
            elcr: 0,
            vector_base: 0,
            expects: Expects::Mask,
            single: false,
            needs_icw4: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            first: 0,
            special_mask: false,
            reads_isr: false,
        }
    }

    fn set_line(&mut self, input: u8, high: bool) {
        let bit = 1 << input;
        if high && (self.elcr | !self.lines) & bit != 0 {
            self.irr |= bit;
        }
        if !high && self.elcr & bit != 0 {
            self.irr &= !bit;
        }
        self.lines = if high { self.lines | bit } else { self.lines & !bit };
    }

    /// The distance of the best of some inputs from the first in priority; 8 if there is none.
    fn priority(&self, inputs: u8) -> u32 {
        inputs.rotate_right(self.first.into()).trailing_zeros()
    }

    fn input(&self, priority: u32) -> u8 {
        (u32::from(self.first) + priority) as u8 & 7
    }

    /// The input that the chip interrupts for.
    fn request(&self) -> Option<u8> {
        let wanted = self.priority(self.irr & !self.imr);
        // With the special mask, what is in service holds back only while it is not masked.
        let held = self.priority(if self.special_mask { self.isr & !self.imr } else { self.isr });
        (wanted < held).then(|| self.input(wanted))
    }

    /// The acknowledge cycle: the input, which is the last when nothing wants the interrupt any more.
    fn acknowledge(&mut self) -> u8 {
        let Some(input) = self.request() else { return SPURIOUS };
        let bit = 1 << input;
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.first = (input + 1) & 7;
        }
        input
    }

    fn vector(&self, input: u8) -> u8 {
        self.vector_base | input
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            // ICW1. Levels stay what they are; an edge must come anew.
            let kept = Chip { lines: self.lines, elcr: self.elcr, ..Chip::new() };
            *self = Chip {
                irr: self.irr & self.elcr,
                vector_base: self.vector_base,
                expects: Expects::Icw2,
                single: value & 2 != 0,
                needs_icw4: value & 1 != 0,
                ..kept
            };
        } else if value & 8 != 0 {
            // OCW3.
            if value & 2 != 0 {
                self.reads_isr = value & 1 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
        } else {
            self.write_ocw2(value);
        }
    }

    fn write_ocw2(&mut self, value: u8) {
        let named = value & 7;
        let best = self.priority(self.isr);
        match value >> 5 {
            0 | 4 => self.rotate_on_auto_eoi = value >> 5 == 4,
            // The end of the best in service, without and with rotation.
            rotate @ (1 | 5) if best < 8 => {
                let input = self.input(best);
                self.isr &= !(1 << input);
                if rotate == 5 {
                    self.first = (input + 1) & 7;
                }
            }
            3 => self.isr &= !(1 << named),
            6 => self.first = (named + 1) & 7,
            7 => {
                self.isr &= !(1 << named);
                self.first = (named + 1) & 7;
            }
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        let icw4 = if self.needs_icw4 { Expects::Icw4 } else { Expects::Mask };
        match self.expects {
            Expects::Mask => self.imr = value,
            Expects::Icw2 => {
                self.vector_base = value & 0xf8;
                self.expects = if self.single { icw4 } else { Expects::Icw3 };
            }
            // The cascade is wired.
            Expects::Icw3 => self.expects = icw4,
            Expects::Icw4 => {
                self.auto_eoi = value & 2 != 0;
                self.expects = Expects::Mask;
            }
        }
    }
}

/// Both controllers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pic {
    master: Chip,
    slave: Chip,
}

impl Pic {
    pub(super) fn new() -> Pic {
        Pic { master: Chip::new(), slave: Chip::new() }
    }

    pub(super) fn validate(&self) -> Result<(), ChipError> {
        for (chip, bits) in [&self.master, &self.slave].into_iter().zip(ELCR_BITS) {
            ChipError::none_of("PIC", "ELCR", chip.elcr.into(), !u64::from(bits))?;
            ChipError::none_of("PIC", "vector base", chip.vector_base.into(), 7)?;
            ChipError::none_of("PIC", "priority", chip.first.into(), !7)?;
        }
        Ok(())
    }

    pub(super) fn set_line(&mut self, irq: u8, high: bool) {
        match irq {
            CASCADE => {}
            0..8 => self.master.set_line(irq, high),
            _ => self.slave.set_line(irq & 7, high),
        }
        self.cascade();
    }

    /// The cascade input follows the slave's output, not only its edges.
    fn cascade(&mut self) {
        let bit = 1 << CASCADE;
        let high = self.slave.request().is_some();
        self.master.irr = if high { self.master.irr | bit } else { self.master.irr & !bit };
    }

    /// The line to the processor.
    pub(super) fn output(&self) -> bool {
        self.master.request().is_some()
    }

    /// The acknowledge cycle: a vector, spurious when the request is gone.
    pub(super) fn acknowledge(&mut self) -> u8 {
        let input = self.master.acknowledge();
        if input != CASCADE {
            return self.master.vector(input);
        }
        let input = self.slave.acknowledge();
        self.cascade();
        self.slave.vector(input)
    }

    pub(super) fn read(&self, port: u16) -> u8 {
        match port {
            0x20 | 0xa0 => {
                let chip = if port == 0x20 { &self.master } else { &self.slave };
                if chip.reads_isr { chip.isr } else { chip.irr }
            }
            0x21 => self.master.imr,
            0xa1 => self.slave.imr,
            0x4d0 => self.master.elcr,
            _ => self.slave.elcr,
        }
    }

    pub(super) fn write(&mut self, port: u16, value: u8) {
        match port {
            0x20 => self.master.write_command(value),
            0x21 => self.master.write_data(value),
            0xa0 => self.slave.write_command(value),
            0xa1 => self.slave.write_data(value),
            0x4d0 => self.master.elcr = value & ELCR_BITS[0],
            _ => self.slave.elcr = value & ELCR_BITS[1],
        }
        self.cascade();
    }
}
