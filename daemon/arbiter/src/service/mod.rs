//! The cells of many VMs in one small network service, for sites that have no shared storage but a third machine.
//!
//! The [`CellStore`] keeps them in one file. The [`CellServer`] answers over TCP, one question at a time on a
//! connection; what waits for the disk shares one durable commit, and nothing is told before it. [`ServiceArbiter`] is
//! a node's way to one VM's cell, [`ServiceDesk`] an operator's to all of them.
//!
//! Where it has a certificate it speaks TLS, with nodes and operators of its site. Nodes may read and set cells,
//! operators may look at them.
//!
//! The [wire protocol](frame): the server greets, so that a client knows whom it talks to before it asks. Then question
//! and answer alternate, each in a frame with a checksum and the question's number.

mod backup;
mod client;
mod committer;
mod figures;
pub mod frame;
#[doc(hidden)]
pub mod fuzzing;
#[cfg(test)]
mod member_tests;
mod message;
mod record;
mod server;
mod store;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls_tests;
mod voter;

pub use backup::{BACKUP_VERSION, BackupError, CellBackup};
pub(crate) use client::{MemberLine, NoVote};
pub use client::{ServiceArbiter, ServiceDesk, ServicePace, ServicePlace};
pub use figures::ServiceFigures;
pub use message::{CellChange, Listed, ListedRegister, NAME_BYTES_MAX};
pub use server::{CellServer, ServerLimits};
pub use store::{CHANGES_KEPT, CellStore, CellStoreError, VMS_MAX};
pub use voter::PROMISE_KEPT;

/// The name in a service's certificate, unless told otherwise.
pub const ARBITER_NAME: &str = "arbiter";
/// Where a service listens, unless told otherwise.
pub const ARBITER_PORT: u16 = 7390;
