//! Why an overlay, or an image that might be one, is not used, each with what an operator can do.

use crate::disks::ContentError;
use ft_mirror::PresenceError;
use std::io;
use std::path::PathBuf;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// The configuration has no base for it.
    #[error(
        "machine.disk.image = {}: it is an overlay ({} says which parts of the disk it has), and machine.disk.base \
         does not name what lies under it: set base; if another image that is whole lies there now, move that file \
         away",
        image.display(), map.display()
    )]
    NoBase {
        /// The image.
        image: PathBuf,
        /// Its presence map.
        map: PathBuf,
    },
    /// Nobody knows what the image has.
    #[error(
        "machine.disk.base: {} does not exist, so that it is not known what of the disk the image {} has: `ftd disk \
         create-overlay` makes both; for an image that is whole leave out base", map.display(), image.display()
    )]
    NoMap {
        /// The image.
        image: PathBuf,
        /// Where its presence map should be.
        map: PathBuf,
    },
    /// The presence map cannot be used.
    #[error(
        "{}: {source}; without it, it is not known what of the disk the image {} has: {}", map.display(),
        image.display(), map_help(source)
    )]
    Map {
        /// The image.
        image: PathBuf,
        /// Its presence map.
        map: PathBuf,
        /// Why.
        source: PresenceError,
    },
    /// The map is another image's.
    #[error(
        "machine.disk.image = {}: {} is the presence map of an image in another place: name that image again, or move \
         the map away and make a new overlay", image.display(), map.display()
    )]
    Elsewhere {
        /// The image.
        image: PathBuf,
        /// The map.
        map: PathBuf,
    },
    /// The base cannot be read.
    #[error("machine.disk.base: {source}; the overlay {} is nothing without its base", image.display())]
    Base {
        /// The overlay.
        image: PathBuf,
        /// Why.
        source: ContentError,
    },
    /// The base is not what it was.
    #[error(
        "machine.disk.base = {}: it has changed since the overlay {} was made: {how}; bring back the base as it was, \
         or make a new overlay over this one", base.display(), image.display()
    )]
    Changed {
        /// The base.
        base: PathBuf,
        /// The overlay.
        image: PathBuf,
        /// What is not as it was.
        how: String,
    },
    /// The base is an image that is written to.
    #[error(
        "machine.disk.base = {}: it is the image of a disk of this VM as well, which is written to: a base never is",
        .0.display()
    )]
    OwnImage(PathBuf),
    /// Nothing lies under the disk.
    #[error("machine.disk: disk {0} has no base, so that there is no overlay to be made")]
    Whole(usize),
    /// There is no such disk.
    #[error("machine.disk: there is no disk {0}, there are {1}")]
    NoDisk(usize, usize),
    /// The disk would end before its base.
    #[error("--mib {mib}: the base {} has {bytes} bytes: a disk over it has as many, or more", base.display())]
    Short {
        /// What was asked for.
        mib: u64,
        /// The base.
        base: PathBuf,
        /// Bytes of its disk.
        bytes: u64,
    },
    /// An image was there before.
    #[error(
        "{}: it is there already, and tells of another image of this disk: if that one is given up, stop ftd and move \
         the file away", .0.display()
    )]
    Beside(PathBuf),
    /// The overlay's file.
    #[error(transparent)]
    Image(#[from] ContentError),
    /// The host.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn map_help(source: &PresenceError) -> &'static str {
    match source {
        PresenceError::Version(_) => "start the version of ftd that wrote it",
        PresenceError::Io(_) => "see whether its storage is well, and start ftd again",
        _ => {
            "bring back both as they were; or move both away, make a new overlay with `ftd disk create-overlay`, and \
              let the other host take the VM, which makes this one equal"
        }
    }
}
