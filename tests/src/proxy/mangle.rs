//! The effect of a fault on one direction of a byte stream, as a pure state machine: chunks in, acts out.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

/// The faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum MangleMode {
    /// Nothing is harmed.
    Pass,
    /// One byte is changed.
    Corrupt,
    /// The stream ends, in order (FIN), at this byte.
    Truncate,
    /// The connection is reset at this byte.
    DropConnection,
    /// From this byte on, both directions are swallowed while the connection stays open.
    Stall,
    /// The stream pauses once.
    Delay,
    /// Two neighbouring pieces change places.
    Reorder,
    /// A piece comes twice.
    Replay,
}

impl MangleMode {
    /// The modes that harm something.
    pub const FAULTS: [Self; 7] = [
        Self::Corrupt,
        Self::Truncate,
        Self::DropConnection,
        Self::Stall,
        Self::Delay,
        Self::Reorder,
        Self::Replay,
    ];
}

/// One fault, settled in every detail.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct ManglePlan {
    /// What is done.
    pub mode: MangleMode,
    /// To the byte at this offset of the stream.
    pub at_byte: u64,
    /// Length of the pieces for reorder and replay, at least 1.
    pub piece_bytes: usize,
    /// The bits that a corruption changes, never 0.
    pub mask: u8,
    /// The length of a delay.
    pub delay_ms: u64,
}

impl ManglePlan {
    /// The fault that `seed` stands for, somewhere in `after_bytes..=after_bytes + spread_bytes`.
    pub fn from_seed(mode: MangleMode, seed: u64, after_bytes: u64, spread_bytes: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        Self {
            mode,
            at_byte: after_bytes.saturating_add(random.random_range(0..=spread_bytes)),
            piece_bytes: random.random_range(1..=2048),
            mask: random.random_range(1..=255),
            delay_ms: random.random_range(10..=400),
        }
    }
}

/// What to do next with the stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MangleAct {
    /// Send these bytes on.
    Send(Vec<u8>),
    /// Report that the fault happened.
    Report,
    /// Wait.
    Pause(Duration),
    /// End the stream in order.
    End,
    /// Reset the connection.
    Reset,
    /// Swallow everything from here on, in both directions.
    Swallow,
}

/// Applies a plan, once, to one direction of one connection.
#[derive(Debug)]
pub struct Mangler {
    plan: ManglePlan,
    passed_bytes: u64,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Before,
    /// Collecting `piece_bytes` (replay) or twice that many (reorder).
    Collecting(Vec<u8>),
    Done,
}

impl Mangler {
    /// A mangler at the start of a stream.
    pub fn new(plan: ManglePlan) -> Self {
        let stage = if plan.mode == MangleMode::Pass { Stage::Done } else { Stage::Before };
        Self { plan, passed_bytes: 0, stage }
    }

    /// Takes the next bytes of the stream.
    pub fn feed(&mut self, chunk: &[u8]) -> Vec<MangleAct> {
        let mut acts = Vec::new();
        let mut rest = chunk;
        if let Stage::Before = self.stage {
            let before =
                usize::try_from(self.plan.at_byte - self.passed_bytes).unwrap_or(usize::MAX).min(rest.len());
            let (clean, hit) = rest.split_at(before);
            send(&mut acts, clean);
            self.passed_bytes += before as u64;
            rest = hit;
            if !rest.is_empty() {
                rest = self.strike(rest, &mut acts);
            }
        }
        if let Stage::Collecting(_) = self.stage {
            rest = self.collect(rest, &mut acts);
        }
        send(&mut acts, rest);
        acts
    }

    /// The stream has ended: what is still held back goes out as it is.
    pub fn finish(&mut self) -> Vec<MangleAct> {
        let mut acts = Vec::new();
        if let Stage::Collecting(held) = std::mem::replace(&mut self.stage, Stage::Done) {
            send(&mut acts, &held);
        }
        acts
    }

    fn strike<'a>(&mut self, bytes: &'a [u8], acts: &mut Vec<MangleAct>) -> &'a [u8] {
        self.stage = Stage::Done;
        match self.plan.mode {
            MangleMode::Pass => bytes,
            MangleMode::Corrupt => {
                let (first, rest) = bytes.split_at(1);
                acts.extend([MangleAct::Report, MangleAct::Send(vec![first[0] ^ self.plan.mask])]);
                rest
            }
            MangleMode::Truncate => {
                acts.extend([MangleAct::Report, MangleAct::End]);
                &[]
            }
            MangleMode::DropConnection => {
                acts.extend([MangleAct::Report, MangleAct::Reset]);
                &[]
            }
            MangleMode::Stall => {
                acts.extend([MangleAct::Report, MangleAct::Swallow]);
                &[]
            }
            MangleMode::Delay => {
                acts.extend([MangleAct::Report, MangleAct::Pause(Duration::from_millis(self.plan.delay_ms))]);
                bytes
            }
            MangleMode::Reorder | MangleMode::Replay => {
                self.stage = Stage::Collecting(Vec::new());
                bytes
            }
        }
    }

    fn collect<'a>(&mut self, bytes: &'a [u8], acts: &mut Vec<MangleAct>) -> &'a [u8] {
        let Stage::Collecting(held) = &mut self.stage else { return bytes };
        let piece = self.plan.piece_bytes;
        let wanted = if self.plan.mode == MangleMode::Reorder { piece * 2 } else { piece };
        let (taken, rest) = bytes.split_at((wanted - held.len()).min(bytes.len()));
        held.extend_from_slice(taken);
        if held.len() == wanted {
            acts.push(MangleAct::Report);
            let (first, second) = held.split_at(piece);
            if self.plan.mode == MangleMode::Reorder {
                send(acts, second);
                send(acts, first);
            } else {
                send(acts, first);
                send(acts, first);
            }
            self.stage = Stage::Done;
        }
        rest
    }
}

fn send(acts: &mut Vec<MangleAct>, bytes: &[u8]) {
    if !bytes.is_empty() {
        acts.push(MangleAct::Send(bytes.to_vec()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plan(mode: MangleMode, at_byte: u64, piece_bytes: usize) -> ManglePlan {
        ManglePlan { mode, at_byte, piece_bytes, mask: 0x80, delay_ms: 10 }
    }

    /// What comes out when `stream` is fed in chunks of `chunk` bytes: the bytes, and the other acts.
    fn run(plan: ManglePlan, stream: &[u8], chunk: usize) -> (Vec<u8>, Vec<MangleAct>) {
        let mut mangler = Mangler::new(plan);
        let mut acts: Vec<MangleAct> = stream.chunks(chunk).flat_map(|chunk| mangler.feed(chunk)).collect();
        acts.extend(mangler.finish());
        let mut bytes = Vec::new();
        let mut others = Vec::new();
        for act in acts {
            match act {
                MangleAct::Send(sent) => bytes.extend(sent),
                MangleAct::End | MangleAct::Reset | MangleAct::Swallow => {
                    others.push(act);
                    break;
                }
                MangleAct::Report | MangleAct::Pause(_) => others.push(act),
            }
        }
        (bytes, others)
    }

    #[test]
    fn corruption_changes_exactly_the_byte_chosen() {
        let (bytes, acts) = run(plan(MangleMode::Corrupt, 5, 1), b"0123456789", 3);
        assert_eq!(bytes, b"01234\xb56789");
        assert_eq!(acts, [MangleAct::Report]);
    }

    #[test]
    fn the_ends_come_after_exactly_the_bytes_chosen() {
        for (mode, act) in [
            (MangleMode::Truncate, MangleAct::End),
            (MangleMode::DropConnection, MangleAct::Reset),
            (MangleMode::Stall, MangleAct::Swallow),
        ] {
            let (bytes, acts) = run(plan(mode, 4, 1), b"0123456789", 3);
            assert_eq!((bytes.as_slice(), acts), (&b"0123"[..], vec![MangleAct::Report, act]));
        }
    }

    #[test]
    fn pieces_change_places_or_come_twice() {
        assert_eq!(run(plan(MangleMode::Reorder, 2, 3), b"0123456789", 4).0, b"0156723489");
        assert_eq!(run(plan(MangleMode::Replay, 2, 3), b"0123456789", 4).0, b"0123423456789");
    }

    #[test]
    fn a_seed_stands_for_one_plan_within_its_bounds() {
        for seed in 0..200 {
            let plan = ManglePlan::from_seed(MangleMode::Corrupt, seed, 1000, 50);
            assert_eq!(plan, ManglePlan::from_seed(MangleMode::Corrupt, seed, 1000, 50));
            assert!((1000..=1050).contains(&plan.at_byte) && plan.mask != 0 && plan.piece_bytes > 0);
        }
    }

    proptest! {
        #[test]
        fn harmless_modes_lose_nothing_however_the_stream_is_cut(
            stream in proptest::collection::vec(any::<u8>(), 0..300),
            chunk in 1usize..64,
            at_byte in 0u64..400,
            mode in prop_oneof![Just(MangleMode::Pass), Just(MangleMode::Delay)],
        ) {
            prop_assert_eq!(run(plan(mode, at_byte, 7), &stream, chunk).0, stream);
        }

        #[test]
        fn the_result_does_not_depend_on_how_the_stream_is_cut(
            stream in proptest::collection::vec(any::<u8>(), 0..300),
            chunk in 1usize..64,
            at_byte in 0u64..400,
            piece in 1usize..40,
            mode in proptest::sample::select(&MangleMode::FAULTS),
        ) {
            let plan = plan(mode, at_byte, piece);
            prop_assert_eq!(run(plan, &stream, chunk), run(plan, &stream, stream.len().max(1)));
        }
    }
}
