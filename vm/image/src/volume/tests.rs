use super::*;
use crate::table::Scheme;
use crate::testing::{EXT4_UUID, ext4, ext4_with, text, tool, vfat};
use std::fs;

fn volume(image: Vec<u8>) -> Volume {
    let disk = Part::whole(Box::new(image));
    let slice = Slice { scheme: Scheme::Bare, number: 0, range: 0..disk.bytes(), uuid: None };
    Volume::open(&disk, slice)
}

fn files(image: Vec<u8>) -> Box<dyn Files> {
    volume(image).files.unwrap()
}

const TREE: [(&str, &str); 3] = [("/boot/one", "1"), ("/boot/two", "22"), ("/empty", "")];

#[test]
fn files_are_read_and_listed_in_either_file_system() {
    for (kind, uuid, image) in [("ext4", EXT4_UUID, ext4(&TREE)), ("vfat", "cafe-0001", vfat(&TREE))] {
        let files = files(image);
        assert_eq!((files.kind(), &*files.uuid()), (kind, uuid));
        assert_eq!(files.read("/boot/two", 2).unwrap(), b"22");
        assert_eq!(files.read("/empty", 0).unwrap(), b"");
        assert_eq!(files.list("/boot").unwrap(), ["one", "two"]);
        assert!(files.has("/boot") && files.has("/boot/one") && !files.has("/boot/three"));
        assert!(matches!(files.read("/boot/three", 9), Err(FileError::NotFound(_))));
        assert!(matches!(files.read("/boot/two", 1), Err(FileError::TooLarge { bytes: 2, .. })));
        assert!(files.read("/boot", 9).is_err());
    }
}

#[test]
fn a_chain_of_links_is_followed_and_a_circle_is_an_error() {
    let files = files(ext4(&[
        ("/a", "-> b"),
        ("/b", "-> /dir/c"),
        ("/dir/c", "here"),
        ("/x", "-> y"),
        ("/y", "-> x"),
    ]));
    assert_eq!(files.read("/a", 9).unwrap(), b"here");
    assert!(matches!(files.read("/x", 9), Err(FileError::Unreadable { .. })));
}

/// An ext4 with a journal that was written by debugfs, and not carried out.
fn dirty(options: &[&str], commands: impl Fn(&str) -> Vec<String>) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    fs::write(&path, ext4_with(&[("/file", &"old ".repeat(256)), ("/other", "same")], options)).unwrap();
    let blocks = tool("debugfs", &["-R", "blocks /file", text(&path)]);
    let script = directory.path().join("script");
    for (name, content) in [("new", "new "), ("newer", "newr")] {
        fs::write(directory.path().join(name), content.repeat(256)).unwrap();
    }
    // The magic number of a journal's block is left out in the journal.
    let escaped = [&[0xc0, 0x3b, 0x39, 0x98][..], &[b'e'; 1020]].concat();
    fs::write(directory.path().join("escaped"), escaped).unwrap();
    let block = blocks.split_whitespace().next().unwrap();
    let commands = commands(block).join("\n").replace("DIR", text(directory.path()));
    fs::write(&script, format!("{commands}\n")).unwrap();
    tool("debugfs", &["-w", "-f", text(&script), text(&path)]);
    fs::read(&path).unwrap()
}

const KINDS: [&[&str]; 3] = [
    &["-b", "1024", "-J", "size=1"],
    &["-b", "1024", "-J", "size=1", "-O", "^64bit"],
    &["-b", "1024", "-J", "size=1", "-O", "^metadata_csum"],
];

#[test]
fn what_a_journal_has_complete_is_brought_in() {
    let words = |block: &str, checksum: &str, writes: &[&str]| {
        let mut commands = vec![];
        for write in writes {
            let (kind, file) = write.rsplit_once(' ').unwrap_or((write, ""));
            let file = if file.is_empty() { String::new() } else { format!(" DIR/{file}") };
            commands.extend([format!("jo {checksum}"), format!("jw {kind} {block}{file}"), "jc".into()]);
        }
        commands
    };
    let first = |image: Vec<u8>| {
        let content = files(image).read("/file", 1024).unwrap();
        (
            content[..4].to_vec(),
            content[4..].windows(4).all(|four| four.iter().any(|c| content[4..8].contains(c))),
        )
    };
    for options in KINDS {
        for checksum in ["", "-c", "-c -v 2"] {
            if checksum.contains('c') && options.contains(&"^metadata_csum") {
                continue;
            }
            let has = |writes: &[&str]| first(dirty(options, |block| words(block, checksum, writes)));
            let context = format!("{options:?} {checksum}");
            assert_eq!(has(&["-b new"]), (b"new ".to_vec(), true), "{context}");
            assert_eq!(has(&["-b new", "-b newer"]), (b"newr".to_vec(), true), "{context}");
            assert_eq!(has(&["-b escaped"]).0, [0xc0, 0x3b, 0x39, 0x98], "{context}");
            assert_eq!(has(&["-b new", "-r"]).0, b"old ", "{context}");
            assert_eq!(has(&["-b new", "-r", "-b newer"]).0, b"newr", "{context}");
            // A transaction without its end.
            assert_eq!(has(&["-b new", "-c -b newer"]).0, b"new ", "{context}");
        }
    }
}

/// The same journal, begun two blocks before its end.
fn begun_late(mut image: Vec<u8>) -> Vec<u8> {
    const BLOCK: usize = 1024;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    fs::write(&path, &image).unwrap();
    let blocks = tool("debugfs", &["-R", "blocks <8>", text(&path)]);
    let blocks: Vec<usize> =
        blocks.split_whitespace().map(|block| block.parse::<usize>().unwrap() * BLOCK).collect();
    let used: Vec<Vec<u8>> = blocks[1..9].iter().map(|at| image[*at..at + BLOCK].to_vec()).collect();
    let start = blocks.len() - 2;
    for (index, content) in used.iter().enumerate() {
        let to = if index < 2 { start + index } else { index - 1 };
        image[blocks[to]..blocks[to] + BLOCK].copy_from_slice(content);
    }
    image[blocks[0] + 0x1c..blocks[0] + 0x20].copy_from_slice(&(start as u32).to_be_bytes());
    image
}

#[test]
fn a_journal_goes_on_at_its_first_block_behind_its_last() {
    for options in KINDS {
        let image = dirty(options, |block| {
            let one = |file: &str| ["jo".into(), format!("jw -b {block} DIR/{file}"), "jc".into()];
            [one("new"), one("newer")].concat()
        });
        let content = files(begun_late(image)).read("/file", 1024).unwrap();
        assert_eq!(content, "newr".repeat(256).as_bytes(), "{options:?}");
    }
}

#[test]
fn what_is_no_known_file_system_is_told_by_its_name() {
    let said = |at: usize, magic: &[u8]| {
        let mut image = vec![0; 1 << 20];
        image[at..at + magic.len()].copy_from_slice(magic);
        volume(image).to_string()
    };
    assert_eq!(said(0, b"XFSB"), "the whole disk (xfs, which ftd does not read)");
    assert_eq!(said(0x1_0040, b"_BHRfS_M"), "the whole disk (btrfs, which ftd does not read)");
    assert_eq!(said(0, b""), "the whole disk (no known file system)");
    assert!(said(1080, b"\x53\xef").starts_with("the whole disk (ext4 that cannot be read: "));
}
