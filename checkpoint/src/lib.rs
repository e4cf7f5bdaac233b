//! ft-checkpoint: from a captured epoch to a sealed checkpoint on the backup.
//!
//! Data flows one way. Primary: [`arena::Capture`] (copied in the pause) -> [`encoder::Encoder`] -> frames on the wire,
//! kept in [`owed::Owed`] until acked. Backup: frames -> [`receiver::Receiver`] (decode, verify, seal) ->
//! [`backlog::Applier`] (into the RAM image), and at take-over [`lazy::LazyApply`]. There are no sockets and, but for
//! the take-over's handler, no threads here: everything works over `std::io` and plain structs, and the daemon owns the
//! threads and the roles.
//!
//! The stream of one pairing (a full copy and what follows it):
//!
//! ```text
//! primary                                        backup
//!   Hello / Welcome / Refuse  <---------------->   (wire::handshake)
//!   CopyBegin{pairing} ------------------------>   image emptied, nothing held
//!   CopyPages* (whole RAM, then re-dirtied) --->   straight into the image
//!   EpochBegin Pages* State* EpochEnd{digest} ->   decoded aside, verified, sealed
//!                                 <------ Ack{epoch}   ...and applied later, in order
//!   Paired{generation} ------------------------>   the cell names this pairing: may contest from now on
//!   EpochBegin ...                                 epochs without end
//!   or Log* LogEnd ...                             replay mode: epochs of the event log, to be executed
//! ```
//!
//! After a reconnect the backup says which pairing and epoch it holds; if the primary still owes the next epoch it
//! sends the kept payloads again (with fresh headers), otherwise a new pairing starts.

pub mod arena;
pub mod backlog;
pub mod bench_support;
pub mod copy;
pub mod digest;
pub mod encoder;
pub mod image;
pub mod lazy;
pub mod owed;
pub mod page;
pub mod receiver;
pub mod recording;
pub mod shadow;
pub mod wire;
