//! The machine's keeper: the thread that owns it in every mode and role (`thread`), and those that work for it.
//!
//! ```text
//!   primary   thread: copying, then epochs or log_cutter --captures, logs--> shipper --> pairing --> peer's outbox
//!   backup    peer's reader --frames--> standby --sealed log--> thread: follower
//! ```
//!
//! It takes [`Order`]s and tells [`KeeperNews`].

mod copy_pace;
mod copying;
mod epochs;
mod error;
mod flow;
mod follower;
mod images;
mod load;
mod log_cutter;
mod news;
mod order;
mod pairing;
mod progress;
mod rehearsal;
mod setup;
mod shipper;
mod standby;
mod thread;
mod vm;

pub use error::{
    GoLiveError, KeepError, PrepareError, RestoreError, SealedError, ShipError, StandbyError,
    StartGuestError, StateLoss,
};
pub use flow::Service;
pub use images::{Images, SaveError};
pub use news::{FromPrimary, KeeperNews};
pub use order::{GoneLive, Order, OrderReply};
pub use pairing::Pairing;
pub use progress::{Replay, ReplayProgress};
pub use rehearsal::{Ready, RehearsalError, Rehearser, Sealed, Urgency};
pub use setup::Setup;
pub use standby::{Feed, WarmStandby};
pub use thread::Keeper;
