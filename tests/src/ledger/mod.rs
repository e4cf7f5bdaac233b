//! The ledger of the Linux guest with a disk, seen from outside: the client that counts what was acknowledged, and the
//! reader of an image. How entries are kept is compiled from the guest's program.

#[path = "../../../scripts/guest/ledger/content.rs"]
pub mod content;
#[path = "../../../scripts/guest/ledger/durable.rs"]
pub mod durable;
#[path = "../../../scripts/guest/ledger/serve.rs"]
pub mod serve;
#[path = "../../../scripts/guest/ledger/slots.rs"]
pub mod slots;
#[path = "../../../scripts/guest/ledger/table.rs"]
pub mod table;
#[path = "../../../scripts/guest/ledger/tree.rs"]
pub mod tree;
#[path = "../../../scripts/guest/ledger/trouble.rs"]
pub mod trouble;

pub mod follow;
pub mod image;
#[cfg(test)]
mod tests;

use std::path::Path;

/// The number in a file in which a client notes what was acknowledged; 0 without the file.
pub fn acknowledged(path: &Path) -> std::io::Result<u64> {
    match std::fs::read_to_string(path) {
        Ok(text) => text.trim().parse().map_err(std::io::Error::other),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}
