//! What the fuzz targets reach that is nobody else's business: a certificate, whoever has signed it.

pub use crate::verdict::{Said, read};
