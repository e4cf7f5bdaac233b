//! The cell as one key of an etcd cluster. Most of its members must run: of three, one may be away.
//!
//! The cell is read, and set by one transaction that compares the key's modification revision with what was read. Reads
//! are linearizable, and etcd has a write on stable storage of most members before it answers. The value is the record
//! that the file arbiter writes: a text with a checksum.
//!
//! etcd is asked through its JSON gateway (`docs/decisions/0021-etcd-through-its-json-gateway.md`). `message` is
//! what is said, `gateway` how and to whom.

#[doc(hidden)]
pub mod fuzzing;
mod gateway;
mod message;
mod trouble;

pub use trouble::EtcdTrouble;

use crate::file::record::{self, FORMAT_VERSION, Record};
use crate::{Arbiter, ArbiterError, Cell, Outcome, Place, Trouble};
use ft_tls::Credentials;
use gateway::{Gateway, Request};
use message::{Set, Stored};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use trouble::Failed;

/// How long one member is waited for. Three that hang are given up before a check of the host gives up.
pub const ANSWER_LIMIT: Duration = Duration::from_millis(900);

/// Which etcd, and where in it.
#[derive(Clone, Debug)]
pub struct EtcdSettings {
    /// The members' addresses for clients, `http://HOST:PORT` or `https://HOST:PORT`; at least one. The first is asked first.
    pub endpoints: Vec<String>,
    /// Before the VM's name in each key.
    pub prefix: String,
    /// Who asks, where etcd has authentication enabled.
    pub login: Option<EtcdLogin>,
    /// What members with `https` are asked with.
    pub tls: Option<EtcdTls>,
    /// How long one member is waited for.
    pub answer_limit: Duration,
}

/// What members of etcd are asked with in TLS.
#[derive(Clone, Debug)]
pub struct EtcdTls {
    /// This host's.
    pub credentials: Arc<Credentials>,
    /// The certificates of those who sign the members', if not the site's.
    pub ca: Option<PathBuf>,
}

/// A user of etcd's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdLogin {
    /// The name.
    pub user: String,
    /// Holds the password in its first line. It is read at each login.
    pub password_file: PathBuf,
}

/// The back end "etcd".
#[derive(Debug)]
pub struct EtcdArbiter {
    vm: String,
    key: String,
    /// What probes write.
    beside: String,
    place: Place,
    gateway: Gateway,
}

impl EtcdArbiter {
    /// The cell of `vm`.
    ///
    /// # Panics
    ///
    /// If there is no endpoint.
    #[must_use]
    pub fn new(settings: &EtcdSettings, vm: &str) -> Self {
        assert!(!settings.endpoints.is_empty(), "somebody must be asked");
        let key = format!("{}{vm}/cell", settings.prefix);
        Self {
            vm: vm.to_owned(),
            beside: format!("{}{vm}/probe", settings.prefix),
            place: Place::Etcd { endpoints: settings.endpoints.clone(), key: key.clone() },
            gateway: Gateway::new(settings, &key),
            key,
        }
    }

    fn error(&self, trouble: impl Into<Trouble>) -> ArbiterError {
        ArbiterError { place: self.place.clone(), trouble: trouble.into() }
    }

    fn load(&mut self) -> Result<Option<Stored>, ArbiterError> {
        let request = Request { path: "/v3/kv/range", body: message::range(&self.key), is_repeatable: true };
        let answer = self.gateway.ask(&request, |answer| message::ranged(answer, &self.key));
        answer.map_err(|failed| self.error(failed.trouble))
    }

    fn cell(&self, stored: Option<&Stored>) -> Result<Option<Cell>, ArbiterError> {
        let Some(stored) = stored else { return Ok(None) };
        let damaged = |reason| self.error(Trouble::Damaged { file: self.key.clone(), reason });
        let record = record::decode(&stored.value).map_err(|error| damaged(error.to_string()))?;
        if record.vm != self.vm {
            return Err(self.error(Trouble::OtherVm { found: record.vm, vm: self.vm.clone() }));
        }
        Ok(Some(record.cell))
    }

    /// Sets the cell, which was found to be what is expected.
    fn carry_out(&mut self, found: Option<&Stored>, new: Cell) -> Outcome {
        let record = Record { version: FORMAT_VERSION, vm: self.vm.clone(), cell: new.clone() };
        let body = message::set(&self.key, found, &record::encode(&record));
        let request = Request { path: "/v3/kv/txn", body, is_repeatable: false };
        let found = match self.gateway.ask(&request, |answer| message::was_set(answer, &self.key)) {
            Ok(Set::Done) => return Outcome::Won(new),
            Ok(Set::Found(found)) => found,
            Err(Failed { trouble, is_certain: true, .. }) => {
                return Outcome::NotAttempted(self.error(trouble));
            }
            Err(Failed { trouble, .. }) => return Outcome::Unknown(self.error(trouble)),
        };
        // Nothing was changed: the comparison failed.
        match self.cell(found.as_ref()) {
            Ok(cell) if follows(&new, cell.as_ref()) => {
                Outcome::NotAttempted(self.error(EtcdTrouble::Rewritten))
            }
            Ok(cell) => Outcome::Lost(cell),
            Err(error) => Outcome::NotAttempted(error),
        }
    }
}

/// Whether `new` is the next step from this cell.
fn follows(new: &Cell, current: Option<&Cell>) -> bool {
    match current {
        None => new.generation == 1,
        Some(cell) => cell.id == new.id && cell.generation.checked_add(1) == Some(new.generation),
    }
}

impl Arbiter for EtcdArbiter {
    fn read(&mut self) -> Result<Option<Cell>, ArbiterError> {
        let stored = self.load()?;
        self.cell(stored.as_ref())
    }

    fn compare_and_set(&mut self, expected: Option<u64>, new: Cell) -> Outcome {
        if expected.unwrap_or(0).checked_add(1) != Some(new.generation) {
            return Outcome::NotAttempted(self.error(Trouble::Generation { expected, new: new.generation }));
        }
        let found = match self.load() {
            Ok(found) => found,
            Err(error) => return Outcome::NotAttempted(error),
        };
        match self.cell(found.as_ref()) {
            Ok(cell) if follows(&new, cell.as_ref()) => self.carry_out(found.as_ref(), new),
            Ok(cell) => Outcome::Lost(cell),
            Err(error) => Outcome::NotAttempted(error),
        }
    }

    /// Sets a key beside the cell's, in one transaction that needs every permission that a compare-and-set needs.
    fn probe(&mut self) -> Result<Option<Cell>, ArbiterError> {
        let body = message::probe(&self.key, &self.beside);
        let request = Request { path: "/v3/kv/txn", body, is_repeatable: true };
        let answer = self.gateway.ask(&request, |answer| message::probed(answer, &self.key));
        let stored = answer.map_err(|failed| self.error(failed.trouble))?;
        self.cell(stored.as_ref())
    }

    fn place(&self) -> Place {
        self.place.clone()
    }
}

#[cfg(test)]
mod tests;
