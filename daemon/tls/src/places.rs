//! How many connections a listener has, in all and from one source. A place is taken before anything is read, and given
//! back when it is dropped: whoever has no certificate costs no more than the places of his source.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

/// See the module.
#[derive(Debug)]
pub struct Places {
    in_all: usize,
    per_source: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// One that is taken.
#[derive(Debug)]
pub struct TakenPlace {
    places: Arc<Places>,
    source: IpAddr,
}

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    /// The source has as many as it may.
    #[error("{source_ip} has {count} connections already")]
    OfSource {
        /// An address, or the /64 of one.
        source_ip: IpAddr,
        /// How many it has.
        count: usize,
    },
    /// The listener has.
    #[error("it has {0} connections already")]
    InAll(usize),
}

impl Places {
    /// So many in all, and so many for one address, or for one /64 of IPv6.
    #[must_use]
    pub fn new(in_all: usize, per_source: usize) -> Arc<Self> {
        Arc::new(Self { in_all, per_source, taken: Mutex::default() })
    }

    /// Takes one for a connection from there.
    pub fn take(self: &Arc<Self>, from: IpAddr) -> Result<TakenPlace, NoPlace> {
        let source = source_of(from);
        let mut taken = self.taken.lock();
        let count = taken.get(&source).copied().unwrap_or(0);
        if count >= self.per_source {
            return Err(NoPlace::OfSource { source_ip: source, count });
        }
        let in_all = taken.values().sum();
        if in_all >= self.in_all {
            return Err(NoPlace::InAll(in_all));
        }
        taken.insert(source, count + 1);
        Ok(TakenPlace { places: Arc::clone(self), source })
    }
}

impl TakenPlace {
    /// Where the connection comes from: its address, or the /64 of it.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        self.source
    }
}

impl Drop for TakenPlace {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        match taken.get_mut(&self.source) {
            Some(count) if *count > 1 => *count -= 1,
            // A source without connections is forgotten.
            _ => drop(taken.remove(&self.source)),
        }
    }
}

/// What counts as one source: whoever has one IPv6 address has its /64.
fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::from([a, b, c, d, 0, 0, 0, 0]).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_source_has_its_places_and_no_more_and_leaves_the_others_theirs() {
        let places = Places::new(3, 2);
        let first = places.take(ip("2001:db8::1")).unwrap();
        let _second = places.take(ip("2001:db8::ffff:2")).unwrap();
        let crowd = NoPlace::OfSource { source_ip: ip("2001:db8::"), count: 2 };
        assert_eq!(places.take(ip("2001:db8::3")).unwrap_err(), crowd, "of one /64");
        assert_eq!(crowd.to_string(), "2001:db8:: has 2 connections already");
        let other = places.take(ip("::ffff:10.0.0.1")).unwrap();
        assert_eq!(other.source(), ip("10.0.0.1"));
        assert_eq!(places.take(ip("10.0.0.2")).unwrap_err(), NoPlace::InAll(3));
        drop(first);
        let _third = places.take(ip("2001:db8::4")).unwrap();
        drop(other);
        drop(places.take(ip("10.0.0.2")).unwrap());
        assert_eq!(places.taken.lock().len(), 1, "who has gone is forgotten");
    }
}
