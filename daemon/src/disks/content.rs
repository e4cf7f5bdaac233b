//! What images hold, offline: two compared extent by extent, and one made from another disk.

use super::disk_hash::{DiskHasher, EXTENT_BYTES};
use super::error::BesideError;
use super::images::{ImagesError, MirroredImages};
use super::overlay::open_overlay;
use super::qcow2::Qcow2Error;
use super::source::Source;
use super::target::Target;
use crate::config::Config;
use ft_disk::{Access, DiskImageError, RawImage, Readers};
use ft_mirror::Extent;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of zeroes that are passed, or made on a block device, in one go.
const ZEROES_BYTES: u64 = 1 << 30;

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
    /// The hash of each, in hexadecimal.
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
    let mut disks = images.map(OpenImage::new).into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut hashers = [DiskHasher::new(), DiskHasher::new()];
    let mut buffers = [vec![0; EXTENT_BYTES as usize], vec![0; EXTENT_BYTES as usize]];
    let mut differ: Vec<Range<u64>> = Vec::new();
    let mut end = 0;
    while end < bytes {
        let start = end;
        let next_data = |disk: &OpenImage| disk.image.next_data(start);
        if let Some(zeroes) = zeroes(start, disks.iter().map(next_data).min().unwrap_or(start), bytes) {
            hashers.iter_mut().for_each(|hasher| hasher.update_zeroes(zeroes.end - start));
            end = zeroes.end;
            progress(end, bytes);
            continue;
        }
        end = (start + EXTENT_BYTES).min(bytes);
        let length = (end - start) as usize;
        for ((disk, buffer), hasher) in disks.iter_mut().zip(&mut buffers).zip(&mut hashers) {
            disk.read(&mut buffer[..length], start)?;
            hasher.update(&buffer[..length]);
        }
        if buffers[0][..length] != buffers[1][..length] {
            match differ.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => differ.push(start..end),
            }
        }
        progress(end, bytes);
    }
    let hashes = hashers.map(|hasher| hasher.finish().to_string());
    Ok(ImageComparison { hashes, differ, bytes })
}

fn beside(why: BesideError) -> ContentError {
    ContentError::Beside(Box::new(why))
}

/// The extents from `start` on that are known to be zeroes where the next data is here, of a disk of so many bytes.
fn zeroes(start: u64, data: u64, bytes: u64) -> Option<Range<u64>> {
    let end = data.min(start.saturating_add(ZEROES_BYTES));
    let end = if end < bytes { end - end % EXTENT_BYTES } else { bytes };
    (end > start).then_some(start..end)
}

/// A disk that is read from its first byte to its last.
pub(super) trait DiskContent {
    /// Bytes of the disk.
    fn bytes(&self) -> u64;
    /// Where data begins, from this byte on, looking at so many bytes at least: all before it are zeroes. At the disk's
    /// end or beyond: there is none.
    fn next_data(&self, offset: u64, look_at: u64) -> Result<u64, ContentError>;
    /// Fills `into` with what the disk has from this byte on; all of it must be there.
    fn read(&mut self, into: &mut [u8], offset: u64) -> Result<(), ContentError>;
}

/// A part of a disk, in whole extents but for the disk's last.
pub(super) enum Piece<'b> {
    /// Known to be zeroes.
    Zeroes(Range<u64>),
    /// One extent, from this byte on.
    Data(u64, &'b [u8]),
}

/// Hands out what a disk holds, in order.
pub(super) fn walk(
    disk: &mut dyn DiskContent,
    progress: Progress<'_>,
    each: &mut dyn FnMut(Piece<'_>) -> Result<(), ContentError>,
) -> Result<(), ContentError> {
    let bytes = disk.bytes();
    let mut buffer = vec![0; EXTENT_BYTES as usize];
    let mut end = 0;
    while end < bytes {
        let start = end;
        if let Some(zeroes) = zeroes(start, disk.next_data(start, ZEROES_BYTES)?, bytes) {
            end = zeroes.end;
            each(Piece::Zeroes(zeroes))?;
        } else {
            end = (start + EXTENT_BYTES).min(bytes);
            let extent = &mut buffer[..(end - start) as usize];
            disk.read(extent, start)?;
            each(Piece::Data(start, extent))?;
        }
        progress(end, bytes);
    }
    Ok(())
}

/// An image, with what lies under it.
struct OpenImage {
    image: Arc<RawImage>,
    way: MirroredImages,
}

impl OpenImage {
    fn new(image: Arc<RawImage>) -> Result<Self, ContentError> {
        Ok(Self { way: MirroredImages::new(&[(0, Arc::clone(&image))])?, image })
    }
}

impl DiskContent for OpenImage {
    fn bytes(&self) -> u64 {
        self.image.bytes()
    }

    fn next_data(&self, offset: u64, _: u64) -> Result<u64, ContentError> {
        Ok(self.image.next_data(offset))
    }

    fn read(&mut self, into: &mut [u8], offset: u64) -> Result<(), ContentError> {
        let bytes = offset..offset + into.len() as u64;
        match self.way.read(&Extent { disk: 0, bytes })? {
            Some(content) => into.copy_from_slice(&content),
            None => into.fill(0),
        }
        Ok(())
    }
}

/// Makes an image of what a raw file, a block device or a qcow2 file holds, or an overlay with the base that one of
/// these configurations names, and says its hash. A new file has holes where the source has zeroes, and no name before
/// it is whole.
pub fn import(
    source: &Path,
    image: &Path,
    configs: &[Config],
    progress: Progress<'_>,
) -> Result<String, ContentError> {
    let mut disk: Box<dyn DiskContent> = match open_overlay(configs, source).map_err(beside)? {
        Some(overlay) => Box::new(OpenImage::new(Arc::new(overlay))?),
        None => Box::new(Source::open(source, Readers::One)?),
    };
    let target = Target::open(image, disk.bytes())?;
    let mut hasher = DiskHasher::new();
    walk(&mut *disk, progress, &mut |piece| {
        hasher.take(&piece);
        match piece {
            Piece::Zeroes(zeroes) => target.write_zeroes(&zeroes),
            Piece::Data(start, extent) => target.write(extent, start),
        }
    })?;
    target.keep()?;
    Ok(hasher.finish().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ft_disk::next_data;
    use std::fs::{self, File};
    use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
    use std::process::Command;

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
    fn a_disk_of_tebibytes_that_holds_little_is_done_by_what_it_holds() {
        let directory = tempfile::tempdir().unwrap();
        let [source, image] = ["source", "image"].map(|name| directory.path().join(name));
        let bytes = (4 << 40) + 512;
        let file = File::create(&source).unwrap();
        file.set_len(bytes).unwrap();
        file.write_all_at(&[7; 512], 2 << 40).unwrap();
        if next_data(&file, 0) == 0 {
            return eprintln!("SKIPPED a_disk_of_tebibytes: the file system has no holes");
        }
        let mut said = Vec::new();
        let hash = import(&source, &image, &[], &mut |done, all| said.push((done, all))).unwrap();
        assert!(said.is_sorted() && said.len() < 5000 && said.last() == Some(&(bytes, bytes)));
        assert_eq!(fs::metadata(&image).unwrap().len(), bytes);
        let compared = compare([&source, &image], &[], &mut |_, _| ()).unwrap();
        assert_eq!(compared.hashes, [hash.clone(), hash]);
        File::options().write(true).open(&image).unwrap().write_all_at(&[1], 3 << 40).unwrap();
        let differ = compare([&source, &image], &[], &mut |_, _| ()).unwrap().differ;
        assert_eq!(differ, vec![3 << 40..(3 << 40) + EXTENT_BYTES]);
    }

    /// A loop device over a file, while this is there.
    struct Loop(PathBuf);

    impl Loop {
        /// None: not on this host.
        fn over(file: &Path) -> Option<Self> {
            let run = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
            let device = String::from_utf8(run.stdout).unwrap();
            run.status.success().then(|| Self(device.trim().into()))
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            assert!(Command::new("losetup").arg("--detach").arg(&self.0).status().unwrap().success());
        }
    }

    #[test]
    fn a_block_device_has_what_the_source_has_and_nothing_of_before() {
        let directory = tempfile::tempdir().unwrap();
        let [source, under] = ["source", "under"].map(|name| directory.path().join(name));
        let bytes = 8 << 20;
        File::create(&source).unwrap().set_len(bytes).unwrap();
        File::options().write(true).open(&source).unwrap().write_all_at(&[7; 512], 5 << 20).unwrap();
        fs::write(&under, vec![9; bytes as usize]).unwrap();
        let Some(device) = Loop::over(&under) else {
            return eprintln!("SKIPPED a_block_device_has_what_the_source_has: no loop devices here");
        };
        import(&source, &device.0, &[], &mut |_, _| ()).unwrap();
        assert!(fs::read(&source).unwrap() == fs::read(&under).unwrap());
        // The device's file is in use by the device, and the device by whoever holds it.
        let copy = directory.path().join("copy");
        let refused = |source: &Path| import(source, &copy, &[], &mut |_, _| ()).unwrap_err().to_string();
        let text = refused(&under);
        assert!(text.contains(&format!("in use by {}", device.0.display())), "{text}");
        let held = File::options().read(true).custom_flags(libc::O_EXCL).open(&device.0).unwrap();
        let text = refused(&device.0);
        assert!(text.contains("in use by") && text.contains("this process itself"), "{text}");
        drop(held);
        import(&device.0, &copy, &[], &mut |_, _| ()).unwrap();
        assert!(fs::read(&source).unwrap() == fs::read(&copy).unwrap());
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
