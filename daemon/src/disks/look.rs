//! What stands beside the images, for those who only look: nothing is made or changed, and the daemon may run.

use super::beside::{Writable, all_follow, directory, writable};
use super::error::BesideError;
use super::files;
use super::overlay::{OverlayLook, check_base, look_at_overlay};
use super::stamps::whose;
use crate::config::Config;
use ft_mirror::{
    CellView, Glance, ImageOf, IntentError, IntentMap, Journal, Judgement, Stamp, StampFile, judge,
};
use std::fs::File;
use std::path::{Path, PathBuf};

/// See the module.
#[derive(Debug)]
pub struct Look {
    /// What stands beside each writable disk.
    pub disks: Vec<DiskLook>,
    /// The journal; none: there is none yet.
    pub journal: Option<Glance>,
}

/// What stands beside an image.
#[derive(Debug)]
pub struct DiskLook {
    /// The disk's number, from 0.
    pub disk: u16,
    /// Its image.
    pub image: PathBuf,
    /// Whose it is.
    pub of: ImageOf,
    /// What its stamp says, if it has one.
    pub stamp: Option<Stamp>,
    /// What lies under it; none: it is whole.
    pub overlay: Option<OverlayLook>,
    /// Its map; none: there is none that counts.
    pub map: Option<MapLook>,
}

/// An intent map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapLook {
    /// Bytes that may differ from the peer's.
    pub set_bytes: u64,
    /// Blocks that were damaged, and count as all set.
    pub damaged_blocks: u64,
}

impl DiskLook {
    /// What the image is, by this cell.
    #[must_use]
    pub fn verdict(&self, view: Option<CellView>) -> Judgement {
        judge(view, self.of, self.stamp.as_ref())
    }

    /// Bytes that may differ from the peer's: without a map, all that is not the base's.
    #[must_use]
    pub fn may_differ_bytes(&self) -> u64 {
        let of_overlay = || self.overlay.as_ref().map(OverlayLook::present_bytes);
        self.map.map(|map| map.set_bytes).or_else(of_overlay).unwrap_or(self.of.disk_bytes)
    }
}

/// Looks at all that stands beside the images. What is damaged, and counts, is an error that names it.
pub fn look(config: &Config) -> Result<Look, BesideError> {
    let directory = directory(config);
    let disks = writable(config)?;
    if disks.is_empty() {
        return Ok(Look { disks: Vec::new(), journal: None });
    }
    let disks: Vec<DiskLook> =
        disks.iter().map(|disk| look_at(config, &directory, disk)).collect::<Result<_, _>>()?;
    let path = directory.join("journal");
    let journal = match files::open_to_read(&path)?.map(|file| Journal::look(&file)).transpose() {
        Ok(journal) => journal,
        Err(source) => {
            let stamps: Vec<_> = disks.iter().map(|disk| disk.stamp).collect();
            if all_follow(&stamps) {
                return Err(BesideError::Journal { path, source });
            }
            None
        }
    };
    Ok(Look { disks, journal })
}

fn look_at(config: &Config, directory: &Path, disk: &Writable<'_>) -> Result<DiskLook, BesideError> {
    let image = disk.config.image.clone();
    let of = whose(config.vm.as_str(), &image, disk.bytes);
    let path = disk.file(directory, "stamp");
    let stamp = files::open_to_read(&path)?
        .map(|file| StampFile::look(&file))
        .transpose()
        .map_err(|source| BesideError::Stamp { path, source })?;
    let path = disk.file(directory, "intent");
    let is_known = stamp.is_some_and(|stamp| stamp.of == of);
    let map = match files::open_to_read(&path)?.filter(|_| is_known) {
        Some(file) => map(file, disk.bytes).map_err(|source| BesideError::Intents { path, source })?,
        None => None,
    };
    let overlay = look_at_overlay(config, disk)?;
    Ok(DiskLook { disk: disk.number, image, of, stamp, overlay, map })
}

fn map(file: File, disk_bytes: u64) -> Result<Option<MapLook>, IntentError> {
    match IntentMap::look(file, disk_bytes) {
        Ok((map, damage)) => {
            let bytes = |extent| {
                let range = map.range(extent);
                range.end - range.start
            };
            let set_bytes = map.set().map(bytes).sum();
            Ok(Some(MapLook { set_bytes, damaged_blocks: damage.blocks }))
        }
        Err(IntentError::Io(source)) if source.kind() != std::io::ErrorKind::UnexpectedEof => {
            Err(source.into())
        }
        Err(_) => Ok(None),
    }
}

/// Checks the images and what stands beside them, as far as this host can tell without the cell.
pub fn check(config: &Config) -> Result<(), BesideError> {
    let disks = &config.machine.disks;
    for disk in disks {
        ft_disk::image_bytes(&disk.image)?;
    }
    for (at, one) in disks.iter().enumerate() {
        for other in &disks[at + 1..] {
            let is_shared = || ft_disk::is_same_storage(&one.image, &other.image);
            if (!one.read_only || !other.read_only) && is_shared().map_err(files::failed(&one.image))? {
                return Err(BesideError::Same { one: one.image.clone(), other: other.image.clone() });
            }
        }
    }
    for disk in writable(config)? {
        check_base(config, &disk)?;
    }
    let look = look(config)?;
    let is_stamped = |image: &Path| look.disks.iter().any(|disk| disk.image == image && disk.stamp.is_some());
    for disk in disks.iter().filter(|disk| !is_stamped(&disk.image)) {
        let format = File::open(&disk.image).and_then(|image| ft_disk::container(&image));
        if let Some(format) = format.map_err(files::failed(&disk.image))? {
            return Err(BesideError::Container { image: disk.image.clone(), format });
        }
    }
    for DiskLook { image, of, stamp, .. } in &look.disks {
        let (now, Some(then)) = (of.disk_bytes, stamp.map(|stamp| stamp.of.disk_bytes)) else { continue };
        if then != now {
            return Err(BesideError::Resized { image: image.clone(), then, now });
        }
    }
    match look.journal {
        None if !look.disks.is_empty() => {
            files::room_for(&directory(config).join("journal"), config.replication.journal_mib << 20)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
