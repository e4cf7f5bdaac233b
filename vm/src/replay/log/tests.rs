use super::bytes::put_varint;
use super::format::*;
use super::*;
use ft_ram::PageIndex;
use proptest::collection::vec;
use proptest::prelude::*;

fn digest() -> impl Strategy<Value = Digest> {
    let pages = proptest::collection::btree_map(any::<PageIndex>(), any::<u32>(), 0..40);
    (vec(any::<u64>(), REGISTERS.len()), pages).prop_map(|(registers, pages)| Digest {
        registers: registers.try_into().unwrap(),
        pages: pages.into_iter().collect(),
    })
}

fn input() -> impl Strategy<Value = LogInput> {
    let bytes =
        || prop_oneof![vec(any::<u8>(), 0..80), (any::<u8>(), 0..3000_usize).prop_map(|(b, n)| vec![b; n])];
    prop_oneof![
        4 => (any::<u8>(), bytes()).prop_map(|(card, packet)| LogInput::Frame { card, packet }),
        1 => bytes().prop_map(LogInput::Console),
        4 => any::<u64>().prop_map(|ns| LogInput::Advance { ns }),
        1 => any::<u64>().prop_map(|ns| LogInput::StoodStill { ns }),
        1 => any::<(u8, bool)>().prop_map(|(card, up)| LogInput::Link { card, up }),
        1 => any::<i64>().prop_map(|seconds| LogInput::TimeOfDay { seconds }),
        1 => any::<u32>().prop_map(|ns_per_256| LogInput::Pace { ns_per_256 }),
        1 => bytes().prop_map(LogInput::Random),
        2 => any::<(u8, u16, bool)>().prop_map(|(disk, head, well)| LogInput::Disk { disk, head, well }),
        1 => Just(LogInput::Control(ControlAction::FlushTranslations)),
        1 => Just(LogInput::Control(ControlAction::PressPowerButton)),
        1 => digest().prop_map(|digest| LogInput::Digest(Box::new(digest))),
    ]
}

/// Batches as pairs of deltas: entries with their distances, and the distance of the cut.
fn batches() -> impl Strategy<Value = (u64, Vec<(Vec<LogEntry>, u64)>)> {
    let delta = || prop_oneof![Just(0_u64), 0..300_u64, 0..1_u64 << 40];
    let batch = (vec((delta(), input()), 0..12), delta());
    (0..1_u64 << 50, vec(batch, 1..6)).prop_map(|(start, batches)| {
        let mut count = start;
        let batches = batches.into_iter().map(|(entries, after)| {
            let entries = entries
                .into_iter()
                .map(|(delta, input)| {
                    count += delta;
                    LogEntry { count, input }
                })
                .collect();
            count += after;
            (entries, count)
        });
        (start, batches.collect())
    })
}

/// Each batch encoded by itself.
fn encode(start: u64, batches: &[(Vec<LogEntry>, u64)]) -> Vec<Vec<u8>> {
    let mut writer = LogWriter::new(start);
    let encode = |(entries, cut): &(Vec<LogEntry>, u64)| {
        for entry in entries {
            writer.append(entry.count, &entry.input).unwrap();
        }
        assert_eq!(writer.pending_entries(), entries.len() as u64);
        let mut out = Vec::new();
        let done = writer.cut(*cut, &mut out).unwrap();
        assert_eq!(done, LogCut { count: *cut, entries: entries.len() as u64, bytes: out.len() });
        out
    };
    batches.iter().map(encode).collect()
}

/// Three batches of every kind of entry, one of them compressed.
fn sample() -> (u64, Vec<Vec<u8>>) {
    let mut digest = Digest { registers: [7; REGISTERS.len()], pages: vec![(0, 1), (1, 2), (900, 3)] };
    digest.registers[3] = u64::MAX;
    let entry = |count, input| LogEntry { count, input };
    let batches = [
        (
            vec![
                entry(1000, LogInput::Frame { card: 0, packet: vec![1, 2, 3] }),
                entry(1000, LogInput::Random(vec![9; 9])),
                entry(1300, LogInput::Advance { ns: 1_000_000 }),
            ],
            2000,
        ),
        (
            vec![
                entry(2000, LogInput::Frame { card: 0, packet: vec![0; 1500] }),
                entry(2001, LogInput::Digest(Box::new(digest))),
            ],
            2001,
        ),
        (
            vec![
                entry(2500, LogInput::Control(ControlAction::FlushTranslations)),
                entry(2600, LogInput::Console(b"ls\n".to_vec())),
            ],
            u64::MAX - 1,
        ),
    ];
    (1000, encode(1000, &batches))
}

proptest! {
    #[test]
    fn what_is_written_is_read((start, batches) in batches()) {
        let encoded = encode(start, &batches);
        let mut reader = LogReader::new(start);
        let read = reader.read_all(&encoded.concat()).unwrap();
        prop_assert_eq!(read.len(), batches.len());
        let mut due = start;
        for (index, (batch, (entries, cut))) in read.into_iter().zip(batches).enumerate() {
            prop_assert_eq!(batch, Batch { index: index as u64, start: due, cut, entries });
            prop_assert_eq!(batch_bytes(&encoded[index]), Ok(Some(encoded[index].len())));
            due = cut;
        }
        prop_assert_eq!(reader.count(), due);
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_panic(bytes in vec(any::<u8>(), 0..400), good_start in any::<bool>()) {
        let mut bytes = bytes;
        if good_start && bytes.len() >= 4 {
            bytes[..2].copy_from_slice(&MAGIC);
            bytes[2] = LOG_VERSION;
            bytes[3] &= FLAG_LZ4;
        }
        if !bytes.is_empty() {
            prop_assert!(LogReader::new(0).read_all(&bytes).is_err());
        }
        let _ = batch_bytes(&bytes);
    }

    /// A writer gone wrong, or an adversary: the checksum is right and the content is not.
    #[test]
    fn arbitrary_bodies_behind_a_right_checksum_are_read_or_refused_without_panic(
        body in vec(any::<u8>(), 0..400), lz4 in any::<bool>(), prefix in any::<bool>(),
    ) {
        let mut body = body;
        if prefix {
            body.splice(0..0, [0, 5, 100]);
        }
        let bytes = sealed(&body, lz4);
        if let Ok(batches) = LogReader::new(5).read_all(&bytes) {
            for batch in batches {
                prop_assert!(batch.entries.is_sorted_by_key(|entry| entry.count));
                prop_assert!(batch.entries.iter().all(|e| (batch.start..=batch.cut).contains(&e.count)));
            }
        }
    }
}

fn sealed(body: &[u8], lz4: bool) -> Vec<u8> {
    let mut bytes = [&MAGIC[..], &[LOG_VERSION, u8::from(lz4), 0, 0, 0, 0]].concat();
    put_varint(&mut bytes, body.len() as u64);
    bytes.extend_from_slice(body);
    let crc = checksum(&bytes);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn refusal(body: &[u8]) -> LogError {
    LogReader::new(5).read_all(&sealed(body, false)).unwrap_err()
}

#[test]
fn a_log_cut_at_any_byte_is_refused_and_nothing_of_it_is_taken() {
    let (start, batches) = sample();
    assert!(batches.iter().any(|batch| batch[3] == FLAG_LZ4) && batches.iter().any(|batch| batch[3] == 0));
    let whole = batches.concat();
    let boundaries: Vec<usize> =
        batches.iter().scan(0, |at, batch| Some(std::mem::replace(at, *at + batch.len()))).collect();
    for length in 1..whole.len() {
        let mut reader = LogReader::new(start);
        let read = reader.read_all(&whole[..length]);
        if boundaries.contains(&length) {
            assert!(read.is_ok());
            continue;
        }
        let begin = *boundaries.iter().rfind(|at| **at < length).unwrap();
        assert_eq!(read, Err(LogError::Truncated { offset: begin, have: length - begin }));
        assert_eq!((reader.index(), reader.count()), (0, start));
    }
}

#[test]
fn any_flipped_bit_is_found() {
    let (start, batches) = sample();
    let whole = batches.concat();
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(LogReader::new(start).read_all(&bytes).is_err(), "bit {bit}");
    }
}

#[test]
fn batches_missing_repeated_or_swapped_are_refused_by_number() {
    let (start, b) = sample();
    let read = |order: &[usize]| {
        let bytes: Vec<u8> = order.iter().flat_map(|i| b[*i].clone()).collect();
        LogReader::new(start).read_all(&bytes).map(|batches| batches.len())
    };
    let behind_first = b[0].len();
    assert_eq!(read(&[0, 1, 2]), Ok(3));
    assert_eq!(read(&[0, 2]), Err(LogError::Missing { offset: behind_first, theirs: 2, due: 1 }));
    assert_eq!(read(&[0, 2, 1]), Err(LogError::Missing { offset: behind_first, theirs: 2, due: 1 }));
    assert_eq!(read(&[0, 0, 1]), Err(LogError::Repeated { offset: behind_first, theirs: 0, due: 1 }));
    assert_eq!(read(&[1]), Err(LogError::Missing { offset: 0, theirs: 1, due: 0 }));
    let elsewhere = LogReader::new(start + 1).read_all(&b[0]);
    assert_eq!(elsewhere, Err(LogError::Start { offset: 0, index: 0, theirs: 1000, due: 1001 }));
}

#[test]
fn a_batch_can_be_cut_at_an_earlier_count() {
    let (start, batches) = sample();
    let mut reader = LogReader::new(start);
    let first = reader.read_all(&batches[0]).unwrap().remove(0);
    let until = |count| LogReader::new(start).read_all(&first.until(count).unwrap()).unwrap().remove(0);
    assert_eq!(until(5000), first);
    let shorter = until(1299);
    assert_eq!((shorter.index, shorter.start, shorter.cut), (0, 1000, 1299));
    assert_eq!(shorter.entries, first.entries[..2]);
    assert_eq!(until(1300).entries, first.entries);
    assert!(matches!(first.until(999), Err(LogError::Backwards { .. })));
    let second = reader.read_all(&batches[1]).unwrap().remove(0);
    assert_eq!(reader.clone().index(), 2);
    let again = LogReader { index: 1, count: 2000 }.read_all(&second.until(2000).unwrap()).unwrap().remove(0);
    assert_eq!((again.index, again.entries.len()), (1, 1));
}

#[test]
fn counts_that_go_back_cannot_be_written() {
    let mut writer = LogWriter::new(100);
    let input = LogInput::Advance { ns: 1 };
    assert_eq!(writer.append(99, &input), Err(LogError::Backwards { batch: 0, count: 99, last: 100 }));
    writer.append(200, &input).unwrap();
    assert_eq!(writer.append(199, &input), Err(LogError::Backwards { batch: 0, count: 199, last: 200 }));
    let mut out = Vec::new();
    assert_eq!(writer.cut(199, &mut out), Err(LogError::Backwards { batch: 0, count: 199, last: 200 }));
    writer.cut(300, &mut out).unwrap();
    assert_eq!(writer.append(299, &input), Err(LogError::Backwards { batch: 1, count: 299, last: 300 }));
    assert_eq!(writer.pending_entries(), 0);
}

#[test]
fn what_is_too_long_cannot_be_written() {
    let mut writer = LogWriter::new(0);
    writer.append(0, &LogInput::Frame { card: 0, packet: vec![0; INPUT_BYTES_MAX] }).unwrap();
    assert!(matches!(
        writer.append(0, &LogInput::Frame { card: 0, packet: vec![0; INPUT_BYTES_MAX + 1] }),
        Err(LogError::TooLong { what: "bytes of a frame", length: 67_585, .. })
    ));
    let twice = Digest { registers: [0; REGISTERS.len()], pages: vec![(3, 0), (3, 0)] };
    assert_eq!(
        writer.append(0, &LogInput::Digest(Box::new(twice))),
        Err(LogError::Unsorted { batch: 0, page: 3 })
    );
}

#[test]
fn inputs_that_do_not_fit_into_a_batch_become_several() {
    let mut writer = LogWriter::new(0);
    let mut seed = 1_u64;
    let mut noise = || {
        let byte = |_| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 56) as u8
        };
        (0..INPUT_BYTES_MAX).map(byte).collect::<Vec<_>>()
    };
    let frames: Vec<_> = (0..300)
        .map(|i| LogEntry { count: i * 10, input: LogInput::Frame { card: 0, packet: noise() } })
        .collect();
    for frame in &frames {
        writer.append(frame.count, &frame.input).unwrap();
    }
    let mut out = Vec::new();
    let cut = writer.cut(5000, &mut out).unwrap();
    assert_eq!((cut.entries, cut.bytes), (300, out.len()));
    let batches = LogReader::new(0).read_all(&out).unwrap();
    assert_eq!(batches.len(), 2);
    assert_eq!(batches[1].cut, 5000);
    assert!(batches.into_iter().flat_map(|batch| batch.entries).eq(frames));
}

#[test]
fn a_frame_costs_its_bytes_and_a_few() {
    let mut writer = LogWriter::new(0);
    let mut out = Vec::new();
    writer.append(100_000, &LogInput::Frame { card: 0, packet: vec![0xa5; 90] }).unwrap();
    writer.append(130_000, &LogInput::Advance { ns: 1_000_000 }).unwrap();
    writer.cut(200_000, &mut out).unwrap();
    assert!(out.len() <= 90 + 5 + 7 + 16, "{}", out.len());
}

#[test]
fn another_version_or_another_thing_is_refused_by_name() {
    let (start, mut batches) = sample();
    batches[0][2] = LOG_VERSION + 1;
    let read = LogReader::new(start).read_all(&batches[0]).unwrap_err();
    assert_eq!(read, LogError::Version { offset: 0, theirs: LOG_VERSION + 1 });
    let read = LogReader::new(start).read_all(b"\x7fELF").unwrap_err();
    assert_eq!(read, LogError::Magic { offset: 0 });
}

#[test]
fn bodies_that_cannot_be_are_refused_with_their_place() {
    // index 0, start 5, cut 5 + 100, then entries
    let with = |entries: &[u8]| refusal(&[&[0, 5, 100], entries].concat());
    let malformed = |error: LogError| match error {
        LogError::Malformed { what, .. } => what,
        other => panic!("{other}"),
    };
    assert_eq!(malformed(with(&[77, 1, 0])), "unknown kind of event");
    assert_eq!(malformed(with(&[TAG_FRAME, 1, 0, 9, 0])), "ends inside an event");
    assert_eq!(malformed(with(&[TAG_FRAME, 1, 0, 0x81, 0x80, 0x80, 1])), "input longer than any");
    assert_eq!(malformed(with(&[TAG_ADVANCE, 0x81, 0, 1])), "number with a needless byte");
    assert_eq!(malformed(with(&[TAG_CONTROL, 1, 99])), "unknown control action");
    assert_eq!(with(&[TAG_ADVANCE, 101, 1]), LogError::AfterCut { batch: 0, count: 106, cut: 105 });
    let far = [&[TAG_ADVANCE][..], &[0xff; 9], &[1, 1]].concat();
    assert_eq!(with(&far), LogError::Overflow { batch: 0, offset: 12, count: 5 });
    let many = [&[TAG_DIGEST, 0][..], &[0; REGISTERS.len()], &[100, 0, 0, 0, 0, 0]].concat();
    assert_eq!(malformed(with(&many)), "more pages than bytes for them");
}

#[test]
fn a_small_batch_cannot_unpack_to_more_than_the_bound() {
    let mut body = vec![0, 5, 100];
    put_varint(&mut body, BATCH_BYTES_MAX as u64 + 1);
    body.extend_from_slice(&[0; 20]);
    let error = LogReader::new(5).read_all(&sealed(&body, true)).unwrap_err();
    assert!(matches!(error, LogError::TooLong { .. }), "{error}");
}

#[test]
fn a_digest_names_the_first_difference() {
    let digest = |rbx, pages: &[(PageIndex, u32)]| {
        let mut registers = [0; REGISTERS.len()];
        registers[3] = rbx;
        Digest { registers, pages: pages.to_vec() }
    };
    let recorded = digest(1, &[(3, 30), (7, 70)]);
    assert_eq!(recorded.mismatch(&recorded), None);
    let register = recorded.mismatch(&digest(2, &[(3, 0)])).unwrap();
    assert_eq!(register.to_string(), "register rbx: 0x1 was recorded, the replay has 0x2");
    let page = Mismatch::Page { page: 7, recorded: 70, replayed: 71 };
    assert_eq!(recorded.mismatch(&digest(1, &[(3, 30), (7, 71)])), Some(page));
    let written = |page, in_replay| Some(Mismatch::Written { page, in_replay });
    assert_eq!(recorded.mismatch(&digest(1, &[(3, 30)])), written(7, false));
    assert_eq!(recorded.mismatch(&digest(1, &[(3, 30), (7, 70), (8, 0)])), written(8, true));
    assert_eq!(recorded.mismatch(&digest(1, &[(2, 0), (3, 30), (7, 70)])), written(2, true));
    assert_eq!(recorded.mismatch(&digest(1, &[(4, 0), (7, 70)])), written(3, false));
}
