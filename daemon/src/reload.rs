//! SIGHUP: takes from the configuration file that which can change while the VM runs, and says which other keys wait
//! for a restart. A file that is refused changes nothing.

use crate::config::{self, Config, ConfigError};
use crate::control::{Tuning, Wish};
use crate::disks::Disks;
use crate::host::Log;
use crate::outlet::Outlet;
use crate::peer::PeerPlace;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use toml::Value;

/// The keys that count at once.
const RELOADABLE: [&str; 10] = [
    "log.level",
    "peer.node",
    "peer.address",
    "peer.from",
    "replication.hold_ms_max",
    "replication.guest_speed_min_pct",
    "replication.on_overload",
    "replication.failure_timeout_ms",
    "replication.takeover_delay_ms",
    "replication.disk_copy_mib_s",
];

/// See the module.
pub struct Reload {
    /// The file.
    file: PathBuf,
    /// What the daemon goes by.
    running: Mutex<BTreeMap<String, Value>>,
    handles: Handles,
}

/// What a reload reaches.
pub struct Handles {
    /// The messages.
    pub log: Log,
    /// Who the peer is and where.
    pub peer: Arc<PeerPlace>,
    /// Where wishes go.
    pub wishes: Outlet<Wish>,
    /// The writable disks.
    pub disks: Option<Arc<Disks>>,
}

impl Reload {
    /// For a daemon that has just read this file.
    pub fn new(file: &Path, handles: Handles) -> Result<Self, ConfigError> {
        Ok(Self { file: file.to_owned(), running: Mutex::new(config::keys(file)?), handles })
    }

    /// Reads the file again.
    pub fn reload(&self) {
        let read = Config::load(&self.file).and_then(|new| Ok((new, config::keys(&self.file)?)));
        let (new, keys) = match read {
            Ok(read) => read,
            Err(e) => {
                tracing::error!("the configuration is not reloaded, and nothing is changed: {e}");
                return;
            }
        };
        let mut running = self.running.lock();
        let (now, later): (Vec<_>, Vec<_>) =
            changed(&running, &keys).into_iter().partition(|key| RELOADABLE.contains(&key.as_str()));
        self.take(&new);
        for key in &now {
            match keys.get(key) {
                Some(value) => drop(running.insert(key.clone(), value.clone())),
                None => drop(running.remove(key)),
            }
        }
        tracing::info!("{} is reloaded; changed: {}", self.file.display(), listed(&now));
        if now.iter().any(|key| key == "peer.node") {
            tracing::info!("peer.node counts as soon as the VM has no backup of the old name");
        }
        if !later.is_empty() {
            tracing::warn!("these keys count after a restart only: {}", listed(&later));
        }
    }

    fn take(&self, new: &Config) {
        let Handles { log, peer, wishes, disks } = &self.handles;
        if let Err(e) = log.set_level(new.log.level) {
            tracing::warn!("log.level stays as it is: {e}");
        }
        peer.move_to(new.peer.address, new.peer.from);
        if let Some(disks) = disks {
            disks.tap().limit_copy(new.replication.disk_copy_mib_s << 20);
        }
        let retuned = wishes.tell(Wish::Retune(Tuning::from(&new.replication)));
        if retuned.is_err() || wishes.tell(Wish::ReplacePeer(new.peer.node.to_string())).is_err() {
            tracing::debug!("the daemon is ending");
        }
    }
}

fn listed(keys: &[String]) -> String {
    if keys.is_empty() { "nothing".into() } else { keys.join(", ") }
}

/// The keys whose values differ.
fn changed(old: &BTreeMap<String, Value>, new: &BTreeMap<String, Value>) -> Vec<String> {
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    keys.into_iter().filter(|key| old.get(*key) != new.get(*key)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_keys_are_named_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ftd.toml");
        let keys = |text: &str| {
            std::fs::write(&path, text).unwrap();
            config::keys(&path).unwrap()
        };
        let old = keys("vm = \"web\"\n[peer]\nnode = \"beta\"\n[machine.net]\ntap = \"vm\"\n");
        let new = keys("vm = \"web\"\n[peer]\nnode = \"gamma\"\n[log]\nlevel = \"debug\"\n");
        assert_eq!(changed(&old, &new), ["log.level", "machine.net.tap", "peer.node"]);
        assert!(changed(&old, &old).is_empty());
    }
}
