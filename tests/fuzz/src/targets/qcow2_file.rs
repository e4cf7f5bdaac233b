//! A qcow2 file, as the disk that it holds. An input is a byte of settings and the file (see [`sparse`]); by a setting
//! all of its clusters are counted as used. What is read of it is what its tables say.

use crate::input::{FuzzInput, file, put_sparse, sparse};
use ftd::disks::fuzzing::Qcow2;

const FILE_BYTES_MAX: usize = 4 << 20;
/// So many pieces of the disk are read, of so many bytes.
const PIECES: usize = 40;
const PIECE_BYTES: u64 = 3 << 9;
const LOOK_AT: u64 = 1 << 20;

const COUNTS_ALL: u8 = 1;

/// See the module.
pub(crate) fn run(input: &[u8]) {
    let mut input = FuzzInput::new(input);
    let settings = input.u8();
    let mut content = sparse(&mut input, FILE_BYTES_MAX);
    if settings & COUNTS_ALL != 0 {
        count_all(&mut content);
    }
    let disk = match Qcow2::open(file(&content).0) {
        Ok(disk) => disk,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let bytes = disk.bytes();
    assert!(bytes > 0 && bytes.is_multiple_of(512));
    let mut at = 0;
    let mut piece = vec![0; PIECE_BYTES as usize];
    for _ in 0..PIECES {
        let Ok(data) = disk.next_data(at, LOOK_AT) else { return };
        assert!(data >= at);
        for start in [at, data.min(bytes)] {
            let piece = &mut piece[..PIECE_BYTES.min(bytes - start) as usize];
            match disk.read(piece, start) {
                Ok(()) => compare(&content, start, piece),
                // It does not unpack.
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
        at = data + PIECE_BYTES;
        if at >= bytes {
            return;
        }
    }
}

fn long(file: &[u8], at: usize) -> u64 {
    (0..8).fold(0, |long, byte| long << 8 | u64::from(file.get(at + byte).copied().unwrap_or(0)))
}

fn word(file: &[u8], at: usize) -> u64 {
    long(file, at) >> 32
}

/// Fills the blocks of refcounts.
fn count_all(file: &mut [u8]) {
    let (table, cluster) = (long(file, 48) as usize, 1_usize << (word(file, 20) % 22));
    for at in 0..8 {
        let block = long(file, table.saturating_add(at * 8).min(FILE_BYTES_MAX)) as usize;
        if let Some(block) = file.get_mut(block..block.saturating_add(cluster)).filter(|_| block >= 512) {
            block.fill(0xff);
        }
    }
}

/// What was read of an open file from this byte of the disk on, sector by sector, against its tables.
fn compare(file: &[u8], start: u64, piece: &[u8]) {
    const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
    let cluster_bits = word(file, 20);
    let l2_bits = cluster_bits - 3;
    for (at, sector) in (start..).step_by(512).zip(piece.chunks(512)) {
        let number = at >> cluster_bits;
        let l2 = long(file, (long(file, 40) + (number >> l2_bits) * 8) as usize) & OFFSET;
        let entry = if l2 == 0 { 0 } else { long(file, (l2 + number % (1 << l2_bits) * 8) as usize) };
        let is_zero = entry & OFFSET == 0 || entry & 1 != 0;
        if entry & 1 << 62 != 0 {
            continue;
        }
        let place = ((entry & OFFSET) + at % (1 << cluster_bits)) as usize;
        let right = if is_zero { &[0; 512][..sector.len()] } else { &file[place..place + sector.len()] };
        assert!(sector == right, "sector at {at}, by the entry {entry:#x}");
    }
}

/// A file of clusters of 512 bytes: the header, both tables, the refcounts, and what the disk has.
fn made(version: u32, snapshots: bool) -> Vec<u8> {
    const CLUSTER: usize = 512;
    let packed = miniz_oxide::deflate::compress_to_vec(&[9; CLUSTER], 6);
    let mut file = vec![0; 8 * CLUSTER];
    let mut put = |at: usize, value: u64| file[at..at + 8].copy_from_slice(&value.to_be_bytes());
    let [l1, l2, table, block, data, compressed, reserved] =
        [1, 2, 3, 4, 5, 6, 7].map(|number| number * 512_u64);
    put(0, 0x5146_49fb << 32 | u64::from(version));
    put(20, 9 << 32);
    put(24, 7 * 512);
    put(36, 1 << 32);
    put(40, l1);
    put(48, table);
    put(56, 1 << 32 | u64::from(snapshots));
    if version == 3 {
        put(96, 4 << 32 | 104);
    }
    put(l1 as usize, l2 | 1 << 63);
    put(table as usize, block);
    put(l2 as usize, data | 1 << 63);
    put(l2 as usize + 16, (compressed + 5) | (1 << 62));
    if version == 3 {
        put(l2 as usize + 24, 1);
        put(l2 as usize + 32, reserved | 1 << 63 | 1);
    }
    (0..8).for_each(|cluster| file[block as usize + 2 * cluster + 1] = 1);
    file[data as usize..][..CLUSTER].fill(7);
    file[compressed as usize + 5..][..packed.len()].copy_from_slice(&packed);
    file
}

/// See the module.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let seed = |settings: u8, file: Vec<u8>| {
        let mut input = vec![settings];
        put_sparse(&mut input, &file);
        input
    };
    vec![seed(0, made(2, false)), seed(0, made(3, false)), seed(COUNTS_ALL, made(3, true))]
}
