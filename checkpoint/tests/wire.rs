//! Frames and messages: every message comes out as it went in, and nothing else comes out.

use ft_checkpoint::scrub::Sample;
use ft_checkpoint::wire::frame::{HEADER_BYTES, PAYLOAD_BYTES_MAX, VERSION};
use ft_checkpoint::wire::handshake::{PROTOCOL, Refusal, Side, check};
use ft_checkpoint::wire::identity::{FACTS_MAX, Fact, STATE_FORMAT, TEXT_BYTES_MAX, Versions, Weight};
use ft_checkpoint::wire::message::*;
use ft_checkpoint::wire::pages::HASHES_MAX;
use ft_checkpoint::wire::{FrameError, FrameReader, FrameType, FrameWriter, Message, WireSink, vm_id};
use ft_mirror::{Change, Extent, Space};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io::{self, Read};

fn written(frames: &[(FrameType, u64, Vec<u8>)]) -> Vec<u8> {
    let mut writer = FrameWriter::new(Vec::new(), 5, 2);
    writer.speak(PROTOCOL.newest);
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

fn any_fact() -> impl Strategy<Value = Fact> {
    let value = prop::collection::vec(any::<u8>(), 0..50);
    ("[a-f]{1,2}", 0..5u8, any::<bool>(), value, "[a-z /]{0,40}").prop_map(
        |(name, rule, required, value, shown)| {
            let weight = if required { Weight::Required } else { Weight::Optional };
            Fact { name, rule, weight, value, shown }
        },
    )
}

fn any_identity() -> impl Strategy<Value = Identity> {
    let names = ("[a-z]{0,20}", "[a-z]{0,20}", "[a-z]{0,20}");
    let facts = prop::collection::vec(any_fact(), 0..12);
    (any::<(u16, u16)>(), names, any::<u64>(), any::<u64>(), facts).prop_map(
        |((oldest, newest), (vm, node, peer), process, generation, facts)| {
            let protocol = Versions { oldest, newest };
            let by_name: BTreeMap<String, Fact> =
                facts.into_iter().map(|fact| (fact.name.clone(), fact)).collect();
            let facts = by_name.into_values().collect();
            Identity { protocol, vm, node, peer, process, generation, facts }
        },
    )
}

fn any_survey() -> impl Strategy<Value = Survey> {
    let files = prop_oneof![
        ".{0,90}".prop_map(HostFiles::Unread),
        ("[g-k]", any_fact()).prop_map(|(name, fact)| HostFiles::Known(vec![Fact { name, ..fact }])),
    ];
    let rest = (".{0,20}", any::<Option<u32>>(), prop::option::of(".{0,90}"), any::<u64>());
    (any_identity(), files, rest).prop_map(|(identity, files, (release, mtu, lacks, clock_us))| Survey {
        identity,
        files,
        release,
        mtu,
        lacks,
        clock_us,
    })
}

fn any_change() -> impl Strategy<Value = Change<'static>> {
    let extent = (any::<u16>(), 0..1_u64 << 40, 0..1_u64 << 40)
        .prop_map(|(disk, start, bytes)| Extent { disk, bytes: start..start + bytes });
    let write = (any::<u16>(), 0..1_u64 << 40, prop::collection::vec(any::<u8>(), 0..100));
    prop_oneof![
        write.prop_map(|(disk, offset, data)| Change::Write { disk, offset, data: data.into() }),
        extent.clone().prop_map(|extent| Change::Zeroes { extent, space: Space::Keep }),
        extent.clone().prop_map(|extent| Change::Zeroes { extent, space: Space::May }),
        extent.prop_map(|extent| Change::Discard { extent }),
    ]
}

fn any_message() -> impl Strategy<Value = Message<'static>> {
    let n = any::<u64>;
    prop_oneof![
        (any_identity(), prop::option::of((n(), n())), n()).prop_map(|(identity, held, pulse)| {
            let held = held.map(|(pairing, epoch)| Held { pairing, epoch });
            Message::Hello(Hello { identity, held, pulse })
        }),
        n().prop_map(|name| Message::Pulse { name }),
        (any_identity(), n(), prop::option::of(n())).prop_map(|(identity, pairing, resume_from)| {
            Message::Welcome(Welcome { identity, pairing, resume_from })
        }),
        (any::<u16>(), ".{0,90}").prop_map(|(code, text)| Message::Refuse(Refuse { code, text })),
        (n(), any::<u32>())
            .prop_map(|(pairing, total_pages)| Message::CopyBegin(CopyBegin { pairing, total_pages })),
        (n(), any::<u32>(), any::<u32>()).prop_map(|(pairing, pages, state_bytes)| {
            Message::EpochBegin(EpochBegin { pairing, pages, state_bytes })
        }),
        (n(), n(), prop::collection::vec((any::<u32>(), n()), 0..9)).prop_map(
            |(digest, stamp_us, samples)| {
                let samples = samples.into_iter().map(|(page, hash)| Sample { page, hash }).collect();
                Message::EpochEnd(EpochEnd { digest, stamp_us, samples })
            }
        ),
        (n(), n()).prop_map(|(epoch, stamp_us)| Message::Ack(Ack { epoch, stamp_us })),
        (n(), n()).prop_map(|(stamp_us, lease_us)| Message::Heartbeat { stamp_us, lease_us }),
        (n(), n()).prop_map(|(stamp_us, lease_us)| Message::Echo { stamp_us, lease_us }),
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
        (any::<bool>(), ".{0,90}")
            .prop_map(|(is_cut_off, trouble)| Message::Network(Network { is_cut_off, trouble })),
        prop::option::of(any_survey().prop_map(Box::new)).prop_map(Message::Survey),
        any_change().prop_map(Message::Disk),
        (any::<(u16, u32)>(), any::<[u8; 32]>())
            .prop_map(|((disk, extent), hash)| Message::Compare(Compare { disk, extent, hash })),
        (any::<(u16, u32)>(), any::<bool>()).prop_map(|((disk, extent), same)| Message::Compared(Compared {
            disk,
            extent,
            same
        })),
        (any::<(u16, u32)>(), prop::option::of(n()), prop::collection::vec(any::<u8>(), 0..90))
            .prop_map(|((disk, at), base, bits)| Message::DiskMap(DiskMap { disk, base, at, bits })),
        (n(), n()).prop_map(|(pairing, epoch)| Message::Settled(Settled { pairing, epoch })),
        any_page_hashes(0..40).prop_map(Message::PageHashes),
        (n(), ".{0,90}").prop_map(|(count, what)| Message::Diverged(Diverged { count, what })),
        (
            ".{0,90}",
            prop::option::of((n(), n())),
            prop::option::of(n()),
            prop::option::of(n()),
            prop::option::of(".{0,90}"),
            prop::option::of((".{0,90}", n())),
            any::<bool>(),
            n(),
        )
            .prop_map(|(place, cell, named, asked_us, trouble, unfit, asks, stamp_us)| {
                let standing = Standing { place, cell, named, asked_us, trouble, unfit, asks, stamp_us };
                Message::Standing(standing)
            }),
    ]
}

fn any_page_hashes(hashes: std::ops::Range<usize>) -> impl Strategy<Value = PageHashes> {
    let hashes = prop::collection::vec(any::<[u8; 16]>(), hashes);
    let run = (0..1_u32 << 20, hashes).prop_map(|(holes, hashes)| HashRun { holes, hashes });
    (0..1_u32 << 31, prop::collection::vec(run, 0..9)).prop_map(|(first, runs)| PageHashes { first, runs })
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
        writer.speak(PROTOCOL.newest);
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

proptest! {
    #[test]
    fn page_hashes_beyond_a_bound_are_malformed_and_others_name_their_pages(
        said in any_page_hashes(0..400), first in prop_oneof![0..u32::MAX, u32::MAX - 2000..u32::MAX],
    ) {
        let said = PageHashes { first, ..said };
        let mut writer = FrameWriter::new(Vec::new(), 5, 2);
        writer.speak(PROTOCOL.newest);
        Message::PageHashes(said.clone()).send(0, &mut writer).unwrap();
        let bytes = writer.into_inner();
        let mut reader = FrameReader::new(&bytes[..]);
        let decoded = Message::decode(&reader.read().unwrap());
        let hashes: usize = said.runs.iter().map(|run| run.hashes.len()).sum();
        let holes: u64 = said.runs.iter().map(|run| u64::from(run.holes)).sum();
        if hashes > HASHES_MAX || u64::from(first) + holes + hashes as u64 > u64::from(u32::MAX) {
            let error = decoded.unwrap_err();
            prop_assert!(matches!(error, FrameError::Malformed { .. }), "{}", error);
        } else {
            let pages: Vec<u32> = said.hashes().map(|(page, _)| page).collect();
            prop_assert!(pages.is_sorted() && pages.len() == hashes);
            prop_assert!(pages.last().is_none_or(|last| *last < said.end()));
            prop_assert_eq!(decoded.unwrap(), Message::PageHashes(said));
        }
    }
}

fn one(vm: u64, generation: u64) -> Vec<u8> {
    let mut writer = FrameWriter::new(Vec::new(), vm, generation);
    Message::Echo { stamp_us: 1, lease_us: 2 }.send(0, &mut writer).unwrap();
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

proptest! {
    #[test]
    fn two_identities_are_judged_alike_from_both_sides(ours in any_identity(), theirs in any_identity(), same: bool) {
        // Mostly they differ in everything; half of the time only in what they bring.
        let mut theirs = theirs;
        if same {
            (theirs.protocol, theirs.vm) = (ours.protocol, ours.vm.clone());
            (theirs.node, theirs.peer) = (ours.peer.clone(), ours.node.clone());
            theirs.generation = ours.generation;
        }
        let (mut ours, format) = (ours, Fact::versions(STATE_FORMAT, Versions { oldest: 3, newest: 4 }));
        for identity in [&mut ours, &mut theirs] {
            identity.facts.push(format.clone());
        }
        let fits = |theirs: &[u8], ours: &[u8]| if theirs == ours { Ok(()) } else { Err("not the same") };
        let here = check(&theirs, &ours, Side::Primary, fits);
        let there = check(&ours, &theirs, Side::Backup, fits);
        prop_assert_eq!(here.as_ref().map_err(Refusal::code), there.as_ref().map_err(Refusal::code));
        if let Err(refusal) = here {
            prop_assert!(refusal.to_string().lines().count() <= 21);
        }
    }
}

#[test]
fn an_identity_with_more_than_any_node_has_is_malformed() {
    let identity = |facts: usize, node: String| Identity {
        protocol: Versions::only(1),
        vm: "web".into(),
        node,
        peer: "beta".into(),
        process: 1,
        generation: 1,
        facts: (0..facts).map(|n| Fact::equal(n.to_string(), n)).collect(),
    };
    let read = |identity: Identity| {
        let mut writer = FrameWriter::new(Vec::new(), 1, 1);
        Message::Hello(Hello { identity, held: None, pulse: 3 }).send(0, &mut writer).unwrap();
        let bytes = writer.into_inner();
        let mut reader = FrameReader::new(&bytes[..]);
        let frame = reader.read().unwrap();
        Message::decode(&frame).map(drop)
    };
    assert!(read(identity(FACTS_MAX, "alpha".into())).is_ok());
    let refused = [
        identity(FACTS_MAX + 1, "alpha".into()),
        identity(1, "a".repeat(TEXT_BYTES_MAX + 1)),
        identity(1, "alpha\x1b[2J".into()),
    ];
    let mut twice = identity(2, "alpha".into());
    twice.facts[1].name = twice.facts[0].name.clone();
    for identity in refused.into_iter().chain([twice]) {
        assert!(matches!(read(identity), Err(FrameError::Malformed { .. })));
    }
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
    Message::Echo { stamp_us: 1, lease_us: 2 }.write(0, &mut writer).unwrap();
    writer.set_generation(6);
    Message::Echo { stamp_us: 1, lease_us: 2 }.send(0, &mut writer).unwrap();
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
    assert!(matches!(
        Message::Echo { stamp_us: 1, lease_us: 2 }.send(0, &mut writer),
        Err(FrameError::Io(_))
    ));
    assert!(matches!(
        Message::Echo { stamp_us: 1, lease_us: 2 }.send(0, &mut writer),
        Err(FrameError::Broken)
    ));
}
