//! Puts a guest into a fresh machine: loads the image into memory, and tells the engine the state of the vCPUs at the
//! guest's entry.

pub(crate) mod acpi;
pub(crate) mod entry;
mod freestanding;
mod linux;
pub(crate) mod mptable;

use crate::spec::{Boot, BusKind, FreestandingImage, MachineSpec};
use crate::state::StateError;
use entry::Entry;
use ft_ram::GuestRam;
use ft_ram::layout::{CMDLINE_BASE, CMDLINE_SIZE, PAGE_SIZE};
use linux::File;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::ops::Range;
use std::path::{Path, PathBuf};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

/// Why a guest could not be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file of the guest cannot be read.
    #[error("cannot read the {what} {}: {source}", .path.display())]
    Read {
        /// Kernel, initramfs or program.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The host's answer.
        source: std::io::Error,
    },
    /// The kernel is no kernel.
    #[error("{} is not a kernel that can be booted: {why}", .path.display())]
    NotAKernel {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The program is no program.
    #[error("{name} is not a freestanding program: {why}")]
    NotAProgram {
        /// Its path, or what it is.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// It has no way to its devices.
    #[error("a freestanding program finds its devices on virtio-mmio only: the machine has them on PCI")]
    Bus,
    /// It does not fit.
    #[error("the {what} does not fit: it needs memory up to {end:#x}, the guest has {room:#x} there")]
    TooLarge {
        /// Kernel, initramfs or program.
        what: &'static str,
        /// First address after it.
        end: u64,
        /// Where it must end.
        room: u64,
    },
    /// The command line does not fit.
    #[error("the command line has {0} bytes, at most {max} fit", max = CMDLINE_SIZE - 1)]
    CmdlineTooLong(usize),
    /// The command line is cut by a NUL.
    #[error("the command line contains a NUL")]
    CmdlineNul,
    /// More vCPUs than fit their stacks.
    #[error("no room for the stacks of {vcpus} vCPUs above the program")]
    Stacks {
        /// vCPUs.
        vcpus: usize,
    },
    /// The boot tables cannot be written.
    #[error(transparent)]
    Tables(#[from] acpi::TableError),
    /// Guest memory refused an access: the machine is too small for what is written.
    #[error("guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
    /// The memory of the last run cannot be cleared.
    #[error("cannot find what memory the last run used: {0}")]
    Clear(std::io::Error),
    /// The initial state was refused.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Loads `boot` into the memory of a machine after power-on; where it starts.
pub(crate) fn load(boot: &Boot, ram: &GuestRam, spec: &MachineSpec) -> Result<Entry, BootError> {
    match boot {
        Boot::Freestanding { .. } if spec.bus == BusKind::Pci => Err(BootError::Bus),
        Boot::Linux { kernel, initrd, cmdline } => {
            linux::load(File::Path(kernel), initrd.as_deref().map(File::Path), cmdline, ram, spec)
        }
        Boot::LinuxRead { kernel, initrd, cmdline } => {
            linux::load(File::Read(kernel), initrd.as_ref().map(File::Read), cmdline, ram, spec)
        }
        Boot::Freestanding { image: FreestandingImage::File(path), cmdline } => {
            let image = std::fs::read(path).map_err(unreadable("program", path))?;
            freestanding::load(&path.display().to_string(), &image, cmdline, ram, spec)
        }
        Boot::Freestanding { image: FreestandingImage::BuiltIn, cmdline } => {
            let cmdline = if cmdline.is_empty() { crate::guest::CMDLINE_DEFAULT } else { cmdline };
            freestanding::load("the built-in guest", crate::guest::IMAGE, cmdline, ram, spec)
        }
    }
}

/// Zeroes a used machine's memory: only pages that have content are written, and are dirty afterwards. Holes in the
/// memfd are not even read, since that would fill them.
pub(crate) fn clear(ram: &GuestRam) -> Result<(), BootError> {
    let zeros = [0; PAGE_SIZE];
    let mut page = [0; PAGE_SIZE];
    for region in ram.memory().iter() {
        for used in used_ranges(region)? {
            for offset in used.step_by(PAGE_SIZE) {
                let address = GuestAddress(region.start_addr().0 + offset);
                ram.memory().read_slice(&mut page, address)?;
                if page != zeros {
                    ram.memory().write_slice(&zeros, address)?;
                }
            }
        }
    }
    Ok(())
}

/// The parts of a region (offsets in it) that the memfd has pages for.
fn used_ranges(region: &impl GuestMemoryRegion) -> Result<Vec<Range<u64>>, BootError> {
    let Some(backing) = region.file_offset() else {
        return Ok(std::iter::once(0..region.len()).collect());
    };
    let (start, end) = (backing.start(), backing.start() + region.len());
    let mut ranges = Vec::new();
    let mut at = start;
    while at < end {
        let seek = |from: u64, whence| match lseek(backing.file(), from as i64, whence) {
            Ok(found) => Ok((found as u64).min(end)),
            // Nothing but a hole from here on.
            Err(Errno::ENXIO) => Ok(end),
            Err(e) => Err(BootError::Clear(e.into())),
        };
        let data = seek(at, Whence::SeekData)?;
        at = if data < end { seek(data, Whence::SeekHole)? } else { end };
        if data < at {
            ranges.push(data - start..at - start);
        }
    }
    Ok(ranges)
}

fn unreadable(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> BootError {
    let path = path.to_owned();
    move |source| BootError::Read { what, path, source }
}

/// Writes the command line with its NUL; its length without.
fn write_cmdline(ram: &GuestRam, cmdline: &str) -> Result<usize, BootError> {
    if cmdline.len() >= CMDLINE_SIZE {
        return Err(BootError::CmdlineTooLong(cmdline.len()));
    }
    if cmdline.contains('\0') {
        return Err(BootError::CmdlineNul);
    }
    ram.memory().write_slice(cmdline.as_bytes(), GuestAddress(CMDLINE_BASE))?;
    ram.memory().write_obj(0u8, GuestAddress(CMDLINE_BASE + cmdline.len() as u64))?;
    Ok(cmdline.len())
}

/// Control register bits of 64-bit mode with paging.
mod control {
    pub const CR0_PE_ET_PG: u64 = 0x8000_0011;
    pub const CR4_PAE: u64 = 0x20;
    pub const EFER_LME_LMA: u64 = 0x500;
}
