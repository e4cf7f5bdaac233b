//! What the fuzz targets reach that is nobody else's business: the words of the child that reads a disk.

use super::wire::say;
pub use super::wire::{ChildWord, HearError, hear};
use ft_image::BootEntry;
use std::io;

/// An entry, as the child says it.
pub fn said(entry: BootEntry) -> io::Result<Vec<u8>> {
    let mut said = Vec::new();
    say(&mut said, Ok(entry))?;
    Ok(said)
}
