use super::*;
use crate::testing::{GPT_ENTRY_SECTOR, gpt, gpt_copies, mbr};

fn parts() -> Vec<Vec<u8>> {
    vec![vec![1; 1 << 20], vec![2; 3 << 19], vec![3; 512]]
}

type Found = (u32, Range<u64>, Option<String>);

fn slices(disk: &[u8]) -> Result<Vec<Found>, String> {
    let slices = read(&Part::whole(Box::new(disk.to_vec()))).map_err(|e| e.to_string())?;
    Ok(slices.into_iter().map(|slice| (slice.number, slice.range, slice.uuid)).collect())
}

fn refused(disk: &[u8], why: &str) {
    let text = slices(disk).unwrap_err();
    assert!(text.contains(why), "{why}: {text}");
}

const MIB: u64 = 1 << 20;

#[test]
fn a_gpt_is_read_from_either_of_its_copies() {
    let mut disk = gpt(&parts());
    let found = slices(&disk).unwrap();
    let uuid = |n| Some(format!("000000{n:02x}-0000-0000-0000-0000000000ab"));
    assert_eq!(
        found,
        [
            (1, MIB..2 * MIB, uuid(1)),
            (2, 2 * MIB..2 * MIB + (3 << 19), uuid(2)),
            (3, 4 * MIB..4 * MIB + 512, uuid(3)),
        ]
    );
    // One bit of an entry, and then of the header.
    disk[GPT_ENTRY_SECTOR * 512 + 40] ^= 1;
    assert_eq!(slices(&disk).unwrap(), found);
    disk[512..520].fill(0);
    assert_eq!(slices(&disk).unwrap(), found);
    let last = disk.len() - 512;
    disk[last + 24] ^= 1;
    refused(&disk, "no header in sector 1; the checksum of its header is wrong");
}

#[test]
fn a_gpt_that_cannot_be_is_refused_by_name() {
    let disk = gpt(&parts());
    let with = |change: &dyn Fn(&mut [u8])| {
        let mut disk = disk.clone();
        let mut entries = disk[GPT_ENTRY_SECTOR * 512..][..128 * 128].to_vec();
        change(&mut entries);
        let last = disk.len() / 512 - 1;
        gpt_copies(&mut disk, last, &entries);
        disk
    };
    refused(&with(&|entries| entries[40..48].fill(0xff)), "partition 1 is out of bounds");
    refused(&with(&|entries| entries[32 + 128..40 + 128].fill(0)), "partition 2 is out of bounds");
    let onto_the_first = |entries: &mut [u8]| entries.copy_within(32..48, 32 + 128);
    refused(&with(&onto_the_first), "partitions 1 and 2 overlap");
    refused(&disk[..3 * MIB as usize], "partition 2 is out of bounds");
}

#[test]
fn an_mbr_has_logical_partitions_behind_its_primary_ones() {
    let disk = mbr(&parts());
    let uuid = |n| Some(format!("12345678-{n:02x}"));
    assert_eq!(
        slices(&disk).unwrap(),
        [
            (1, MIB..2 * MIB, uuid(1)),
            (5, 2 * MIB..2 * MIB + (3 << 19), uuid(5)),
            (6, 4 * MIB..4 * MIB + 512, uuid(6)),
        ]
    );
    refused(&disk[..4 * MIB as usize], "partition 6 is out of bounds");
    let mut circle = disk.clone();
    // The second link leads to itself.
    circle.copy_within(8 * 512 + 462..8 * 512 + 478, 9 * 512 + 462);
    refused(&circle, "does not end");
}

#[test]
fn without_a_table_the_disk_is_one() {
    assert_eq!(slices(&[0; 4096]).unwrap(), [(0, 0..4096, None)]);
    assert_eq!(slices(&[]).unwrap(), [(0, 0..0, None)]);
}
