//! Who is at the other end: TLS 1.3 with certificates on both sides, between the machines of one site.
//!
//! A site has one certificate authority. Each of its machines and operators has a certificate of it that says what its
//! holder is, and by which name ([`Party`]): `alpha.node.ftd` is the node alpha, and can neither be an arbiter nor
//! another node. [`CertificateSite`] makes such certificates (`ftd keygen`). [`Credentials`] are what one party has of
//! them, read from files, and anew when the files have changed. [`Channel`] is a connection, in TLS or in the clear;
//! both halves may be used at the same time. [`Places`] bound how many of them a listener has.
//!
//! Nothing is resumed: each handshake proves both keys anew, and nothing arrives before that.

mod channel;
mod credentials;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod party;
mod places;
mod site;
#[cfg(test)]
mod tests;
mod verdict;

pub use channel::Channel;
pub use credentials::{CredentialFiles, Credentials, Material, Protection};
pub use error::{CredentialError, TlsError};
pub use party::{BadPartyName, Party, PartyKind};
pub use places::{NoPlace, Places, TakenPlace};
pub use site::{CertificateSite, SiteError, Validity};

/// What is spoken on a connection: a listener takes its own only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecuredService {
    /// Between two nodes.
    Replication,
    /// To `ftd arbiter`.
    Arbiter,
    /// From `ftctl --host` to the daemon of a VM.
    Control,
}

impl SecuredService {
    /// As TLS negotiates it (ALPN).
    fn protocol(self) -> Vec<u8> {
        let name: &[u8] = match self {
            Self::Replication => b"ftd-replication",
            Self::Arbiter => b"ftd-arbiter",
            Self::Control => b"ftd-control",
        };
        name.to_owned()
    }
}
