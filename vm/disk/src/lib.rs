//! Disks on the host: images that are opened and locked, and engines that read and write them asynchronously. Knows
//! neither virtio nor replication.
//!
//! ```text
//!   device ── IoOrder ──> IoQueue ──> engine (io_uring, or threads) ──> image
//!     ^                               │   one `Task` an order: short transfers, fallbacks
//!     └───────── Finish <── IoDone ─────┘
//! ```

mod buffer;
mod engine;
mod format;
mod image;
mod io;
mod lock;
mod overlay;

pub use buffer::Buffer;
pub use engine::{Completion, Finish, ImageStore, IoEngine, IoQueue, Store, StoreError};
pub use format::{QCOW2, container, is_same_storage};
pub use image::{Access, Caching, DiskImageError, RawImage, Readers, image_bytes, next_data, open_locked};
pub use io::{Io, IoDone, IoFault, IoOrder, Persist, Unmap};
pub use overlay::{Overlay, ReadBase, RecordPresent, UnderImage};

/// Bytes of a sector, the unit of all offsets and lengths.
pub const SECTOR_BYTES: u64 = 512;
