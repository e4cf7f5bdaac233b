//! Compares the frames on the wire with the cell's owners (invariants I1 and I2, as seen from outside).
//!
//! The owners' history is condensed into *windows*: runs of generations with the same owner. The rules:
//!
//! - *ownership*: each burst of frames lies within one window of its speaker, and the windows taken in the order of the
//!   frames never go back. So the speakers are a subsequence of the owners, and a replica that speaks after another
//!   took over, without winning the cell again, is found whatever the clocks say.
//! - *history*: the cell's generation only rises, and the cell never loses its owner.
//! - *coverage*: after a change of speaker no TCP stream acknowledges less than it had before: every frame so far came
//!   out of a state that the new speaker holds.
//! - *evidence*: a capture with dropped frames, or frames that no guest sends, proves nothing.

use std::collections::HashMap;

use serde::Serialize;

use super::frame::seq_before;
use super::owners::CellRecord;
use super::speakers::{Burst, CaptureRecord, StreamKey, Stretch};

/// A frame may arrive this long after its speaker's window has ended: it was sent before and queued on the way.
pub const LATE_NS: u64 = 10_000_000;
/// A frame may seem to come this much before its speaker's window: file times are those of the last clock tick.
pub const EARLY_NS: u64 = 1_000_000;

/// What [`check`] found.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct WireVerdict {
    /// No violation.
    pub ok: bool,
    /// Changes of speaker.
    pub switches: u64,
    /// Ports in the order in which they spoke.
    pub speakers: Vec<String>,
    /// The VM's frames.
    pub frames: u64,
    /// Resets sent by the VM, per capture.
    pub resets: u64,
    /// The generation the history ends with.
    pub last_generation: Option<u64>,
    /// Generations the watcher did not see, because they were replaced too soon.
    pub generations_unseen: u64,
    /// Every breach of a rule.
    pub violations: Vec<Violation>,
}

/// One breach of a rule.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Violation {
    /// Which rule.
    pub rule: Rule,
    /// When (CLOCK_REALTIME).
    pub t_ns: u64,
    /// What happened, in words.
    pub text: String,
}

/// The rules; see the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// A port spoke without owning the cell.
    Ownership,
    /// The cell's history is impossible.
    History,
    /// A speaker knew less than had been said.
    Coverage,
    /// The capture is unfit to prove anything.
    Evidence,
}

struct EmitWindow {
    owner: Option<String>,
    generation: u64,
    from_ns: u64,
    until_ns: u64,
}

/// Applies all rules.
pub fn check(capture: &CaptureRecord, history: &[CellRecord]) -> WireVerdict {
    let mut violations = Vec::new();
    check_evidence(capture, &mut violations);
    let generations_unseen = check_history(history, &mut violations);
    check_ownership(&capture.speakers, &windows(history), &mut violations);
    check_coverage(&capture.speakers, &mut violations);
    WireVerdict {
        ok: violations.is_empty(),
        switches: capture.switches,
        speakers: capture.speakers.iter().map(|stretch| stretch.port.clone()).collect(),
        frames: capture.speakers.iter().map(|stretch| stretch.frames).sum(),
        resets: capture.speakers.iter().flat_map(|stretch| &stretch.tcp).map(|stream| stream.resets).sum(),
        last_generation: history.last().map(|record| record.generation),
        generations_unseen,
        violations,
    }
}

fn check_evidence(capture: &CaptureRecord, violations: &mut Vec<Violation>) {
    let mut report = |count: u64, what: &str| {
        if count > 0 {
            violations.push(Violation {
                rule: Rule::Evidence,
                t_ns: capture.ended_ns,
                text: format!("{count} {what}"),
            });
        }
    };
    report(capture.dropped_frames, "frames were dropped by the capture");
    report(capture.strange_frames, "frames are neither the guest's nor an announcement");
    report(capture.streams_left_out, "segments belong to TCP streams beyond the capture's bound");
}

fn check_history(history: &[CellRecord], violations: &mut Vec<Violation>) -> u64 {
    let mut unseen = 0;
    for pair in history.windows(2) {
        let [before, after] = pair else { continue };
        let mut report = |text: String| {
            violations.push(Violation { rule: Rule::History, t_ns: after.t_ns, text });
        };
        let same_value = (after.generation, &after.owner, &after.standby)
            == (before.generation, &before.owner, &before.standby);
        if after.generation <= before.generation && !same_value {
            report(format!("the cell went from generation {} to {}", before.generation, after.generation));
        }
        if before.owner.is_some() && after.owner.is_none() {
            report(format!("the cell lost its owner in generation {}", after.generation));
        }
        unseen += after.generation.saturating_sub(before.generation).saturating_sub(1);
    }
    unseen
}

fn windows(history: &[CellRecord]) -> Vec<EmitWindow> {
    let mut windows: Vec<EmitWindow> = Vec::new();
    for record in history {
        match windows.last_mut() {
            Some(last) if last.owner == record.owner => continue,
            Some(last) => last.until_ns = record.t_ns.saturating_add(LATE_NS),
            None => {}
        }
        windows.push(EmitWindow {
            owner: record.owner.clone(),
            generation: record.generation,
            from_ns: record.written_ns.saturating_sub(EARLY_NS),
            until_ns: u64::MAX,
        });
    }
    windows
}

/// One violation for each stretch is enough to fail it; thousands of bursts would bury the first.
fn check_ownership(speakers: &[Stretch], windows: &[EmitWindow], violations: &mut Vec<Violation>) {
    let mut reached = 0;
    for (number, stretch) in speakers.iter().enumerate() {
        // A new speaker needs a window of its own, even within the tolerances of the times.
        let mine = |window: &EmitWindow| window.owner.as_deref() == Some(&*stretch.port);
        for burst in &stretch.bursts {
            let found = windows.iter().enumerate().skip(reached).find(|(_, window)| {
                mine(window) && window.from_ns <= burst.first_ns && burst.last_ns <= window.until_ns
            });
            match found {
                Some((index, _)) => reached = index,
                None => {
                    violations.push(ownership_violation(number, stretch, burst, windows, reached));
                    break;
                }
            }
        }
    }
}

fn ownership_violation(
    number: usize,
    stretch: &Stretch,
    burst: &Burst,
    windows: &[EmitWindow],
    reached: usize,
) -> Violation {
    let holder = match windows.iter().rev().find(|window| window.from_ns <= burst.last_ns) {
        Some(EmitWindow { owner: Some(owner), generation, .. }) => {
            format!("`{owner}` (since generation {generation})")
        }
        _ => "nobody".to_owned(),
    };
    let replaced = match windows.get(reached).and_then(|window| window.owner.as_ref()) {
        Some(owner) if *owner != stretch.port => format!(", and `{owner}` had spoken as the owner before"),
        _ => String::new(),
    };
    Violation {
        rule: Rule::Ownership,
        t_ns: burst.first_ns,
        text: format!(
            "stretch {number}: `{}` sent {} frames within {} us while the cell's owner was {holder}{replaced}",
            stretch.port,
            burst.frames,
            (burst.last_ns - burst.first_ns) / 1000,
        ),
    }
}

fn check_coverage(speakers: &[Stretch], violations: &mut Vec<Violation>) {
    let mut said: HashMap<StreamKey, (u32, &str)> = HashMap::new();
    for stretch in speakers {
        for stream in &stretch.tcp {
            let (Some(low), Some(high)) = (stream.ack_low, stream.ack_high) else { continue };
            let before = said.get(&stream.key()).copied();
            if let Some((acked, port)) = before
                && port != stretch.port
                && seq_before(low, acked)
            {
                violations.push(Violation {
                    rule: Rule::Coverage,
                    t_ns: stretch.first_ns,
                    text: format!(
                        "to {}: `{}` acknowledged {} bytes less than `{port}` had before it: output had left before \
                         the checkpoint that covers it",
                        stream.peer,
                        stretch.port,
                        acked.wrapping_sub(low),
                    ),
                });
            }
            if before.is_none_or(|(acked, _)| !seq_before(high, acked)) {
                said.insert(stream.key(), (high, &stretch.port));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::{parse, tests::tcp_frame};
    use super::super::speakers::CaptureRecorder;
    use super::*;

    const MS: u64 = 1_000_000;

    /// Frames as (time in ms, port, acknowledgement).
    fn heard(frames: &[(u64, usize, u32)]) -> CaptureRecord {
        let mut recorder = CaptureRecorder::new(vec!["alpha".into(), "beta".into()], 0);
        for &(at, port, ack) in frames {
            recorder.add(port, at * MS, parse(&tcp_frame(0x10, 1, ack, 10)).unwrap());
        }
        recorder.finish(10_000 * MS, 0)
    }

    /// Owners as (time in ms, generation, owner).
    fn owned(records: &[(u64, u64, &str)]) -> Vec<CellRecord> {
        let record = |&(at, generation, owner): &(u64, u64, &str)| CellRecord {
            t_ns: at * MS,
            written_ns: at * MS,
            generation,
            owner: Some(owner.to_owned()),
            standby: None,
        };
        records.iter().map(record).collect()
    }

    fn rules(verdict: &WireVerdict) -> Vec<Rule> {
        verdict.violations.iter().map(|violation| violation.rule).collect()
    }

    const TAKE_OVER: [(u64, u64, &str); 3] = [(0, 1, "alpha"), (50, 2, "alpha"), (300, 3, "beta")];

    #[test]
    fn a_clean_take_over_passes() {
        let verdict = check(&heard(&[(10, 0, 1), (250, 0, 5), (310, 1, 5), (400, 1, 9)]), &owned(&TAKE_OVER));
        assert_eq!(verdict.violations, []);
        assert_eq!((verdict.switches, verdict.speakers.len(), verdict.frames), (1, 2, 4));
    }

    #[test]
    fn switchovers_there_and_back_pass() {
        let owners = owned(&[(0, 1, "alpha"), (300, 2, "beta"), (600, 3, "alpha")]);
        let verdict = check(&heard(&[(10, 0, 1), (310, 1, 5), (610, 0, 9)]), &owners);
        assert_eq!(verdict.violations, []);
    }

    #[test]
    fn a_stale_speaker_after_the_take_over_is_found() {
        let verdict = check(&heard(&[(10, 0, 1), (310, 1, 5), (900, 0, 5), (901, 1, 5)]), &owned(&TAKE_OVER));
        assert_eq!(rules(&verdict), [Rule::Ownership]);
    }

    #[test]
    fn a_stale_frame_right_after_the_new_owners_first_is_found_within_the_tolerance_of_times() {
        let verdict = check(&heard(&[(10, 0, 1), (301, 1, 5), (302, 0, 5)]), &owned(&TAKE_OVER));
        assert_eq!(rules(&verdict), [Rule::Ownership]);
    }

    #[test]
    fn a_speaker_that_goes_on_while_the_new_owner_is_silent_is_found() {
        let verdict = check(&heard(&[(10, 0, 1), (400, 0, 5)]), &owned(&TAKE_OVER));
        assert_eq!(rules(&verdict), [Rule::Ownership]);
    }

    #[test]
    fn a_backup_that_speaks_before_it_owns_is_found() {
        let verdict = check(&heard(&[(10, 0, 1), (280, 1, 5), (310, 1, 5)]), &owned(&TAKE_OVER));
        assert_eq!(rules(&verdict), [Rule::Ownership]);
    }

    #[test]
    fn frames_without_any_owner_are_found() {
        assert_eq!(rules(&check(&heard(&[(10, 0, 1)]), &[])), [Rule::Ownership]);
    }

    #[test]
    fn a_cell_that_goes_back_is_found() {
        let verdict = check(&heard(&[]), &owned(&[(0, 4, "alpha"), (1, 3, "alpha")]));
        assert_eq!(rules(&verdict), [Rule::History]);
        let verdict = check(&heard(&[]), &owned(&[(0, 4, "alpha"), (1, 4, "beta")]));
        assert_eq!(rules(&verdict), [Rule::History]);
    }

    #[test]
    fn an_acknowledgement_taken_back_at_a_take_over_is_found() {
        let verdict = check(&heard(&[(10, 0, 100), (310, 1, 90), (320, 1, 200)]), &owned(&TAKE_OVER));
        assert_eq!(rules(&verdict), [Rule::Coverage]);
    }

    #[test]
    fn a_capture_that_dropped_frames_proves_nothing() {
        let mut capture = heard(&[(10, 0, 1)]);
        capture.dropped_frames = 1;
        assert_eq!(rules(&check(&capture, &owned(&TAKE_OVER))), [Rule::Evidence]);
    }

    #[test]
    fn generations_that_were_missed_are_counted() {
        let verdict = check(&heard(&[]), &owned(&[(0, 1, "alpha"), (1, 4, "alpha")]));
        assert!(verdict.ok);
        assert_eq!(verdict.generations_unseen, 2);
    }
}
