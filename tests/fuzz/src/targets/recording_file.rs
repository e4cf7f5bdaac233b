//! Files that a machine is made of again: a recording, and the state that a backup saved. An input says which, and is
//! its pieces; checksums, lengths and digests are put right. Memory beyond the machine's is never touched, and a log
//! that is given out is of whole batches.

use crate::input::{FuzzInput, put_piece};
use ft_checkpoint::recording::{
    About, DiskImage, End, EndReason, NextSection, Reader, RecordingError, Writer,
};
use ft_checkpoint::saved::{self, ImageLabel, ImageReader, SavedError};
use ft_ram::{GuestRam, RamView};
use ft_vm::replay::log::{Digest, LogInput, LogReader, LogWriter, REGISTERS, batch_bytes};
use ft_vm::spec::{BusKind, CpuModel, EngineKind, MachineSpec};
use std::ops::ControlFlow;

const RAM_BYTES: u64 = 16 << 20;
const HEAD_BYTES: usize = 8;
const SECTION_HEAD_BYTES: usize = 24;
const SAVED: u8 = 1;
const LOG: u8 = 2;

fn spec() -> MachineSpec {
    let (nets, disks, bus, cpu) = (Vec::new(), Vec::new(), BusKind::Mmio, CpuModel::Host);
    MachineSpec { engine: EngineKind::Soft, vcpus: 1, ram_bytes: RAM_BYTES, nets, disks, rng: true, bus, cpu }
}

fn memory() -> RamView {
    GuestRam::new(RAM_BYTES).and_then(|ram| ram.view()).expect("there is memory")
}

/// See the module.
pub(crate) fn run(input: &[u8]) {
    let mut input = FuzzInput::new(input);
    match input.u8() % 3 {
        SAVED => saved_image(&mut input),
        LOG => log(&mut input),
        _ => recording(&mut input),
    }
}

fn recording(input: &mut FuzzInput<'_>) {
    let mut file = b"FTDREC".to_vec();
    file.extend_from_slice(&2u16.to_le_bytes());
    // The digest of what the log begins with is of the state and of each piece of memory.
    let mut digest = 0;
    let mut sequence = 0_u32;
    while !input.is_empty() {
        let kind = u32::from(input.u8() % 8);
        let mut payload = input.piece().to_vec();
        match kind {
            2 | 3 => digest = ft_checkpoint::recording::fold(digest, &payload),
            4 if payload.is_empty() => payload = digest.to_le_bytes().to_vec(),
            5 => payload = batch(&payload),
            _ => {}
        }
        let mut head = Vec::with_capacity(SECTION_HEAD_BYTES);
        let words = [kind, 7, sequence, payload.len() as u32, crc32c::crc32c(&payload)];
        words.iter().for_each(|word| head.extend_from_slice(&word.to_le_bytes()));
        let crc = crc32c::crc32c(&head);
        file.extend_from_slice(&head);
        file.extend_from_slice(&crc.to_le_bytes());
        file.extend_from_slice(&payload);
        sequence += 1;
    }
    if let Err(error) = read_recording(&file) {
        assert!(!error.to_string().is_empty());
    }
}

fn read_recording(file: &[u8]) -> Result<(), RecordingError> {
    let mut reader = Reader::open(file)?;
    let _ = reader.start(&memory())?;
    let mut log = LogReader::new(100);
    loop {
        match reader.more()? {
            NextSection::Log(batches) => drop(log.read_all(&batches)),
            NextSection::End(_) => {
                assert_eq!(reader.offset(), file.len() as u64);
                return Ok(());
            }
            NextSection::CutOff { offset } => {
                assert!(offset <= file.len() as u64);
                return Ok(());
            }
        }
    }
}

/// A batch whose checksum is right.
fn batch(bytes: &[u8]) -> Vec<u8> {
    let mut batch = bytes.to_vec();
    if batch.len() >= HEAD_BYTES {
        let crc = crc32c::crc32c_append(crc32c::crc32c(&batch[..4]), &batch[8..]);
        batch[4..8].copy_from_slice(&crc.to_le_bytes());
    }
    batch
}

/// Batches of a log alone, as they come from a primary.
fn log(input: &mut FuzzInput<'_>) {
    let mut reader = LogReader::new(input.u16().into());
    while !input.is_empty() {
        let batch = batch(input.piece());
        let (before, index) = (reader.count(), reader.index());
        match reader.read_all(&batch) {
            Ok(batches) => {
                let mut start = before;
                for read in &batches {
                    assert_eq!(read.start, start);
                    assert!(read.entries.is_sorted_by_key(|entry| entry.count));
                    assert!(read.entries.iter().all(|entry| (read.start..=read.cut).contains(&entry.count)));
                    // Compressed ones are bounded by what a batch may be.
                    assert!(read.memory_bytes() <= 64 << 20);
                    start = read.cut;
                }
                assert_eq!((reader.count(), reader.index()), (start, index + batches.len() as u64));
                if !batch.is_empty() {
                    assert!(batch_bytes(&batch).is_ok_and(|bytes| bytes.is_some_and(|b| b <= batch.len())));
                }
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                assert_eq!((reader.count(), reader.index()), (before, index), "nothing has been read");
            }
        }
    }
}

fn saved_image(input: &mut FuzzInput<'_>) {
    let mut file = saved::MAGIC.to_vec();
    file.extend_from_slice(&saved::VERSION.to_le_bytes());
    put_long_piece(&mut file, input.piece());
    let crc = crc32c::crc32c(&file);
    file.extend_from_slice(&crc.to_le_bytes());
    while !input.is_empty() {
        put_long_piece(&mut file, input.piece());
    }
    // The last piece is empty, and length and digest follow.
    put_long_piece(&mut file, &[]);
    let length = file.len() as u64 + 40;
    let digest = blake3::hash(&[&file[..], &length.to_le_bytes()].concat());
    file.extend_from_slice(&length.to_le_bytes());
    file.extend_from_slice(digest.as_bytes());
    let read = || -> Result<Vec<u8>, SavedError> { ImageReader::open(&file[..])?.take(&spec(), &memory()) };
    if let Err(error) = read() {
        assert!(!error.to_string().is_empty());
    }
}

fn put_long_piece(into: &mut Vec<u8>, piece: &[u8]) {
    into.extend_from_slice(&(piece.len() as u32).to_le_bytes());
    into.extend_from_slice(piece);
}

fn batches() -> Vec<Vec<u8>> {
    let mut writer = LogWriter::new(100);
    let digest = Digest { registers: [9; REGISTERS.len()], pages: vec![(3, 4), (7, 8)] };
    let inputs = [
        LogInput::Frame { card: 0, packet: vec![7; 60] },
        LogInput::Console(b"text".to_vec()),
        LogInput::Advance { ns: 5 },
        LogInput::TimeOfDay { seconds: -3 },
        LogInput::Random(vec![1; 300]),
        LogInput::Link { card: 0, up: false },
        LogInput::Disk { disk: 0, head: 3, well: true },
        LogInput::Digest(Box::new(digest)),
    ];
    let mut batches = Vec::new();
    for (count, input) in (110..).step_by(100).zip(&inputs) {
        let mut out = Vec::new();
        writer.append(count, input).expect("it is in order");
        writer.cut(count + 50, &mut out).expect("it is in order");
        batches.push(out);
    }
    batches
}

/// See the module.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let ram = memory();
    ram.write_page(77, &[0x5a; 4096]);
    let about = About {
        vm: "web".into(),
        spec: spec(),
        engine_fingerprint: 1,
        program: "ftd".into(),
        disks: vec![DiskImage { path: "/image".into(), bytes: 4096, hash: 9 }],
    };
    let mut writer = Writer::begin(Vec::new(), 7, &about, b"a state", &ram).expect("it can be written");
    writer.log(&batches().concat()).expect("the batches are whole");
    let end = End { count: 900, digest: 77, why: EndReason::PoweredOff };
    let file = writer.end(&end).expect("it can be written");
    let mut recording = vec![0];
    let mut rest = &file[HEAD_BYTES..];
    while rest.len() >= SECTION_HEAD_BYTES {
        let bytes = u32::from_le_bytes(std::array::from_fn(|i| rest[12 + i])) as usize;
        recording.push(rest[0]);
        // The digest comes by itself.
        let payload = &rest[SECTION_HEAD_BYTES..][..bytes];
        put_piece(&mut recording, if rest[0] == 4 { &[] } else { payload });
        rest = &rest[SECTION_HEAD_BYTES + bytes..];
    }

    let mut log = vec![LOG, 100, 0];
    batches().iter().for_each(|batch| put_piece(&mut log, batch));

    let label = ImageLabel {
        vm: "web".into(),
        node: "beta".into(),
        cell: 1,
        generation: 2,
        pairing: 3,
        epoch: 4,
        spec: spec(),
        disks: Vec::new(),
    };
    let file = saved::write(Vec::new(), &label, b"a state", &ram, |_| ControlFlow::Continue(()));
    let file = file.unwrap_or_else(|_| panic!("it can be written"));
    let mut saved = vec![SAVED];
    let mut at = saved::MAGIC.len() + 4;
    let mut number = 0;
    while at + 4 <= file.len() {
        let bytes = u32::from_le_bytes(std::array::from_fn(|i| file[at + i])) as usize;
        if bytes == 0 {
            break;
        }
        put_piece(&mut saved, &file[at + 4..at + 4 + bytes]);
        // A checksum follows the first one.
        at += 4 + bytes + if number == 0 { 4 } else { 0 };
        number += 1;
    }
    vec![recording, log, saved]
}
