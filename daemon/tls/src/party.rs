//! Who holds a certificate: what it may be, and its name.

use rustls::pki_types::ServerName;
use std::fmt::{self, Display};
use std::str::FromStr;

/// What the holder of a certificate may be. A node's certificate makes no arbiter, and an operator's no node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PartyKind {
    /// One of the hosts of VMs: pairs with its peer, and asks for cells.
    Node,
    /// Serves the cells.
    Arbiter,
    /// Tells daemons and arbiters what to do.
    Operator,
    /// Sees what an operator sees, and changes nothing.
    Observer,
}

impl PartyKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Node, Self::Arbiter, Self::Operator, Self::Observer];

    /// The word for it, here and in certificates.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Arbiter => "arbiter",
            Self::Operator => "operator",
            Self::Observer => "observer",
        }
    }
}

/// The end of the names in certificates: no public name ends so.
const DOMAIN: &str = "ftd";

/// The holder of a certificate. A certificate of ftd has exactly one DNS name, `NAME.KIND.ftd`, which says both.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Party {
    kind: PartyKind,
    name: String,
}

/// A name that no certificate can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' cannot be a name in a certificate: 1 to 32 of a-z, 0-9 and '-', with no '-' at either end")]
pub struct BadPartyName(String);

impl Party {
    /// The party of this kind with this name.
    pub fn new(kind: PartyKind, name: &str) -> Result<Self, BadPartyName> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_label = (1..=32).contains(&name.len()) && name.bytes().all(allowed);
        if is_label && !name.starts_with('-') && !name.ends_with('-') {
            Ok(Self { kind, name: name.to_owned() })
        } else {
            Err(BadPartyName(name.to_owned()))
        }
    }

    /// What it may be.
    #[must_use]
    pub fn kind(&self) -> PartyKind {
        self.kind
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// As certificates have it.
    #[must_use]
    pub fn dns_name(&self) -> String {
        format!("{}.{}.{DOMAIN}", self.name, self.kind.word())
    }

    /// For the check of a certificate.
    pub(crate) fn server_name(&self) -> ServerName<'static> {
        ServerName::try_from(self.dns_name()).expect("labels of letters, digits and hyphens are a DNS name")
    }
}

/// The party of a DNS name; nothing where the name is none of ftd's.
impl FromStr for Party {
    type Err = BadPartyName;

    fn from_str(dns_name: &str) -> Result<Self, BadPartyName> {
        let bad = || BadPartyName(dns_name.to_owned());
        let mut labels = dns_name.split('.');
        let (Some(name), Some(word), Some(DOMAIN), None) =
            (labels.next(), labels.next(), labels.next(), labels.next())
        else {
            return Err(bad());
        };
        let kind = PartyKind::ALL.into_iter().find(|kind| kind.word() == word).ok_or_else(bad)?;
        Self::new(kind, name)
    }
}

impl Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.word(), self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_party_has_one_dns_name_and_nothing_else_is_one() {
        let party = Party::new(PartyKind::Node, "alpha-2").unwrap();
        assert_eq!(
            (party.dns_name().as_str(), party.to_string().as_str()),
            ("alpha-2.node.ftd", "node alpha-2")
        );
        let wrong =
            ["", "alpha", "alpha.node", "alpha.node.ftd.", "a.b.node.ftd", "alpha.host.ftd", ".node.ftd"];
        for name in wrong.into_iter().chain(["-a.node.ftd", "a-.node.ftd", "A.node.ftd", "*.node.ftd"]) {
            assert!(name.parse::<Party>().is_err(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn what_is_named_is_recognised(kind in prop::sample::select(&PartyKind::ALL[..]), name in "[a-z0-9-]{1,33}") {
            match Party::new(kind, &name) {
                Ok(party) => {
                    prop_assert_eq!(party.dns_name().parse(), Ok(party.clone()));
                    party.server_name();
                }
                Err(_) => prop_assert!(name.len() > 32 || name.starts_with('-') || name.ends_with('-')),
            }
        }
    }
}
