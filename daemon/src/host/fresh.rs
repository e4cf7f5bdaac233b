//! The operator's permission for one fresh boot over a lost state. It is kept in a file for the service's next start,
//! so nobody has to run the daemon by hand. It names the generation whose state is given up. The boot
//! that it allows begins another generation and so spends it. Any other change of the cell voids it.

use super::service::{InstanceLock, LockError};
use crate::config::Config;
use crate::exit::DaemonExit;
use crate::role::NodeRecord;
use ft_arbiter::ArbiterError;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Why no permission is given or taken.
#[derive(Debug, thiserror::Error)]
pub enum FreshError {
    /// The daemon runs: its VM may be well.
    #[error("{0}; stop it first, then allow the fresh boot, then start it")]
    Lock(#[from] LockError),
    /// The cell cannot be read.
    #[error(transparent)]
    Arbiter(#[from] ArbiterError),
    /// The state is another node's to give up.
    #[error("node {owner} owns the VM, this is node {node}: allow the fresh boot on {owner}")]
    NotOwner {
        /// Who owns it.
        owner: String,
        /// This node.
        node: String,
    },
    /// There is no state.
    #[error("nobody owns the VM, so no state is lost: start it, it needs no permission")]
    NothingLost,
    /// The permission cannot be written, read or removed.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where it lies.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl FreshError {
    /// How the program ends.
    #[must_use]
    pub fn exit(&self) -> DaemonExit {
        match self {
            Self::Lock(LockError::Held { .. }) => DaemonExit::InUse,
            Self::Lock(LockError::Io { .. }) => DaemonExit::Host,
            Self::Arbiter(_) => DaemonExit::Arbiter,
            Self::NotOwner { .. } | Self::NothingLost | Self::Io { .. } => DaemonExit::Failure,
        }
    }
}

/// Allows the next start to boot the VM anew; the generation that is given up.
pub fn allow_fresh(config: &Config) -> Result<u64, FreshError> {
    let _lock = InstanceLock::acquire(&config.state_dir)?;
    let cell = config.arbiter().read()?;
    let Some((generation, owner)) = cell.and_then(|cell| Some((cell.generation, cell.owner?))) else {
        return Err(FreshError::NothingLost);
    };
    if owner != config.node.as_str() {
        return Err(FreshError::NotOwner { owner, node: config.node.to_string() });
    }
    let path = leave(config);
    let failed = |source| FreshError::Io { path: path.clone(), source };
    let mut file = File::create(&path).map_err(failed)?;
    writeln!(file, "{generation}").and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(generation)
}

/// The generation that a permission names, if there is one that may still hold: the boot that it allows, or any other
/// change of the cell, leaves that generation behind and so voids it. A void one is removed.
pub fn take_fresh(config: &Config, record: Option<NodeRecord>) -> Result<Option<u64>, FreshError> {
    let path = leave(config);
    let failed = |source| FreshError::Io { path: path.clone(), source };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let named = text.trim().parse().ok();
    if let (Some(named), true) = (named, record.is_none_or(|record| Some(record.generation) <= named)) {
        tracing::warn!(
            generation = named,
            "the operator allows to boot the VM anew over its state of this generation"
        );
        return Ok(Some(named));
    }
    fs::remove_file(&path).and_then(|()| sync_directory(&config.state_dir)).map_err(failed)?;
    tracing::warn!(
        "not booting the VM anew: the permission for that is void, the VM has gone on since it was given"
    );
    Ok(None)
}

fn leave(config: &Config) -> PathBuf {
    config.state_dir.join("fresh-boot-allowed")
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ft_arbiter::{Cell, CellId, Outcome};

    struct Node {
        _directory: tempfile::TempDir,
        config: Config,
    }

    impl Node {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let base = directory.path().display();
            let text = format!(
                "vm = \"web\"\nnode = \"alpha\"\nstart_as = \"primary\"\nstate_dir = \"{base}/state\"\n\
                 peer = {{ node = \"beta\", address = \"127.0.0.1:1\" }}\narbiter = {{ path = \"{base}/web.cell\" }}"
            );
            let config = Config::parse(&text, Path::new("test.toml")).unwrap();
            Self { _directory: directory, config }
        }

        fn set(&self, generation: u64, owner: Option<&str>) {
            let cell = Cell { id: CellId(1), generation, owner: owner.map(Into::into), standby: None };
            let expected = (generation > 1).then(|| generation - 1);
            assert!(matches!(self.config.arbiter().compare_and_set(expected, cell), Outcome::Won(_)));
        }
    }

    #[test]
    fn a_leave_is_for_one_boot_of_what_it_names() {
        let node = Node::new();
        node.set(1, Some("alpha"));
        let acted_on = |generation| Some(NodeRecord { cell: CellId(1), generation });
        assert_eq!(take_fresh(&node.config, acted_on(1)).unwrap(), None, "nobody gave any");
        assert_eq!(allow_fresh(&node.config).unwrap(), 1);
        assert_eq!(take_fresh(&node.config, acted_on(1)).unwrap(), Some(1));
        assert_eq!(take_fresh(&node.config, None).unwrap(), Some(1), "it is for a state, not for a start");
        assert_eq!(take_fresh(&node.config, acted_on(2)).unwrap(), None, "it is spent");
        assert_eq!(take_fresh(&node.config, acted_on(1)).unwrap(), None, "and gone");
    }

    #[test]
    fn only_the_owner_of_a_lost_state_gives_it_up() {
        let node = Node::new();
        assert!(matches!(allow_fresh(&node.config), Err(FreshError::NothingLost)));
        node.set(1, Some("beta"));
        let refused = allow_fresh(&node.config).unwrap_err();
        assert_eq!(refused.exit(), DaemonExit::Failure);
        assert!(refused.to_string().contains("node beta owns the VM"), "{refused}");
        node.set(2, None);
        assert!(matches!(allow_fresh(&node.config), Err(FreshError::NothingLost)));
        node.set(3, Some("alpha"));
        let lock = InstanceLock::acquire(&node.config.state_dir).unwrap();
        let refused = allow_fresh(&node.config).unwrap_err();
        assert_eq!(refused.exit(), DaemonExit::InUse);
        assert!(refused.to_string().contains("stop it first"), "{refused}");
        drop(lock);
        assert_eq!(allow_fresh(&node.config).unwrap(), 3);
    }
}
