//! The replication protocol's bytes: frames, the messages in them, and the check that two nodes fit each other.
//!
//! The backup dials, the primary listens; one TCP connection carries everything. Each frame has a fixed header (magic,
//! version, type, VM, generation, epoch, sequence number, length, CRC over all of it) and a bounded payload, so that
//! a frame that is truncated, damaged, reordered, repeated or another VM's is refused before it is interpreted.
//!
//! ```text
//!   backup                                             primary
//!     Hello{identity, held: pairing and epoch} ------>   checks names, versions, facts; its role decides
//!     <------------------------------------ Refuse{why}   ... or
//!     <---- Welcome{identity, pairing, resume_from: none}  a full copy follows
//!     <------------------------ or: resume_from = E        the epochs after E follow
//!     <----------------------- CopyBegin CopyPages ...
//!     DiskMap{base, bits} <--------------------------->   in a copy: which extents of the disks may differ
//!     PageHashes{page, hashes} ----------------------->   in a copy: what the backup still has of the memory
//!     <--------- Compare{extent, hash} and Disk*, in a copy
//!     Compared{extent, same} ------------------------->   until all these extents are
//!     <-------- Disk* EpochBegin Pages* State* EpochEnd{digest, stamp}
//!     <-------- ------- or: Log* LogEnd{digest, stamp}  replay mode, after the first epoch
//!     Ack{epoch, stamp} ------------------------------>   releases the epoch's output until stamp + lease
//!     Settled{pairing, epoch} ------------------------>   its disks are durable so far
//!     <-------------------------------- Heartbeat{stamp}   overtakes pages that wait to be sent
//!     Echo{stamp} ------------------------------------>   extends the permission
//!     Position{count, lag} --------------------------->    replay mode: how far it has executed
//!     Diverged{count, what} -------------------------->    ... and that it has diverged; Bye follows
//!     <------------------------------ Paired{generation}   the cell names this backup
//!     Standing{place, cell, named, stamp} <----------->    what the sender's own arbiter says
//!     <------------------------------- Switchover{epoch}   planned switchover: the guest stands still at this epoch
//!     Decline{why} or TookOver{generation} ----------->
//!     Network{is_cut_off, trouble} <------------------>   the VM's way to the network on the sender's host
//!     Bye{why} <-------------------------------------->   the VM has ended, or the sender leaves
//! ```
//!
//! The role core (`daemon/src/role`) says what the messages permit and promise. The [`receiver`](crate::receiver) says
//! what they do to the backup's memory.

pub mod disk;
pub mod frame;
pub mod handshake;
pub mod identity;
pub mod message;
pub mod pages;

pub use frame::{Frame, FrameError, FrameReader, FrameType, FrameWriter, SharedPayload, WireSink, vm_id};
pub use message::Message;
