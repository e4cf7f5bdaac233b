//! MSI-X: a table of messages, a mask of each and one of all, and which of them wait behind their mask.

use crate::devices::error::DeviceStateError;
use serde::{Deserialize, Serialize};

/// No vector.
pub(crate) const NONE: u16 = 0xffff;
/// Of an entry: address, data, vector control.
pub(crate) const ENTRY_BYTES: usize = 16;
/// More than any device here has; one word of bits for those that wait.
pub(crate) const VECTORS_MAX: usize = 64;

/// Message control: all vectors are masked.
const MASK_ALL: u16 = 1 << 14;
/// Message control: MSI-X is on.
const ENABLE: u16 = 1 << 15;
/// What can be set in it.
pub(crate) const CONTROL_BITS: u16 = MASK_ALL | ENABLE;
/// Messages begin on a multiple of four.
const ADDRESS_BITS: u64 = !3;

/// An interrupt message: a write of `data` to `address`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Where to.
    pub address: u64,
    /// What.
    pub data: u32,
}

impl Msi {
    /// Whether it is for the interrupt controllers of the processors (Intel SDM volume 3, §11.11.1). What is not would
    /// be a write to memory, which no device here does.
    pub(crate) fn is_interrupt(&self) -> bool {
        self.address >> 20 == 0xfee
    }
}

/// What the guest has set, and what waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    /// In the place of the line INTx.
    pub enabled: bool,
    /// All vectors are masked.
    pub masked: bool,
    /// The table.
    pub entries: Vec<MsixEntry>,
    /// Vectors that wait for their mask to go: a bit a vector.
    pub pending: u64,
}

/// One vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixEntry {
    /// Where its message goes.
    pub address: u64,
    /// The message.
    pub data: u32,
    /// It is masked.
    pub masked: bool,
}

const POWER_ON: MsixEntry = MsixEntry { address: 0, data: 0, masked: true };

/// The vectors of a function.
pub(crate) struct Msix {
    state: MsixState,
    /// The function may send: it is a bus master.
    may_send: bool,
}

impl Msix {
    /// As after power-on, when a function may not send.
    pub(crate) fn new(vectors: usize) -> Self {
        let entries = vec![POWER_ON; vectors];
        Self { state: MsixState { enabled: false, masked: false, entries, pending: 0 }, may_send: false }
    }

    pub(crate) fn is_enabled(&self) -> bool {
        self.state.enabled
    }

    /// This vector, if there is such a one, and none otherwise.
    pub(crate) fn known(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.state.entries.len() { vector } else { NONE }
    }

    /// Message control.
    pub(crate) fn control(&self) -> u16 {
        let MsixState { enabled, masked, entries, pending: _ } = &self.state;
        let last = entries.len() as u16 - 1;
        last | if *masked { MASK_ALL } else { 0 } | if *enabled { ENABLE } else { 0 }
    }

    /// Message control is written, or the function becomes a bus master or none: what waits for that is sent.
    pub(crate) fn set_control(&mut self, control: u16, may_send: bool, send: impl FnMut(Msi)) {
        self.state.masked = control & MASK_ALL != 0;
        self.state.enabled = control & ENABLE != 0;
        self.may_send = may_send;
        if !self.state.enabled {
            self.state.pending = 0;
        }
        self.release(send);
    }

    /// Interrupts by this vector: at once, or when it is unmasked.
    pub(crate) fn fire(&mut self, vector: u16, send: impl FnMut(Msi)) {
        if self.known(vector) != NONE {
            self.state.pending |= 1 << vector;
            self.release(send);
        }
    }

    fn is_open(&self, vector: usize) -> bool {
        let MsixState { enabled, masked, entries, pending: _ } = &self.state;
        *enabled && !masked && self.may_send && !entries[vector].masked
    }

    /// Sends what waits and need not wait any more.
    fn release(&mut self, mut send: impl FnMut(Msi)) {
        if self.state.pending == 0 {
            return;
        }
        for vector in 0..self.state.entries.len() {
            if self.state.pending >> vector & 1 != 0 && self.is_open(vector) {
                self.state.pending &= !(1 << vector);
                let MsixEntry { address, data, masked: _ } = self.state.entries[vector];
                send(Msi { address, data });
            }
        }
    }

    /// Reads of the table, at any width; false beyond its end.
    pub(crate) fn read_table(&self, offset: usize, data: &mut [u8]) -> bool {
        if offset + data.len() > self.state.entries.len() * ENTRY_BYTES {
            return false;
        }
        for (at, byte) in (offset..).zip(data) {
            let MsixEntry { address, data, masked } = self.state.entries[at / ENTRY_BYTES];
            let bytes = u128::from(address) | u128::from(data) << 64 | u128::from(masked) << 96;
            *byte = (bytes >> (at % ENTRY_BYTES * 8)) as u8;
        }
        true
    }

    /// A write to the table of one or two whole registers of 32 bits, as is allowed; false otherwise.
    pub(crate) fn write_table(&mut self, offset: usize, data: &[u8], send: impl FnMut(Msi)) -> bool {
        let whole = matches!(data.len(), 4 | 8) && offset.is_multiple_of(data.len());
        let Some(entry) = self.state.entries.get_mut(offset / ENTRY_BYTES).filter(|_| whole) else {
            return false;
        };
        for (at, word) in (offset % ENTRY_BYTES..).step_by(4).zip(data.chunks(4)) {
            let value = word.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
            match at {
                0 => entry.address = (entry.address & !0xffff_ffff | u64::from(value)) & ADDRESS_BITS,
                4 => entry.address = entry.address & 0xffff_ffff | u64::from(value) << 32,
                8 => entry.data = value,
                _ => entry.masked = value & 1 != 0,
            }
        }
        self.release(send);
        true
    }

    /// Reads of the pending bits, at any width; false beyond their end.
    pub(crate) fn read_pending(&self, offset: usize, data: &mut [u8]) -> bool {
        let bytes = self.state.pending.to_le_bytes();
        let read = bytes.get(offset..offset.saturating_add(data.len()));
        read.map(|bytes| data.copy_from_slice(bytes)).is_some()
    }

    pub(crate) fn capture(&self) -> MsixState {
        self.state.clone()
    }

    /// As many vectors as these, in a captured state, if that is one they can be in.
    pub(crate) fn with_state(&self, state: &MsixState, may_send: bool) -> Result<Self, DeviceStateError> {
        let refuse = |why: String| Err(DeviceStateError::Pci(format!("MSI-X: {why}")));
        let MsixState { enabled, masked: _, entries, pending } = state;
        let ours = self.state.entries.len();
        if entries.len() != ours {
            return refuse(format!("{} vectors of {ours}", entries.len()));
        }
        if let Some(entry) = entries.iter().find(|entry| entry.address & !ADDRESS_BITS != 0) {
            return refuse(format!("address {:#x}", entry.address));
        }
        let taken = Self { state: state.clone(), may_send };
        let waits = |vector: usize| vector < ours && *enabled && !taken.is_open(vector);
        match (0..VECTORS_MAX).find(|&vector| pending >> vector & 1 != 0 && !waits(vector)) {
            Some(vector) => refuse(format!("vector {vector} waits for nothing")),
            None => Ok(taken),
        }
    }
}
