//! The replication protocol's bytes: frames, the messages in them, and the check that two nodes fit each other.

pub mod frame;
pub mod handshake;
pub mod message;

pub use frame::{Frame, FrameError, FrameReader, FrameType, FrameWriter, WireSink, vm_id};
pub use message::Message;
