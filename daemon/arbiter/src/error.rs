//! Errors of an arbiter: why it gave no answer, and at which place.

use crate::etcd::EtcdTrouble;
use crate::majority::MemberSet;
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
    /// In a majority of these services.
    Services(MemberSet),
    /// Under this key of the etcd whose members have these addresses for clients.
    Etcd {
        /// The addresses.
        endpoints: Vec<String>,
        /// The key.
        key: String,
    },
}

const SERVICES: &str = "services ";

impl Place {
    /// Whether two places, as they are told, are two sets of services: then a cell in the one is none in the other,
    /// whatever it says.
    #[must_use]
    pub fn are_unlike_sets(one: &str, other: &str) -> bool {
        one.starts_with(SERVICES) && other.starts_with(SERVICES) && one != other
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(directory) => write!(f, "file {}", directory.display()),
            Self::Service(address) => write!(f, "service {address}"),
            Self::Services(set) => write!(f, "{SERVICES}{set}"),
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
    /// Too few of those that keep the cell together have answered.
    #[error("no majority of {of} arbiters, which is {needed}{}", list(members))]
    NoMajority {
        /// So many are needed.
        needed: usize,
        /// So many there are.
        of: usize,
        /// Those that gave no answer.
        members: Vec<MemberTrouble>,
    },
    /// The other node asks all the time, too.
    #[error("other nodes' rounds came between for {ms} ms; it is asked again")]
    Contended {
        /// For how long.
        ms: u64,
    },
    /// The cell has been set since by others, and what was there before them is not known any more.
    #[error("the cell was changed meanwhile, and nobody knows what was there before")]
    Overtaken,
    /// The service is a member of another set.
    #[error(
        "it keeps cells together with others than this node's arbiter.addresses say: {theirs}; both nodes and all \
         members must have the same list"
    )]
    OtherSet {
        /// Its set.
        theirs: MemberSet,
    },
    /// The service keeps its cells alone.
    #[error(
        "it keeps its cells alone: its configuration has no members, or its store was made before it had; make a new \
         store (`ftd arbiter --create`) where it has no cells that are in use"
    )]
    NoMember,
    /// The service is one of several.
    #[error("it keeps cells together with others: {set}; give them all in arbiter.addresses")]
    KeptTogether {
        /// Its set.
        set: MemberSet,
    },
    /// The service does not know what became of the change.
    #[error("it cannot tell whether the change is durable: {reason}")]
    StoreInDoubt {
        /// Why.
        reason: String,
    },
}

/// Why a member of several gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{address}: {trouble}")]
pub struct MemberTrouble {
    /// Which one.
    pub address: SocketAddr,
    /// Why.
    pub trouble: Box<Trouble>,
}

fn list(members: &[MemberTrouble]) -> String {
    members.iter().map(|member| format!("; {member}")).collect()
}

impl Trouble {
    /// Whether what is kept is damaged, or that of members without which there is no majority.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } | Self::DamagedRecord { .. } => true,
            Self::NoMajority { members, .. } => members.iter().any(|member| member.trouble.is_damage()),
            _ => false,
        }
    }

    /// Whether what was asked gave no sign in time, as storage that hangs gives none.
    #[must_use]
    pub fn is_silence(&self) -> bool {
        match self {
            Self::NoAnswer { .. } | Self::ServiceSilent { .. } => true,
            Self::Etcd(trouble) => trouble.is_silence(),
            Self::NoMajority { members, .. } => members.iter().any(|member| member.trouble.is_silence()),
            _ => false,
        }
    }
}

impl From<EtcdTrouble> for Trouble {
    fn from(trouble: EtcdTrouble) -> Self {
        Self::Etcd(Box::new(trouble))
    }
}
