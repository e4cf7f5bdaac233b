//! What else lies beside a disk's image: intent map, presence map, stamp. An input says which, and is what the file
//! holds; checksums are put right. What is opened can be opened again, and is the same.

use crate::input::{FuzzInput, put_sparse, sparse};
use ft_mirror::{
    BaseFacts, BaseFormat, History, ImageOf, IntentMap, Medium, MemoryMedium, OverlayOf, PresenceMap, Stamp,
    StampFile,
};

const FILE_BYTES_MAX: usize = 64 << 10;
const BLOCK_BYTES: usize = 4096;
const DISK_BYTES: u64 = 300 << 20;
const UNIT_BYTES: u64 = 1 << 20;

/// See the module.
pub(crate) fn run(input: &[u8]) {
    let mut input = FuzzInput::new(input);
    let kind = input.u8() % 3;
    let mut file = sparse(&mut input, FILE_BYTES_MAX);
    let heads: &[(usize, usize)] = match kind {
        0 => &[(0, 40)],
        1 => &[(0, 112), (BLOCK_BYTES, 112)],
        _ => &[(0, 72), (BLOCK_BYTES, 72)],
    };
    for &(at, bytes) in heads {
        if let Some(head) = file.get_mut(at..at + bytes + 4) {
            let crc = crc32c::crc32c(&head[..bytes]);
            head[bytes..].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let word = |file: &[u8], at: usize| {
        file.get(at..at + 8).map_or(0, |word| u64::from_le_bytes(std::array::from_fn(|i| word[i])))
    };
    // Blocks follow, each under the map's id and its number.
    let (first, copies, id) = match kind {
        0 => (1, 1, word(&file, 8)),
        1 => (2, 2, word(&file, 16)),
        _ => (usize::MAX, 1, 0),
    };
    for (number, block) in file.chunks_exact_mut(BLOCK_BYTES).skip(first).enumerate() {
        let mut under = id.to_le_bytes().to_vec();
        under.extend_from_slice(&((number / copies) as u64).to_le_bytes());
        // One that begins with ones is left damaged.
        if block[..4] != [0xff; 4] {
            let crc = crc32c::crc32c_append(crc32c::crc32c(&under), &block[8..]);
            block[..4].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let medium = MemoryMedium::new(file.len());
    medium.write(0, &file).expect("it has room");
    match kind {
        0 => intents(&medium, word(&file, 16)),
        1 => presence(&medium, word(&file, 32)),
        _ => stamp(&medium),
    }
}

fn intents(medium: &MemoryMedium, disk_bytes: u64) {
    let Ok((mut map, _)) = IntentMap::open(medium, disk_bytes) else { return };
    let set: Vec<u64> = map.set().collect();
    for extent in set.iter().take(100) {
        let range = map.range(*extent);
        assert!(range.start < range.end && range.end <= disk_bytes);
        assert!(map.covers(&range), "what was found set is durable");
    }
    let base = map.base();
    map.mark(&(0..disk_bytes.min(4096)));
    map.commit().expect("memory takes everything");
    let (again, damage) = IntentMap::look(medium, disk_bytes).expect("it was sound");
    assert_eq!((again.base(), damage.blocks), (base, 0));
    assert!(set.iter().all(|extent| again.covers(&(0..0)) || again.set().any(|other| other == *extent)));
}

fn presence(medium: &MemoryMedium, disk_bytes: u64) {
    let Ok(map) = PresenceMap::open(medium, disk_bytes) else { return };
    let present: Vec<u64> = map.present().collect();
    let units = disk_bytes.div_ceil(map.of().unit_bytes);
    assert!(present.iter().all(|unit| *unit < units));
    let again = PresenceMap::look(medium, disk_bytes).expect("it was sound");
    assert_eq!(again.of(), map.of());
    assert!(again.present().eq(present.iter().copied()));
}

fn stamp(medium: &MemoryMedium) {
    let found = match StampFile::open(medium) {
        Ok(file) => file.stamp(),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let mut file = StampFile::open(medium).expect("it was sound");
    assert_eq!(file.stamp(), found);
    let next = Stamp { history: History::Mixed { pairing: 9 }, ..found };
    file.write(next).expect("memory takes everything");
    assert_eq!(StampFile::look(&medium).expect("it was written"), next);
}

/// What a medium holds, as an input.
fn left(kind: u8, medium: &MemoryMedium) -> Vec<u8> {
    let mut all = vec![0; medium.bytes().expect("it has a size") as usize];
    medium.read(0, &mut all).expect("all of it can be read");
    let mut input = vec![kind];
    put_sparse(&mut input, &all);
    input
}

/// See the module.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let room = || MemoryMedium::new(FILE_BYTES_MAX);
    let of_intents = room();
    let mut map = IntentMap::create(&of_intents, DISK_BYTES, UNIT_BYTES, 3).expect("it has room");
    map.mark(&(5 << 20..9 << 20));
    map.commit().and_then(|()| map.rebase(7)).expect("memory takes everything");

    let base = BaseFacts {
        bytes: DISK_BYTES,
        hash: [3; 32],
        format: BaseFormat::Raw,
        file_bytes: DISK_BYTES,
        modified: (1_700_000_000, 5),
    };
    let of = OverlayOf { image: 1, disk_bytes: DISK_BYTES, unit_bytes: 64 << 10, base };
    let of_presence = room();
    let mut map = PresenceMap::create(&of_presence, of, 4).expect("it has room");
    map.add(&[0, 17, 900]).expect("memory takes everything");

    let of_stamp = room();
    let of = ImageOf { vm: 1, image: 2, disk_bytes: DISK_BYTES };
    let history = History::Follows { pairing: 5, named_in: Some(3) };
    StampFile::create(&of_stamp, Stamp { of, cell: 9, history }).expect("it has room");
    vec![left(0, &of_intents), left(1, &of_presence), left(2, &of_stamp)]
}
