//! An overlay is used with the base that it was made over, or not at all; and a pair of new ones has little to compare.

use super::super::agreement::Agreement;
use super::super::images::{MirroredImages, NumberedImage};
use super::super::{Beside, check, compare, import};
use super::*;
use crate::disks::qcow2::tests::writer::{Cluster, Layout};
use ft_mirror::{Change, Extent, Space};
use std::fs;
use std::sync::Arc;

const MIB: usize = 1 << 20;

struct Node {
    directory: tempfile::TempDir,
    config: Config,
}

impl Node {
    /// A node whose only disk lies over this base, if there is one.
    fn new(base: Option<&Path>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let example = include_str!("../../../../scripts/systemd/ftd.example.toml");
        let mut config = Config::parse(example, Path::new("ftd.toml")).unwrap();
        config.state_dir = directory.path().join("state");
        config.replication.journal_mib = 1;
        let (io_engine, on_io_error) = Default::default();
        let (image, base) = (directory.path().join("disk.img"), base.map(Path::to_owned));
        config.machine.disks = vec![DiskConfig { image, base, read_only: false, io_engine, on_io_error }];
        Self { directory, config }
    }

    /// With an overlay over a base that is there.
    fn over(base: &Path) -> Self {
        let node = Self::new(Some(base));
        create_overlay(&node.config, 1, None, &mut |_, _| ()).unwrap();
        node
    }

    fn image(&self) -> &Path {
        &self.config.machine.disks[0].image
    }

    fn map(&self) -> PathBuf {
        self.config.state_dir.join("disks/1.present")
    }

    fn open(&self) -> Result<NumberedImage, BesideError> {
        Ok((0, Arc::new(open_image(&self.config, 0, &self.config.machine.disks[0])?)))
    }

    /// What opening the image says, and what a check says of it.
    fn refused(&self, what: &str) {
        let opened = self.open().err().unwrap_or_else(|| panic!("{what}: it was opened"));
        for text in [opened.to_string(), check(&self.config).unwrap_err().to_string()] {
            assert!(text.contains(what), "{what}: {text}");
        }
    }

    fn present_bytes(&self) -> u64 {
        bases(&self.config).unwrap()[0].1.present_bytes()
    }
}

struct Golden {
    _directory: tempfile::TempDir,
    path: PathBuf,
    content: Vec<u8>,
}

/// A raw base of so many bytes.
fn golden(bytes: usize) -> Golden {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("golden.img");
    let content: Vec<u8> = (0..bytes).map(|at| (at / 700) as u8).collect();
    fs::write(&path, &content).unwrap();
    Golden { _directory: directory, path, content }
}

fn read(images: &mut MirroredImages, bytes: usize) -> Vec<u8> {
    let extent = Extent { disk: 0, bytes: 0..bytes as u64 };
    images.read(&extent).unwrap().map_or_else(|| vec![0; bytes], |content| content.to_vec())
}

#[test]
fn a_new_overlay_has_the_bases_content_and_takes_what_is_written() {
    let golden = golden(3 * MIB + 512);
    let node = Node::over(&golden.path);
    check(&node.config).unwrap();
    let mut content = golden.content.clone();
    for round in 0..3 {
        let opened = [node.open().unwrap()];
        let mut images = MirroredImages::new(&opened).unwrap();
        assert!(read(&mut images, content.len()) == content, "round {round}");
        let at = round * MIB + 1024;
        content[at..at + 512].fill(0xaa);
        images.carry_out(&Change::write(0, at as u64, &[0xaa; 512])).unwrap();
        let bytes = (2 * MIB + 512) as u64..(2 * MIB + 4096) as u64;
        content[bytes.start as usize..bytes.end as usize].fill(0);
        let extent = Extent { disk: 0, bytes };
        images.carry_out(&Change::Zeroes { extent, space: Space::May }).unwrap();
        images.flush().unwrap();
        // The base is locked against writers as long as it is in use.
        let writer = RawImage::open(&golden.path, Access::Writable).unwrap_err().to_string();
        assert!(writer.contains("in use by"), "{writer}");
    }
    assert_eq!(node.present_bytes(), 3 * UNIT_BYTES);
    assert!(fs::read(&golden.path).unwrap() == golden.content);
    // A copy of what both hold is the same disk, for those who know the base.
    let whole = node.directory.path().join("whole");
    fs::write(&whole, &content).unwrap();
    let known = compare([node.image(), &whole], std::slice::from_ref(&node.config), &mut |_, _| ()).unwrap();
    assert_eq!((known.differ, &known.hashes[0]), (vec![], &known.hashes[1]));
    let flat = node.directory.path().join("flat");
    let hash = import(node.image(), &flat, std::slice::from_ref(&node.config), &mut |_, _| ()).unwrap();
    assert!(fs::read(&flat).unwrap() == content && hash == known.hashes[1]);
    assert_ne!(compare([node.image(), &whole], &[], &mut |_, _| ()).unwrap().differ, []);
}

#[test]
fn a_qcow2_file_is_a_base_and_a_larger_disk_has_zeroes_behind_it() {
    let clusters = vec![Cluster::Data(1), Cluster::Unallocated, Cluster::Compressed(3), Cluster::Data(4)];
    let layout = Layout { version: 3, cluster_bits: 16, disk_bytes: 4 << 16, clusters };
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path().join("golden.qcow2");
    fs::write(&base, &layout.make().bytes).unwrap();
    let node = Node::new(Some(&base));
    let made = create_overlay(&node.config, 1, Some(2), &mut |_, _| ()).unwrap();
    let mut content = layout.content();
    let hashes: Vec<u8> =
        content.chunks(1 << 20).flat_map(|extent| *blake3::hash(extent).as_bytes()).collect();
    assert_eq!(made.base, blake3::hash(&hashes).to_string());
    content.resize(2 * MIB, 0);
    let mut images = MirroredImages::new(&[node.open().unwrap()]).unwrap();
    for at in [(2 << 16) + 512, MIB] {
        images.carry_out(&Change::write(0, at as u64, &[9; 512])).unwrap();
        content[at..at + 512].fill(9);
    }
    assert!(read(&mut images, 2 * MIB) == content);
}

#[test]
fn new_overlays_of_one_base_compare_what_either_has() {
    let golden = golden(40 * MIB);
    let [here, there] = [Node::over(&golden.path), Node::over(&golden.path)];
    let told = |node: &Node, writes: &[usize]| {
        let (opened, beside) = (node.open().unwrap(), Beside::open(&node.config).unwrap().unwrap());
        let mut images = MirroredImages::new(std::slice::from_ref(&opened)).unwrap();
        for mib in writes {
            images.carry_out(&Change::write(0, (mib * MIB) as u64, &[1; 512])).unwrap();
        }
        Agreement::of_this_host(beside.intents(), &opened)
    };
    let differing = |mut one: Agreement, other: &Agreement| {
        other.parts().iter().for_each(|part| one.take(part));
        one.differing().into_iter().flatten().collect::<Vec<u32>>()
    };
    assert!(differing(told(&here, &[]), &told(&there, &[])).is_empty());
    assert_eq!(differing(told(&here, &[3, 20]), &told(&there, &[39])), [3, 20, 39]);
    // Another process: what an image has counts, also where its intent map is gone.
    fs::remove_file(here.config.state_dir.join("disks/1.intent")).unwrap();
    assert_eq!(differing(told(&here, &[]), &told(&there, &[])), [3, 20, 39]);
    let other = self::golden(40 * MIB + 512);
    let stranger = Node::over(&other.path);
    assert_eq!(differing(told(&here, &[]), &told(&stranger, &[])).len(), 40);
}

#[test]
fn a_base_that_was_touched_is_read_again_and_one_that_changed_is_refused() {
    let golden = golden(MIB);
    let node = Node::over(&golden.path);
    let facts = || bases(&node.config).unwrap()[0].1.facts;
    let before = facts();
    fs::write(&golden.path, &golden.content).unwrap();
    node.open().unwrap();
    let noted = facts();
    assert!(noted.modified != before.modified && noted.hash == before.hash);
    let mut changed = golden.content.clone();
    changed[MIB / 2] ^= 1;
    fs::write(&golden.path, &changed).unwrap();
    let why = node.open().unwrap_err().to_string();
    assert!(why.contains("has changed since the overlay") && why.contains("its hash was"), "{why}");
    assert_eq!(facts(), noted);
}

#[test]
fn what_is_no_overlay_and_its_base_is_refused_by_name() {
    let golden = golden(MIB);
    let mut node = Node::over(&golden.path);
    let set_base =
        |node: &mut Node, base: Option<&Path>| node.config.machine.disks[0].base = base.map(Path::to_owned);
    set_base(&mut node, None);
    node.refused("it is an overlay");
    set_base(&mut node, Some(Path::new("/nowhere/golden.img")));
    node.refused("/nowhere/golden.img: No such file");
    let other = self::golden(MIB - 512);
    set_base(&mut node, Some(&other.path));
    node.refused("its disk had 1048576 bytes, and has 1048064");
    fs::write(&other.path, [&b"QFI\xfb"[..], &[0; 508]].concat()).unwrap();
    node.refused("qcow2 of version 0");
    set_base(&mut node, Some(&golden.path));
    {
        let _writer = RawImage::open(&golden.path, Access::Writable).unwrap();
        node.refused("in use by");
    }
    let map = fs::read(node.map()).unwrap();
    let cut = |bytes: &[u8]| fs::write(node.map(), bytes).unwrap();
    cut(&[0; 4096]);
    node.refused("without it, it is not known what of the disk the image");
    // Both copies of its only block.
    cut(&[&map[..8192 + 100], &[1], &map[8192 + 101..12_288 + 100], &[1], &map[12_288 + 101..]].concat());
    node.refused("both copies of its block 0");
    fs::remove_file(node.map()).unwrap();
    node.refused("ftd disk create-overlay");
    cut(&map);
    node.open().unwrap();
    // The map of another image.
    let moved = node.directory.path().join("moved.img");
    fs::rename(node.image(), &moved).unwrap();
    node.config.machine.disks[0].image = moved;
    node.refused("an image in another place");
}

#[test]
fn an_overlay_is_made_of_nothing_and_over_nothing_that_is_written_to() {
    let golden = golden(MIB);
    let refused = |node: &Node, number, mib, what: &str| {
        let why = create_overlay(&node.config, number, mib, &mut |_, _| ()).unwrap_err().to_string();
        assert!(why.contains(what), "{what}: {why}");
    };
    let node = Node::new(Some(&golden.path));
    refused(&node, 0, None, "there is no disk 0");
    refused(&node, 2, None, "there is no disk 2");
    refused(&Node::new(None), 1, None, "disk 1 has no base");
    let large = self::golden(MIB + 512);
    refused(&Node::new(Some(&large.path)), 1, Some(1), "has 1049088 bytes");
    fs::write(node.image(), "precious").unwrap();
    refused(&node, 1, None, "there already");
    assert_eq!(fs::read(node.image()).unwrap(), b"precious");
    assert!(!node.map().exists());
    fs::remove_file(node.image()).unwrap();
    for file in ["1.present", "1.intent", "1.stamp"] {
        let path = node.config.state_dir.join("disks").join(file);
        fs::write(&path, "old").unwrap();
        refused(&node, 1, None, "tells of another image of this disk");
        fs::remove_file(&path).unwrap();
        assert!(!node.image().exists());
    }
    let mut own = Node::over(&golden.path);
    own.config.machine.disks[0].base = Some(own.image().to_owned());
    assert!(own.open().unwrap_err().to_string().contains("in use by"));
    let why = check(&own.config).unwrap_err().to_string();
    assert!(why.contains("which is written to"), "{why}");
}
