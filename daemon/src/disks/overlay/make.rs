//! Makes an overlay: an image that has nothing yet, and its presence map, which says what lies under it.

use super::super::beside::{Writable, directory};
use super::super::content::Progress;
use super::super::error::BesideError;
use super::super::files;
use super::super::source::Source;
use super::super::stamps::whose;
use super::super::target::Target;
use super::{KIND, OverlayError, UNIT_BYTES, not_an_image};
use crate::config::Config;
use crate::nonce::random_nonce;
use ft_disk::Readers;
use ft_mirror::{OverlayOf, PresenceMap};
use std::fs::File;
use std::path::PathBuf;

/// An overlay that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewOverlay {
    /// Its image.
    pub image: PathBuf,
    /// Bytes of the disk.
    pub disk_bytes: u64,
    /// The hash of its base, in hexadecimal.
    pub base: String,
}

/// Makes the overlay of a disk, counted from 1, with the image and the base that the configuration names. The disk is
/// as large as its base, or has so many MiB. Reads all of the base.
pub fn create_overlay(
    config: &Config,
    number: usize,
    mib: Option<u64>,
    progress: Progress<'_>,
) -> Result<NewOverlay, BesideError> {
    let disks = &config.machine.disks;
    let none = || OverlayError::NoDisk(number, disks.len());
    let at = number.checked_sub(1).ok_or_else(none)?;
    let disk = disks.get(at).ok_or_else(none)?;
    let base = disk.base.as_ref().ok_or(OverlayError::Whole(number))?;
    not_an_image(config, base)?;
    let of_base = |source| OverlayError::Base { image: disk.image.clone(), source };
    let mut source = Source::open(base, Readers::Many).map_err(of_base)?;
    let bytes = mib.map_or(source.bytes(), |mib| mib.saturating_mul(1 << 20));
    if bytes < source.bytes() {
        let (base, mib) = (base.clone(), mib.unwrap_or_default());
        return Err(OverlayError::Short { mib, base, bytes: source.bytes() }.into());
    }
    let directory = directory(config);
    files::directory(&directory)?;
    let target = Target::open(&disk.image, bytes).map_err(OverlayError::Image)?;
    // A device may be larger than what it is to hold.
    let disk_bytes = target.bytes().map_err(files::failed(&disk.image))?;
    let writable = Writable { number: at as u16, config: disk, bytes: disk_bytes };
    for kind in [KIND, "intent", "stamp"] {
        let path = writable.file(&directory, kind);
        if path.try_exists().map_err(files::failed(&path))? {
            return Err(OverlayError::Beside(path).into());
        }
    }
    let base = source.facts(progress).map_err(of_base)?;
    let image = whose(config.vm.as_str(), &disk.image, disk_bytes).image;
    let of = OverlayOf { image, disk_bytes, unit_bytes: UNIT_BYTES, base };
    let map = writable.file(&directory, KIND);
    let failed = |source| OverlayError::Map { image: disk.image.clone(), map: map.clone(), source };
    let map_bytes = PresenceMap::<File>::bytes_for(&of).map_err(failed)?;
    files::make(&map, map_bytes, |file| Ok(PresenceMap::create(file, of, random_nonce()).map_err(failed)?))?;
    // An image without its map is refused; a map without its image is nobody's.
    if let Err(source) = target.keep() {
        files::remove(&map)?;
        return Err(OverlayError::Image(source).into());
    }
    let base = blake3::Hash::from(base.hash).to_hex().to_string();
    Ok(NewOverlay { image: disk.image.clone(), disk_bytes, base })
}
