//! The behaviours that are broken on purpose, one in each of some runs, and the check that each must not get past.

/// A behaviour broken on purpose, to show that the checks see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Releases whatever its permit says.
    IgnorePermit,
    /// The executor receives and answers on every connection that was welcomed, also when the core does not follow it
    /// because it is asking for the cell.
    FollowAnyway,
    /// A node keeps no promise after its answers.
    NoPromise,
    /// A backup's answer grants a longer lease than it has promised.
    GrantsMore,
    /// Frames leave when their checkpoint is captured, not when it is acked.
    ReleaseAtCapture,
    /// A lost answer of the arbiter counts as "nothing happened".
    UnknownIsNotAttempted,
    /// A lost answer of the arbiter counts as won.
    UnknownIsWon,
    /// The backup seals a checkpoint at its first piece.
    SealAtFirstPiece,
    /// What was sent on a lost connection is forgotten.
    ForgetOwed,
    /// A primary that loses its connection lets everything out.
    PassOnLoss,
    /// The output passes on after the first checkpoint.
    HoldTooLate,
    /// Clocks drift by more than the promise's margin.
    WildClocks,
    /// A node's clock stands still while its process is frozen (as CLOCK_MONOTONIC does while a host is suspended).
    ClockStopsInFreeze,
    /// The storage gives a name away that is taken.
    LinkOverwrites,
    /// Flushing the directory does nothing.
    SyncSkipped,
    /// A file's content is not flushed.
    WriteUnflushed,
    /// A node's record of the cell is not there when its next process starts.
    ForgetsRecord,
    /// What is recorded never reaches the disk.
    RecordsNothing,
    /// What is still on its way to the disk is said to be there.
    SaysItIsRecorded,
    /// A record that is durable speaks for the one that is to replace it.
    AnyRecordCounts,
    /// Whatever cell is found is the VM's.
    AnyCellIsOurs,
    /// A backup says that it has read the cell when it has only been told of it.
    StandsUnread,
    /// What an arbiter once said counts for ever.
    ProofNeverAges,
    /// A cell that went back counts as one that somebody else has taken.
    WentBackIsLost,
    /// Whatever is held is said to be good.
    VerifiesNothing,
    /// Whatever is held is said to have been tried.
    RehearsesNothing,
    /// A backup does not tell its primary that a later rehearsal failed.
    HidesARehearsal,
    /// A pair that is in step again counts as proven while its primary may still come to be alone, by the cell.
    RejoinedIsProven,
    /// A backup that knows that it has diverged does not say so.
    SilentDivergence,
    /// The news that the host has failed the machine goes lost.
    IgnoresMachine,
    /// A guest that could not be booted counts as booted.
    IgnoresBoot,
    /// A backup that can never fit its primary dials on.
    IgnoresMisfit,
    /// The primary believes an ack of what it never sent.
    BelievesAnyAck,
    /// A backup that is to stop drops what it holds, whatever the cell says.
    BackupStopsAtOnce,
    /// A primary that is to stop drops its VM, whatever the cell says.
    PrimaryStopsAtOnce,
    /// A frozen VM is captured again and again.
    EpochsWhileFrozen,
    /// A connection that was given up stays.
    LeavesLinks,
    /// A state that could not be resumed is dropped.
    DropsWhatFailed,
    /// An image on disk is never removed, and counts for whatever generation the cell is in.
    BelievesOldImage,
    /// A VM of which an image is on disk speaks before the cell has moved past the image.
    SpeaksBesideAnImage,
    /// A VM that moved here speaks before the cell says that the former primary cannot take it back.
    PassesAtSwitchover,
    /// A state that could not be loaded is said to be loaded, and to run.
    SaysItIsLoaded,
    /// A host that fails its machine is taken for a guest that crashed.
    FailureIsACrash,
    /// A stop means: power off.
    StopPowersOff,
    /// A host that goes down powers its VM off, whoever else has it.
    HostDownPowersOff,
    /// A backup whose machine fails ends, with all that it holds.
    EndsWithItsMachine,
    /// A backup whose disks fail drops what it holds.
    DropsWithItsDisks,
    /// A good image on disk is said to be damaged.
    CallsImagesDamaged,
    /// An image on disk that cannot be seen at the moment counts as none.
    UnseenIsNothing,
    /// A switchover whose time is over is not answered.
    ForgetsTheLate,
    /// A pairing that failed is tried again at once.
    TriesAtOnce,
    /// A node that lost the arbitration ends, and waits for somebody to start it.
    FencedStaysDown,
    /// An owner whose memory is lost waits for the operator, whatever the configuration says.
    WaitsForEver,
    /// An owner whose memory is lost boots the VM anew at once.
    BootsLostAtOnce,
    /// Asked for the next boot of a VM that has ended, a node gives up a lost state.
    StartIsFresh,
    /// The operator says that a host is gone for good which is not.
    ReleasesTheLiving,
    /// Any process that says hello is taken for the backup come back.
    AnyHelloEvicts,
    /// Whatever the peer says, the VM would be reached there.
    MovesAnywhere,
    /// A disk that has stood still never goes on again.
    DiskStandsForEver,
    /// What a comparison of the images has shown is not heard.
    DeafToImages,
    /// An answer to a heartbeat counts from its arrival, not from the heartbeat's stamp.
    StampsAtArrival,
    /// A link lives as long as its pulse beats.
    PulseIsEnough,
    /// A call on the storage is waited for until it returns.
    WaitsForTheStorage,
    /// A backup that the cell does not name drops what it holds.
    UnnamedDiscards,
    /// What one caller asked for is answered to another one.
    SwapsAnswers,
    /// A failure timeout counts as it was when the process began.
    IgnoresRetimed,
    /// A VM that is to move is paused before anybody has asked the arbiters.
    PausesUnasked,
    /// What a peer says of its arbiter counts from its arrival.
    DatesByArrival,
}

impl Mutant {
    /// The check that it must not get past.
    pub fn offends(self) -> &'static str {
        match self {
            Self::ReleaseAtCapture | Self::PassOnLoss | Self::HoldTooLate => "I1",
            Self::UnknownIsNotAttempted => "I1",
            Self::SealAtFirstPiece | Self::VerifiesNothing => "I3",
            Self::ForgetOwed => "I4",
            Self::SilentDivergence => "I3",
            Self::RehearsesNothing | Self::HidesARehearsal | Self::RejoinedIsProven => "I9",
            Self::DeafToImages => "I9",
            Self::IgnoresMachine | Self::IgnoresBoot => "liveness",
            Self::FencedStaysDown | Self::WaitsForEver => "liveness",
            Self::BootsLostAtOnce | Self::StartIsFresh => "boots silently",
            Self::ReleasesTheLiving => "I2",
            Self::IgnoresMisfit => "misfit",
            Self::BelievesAnyAck => "I1",
            Self::BackupStopsAtOnce | Self::PrimaryStopsAtOnce => "the last copy",
            Self::EpochsWhileFrozen => "a planned switchover",
            Self::LeavesLinks => "links",
            Self::DropsWhatFailed => "the last copy",
            Self::PassesAtSwitchover => "I",
            Self::BelievesOldImage | Self::SpeaksBesideAnImage => "I1",
            Self::SaysItIsLoaded => "I3",
            Self::FailureIsACrash | Self::StopPowersOff | Self::HostDownPowersOff => "the VM was ended",
            Self::EndsWithItsMachine => "the last copy",
            Self::CallsImagesDamaged | Self::UnseenIsNothing => "boots silently",
            Self::ForgetsTheLate => "unanswered",
            Self::SwapsAnswers => "answered",
            Self::PausesUnasked | Self::DatesByArrival => "paused",
            Self::UnnamedDiscards | Self::DropsWithItsDisks => "given up",
            Self::TriesAtOnce => "too soon",
            Self::AnyHelloEvicts => "evicted",
            Self::MovesAnywhere | Self::DiskStandsForEver => "network",
            Self::IgnoresRetimed => "too late",
            Self::StampsAtArrival => "I2",
            Self::PulseIsEnough | Self::WaitsForTheStorage => "liveness",
            Self::LinkOverwrites | Self::SyncSkipped | Self::WriteUnflushed => "arbiter",
            Self::ForgetsRecord | Self::RecordsNothing => "I11",
            Self::AnyCellIsOurs => "the last copy",
            Self::StandsUnread | Self::ProofNeverAges => "I9",
            Self::SaysItIsRecorded | Self::AnyRecordCounts => "I9",
            Self::WentBackIsLost => "the last copy",
            Self::IgnorePermit | Self::FollowAnyway | Self::NoPromise | Self::GrantsMore => "I2",
            Self::UnknownIsWon | Self::WildClocks | Self::ClockStopsInFreeze => "I2",
        }
    }

    pub const ALL: [Self; 68] = [
        Self::IgnorePermit,
        Self::FollowAnyway,
        Self::NoPromise,
        Self::GrantsMore,
        Self::ReleaseAtCapture,
        Self::UnknownIsNotAttempted,
        Self::UnknownIsWon,
        Self::SealAtFirstPiece,
        Self::ForgetOwed,
        Self::PassOnLoss,
        Self::HoldTooLate,
        Self::WildClocks,
        Self::ClockStopsInFreeze,
        Self::LinkOverwrites,
        Self::SyncSkipped,
        Self::WriteUnflushed,
        Self::ForgetsRecord,
        Self::RecordsNothing,
        Self::SaysItIsRecorded,
        Self::AnyRecordCounts,
        Self::AnyCellIsOurs,
        Self::StandsUnread,
        Self::ProofNeverAges,
        Self::WentBackIsLost,
        Self::VerifiesNothing,
        Self::RehearsesNothing,
        Self::HidesARehearsal,
        Self::RejoinedIsProven,
        Self::SilentDivergence,
        Self::IgnoresMachine,
        Self::IgnoresBoot,
        Self::FencedStaysDown,
        Self::WaitsForEver,
        Self::BootsLostAtOnce,
        Self::StartIsFresh,
        Self::ReleasesTheLiving,
        Self::IgnoresMisfit,
        Self::BelievesAnyAck,
        Self::BackupStopsAtOnce,
        Self::PrimaryStopsAtOnce,
        Self::EpochsWhileFrozen,
        Self::LeavesLinks,
        Self::DropsWhatFailed,
        Self::PassesAtSwitchover,
        Self::BelievesOldImage,
        Self::SpeaksBesideAnImage,
        Self::SaysItIsLoaded,
        Self::FailureIsACrash,
        Self::StopPowersOff,
        Self::HostDownPowersOff,
        Self::EndsWithItsMachine,
        Self::DropsWithItsDisks,
        Self::CallsImagesDamaged,
        Self::UnseenIsNothing,
        Self::ForgetsTheLate,
        Self::AnyHelloEvicts,
        Self::TriesAtOnce,
        Self::MovesAnywhere,
        Self::DiskStandsForEver,
        Self::DeafToImages,
        Self::StampsAtArrival,
        Self::PulseIsEnough,
        Self::WaitsForTheStorage,
        Self::UnnamedDiscards,
        Self::SwapsAnswers,
        Self::IgnoresRetimed,
        Self::PausesUnasked,
        Self::DatesByArrival,
    ];
}
