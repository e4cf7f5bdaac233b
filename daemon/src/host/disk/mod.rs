//! The operator's tools for images: what they are (`status`), and his word that they are right.

mod status;

pub use status::DiskStatus;

use super::check::HostError;
use super::service::{InstanceLock, LockError};
use crate::config::Config;
use crate::disks::{self, BesideError, Judged, NewOverlay};
use crate::exit::DaemonExit;
use ft_disk::DiskImageError;

/// Why a tool has done nothing.
#[derive(Debug, thiserror::Error)]
pub enum DiskToolError {
    /// The daemon runs.
    #[error("{0}; stop it first")]
    Lock(#[from] LockError),
    /// The cell cannot be read.
    #[error(transparent)]
    Host(#[from] HostError),
    /// What stands beside the images.
    #[error(transparent)]
    Beside(#[from] BesideError),
    /// The VM is elsewhere.
    #[error(
        "node {0} has the VM, and its images count: this node's are made equal when they pair. If that host is gone \
         for good, `ftctl release` says so first"
    )]
    Elsewhere(String),
}

impl DiskToolError {
    /// How the program ends.
    #[must_use]
    pub fn exit(&self) -> DaemonExit {
        match self {
            Self::Lock(LockError::Held { .. })
            | Self::Beside(BesideError::Image(DiskImageError::InUse { .. })) => DaemonExit::InUse,
            Self::Lock(LockError::Io { .. }) | Self::Beside(_) => DaemonExit::Host,
            Self::Host(e) => e.exit(),
            Self::Elsewhere(_) => DaemonExit::Failure,
        }
    }
}

/// The VM's next boot on this node takes its images as they are. What they were is told.
pub fn adopt(config: &Config) -> Result<Vec<Judged>, DiskToolError> {
    let _lock = InstanceLock::acquire(&config.state_dir)?;
    let cell = config.read_cell()?;
    let owner = cell.as_ref().and_then(|cell| cell.owner.as_deref());
    match owner.filter(|owner| *owner != config.node.as_str()) {
        Some(other) => Err(DiskToolError::Elsewhere(other.to_owned())),
        None => Ok(disks::adopt(config, cell.as_ref())?),
    }
}

/// Makes the overlay of a disk, while no daemon of this VM runs here.
pub fn create_overlay(
    config: &Config,
    disk: usize,
    mib: Option<u64>,
    progress: disks::Progress<'_>,
) -> Result<NewOverlay, DiskToolError> {
    let _lock = InstanceLock::acquire(&config.state_dir)?;
    Ok(disks::create_overlay(config, disk, mib, progress)?)
}

#[cfg(test)]
mod tests;
