//! The operator's word that this node's images are right, whatever their stamps say.

use super::beside::{Beside, directory, writable};
use super::error::BesideError;
use super::files;
use super::ground::view;
use super::stamps::Judged;
use crate::config::Config;
use ft_arbiter::Cell;
use ft_mirror::History;

/// Has the VM's next boot take the images as they are: of this cell, or where there is none, as new ones. What they
/// were is told. The daemon must not run, and no other node have the VM.
pub fn adopt(config: &Config, cell: Option<&Cell>) -> Result<Vec<Judged>, BesideError> {
    let Some(beside) = Beside::open(config)? else { return Ok(Vec::new()) };
    let were = beside.stamps().judge(cell.map(|cell| view(cell, config.node.as_str())));
    drop(beside);
    let directory = directory(config);
    // What the journal has is of another past, and nobody knows in what the images differ from the peer's. An
    // interruption leaves images that are nobody's.
    files::remove(&directory.join("journal"))?;
    for disk in writable(config)? {
        files::remove(&disk.file(&directory, "intent"))?;
        if cell.is_none() {
            files::remove(&disk.file(&directory, "stamp"))?;
        }
    }
    if let (Some(beside), Some(cell)) = (Beside::open(config)?, cell) {
        beside.stamps().write(cell.id, History::Ran { generation: cell.generation })?;
    }
    Ok(were)
}
