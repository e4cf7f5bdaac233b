//! ftd: the daemon's library, room by room. `role` decides; `replica` carries the decisions out. `keeper` owns the
//! machine, `peer` the connections, `host` this host's devices and files, `observe` the figures, `control` the
//! operator's socket. A room tells its news through an [`outlet`] and does not know its listeners.
//!
//! The core alone, as the executor and the simulator drive it. A node starts, finds an empty cell, and founds the VM:
//!
//! ```
//! use ft_arbiter::{Cell, CellId, Outcome};
//! use ftd::role::{Command, Core, Event, NodeRecord, OnDisk, OnFenced, OnUplinkLoss, Policy, StartAs, State};
//!
//! let policy = Policy {
//!     node: "alpha".into(),
//!     peer: "beta".into(),
//!     start_as: StartAs::Primary,
//!     record: None,
//!     on_disk: OnDisk::Nothing,
//!     place: "file /shared/web.cell".into(),
//!     on_fenced: OnFenced::Rejoin,
//!     boot_lost_after_us: None,
//!     restart_on_reset: true,
//!     on_uplink_loss: OnUplinkLoss::Stay,
//!     lease_us: 25_000,
//!     failure_timeout_us: 300_000,
//!     takeover_delay_us: 5_000,
//!     heartbeat_us: 5_000,
//!     arbiter_retry_us: 200_000,
//!     probe_us: 3_000_000,
//!     proof_us: 10_000_000,
//!     patience_us: 10_000_000,
//!     rehearsal_us: 60_000_000,
//!     pairing_wait_us_min: 1_000_000,
//!     pairing_wait_us_max: 600_000_000,
//!     nonce: 0x17,
//! };
//! let (mut core, mut commands) = Core::new(policy, 0);
//! assert_eq!(commands, [Command::ReadCell]);
//!
//! commands.clear();
//! core.handle(1_000, Event::CellRead(Ok(None)), &mut commands);
//! let id = CellId(0x17);
//! let founded = Cell { id, generation: 1, owner: Some("alpha".into()), standby: None };
//! assert_eq!(commands, [Command::CompareAndSet { expected: None, new: founded.clone() }]);
//!
//! commands.clear();
//! core.handle(2_000, Event::CellSet(Outcome::Won(founded)), &mut commands);
//! assert_eq!(commands, [Command::Record(NodeRecord { cell: id, generation: 1 }), Command::Boot]);
//! assert_eq!(core.view().state, State::Solo);
//! ```

pub mod boot;
pub mod clock;
pub mod config;
pub mod control;
pub mod daemon;
pub mod disks;
pub mod errand;
pub mod exit;
pub mod host;
pub mod keeper;
pub mod limited;
pub mod manual;
pub mod nonce;
pub mod observe;
pub mod outlet;
pub mod peer;
pub mod recording;
pub mod reload;
pub mod replica;
pub mod role;
pub mod seed;
pub mod user;
