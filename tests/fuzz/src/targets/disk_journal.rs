//! The journal of a backup's disks as a process finds it. An input is what the file holds: its ring's bytes and what
//! its head says of them, then records and bytes anywhere. Checksums are put right, so damage is what they do not see.

use crate::input::{FuzzInput, put_piece};
use ft_mirror::{Change, Extent, Journal, JournalError, Medium, MemoryMedium, SealedEpoch, Space};
use std::convert::Infallible;

/// Both slots of the head.
const SLOT_BYTES: u64 = 4096;
/// Where the ring begins.
const RING_START: u64 = 2 * SLOT_BYTES;
/// Of a slot, what its checksum is over.
const SLOT_CHECKED: usize = 88;
const RECORD_BYTES: usize = 48;
/// The smallest ring that can be made, and so much more.
const FILE_BYTES: usize = (8 << 10) + (64 << 10) + 512;
const FILE_BYTES_MAX: usize = 128 << 10;

/// The words of a slot behind magic and version.
const WORDS: usize = 10;

/// See the module.
pub(crate) fn run(input: &[u8]) {
    let mut input = FuzzInput::new(input);
    let medium = MemoryMedium::new(usize::from(input.u16()).saturating_mul(4).min(FILE_BYTES_MAX));
    while !input.is_empty() {
        match input.u8() % 3 {
            0 => slot(&medium, input.u8(), &std::array::from_fn(|_| input.u64())),
            1 => record(&medium, &mut input),
            _ => put(&medium, input.u32().into(), input.piece()),
        }
    }
    open(&medium);
}

/// What does not lie in the file is left out.
fn put(medium: &MemoryMedium, at: u64, bytes: &[u8]) {
    let _ = medium.write(at, bytes);
}

/// One slot, or the other, or both.
fn slot(medium: &MemoryMedium, which: u8, words: &[u64; WORDS]) {
    let mut bytes = b"FTJS\x01\0\0\0".to_vec();
    words.iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
    let crc = crc32c::crc32c(&bytes[..SLOT_CHECKED]);
    bytes.extend_from_slice(&crc.to_le_bytes());
    for slot in (0..2).filter(|slot| which & 1 << slot == 0) {
        put(medium, slot * SLOT_BYTES, &bytes);
    }
}

/// A record at some place in the ring.
fn record(medium: &MemoryMedium, input: &mut FuzzInput<'_>) {
    let at = RING_START + u64::from(input.u16()) * 8;
    let mut head = b"FTJR".to_vec();
    head.push(input.u8() % 8);
    head.push(0);
    head.extend_from_slice(input.take(2));
    for _ in 0..2 {
        head.extend_from_slice(&u64::from(input.u16()).to_le_bytes());
    }
    for _ in 0..2 {
        head.extend_from_slice(&input.u64().to_le_bytes());
    }
    let payload = input.piece();
    head.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head), payload);
    head.extend_from_slice(&crc.to_le_bytes());
    head.extend_from_slice(payload);
    put(medium, at, &head);
}

fn content(medium: &MemoryMedium) -> Vec<u8> {
    let mut all = vec![0; medium.bytes().expect("it has a size") as usize];
    medium.read(0, &mut all).expect("all of it can be read");
    all
}

/// Opens it as a backup does that starts: what it holds does not depend on how often that is tried, and can be carried
/// out, or is refused.
fn open(medium: &MemoryMedium) {
    let before = content(medium);
    let glance = Journal::look(&medium);
    assert!(before == content(medium), "looking changes nothing");
    let mut journal = match Journal::open(medium) {
        Ok(journal) => journal,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let glance = glance.expect("what can be opened can be looked at");
    assert_eq!((journal.sealed(), journal.waiting()), (glance.sealed, glance.waiting));
    let again = Journal::look(&medium).expect("what was opened can be looked at");
    assert_eq!((again.sealed, again.applied, again.waiting), (glance.sealed, glance.applied, glance.waiting));

    assert_eq!(journal.ready(), journal.waiting(), "what is found sealed is durable");
    let mut changes = 0_u64;
    let applied = journal.apply(u64::MAX, |change: &Change<'_>| -> Result<(), Infallible> {
        let Extent { bytes, .. } = change.extent();
        assert!(bytes.start <= bytes.end);
        changes += 1;
        Ok(())
    });
    applied.expect("what was found sealed can be carried out");
    assert!(changes <= (FILE_BYTES_MAX / RECORD_BYTES) as u64);
    journal.release().expect("memory takes everything");
    assert!(journal.is_carried_out());
    go_on(journal);
}

/// A journal that was found is one like any other.
fn go_on(mut journal: Journal<&MemoryMedium>) {
    let sealed = SealedEpoch { pairing: 77, epoch: 1 };
    let done = (|| {
        journal.append(&Change::write(0, 512, &[9; 512]))?;
        journal.seal(sealed)?;
        journal.sync()
    })();
    match done {
        Ok(()) => {}
        Err(JournalError::Full { .. } | JournalError::Large(_)) => return,
        Err(error) => panic!("{error}"),
    }
    let medium = *journal.medium();
    let journal = Journal::open(medium).expect("it was sound");
    assert_eq!(journal.sealed(), Some(sealed));
}

/// What a journal leaves behind that was used, as an input.
fn left(use_it: impl FnOnce(&mut Journal<&MemoryMedium>) -> Result<(), JournalError>) -> Vec<u8> {
    let medium = MemoryMedium::new(FILE_BYTES);
    let mut journal = Journal::create(&medium, 7).expect("it is large enough");
    use_it(&mut journal).expect("memory takes everything");
    let all = content(&medium);
    let word = |at: usize| &all[at..at + 8];
    let mut input = ((FILE_BYTES / 4) as u16).to_le_bytes().to_vec();
    input.extend_from_slice(&[0, 0]);
    (0..WORDS).for_each(|i| input.extend_from_slice(word(8 + 8 * i)));
    let start = RING_START as usize;
    for at in (start..all.len() - RECORD_BYTES).step_by(8).filter(|at| all[*at..].starts_with(b"FTJR")) {
        input.push(1);
        input.extend_from_slice(&(((at - start) / 8) as u16).to_le_bytes());
        input.extend_from_slice(&[all[at + 4], all[at + 6], all[at + 7]]);
        input.extend_from_slice(&all[at + 8..at + 10]);
        input.extend_from_slice(&all[at + 16..at + 18]);
        input.extend_from_slice(&all[at + 24..at + 40]);
        let bytes = u32::from_le_bytes(std::array::from_fn(|i| all[at + 40 + i])) as usize;
        put_piece(&mut input, &all[at + RECORD_BYTES..][..bytes]);
    }
    input
}

/// See the module.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let extent = |bytes| Extent { disk: 1, bytes };
    let epoch = |journal: &mut Journal<&MemoryMedium>, epoch| {
        journal.append(&Change::write(0, 4096, b"letters"))?;
        journal.append(&Change::Zeroes { extent: extent(0..8192), space: Space::May })?;
        journal.append(&Change::Discard { extent: extent(512..1024) })?;
        journal.seal(SealedEpoch { pairing: 5, epoch })
    };
    vec![
        left(|_| Ok(())),
        left(|journal| {
            epoch(journal, 1)?;
            journal.sync()?;
            epoch(journal, 2)?;
            journal.append(&Change::write(0, 0, b"not sealed"))
        }),
        left(|journal| {
            // More than once round the ring.
            for number in 1..40 {
                journal.append(&Change::write(0, 0, &[number as u8; 3000]))?;
                journal.seal(SealedEpoch { pairing: 5, epoch: number })?;
                journal.sync()?;
                let _ = journal.apply(u64::MAX, |_| Ok::<_, Infallible>(()));
                journal.release()?;
            }
            epoch(journal, 40)?;
            journal.drop_unsealed()?;
            epoch(journal, 41)?;
            journal.sync()
        }),
    ]
}
