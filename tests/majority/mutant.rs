//! Behaviours that are broken on purpose, each of which the model must find.

/// A behaviour broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mutant {
    /// A member that restarts has forgotten its promise.
    ForgetsPromise,
    /// A member that restarts has an empty store, and votes.
    ComesBackEmpty,
    /// A member accepts also in a round before the one that it promised.
    AcceptsBelowItsPromise,
    /// A proposer takes up the earliest accepted value of those that it is shown.
    TakesTheEarliest,
    /// What may have been accepted somewhere counts as not done.
    UnknownIsNotAttempted,
    /// What may have been accepted somewhere counts as done.
    UnknownIsWon,
    /// A read believes one member.
    OneAnswerIsEnough,
    /// A member whose store was lost rejoins at once.
    RejoinsAtOnce,
    /// A member whose store was lost rejoins with what one other member has.
    RejoinsByOne,
    /// A member accepts what follows its promise, however late.
    PromisesForEver,
}

impl Mutant {
    pub const ALL: [Self; 10] = [
        Self::ForgetsPromise,
        Self::ComesBackEmpty,
        Self::AcceptsBelowItsPromise,
        Self::TakesTheEarliest,
        Self::UnknownIsNotAttempted,
        Self::UnknownIsWon,
        Self::OneAnswerIsEnough,
        Self::RejoinsAtOnce,
        Self::RejoinsByOne,
        Self::PromisesForEver,
    ];

    /// Whether it is caught when a store is lost, and nothing else goes wrong.
    pub fn is_of_a_lost_store(self) -> bool {
        matches!(self, Self::RejoinsAtOnce | Self::RejoinsByOne | Self::PromisesForEver)
    }
}
