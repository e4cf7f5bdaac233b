//! Why a connection is not made, and why credentials are not taken.

use crate::verdict;
use std::io;
use std::path::PathBuf;

/// Why a connection did not come to be secured, or is not any more.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The handshake took too long.
    #[error("the TLS handshake was not over in time")]
    TimedOut,
    /// What was heard at the other end ends it, or the other end does.
    #[error("{}", verdict::told(.0))]
    Tls(#[from] rustls::Error),
    /// The other end is proven to be somebody else.
    #[error("{0}")]
    NotAdmitted(String),
}

impl TlsError {
    /// What kind of reason it is, in a word for a metric.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Io(_) => "broken",
            Self::TimedOut => "silent",
            Self::Tls(_) => "unproven",
            Self::NotAdmitted(_) => "unadmitted",
        }
    }
}

/// Why certificates and keys in files are not taken.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it must.
    #[error("{}: {what}", file.display())]
    Content {
        /// Which.
        file: PathBuf,
        /// What is wrong.
        what: String,
    },
}
