//! The stream of a primary into the backup's receiver. An input is what an attached peer sends: a byte of settings, and
//! frames, each with its kind, what is odd about it, its epoch and its payload. Checksums and sequence numbers are
//! right here, and so are digests wherever the rest of an epoch is good; what is behind them would hardly be reached
//! else.

use crate::input::{FuzzInput, put_piece};
use ft_checkpoint::arena::Capture;
use ft_checkpoint::copy::FullCopy;
use ft_checkpoint::encoder::{EncodedCheckpoint, Encoder};
use ft_checkpoint::receiver::{Limits, ReceiveError, Received, Receiver};
use ft_checkpoint::scrub::Sample;
use ft_checkpoint::wire::message::{EpochEnd, Mode};
use ft_checkpoint::wire::{Frame, FrameError, FrameType, Message, WireSink};
use ft_mirror::{Change, Extent, Space};
use ft_ram::GuestRam;

const RAM_BYTES: u64 = 16 << 20;
const DISK_BYTES: u64 = 4 << 20;
const GENERATION: u64 = 3;

const REPLAY: u8 = 1;
const COMPARES: u8 = 2;
/// The backlog is applied as it grows, not at the end.
const APPLIES: u8 = 4;

/// In a frame: its generation is another one.
const OTHER_GENERATION: u8 = 1;
/// In a frame: a new connection begins before it.
const NEW_CONNECTION: u8 = 2;
/// In a frame: its digest is as it stands, right or wrong.
const OWN_DIGEST: u8 = 4;

/// Digests are put right so often; each time all begins anew.
const PASSES_MAX: usize = 12;

/// See the module.
pub(crate) fn run(input: &[u8]) {
    let mut digests = Vec::new();
    for _ in 0..PASSES_MAX {
        match pass(input, &digests) {
            Some(digest) => digests.push(digest),
            None => return,
        }
    }
}

/// Receives all, with these digests put right: for each frame that has one, its number and the digest. None: no more
/// is to be done.
fn pass(input: &[u8], digests: &[(usize, u64)]) -> Option<(usize, u64)> {
    let mut input = FuzzInput::new(input);
    let settings = input.u8();
    let mode = if settings & REPLAY != 0 { Mode::Replay } else { Mode::Checkpoint };
    let ram = GuestRam::new(RAM_BYTES).expect("there is memory");
    let limits = Limits { epoch_pages: 64, backlog_pages: 128 };
    let view = ram.view().expect("memory can be mapped");
    let mut receiver = Receiver::of_mode(view, limits, mode).with_disks(vec![DISK_BYTES, 0]);
    receiver.compare_copies(settings & COMPARES != 0);
    receiver.connected(GENERATION);
    let mut generation = GENERATION;
    let mut number = 0;
    while !input.is_empty() {
        let kinds = FrameType::ALL;
        let kind = kinds[usize::from(input.u8()) % kinds.len()];
        let (odd, epoch) = (input.u8(), u64::from(input.u16()));
        let payload = input.piece();
        let mended;
        let payload = match digests.iter().find(|(of, _)| *of == number) {
            Some((_, digest)) => {
                mended = with_digest(kind, payload, *digest)?;
                &mended
            }
            None => payload,
        };
        if odd & NEW_CONNECTION != 0 {
            receiver.connected(generation);
        }
        let generation_said = if odd & OTHER_GENERATION != 0 { generation ^ 1 } else { generation };
        let sequence = number as u64;
        let frame = Frame { kind, vm: 1, generation: generation_said, epoch, sequence, payload };
        let held = (receiver.held(), receiver.sealed_state().map(<[u8]>::to_vec));
        match receiver.on_frame(&frame) {
            Ok(Received::Sealed { pairing, epoch, .. } | Received::SealedLog { pairing, epoch, .. }) => {
                let now = receiver.held().expect("what is sealed is held");
                assert_eq!((now.pairing, now.epoch), (pairing, epoch));
                assert!(held.0.is_none_or(|before| before.pairing == pairing && before.epoch < epoch));
            }
            Ok(Received::CopyStarted { .. }) => assert_eq!(receiver.held(), None),
            Ok(Received::Change(change)) => {
                let Extent { disk, bytes } = change.extent();
                assert!(disk == 0 && bytes.start < bytes.end && bytes.end <= DISK_BYTES);
            }
            Ok(other) => {
                if let Received::Paired { generation: said } = other {
                    generation = said;
                }
                assert_eq!(receiver.held(), held.0);
            }
            Err(ReceiveError::Digest { computed, .. })
                if odd & OWN_DIGEST == 0 && !digests.iter().any(|(of, _)| *of == number) =>
            {
                return Some((number, computed));
            }
            Err(error) => {
                // What is half received is gone; what is held is as it was.
                assert!(!error.to_string().is_empty());
                assert_eq!((receiver.held(), receiver.sealed_state()), (held.0, held.1.as_deref()));
            }
        }
        let told: usize = receiver.page_hashes().len();
        assert!(told <= 16, "{told} messages at once");
        if settings & APPLIES != 0 {
            receiver.applier().apply_next();
        }
        let (_, pages) = receiver.backlog();
        assert!(pages <= limits.backlog_pages + limits.epoch_pages, "{pages} pages wait");
        number += 1;
    }
    if let Ok(mut sealed) = receiver.into_sealed() {
        sealed.apply_all();
    }
    None
}

/// A frame's payload with this digest. None: it has no place for one.
fn with_digest(kind: FrameType, payload: &[u8], digest: u64) -> Option<Vec<u8>> {
    let frame = Frame { kind, vm: 1, generation: 0, epoch: 0, sequence: 0, payload };
    let message = match Message::decode(&frame).ok()? {
        Message::EpochEnd(end) => Message::EpochEnd(EpochEnd { digest, ..end }),
        Message::LogEnd(mut end, part) => {
            end.digest = digest;
            Message::LogEnd(end, part)
        }
        _ => return None,
    };
    let mut out = Taken(Vec::new());
    message.write(0, &mut out).ok()?;
    // Kind, oddity, epoch and length stand before it.
    Some(out.0.split_off(6))
}

/// Frames as inputs have them.
struct Taken(Vec<u8>);

impl WireSink for Taken {
    fn frame(&mut self, kind: FrameType, epoch: u64, payload: &[u8]) -> Result<(), FrameError> {
        let index = FrameType::ALL.iter().position(|other| *other == kind).unwrap_or(0);
        self.0.extend_from_slice(&[index as u8, 0]);
        self.0.extend_from_slice(&(epoch as u16).to_le_bytes());
        put_piece(&mut self.0, payload);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), FrameError> {
        Ok(())
    }
}

/// A full copy, changes of a disk, and two checkpoints or epochs of the log.
fn stream(settings: u8) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let guest = GuestRam::new(RAM_BYTES)?;
    let view = guest.view()?;
    view.write_page(9, &[7; 4096]);
    let mut out = Taken(vec![settings]);
    let mut encoder = Encoder::new(guest.pages(), 1 << 20);
    let mut copy = FullCopy::begin(&mut encoder, 0x17, &view, &mut out)?;
    copy.step(&mut encoder, &view, guest.pages(), &mut out)?;
    let mut capture = Capture::new(64);
    for epoch in 1..=2 {
        if settings & REPLAY == 0 || epoch == 1 {
            let data = [epoch as u8; 512];
            let change = Change::write(0, 512 * epoch, &data);
            let zeroes = Extent { disk: 0, bytes: 4096..8192 };
            for change in [change, Change::Zeroes { extent: zeroes, space: Space::May }] {
                encoder.change(&ft_checkpoint::wire::disk::encode(&change));
                Message::Disk(change).write(epoch, &mut out)?;
            }
        }
        if settings & REPLAY != 0 && epoch == 2 {
            let log = encoder.encode_log(epoch, b"a log", 5, EncodedCheckpoint::default())?;
            log.send(&mut out)?;
            continue;
        }
        let mut page = [epoch as u8; 4096];
        view.write_page(5, &page);
        page[100] = 0xee;
        view.write_page(9, &page);
        capture.reset();
        (capture.epoch, capture.pages) = (epoch, vec![5, 9, 11]);
        capture.state = b"registers".repeat(600);
        capture.copy_pages(&view)?;
        capture.samples = vec![Sample::of(9, &page), Sample::of(30, &[0; 4096])];
        encoder.encode(&capture, EncodedCheckpoint::default(), &mut out)?.sent?;
        Message::Paired { generation: GENERATION }.write(epoch, &mut out)?;
    }
    Ok(out.0)
}

/// See the module.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let made = [0, COMPARES, APPLIES, REPLAY].map(|settings| stream(settings).expect("a stream can be made"));
    made.into()
}
