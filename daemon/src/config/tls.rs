//! `[tls]`: what this host proves itself by, and which connections do without.

use super::validate::{BadValue, refuse};
use super::{Config, Security};
use ft_tls::CredentialFiles;
use serde::Deserialize;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Where `ftd keygen`'s files are expected.
pub const TLS_DIRECTORY: &str = "/etc/ftd/tls";

/// What this host proves itself by.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// The certificates of those who sign this site's.
    pub ca: PathBuf,
    /// This host's certificate and private key.
    pub identity: PathBuf,
}

impl Default for TlsConfig {
    fn default() -> Self {
        let CredentialFiles { ca, identity } = CredentialFiles::within(Path::new(TLS_DIRECTORY));
        Self { ca, identity }
    }
}

impl TlsConfig {
    /// Its files.
    #[must_use]
    pub fn files(&self) -> CredentialFiles {
        CredentialFiles { ca: self.ca.clone(), identity: self.identity.clone() }
    }
}

/// What must be so where a connection leaves this host.
pub(super) const MUST_BE_SAFE: &str = "the connection is not protected: needs [tls] with this host's certificate (ftd \
     keygen makes it), or security = \"none\" where nobody else can reach its network";

impl Config {
    /// The link to the peer leaves this host in the clear only where the operator says that this is safe.
    pub(super) fn validate_link(&self) -> Result<(), BadValue> {
        if self.is_link_local() || self.replication.security.is_some() || self.tls.is_some() {
            return Ok(());
        }
        refuse("peer.address", self.peer.address, MUST_BE_SAFE)
    }

    /// Whether the peer is on this host.
    fn is_link_local(&self) -> bool {
        let listens = self.replication.listen.map(|listen| listen.ip());
        [Some(self.peer.address.ip()), self.peer.from, listens].into_iter().flatten().all(is_loopback)
    }

    /// Whether the link to the peer is in TLS.
    #[must_use]
    pub fn is_link_secured(&self) -> bool {
        self.tls.is_some() && self.replication.security != Some(Security::None)
    }

    /// What the operator should know of connections in the clear, and of two arbiters, each with the key that makes it
    /// so.
    #[must_use]
    pub fn connection_warnings(&self) -> Vec<String> {
        let link = (!self.is_link_secured() && !self.is_link_local()).then(|| {
            format!(
                "replication.security = \"none\": the link to {} is neither encrypted nor authenticated: whoever \
                 reaches that network can read and change the VM",
                self.peer.address
            )
        });
        let clear = link.into_iter().chain(self.arbiter.warning(self.tls.is_some()));
        clear.chain(self.arbiter.two_warning()).collect()
    }
}

pub(super) fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(link: &str) -> Result<Config, String> {
        let text = format!(
            "vm = \"web\"\nnode = \"alpha\"\nstart_as = \"primary\"\narbiter = {{ path = \"/shared/cell\" }}\n{link}"
        );
        Config::parse(&text, Path::new("ftd.toml")).map_err(|e| e.to_string())
    }

    #[test]
    fn the_link_leaves_the_host_protected_or_where_that_is_said_to_be_safe() {
        let far = "peer = { node = \"beta\", address = \"10.0.0.2:7400\" }";
        let near = "peer = { node = \"beta\", address = \"127.0.0.2:7400\" }";
        let why = judge(far).unwrap_err();
        assert!(why.contains("peer.address = 10.0.0.2:7400: the connection is not protected"), "{why}");
        assert!(judge(&format!("{near}\nreplication = {{ listen = \"0.0.0.0:7400\" }}")).is_err());
        let config = judge(near).unwrap();
        assert!(!config.is_link_secured() && config.connection_warnings().is_empty());
        let config = judge(&format!("{far}\n[tls]")).unwrap();
        assert!(config.is_link_secured() && config.connection_warnings().is_empty());
        assert_eq!(config.tls.unwrap().files(), CredentialFiles::within(Path::new("/etc/ftd/tls")));
        let config = judge(&format!("{far}\nreplication = {{ security = \"none\" }}\n[tls]")).unwrap();
        assert!(!config.is_link_secured());
        assert!(config.connection_warnings()[0].contains("the link to 10.0.0.2:7400 is neither encrypted"));
        let why = judge(&format!("{far}\n[tls]\nca = \"ca.pem\"")).unwrap_err();
        assert!(why.contains("tls.ca = ca.pem: must be an absolute path"), "{why}");
        assert!(judge(&format!("{far}\n[tls]\nkey = \"/k\"")).unwrap_err().contains("unknown field `key`"));
    }
}
