//! Decides which node runs the VM and may send its output: roles, pairing, acks, arbitration, as one pure state
//! machine.
//!
//! [`Core`] takes an [`Event`] and the time, and answers with [`Command`]s. It does no I/O, reads no clock and draws no
//! random numbers, so that the same code runs in the daemon and under a seeded simulator (`tests/sim`). The executor
//! (`replica`) carries the commands out, with the same code in both.
//!
//! ```text
//!  start ── cell empty or VM shut down, start_as = primary ── founding ── cell set ──> primary, solo
//!        ── owner is the peer, or start_as = backup ─────────────────────────────────> backup
//!        ── owner is me, and the image on disk is of this very generation ────────────> heir: reading
//!        ── owner is me, but my memory is gone ──────────────────────────────────────> bereft: waits for the peer
//!
//!  the operator's word, or for bereft the configuration's ── cell read ── founding, over what the cell says
//!
//!  primary   solo ── hello ──> copying ── first capture ──> sealing ── its ack ──> enlisting ── cell set ──> protected
//!              ^                  │ peer lost                 │ peer lost            │ peer lost                │ lost
//!              └──────────────────┴──── (cell names nobody: the output passes) ──────┘ cell unchanged           v
//!              ^                                                                                              alone
//!              └───────────────────────── cell set to "me, alone" ────────────────────────────────────────────┤
//!                      the arbiter cannot be asked: waits, output held; the peer comes back: protected <──────┤
//!                                                  cell set by the peer: fenced  <────────────────────────────┘
//!
//!  fenced    the machine is gone, nothing may leave ── rests if it was fenced often ── cell read ──> backup
//!
//!  backup    following ── peer lost, holds a sealed checkpoint ──> orphaned ── verified, delay and promise over, cell
//!               ^                                                     │         names me and my state ──> contesting
//!               └──────────── the peer comes back ────────────────────┘   won: heir
//!                                                                         lost: discards, follows again
//!
//!  heir      resuming ── the machine runs, after a failover ──────────────────────────> primary, solo
//!              │  ^   └─ the machine runs, after a switchover ── confirming ── cell ──> primary, solo
//!              v  │ a while later                                   │ lost
//!            resting ── the cell says that the former primary took the VM back ──> backup
//!                    └─ some attempts later: the image is written to disk; asked to stop, the node ends then
//! ```
//!
//! # How a VM moves
//!
//! In a switchover the primary first asks both arbiters, and goes on with the VM when one of them does not answer, or
//! what they say is not as it should be. Then it stops the VM and keeps it. The backup loads its state into the machine
//! that will run it; if that fails it declines, and nothing has changed. Then it asks the cell for "owner me, standby
//! the former primary", lets the VM run with its output held, and asks for "owner me, alone". Until that is won, the
//! former primary may go on with the VM that it holds by the same cell, and does when the backup says that it failed,
//! or says nothing. Only a cell that does not name it any more tells it that the VM went on elsewhere.
//!
//! An heir whose machine does not take the state keeps it, tries again, and has it written to disk (`saved`). From then
//! on it runs the VM with its output held, as after a switchover, until the cell has gone on by one generation: the
//! image is good for the generation that was won for it, and for no other. So it is gone on from at most once in the
//! eyes of the world, whenever the process dies, and also when the image is not removed.
//!
//! A backup acknowledges the first checkpoint of a pairing only when a scratch machine has shown that the VM can go on
//! from it (`rehearsal`), and has that shown again from time to time.
//!
//! A node gives up a copy of the VM that may be the last one only when the cell shows that the other node went on, or
//! that the VM is over. It does not when a restore fails or its host fails the machine: the cell is left as it is. A
//! node that is asked to stop waits for that. A primary moves the VM first, and goes on with it if it cannot be moved.
//! A backup says good-bye and keeps its state until the cell does not count on it any more.
//!
//! # Why nobody speaks out of turn
//!
//! - The cell decides which node goes on alone (`arbiter`). A backup contests only when the cell names it with the very
//!   pairing that it holds sealed. From the moment it may have asked, it acknowledges nothing until the answer is
//!   certain.
//! - An ack is a permission with a term, the *lease*. Every message that asks for an answer carries the primary's own
//!   clock (its stamp), the answer carries it back, and the primary may release until `stamp + lease`. The primary
//!   asks for a lease that outlives the round trip, the backup grants it within its bound, and says so in the answer.
//!   A backup that answers promises not to contest for a lease (and a margin for clock drift) from then on. The stamp
//!   is older than the answer, so the permission is over before the promise is, however long a message or a process
//!   was held up. A primary whose permission has lapsed asks again before it lets anything out.
//! - Heartbeats and their answers have a connection of their own (the pulse); acks come back on the stream whose
//!   checkpoints they answer. No order between the two is relied on: an answer on either counts by the stamp that it
//!   carries, and what may be released is what was acked. The link ends with either connection, and when its stream
//!   stands still although the pulse beats (`hearing`).
//! - A compare-and-set whose answer was lost is repeated until the answer is certain; if it had been carried out, the
//!   repetition finds the cell as wanted, and that counts as won.
//! - A cell never goes back. Each node durably records which cell it acts on, and the highest generation of it, before
//!   it acts (`record`). A cell that is missing, older, or another one is trouble with the arbiter: no node founds,
//!   discards or fences because of it, and the request is repeated.
//! - "Protected" is said only while both nodes have lately read the cell, each through its own arbiter, and the backup
//!   has found itself there with what it holds (`proof`, `standing`). Nothing above rests on that word.

mod arbitration;
mod attempts;
mod backup;
mod bereft;
mod command;
mod core;
mod event;
mod fenced;
mod hearing;
mod heir;
mod policy;
mod primary;
mod proof;
mod record;
mod rehearsal;
mod request;
mod saved;
mod standing;
mod start;
mod streak;
mod surroundings;
#[cfg(test)]
mod tests;
mod view;

pub use self::core::Core;
pub use command::{Command, Exit, PairingStart, Succession};
pub use event::{ConnId, Event, Gone, GuestEnd, Held, ImageTrouble, Micros};
pub use policy::{OnFenced, OnLostMemory, Policy, StartAs, Times};
pub use proof::{Lapse, Lapsed};
pub use record::{Distrust, NodeRecord};
pub use rehearsal::RehearsalView;
pub use request::{Done, Leave, RequestId, RequestRefusal, Start};
pub use saved::{OnDisk, Saved};
pub use surroundings::{OnUplinkLoss, Reach, Whose};
pub use view::{Role, State, View};
