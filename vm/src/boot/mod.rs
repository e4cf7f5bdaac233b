//! Putting a guest into a machine's memory, with the tables that tell it what the machine has.

pub mod acpi;
pub mod mptable;
