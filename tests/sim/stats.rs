//! Counts of events over many schedules, by kind, so that the coverage of a run can be judged and demanded.

macro_rules! counts {
    ($($name:ident: $text:literal,)*) => {
        /// Something that is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Count { $($name,)* }

        const TEXTS: &[&str] = &[$($text,)*];
    };
}

counts! {
    Schedules: "schedules",
    Events: "events",
    Frames: "frames emitted",
    FramesRefused: "frames that found no room",
    Checkpoints: "checkpoints sealed",
    FullCopies: "full copies completed",
    Protected: "times protected",
    Rehearsals: "rehearsals that went well",
    RehearsalsFailed: "rehearsals that failed",
    Resumed: "pairings resumed",
    Boots: "boots",
    BootedLost: "of them over a lost state, by configuration",
    OperatorStart: "starts asked",
    Started: "of them done",
    TakeOvers: "take-overs",
    HandedOver: "of them by hand-over",
    Fences: "fenced",
    SoloGrants: "solo grants (protected to alone)",
    LongLeases: "leases longer than the least, over a slow link",
    FrozenInRelease: "frozen between two frames of a release",
    RefusedForGood: "hellos refused for good",
    Misfits: "exits of nodes that never fit",
    SwitchoversAsked: "switchovers asked",
    SwitchoversDone: "switchovers done",
    SwitchoversFailed: "switchovers and stops refused or failed",
    CasWon: "cell changes",
    CasLost: "cell changes refused",
    CasUnknown: "answers lost",
    CasLate: "carried out after the answer was given up",
    CasNotAttempted: "requests not attempted",
    ReadFailed: "reads failed",
    CallFailed: "calls on the storage failed",
    CallUnanswered: "of them carried out before",
    CallLate: "of them carried out later",
    CallHung: "calls that hung",
    CallSwallowed: "calls that never returned, or much later",
    CallLeft: "calls that were left behind",
    ReturnedLate: "of them returned after all",
    FaultReplaced: "fault: the storage is replaced under the calls on it",
    CallTwice: "calls carried out twice",
    CutOff: "operations cut off by the death of their process",
    ClaimsCrashed: "claims lost in a crash of the storage",
    WentBack: "times told of a cell that went back",
    FaultReset: "fault: connection lost",
    FaultCut: "fault: partition",
    FaultLag: "fault: network lag",
    FaultArbiterDown: "fault: arbiter unreachable",
    FaultArbiterFlaky: "fault: arbiter loses answers",
    FaultArbiterSlow: "fault: arbiter slow",
    FaultStorageCrash: "fault: the storage crashes",
    FaultLinkJams: "fault: a link is carried out late",
    FaultCellVanished: "fault: the cell vanishes",
    FaultCellOlder: "fault: the cell is an older copy",
    FaultElsewhere: "fault: a node's path leads to another cell",
    FaultLoseDisk: "fault: a host loses its disk",
    FaultKill: "fault: process killed",
    FaultCrash: "fault: host dead",
    FaultFreeze: "fault: process frozen",
    FaultSlow: "fault: slow executor",
    FaultFlap: "fault: link flaps around a slow arbiter",
    FaultTakeOver: "fault: a restore after the cell was won fails",
    ImagesSaved: "images written to disk",
    ImagesRead: "of them read again",
    ImagesUnseen: "fault: it cannot be seen whether one is there",
    FaultLoad: "fault: a restore before the cell is asked fails",
    TakenBack: "switchovers taken back by the cell",
    FaultPairing: "fault: pairing breaks",
    FaultDiverge: "fault: backup diverges",
    FaultMachine: "fault: the host fails the machine",
    FaultStandby: "fault: the host fails a backup's machine",
    FaultDisks: "fault: a backup's disks fail",
    FaultRun: "fault: the host fails a machine that went on from an image",
    FaultHostDown: "fault: the host goes down, and says so",
    Retimed: "reloads of the failure timeout",
    FaultDiskHangs: "fault: the disk of a state directory hangs",
    RecordedLate: "records that it hung with",
    Unprepared: "pairings that the backup could not prepare for",
    FaultUnfit: "fault: no machine takes a state over",
    FaultBoot: "fault: the guest cannot be booted",
    FaultMisfit: "fault: the nodes do not fit",
    FaultAck: "fault: ack of what was never sent",
    FaultNarrow: "fault: link narrower than the checkpoints",
    FaultUplink: "fault: the VM's network comes or goes",
    MovedForNetwork: "hand-overs because of that",
    FaultDisk: "fault: the VM's disk stands still, or goes on",
    MovedForDisk: "hand-overs because of that",
    FaultImages: "fault: the backup's disk images differ, or do not any more",
    FaultStuck: "fault: stream stands still, pulse beats",
    OperatorStop: "operator: stop",
    OperatorPowerOff: "operator: power off",
    Stopped: "stops done",
    AnsweredLate: "answers that the time was over",
    SecondSelves: "hellos of a second self",
    GuestPowerOff: "guest: power-off",
    GuestReset: "guest: reset",
    GuestCrash: "guest: crash",
    Exits: "process exits of its own",
    EndProtected: "end: protected again",
    EndStateLost: "end: the state is lost",
    EndNeverBooted: "end: founded, never booted",
    EndForked: "end: an older copy of the cell was believed by a node that knew no better",
}

/// The counters.
#[derive(Clone, Debug)]
pub struct Stats {
    counts: Vec<u64>,
}

impl Default for Stats {
    fn default() -> Self {
        Self { counts: vec![0; TEXTS.len()] }
    }
}

impl Stats {
    pub fn add(&mut self, count: Count) {
        self.add_many(count, 1);
    }

    pub fn add_many(&mut self, count: Count, many: u64) {
        self.counts[count as usize] += many;
    }

    pub fn get(&self, count: Count) -> u64 {
        self.counts[count as usize]
    }

    pub fn merge(&mut self, other: &Self) {
        for (sum, more) in self.counts.iter_mut().zip(&other.counts) {
            *sum += more;
        }
    }
}

impl std::fmt::Display for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (text, count) in TEXTS.iter().zip(&self.counts) {
            writeln!(f, "{count:>12}  {text}")?;
        }
        Ok(())
    }
}
