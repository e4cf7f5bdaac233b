//! When the VM moves because its network is lost or a disk stands still: only if the operator wishes so, and only to a
//! host where that is better.

use super::event::Micros;
use serde::{Deserialize, Serialize};

/// What a primary does whose VM nobody reaches any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUplinkLoss {
    /// The VM stays.
    #[default]
    Stay,
    /// The VM moves to the backup by a planned switchover, if it is reached there.
    Switchover,
}

/// Whether the VM is reached on a host, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Nobody has said.
    #[default]
    Unknown,
    /// Nothing is in the way.
    Open,
    /// Nobody beyond the host reaches it.
    CutOff,
}

/// Which host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// This one.
    Ours,
    /// The peer's.
    Peers,
}

/// After an attempt to move, the next is not sooner: two hosts whose links come and go in turn shall not play ball.
const AGAIN_AFTER_US: Micros = 30_000_000;

/// What is known of both hosts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Surroundings {
    ours: Reach,
    peers: Reach,
    /// A disk of the VM stands still here for which the operator wishes that it moves.
    disk_stands: bool,
    moved_at: Option<Micros>,
}

impl Surroundings {
    pub(super) fn set(&mut self, whose: Whose, reach: Reach) {
        match whose {
            Whose::Ours => self.ours = reach,
            Whose::Peers => self.peers = reach,
        }
    }

    pub(super) fn set_disk(&mut self, stands: bool) {
        self.disk_stands = stands;
    }

    /// Nobody reaches the VM here, and it would be reached on the peer's host.
    fn is_reached_there(&self) -> bool {
        (self.ours, self.peers) == (Reach::CutOff, Reach::Open)
    }

    /// A disk stands still here. Reached by nobody, a VM has little of its disk.
    fn has_disk_there(&self) -> bool {
        self.disk_stands && (self.peers != Reach::CutOff || self.ours == Reach::CutOff)
    }

    /// Whether the VM is better off on the peer's host.
    pub(super) fn are_better_there(&self) -> bool {
        self.is_reached_there() || self.has_disk_there()
    }

    /// Whether a protected primary shall move the VM now. If so, that counts as an attempt.
    pub(super) fn moves(&mut self, wish: OnUplinkLoss, now: Micros) -> bool {
        let is_rested = self.moved_at.is_none_or(|at| now.saturating_sub(at) >= AGAIN_AFTER_US);
        let for_network = wish == OnUplinkLoss::Switchover && self.is_reached_there();
        let moves = (for_network || self.has_disk_there()) && is_rested;
        if moves {
            self.moved_at = Some(now);
        }
        moves
    }
}
