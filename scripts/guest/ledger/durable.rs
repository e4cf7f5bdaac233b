//! What makes a name last.

use super::trouble::Trouble;
use std::fs::File;
use std::path::Path;

/// Makes the names in a directory durable.
pub fn sync_directory(path: &Path) -> Result<(), Trouble> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(Trouble::system("sync", path))
}
