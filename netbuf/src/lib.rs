//! ft-netbuf: output commit. Holds what the VM sends until the checkpoint that covers it is acked, and knows nothing of
//! what a checkpoint is: [`buffer`] holds and releases frames by epoch number, [`tap`] is the wire they leave by,
//! [`announce`] tells the network where the VM lives now.

pub mod announce;
pub mod boottime;
pub mod buffer;
mod queue;
pub mod tap;

pub use announce::Announcement;
pub use boottime::BootTime;
pub use buffer::{Bounds, Emit, Gate, HoldStats, OutputBuffer, Permit, Released, Stopped, Transmitted};
pub use tap::{Tap, TapError, Waker};
