//! Files that are not what a guest's disk looks like: containers of other programs, told by how they begin; and whether
//! two paths lead to one and the same storage.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The container that [`container`] calls so.
pub const QCOW2: &str = "qcow2";

/// How containers begin, and what makes them.
const CONTAINERS: [(&[u8], &str); 5] =
    [(b"QFI\xfb", QCOW2), (b"KDMV", "VMDK"), (b"vhdxfile", "VHDX"), (b"QED\0", "QED"), (b"conectix", "VHD")];

/// Loop devices over loop devices, at most.
const LOOPS_MAX: usize = 8;

/// The container that this file is, if it is one: its bytes are not those of a disk. A guest may write such bytes to
/// its disk, so that only an image is asked that no guest has written.
pub fn container(image: &File) -> io::Result<Option<&'static str>> {
    let mut head = [0; 8];
    let mut read = 0;
    while read < head.len() {
        match image.read_at(&mut head[read..], read as u64)? {
            0 => break,
            more => read += more,
        }
    }
    Ok(CONTAINERS.iter().find(|(begin, _)| head[..read].starts_with(begin)).map(|(_, name)| *name))
}

/// Where bytes are in the end.
#[derive(PartialEq, Eq)]
enum Storage {
    File { device: u64, inode: u64 },
    Device(u64),
}

/// Whether two images are one: by a link, another name of a device, or a loop device.
pub fn is_same_storage(one: &Path, other: &Path) -> io::Result<bool> {
    Ok(storage(one)? == storage(other)?)
}

fn storage(path: &Path) -> io::Result<Storage> {
    let mut at = path.to_owned();
    for _ in 0..LOOPS_MAX {
        let metadata = std::fs::metadata(&at)?;
        if !metadata.file_type().is_block_device() {
            return Ok(Storage::File { device: metadata.dev(), inode: metadata.ino() });
        }
        match backing_file(&metadata) {
            Some(file) => at = file,
            None => return Ok(Storage::Device(metadata.rdev())),
        }
    }
    Err(io::Error::other("loop devices over loop devices without end"))
}

/// What a loop device is over.
fn backing_file(device: &Metadata) -> Option<PathBuf> {
    let (major, minor) = (libc::major(device.rdev()), libc::minor(device.rdev()));
    let path = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/loop/backing_file")).ok()?;
    Some(PathBuf::from(path.trim_end_matches('\n')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn containers_are_told_by_how_they_begin_and_disks_are_not_taken_for_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let told = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            container(&File::open(&path).unwrap()).unwrap()
        };
        assert_eq!(told(b"QFI\xfb\0\0\0\x03"), Some("qcow2"));
        assert_eq!(told(b"vhdxfile"), Some("VHDX"));
        for disk in [&b""[..], b"QFI", &[0; 512], b"\xeb\x63\x90\0\0\0\0\0"] {
            assert_eq!(told(disk), None);
        }
    }

    #[test]
    fn one_file_under_two_names_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let [file, hard, soft, copy] =
            ["file", "hard", "soft", "copy"].map(|name| directory.path().join(name));
        std::fs::write(&file, [1; 512]).unwrap();
        std::fs::copy(&file, &copy).unwrap();
        std::fs::hard_link(&file, &hard).unwrap();
        symlink(&hard, &soft).unwrap();
        for same in [&file, &hard, &soft] {
            assert!(is_same_storage(&file, same).unwrap(), "{}", same.display());
        }
        assert!(!is_same_storage(&soft, &copy).unwrap());
        assert!(is_same_storage(&file, &directory.path().join("nowhere")).is_err());
    }
}
