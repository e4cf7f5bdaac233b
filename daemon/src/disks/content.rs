//! What images hold, offline: two compared extent by extent, and one made from another disk.

use super::disk_hash::{DiskHasher, EXTENT_BYTES};
use super::qcow2::Qcow2Error;
use super::source::Source;
use ft_disk::{Access, DiskImageError, RawImage, next_data};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, fallocate};
use nix::unistd::linkat;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes of zeroes that are passed, or made on a block device, in one go.
const ZEROES_BYTES: u64 = 1 << 30;
/// Where as many bytes are zero, a new file keeps a hole.
const HOLE_BYTES: usize = 64 << 10;

/// Why images are not compared, or none is made.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// An image, or somebody has it in use.
    #[error(transparent)]
    Image(#[from] DiskImageError),
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

/// An image that nobody writes to meanwhile: it is locked as long as the first is kept.
fn open(path: &Path) -> Result<(RawImage, File), ContentError> {
    let image = RawImage::open(path, Access::ReadOnly)?;
    Ok((image, File::open(path).map_err(failed(path))?))
}

/// Compares two images that nobody writes to.
pub fn compare(one: &Path, other: &Path, progress: Progress<'_>) -> Result<ImageComparison, ContentError> {
    let paths = [one, other];
    let [(first, a), (second, b)] = [open(one)?, open(other)?];
    let bytes = first.bytes();
    if second.bytes() != bytes {
        return Err(ContentError::Sizes {
            one: one.to_owned(),
            one_bytes: bytes,
            other: other.to_owned(),
            other_bytes: second.bytes(),
        });
    }
    let mut hashers = [DiskHasher::new(), DiskHasher::new()];
    let mut buffers = [vec![0; EXTENT_BYTES as usize], vec![0; EXTENT_BYTES as usize]];
    let mut differ: Vec<Range<u64>> = Vec::new();
    let mut end = 0;
    while end < bytes {
        let start = end;
        if let Some(zeroes) = zeroes(start, next_data(&a, start).min(next_data(&b, start)), bytes) {
            hashers.iter_mut().for_each(|hasher| hasher.update_zeroes(zeroes.end - start));
            end = zeroes.end;
            progress(end, bytes);
            continue;
        }
        end = (start + EXTENT_BYTES).min(bytes);
        let length = (end - start) as usize;
        for (at, file) in [&a, &b].into_iter().enumerate() {
            let extent = &mut buffers[at][..length];
            file.read_exact_at(extent, start).map_err(failed(paths[at]))?;
            hashers[at].update(extent);
        }
        if buffers[0][..length] != buffers[1][..length] {
            match differ.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => differ.push(start..end),
            }
        }
        progress(end, bytes);
    }
    let hashes = hashers.map(|hasher| hasher.finish());
    Ok(ImageComparison { hashes, differ, bytes })
}

/// The extents from `start` on that are known to be zeroes where the next data is here, of a disk of so many bytes.
fn zeroes(start: u64, data: u64, bytes: u64) -> Option<Range<u64>> {
    let end = data.min(start.saturating_add(ZEROES_BYTES));
    let end = if end < bytes { end - end % EXTENT_BYTES } else { bytes };
    (end > start).then_some(start..end)
}

/// Makes an image of what a raw file, a block device or a qcow2 file holds, and says its hash. A new file has holes
/// where the source has zeroes, and no name before it is whole.
pub fn import(source: &Path, image: &Path, progress: Progress<'_>) -> Result<String, ContentError> {
    let source = Source::open(source)?;
    let target = Target::open(image, source.bytes())?;
    let hash = copy(&source, &target, progress)?;
    target.keep()?;
    Ok(hash)
}

/// What is made.
struct Target {
    path: PathBuf,
    file: File,
    kind: Kind,
}

enum Kind {
    Device {
        _lock: RawImage,
    },
    /// It gets its name when it is whole: whatever ends this process leaves nothing.
    Unnamed,
    /// Where the file system has no others. It is removed with this, unless it is whole.
    Named,
    Whole,
}

impl Target {
    /// A new file of this size, or a block device that nobody uses.
    fn open(path: &Path, bytes: u64) -> Result<Self, ContentError> {
        let failed = failed(path);
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let target = |file, kind| Self { path: path.to_owned(), file, kind };
        match fs::symlink_metadata(path) {
            Ok(_) if fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device()) => {
                let image = RawImage::open(path, Access::Writable)?;
                let has = image.bytes();
                if has < bytes {
                    return Err(ContentError::Small { path: path.to_owned(), has, need: bytes });
                }
                return Ok(target(options.open(path).map_err(&failed)?, Kind::Device { _lock: image }));
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

    fn is_device(&self) -> bool {
        matches!(self.kind, Kind::Device { .. })
    }

    fn write(&self, extent: &[u8], start: u64) -> Result<(), ContentError> {
        for (at, piece) in (start..).step_by(HOLE_BYTES).zip(extent.chunks(HOLE_BYTES)) {
            if self.is_device() || piece.iter().any(|byte| *byte != 0) {
                self.file.write_all_at(piece, at).map_err(failed(&self.path))?;
            }
        }
        Ok(())
    }

    /// Whole extents, but for the disk's last one. A new file has a hole there already.
    fn write_zeroes(&self, zeroes: &Range<u64>) -> Result<(), ContentError> {
        if !self.is_device() {
            return Ok(());
        }
        let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let [start, length] = [zeroes.start, zeroes.end - zeroes.start].map(u64::cast_signed);
        fallocate(&self.file, flags, start, length).map_err(|e| failed(&self.path)(e.into()))
    }

    /// It is whole.
    fn keep(mut self) -> Result<(), ContentError> {
        let failed = failed(&self.path);
        self.file.sync_all().map_err(&failed)?;
        if matches!(self.kind, Kind::Unnamed) {
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
        if matches!(self.kind, Kind::Named) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn copy(source: &Source, target: &Target, progress: Progress<'_>) -> Result<String, ContentError> {
    let bytes = source.bytes();
    let mut hasher = DiskHasher::new();
    let mut buffer = vec![0; EXTENT_BYTES as usize];
    let mut end = 0;
    while end < bytes {
        let start = end;
        if let Some(zeroes) = zeroes(start, source.next_data(start, ZEROES_BYTES)?, bytes) {
            hasher.update_zeroes(zeroes.end - start);
            target.write_zeroes(&zeroes)?;
            end = zeroes.end;
        } else {
            end = (start + EXTENT_BYTES).min(bytes);
            let extent = &mut buffer[..(end - start) as usize];
            source.read(extent, start)?;
            hasher.update(extent);
            target.write(extent, start)?;
        }
        progress(end, bytes);
    }
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
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
        let compared = compare(&one, &other, &mut |done, all| said.push((done, all))).unwrap();
        let mib = MIB as u64;
        assert_eq!(compared.differ, [mib..3 * mib, 5 * mib..bytes as u64]);
        assert_ne!(compared.hashes[0], compared.hashes[1]);
        assert_eq!((said.len(), said.last()), (6, Some(&(bytes as u64, bytes as u64))));
        let same = compare(&other, &other, &mut |_, _| ()).unwrap();
        assert_eq!(same.differ, []);
        assert_eq!(same.hashes[0], compared.hashes[1]);
        disk(&one, MIB, &[]);
        let text = compare(&one, &other, &mut |_, _| ()).unwrap_err().to_string();
        assert!(text.contains("has 1048576 bytes") && text.contains("two disks"), "{text}");
        let _in_use = RawImage::open(&one, Access::Writable).unwrap();
        assert!(compare(&one, &one, &mut |_, _| ()).unwrap_err().to_string().contains("in use by"));
    }

    #[test]
    fn an_imported_image_is_the_same_and_has_holes_for_zeroes() {
        let directory = tempfile::tempdir().unwrap();
        let [source, image] = ["source", "image"].map(|name| directory.path().join(name));
        disk(&source, 8 * MIB + 512, &[3 * MIB, 8 * MIB + 511]);
        let hash = import(&source, &image, &mut |_, _| ()).unwrap();
        assert_eq!(compare(&source, &image, &mut |_, _| ()).unwrap().hashes, [hash.clone(), hash]);
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
        let hash = import(&source, &image, &mut |done, all| said.push((done, all))).unwrap();
        assert!(said.is_sorted() && said.len() < 5000 && said.last() == Some(&(bytes, bytes)));
        assert_eq!(fs::metadata(&image).unwrap().len(), bytes);
        let compared = compare(&source, &image, &mut |_, _| ()).unwrap();
        assert_eq!(compared.hashes, [hash.clone(), hash]);
        File::options().write(true).open(&image).unwrap().write_all_at(&[1], 3 << 40).unwrap();
        let differ = compare(&source, &image, &mut |_, _| ()).unwrap().differ;
        assert_eq!(differ, [3 << 40..(3 << 40) + EXTENT_BYTES]);
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
        import(&source, &device.0, &mut |_, _| ()).unwrap();
        assert!(fs::read(&source).unwrap() == fs::read(&under).unwrap());
        // The device's file is in use by the device, and the device by whoever holds it.
        let copy = directory.path().join("copy");
        let refused = |source: &Path| import(source, &copy, &mut |_, _| ()).unwrap_err().to_string();
        let text = refused(&under);
        assert!(text.contains(&format!("in use by {}", device.0.display())), "{text}");
        let held = File::options().read(true).custom_flags(libc::O_EXCL).open(&device.0).unwrap();
        let text = refused(&device.0);
        assert!(text.contains("in use by") && text.contains("this process itself"), "{text}");
        drop(held);
        import(&device.0, &copy, &mut |_, _| ()).unwrap();
        assert!(fs::read(&source).unwrap() == fs::read(&copy).unwrap());
    }

    #[test]
    fn an_import_that_is_broken_off_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let [source, image] = ["source", "image"].map(|name| directory.path().join(name));
        disk(&source, 2 * MIB, &[1]);
        let broken = || import(&source, &image, &mut |_, _| panic!("broken off"));
        assert!(std::panic::catch_unwind(broken).is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_imported_is_said_and_nothing_is_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let [source, image] = ["source", "image"].map(|name| directory.path().join(name));
        let refused = |what: &str| {
            let text = import(&source, &image, &mut |_, _| ()).unwrap_err().to_string();
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
