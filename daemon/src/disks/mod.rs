//! What makes two images on two hosts one disk, on this host's side: the files beside the images (`beside`), with the
//! stamps that say whose image is right (`stamps`).

mod beside;
mod error;
mod files;
mod stamps;

pub use beside::Beside;
pub use error::BesideError;
pub use stamps::{Judged, Stamps};
