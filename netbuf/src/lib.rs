//! ft-netbuf: output commit. It holds the VM's frames until the checkpoint that covers them is acked, but knows nothing
//! of checkpoints: [`buffer`] holds and releases frames by epoch number, [`tap`] is the wire they leave by,
//! [`announce`] tells the network where the VM lives now.
//!
//! A frame waits for its checkpoint's ack, and leaves only while the permission to send lasts:
//!
//! ```
//! use ft_netbuf::{BootTime, Bounds, Emit, OutputBuffer, Permit, Stopped, Transmitted};
//! use std::sync::{Arc, Mutex};
//! use std::time::Duration;
//!
//! /// A wire that keeps what is sent on it.
//! #[derive(Default)]
//! struct Wire(Mutex<Vec<Vec<u8>>>);
//!
//! impl Emit for Wire {
//!     fn emit(&self, frame: &[u8]) -> std::io::Result<()> {
//!         self.0.lock().unwrap().push(frame.to_vec());
//!         Ok(())
//!     }
//! }
//!
//! let wire = Arc::new(Wire::default());
//! let bounds = Bounds { frames: 16, bytes: 4096, frame_bytes: 1514 };
//! let output = OutputBuffer::new(vec![Box::new(Arc::clone(&wire))], bounds);
//!
//! output.hold();
//! assert_eq!(output.transmit(0, b"answer"), Transmitted::Taken);
//! output.close_epoch(1);
//!
//! // The ack came, but the permission that it gave is over.
//! let lapsed = Permit { valid_until: BootTime::now() };
//! assert_eq!(output.release_through(1, lapsed).stopped, Some(Stopped::Lapsed));
//! assert!(wire.0.lock().unwrap().is_empty());
//!
//! let permit = Permit { valid_until: BootTime::now() + Duration::from_secs(600) };
//! assert_eq!(output.release_through(1, permit).frames, 1);
//! assert_eq!(*wire.0.lock().unwrap(), [b"answer".to_vec()]);
//! ```

pub mod announce;
pub mod boottime;
pub mod buffer;
mod queue;
pub mod tap;

pub use announce::Announcement;
pub use boottime::BootTime;
pub use buffer::{Bounds, Emit, Gate, HoldStats, OutputBuffer, Permit, Released, Stopped, Transmitted};
pub use tap::{Tap, TapError, TapOffloads, Waker};
