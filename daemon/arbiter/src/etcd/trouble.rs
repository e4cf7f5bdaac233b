//! Why etcd gave no answer that could be used, and what to do about it.

use std::fmt::Display;
use std::path::PathBuf;
use thiserror::Error;

/// Why etcd gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EtcdTrouble {
    /// No connection was made, so nothing was asked.
    #[error("{endpoint} cannot be reached ({why}): check that etcd runs there, and the way to it")]
    Unreachable {
        /// The endpoint.
        endpoint: String,
        /// How it failed.
        why: String,
    },
    /// The certificates of its authority cannot be used.
    #[error("the authority of etcd's certificates, {}: {why}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It was asked, and has not answered in time.
    #[error("{endpoint} has not answered within {limit_ms} ms: it hangs, or has no quorum")]
    Silent {
        /// The endpoint.
        endpoint: String,
        /// How long it was waited for.
        limit_ms: u128,
    },
    /// It was asked, and the connection broke.
    #[error("the connection to {endpoint} broke before its answer ({why})")]
    Broken {
        /// The endpoint.
        endpoint: String,
        /// How.
        why: String,
    },
    /// The members do not agree now.
    #[error(
        "{endpoint} says '{said}': etcd has no leader or no quorum, and serves again once most of its members run and \
         reach each other"
    )]
    NoQuorum {
        /// The endpoint.
        endpoint: String,
        /// Its words.
        said: String,
    },
    /// What answers is not etcd.
    #[error(
        "what answers at {endpoint} is not etcd ({why}): check the address and the port for clients, often 2379"
    )]
    NotEtcd {
        /// The endpoint.
        endpoint: String,
        /// What gives it away.
        why: String,
    },
    /// It has no JSON gateway.
    #[error(
        "{endpoint} does not know /v3/kv: it must be etcd 3.4 or later, without --enable-grpc-gateway=false (its \
         /version tells which it is)"
    )]
    NoGateway {
        /// The endpoint.
        endpoint: String,
    },
    /// The user may not do this.
    #[error(
        "etcd says '{said}': {user} needs a role with read and write permission for {key} and what is beside it; check \
         the roles, and the prefix"
    )]
    Denied {
        /// Who asked.
        user: String,
        /// The cell's key.
        key: String,
        /// Its words.
        said: String,
    },
    /// User or password is wrong.
    #[error("etcd says '{said}': check user and password file")]
    WrongLogin {
        /// Its words.
        said: String,
    },
    /// It wants to know who asks.
    #[error("etcd says '{said}': it has authentication enabled; set user and password file")]
    LoginNeeded {
        /// Its words.
        said: String,
    },
    /// It has no users.
    #[error("etcd says '{said}': leave out user and password file, or enable authentication in etcd")]
    LoginUnknown {
        /// Its words.
        said: String,
    },
    /// The password cannot be had.
    #[error("password file {}: {why}", path.display())]
    Password {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Its database has reached its quota.
    #[error(
        "etcd says '{said}': compact and defragment it, clear the alarm (etcdctl alarm disarm), and run it with \
         --auto-compaction-retention=1h"
    )]
    Full {
        /// Its words.
        said: String,
    },
    /// Another refusal.
    #[error("{endpoint} says '{said}'")]
    Refused {
        /// The endpoint.
        endpoint: String,
        /// Its words.
        said: String,
    },
    /// The endpoint is of another cluster than the one that answered before.
    #[error(
        "{endpoint} is of cluster {found:x}, and the one that answered before of {known:x}: all endpoints must be of \
         one cluster; if it was set up anew, see which node has the VM, then restart ftd"
    )]
    OtherCluster {
        /// The endpoint.
        endpoint: String,
        /// Its cluster.
        found: u64,
        /// The cluster before.
        known: u64,
    },
    /// Somebody else has written the same cell once more.
    #[error("the key was written again with the same cell, and not by ftd: it is tried again")]
    Rewritten,
    /// None of several endpoints is of use.
    #[error("none of the endpoints is of use: {}", list(.0))]
    All(Vec<EtcdTrouble>),
}

impl EtcdTrouble {
    /// Whether no endpoint gave a sign in time.
    pub(crate) fn is_silence(&self) -> bool {
        match self {
            Self::Silent { .. } => true,
            Self::All(troubles) => troubles.iter().all(Self::is_silence),
            _ => false,
        }
    }
}

fn list(troubles: &[impl Display]) -> String {
    troubles.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) trouble: EtcdTrouble,
    /// It has not been carried out, and never will be.
    pub(super) is_certain: bool,
    /// Another endpoint may do better.
    pub(super) may_pass: bool,
}

impl Failed {
    /// Nothing was done, and every member would say the same.
    pub(super) fn refused(trouble: EtcdTrouble) -> Self {
        Self { trouble, is_certain: true, may_pass: false }
    }

    /// Nothing was done by this member.
    pub(super) fn elsewhere(trouble: EtcdTrouble) -> Self {
        Self { trouble, is_certain: true, may_pass: true }
    }

    /// It may have been done.
    pub(super) fn in_doubt(trouble: EtcdTrouble) -> Self {
        Self { trouble, is_certain: false, may_pass: true }
    }
}
