//! The cells of a service in a file: a JSON object in a line, and its checksum. A store can be made of it where the
//! service's disk is lost.
//!
//! It says who *had* the VMs. Nodes that know a later generation refuse an older cell, until an operator says which
//! node has the VM (`ftd init --forget`).

use super::message::{Listed, is_name};
use super::store::VMS_MAX;
use crate::Cell;
use crate::lines;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of such a file. Another one is refused.
pub const BACKUP_VERSION: u32 = 1;
/// No backup is longer.
const BACKUP_BYTES_MAX: usize = VMS_MAX * 1024;

/// The cells of a service at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellBackup {
    /// When they were so, by the clock of whoever asked: milliseconds since 1970.
    pub taken_unix_ms: u64,
    /// By the names of their VMs.
    pub cells: BTreeMap<String, Cell>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lines {
    version: u32,
    taken_unix_ms: u64,
    cells: BTreeMap<String, Cell>,
}

/// Why cells cannot be kept, or a file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    /// One of the cells is damaged in the service itself.
    #[error("the cell of '{vm}' is damaged in the service: {damage}")]
    Cell {
        /// Whose.
        vm: String,
        /// How.
        damage: String,
    },
    /// The file is damaged, or something else.
    #[error("{0}")]
    Damaged(#[from] lines::LinesError),
    /// It has another version.
    #[error("it has version {0}, this ftd has {BACKUP_VERSION}")]
    Version(u32),
    /// It is no backup.
    #[error("it is no backup of cells: {0}")]
    Content(String),
}

impl CellBackup {
    /// Of what a service has listed. Nothing is left out.
    pub fn of(listed: Vec<Listed>, taken_unix_ms: u64) -> Result<Self, BackupError> {
        let cell = |Listed { vm, cell, damage }: Listed| match cell {
            Some(cell) => Ok((vm, cell)),
            None => Err(BackupError::Cell { vm, damage: damage.unwrap_or_default() }),
        };
        Ok(Self { taken_unix_ms, cells: listed.into_iter().map(cell).collect::<Result<_, _>>()? })
    }

    /// The file's content.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Self { taken_unix_ms, cells } = self.clone();
        lines::write(&Lines { version: BACKUP_VERSION, taken_unix_ms, cells })
    }

    /// Of a file's content.
    pub fn decode(bytes: &[u8]) -> Result<Self, BackupError> {
        let (version, json) = lines::read(bytes, BACKUP_BYTES_MAX)?;
        if version != BACKUP_VERSION {
            return Err(BackupError::Version(version));
        }
        let read: Lines = serde_json::from_str(json).map_err(|e| BackupError::Content(e.to_string()))?;
        if read.cells.len() > VMS_MAX {
            return Err(BackupError::Content(format!("it has more than {VMS_MAX} cells")));
        }
        if let Some(vm) = read.cells.keys().find(|vm| !is_name(vm)) {
            return Err(BackupError::Content(format!("'{vm}' is no name of a VM")));
        }
        Ok(Self { taken_unix_ms: read.taken_unix_ms, cells: read.cells })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CellId;
    use proptest::prelude::*;

    fn backup(names: &[String]) -> CellBackup {
        let cell =
            |generation| Cell { id: CellId(7), generation, owner: Some("alpha".into()), standby: None };
        let cells = names.iter().zip(1..).map(|(vm, generation)| (vm.clone(), cell(generation)));
        CellBackup { taken_unix_ms: 1_796_019_364_000, cells: cells.collect() }
    }

    proptest! {
        #[test]
        fn what_is_kept_is_read_and_any_change_is_noticed(
            names in prop::collection::vec("[a-z0-9-]{1,20}", 0..8), at in any::<prop::sample::Index>(), bit in 0..8,
        ) {
            let backup = backup(&names);
            let mut bytes = backup.encode();
            prop_assert_eq!(CellBackup::decode(&bytes), Ok(backup));
            let at = at.index(bytes.len());
            prop_assert!(CellBackup::decode(&bytes[..at]).is_err());
            bytes[at] ^= 1u8 << bit;
            prop_assert!(CellBackup::decode(&bytes).is_err());
        }
    }

    #[test]
    fn a_damaged_cell_and_another_version_are_no_backup() {
        let listed = Listed { vm: "web".into(), cell: None, damage: Some("its checksum is wrong".into()) };
        let why = CellBackup::of(vec![listed], 1).unwrap_err().to_string();
        assert_eq!(why, "the cell of 'web' is damaged in the service: its checksum is wrong");
        let other = Lines { version: 2, taken_unix_ms: 0, cells: BTreeMap::new() };
        assert_eq!(CellBackup::decode(&lines::write(&other)), Err(BackupError::Version(2)));
        let odd = backup(&["Web".to_owned()]).encode();
        assert!(CellBackup::decode(&odd).unwrap_err().to_string().contains("'Web' is no name of a VM"));
    }
}
