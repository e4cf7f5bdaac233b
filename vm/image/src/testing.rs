//! Disks for the tests: file systems made by mke2fs and by fatfs, and partition tables around them.

use crc::{CRC_32_ISO_HDLC, Crc};
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;
use std::process::Command;

const SECTOR: usize = 512;
/// Where partitions begin, and what they begin at multiples of.
const ALIGN: usize = 1 << 20;

/// Files of a file system: path and content; "-> target" is a symbolic link.
pub type Tree<'t> = &'t [(&'t str, &'t str)];

/// Runs a tool of e2fsprogs.
pub fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").output();
    let output = output.unwrap_or_else(|e| panic!("{program} (package e2fsprogs): {e}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// An ext4 of 8 MiB, made with these further options of mke2fs.
pub fn ext4_with(tree: Tree<'_>, options: &[&str]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    fs::create_dir(&root).unwrap();
    for (path, content) in tree {
        let path = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match content.strip_prefix("-> ") {
            Some(target) => std::os::unix::fs::symlink(target, path).unwrap(),
            None => fs::write(path, content).unwrap(),
        }
    }
    let image = directory.path().join("image");
    fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let arguments = [&["-q", "-F", "-d", text(&root)], options, &[text(&image)]].concat();
    tool("mkfs.ext4", &arguments);
    fs::read(&image).unwrap()
}

/// A path that is text.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An ext4 with a UUID that the tests know.
pub const EXT4_UUID: &str = "11111111-2222-3333-4444-555555555555";

/// An ext4 with these files.
pub fn ext4(tree: Tree<'_>) -> Vec<u8> {
    ext4_with(tree, &["-U", EXT4_UUID, "-L", "system"])
}

/// A vfat of 4 MiB.
pub fn vfat(tree: Tree<'_>) -> Vec<u8> {
    let mut image = Cursor::new(vec![0; 4 << 20]);
    let options = FormatVolumeOptions::new().volume_id(0xcafe_0001).volume_label(*b"ESP        ");
    format_volume(&mut image, options).unwrap();
    {
        let files = FileSystem::new(&mut image, FsOptions::new()).unwrap();
        for (path, content) in tree {
            let mut directory = files.root_dir();
            let path = path.trim_start_matches('/');
            let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
            for parent in parents.split('/').filter(|parent| !parent.is_empty()) {
                directory = directory.create_dir(parent).unwrap();
            }
            directory.create_file(name).unwrap().write_all(content.as_bytes()).unwrap();
        }
    }
    image.into_inner()
}

fn laid_out(parts: &[Vec<u8>]) -> (Vec<u8>, Vec<(usize, usize)>) {
    let (mut disk, mut places) = (vec![0; ALIGN], Vec::new());
    for part in parts {
        places.push((disk.len() / SECTOR, part.len() / SECTOR));
        disk.extend(part);
        disk.resize(disk.len().next_multiple_of(ALIGN), 0);
    }
    disk.resize(disk.len() + ALIGN, 0);
    (disk, places)
}

fn put(disk: &mut [u8], at: usize, bytes: &[u8]) {
    disk[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Where the first copy of a GPT has its entries.
pub const GPT_ENTRY_SECTOR: usize = 2;

/// A disk with a GPT. The first partition's UUID begins with 01000000, and so on.
pub fn gpt(parts: &[Vec<u8>]) -> Vec<u8> {
    let (mut disk, places) = laid_out(parts);
    let last = disk.len() / SECTOR - 1;
    put(&mut disk, 446 + 4, &[0xee]);
    put(&mut disk, 446 + 8, &1u32.to_le_bytes());
    put(&mut disk, 446 + 12, &u32::MAX.to_le_bytes());
    put(&mut disk, 510, &[0x55, 0xaa]);
    let mut entries = vec![0; 128 * 128];
    for (index, (first, sectors)) in places.into_iter().enumerate() {
        let entry = &mut entries[128 * index..][..128];
        entry[..16].fill(7);
        entry[16] = index as u8 + 1;
        entry[31] = 0xab;
        put(entry, 32, &(first as u64).to_le_bytes());
        put(entry, 40, &((first + sectors - 1) as u64).to_le_bytes());
    }
    gpt_copies(&mut disk, last, &entries);
    disk
}

/// Writes both copies of a GPT with these entries.
pub fn gpt_copies(disk: &mut [u8], last: usize, entries: &[u8]) {
    let crc = Crc::<u32>::new(&CRC_32_ISO_HDLC);
    for (sector, entries_at) in [(1, GPT_ENTRY_SECTOR), (last, last - 32)] {
        let mut header = vec![0; 92];
        put(&mut header, 0, b"EFI PART\x00\x00\x01\x00");
        put(&mut header, 12, &92u32.to_le_bytes());
        put(&mut header, 24, &(sector as u64).to_le_bytes());
        put(&mut header, 72, &(entries_at as u64).to_le_bytes());
        put(&mut header, 80, &128u32.to_le_bytes());
        put(&mut header, 84, &128u32.to_le_bytes());
        put(&mut header, 88, &crc.checksum(entries).to_le_bytes());
        let checksum = crc.checksum(&header);
        put(&mut header, 16, &checksum.to_le_bytes());
        put(disk, sector * SECTOR, &header);
        put(disk, entries_at * SECTOR, entries);
    }
}

fn mbr_entry(kind: u8, first: usize, sectors: usize) -> [u8; 16] {
    let mut entry = [0; 16];
    entry[4] = kind;
    put(&mut entry, 8, &(first as u32).to_le_bytes());
    put(&mut entry, 12, &(sectors as u32).to_le_bytes());
    entry
}

/// A disk with an MBR: the first part is a primary partition, the others are logical ones.
pub fn mbr(parts: &[Vec<u8>]) -> Vec<u8> {
    let (mut disk, places) = laid_out(parts);
    put(&mut disk, 440, &0x1234_5678u32.to_le_bytes());
    put(&mut disk, 446, &mbr_entry(0x83, places[0].0, places[0].1));
    put(&mut disk, 510, &[0x55, 0xaa]);
    // The records of logical partitions lie in the free space at the disk's beginning.
    let base = 8;
    if places.len() > 1 {
        let sectors = disk.len() / SECTOR - base;
        put(&mut disk, 446 + 16, &mbr_entry(0x05, base, sectors));
    }
    for (index, (first, sectors)) in places.iter().enumerate().skip(1) {
        let at = base + index - 1;
        put(&mut disk, at * SECTOR + 446, &mbr_entry(0x83, first - at, *sectors));
        if index + 1 < places.len() {
            put(&mut disk, at * SECTOR + 462, &mbr_entry(0x05, index, 1));
        }
        put(&mut disk, at * SECTOR + 510, &[0x55, 0xaa]);
    }
    disk
}
