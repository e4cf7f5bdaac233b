//! Condenses the VM's frames, seen at the ports of the client's bridge, into the sequence of speakers.
//!
//! A *stretch* is a run of frames from one port with none from another in between; a *burst* is a part of a stretch
//! without a long silence. Bursts keep the record small and still show at which times a port spoke. Each stretch also
//! keeps the progress of its TCP streams: a replica that resumed from a state older than the VM's last output gives
//! itself away, because it acknowledges less than was acknowledged before.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddrV4;

use serde::{Deserialize, Serialize};

use super::frame::{EthernetFrame, FrameKind, Segment, seq_before};

/// A silence longer than this ends a burst.
pub const BURST_GAP_NS: u64 = 5_000_000;
/// Frames are put into the order of their time stamps within this window: two ports' queues are not read in step.
const REORDER_NS: u64 = 20_000_000;
/// TCP streams kept per stretch; more are counted only.
const STREAMS_MAX: usize = 1024;

/// The record of one capture, as `ft-wire` writes it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct CaptureRecord {
    /// When the capture was ready (CLOCK_REALTIME).
    pub started_ns: u64,
    /// When it ended.
    pub ended_ns: u64,
    /// The stretches in order of time.
    pub speakers: Vec<Stretch>,
    /// How many times the speaker changed.
    pub switches: u64,
    /// Switches back to a port that had been replaced: two ports were heard alternately.
    pub overlaps: u64,
    /// Frames with the VM's address that neither the VM nor an announcement should send.
    pub strange_frames: u64,
    /// Frames the kernel dropped before they were read: the record is incomplete when this is not 0.
    pub dropped_frames: u64,
    /// TCP streams beyond the number kept per stretch.
    pub streams_left_out: u64,
}

/// A run of frames from one port.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Stretch {
    /// The port's name: the node behind it.
    pub port: String,
    /// Time of the first frame, CLOCK_REALTIME, as are all times here.
    pub first_ns: u64,
    /// Time of the last frame.
    pub last_ns: u64,
    /// How many.
    pub frames: u64,
    /// What the first was.
    pub first_kind: FrameKind,
    /// The bursts in order of time.
    pub bursts: Vec<Burst>,
    /// The TCP streams, by the other end's address.
    pub tcp: Vec<Stream>,
}

/// A part of a stretch without a silence longer than [`BURST_GAP_NS`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Burst {
    /// Time of the first frame.
    pub first_ns: u64,
    /// Time of the last frame.
    pub last_ns: u64,
    /// How many.
    pub frames: u64,
}

/// How far one TCP connection came during a stretch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stream {
    /// The VM's port.
    pub local_port: u16,
    /// The other end.
    pub peer: SocketAddrV4,
    /// Counts connections between these two addresses within the capture.
    pub incarnation: u32,
    /// Lowest sequence number sent.
    pub seq_low: u32,
    /// Sequence number after the last byte sent.
    pub seq_high: u32,
    /// Lowest acknowledgement sent, resets left aside.
    pub ack_low: Option<u32>,
    /// Highest acknowledgement sent.
    pub ack_high: Option<u32>,
    /// Resets sent.
    pub resets: u64,
}

impl Stream {
    /// The connection this is a part of.
    pub fn key(&self) -> StreamKey {
        (self.peer, self.local_port, self.incarnation)
    }

    fn new(segment: &Segment, incarnation: u32) -> Self {
        Self {
            local_port: segment.local_port,
            peer: segment.peer,
            incarnation,
            seq_low: segment.seq,
            seq_high: segment.seq_end,
            ack_low: None,
            ack_high: None,
            resets: 0,
        }
    }

    fn add(&mut self, segment: &Segment) {
        if segment.rst {
            self.resets += 1;
            return;
        }
        if seq_before(segment.seq, self.seq_low) {
            self.seq_low = segment.seq;
        }
        if seq_before(self.seq_high, segment.seq_end) {
            self.seq_high = segment.seq_end;
        }
        if let Some(ack) = segment.ack {
            if self.ack_low.is_none_or(|low| seq_before(ack, low)) {
                self.ack_low = Some(ack);
            }
            if self.ack_high.is_none_or(|high| seq_before(high, ack)) {
                self.ack_high = Some(ack);
            }
        }
    }
}

/// Names one TCP connection of the VM within a capture.
pub type StreamKey = (SocketAddrV4, u16, u32);

/// Builds a [`CaptureRecord`] from frames as they are read.
#[derive(Default)]
pub struct CaptureRecorder {
    ports: Vec<String>,
    waiting: BTreeMap<(u64, u64), (usize, EthernetFrame)>,
    arrivals: u64,
    newest_ns: u64,
    streams: BTreeMap<StreamKey, Stream>,
    incarnations: HashMap<(SocketAddrV4, u16), (u32, Option<u32>)>,
    capture: CaptureRecord,
    heard: BTreeSet<usize>,
}

impl CaptureRecorder {
    /// A recorder for ports of these names; frames name them by index.
    pub fn new(ports: Vec<String>, started_ns: u64) -> Self {
        Self { ports, capture: CaptureRecord { started_ns, ..CaptureRecord::default() }, ..Self::default() }
    }

    /// Takes a frame that arrived from port number `port` at `at_ns`.
    pub fn add(&mut self, port: usize, at_ns: u64, frame: EthernetFrame) {
        self.waiting.insert((at_ns, self.arrivals), (port, frame));
        self.arrivals += 1;
        self.newest_ns = self.newest_ns.max(at_ns);
        while let Some(oldest) = self.waiting.first_entry() {
            if oldest.key().0 + REORDER_NS > self.newest_ns {
                break;
            }
            let ((at_ns, _), (port, frame)) = oldest.remove_entry();
            self.record(port, at_ns, &frame);
        }
    }

    /// Ends the record.
    pub fn finish(mut self, ended_ns: u64, dropped_frames: u64) -> CaptureRecord {
        while let Some(((at_ns, _), (port, frame))) = self.waiting.pop_first() {
            self.record(port, at_ns, &frame);
        }
        self.end_stretch();
        self.capture.ended_ns = ended_ns;
        self.capture.dropped_frames = dropped_frames;
        self.capture
    }

    fn end_stretch(&mut self) {
        if let Some(stretch) = self.capture.speakers.last_mut() {
            stretch.tcp = std::mem::take(&mut self.streams).into_values().collect();
        }
    }

    fn record(&mut self, port: usize, at_ns: u64, frame: &EthernetFrame) {
        let name = &self.ports[port];
        if self.capture.speakers.last().is_none_or(|stretch| &stretch.port != name) {
            if !self.capture.speakers.is_empty() {
                self.capture.switches += 1;
            }
            if !self.heard.insert(port) {
                self.capture.overlaps += 1;
            }
            let stretch = Stretch {
                port: name.clone(),
                first_ns: at_ns,
                last_ns: at_ns,
                frames: 0,
                first_kind: frame.kind,
                bursts: Vec::new(),
                tcp: Vec::new(),
            };
            self.end_stretch();
            self.capture.speakers.push(stretch);
        }
        self.capture.strange_frames += u64::from(matches!(frame.kind, FrameKind::Other | FrameKind::Ipv6));
        if let Some(stretch) = self.capture.speakers.last_mut() {
            stretch.frames += 1;
            stretch.last_ns = at_ns;
            match stretch.bursts.last_mut() {
                Some(burst) if at_ns - burst.last_ns <= BURST_GAP_NS => {
                    burst.last_ns = at_ns;
                    burst.frames += 1;
                }
                _ => stretch.bursts.push(Burst { first_ns: at_ns, last_ns: at_ns, frames: 1 }),
            }
        }
        if let Some(segment) = &frame.segment {
            self.record_segment(segment);
        }
    }

    fn record_segment(&mut self, segment: &Segment) {
        let (incarnation, first_seq) =
            self.incarnations.entry((segment.peer, segment.local_port)).or_insert((0, None));
        if segment.syn && *first_seq != Some(segment.seq) {
            *incarnation += 1;
            *first_seq = Some(segment.seq);
        }
        let key = (segment.peer, segment.local_port, *incarnation);
        if self.streams.len() >= STREAMS_MAX && !self.streams.contains_key(&key) {
            self.capture.streams_left_out += 1;
            return;
        }
        self.streams.entry(key).or_insert_with(|| Stream::new(segment, *incarnation)).add(segment);
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::{parse, tests::tcp_frame};
    use super::*;

    const MS: u64 = 1_000_000;

    fn data(seq: u32, ack: u32) -> EthernetFrame {
        parse(&tcp_frame(0x10, seq, ack, 10)).unwrap()
    }

    fn recorder() -> CaptureRecorder {
        CaptureRecorder::new(vec!["alpha".into(), "beta".into()], 0)
    }

    #[test]
    fn frames_of_one_port_are_one_stretch_with_its_silences() {
        let mut recorder = recorder();
        for at in [0, 1, 2, 50, 51] {
            recorder.add(0, at * MS, data(1, 1));
        }
        let capture = recorder.finish(100 * MS, 0);
        assert_eq!((capture.speakers.len(), capture.switches, capture.overlaps), (1, 0, 0));
        let stretch = &capture.speakers[0];
        assert_eq!((stretch.frames, stretch.first_ns, stretch.last_ns), (5, 0, 51 * MS));
        let bursts: Vec<_> =
            stretch.bursts.iter().map(|b| (b.first_ns / MS, b.last_ns / MS, b.frames)).collect();
        assert_eq!(bursts, [(0, 2, 3), (50, 51, 2)]);
    }

    #[test]
    fn a_return_of_a_replaced_speaker_is_an_overlap() {
        let mut recorder = recorder();
        for (at, port) in [(0, 0), (1, 1), (2, 0)] {
            recorder.add(port, at * MS, data(1, 1));
        }
        let capture = recorder.finish(100 * MS, 0);
        assert_eq!((capture.switches, capture.overlaps), (2, 1));
    }

    #[test]
    fn frames_read_out_of_step_are_put_into_order() {
        let mut recorder = recorder();
        recorder.add(1, 5 * MS, data(1, 1));
        recorder.add(0, MS, data(1, 1));
        recorder.add(0, 2 * MS, data(1, 1));
        let capture = recorder.finish(100 * MS, 0);
        let order: Vec<_> = capture.speakers.iter().map(|s| (s.port.as_str(), s.frames)).collect();
        assert_eq!(order, [("alpha", 2), ("beta", 1)]);
    }

    #[test]
    fn streams_keep_how_far_each_speaker_came() {
        let mut recorder = recorder();
        recorder.add(0, 0, data(100, 5));
        recorder.add(0, MS, data(110, 9));
        recorder.add(1, 30 * MS, data(110, 7));
        let capture = recorder.finish(100 * MS, 0);
        let first = capture.speakers[0].tcp[0];
        let second = capture.speakers[1].tcp[0];
        assert_eq!(
            (first.seq_low, first.seq_high, first.ack_low, first.ack_high),
            (100, 120, Some(5), Some(9))
        );
        assert_eq!((second.ack_low, second.ack_high), (Some(7), Some(7)));
        assert_eq!(first.key(), second.key());
    }

    #[test]
    fn a_new_connection_between_the_same_ends_is_told_apart() {
        let mut recorder = recorder();
        for (at, seq) in [(0, 500), (1, 500), (2, 9000)] {
            recorder.add(0, at * MS, parse(&tcp_frame(0x12, seq, 1, 0)).unwrap());
        }
        let capture = recorder.finish(100 * MS, 0);
        let incarnations: Vec<_> = capture.speakers[0].tcp.iter().map(|s| s.incarnation).collect();
        assert_eq!(incarnations, [1, 2]);
    }
}
