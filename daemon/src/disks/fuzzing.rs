//! What the fuzz targets reach that is nobody else's business: a qcow2 file, without the locks of its path.

pub use super::qcow2::Qcow2;
