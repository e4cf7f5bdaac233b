//! `[[machine.disk]]`: images, and how they are read, written and mirrored.

use super::Config;
use super::validate::{BadValue, refuse, within};
use ft_checkpoint::wire::message::Mode;
use ft_disk::IoEngine;
use ft_vm::devices::OnIoError;
use serde::{Deserialize, Deserializer};
use std::path::PathBuf;

/// A disk.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Raw image on this host: a file or a block device.
    pub image: PathBuf,
    /// Image that lies under it, raw or qcow2: `image` has only what differs from that.
    #[serde(default)]
    pub base: Option<PathBuf>,
    /// Whether the guest can only read it.
    pub read_only: bool,
    /// What reads and writes it.
    #[serde(default, deserialize_with = "io_engine")]
    pub io_engine: IoEngine,
    /// What becomes of a request that this host cannot do. None in the file: it follows from the mode, and
    /// [`Config::parse`] says it.
    pub on_io_error: Option<OnDiskError>,
}

impl DiskConfig {
    /// In replay mode the guest must see the same of a disk on both hosts, and an I/O error is one host's alone. What
    /// it can only read waits for nobody: nothing tries it again.
    pub(super) fn settle(&mut self, mode: Mode) {
        self.on_io_error.get_or_insert(match (mode, self.read_only) {
            (Mode::Replay, false) => OnDiskError::Stop,
            (Mode::Replay, true) | (Mode::Checkpoint, _) => OnDiskError::Report,
        });
    }

    /// What the device does with a request that this host cannot do.
    #[must_use]
    pub fn on_io_error(&self) -> OnIoError {
        match self.on_io_error {
            None | Some(OnDiskError::Report) => OnIoError::Report,
            Some(OnDiskError::Stop | OnDiskError::Switchover) => OnIoError::Stop,
        }
    }
}

/// By its name in the file.
fn io_engine<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IoEngine, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Name {
        Auto,
        Threads,
    }
    Ok(match Name::deserialize(deserializer)? {
        Name::Auto => IoEngine::Auto,
        Name::Threads => IoEngine::Threads,
    })
}

/// What becomes of a request that the host cannot do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDiskError {
    /// The guest gets an I/O error.
    Report,
    /// The guest waits for it, until it is tried again.
    Stop,
    /// The guest waits for it, and the VM moves to the other host.
    Switchover,
}

/// What the backup has of a checkpoint's disk writes when it acknowledges it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// They are in its journal: its host's loss of power may take them, the primary has them.
    Commit,
    /// They are on its stable storage.
    Sync,
}

impl Config {
    pub(super) fn validate_disks(&self) -> Result<(), BadValue> {
        let disks = &self.machine.disks;
        within("machine.disk (their number)", disks.len() as u64, 0..=8)?;
        within("replication.journal_mib", self.replication.journal_mib, 64..=1 << 20)?;
        within("replication.disk_copy_mib_s", self.replication.disk_copy_mib_s, 0..=1 << 20)?;
        if let Some(disk) = disks.iter().find(|disk| disk.read_only && disk.base.is_some()) {
            let allowed =
                "is for a disk that the guest may write to: name the base itself as the image of this one";
            return refuse("machine.disk.base (read_only = true)", disk.image.display(), allowed);
        }
        for disk in disks.iter().filter(|disk| !disk.read_only) {
            if self.replication.mode == Mode::Replay {
                self.validate_replayed_disk(disk)?;
            }
        }
        Ok(())
    }

    /// What the guest sees of a disk must be the same on both hosts.
    fn validate_replayed_disk(&self, disk: &DiskConfig) -> Result<(), BadValue> {
        if disk.on_io_error == Some(OnDiskError::Report) {
            let allowed = format!(
                "must be \"stop\" or \"switchover\" for a writable disk ({}) in mode = \"replay\": an I/O error is one \
                 host's alone, and the guest must see the same on both",
                disk.image.display()
            );
            return refuse("machine.disk.on_io_error", "report", allowed);
        }
        if self.replication.durability == Durability::Sync {
            let allowed = "must be \"commit\" in mode = \"replay\": what the backup acknowledges is the log, which it \
                           holds in memory; the images are durable later";
            return refuse("replication.durability", "sync", allowed);
        }
        Ok(())
    }

    /// Whether there is a disk that the guest may write to.
    #[must_use]
    pub fn has_writable_disk(&self) -> bool {
        self.machine.disks.iter().any(|disk| !disk.read_only)
    }
}
