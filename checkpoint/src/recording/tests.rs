use super::section::SECTION_HEADER_BYTES;
use super::*;
use crate::bench_support::noise_page;
use ft_ram::GuestRam;
use ft_vm::replay::log::{LogInput, LogWriter};
use ft_vm::spec::{BusKind, CpuModel, EngineKind};
use proptest::prelude::*;
use std::sync::OnceLock;

const RAM_BYTES: u64 = 16 << 20;
const STATE: &[u8] = b"as if it were a machine's state";
const END: End = End { count: 900, digest: 77, why: EndReason::PoweredOff };

fn about() -> About {
    About {
        vm: "web".into(),
        spec: MachineSpec {
            engine: EngineKind::Soft,
            vcpus: 1,
            ram_bytes: RAM_BYTES,
            nets: Vec::new(),
            disks: Vec::new(),
            rng: true,
            bus: BusKind::Mmio,
            cpu: CpuModel::Host,
        },
        engine_fingerprint: 0xfeed,
        program: "ftd 1.2.3".into(),
        disks: vec![DiskImage { path: "/images/root".into(), bytes: 4096, hash: 9 }],
    }
}

/// Memory with a few pages in it, and what they are.
fn memory() -> (RamView, Vec<(PageIndex, crate::page::Page)>) {
    let ram = GuestRam::new(RAM_BYTES).unwrap().view().unwrap();
    let pages: Vec<_> = [0, 1, 77, 4095].into_iter().map(|page| (page, noise_page(page.into()))).collect();
    for (page, content) in &pages {
        ram.write_page(*page, content);
    }
    (ram, pages)
}

fn batches() -> Vec<Vec<u8>> {
    let mut writer = LogWriter::new(100);
    let batch = |(count, input): (u64, LogInput)| {
        let mut out = Vec::new();
        writer.append(count, &input).unwrap();
        writer.cut(count + 100, &mut out).unwrap();
        out
    };
    let inputs = [
        (150, LogInput::Frame { card: 0, packet: vec![7; 60] }),
        (300, LogInput::Advance { ns: 5 }),
        (800, LogInput::Random(vec![1])),
    ];
    inputs.into_iter().map(batch).collect()
}

fn recording(nonce: u32) -> Vec<u8> {
    let (ram, _) = memory();
    let mut writer = Writer::begin(Vec::new(), nonce, &about(), STATE, &ram).unwrap();
    let batches = batches();
    writer.log(&batches[..2].concat()).unwrap();
    writer.log(&batches[2]).unwrap();
    writer.end(&END).unwrap()
}

fn sample() -> &'static [u8] {
    static SAMPLE: OnceLock<Vec<u8>> = OnceLock::new();
    SAMPLE.get_or_init(|| recording(1))
}

/// Where the sections of the sample begin, and where the last one ends.
fn boundaries(bytes: &[u8]) -> Vec<usize> {
    let mut at = vec![MAGIC.len() + 2];
    while let Some(length) = bytes.get(at[at.len() - 1] + 12..).and_then(|rest| rest.first_chunk()) {
        at.push(at[at.len() - 1] + SECTION_HEADER_BYTES + u32::from_le_bytes(*length) as usize);
    }
    at
}

/// All of a recording: its log's batches, and what comes after them.
fn read(bytes: &[u8]) -> Result<(Vec<Vec<u8>>, NextSection), RecordingError> {
    let mut reader = Reader::open(bytes)?;
    let ram = GuestRam::new(reader.about().spec.ram_bytes).unwrap().view().unwrap();
    reader.start(&ram)?;
    let mut log = Vec::new();
    loop {
        match reader.more()? {
            NextSection::Log(batch) => log.push(batch),
            last => return Ok((log, last)),
        }
    }
}

#[test]
fn a_recording_gives_back_the_start_the_log_and_the_end() {
    let mut reader = Reader::open(sample()).unwrap();
    assert_eq!(*reader.about(), about());
    let (then, pages) = memory();
    let now = GuestRam::new(RAM_BYTES).unwrap().view().unwrap();
    assert_eq!(reader.start(&now).unwrap(), STATE);
    assert_eq!(machine_digest(STATE, &now).unwrap(), machine_digest(STATE, &then).unwrap());
    let mut page = ZERO_PAGE;
    for (index, content) in pages {
        now.read_page(index, &mut page);
        assert!(page == content, "page {index}");
    }
    let (log, last) = read(sample()).unwrap();
    assert_eq!((log, last), (batches(), NextSection::End(END)));
}

#[test]
fn the_digest_tells_memory_and_state_apart() {
    let (ram, _) = memory();
    let digest = |state: &[u8]| machine_digest(state, &ram).unwrap();
    let before = digest(STATE);
    assert_ne!(digest(b""), before);
    ram.write_in_page(77, 5, &[1, 2, 3]);
    assert_ne!(digest(STATE), before);
}

#[test]
fn a_recording_cut_at_any_byte_is_good_up_to_its_last_whole_section_and_says_so() {
    let whole = sample();
    let boundaries = boundaries(whole);
    assert_eq!(boundaries.last(), Some(&whole.len()));
    // About, State, Pages, Begin; three batches; End.
    assert_eq!(boundaries.len(), 1 + 4 + 3 + 1);
    let start_complete = boundaries[4];
    // In the pages' section every length is the same to the reader: a few will do.
    let lengths = (0..whole.len()).filter(|at| *at < 400 || *at > start_complete - 40 || at % 997 == 0);
    for length in lengths {
        match read(&whole[..length]) {
            Ok((log, last)) => {
                assert!(length >= start_complete, "{length}");
                let sections = boundaries.iter().filter(|at| **at <= length).count() - 5;
                assert_eq!(log, batches()[..sections]);
                assert_eq!(last, NextSection::CutOff { offset: boundaries[4 + sections] as u64 });
            }
            Err(RecordingError::Magic) => assert_eq!(length, 0),
            Err(RecordingError::NoStart { offset }) => {
                assert!(length < start_complete && offset <= length as u64, "{length}");
            }
            Err(other) => panic!("{length}: {other}"),
        }
    }
}

#[test]
fn any_flipped_bit_is_found() {
    let whole = sample();
    let (pages, begin) = (boundaries(whole)[2], boundaries(whole)[3]);
    let bytes = (0..whole.len()).filter(|at| *at < pages + 60 || *at >= begin || at % 499 == 0);
    for (at, bit) in bytes.flat_map(|at| [0, 3, 7].map(|bit| (at, bit))) {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 1 << bit;
        assert!(read(&bytes).is_err(), "bit {bit} of byte {at}");
    }
}

#[test]
fn sections_missing_repeated_swapped_or_of_another_recording_are_named() {
    let whole = sample();
    let at = boundaries(whole);
    let section = |i: usize| &whole[at[i]..at[i + 1]];
    let with = |order: &[usize]| {
        let sections = order.iter().flat_map(|i| section(*i)).copied();
        read(&whole[..at[0]].iter().copied().chain(sections).collect::<Vec<_>>())
    };
    assert!(with(&[0, 1, 2, 3, 4, 5, 6, 7]).is_ok());
    let sequence = |found, theirs: u32, due: u32| match found {
        Err(RecordingError::Sequence { theirs: t, due: d, .. }) => assert_eq!((t, d), (theirs, due)),
        other => panic!("{other:?}"),
    };
    sequence(with(&[0, 1, 2, 3, 5, 6, 7]), 5, 4);
    sequence(with(&[0, 1, 2, 3, 4, 4, 5, 6, 7]), 4, 5);
    sequence(with(&[0, 1, 2, 3, 5, 4, 6, 7]), 5, 4);
    sequence(with(&[0, 1, 3, 4]), 3, 2);

    let other = recording(2);
    let mixed = [&whole[..at[5]], &other[at[5]..at[6]]].concat();
    let error = read(&mixed).unwrap_err();
    assert!(matches!(error, RecordingError::Foreign { theirs: 2, ours: 1, .. }), "{error}");
    let more = [whole, &whole[at[7]..]].concat();
    assert!(matches!(read(&more), Err(RecordingError::BehindEnd { .. })));
}

#[test]
fn other_files_and_other_versions_are_refused_by_name() {
    assert!(matches!(Reader::open(&b""[..]).map(drop), Err(RecordingError::Magic)));
    assert!(matches!(Reader::open(&b"\x7fELF and so on"[..]).map(drop), Err(RecordingError::Magic)));
    let mut newer = sample().to_vec();
    newer[6] = 9;
    assert!(matches!(Reader::open(&newer[..]).map(drop), Err(RecordingError::Version { theirs: 9 })));
}

#[test]
fn memory_that_does_not_fit_is_refused() {
    let mut reader = Reader::open(sample()).unwrap();
    let (ram, _) = memory();
    let large = GuestRam::new(2 * RAM_BYTES).unwrap().view().unwrap();
    large.write_page(5000, &noise_page(1));
    assert_eq!(ram.pages(), 4096);
    let too_large = Writer::begin(Vec::new(), 1, &about(), STATE, &large).unwrap().end(&END).unwrap();
    assert!(reader.start(&ram).is_ok());
    let error = read(&too_large).unwrap_err();
    assert!(error.to_string().contains("page 5000 of a memory of 4096 pages"), "{error}");
}

#[test]
fn what_is_no_batch_is_not_written() {
    let (ram, _) = memory();
    let mut writer = Writer::begin(Vec::new(), 1, &about(), STATE, &ram).unwrap();
    assert!(matches!(writer.log(b"letters"), Err(RecordingError::Log(LogError::Magic { .. }))));
    let batch = &batches()[0];
    assert!(matches!(
        writer.log(&batch[..batch.len() - 1]),
        Err(RecordingError::Log(LogError::Truncated { .. }))
    ));
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused_without_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300), keep in 0..200_usize,
    ) {
        let start = &sample()[..keep.min(boundaries(sample())[1])];
        let _ = read(&[start, &bytes].concat());
    }

    #[test]
    fn arbitrary_sections_with_right_checksums_are_read_or_refused_without_panic(
        sections in proptest::collection::vec((0..8_u32, proptest::collection::vec(any::<u8>(), 0..60)), 0..6),
        from in 0..6_usize,
    ) {
        let at = boundaries(sample());
        let mut bytes = sample()[..at[from]].to_vec();
        for (i, (kind, payload)) in sections.iter().enumerate() {
            let crc = crc32c::crc32c(payload);
            bytes.extend(section::header(*kind, 1, (from + i) as u32, payload.len() as u32, crc));
            bytes.extend(payload);
        }
        let _ = read(&bytes);
    }
}
