//! Errors of an arbiter: why it gave no answer, and at which place.

use crate::etcd::EtcdTrouble;
use nix::errno::Errno;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use thiserror::Error;

/// Where an arbiter keeps the cell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// In this directory.
    File(PathBuf),
    /// In the service at this address.
    Service(SocketAddr),
    /// Under this key of the etcd whose members have these addresses for clients.
    Etcd {
        /// The addresses.
        endpoints: Vec<String>,
        /// The key.
        key: String,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(directory) => write!(f, "file {}", directory.display()),
            Self::Service(address) => write!(f, "service {address}"),
            Self::Etcd { endpoints, key } => write!(f, "etcd {}, key {key}", endpoints.join(" ")),
        }
    }
}

/// The arbiter at `place` gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{place}: {trouble}")]
pub struct ArbiterError {
    /// Which arbiter.
    pub place: Place,
    /// Why.
    #[source]
    pub trouble: Trouble,
}

/// Why an arbiter gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Trouble {
    /// The storage failed.
    #[error("{at}: {}", errno.desc())]
    Storage {
        /// The step that failed.
        at: &'static str,
        /// How.
        #[source]
        errno: Errno,
    },
    /// It has not answered for so long that nobody waits for it any more. It may yet do what was asked.
    #[error("no answer for {seconds} s: the storage hangs, or was replaced under a call")]
    NoAnswer {
        /// How long it was waited for.
        seconds: u64,
    },
    /// The cell is damaged. It is never taken for an empty one.
    #[error("the cell is damaged: {file}: {reason}; find out which node has the VM, then remove it")]
    Damaged {
        /// The damaged file's name, or the key.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The cell belongs to another VM.
    #[error("this is the cell of VM '{found}', not of '{vm}'")]
    OtherVm {
        /// The VM that it belongs to.
        found: String,
        /// The VM that it should belong to.
        vm: String,
    },
    /// A crash of the storage has taken a generation back that was there before.
    #[error(
        "the storage has lost generation {generation}, which it held before: do not mount it asynchronously"
    )]
    TakenBack {
        /// The generation.
        generation: u64,
    },
    /// etcd gave none.
    #[error(transparent)]
    Etcd(Box<EtcdTrouble>),
    /// The caller asked for a generation that does not follow the expected one.
    #[error("generation {new} does not follow {expected:?}")]
    Generation {
        /// The generation expected.
        expected: Option<u64>,
        /// The generation asked for.
        new: u64,
    },
    /// The service's record of the cell is damaged.
    #[error(
        "its record of the cell of '{vm}' is damaged: {reason}; find out which node has the VM, then stop the arbiter \
         and run `ftd arbiter --forget {vm}`"
    )]
    DamagedRecord {
        /// The VM.
        vm: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no way to the service.
    #[error(
        "it cannot be reached: {reason}; is `ftd arbiter` running there, and does no firewall stand between?"
    )]
    Unreachable {
        /// Why.
        reason: String,
    },
    /// The service does not answer in time.
    #[error("no answer for {ms} ms: the service or its disk hangs, or the network drops what is sent")]
    ServiceSilent {
        /// How long it was waited for.
        ms: u64,
    },
    /// The connection ended before the answer.
    #[error("the connection ended before the answer: {reason}")]
    Cut {
        /// How.
        reason: String,
    },
    /// Something else listens there.
    #[error("what listens there does not speak as `ftd arbiter` does: {reason}; check the address")]
    NotAService {
        /// What it said.
        reason: String,
    },
    /// One of the two does not take the other's certificate, or has none.
    #[error("no connection in TLS: {reason}")]
    Unproven {
        /// Why.
        reason: String,
    },
    /// Another version of the protocol.
    #[error("it speaks version {theirs} of the protocol, this ftd version {ours}: upgrade the older one")]
    ServiceVersion {
        /// The service's.
        theirs: u16,
        /// This side's.
        ours: u16,
    },
    /// The service did nothing, and says so.
    #[error("it refuses: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// The service does not know what became of the change.
    #[error("it cannot tell whether the change is durable: {reason}")]
    StoreInDoubt {
        /// Why.
        reason: String,
    },
}

impl Trouble {
    /// Whether what was asked gave no sign in time, as storage that hangs gives none.
    #[must_use]
    pub fn is_silence(&self) -> bool {
        match self {
            Self::NoAnswer { .. } | Self::ServiceSilent { .. } => true,
            Self::Etcd(trouble) => trouble.is_silence(),
            _ => false,
        }
    }
}

impl From<EtcdTrouble> for Trouble {
    fn from(trouble: EtcdTrouble) -> Self {
        Self::Etcd(Box::new(trouble))
    }
}
