//! Images over a base: beside such an image lies its presence map, `N.present`, which also says what the base is. An
//! image is used with the base that its map was made for, or not at all.

mod error;
mod make;
#[cfg(test)]
mod tests;

pub use error::OverlayError;
pub use make::{NewOverlay, create_overlay};

use super::ContentError;
use super::beside::{Writable, directory, writable};
use super::error::BesideError;
use super::files;
use super::source::Source;
use super::stamps::whose;
use crate::config::{Config, DiskConfig};
use ft_disk::{Access, RawImage, UnderImage};
use ft_mirror::{BaseFacts, Medium, PresenceError, PresenceMap};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Beside the image.
const KIND: &str = "present";
/// Bytes of a unit. What a first write costs grows with it, and so does what later ones save; as qcow2's clusters.
const UNIT_BYTES: u64 = 64 << 10;

/// What an overlay is, for those who only look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayLook {
    /// The base.
    pub base: PathBuf,
    /// What it was when it was read last.
    pub facts: BaseFacts,
    /// The parts of the disk that the image has, in bytes.
    pub present: Vec<Range<u64>>,
}

impl OverlayLook {
    /// Bytes of the disk that the image has.
    #[must_use]
    pub fn present_bytes(&self) -> u64 {
        self.present.iter().map(|run| run.end - run.start).sum()
    }
}

/// A disk's presence map, and the base that the configuration names; none: its image is whole.
struct Paths<'a> {
    image: &'a Path,
    base: &'a Path,
    map: PathBuf,
    place: u64,
}

impl<'a> Paths<'a> {
    /// None: the image is whole.
    fn of(config: &'a Config, disk: &Writable<'a>) -> Result<Option<Self>, OverlayError> {
        let (image, map) = (&*disk.config.image, disk.file(&directory(config), KIND));
        let is_there = map.try_exists().map_err(|source| OverlayError::Io { path: map.clone(), source })?;
        match (&disk.config.base, is_there) {
            (None, false) => Ok(None),
            (None, true) => Err(OverlayError::NoBase { image: image.to_owned(), map }),
            (Some(_), false) => Err(OverlayError::NoMap { image: image.to_owned(), map }),
            (Some(base), true) => {
                let place = whose(config.vm.as_str(), image, disk.bytes).image;
                Ok(Some(Self { image, base, map, place }))
            }
        }
    }

    /// Opens its map by `open`.
    fn map<M: Medium>(
        &self,
        open: impl FnOnce() -> Result<PresenceMap<M>, PresenceError>,
    ) -> Result<PresenceMap<M>, OverlayError> {
        let map = open().map_err(|source| self.unusable(source))?;
        match map.of().image == self.place {
            true => Ok(map),
            false => Err(OverlayError::Elsewhere { image: self.image.to_owned(), map: self.map.clone() }),
        }
    }

    fn look(&self, disk_bytes: u64) -> Result<PresenceMap<File>, OverlayError> {
        self.map(|| PresenceMap::look(File::open(&self.map)?, disk_bytes))
    }

    fn changed(&self, how: String) -> OverlayError {
        OverlayError::Changed { base: self.base.to_owned(), image: self.image.to_owned(), how }
    }

    /// Opens and locks the base, and says whether it may be another one than these facts say: it has to be read.
    fn base(&self, facts: &BaseFacts) -> Result<(Source, bool), OverlayError> {
        let source = Source::open(self.base).map_err(|source| self.unreadable(source))?;
        if source.format() != facts.format {
            let how = format!("its format was {:?}, and is {:?}", facts.format, source.format());
            return Err(self.changed(how.to_lowercase()));
        }
        if source.bytes() != facts.bytes {
            let how = format!("its disk had {} bytes, and has {}", facts.bytes, source.bytes());
            return Err(self.changed(how));
        }
        let is_same = source.seen() == Some((facts.file_bytes, facts.modified));
        Ok((source, !is_same))
    }

    /// The base, with the content that it had when the overlay was made. It is read again if its file is another one or
    /// was touched; then what it is now comes with it.
    fn sound_base(&self, facts: &BaseFacts) -> Result<(Source, Option<BaseFacts>), OverlayError> {
        let (source, is_doubtful) = self.base(facts)?;
        if !is_doubtful {
            return Ok((source, None));
        }
        let base = self.base.display();
        tracing::info!(%base, "the base image may have changed since it was read: all of it is read again");
        let found = source.facts(&mut |_, _| ()).map_err(|source| self.unreadable(source))?;
        if found.blake3 != facts.blake3 {
            let [was, is] = [facts.blake3, found.blake3].map(|hash| blake3::Hash::from(hash).to_hex());
            return Err(self.changed(format!("its BLAKE3 was {was}, and is {is}")));
        }
        tracing::info!(%base, "the base image has the same content as before");
        Ok((source, Some(found)))
    }

    fn unreadable(&self, source: ContentError) -> OverlayError {
        OverlayError::Base { image: self.image.to_owned(), source }
    }

    fn unusable(&self, source: PresenceError) -> OverlayError {
        OverlayError::Map { image: self.image.to_owned(), map: self.map.clone(), source }
    }
}

/// Opens the image of a writable disk, of this number from 0: over its base, if it has one.
pub fn open_image(config: &Config, number: u16, disk: &DiskConfig) -> Result<RawImage, BesideError> {
    let image = RawImage::open(&disk.image, Access::Writable)?;
    let disk = Writable { number, config: disk, bytes: image.bytes() };
    let Some(paths) = Paths::of(config, &disk)? else { return Ok(image) };
    // Nobody else has the map: the image is locked.
    let mut map = paths.map(|| {
        let file = File::options().read(true).write(true).open(&paths.map)?;
        PresenceMap::open(file, disk.bytes)
    })?;
    let (source, again) = paths.sound_base(&map.of().base)?;
    if let Some(facts) = again {
        map.note_base(facts).map_err(|source| paths.unusable(source))?;
    }
    let to_read = under(&map, source);
    let record = Box::new(move |units: &[u64]| map.add(units).map_err(io::Error::other));
    image.over(UnderImage { record, ..to_read }).map_err(files::failed(paths.image))
}

/// Opens an overlay to be read, while nobody writes to it. None: none of these configurations names a base of it.
pub(super) fn open_overlay(configs: &[Config], path: &Path) -> Result<Option<RawImage>, BesideError> {
    for config in configs {
        for disk in writable(config)? {
            let is_it = ft_disk::is_same_storage(&disk.config.image, path);
            let Some(paths) = (match is_it.map_err(files::failed(path))? {
                true => Paths::of(config, &disk)?,
                false => None,
            }) else {
                continue;
            };
            let image = RawImage::open(path, Access::ReadOnly)?;
            let map = paths.look(disk.bytes)?;
            let (source, _) = paths.sound_base(&map.of().base)?;
            return Ok(Some(image.over(under(&map, source)).map_err(files::failed(path))?));
        }
    }
    Ok(None)
}

/// What a map says, and the base, for those who only read.
fn under<M: Medium>(map: &PresenceMap<M>, base: Source) -> UnderImage {
    UnderImage {
        base: name_of(&map.of().base),
        read: Box::new(reader(base)),
        unit_bytes: map.of().unit_bytes,
        present: map.present().collect(),
        record: Box::new(|_| Err(io::ErrorKind::ReadOnlyFilesystem.into())),
    }
}

/// Reads a base, and zeroes behind its end.
fn reader(source: Source) -> impl Fn(&mut [u8], u64) -> io::Result<()> + Send + Sync {
    move |into, offset| {
        let has = source.bytes().saturating_sub(offset).min(into.len() as u64) as usize;
        let (content, rest) = into.split_at_mut(has);
        rest.fill(0);
        match has {
            0 => Ok(()),
            _ => source.read(content, offset).map_err(io::Error::other),
        }
    }
}

/// The name of a base by its content, never 0.
fn name_of(base: &BaseFacts) -> u64 {
    let hash = blake3::hash(&[&base.blake3[..], &base.bytes.to_le_bytes()].concat());
    u64::from_le_bytes(std::array::from_fn(|i| hash.as_bytes()[i])).max(1)
}

/// What lies under the image of a disk, for those who only look; none: nothing does. The daemon may run.
pub(super) fn look_at_overlay(
    config: &Config,
    disk: &Writable<'_>,
) -> Result<Option<OverlayLook>, OverlayError> {
    let Some(paths) = Paths::of(config, disk)? else { return Ok(None) };
    let map = paths.look(disk.bytes)?;
    let mut present: Vec<Range<u64>> = Vec::new();
    for unit in map.present() {
        let bytes = unit * map.of().unit_bytes..((unit + 1) * map.of().unit_bytes).min(disk.bytes);
        match present.last_mut() {
            Some(run) if run.end == bytes.start => run.end = bytes.end,
            _ => present.push(bytes),
        }
    }
    Ok(Some(OverlayLook { base: paths.base.to_owned(), facts: map.of().base, present }))
}

/// What lies under the images of a VM's disks, by their numbers from 0.
pub fn bases(config: &Config) -> Result<Vec<(u16, OverlayLook)>, BesideError> {
    let mut bases = Vec::new();
    for disk in writable(config)? {
        bases.extend(look_at_overlay(config, &disk)?.map(|look| (disk.number, look)));
    }
    Ok(bases)
}

/// Checks what can be told of a disk's base without reading all of it. The daemon may run.
pub(super) fn check_base(config: &Config, disk: &Writable<'_>) -> Result<(), OverlayError> {
    let Some(paths) = Paths::of(config, disk)? else { return Ok(()) };
    not_an_image(config, paths.base)?;
    let facts = paths.look(disk.bytes)?.of().base;
    paths.base(&facts).map(drop)
}

/// A base is no image that is written to.
fn not_an_image(config: &Config, base: &Path) -> Result<(), OverlayError> {
    for disk in config.machine.disks.iter().filter(|disk| !disk.read_only) {
        // What is not there is said by whoever opens it.
        if ft_disk::is_same_storage(&disk.image, base).unwrap_or(false) {
            return Err(OverlayError::OwnImage(base.to_owned()));
        }
    }
    Ok(())
}
