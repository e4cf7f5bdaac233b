//! A guest's memory, on which everything else stands: its RAM and the numbers of its pages ([`GuestRam`], [`PageIndex`]),
//! what the VMM itself wrote into it, and the guest-physical address map ([`layout`]).

pub mod layout;
mod memory;

pub use memory::{GuestMemory, GuestRam, MemoryError, PageIndex, RamView, Slot};
