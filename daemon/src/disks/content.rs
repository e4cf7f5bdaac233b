//! What images hold, offline: two compared extent by extent, and one made from another disk.

use super::error::BesideError;
use super::images::{ImagesError, MirroredImages};
use super::overlay::open_overlay;
use super::qcow2::Qcow2Error;
use super::source::Source;
use crate::config::Config;
use ft_disk::{Access, DiskImageError, RawImage};
use ft_mirror::Extent;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::linkat;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes that are read and compared in one go.
pub(super) const EXTENT_BYTES: u64 = 1 << 20;
/// Where as many bytes are zero, a new file keeps a hole.
const HOLE_BYTES: usize = 64 << 10;

/// Why images are not compared, or none is made.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// An image, or somebody has it in use.
    #[error(transparent)]
    Image(#[from] DiskImageError),
    /// What lies beside an image, or under it.
    #[error(transparent)]
    Beside(Box<BesideError>),
    /// An image cannot be read.
    #[error(transparent)]
    Read(#[from] ImagesError),
    /// They are of two sizes.
    #[error("{} has {one_bytes} bytes, {} has {other_bytes}: two disks", one.display(), other.display())]
    Sizes {
        /// An image.
        one: PathBuf,
        /// Its size.
        one_bytes: u64,
        /// Another one.
        other: PathBuf,
        /// Its size.
        other_bytes: u64,
    },
    /// A file of another program.
    #[error(
        "{}: it is a {format} file, and ftd reads raw and qcow2 ones: qemu-img convert -O raw makes one",
        path.display()
    )]
    Container {
        /// The file.
        path: PathBuf,
        /// What it is.
        format: &'static str,
    },
    /// A qcow2 file that is not read.
    #[error("{}: {source}", path.display())]
    Qcow2 {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Qcow2Error,
    },
    /// The new image is there already.
    #[error("{}: it is there already, and is not overwritten: name a new file, or a block device", .0.display())]
    Exists(PathBuf),
    /// The block device is too small.
    #[error("{}: it has {has} bytes, the disk takes {need}", path.display())]
    Small {
        /// The device.
        path: PathBuf,
        /// What it has.
        has: u64,
        /// What it would take.
        need: u64,
    },
    /// The host.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Told how many bytes of how many are done.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// What two images hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageComparison {
    /// The BLAKE3 of each, in hexadecimal.
    pub hashes: [String; 2],
    /// Where they differ, in whole extents of 1 MiB.
    pub differ: Vec<Range<u64>>,
    /// Bytes of each.
    pub bytes: u64,
}

pub(super) fn failed(path: &Path) -> impl Fn(io::Error) -> ContentError + use<> {
    let path = path.to_owned();
    move |source| ContentError::Io { path: path.clone(), source }
}

/// Compares two images that nobody writes to. Each is read over its base, if one of these configurations names one.
pub fn compare(
    [one, other]: [&Path; 2],
    configs: &[Config],
    progress: Progress<'_>,
) -> Result<ImageComparison, ContentError> {
    let open = |path| match open_overlay(configs, path).map_err(beside)? {
        Some(image) => Ok(image),
        None => Ok::<_, ContentError>(RawImage::open(path, Access::ReadOnly)?),
    };
    let images = [open(one)?, open(other)?].map(Arc::new);
    let [bytes, other_bytes] = [0, 1].map(|at: usize| images[at].bytes());
    if other_bytes != bytes {
        let (one, other) = (one.to_owned(), other.to_owned());
        return Err(ContentError::Sizes { one, one_bytes: bytes, other, other_bytes });
    }
    let mut images = MirroredImages::new(&[(0, Arc::clone(&images[0])), (1, Arc::clone(&images[1]))])?;
    let mut hashers = [blake3::Hasher::new(), blake3::Hasher::new()];
    let zeroes = vec![0; EXTENT_BYTES as usize];
    let mut differ: Vec<Range<u64>> = Vec::new();
    for start in (0..bytes).step_by(EXTENT_BYTES as usize) {
        let end = (start + EXTENT_BYTES).min(bytes);
        let mut read = |disk| images.read(&Extent { disk, bytes: start..end });
        let contents = [read(0)?, read(1)?];
        let contents = contents.each_ref().map(|content| match content {
            Some(content) => &content[..],
            None => &zeroes[..(end - start) as usize],
        });
        hashers.iter_mut().zip(contents).for_each(|(hasher, content)| _ = hasher.update(content));
        if contents[0] != contents[1] {
            match differ.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => differ.push(start..end),
            }
        }
        progress(end, bytes);
    }
    let hashes = hashers.map(|hasher| hasher.finalize().to_hex().to_string());
    Ok(ImageComparison { hashes, differ, bytes })
}

fn beside(why: BesideError) -> ContentError {
    ContentError::Beside(Box::new(why))
}

/// Makes an image of what a raw file, a block device or a qcow2 file holds, or an overlay with the base that one of
/// these configurations names, and says its BLAKE3. A new file has holes where the source has zeroes, and no name
/// before it is whole.
pub fn import(
    source: &Path,
    image: &Path,
    configs: &[Config],
    progress: Progress<'_>,
) -> Result<String, ContentError> {
    let (bytes, mut read): (u64, Box<ReadSource>) = match open_overlay(configs, source).map_err(beside)? {
        Some(overlay) => {
            let (bytes, mut images) = (overlay.bytes(), MirroredImages::new(&[(0, Arc::new(overlay))])?);
            let read = move |into: &mut [u8], offset| {
                let bytes = offset..offset + into.len() as u64;
                match images.read(&Extent { disk: 0, bytes })? {
                    Some(content) => into.copy_from_slice(&content),
                    None => into.fill(0),
                }
                Ok(())
            };
            (bytes, Box::new(read))
        }
        None => {
            let source = Source::open(source)?;
            (source.bytes(), Box::new(move |into: &mut [u8], offset| source.read(into, offset)))
        }
    };
    let target = Target::open(image, bytes)?;
    let hash = copy(bytes, &mut *read, &target, progress)?;
    target.keep()?;
    Ok(hash)
}

/// Fills a buffer with what a disk has from a byte on.
type ReadSource = dyn FnMut(&mut [u8], u64) -> Result<(), ContentError>;

/// What is made.
pub(super) struct Target {
    path: PathBuf,
    file: File,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Device,
    /// It gets its name when it is whole: whatever ends this process leaves nothing.
    Unnamed,
    /// Where the file system has no others. It is removed with this, unless it is whole.
    Named,
    Whole,
}

impl Target {
    /// A new file of this size, or a block device that nobody uses.
    pub(super) fn open(path: &Path, bytes: u64) -> Result<Self, ContentError> {
        let failed = failed(path);
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let target = |file, kind| Self { path: path.to_owned(), file, kind };
        match fs::symlink_metadata(path) {
            Ok(_) if fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device()) => {
                // Neither mounted nor a part of another device.
                let file = options.custom_flags(libc::O_EXCL).open(path).map_err(&failed)?;
                let has = ft_disk::image_bytes(path)?;
                return match has < bytes {
                    true => Err(ContentError::Small { path: path.to_owned(), has, need: bytes }),
                    false => Ok(target(file, Kind::Device)),
                };
            }
            Ok(_) => return Err(ContentError::Exists(path.to_owned())),
            Err(_) => {}
        }
        options.mode(0o600);
        let target = match options.clone().custom_flags(libc::O_TMPFILE).open(directory_of(path)) {
            Ok(file) => target(file, Kind::Unnamed),
            Err(_) => target(options.create_new(true).open(path).map_err(&failed)?, Kind::Named),
        };
        target.file.set_len(bytes).map_err(&failed)?;
        Ok(target)
    }

    fn write(&self, extent: &[u8], start: u64) -> Result<(), ContentError> {
        for (at, piece) in (start..).step_by(HOLE_BYTES).zip(extent.chunks(HOLE_BYTES)) {
            if self.kind == Kind::Device || piece.iter().any(|byte| *byte != 0) {
                self.file.write_all_at(piece, at).map_err(failed(&self.path))?;
            }
        }
        Ok(())
    }

    /// Its size: a device may be larger than was asked for.
    pub(super) fn bytes(&self) -> io::Result<u64> {
        (&self.file).seek(SeekFrom::End(0))
    }

    /// It is whole.
    pub(super) fn keep(mut self) -> Result<(), ContentError> {
        let failed = failed(&self.path);
        self.file.sync_all().map_err(&failed)?;
        if self.kind == Kind::Unnamed {
            let unnamed = PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
            linkat(AT_FDCWD, &unnamed, AT_FDCWD, &self.path, AtFlags::AT_SYMLINK_FOLLOW).map_err(
                |e| match e {
                    Errno::EEXIST => ContentError::Exists(self.path.clone()),
                    _ => failed(e.into()),
                },
            )?;
        }
        self.kind = Kind::Whole;
        File::open(directory_of(&self.path)).and_then(|directory| directory.sync_all()).map_err(&failed)
    }
}

impl Drop for Target {
    /// What is half made holds nothing that anybody has seen.
    fn drop(&mut self) {
        if self.kind == Kind::Named {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn copy(
    bytes: u64,
    read: &mut ReadSource,
    target: &Target,
    progress: Progress<'_>,
) -> Result<String, ContentError> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; EXTENT_BYTES as usize];
    for start in (0..bytes).step_by(EXTENT_BYTES as usize) {
        let end = (start + EXTENT_BYTES).min(bytes);
        let extent = &mut buffer[..(end - start) as usize];
        read(extent, start)?;
        hasher.update(extent);
        target.write(extent, start)?;
        progress(end, bytes);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    const MIB: usize = 1 << 20;

    fn disk(path: &Path, bytes: usize, at: &[usize]) {
        let mut content = vec![0; bytes];
        at.iter().for_each(|at| content[*at] = 7);
        fs::write(path, content).unwrap();
    }

    #[test]
    fn images_are_told_apart_by_where_they_differ() {
        let directory = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| directory.path().join(name));
        let bytes = 5 * MIB + 512;
        disk(&one, bytes, &[]);
        disk(&other, bytes, &[MIB, 2 * MIB + 5, bytes - 1]);
        let mut said = Vec::new();
        let compared = compare([&one, &other], &[], &mut |done, all| said.push((done, all))).unwrap();
        let mib = MIB as u64;
        assert_eq!(compared.differ, [mib..3 * mib, 5 * mib..bytes as u64]);
        assert_ne!(compared.hashes[0], compared.hashes[1]);
        assert_eq!((said.len(), said.last()), (6, Some(&(bytes as u64, bytes as u64))));
        let same = compare([&other, &other], &[], &mut |_, _| ()).unwrap();
        assert_eq!(same.differ, []);
        assert_eq!(same.hashes[0], compared.hashes[1]);
        disk(&one, MIB, &[]);
        let text = compare([&one, &other], &[], &mut |_, _| ()).unwrap_err().to_string();
        assert!(text.contains("has 1048576 bytes") && text.contains("two disks"), "{text}");
        let _in_use = RawImage::open(&one, Access::Writable).unwrap();
        assert!(compare([&one, &one], &[], &mut |_, _| ()).unwrap_err().to_string().contains("in use by"));
    }

    #[test]
    fn an_imported_image_is_the_same_and_has_holes_for_zeroes() {
        let directory = tempfile::tempdir().unwrap();
        let [source, image] = ["source", "image"].map(|name| directory.path().join(name));
        disk(&source, 8 * MIB + 512, &[3 * MIB, 8 * MIB + 511]);
        let hash = import(&source, &image, &[], &mut |_, _| ()).unwrap();
        assert_eq!(compare([&source, &image], &[], &mut |_, _| ()).unwrap().hashes, [hash.clone(), hash]);
        assert!(fs::metadata(&image).unwrap().blocks() * 512 < MIB as u64);
    }

    #[test]
    fn an_import_that_is_broken_off_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let [source, image] = ["source", "image"].map(|name| directory.path().join(name));
        disk(&source, 2 * MIB, &[1]);
        let broken = || import(&source, &image, &[], &mut |_, _| panic!("broken off"));
        assert!(std::panic::catch_unwind(broken).is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_imported_is_said_and_nothing_is_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let [source, image] = ["source", "image"].map(|name| directory.path().join(name));
        let refused = |what: &str| {
            let text = import(&source, &image, &[], &mut |_, _| ()).unwrap_err().to_string();
            assert!(text.contains(what), "{what}: {text}");
        };
        refused("source: No such file");
        fs::write(&source, [&b"KDMV"[..], &[0; 508]].concat()).unwrap();
        refused("it is a VMDK file");
        fs::write(&source, [&b"QFI\xfb"[..], &[0; 508]].concat()).unwrap();
        refused("qcow2 of version 0");
        fs::write(&source, [1; 700]).unwrap();
        refused("700 bytes");
        disk(&source, 512, &[]);
        fs::write(&image, "precious").unwrap();
        refused("there already");
        assert_eq!(fs::read(&image).unwrap(), b"precious");
    }
}
