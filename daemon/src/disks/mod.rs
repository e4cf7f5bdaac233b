//! What makes two images on two hosts one disk, on this host's side: the files beside the images (`beside`), with the
//! stamps that say whose image is right (`stamps`), and the thread that keeps the intent maps (`intents`).

mod adopt;
mod beside;
mod content;
mod error;
mod files;
mod ground;
mod intents;
mod look;
mod stamps;

pub use adopt::adopt;
pub use beside::Beside;
pub use content::{Compared, ContentError, Progress, compare, import};
pub use error::BesideError;
pub use ground::{Claim, Ground, Unfit, view};
pub use intents::{Clearance, Flush, Intent, Intents, TellReady, Watched};
pub use look::{DiskLook, Look, MapLook, check, look};
pub use stamps::{Judged, Stamps};
