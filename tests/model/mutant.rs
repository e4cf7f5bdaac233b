//! The behaviours that are broken on purpose, one in each of some runs, and the claim that each must not get past.

use crate::check::Claim;
use crate::world::Budget;

/// A behaviour broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// A node's permit is not looked at when it lets something out.
    IgnorePermit,
    /// A backup grants leases, and keeps no promise for them.
    NoPromise,
    /// A lost answer of the arbiter counts as "nothing happened".
    UnknownIsNotAttempted,
    /// A lost answer of the arbiter counts as won.
    UnknownIsWon,
    /// Frames leave when their checkpoint is captured, not when it is acked.
    ReleaseAtCapture,
    /// A primary that loses its connection lets everything out.
    PassOnLoss,
    /// An answer to a heartbeat counts from its arrival, not from the heartbeat's stamp.
    StampsAtArrival,
    /// A cell that went back counts as one that somebody else has taken.
    WentBackIsLost,
    /// A node's record of the cell is not there when its next process starts.
    ForgetsRecord,
    /// A VM that moved here speaks before the cell says that the former primary cannot take it back.
    PassesAtSwitchover,
    /// A backup seals what it receives, and goes on holding the first state of the pairing.
    AppliesNothing,
    /// A backup contests with whatever it has sealed, also when the cell names nobody or another pairing.
    ContestsUnnamed,
    /// Whatever is held is said to have been tried.
    RehearsesNothing,
    /// A pair that is in step again counts as proven while its primary may still come to be alone, by the cell.
    RejoinedIsProven,
    /// A node whose connection ended before it was welcomed dials no more.
    DialsOnce,
}

impl Mutant {
    pub const ALL: [Self; 15] = [
        Self::IgnorePermit,
        Self::NoPromise,
        Self::UnknownIsNotAttempted,
        Self::UnknownIsWon,
        Self::ReleaseAtCapture,
        Self::PassOnLoss,
        Self::StampsAtArrival,
        Self::WentBackIsLost,
        Self::ForgetsRecord,
        Self::PassesAtSwitchover,
        Self::AppliesNothing,
        Self::ContestsUnnamed,
        Self::RehearsesNothing,
        Self::RejoinedIsProven,
        Self::DialsOnce,
    ];

    /// The claims of which one must fail.
    pub fn offends(self) -> &'static [Claim] {
        match self {
            Self::IgnorePermit | Self::NoPromise | Self::StampsAtArrival => &[Claim::OneSpeaks],
            Self::UnknownIsWon => &[Claim::OneSpeaks],
            Self::ReleaseAtCapture | Self::PassOnLoss => &[Claim::Covered],
            Self::WentBackIsLost | Self::UnknownIsNotAttempted => &[Claim::KeepsCopies],
            Self::ForgetsRecord => &[Claim::NeverBack],
            Self::PassesAtSwitchover => &[Claim::OneSpeaks, Claim::Covered],
            Self::AppliesNothing | Self::ContestsUnnamed => &[Claim::Continues],
            Self::RehearsesNothing | Self::RejoinedIsProven => &[Claim::Proven],
            Self::DialsOnce => &[Claim::Heals],
        }
    }

    /// Whether it is caught from a protected pair on, or only before.
    pub fn begins_in_step(self) -> bool {
        !matches!(
            self,
            Self::UnknownIsNotAttempted
                | Self::UnknownIsWon
                | Self::WentBackIsLost
                | Self::ForgetsRecord
                | Self::ContestsUnnamed
                | Self::RehearsesNothing
                | Self::DialsOnce
        )
    }

    /// The bounds within which it is caught.
    pub fn needs(self) -> Budget {
        match self {
            Self::PassesAtSwitchover => Budget { faults: 1, requests: 1 },
            Self::ForgetsRecord | Self::NoPromise => Budget { faults: 2, requests: 0 },
            Self::RehearsesNothing => Budget { faults: 0, requests: 0 },
            _ => Budget { faults: 1, requests: 0 },
        }
    }
}
