//! What one member of a set keeps of a VM's cell, and how it answers: the acceptor of CASPaxos, a pure function.

use super::Ballot;
use crate::Cell;
use serde::{Deserialize, Deserializer, Serialize};

/// Of so many values before it a value knows the origins.
pub(super) const TRAIL_MAX: usize = 8;

/// A cell as it was set, with the ballot in which whoever set it proposed it first: so he knows his own work again,
/// also where others have gone on from it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetCell {
    /// The cell.
    pub cell: Cell,
    /// Whose work it is.
    pub origin: Ballot,
    /// The origins of the generations before it, the latest first; not of all.
    #[serde(deserialize_with = "trail")]
    pub trail: Vec<Ballot>,
}

impl SetCell {
    /// What `cell` is as a change of `before`.
    pub(super) fn after(before: Option<&Self>, cell: Cell, origin: Ballot) -> Self {
        let before =
            before.into_iter().flat_map(|before| std::iter::once(&before.origin).chain(&before.trail));
        Self { cell, origin, trail: before.take(TRAIL_MAX).copied().collect() }
    }

    /// Whose work an earlier generation was, or this one's; none if that is not known any more.
    #[must_use]
    pub fn origin_of(&self, generation: u64) -> Option<Ballot> {
        let back = usize::try_from(self.cell.generation.checked_sub(generation)?).ok()?;
        std::iter::once(&self.origin).chain(&self.trail).nth(back).copied()
    }
}

fn trail<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Ballot>, D::Error> {
    let trail = Vec::deserialize(from)?;
    let message = "no value knows so many before it";
    if trail.len() <= TRAIL_MAX { Ok(trail) } else { Err(serde::de::Error::custom(message)) }
}

/// What a member has accepted last.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceptedCell {
    /// In which round.
    pub ballot: Ballot,
    /// None: that the cell was never set.
    pub value: Option<SetCell>,
}

/// What a member keeps of a VM's cell. It is durable before the member answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// It takes part in no earlier round any more.
    pub promised: Option<Ballot>,
    /// What it accepted last.
    pub accepted: Option<AcceptedCell>,
}

/// What a member is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum MemberAsk {
    /// What has it accepted? Changes nothing.
    Look,
    /// To take part in no earlier round than this, and to say what it has accepted.
    Prepare(Ballot),
    /// To accept this, in the round that it promised last.
    Accept(AcceptedCell),
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum MemberAnswer {
    /// To a look, and to a preparation as a promise: what it has accepted.
    Has(Option<AcceptedCell>),
    /// It has accepted.
    Accepted,
    /// It did nothing: its promise is of another round.
    Beaten(Option<Ballot>),
}

impl Register {
    /// What becomes of it, and the answer.
    #[must_use]
    pub fn answer(&self, ask: &MemberAsk) -> (Self, MemberAnswer) {
        match ask {
            MemberAsk::Look => (self.clone(), MemberAnswer::Has(self.accepted.clone())),
            MemberAsk::Prepare(ballot) if self.promised < Some(*ballot) => {
                let next = Self { promised: Some(*ballot), accepted: self.accepted.clone() };
                (next, MemberAnswer::Has(self.accepted.clone()))
            }
            // Stricter than Paxos asks for, which takes what is later than the promise, too.
            MemberAsk::Accept(accepted) if self.promised == Some(accepted.ballot) => {
                let next = Self { promised: self.promised, accepted: Some(accepted.clone()) };
                (next, MemberAnswer::Accepted)
            }
            MemberAsk::Prepare(_) | MemberAsk::Accept(_) => {
                (self.clone(), MemberAnswer::Beaten(self.promised))
            }
        }
    }

    /// What two members know together, each of whom may have missed what the other has.
    #[must_use]
    pub fn merged(self, other: Self) -> Self {
        let promised = self.promised.max(other.promised);
        let ballot = |accepted: &Option<AcceptedCell>| accepted.as_ref().map(|accepted| accepted.ballot);
        let accepted = match ballot(&self.accepted) >= ballot(&other.accepted) {
            true => self.accepted,
            false => other.accepted,
        };
        Self { promised, accepted }
    }
}
