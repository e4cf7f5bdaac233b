//! A VM's writable disks: two images on two hosts that are one disk.
//!
//! ```text
//!   primary   device ── change ──> tap ── with its epoch ──> keeper's shipper ──> ...
//!                                   ^ intents: no change before its bit is durable
//!   a copy    equalize: extents are compared, and sent where they differ, among the changes
//!   backup    ... ──> follower: journal, seal, behind it the images
//!             in replay mode, once the copy is over: device ──> image, and executed: flushes, behind the machine
//!   verify    an extent is asked about among the changes; checks compares it behind the journal
//! ```
//!
//! Over a base an image has only what was written (`overlay`): whoever reads or writes it here sees both together.
//!
//! What lies beside the images: their journal and maps (`beside`, `intents`), and the stamps that say whose image is
//! right (`stamps`).

mod adopt;
mod agreement;
mod beside;
mod checks;
mod content;
mod disk_hash;
mod equalize;
mod error;
mod executed;
mod files;
mod follower;
#[doc(hidden)]
pub mod fuzzing;
mod ground;
mod images;
mod intents;
mod look;
mod nurse;
mod overlay;
mod pace;
mod qcow2;
mod reader;
mod replicated;
mod source;
mod stamps;
mod tap;
mod target;
mod verify;

pub use adopt::adopt;
pub use beside::Beside;
pub use content::{ContentError, ImageComparison, Progress, compare, import};
pub use equalize::{EqualizeError, Equalized, Equalizer};
pub use error::BesideError;
pub use executed::Executed;
pub use follower::{FollowError, Follower, FollowerTurn, ImageWriter};
pub use ground::{Claim, Ground, Unfit, view};
pub use images::{ImagesError, MirroredImages, NumberedImage};
pub use intents::{Clearance, Flush, Intent, Intents, TellReady, Watched};
pub use look::{DiskLook, Look, MapLook, check, look};
pub use nurse::TellStands;
pub use overlay::{NewOverlay, OverlayError, OverlayLook, bases, create_overlay, open_image};
pub use qcow2::Qcow2Error;
pub use reader::{DiskReader, DiskReaderError};
pub use replicated::{Disks, DisksError, NoStore};
pub use stamps::{Judged, Stamps};
pub use tap::{Session as TapSession, Take, Tapped, TappedDisk, Told, WriteTap};
pub use verify::{OnDifference, TellCompared, Verifier, VerifyError};
