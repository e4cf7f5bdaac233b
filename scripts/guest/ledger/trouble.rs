//! Why a ledger cannot be kept, or is not as it must be.

use std::fmt::{self, Display};
use std::io;
use std::path::Path;

/// What is wrong with a ledger.
#[derive(Debug)]
pub enum Trouble {
    /// The system refused something.
    System {
        /// What was to be done.
        what: String,
        /// Its answer.
        source: io::Error,
    },
    /// The database refused something, or said nonsense.
    Database(String),
    /// What was promised is not there.
    Damage(String),
}

impl Trouble {
    /// The system refused `what` on `path`.
    pub fn system(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let what = format!("{what} {}", path.display());
        move |source| Self::System { what, source }
    }

    /// Something promised is not there, or something never written is.
    pub fn damage<T>(text: impl Into<String>) -> Result<T, Self> {
        Err(Self::Damage(text.into()))
    }
}

impl Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System { what, source } => write!(f, "cannot {what}: {source}"),
            Self::Database(text) => write!(f, "database: {text}"),
            Self::Damage(text) => write!(f, "damage: {text}"),
        }
    }
}

impl std::error::Error for Trouble {}
