//! Delivery of exceptions and interrupts.

use super::cpu::{Cpu, Fault};
use super::run::TripleFault;

impl Cpu {
    /// Delivers an exception to the guest: `rip`, registers and flags are those to be saved.
    pub(crate) fn deliver_exception(&mut self, _fault: Fault) -> Result<(), TripleFault> {
        Err(TripleFault)
    }

    /// Delivers an external interrupt.
    pub(crate) fn deliver_interrupt(&mut self, _vector: u8) -> Result<(), TripleFault> {
        Err(TripleFault)
    }
}
