//! Frames and messages: every message comes out as it went in, and nothing else comes out.

use ft_checkpoint::wire::frame::{HEADER_BYTES, PAYLOAD_BYTES_MAX, VERSION};
use ft_checkpoint::wire::message::*;
use ft_checkpoint::wire::{FrameError, FrameReader, FrameType, FrameWriter, Message, WireSink, vm_id};
use proptest::prelude::*;
use std::io::{self, Read};

fn written(frames: &[(FrameType, u64, Vec<u8>)]) -> Vec<u8> {
    let mut writer = FrameWriter::new(Vec::new(), 5, 2);
    for (kind, epoch, payload) in frames {
        writer.frame(*kind, *epoch, payload).unwrap();
    }
    writer.flush().unwrap();
    assert_eq!(writer.bytes(), writer.get_ref().len() as u64);
    writer.into_inner()
}

/// Yields what the sizes say, and a time-out in between.
struct Dribble<'a> {
    bytes: &'a [u8],
    sizes: std::iter::Cycle<std::vec::IntoIter<usize>>,
    pause: bool,
}

impl Read for Dribble<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.pause = !self.pause;
        if self.pause {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let n = self.sizes.next().unwrap_or(1).clamp(1, into.len()).min(self.bytes.len());
        into[..n].copy_from_slice(&self.bytes[..n]);
        self.bytes = &self.bytes[n..];
        Ok(n)
    }
}

fn any_frames() -> impl Strategy<Value = Vec<(FrameType, u64, Vec<u8>)>> {
    let length = prop_oneof![0..50_usize, 0..40_000_usize];
    let frame = (0..FrameType::ALL.len(), any::<u64>(), length, any::<u8>())
        .prop_map(|(kind, epoch, length, byte)| (FrameType::ALL[kind], epoch, vec![byte; length]));
    prop::collection::vec(frame, 1..12)
}

fn any_identity() -> impl Strategy<Value = Identity> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..50);
    let machine = (bytes(), ".{0,40}");
    let engine = (prop::bool::ANY, any::<u64>());
    (any::<u16>(), ".{0,20}", ".{0,20}", any::<u64>(), machine, engine, bytes(), any::<u64>(), any::<u64>())
        .prop_map(
            |(protocol, vm, node, generation, (spec, boot), (replay, engine), cpu, features, lease_us)| {
                Identity {
                    protocol,
                    vm,
                    node,
                    generation,
                    spec,
                    boot,
                    mode: if replay { Mode::Replay } else { Mode::Checkpoint },
                    engine,
                    cpu,
                    features,
                    lease_us,
                }
            },
        )
}

fn any_message() -> impl Strategy<Value = Message<'static>> {
    let n = any::<u64>;
    prop_oneof![
        (any_identity(), prop::option::of((n(), n()))).prop_map(|(identity, held)| {
            Message::Hello(Hello { identity, held: held.map(|(pairing, epoch)| Held { pairing, epoch }) })
        }),
        (any_identity(), n(), prop::option::of(n())).prop_map(|(identity, pairing, resume_from)| {
            Message::Welcome(Welcome { identity, pairing, resume_from })
        }),
        (any::<u16>(), ".{0,90}").prop_map(|(code, text)| Message::Refuse(Refuse { code, text })),
        (n(), any::<u32>())
            .prop_map(|(pairing, total_pages)| Message::CopyBegin(CopyBegin { pairing, total_pages })),
        (n(), any::<u32>(), any::<u32>()).prop_map(|(pairing, pages, state_bytes)| {
            Message::EpochBegin(EpochBegin { pairing, pages, state_bytes })
        }),
        (n(), n()).prop_map(|(digest, stamp_us)| Message::EpochEnd(EpochEnd { digest, stamp_us })),
        (n(), n()).prop_map(|(epoch, stamp_us)| Message::Ack(Ack { epoch, stamp_us })),
        n().prop_map(|stamp_us| Message::Heartbeat { stamp_us }),
        n().prop_map(|stamp_us| Message::Echo { stamp_us }),
        n().prop_map(|generation| Message::Paired { generation }),
        n().prop_map(|epoch| Message::Switchover { epoch }),
        n().prop_map(|generation| Message::TookOver { generation }),
        (any::<u16>(), ".{0,90}").prop_map(|(reason, text)| Message::Bye(Bye { reason, text })),
        (n(), n(), 0..9usize).prop_map(|(digest, stamp_us, bytes)| {
            Message::LogEnd(LogEnd { digest, stamp_us }, &b"some log"[..bytes.min(8)])
        }),
        (n(), n(), n()).prop_map(|(count, lag_us, pending_bytes)| {
            Message::Position(Position { count, lag_us, pending_bytes })
        }),
        (n(), ".{0,90}").prop_map(|(count, what)| Message::Diverged(Diverged { count, what })),
        (
            ".{0,90}",
            prop::option::of((n(), n())),
            prop::option::of(n()),
            prop::option::of(n()),
            prop::option::of(".{0,90}"),
            any::<bool>(),
        )
            .prop_map(|(place, cell, named, age_us, trouble, asks)| {
                Message::Standing(Standing { place, cell, named, age_us, trouble, asks })
            }),
    ]
}

proptest! {
    #[test]
    fn frames_arrive_as_they_were_sent_however_they_are_cut_up(
        frames in any_frames(),
        sizes in prop::collection::vec(1..9000_usize, 1..9),
    ) {
        let bytes = written(&frames);
        let dribble = Dribble { bytes: &bytes, sizes: sizes.into_iter().cycle(), pause: false };
        let mut reader = FrameReader::new(dribble);
        let mut number = 0;
        loop {
            match reader.read() {
                Ok(frame) => {
                    let (kind, epoch, payload) = &frames[number];
                    prop_assert_eq!((frame.kind, frame.epoch, frame.payload), (*kind, *epoch, &payload[..]));
                    prop_assert_eq!((frame.vm, frame.generation, frame.sequence), (5, 2, number as u64));
                    number += 1;
                }
                Err(error) if error.is_timeout() => {}
                Err(FrameError::Closed) => break,
                Err(error) => panic!("{error}"),
            }
        }
        prop_assert_eq!(number, frames.len());
    }

    #[test]
    fn arbitrary_bytes_are_an_error_and_no_frame(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let error = FrameReader::new(&bytes[..]).read().unwrap_err();
        if bytes.is_empty() {
            prop_assert!(matches!(error, FrameError::Closed));
        } else if bytes.len() < HEADER_BYTES {
            let have_all = matches!(error, FrameError::Truncated { have, need: HEADER_BYTES } if have == bytes.len());
            prop_assert!(have_all);
        } else {
            prop_assert!(matches!(error, FrameError::BadMagic(_)));
        }
    }

    #[test]
    fn a_damaged_header_is_an_error_and_no_frame(
        payload in prop::collection::vec(any::<u8>(), 0..100),
        changes in prop::collection::vec((0..HEADER_BYTES, any::<u8>()), 1..4),
    ) {
        let good = written(&[(FrameType::Pages, 3, payload)]);
        let mut bad = good.clone();
        for (at, byte) in changes {
            bad[at] = byte;
        }
        prop_assert_eq!(FrameReader::new(&bad[..]).read().is_ok(), bad == good);
    }

    #[test]
    fn messages_arrive_as_they_were_sent(message in any_message(), epoch in any::<u64>()) {
        let mut writer = FrameWriter::new(Vec::new(), 5, 2);
        message.send(epoch, &mut writer).unwrap();
        let bytes = writer.into_inner();
        let mut reader = FrameReader::new(&bytes[..]);
        let frame = reader.read().unwrap();
        prop_assert_eq!(frame.epoch, epoch);
        prop_assert_eq!(Message::decode(&frame).unwrap(), message);
    }

    #[test]
    fn arbitrary_payloads_parse_or_are_malformed(
        kind in 0..FrameType::ALL.len(), payload in prop::collection::vec(any::<u8>(), 0..300)
    ) {
        let bytes = written(&[(FrameType::ALL[kind], 0, payload)]);
        let mut reader = FrameReader::new(&bytes[..]);
        match Message::decode(&reader.read().unwrap()) {
            Ok(message) => prop_assert_eq!(message.kind(), FrameType::ALL[kind]),
            Err(error) => prop_assert!(matches!(error, FrameError::Malformed { .. }), "{}", error),
        }
    }
}

fn one(vm: u64, generation: u64) -> Vec<u8> {
    let mut writer = FrameWriter::new(Vec::new(), vm, generation);
    Message::Echo { stamp_us: 1 }.send(0, &mut writer).unwrap();
    writer.into_inner()
}

fn refused(bytes: &[u8]) -> FrameError {
    let mut reader = FrameReader::new(bytes);
    reader.expect(vm_id("web"), 5);
    reader.read().unwrap_err()
}

/// Changes a byte and makes the checksum right again.
fn restamped(at: usize, byte: u8) -> Vec<u8> {
    let mut bytes = one(vm_id("web"), 5);
    bytes[at] = byte;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..44]), &bytes[48..]);
    bytes[44..48].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[test]
fn strangers_are_refused_by_name() {
    assert!(matches!(refused(&one(vm_id("db"), 5)), FrameError::WrongVm { .. }));
    assert!(matches!(refused(&one(vm_id("web"), 4)), FrameError::StaleGeneration { theirs: 4, ours: 5 }));
    assert!(matches!(refused(&restamped(0, 0)), FrameError::BadMagic(_)));
    assert!(matches!(refused(&restamped(4, 9)), FrameError::Version { theirs: 9, ours: VERSION }));
    assert!(matches!(refused(&restamped(6, 99)), FrameError::UnknownType(99)));
    assert!(matches!(refused(&restamped(32, 1)), FrameError::BadSequence { theirs: 1, ours: 0 }));
    assert!(matches!(refused(&restamped(43, 1)), FrameError::TooLong { .. }));
    assert!(matches!(
        refused(b"GET / HTTP/1.1\r\nHost: example.org\r\nAccept: */*\r\n\r\n"),
        FrameError::BadMagic(_)
    ));
}

#[test]
fn a_connections_generation_never_goes_back() {
    let mut writer = FrameWriter::new(Vec::new(), 1, 7);
    Message::Echo { stamp_us: 1 }.write(0, &mut writer).unwrap();
    writer.set_generation(6);
    Message::Echo { stamp_us: 1 }.send(0, &mut writer).unwrap();
    let bytes = writer.into_inner();
    let mut reader = FrameReader::new(&bytes[..]);
    reader.read().unwrap();
    assert!(matches!(reader.read().unwrap_err(), FrameError::StaleGeneration { theirs: 6, ours: 7 }));
}

#[test]
fn a_payload_beyond_the_bound_is_not_sent() {
    let mut writer = FrameWriter::new(Vec::new(), 1, 1);
    let error = writer.frame(FrameType::Pages, 1, &vec![0; PAYLOAD_BYTES_MAX + 1]).unwrap_err();
    assert!(matches!(error, FrameError::TooLong { .. }));
    writer.frame(FrameType::Pages, 1, &vec![0; PAYLOAD_BYTES_MAX]).unwrap();
    let bytes = writer.into_inner();
    assert_eq!(FrameReader::new(&bytes[..]).read().unwrap().payload.len(), PAYLOAD_BYTES_MAX);
}

#[test]
fn after_a_failed_write_nothing_more_is_written() {
    struct Full(usize);
    impl io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let n = bytes.len().min(self.0);
            self.0 -= n;
            Ok(n)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut writer = FrameWriter::new(Full(10), 1, 1);
    assert!(matches!(Message::Echo { stamp_us: 1 }.send(0, &mut writer), Err(FrameError::Io(_))));
    assert!(matches!(Message::Echo { stamp_us: 1 }.send(0, &mut writer), Err(FrameError::Broken)));
}
