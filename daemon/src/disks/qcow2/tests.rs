//! qcow2 files that are made here are imported byte for byte; one that ftd does not read, or that is damaged, is an
//! error that says so, and no image.

pub(in crate::disks) mod writer;

use crate::disks::{ContentError, import};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use writer::{Cluster, Layout, Made, Of, layouts};

struct Place {
    _directory: tempfile::TempDir,
    source: PathBuf,
    image: PathBuf,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // It is known by its content: the name says nothing.
        let [source, image] = ["source.raw", "image"].map(|name| directory.path().join(name));
        Self { _directory: directory, source, image }
    }

    /// What an import of this file makes; an error leaves no image.
    fn import(&self, file: &[u8]) -> Result<Vec<u8>, ContentError> {
        fs::write(&self.source, file).unwrap();
        match import(&self.source, &self.image, &[], &mut |_, _| ()) {
            Ok(hash) => {
                let image = fs::read(&self.image).unwrap();
                let hashes = image.chunks(1 << 20).flat_map(|extent| *blake3::hash(extent).as_bytes());
                assert_eq!(hash, blake3::hash(&hashes.collect::<Vec<_>>()).to_string());
                fs::remove_file(&self.image).unwrap();
                Ok(image)
            }
            Err(error) => {
                assert!(!self.image.exists(), "half an image is left: {error}");
                let text = error.to_string();
                assert!(text.contains(&*self.source.to_string_lossy()), "{text}");
                Err(error)
            }
        }
    }
}

fn small() -> Layout {
    let clusters = vec![Cluster::Data(1), Cluster::Unallocated, Cluster::Compressed(3), Cluster::Data(4)];
    Layout { version: 3, cluster_bits: 16, disk_bytes: 4 << 16, clusters }
}

/// Whether the two are the same but for these bytes.
fn differ_only_in(one: &[u8], other: &[u8], range: std::ops::Range<usize>) -> bool {
    let same = |at: usize| one.get(at) == other.get(at) || range.contains(&at);
    one.len() == other.len() && (0..one.len()).all(same)
}

/// What may come of a byte of the file that has changed: an error, or the same disk. But there are no checksums: what a
/// cluster holds, whether it counts as zeroes, and the disk's size can be changed and look right.
fn judge(layout: &Layout, made: &Made, at: usize, came: Vec<u8>) -> Result<(), TestCaseError> {
    let right = layout.content();
    let size = 1 << layout.cluster_bits;
    let of = made.of(at);
    let is_well = match of {
        Some(Of::Header) if (24..32).contains(&at) => {
            let both = right.len().min(came.len());
            // A larger disk has the rest of the last cluster as well.
            let end = right.len().next_multiple_of(size).min(came.len());
            right[..both] == came[..both] && came[end..].iter().all(|byte| *byte == 0)
        }
        Some(Of::Content(cluster) | Of::Entry(cluster)) => {
            differ_only_in(&right, &came, cluster * size..(cluster + 1) * size)
        }
        Some(Of::Header | Of::Tables) | None => right == came,
    };
    prop_assert!(is_well, "byte {at}, of {of:?}");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_file_is_imported_byte_for_byte(layout in prop_oneof![layouts(9..13, 200), layouts(13..18, 20)]) {
        let place = Place::new();
        let came = place.import(&layout.make().bytes).unwrap();
        prop_assert!(came == layout.content());
    }

    #[test]
    fn a_file_that_was_cut_is_an_error_or_nothing_that_counts_was_lost(
        layout in layouts(9..14, 80), at in any::<prop::sample::Index>(),
    ) {
        let made = layout.make();
        let cut = at.index(made.bytes.len());
        // What begins with nothing of a qcow2 file is a raw one.
        if let Ok(came) = Place::new().import(&made.bytes[..cut]) && cut >= 4 {
            prop_assert!(came == layout.content(), "cut at {cut}");
        }
    }

    #[test]
    fn a_bit_that_changed_is_an_error_or_changes_what_no_table_tells(
        layout in layouts(9..14, 80), flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8_u8), 1..40),
    ) {
        let mut made = layout.make();
        let place = Place::new();
        for (at, bit) in flips {
            // Half of them where a flip counts most.
            let at = if bit % 2 == 0 { at.index(made.bytes.len()) } else { at.index(4 << layout.cluster_bits) };
            let at = at.min(made.bytes.len() - 1);
            made.bytes[at] ^= 1 << bit;
            if let Ok(came) = place.import(&made.bytes) && at >= 4 {
                judge(&layout, &made, at, came)?;
            }
            made.bytes[at] ^= 1 << bit;
        }
    }
}

#[test]
fn every_bit_of_a_header_that_changed_is_an_error_or_makes_no_difference() {
    let layout = Layout { cluster_bits: 9, disk_bytes: 4 << 9, ..small() };
    let mut made = layout.make();
    let place = Place::new();
    for at in 4..112 {
        for bit in 0..8 {
            made.bytes[at] ^= 1 << bit;
            if let Ok(came) = place.import(&made.bytes) {
                judge(&layout, &made, at, came).unwrap();
            }
            made.bytes[at] ^= 1 << bit;
        }
    }
}

#[test]
fn holes_stay_holes() {
    let place = Place::new();
    let clusters = [vec![Cluster::Zeroes { has_place: true }; 99], vec![Cluster::Data(5)]].concat();
    let layout = Layout { version: 3, cluster_bits: 16, disk_bytes: 100 << 16, clusters };
    fs::write(&place.source, layout.make().bytes).unwrap();
    import(&place.source, &place.image, &[], &mut |_, _| ()).unwrap();
    assert!(fs::metadata(&place.image).unwrap().blocks() * 512 < 1 << 20);
}

#[test]
fn a_disk_of_tebibytes_with_little_in_it_is_imported_by_what_it_has() {
    let place = Place::new();
    let mut made = small().make();
    // Its first table, a cluster, has room for so many second ones.
    let bytes: u64 = (8192 * 8192) << 16;
    made.put_word(36, 8192);
    made.put(24, bytes);
    fs::write(&place.source, &made.bytes).unwrap();
    import(&place.source, &place.image, &[], &mut |_, _| ()).unwrap();
    let content = small().content();
    let mut image = fs::File::open(&place.image).unwrap();
    assert_eq!((image.metadata().unwrap().len(), bytes), (bytes, 4 << 40));
    let mut begin = vec![1; content.len() + 4096];
    image.read_exact(&mut begin).unwrap();
    assert!(begin[..content.len()] == content && begin[content.len()..] == [0; 4096]);
    assert!(image.metadata().unwrap().blocks() * 512 < 1 << 20);
}

#[test]
fn what_is_not_read_is_refused_by_name_and_nothing_that_the_file_names_is_opened() {
    let place = Place::new();
    let refused = |change: &dyn Fn(&mut Made), what: &str| {
        let mut made = small().make();
        change(&mut made);
        let text = place.import(&made.bytes).unwrap_err().to_string();
        assert!(text.contains(what), "{what}: {text}");
    };
    // Whoever opened this one would wait for its writer.
    let fifo = place.source.with_file_name("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let name = fifo.display().to_string();
    let backed = |made: &mut Made| {
        made.put(8, 0x1000);
        made.put_word(16, name.len() as u32);
        made.bytes[0x1000..0x1000 + name.len()].copy_from_slice(name.as_bytes());
    };
    refused(&backed, &name);
    refused(&backed, "qemu-img convert");
    refused(&|made| made.put(72, 1 << 2), "data is in another file");
    refused(&|made| made.put(72, 1 << 1), "qemu-img check -r all");
    refused(&|made| made.put(72, 1), "qemu-img check -r all");
    refused(&|made| made.put(72, 1 << 4), "features that ftd does not know (0x10)");
    refused(&|made| made.put(72, 1 << 40), "features that ftd does not know (0x10000000000)");
    refused(&|made| made.put_word(32, 2), "encrypted (LUKS)");
    refused(&|made| made.put_word(4, 4), "qcow2 of version 4");
    refused(&|made| made.put(24, 1000), "1000 bytes");
    refused(&|made| made.put(24, 1 << 60), "its first table does not fit its disk");
    refused(&|made| made.bytes.truncate(3 << 16), "it was cut");
}

#[test]
fn a_cluster_that_is_used_twice_or_counted_as_free_is_damage() {
    let layout = small();
    let place = Place::new();
    let l2 = 2 << 16;
    let mut made = layout.make();
    let first: [u8; 8] = made.bytes[l2..l2 + 8].try_into().unwrap();
    made.put(l2 + 8, u64::from_be_bytes(first));
    let text = place.import(&made.bytes).unwrap_err().to_string();
    assert!(text.contains("damaged") && text.contains("is used twice"), "{text}");
    let mut made = layout.make();
    let end = made.bytes.len();
    made.bytes.resize(end + (1 << 16), 7);
    made.put(l2 + 8, end as u64 | 1 << 63);
    let text = place.import(&made.bytes).unwrap_err().to_string();
    assert!(text.contains("damaged") && text.contains("counted as free"), "{text}");
}

#[test]
fn a_file_that_somebody_writes_is_not_read() {
    let place = Place::new();
    fs::write(&place.source, small().make().bytes).unwrap();
    let _writer = ft_disk::RawImage::open(&place.source, ft_disk::Access::Writable).unwrap();
    let text = import(&place.source, &place.image, &[], &mut |_, _| ()).unwrap_err().to_string();
    assert!(text.contains("in use by") && !place.image.exists(), "{text}");
}
