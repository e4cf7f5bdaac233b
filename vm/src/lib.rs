//! ft-vm: one virtual machine on this host. The crate builds the machine, runs it, pauses it, captures its complete
//! state and restores that state into a fresh machine. It knows nothing of replication: frames leave through a
//! [`devices::FrameSink`], captures leave through [`machine::Machine`], and their fate is the caller's business.
//!
//! ```
//! use ft_ram::GuestRam;
//! use ft_vm::devices::{ConsoleSink, Wiring};
//! use ft_vm::guest::CMDLINE_DEFAULT;
//! use ft_vm::machine::Machine;
//! use ft_vm::spec::{BusKind, Boot, CpuModel, EngineKind, FreestandingImage, MachineSpec, NetSpec};
//!
//! struct Quiet;
//!
//! impl ConsoleSink for Quiet {
//!     fn write(&mut self, _: &[u8]) {}
//! }
//!
//! let wiring = || Wiring { frames: None, console: Box::new(Quiet), disks: Vec::new() };
//! let (engine, ram_bytes) = (EngineKind::Soft, 32 << 20);
//! let nets = vec![NetSpec { mac: [2, 0, 0, 0, 0, 1], mtu: 1500 }];
//! let (disks, bus, cpu) = (Vec::new(), BusKind::Mmio, CpuModel::Host);
//! let spec = MachineSpec { engine, vcpus: 1, ram_bytes, nets, disks, rng: false, bus, cpu };
//!
//! let ram = GuestRam::new(ram_bytes)?;
//! let mut machine = Machine::new(&spec, &ram, wiring())?;
//! let (image, cmdline) = (FreestandingImage::BuiltIn, CMDLINE_DEFAULT.to_owned());
//! machine.boot(&Boot::Freestanding { image, cmdline })?;
//! machine.resume()?;
//! while machine.count() == 0 {
//!     std::thread::yield_now();
//! }
//! machine.pause()?;
//!
//! // With a copy of its memory, its state makes the same machine elsewhere.
//! let mut state = Vec::new();
//! machine.capture(&mut state)?;
//! let other_ram = GuestRam::new(ram_bytes)?;
//! let (from, to, mut page) = (ram.view()?, other_ram.view()?, [0; 4096]);
//! for index in 0..ram.pages() {
//!     from.read_page(index, &mut page);
//!     to.write_page(index, &page);
//! }
//! let mut other = Machine::new(&spec, &other_ram, wiring())?;
//! other.restore(&state)?;
//! assert_eq!(other.registers()?, machine.registers()?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod boot;
pub mod devices;
mod engine;
mod error;
pub mod guest;
pub mod machine;
pub mod replay;
pub mod spec;
pub mod state;
#[cfg(feature = "testing")]
pub mod testing;
