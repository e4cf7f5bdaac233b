//! Which services keep a cell together.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use thiserror::Error;

/// No set has more members.
pub const MEMBERS_MAX: usize = 7;

/// The addresses of the members, in order. They are the set's identity: every node and every member of it has the
/// same ones.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "Vec<SocketAddr>", try_from = "Vec<SocketAddr>")]
pub struct MemberSet(Vec<SocketAddr>);

/// Why addresses are no set.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadMembers {
    /// Too few, too many, or an even number.
    #[error(
        "{0} members: must be 3, 5 or {MEMBERS_MAX}, of which less than half may be away; or 2, which must both be \
         there"
    )]
    Number(usize),
    /// One is there twice.
    #[error("{0} is there twice")]
    Twice(SocketAddr),
    /// Not as it is written.
    #[error("the members are not in order")]
    Order,
    /// No port.
    #[error("{0}: must be the service's IP address and port")]
    Address(SocketAddr),
}

impl MemberSet {
    /// Of these addresses, in any order.
    pub fn new(addresses: &[SocketAddr]) -> Result<Self, BadMembers> {
        let canonical = |address: &SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        let mut set: Vec<_> = addresses.iter().map(canonical).collect();
        set.sort_unstable();
        if let Some(twice) = set.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(BadMembers::Twice(twice[0]));
        }
        if let Some(address) = set.iter().find(|address| address.port() == 0 || address.ip().is_unspecified())
        {
            return Err(BadMembers::Address(*address));
        }
        match set.len() {
            2 | 3 | 5 | MEMBERS_MAX => Ok(Self(set)),
            number => Err(BadMembers::Number(number)),
        }
    }

    /// Each member's address.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.0
    }

    /// So many decide.
    #[must_use]
    pub fn majority(&self) -> usize {
        self.0.len() / 2 + 1
    }
}

impl From<MemberSet> for Vec<SocketAddr> {
    fn from(set: MemberSet) -> Self {
        set.0
    }
}

impl TryFrom<Vec<SocketAddr>> for MemberSet {
    type Error = BadMembers;

    fn try_from(addresses: Vec<SocketAddr>) -> Result<Self, BadMembers> {
        let set = Self::new(&addresses)?;
        // One form only: what is read is what would be written.
        if set.0 == addresses { Ok(set) } else { Err(BadMembers::Order) }
    }
}

impl fmt::Display for MemberSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, address) in self.0.iter().enumerate() {
            write!(f, "{}{address}", if nth > 0 { " " } else { "" })?;
        }
        Ok(())
    }
}
