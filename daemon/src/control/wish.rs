//! The operator's wishes to the daemon.

use crate::config::{OnOverload, ReplicationConfig};
use crate::keeper::Service;
use crate::role::{Done, Leave, RequestRefusal, Times};
use std::time::Duration;

/// News of this room.
pub enum Wish {
    /// A switchover.
    Switchover {
        /// It is called off if it has not begun to change anything in this time.
        within: Duration,
        /// Where its outcome goes.
        reply: WishReply,
    },
    /// An orderly stop.
    Stop {
        /// What becomes of the VM.
        vm: Leave,
        /// Where its outcome goes.
        reply: WishReply,
    },
    /// The configuration declares another service, or other times.
    Retune(Tuning),
    /// The configuration names another node as the peer.
    ReplacePeer(String),
}

/// What of the replication may change while the daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// The declared service.
    pub service: Service,
    /// What happens where it cannot be kept.
    pub on_overload: OnOverload,
    /// When the peer counts as lost, and its head start.
    pub times: Times,
}

impl From<&ReplicationConfig> for Tuning {
    fn from(config: &ReplicationConfig) -> Self {
        let service =
            Service { hold_us_max: config.hold_ms_max * 1000, speed_pct_min: config.guest_speed_min_pct };
        let times = Times {
            failure_timeout_us: config.failure_timeout_ms * 1000,
            takeover_delay_us: config.takeover_delay_ms * 1000,
        };
        Self { service, on_overload: config.on_overload, times }
    }
}

/// Where the outcome of a wish goes. Each wish has its own.
pub type WishReply = Box<dyn FnOnce(Result<Done, WishError>) + Send>;

/// Why a wish did not come true.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WishError {
    /// Not in this state, not on this node, or the peer will not have it.
    #[error(transparent)]
    Refused(#[from] RequestRefusal),
    /// The daemon ends before it is done.
    #[error("the daemon is ending")]
    Ending,
}
