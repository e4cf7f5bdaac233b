//! How each of several services has answered a node last. The others decide without one that does not, so that nothing
//! else shows it; and with one more away nobody may decide.

use crate::Trouble;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// How a member is.
#[derive(Clone, Debug)]
pub struct MemberStanding {
    /// Where it listens.
    pub address: SocketAddr,
    /// Why it gave no answer when it was asked last; none: it gave one.
    pub trouble: Option<Trouble>,
    /// Since when it has answered, or has not.
    pub since: Instant,
}

/// The members that have been asked. A clone is the same one: all connections of a node to its cell note here.
#[derive(Clone, Debug, Default)]
pub struct MemberRoll(Arc<Mutex<BTreeMap<SocketAddr, MemberStanding>>>);

impl MemberRoll {
    /// Each member that has been asked, in the order of the addresses.
    #[must_use]
    pub fn look(&self) -> Vec<MemberStanding> {
        self.0.lock().values().cloned().collect()
    }

    /// What the last question came to. That a member is away, and that it is back, is logged once.
    pub(super) fn note(&self, address: SocketAddr, trouble: Option<Trouble>) {
        let mut members = self.0.lock();
        let before = members.get(&address);
        let was_away = before.is_some_and(|before| before.trouble.is_some());
        match &trouble {
            Some(trouble) if !was_away => {
                tracing::warn!("the arbiter at {address}, one of several: {trouble}")
            }
            None if was_away => tracing::info!("the arbiter at {address} answers again"),
            _ => {}
        }
        let unchanged = before.filter(|_| was_away == trouble.is_some());
        let since = unchanged.map_or_else(Instant::now, |before| before.since);
        members.insert(address, MemberStanding { address, trouble, since });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_away_since_it_first_gave_no_answer_and_back_since_it_gave_one() {
        let roll = MemberRoll::default();
        assert!(roll.look().is_empty(), "nobody was asked");
        let address = "127.0.0.1:7390".parse().unwrap();
        let noted = |trouble| {
            roll.note(address, trouble);
            let [standing] = roll.look().try_into().unwrap();
            // What is noted next is noted later.
            while Instant::now() == standing.since {}
            standing
        };
        let there = noted(None).since;
        assert_eq!(noted(None).since, there);
        let away = noted(Some(Trouble::ServiceSilent { ms: 1 }));
        assert!(away.since > there);
        let still = noted(Some(Trouble::Unreachable { reason: "refused".into() }));
        assert_eq!(still.since, away.since);
        assert!(matches!(still.trouble, Some(Trouble::Unreachable { .. })), "it says the latest");
        assert!(noted(None).since > away.since);
    }
}
