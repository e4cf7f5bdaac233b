//! `ftd init`: the operator's word which cell this node's VM is in. It founds the cell where there is none, and records
//! the one that it finds. A node that has a record gives it up only when it is told to.

use super::record::{RecordError, RecordFile};
use super::service::{InstanceLock, LockError};
use super::{HostError, Trust};
use crate::config::Config;
use crate::exit::DaemonExit;
use crate::nonce::random_nonce;
use crate::role::{Distrust, NodeRecord};
use ft_arbiter::{ArbiterError, Cell, CellId, Outcome};

/// What becomes of an earlier record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Earlier {
    /// The cell must follow from it.
    Keep,
    /// It is forgotten.
    Forget,
}

/// Why the node is not initialised.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The daemon runs.
    #[error("{0}; stop it first")]
    Lock(#[from] LockError),
    /// The record cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// This host's certificate cannot be used.
    #[error(transparent)]
    Trust(#[from] HostError),
    /// The cell cannot be read or set.
    #[error(transparent)]
    Arbiter(#[from] ArbiterError),
    /// The cell does not follow from the record.
    #[error(transparent)]
    Distrust(#[from] Distrust),
    /// Another node was faster.
    #[error("the other node founds the cell at this moment: try again")]
    Overtaken,
}

impl InitError {
    /// How the program ends.
    #[must_use]
    pub fn exit(&self) -> DaemonExit {
        match self {
            Self::Lock(LockError::Held { .. }) => DaemonExit::InUse,
            Self::Lock(LockError::Io { .. }) | Self::Record(_) => DaemonExit::Host,
            Self::Arbiter(_) | Self::Distrust(_) => DaemonExit::Arbiter,
            Self::Trust(e) => e.exit(),
            Self::Overtaken => DaemonExit::Failure,
        }
    }
}

/// Makes this node's record fit its cell; the cell.
pub fn initialise(config: &Config, trust: &Trust, earlier: Earlier) -> Result<Cell, InitError> {
    let _lock = InstanceLock::acquire(&config.state_dir)?;
    let file = RecordFile::new(&config.state_dir, config.vm.as_str());
    if earlier == Earlier::Forget {
        file.forget()?;
    }
    let record = file.load()?;
    let mut arbiter = config.arbiter(trust);
    let found = arbiter.read()?;
    if let Some(record) = record {
        record.admits(found.as_ref())?;
    }
    let cell = match found {
        Some(cell) => cell,
        None => {
            let id = CellId(random_nonce());
            match arbiter.compare_and_set(None, Cell { id, generation: 1, owner: None, standby: None }) {
                Outcome::Won(cell) => cell,
                Outcome::Lost(_) => return Err(InitError::Overtaken),
                Outcome::NotAttempted(error) | Outcome::Unknown(error) => return Err(error.into()),
            }
        }
    };
    file.save(NodeRecord { cell: cell.id, generation: cell.generation })?;
    Ok(cell)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    fn node(base: &Path, name: &str, peer: &str) -> Config {
        let base = base.display();
        let text = format!(
            "vm = \"web\"\nnode = \"{name}\"\nstart_as = \"primary\"\nstate_dir = \"{base}/{name}\"\n\
             peer = {{ node = \"{peer}\", address = \"127.0.0.1:1\" }}\narbiter = {{ path = \"{base}/shared/cell\" }}"
        );
        Config::parse(&text, Path::new("test.toml")).unwrap()
    }

    #[test]
    fn the_first_node_founds_the_cell_and_the_second_takes_it_as_it_is() {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir(base.path().join("shared")).unwrap();
        let (alpha, beta) = (node(base.path(), "alpha", "beta"), node(base.path(), "beta", "alpha"));
        let trust = alpha.trust().unwrap();
        let cell = initialise(&alpha, &trust, Earlier::Keep).unwrap();
        assert_eq!((cell.generation, &cell.owner), (1, &None));
        assert_eq!(initialise(&beta, &trust, Earlier::Keep).unwrap(), cell);
        assert_eq!(initialise(&alpha, &trust, Earlier::Keep).unwrap(), cell, "it is so already");
    }

    #[test]
    fn a_node_with_a_record_forgets_it_only_when_told() {
        let base = tempfile::tempdir().unwrap();
        let shared = base.path().join("shared");
        fs::create_dir(&shared).unwrap();
        let alpha = node(base.path(), "alpha", "beta");
        let trust = alpha.trust().unwrap();
        let first = initialise(&alpha, &trust, Earlier::Keep).unwrap();
        fs::remove_dir_all(shared.join("cell")).unwrap();
        let refused = initialise(&alpha, &trust, Earlier::Keep).unwrap_err();
        assert_eq!(refused.exit(), DaemonExit::Arbiter);
        assert!(refused.to_string().contains("the cell is missing"), "{refused}");
        assert!(!shared.join("cell").exists(), "nothing was founded");
        let second = initialise(&alpha, &trust, Earlier::Forget).unwrap();
        assert_ne!(first.id, second.id);
        assert_eq!(initialise(&alpha, &trust, Earlier::Keep).unwrap(), second);
    }
}
