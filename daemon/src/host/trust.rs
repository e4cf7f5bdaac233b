//! How this daemon's connections are made: with its certificate, or in the clear where the configuration has it so.

use super::HostError;
use crate::config::Config;
use ft_arbiter::Arbiter;
use ft_arbiter::majority::MemberRoll;
use ft_tls::{Credentials, PartyKind, Protection};
use std::sync::Arc;
use std::time::SystemTime;

/// See the module.
#[derive(Clone, Debug)]
pub struct Trust {
    /// Of the link to the peer.
    pub link: Protection,
    /// This host's, where it has some.
    credentials: Option<Arc<Credentials>>,
}

impl Trust {
    /// Of a host without a certificate.
    #[must_use]
    pub fn none() -> Self {
        Self { link: Protection::None, credentials: None }
    }

    /// Has this host's certificate read anew when its files change.
    pub fn watch(&self) -> std::io::Result<()> {
        self.credentials.as_ref().map_or(Ok(()), |credentials| credentials.watch())
    }

    /// This host's certificate, where it has one.
    #[must_use]
    pub fn credentials(&self) -> Option<&Arc<Credentials>> {
        self.credentials.as_ref()
    }

    /// Until when this host's certificate is valid, where it has one.
    #[must_use]
    pub fn expires(&self) -> Option<SystemTime> {
        self.credentials.as_ref().map(|credentials| credentials.expires())
    }
}

impl Config {
    /// Reads this host's certificate, if it is to have one.
    pub fn trust(&self) -> Result<Trust, HostError> {
        let load = |tls: &crate::config::TlsConfig| {
            Credentials::load(tls.files(), &[PartyKind::Node], Some(self.node.as_str())).map(Arc::new)
        };
        let credentials = self.tls.as_ref().map(load).transpose()?;
        let link = match &credentials {
            Some(credentials) if self.is_link_secured() => Protection::Tls(Arc::clone(credentials)),
            _ => Protection::None,
        };
        Ok(Trust { link, credentials })
    }

    /// The arbiter's cell.
    #[must_use]
    pub fn arbiter(&self, trust: &Trust) -> Box<dyn Arbiter> {
        self.arbiter_noting(trust, &MemberRoll::default())
    }

    /// The arbiter's cell; how each of several services that keep it answers is noted in `roll`.
    #[must_use]
    pub fn arbiter_noting(&self, trust: &Trust, roll: &MemberRoll) -> Box<dyn Arbiter> {
        self.arbiter.connect(&self.vm, trust.credentials.as_ref(), roll)
    }
}
