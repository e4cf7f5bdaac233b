//! The configuration of `ftd arbiter`, which serves the cells of many VMs.

use super::{ConfigError, LogConfig, MetricsConfig, Security, TlsConfig, file, services};
use ft_arbiter::majority::MemberSet;
use ft_arbiter::service::ARBITER_PORT;
use ft_tls::{CredentialError, Credentials, PartyKind, Protection};
use serde::Deserialize;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// What `ftd arbiter` serves, and where. The comments of `scripts/systemd/ftd-arbiter.example.toml` are its manual.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServedConfig {
    /// Where it listens.
    #[serde(default = "loopback")]
    pub listen: SocketAddr,
    /// The file with the cells.
    pub store: PathBuf,
    /// The services that keep the cells together, this one among them, as the nodes reach them; none: it keeps them
    /// alone.
    pub members: Option<Vec<SocketAddr>>,
    /// What protects its connections.
    pub security: Option<Security>,
    /// What it proves itself by.
    pub tls: Option<TlsConfig>,
    /// Messages.
    #[serde(default)]
    pub log: LogConfig,
    /// Prometheus.
    #[serde(default)]
    pub metrics: MetricsConfig,
}

impl ServedConfig {
    /// Reads and judges a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(&file::read(path)?)
            .map_err(|source| ConfigError::Parse { file: path.to_owned(), source: Box::new(source) })?;
        config.validate(path)?;
        Ok(config)
    }

    /// Judges the values; `file` is for the messages.
    pub fn validate(&self, file: &Path) -> Result<(), ConfigError> {
        let refused = |key, value: &dyn std::fmt::Display, allowed: &str| {
            let file = file.to_owned();
            Err(ConfigError::Value { file, key, value: value.to_string(), allowed: allowed.to_owned() })
        };
        if !self.store.is_absolute() || self.store.file_name().is_none() {
            return refused("store", &self.store.display(), "must be an absolute path");
        }
        if let Some(members) = &self.members
            && let Err(e) = services::members(members)
        {
            return refused("members", &services::told(members), &e.to_string());
        }
        for (key, path) in
            self.tls.iter().flat_map(|tls| [("tls.ca", &tls.ca), ("tls.identity", &tls.identity)])
        {
            if !path.is_absolute() {
                return refused(key, &path.display(), "must be an absolute path");
            }
        }
        if !self.is_local() && self.security.is_none() && self.tls.is_none() {
            return refused(
                "listen",
                &self.listen,
                "connections are not protected: must be an address of loopback; or [tls] be given, with this host's \
                 certificate (ftd keygen makes it), or security = \"none\", where nobody but the nodes can reach it",
            );
        }
        Ok(())
    }

    /// Whose member it is; none: it keeps cells alone.
    #[must_use]
    pub fn set(&self) -> Option<MemberSet> {
        services::members(self.members.as_deref()?).ok()
    }

    /// Reads its certificate, if it is to have one.
    pub fn protection(&self) -> Result<Protection, CredentialError> {
        match &self.tls {
            Some(tls) if self.security != Some(Security::None) => {
                Ok(Protection::Tls(Credentials::load(tls.files(), &[PartyKind::Arbiter], None)?.into()))
            }
            _ => Ok(Protection::None),
        }
    }

    /// Whether only this host can reach it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.listen.ip().to_canonical().is_loopback()
    }
}

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, ARBITER_PORT).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../../scripts/systemd/ftd-arbiter.example.toml");

    fn judge(text: &str) -> Result<ServedConfig, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("arbiter.toml");
        std::fs::write(&path, text).unwrap();
        ServedConfig::load(&path).map_err(|e| e.to_string())
    }

    #[test]
    fn the_example_listens_where_a_file_without_the_keys_does() {
        let config = judge(EXAMPLE).unwrap();
        assert_eq!(config, judge(&format!("store = \"{}\"", config.store.display())).unwrap());
        assert_eq!(config.listen.port(), ARBITER_PORT);
        let told =
            judge(&EXAMPLE.replace("# listen = ", "listen = ").replace("# security = ", "security = "))
                .unwrap();
        assert!(!told.is_local() && told.security == Some(Security::None));
    }

    #[test]
    fn other_hosts_are_served_only_where_that_is_said_to_be_safe() {
        let message = judge("listen = \"0.0.0.0:7390\"\nstore = \"/s\"").unwrap_err();
        assert!(
            message.contains("listen = 0.0.0.0:7390") && message.contains("security = \"none\""),
            "{message}"
        );
        assert!(judge("listen = \"0.0.0.0:7390\"\nsecurity = \"none\"\nstore = \"/s\"").is_ok());
        assert!(judge("listen = \"[::1]:7390\"\nstore = \"/s\"").is_ok());
        let members = |list: &str| judge(&format!("store = \"/s\"\nmembers = [{list}]"));
        let set = members("\"10.0.0.5:1\", \"10.0.0.3:1\", \"10.0.0.4:1\"").unwrap().set().unwrap();
        assert_eq!(set.to_string(), "10.0.0.3:1 10.0.0.4:1 10.0.0.5:1");
        let message = members("\"10.0.0.5:1\", \"10.0.0.5:1\", \"10.0.0.4:1\"").unwrap_err();
        assert!(message.contains("members = 10.0.0.5:1, 10.0.0.5:1, 10.0.0.4:1: 10.0.0.5:1 is there twice"));
        assert!(judge("store = \"cells\"").unwrap_err().contains("absolute"));
        assert!(judge("store = \"/s\"\nzz = 1").unwrap_err().contains("unknown field `zz`"));
    }
}
