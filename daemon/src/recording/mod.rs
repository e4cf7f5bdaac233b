//! `ftd record` and `ftd replay`: one machine on the deterministic engine, alone on this host. One command records its
//! run into a file, the other executes the file again. There is no peer, no arbiter and no protection.

mod console;
mod record;
mod replay;
#[cfg(test)]
mod tests;

pub use record::{RecordOptions, record};
pub use replay::{Proof, ReplayOptions, replay};

use crate::boot::ImageBootError;
use crate::exit::DaemonExit;
use crate::host::HostError;
use ft_checkpoint::recording::{DiskImage, EndReason, RecordingError, machine_digest};
use ft_disk::{ImageStore, IoEngine, RawImage};
use ft_ram::{MemoryError, RamView};
use ft_vm::boot::BootError;
use ft_vm::devices::Disk;
use ft_vm::machine::{Machine, MachineError, MachineEvent};
use ft_vm::state::StateError;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a machine is not recorded, or a recording not replayed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The host lacks something that the configuration names.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The engine has one.
    #[error("machine.vcpus = {0}: the deterministic engine has exactly one; set it to 1 to record this VM")]
    Vcpus(u8),
    /// A recording says of each image what it holds.
    #[error(
        "machine.disk.base = {}: a recording takes whole images: `ftd disk import` makes one of the base", .0.display()
    )]
    Base(PathBuf),
    /// Recordings are not overwritten.
    #[error("{}: already exists; a recording is not overwritten: choose another name or remove it", .0.display())]
    Exists(PathBuf),
    /// The file cannot be opened or made.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The recording cannot be written, or is not one.
    #[error("{}: {source}", path.display())]
    Recording {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: RecordingError,
    },
    /// The log in the recording is not one that goes on where the machine is.
    #[error("{}: batch {batch} of the recording: {source}", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// Number of the log section.
        batch: u64,
        /// What is wrong.
        source: MachineError,
    },
    /// Of another engine.
    #[error(
        "{}: recorded by {program} with engine {theirs:#018x}, this program's is {ours:#018x}: the same log \
         could lead to another run; replay it with the program that recorded it", path.display()
    )]
    Engine {
        /// The file.
        path: PathBuf,
        /// What recorded it.
        program: String,
        /// The recording's engine.
        theirs: u64,
        /// This one.
        ours: u64,
    },
    /// The start in the recording is not one of the machine in the recording.
    #[error("{}: the machine's start: {source}", path.display())]
    Start {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: StateError,
    },
    /// A disk image is not what it was.
    #[error(
        "disk {index}, {}: {why}; the recording does not hold disks: pass the old image with --disk", path.display()
    )]
    Disk {
        /// Its place.
        index: usize,
        /// The image.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Another number of images than disks.
    #[error("--disk is given {given} times, the recorded machine has {disks} disks")]
    Disks {
        /// On the command line.
        given: usize,
        /// In the recording.
        disks: usize,
    },
    /// Memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Its guest.
    #[error("machine.kernel, machine.initrd or machine.cmdline: {0}")]
    Boot(#[from] BootError),
    /// There is nothing to boot in its image.
    #[error(transparent)]
    NoGuest(#[from] ImageBootError),
    /// The guest is not the recorded one any more.
    #[error("the replay differs from the recording: {0}")]
    Diverged(String),
    /// With --verify.
    #[error("the recording is not verified to its end: {0}")]
    Unverified(String),
    /// The system gives no thread or signal.
    #[error("{0}: {1}")]
    System(&'static str, std::io::Error),
}

impl RunError {
    /// How the program ends because of it.
    pub fn exit(&self) -> DaemonExit {
        match self {
            Self::Host(e) => e.exit(),
            Self::Vcpus(_) | Self::Exists(_) | Self::Disks { .. } => DaemonExit::Usage,
            Self::File { .. } | Self::Disk { .. } | Self::Memory(_) | Self::Boot(_) => DaemonExit::Host,
            Self::Diverged(_) => DaemonExit::Diverged,
            _ => DaemonExit::Failure,
        }
    }
}

/// What a program that runs a machine says at its end.
struct Run {
    instructions: u64,
    took: Duration,
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.took.as_secs_f64().max(1e-9);
        let mips = self.instructions as f64 / seconds / 1e6;
        write!(f, "{} instructions in {seconds:.3} s ({mips:.1} MIPS)", self.instructions)
    }
}

/// What an event of the machine means to a recording; none: it goes on.
fn end_of(event: &MachineEvent) -> Result<Option<EndReason>, RunError> {
    Ok(Some(match event {
        MachineEvent::PoweredOff => EndReason::PoweredOff,
        MachineEvent::Reset => EndReason::Reset,
        MachineEvent::Panicked { .. } => {
            eprintln!("ftd: the guest's kernel panicked");
            return Ok(None);
        }
        MachineEvent::WatchdogFired => {
            eprintln!("ftd: the guest does not feed its watchdog any more");
            return Ok(None);
        }
        MachineEvent::Crashed { why, .. } => {
            eprintln!("ftd: the guest crashed: {why}");
            EndReason::Crashed
        }
        MachineEvent::Failed { vcpu, why } => {
            return Err(MachineError::Failed { vcpu: *vcpu, why: why.clone() }.into());
        }
        MachineEvent::Diverged { count, what } => {
            return Err(RunError::Diverged(format!("at count {count}: {what}")));
        }
    }))
}

/// The digest at the end of a run. A crashed machine has no state that could be captured: its memory tells.
fn final_digest(machine: &mut Machine, ram: &RamView, why: EndReason) -> Result<u64, RunError> {
    let mut state = Vec::new();
    if why != EndReason::Crashed {
        machine.capture(&mut state)?;
    }
    machine_digest(&state, ram).map_err(|e| RunError::System("reading the guest's memory", e))
}

/// A disk that is read only: what a machine has on a writable one is in no recording.
fn disk_of(file: File) -> std::io::Result<Disk> {
    Ok(Disk::new(ImageStore::new(RawImage::reading(file)?, IoEngine::Auto)))
}

/// What a recording says of an image; and the image.
fn hash_image(path: &Path) -> std::io::Result<(DiskImage, File)> {
    let mut file = File::open(path)?;
    let (hash, bytes) = DiskImage::hash(&mut file)?;
    // The name is for people, and for the same host: what is not UTF-8 in it need not come back.
    Ok((DiskImage { path: path.to_string_lossy().into_owned(), bytes, hash }, file))
}
