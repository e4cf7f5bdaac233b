//! Frames and messages of the replication link, in any order and from either side. Half of the inputs are a
//! connection's bytes as they are, half are frames whose checksums and numbers are put right. What is decoded encodes
//! to the same.

use crate::input::{FuzzInput, put_piece};
use ft_checkpoint::compare::KeptPages;
use ft_checkpoint::wire::handshake::{Side, check};
use ft_checkpoint::wire::identity::{Comparison, Fact, Identity, Versions};
use ft_checkpoint::wire::message::{Compare, DiskMap, Hello, Network, Standing, Welcome};
use ft_checkpoint::wire::pages::{HashRun, PageHashes};
use ft_checkpoint::wire::{Frame, FrameReader, FrameType, FrameWriter, Message, WireSink, vm_id};
use std::io::Read;

const VM: &str = "web";

/// A connection that gives a few bytes at a time.
struct Trickle<'a>(&'a [u8], usize);

impl Read for Trickle<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.1 = self.1 % 97 + 13;
        let now = self.1.min(into.len()).min(self.0.len());
        let (taken, rest) = self.0.split_at(now);
        into[..now].copy_from_slice(taken);
        self.0 = rest;
        Ok(now)
    }
}

/// See the module.
pub(crate) fn run(input: &[u8]) {
    let Some((settings, rest)) = input.split_first() else { return };
    let made;
    let bytes = if settings & 1 == 0 {
        rest
    } else {
        made = framed(rest);
        &made
    };
    let mut reader = FrameReader::new(Trickle(bytes, (*settings).into()));
    if settings & 2 != 0 {
        reader.expect(vm_id(VM), 0);
    }
    let kept = KeptPages::of_pairing(5);
    let mut frames = 0;
    loop {
        match reader.read() {
            Ok(frame) => take(&frame, &kept),
            Err(error) => {
                assert!(!error.is_timeout() && !error.to_string().is_empty());
                return;
            }
        }
        frames += 1;
        assert!(frames <= bytes.len() / 48, "a frame has a header");
    }
}

/// The same bytes, each piece in a frame.
fn framed(rest: &[u8]) -> Vec<u8> {
    let mut input = FuzzInput::new(rest);
    let mut writer = FrameWriter::new(Vec::new(), vm_id(VM), 1);
    writer.speak(u16::MAX);
    while !input.is_empty() {
        let kind = FrameType::ALL[usize::from(input.u8()) % FrameType::ALL.len()];
        let epoch = input.u8().into();
        writer.frame(kind, epoch, input.piece()).expect("a vector takes everything");
    }
    writer.flush().expect("a vector takes everything");
    writer.into_inner()
}

/// One frame, decoded and, where it is one of a handshake or a copy, judged.
fn take(frame: &Frame<'_>, kept: &KeptPages) {
    let Ok(message) = Message::decode(frame) else { return };
    assert_eq!(message.kind(), frame.kind);
    let mut writer = FrameWriter::new(Vec::new(), frame.vm, frame.generation);
    writer.speak(u16::MAX);
    message.send(frame.epoch, &mut writer).expect("what was decoded fits a frame");
    let again = writer.into_inner();
    let mut reader = FrameReader::new(&again[..]);
    let again = reader.read().expect("it is a frame");
    assert_eq!(Message::decode(&again).expect("it is a message"), message);

    let theirs = match &message {
        Message::Hello(hello) => Some((&hello.identity, Side::Primary)),
        Message::Welcome(welcome) => Some((&welcome.identity, Side::Backup)),
        Message::PageHashes(said) => {
            if kept.tell(said).is_ok() {
                assert_eq!(
                    said.hashes().count(),
                    said.runs.iter().map(|run| run.hashes.len()).sum::<usize>()
                );
            }
            None
        }
        _ => None,
    };
    if let Some((theirs, side)) = theirs {
        let fits = |theirs: &[u8], ours: &[u8]| if theirs == ours { Ok(()) } else { Err("it does not fit") };
        match check(theirs, &identity("alpha", "beta"), side, fits) {
            Ok(agreed) => assert_eq!(theirs.vm, VM, "{agreed:?}"),
            Err(refusal) => assert!(!refusal.to_message().text.is_empty()),
        }
    }
}

fn identity(node: &str, peer: &str) -> Identity {
    let facts = vec![
        Fact::equal("memory", 64),
        Fact::versions("format of the machine's state", Versions { oldest: 4, newest: 5 }),
        Fact::processor(vec![1, 2, 3]),
    ];
    assert!(facts.iter().all(|fact| Comparison::of(fact.rule).is_some()));
    let (protocol, vm) = (Versions { oldest: 4, newest: 5 }, VM.to_owned());
    Identity { protocol, vm, node: node.into(), peer: peer.into(), process: 9, generation: 1, facts }
}

/// See the module.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let theirs = identity("beta", "alpha");
    let hashes =
        vec![HashRun { holes: 2, hashes: vec![[7; 16]; 3] }, HashRun { holes: 0, hashes: Vec::new() }];
    let messages = [
        Message::Hello(Hello { identity: theirs.clone(), held: None, pulse: 1 }),
        Message::Welcome(Welcome { identity: theirs, pairing: 5, resume_from: Some(3) }),
        Message::PageHashes(PageHashes { first: 0, runs: hashes }),
        Message::Standing(Standing { place: "file".into(), cell: Some((1, 2)), ..Standing::default() }),
        Message::Network(Network { is_cut_off: true, trouble: "no carrier".into() }),
        Message::Compare(Compare { disk: 0, extent: 3, hash: [1; 32] }),
        Message::DiskMap(DiskMap { disk: 0, base: Some(5), at: 8, bits: vec![0xff; 4] }),
        Message::Heartbeat { stamp_us: 5, lease_us: 9 },
        Message::Log(b"a part"),
        Message::Survey(None),
        Message::Decline { text: "busy".into() },
    ];
    let mut whole = FrameWriter::new(vec![2], vm_id(VM), 1);
    whole.speak(u16::MAX);
    let mut pieces = vec![3];
    for message in &messages {
        message.write(1, &mut whole).expect("a vector takes everything");
        let mut alone = FrameWriter::new(Vec::new(), 0, 0);
        alone.speak(u16::MAX);
        message.send(0, &mut alone).expect("a vector takes everything");
        let kind = FrameType::ALL.iter().position(|kind| *kind == message.kind()).unwrap_or(0);
        pieces.extend_from_slice(&[kind as u8, 1]);
        put_piece(&mut pieces, &alone.into_inner()[48..]);
    }
    whole.flush().expect("a vector takes everything");
    vec![whole.into_inner(), pieces]
}
