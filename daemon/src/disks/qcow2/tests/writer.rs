//! qcow2 files of known content, made cluster by cluster, and what each of their bytes is of.

use proptest::prelude::*;
use std::ops::Range;

/// What the file has of a cluster of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::disks) enum Cluster {
    Unallocated,
    /// Version 3 only; with a place in the file, where something else lies.
    Zeroes {
        has_place: bool,
    },
    Data(u8),
    Compressed(u8),
}

/// A file that can be made.
#[derive(Clone, Debug)]
pub(in crate::disks) struct Layout {
    pub(in crate::disks) version: u32,
    pub(in crate::disks) cluster_bits: u32,
    pub(in crate::disks) disk_bytes: u64,
    /// All of the disk's, the last one in part.
    pub(in crate::disks) clusters: Vec<Cluster>,
}

/// What a byte of the file is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::disks) enum Of {
    Header,
    Tables,
    /// The entry of a cluster of the disk.
    Entry(usize),
    /// What a cluster of the disk holds.
    Content(usize),
}

/// A file, and what its bytes are of.
pub(in crate::disks) struct Made {
    pub(in crate::disks) bytes: Vec<u8>,
    of: Vec<(Range<usize>, Of)>,
}

impl Made {
    /// What a byte is of; none: of nothing that is read.
    pub(in crate::disks) fn of(&self, at: usize) -> Option<Of> {
        self.of.iter().rev().find(|(range, _)| range.contains(&at)).map(|(_, of)| *of)
    }
}

impl Cluster {
    /// What the guest reads.
    fn content(self, bytes: usize) -> Vec<u8> {
        match self {
            Self::Unallocated | Self::Zeroes { .. } => vec![0; bytes],
            Self::Data(seed) => (0..bytes)
                .map(|at| (at as u32).wrapping_mul(2_654_435_761).rotate_left(9) as u8 ^ seed)
                .collect(),
            Self::Compressed(seed) => (0..bytes).map(|at| (at / 64) as u8 ^ seed).collect(),
        }
    }
}

impl Layout {
    fn cluster_bytes(&self) -> usize {
        1 << self.cluster_bits
    }

    /// What the disk holds.
    pub(in crate::disks) fn content(&self) -> Vec<u8> {
        let mut content: Vec<u8> =
            self.clusters.iter().flat_map(|cluster| cluster.content(self.cluster_bytes())).collect();
        content.truncate(self.disk_bytes as usize);
        content
    }

    /// Makes the file: the header, the first table, the second ones with what they lead to, the refcounts.
    pub(in crate::disks) fn make(&self) -> Made {
        let size = self.cluster_bytes();
        let mut made = Made { bytes: vec![0; size], of: Vec::new() };
        let l1_entries = self.clusters.len().div_ceil(size / 8);
        let l1 = made.grow((l1_entries * 8).next_multiple_of(size));
        made.of.push((l1..l1 + l1_entries * 8, Of::Tables));
        for (at, part) in self.clusters.chunks(size / 8).enumerate() {
            if part.iter().all(|cluster| *cluster == Cluster::Unallocated) {
                continue;
            }
            let l2 = made.grow(size);
            made.put(l1 + at * 8, l2 as u64 | 1 << 63);
            for (entry, cluster) in part.iter().enumerate() {
                let number = at * (size / 8) + entry;
                made.of.push((l2 + entry * 8..l2 + entry * 8 + 8, Of::Entry(number)));
                let value = self.place(&mut made, number, *cluster);
                made.put(l2 + entry * 8, value);
            }
        }
        let (table, table_clusters) = made.refcounts(size);
        self.head(&mut made, l1, l1_entries, table, table_clusters);
        made
    }

    /// Puts a cluster of the disk into the file; its entry.
    fn place(&self, made: &mut Made, number: usize, cluster: Cluster) -> u64 {
        let size = self.cluster_bytes();
        match cluster {
            Cluster::Unallocated => 0,
            Cluster::Zeroes { has_place: false } => 1,
            Cluster::Zeroes { has_place: true } => {
                let at = made.grow(size);
                made.bytes[at..].fill(0xee);
                at as u64 | 1 << 63 | 1
            }
            Cluster::Data(_) => {
                let at = made.grow(size);
                made.bytes[at..].copy_from_slice(&cluster.content(size));
                made.of.push((at..at + size, Of::Content(number)));
                at as u64 | 1 << 63
            }
            Cluster::Compressed(_) => {
                // Not where a sector begins.
                let packed = miniz_oxide::deflate::compress_to_vec(&cluster.content(size), 6);
                let at = made.grow(size) + 5;
                let end = at + packed.len();
                made.bytes[at..end].copy_from_slice(&packed);
                made.of.push((at..end, Of::Content(number)));
                let sectors = (end - 1) / 512 - at / 512;
                at as u64 | (sectors as u64) << (62 - (self.cluster_bits - 8)) | 1 << 62
            }
        }
    }

    fn head(&self, made: &mut Made, l1: usize, l1_entries: usize, table: usize, table_clusters: usize) {
        made.of.push((0..if self.version == 2 { 72 } else { 104 }, Of::Header));
        made.bytes[..4].copy_from_slice(b"QFI\xfb");
        made.put_word(4, self.version);
        made.put_word(20, self.cluster_bits);
        made.put(24, self.disk_bytes);
        made.put_word(36, l1_entries as u32);
        made.put(40, l1 as u64);
        made.put(48, table as u64);
        made.put_word(56, table_clusters as u32);
        if self.version == 3 {
            made.put_word(96, 4);
            made.put_word(100, 104);
        }
    }
}

impl Made {
    /// So many bytes more, of zeroes; where they are.
    fn grow(&mut self, bytes: usize) -> usize {
        let at = self.bytes.len();
        self.bytes.resize(at + bytes, 0);
        at
    }

    pub(in crate::disks) fn put(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }

    pub(in crate::disks) fn put_word(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    /// Counts every cluster once, these as well: their table, and its clusters.
    fn refcounts(&mut self, size: usize) -> (usize, usize) {
        let per_block = size / 2;
        let clusters = self.bytes.len() / size;
        let (mut blocks, mut table_clusters) = (0, 0);
        while blocks * per_block < clusters + blocks + table_clusters {
            blocks += 1;
            table_clusters = (blocks * 8).div_ceil(size);
        }
        let table = self.grow(table_clusters * size);
        let first = self.grow(blocks * size);
        for block in 0..blocks {
            self.put(table + block * 8, (first + block * size) as u64);
        }
        for cluster in 0..self.bytes.len() / size {
            self.bytes[first + cluster * 2 + 1] = 1;
        }
        self.of.push((table..self.bytes.len(), Of::Tables));
        (table, table_clusters)
    }
}

/// Files with clusters of these sizes, of disks with up to so many clusters.
pub(in crate::disks) fn layouts(
    cluster_bits: Range<u32>,
    clusters_max: usize,
) -> impl Strategy<Value = Layout> {
    let cluster = prop_oneof![
        3 => Just(Cluster::Unallocated),
        2 => any::<bool>().prop_map(|has_place| Cluster::Zeroes { has_place }),
        4 => any::<u8>().prop_map(Cluster::Data),
        2 => any::<u8>().prop_map(Cluster::Compressed),
    ];
    let run = (cluster, 1..30_usize).prop_map(|(cluster, times)| vec![cluster; times]);
    let clusters = prop::collection::vec(run, 1..12).prop_map(|runs| runs.concat());
    (2..=3_u32, cluster_bits, clusters, any::<prop::sample::Index>()).prop_map(
        move |(version, cluster_bits, mut clusters, less)| {
            clusters.truncate(clusters_max);
            if version == 2 {
                let known = |cluster: &mut Cluster| match cluster {
                    Cluster::Zeroes { .. } => *cluster = Cluster::Unallocated,
                    Cluster::Unallocated | Cluster::Data(_) | Cluster::Compressed(_) => {}
                };
                clusters.iter_mut().for_each(known);
            }
            let sectors = (clusters.len() << cluster_bits) / 512;
            let less = less.index((1 << cluster_bits) / 512);
            Layout { version, cluster_bits, disk_bytes: ((sectors - less) * 512) as u64, clusters }
        },
    )
}
