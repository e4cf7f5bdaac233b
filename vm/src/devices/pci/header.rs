//! A type-0 configuration header with its capabilities: bytes, and which bits of them can be written.

use std::ops::Range;

/// Bytes of a function's configuration space.
pub(crate) const CONFIG_BYTES: usize = 256;

pub(crate) const COMMAND: usize = 0x04;
pub(crate) const STATUS: usize = 0x06;
pub(crate) const BAR: usize = 0x10;
pub(crate) const INTERRUPT_LINE: usize = 0x3c;
const CAPABILITIES: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;

/// Command: the BAR is decoded.
pub(crate) const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: the function may access memory, and send messages.
pub(crate) const COMMAND_MASTER: u16 = 1 << 2;
/// Command: INTx is never asserted.
pub(crate) const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// What can be set in it.
pub(crate) const COMMAND_BITS: u16 = COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_DISABLE;
/// Status: INTx is asserted, if it is not disabled.
pub(crate) const STATUS_INTERRUPT: u16 = 1 << 3;
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// What a function is.
#[derive(Clone, Copy)]
pub(crate) struct Identity {
    pub vendor: u16,
    pub device: u16,
    /// Class, subclass, programming interface.
    pub class: u32,
    /// Of the same vendor; 0 is none.
    pub subsystem: u16,
    /// 0 is none, 1 is INTA#.
    pub interrupt_pin: u8,
}

/// The configuration space of a function.
pub(crate) struct Header {
    bytes: [u8; CONFIG_BYTES],
    /// Bits that can be written.
    writable: [u8; CONFIG_BYTES],
    /// Where the pointer to the next capability is, and the next capability.
    link: usize,
    next: usize,
}

impl Header {
    /// Without BARs and capabilities; nothing can be written.
    pub(crate) fn new(identity: Identity) -> Self {
        let Identity { vendor, device, class, subsystem, interrupt_pin } = identity;
        let mut header = Self {
            bytes: [0; CONFIG_BYTES],
            writable: [0; CONFIG_BYTES],
            link: CAPABILITIES,
            next: FIRST_CAPABILITY,
        };
        header.set(0x00, &vendor.to_le_bytes());
        header.set(0x02, &device.to_le_bytes());
        // The revision in the lowest byte.
        header.set(0x08, &(class << 8 | 1).to_le_bytes());
        if subsystem != 0 {
            header.set(0x2c, &vendor.to_le_bytes());
            header.set(0x2e, &subsystem.to_le_bytes());
        }
        header.set(INTERRUPT_LINE + 1, &[interrupt_pin]);
        header
    }

    /// Adds a capability behind those that are there: `content` follows its identity and the link. Says where it is.
    pub(crate) fn add_capability(&mut self, identity: u8, content: &[u8]) -> usize {
        let at = self.next;
        self.set(self.link, &[at as u8]);
        self.set(at, &[identity, 0]);
        self.set(at + 2, content);
        self.set(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        (self.link, self.next) = (at + 1, (at + 2 + content.len()).next_multiple_of(4));
        at
    }

    /// Lets these bits be written.
    pub(crate) fn allow(&mut self, at: usize, bits: &[u8]) {
        self.writable[at..at + bits.len()].copy_from_slice(bits);
    }

    pub(crate) fn bytes(&self) -> &[u8; CONFIG_BYTES] {
        &self.bytes
    }

    /// Whatever can be written there.
    pub(crate) fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The guest's write.
    pub(crate) fn write(&mut self, at: usize, data: &[u8]) {
        let writable = &self.writable[at..at + data.len()];
        for ((byte, new), bits) in self.bytes[at..].iter_mut().zip(data).zip(writable) {
            *byte = *byte & !bits | new & bits;
        }
    }

    pub(crate) fn u16_at(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    pub(crate) fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|i| self.bytes[at + i]))
    }
}

/// Whether an access touches some of these bytes.
pub(crate) fn touches(at: usize, data: &[u8], bytes: Range<usize>) -> bool {
    at < bytes.end && at + data.len() > bytes.start
}
