//! The events of a schedule, and the moments right after which faults like to strike.

use ft_arbiter::file::Answer;
use ftd::role::{ConnId, Micros};

use crate::faults::{Fault, Undo};
use crate::image::Job;
use crate::model::{Frame, Item};
use crate::net::Lane;

/// Something scheduled.
#[derive(Clone, Debug)]
pub enum Act {
    Tick {
        n: usize,
        inc: u32,
    },
    Step {
        n: usize,
        inc: u32,
    },
    Vm {
        n: usize,
        inc: u32,
        run: u32,
    },
    Capture {
        n: usize,
        inc: u32,
        repl: u32,
    },
    Copy {
        n: usize,
        inc: u32,
        repl: u32,
        left: u32,
    },
    Last {
        n: usize,
        inc: u32,
        request: u32,
    },
    Dial {
        n: usize,
        inc: u32,
    },
    Deliver {
        conn: ConnId,
        from: usize,
        lane: Lane,
        nth: u64,
        item: Item,
    },
    /// A pulse's writer takes up what waits for it.
    Beat {
        n: usize,
        inc: u32,
        conn: ConnId,
    },
    Reset {
        conn: ConnId,
        side: usize,
    },
    CallArrives {
        id: u64,
    },
    CallAnswered {
        n: usize,
        inc: u32,
        id: u64,
        answer: Answer,
    },
    Verified {
        n: usize,
        inc: u32,
        epoch: u64,
    },
    Loaded {
        n: usize,
        inc: u32,
        epoch: u64,
    },
    Rehearsed {
        n: usize,
        inc: u32,
        pairing: u64,
    },
    /// The disk of a node's state directory goes on.
    Recorded {
        n: usize,
        inc: u32,
    },
    /// A node's thread for images is done.
    Imaged {
        n: usize,
        inc: u32,
        job: Job,
    },
    /// The host goes down around a process, which is told so many times more.
    HostDown {
        n: usize,
        inc: u32,
        asks: u32,
    },
    /// A frame leaves a process that stood still in the middle of a release, unless it has died meanwhile.
    Emitted {
        n: usize,
        inc: u32,
        frame: Frame,
    },
    /// The VM's network on a node's host comes or goes.
    Uplink {
        n: usize,
        is_cut_off: bool,
    },
    /// A disk of the VM on a node's host stands still, or goes on.
    Disk {
        n: usize,
        stands: bool,
    },
    /// A node's VM has disk images, and a comparison with the backup's shows this.
    Images {
        n: usize,
        differ: bool,
    },
    Inject(Fault),
    Undo(Undo),
    Thaw {
        n: usize,
        inc: u32,
    },
    Start {
        n: usize,
        fresh: bool,
    },
    Heal,
}

/// Moments right after which faults like to strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    ReadSent,
    SetSent,
    LinkSent,
    CellSet,
    FirstCaptured,
    Hello,
    HandOver,
    TakeOver,
    Ack,
    Release,
    PeerGone,
    Welcome,
}

impl Hook {
    pub const ALL: [Self; 12] = [
        Self::ReadSent,
        Self::SetSent,
        Self::LinkSent,
        Self::CellSet,
        Self::FirstCaptured,
        Self::Hello,
        Self::HandOver,
        Self::TakeOver,
        Self::Ack,
        Self::Release,
        Self::PeerGone,
        Self::Welcome,
    ];
}

pub(crate) struct Entry {
    pub at: Micros,
    pub seq: u64,
    pub act: Act,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.seq) == (other.at, other.seq)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}
