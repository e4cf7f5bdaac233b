//! What makes two images on two hosts one disk, on this host's side: the files beside the images (`beside`), with the
//! stamps that say whose image is right (`stamps`), and the thread that keeps the intent maps (`intents`).

mod beside;
mod error;
mod files;
mod intents;
mod stamps;

pub use beside::Beside;
pub use error::BesideError;
pub use intents::{Flush, Intent, Intents, Leave, TellReady, Watched};
pub use stamps::{Judged, Stamps};
