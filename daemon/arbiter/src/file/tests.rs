//! Tests of mistakes that only the file arbiter can make: with its files, and with storage whose answers say less than
//! they seem to.

use super::record::file_name;
use super::*;
use crate::{CellId, Trouble};
use nix::errno::Errno;
use std::fs;
use std::path::PathBuf;

fn cell(generation: u64, owner: &str) -> Cell {
    Cell { id: CellId(0xce11), generation, owner: Some(owner.to_owned()), standby: None }
}

struct Rig {
    path: PathBuf,
    arbiter: FileArbiter,
    _shared: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let shared = tempfile::tempdir().unwrap();
        let path = shared.path().join("web.cell");
        Self { arbiter: FileArbiter::new(&path, "web"), path, _shared: shared }
    }

    fn win(&mut self, generation: u64) {
        let expected = (generation > 1).then(|| generation - 1);
        let new = cell(generation, "alpha");
        assert_eq!(self.arbiter.compare_and_set(expected, new.clone()), Outcome::Won(new));
    }

    fn file(&self, generation: u64) -> PathBuf {
        self.path.join(file_name(generation))
    }

    /// Answers the calls of `attempt` from the directory, but for those that `instead` answers.
    fn finish<T>(
        &mut self,
        mut attempt: Attempt<T>,
        mut instead: impl FnMut(&mut Self, &Call) -> Option<Answer>,
    ) -> T {
        let mut next = attempt.begin();
        loop {
            match next {
                Next::Done(result) => return result,
                Next::Call(call) => {
                    let answer =
                        instead(self, &call).unwrap_or_else(|| self.arbiter.directory.perform(&call));
                    next = attempt.resume(answer);
                }
            }
        }
    }
}

#[test]
fn history_is_kept_short_and_leaves_no_temporary_files() {
    let mut rig = Rig::new();
    (1..=100).for_each(|generation| rig.win(generation));
    let names: Vec<_> = fs::read_dir(&rig.path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names.len() as u64, GENERATIONS_KEPT);
    assert!(names.iter().all(|name| generation_of(name).is_some_and(|generation| generation > 36)));
}

#[test]
fn probing_leaves_nothing_behind_with_a_cell_or_without_one() {
    let mut rig = Rig::new();
    rig.arbiter.probe().unwrap();
    assert_eq!(fs::read_dir(rig.path.parent().unwrap()).unwrap().count(), 0);
    rig.win(1);
    rig.arbiter.probe().unwrap();
    assert_eq!(fs::read_dir(&rig.path).unwrap().count(), 1);
}

#[test]
fn a_claim_of_a_number_that_has_become_free_again_comes_too_late() {
    let mut rig = Rig::new();
    (1..=4).for_each(|generation| rig.win(generation));
    let sleeper = rig.arbiter.cell.compare_and_set(Some(4), cell(5, "beta"), "sleeper");
    let mut asleep = true;
    let outcome = rig.finish(sleeper, |rig, call| {
        // It has seen generation 4, and goes on only when that is history.
        if matches!(call, Call::Write(..)) && std::mem::take(&mut asleep) {
            (5..=100).for_each(|generation| rig.win(generation));
        }
        None
    });
    assert_eq!(outcome, Outcome::Lost(Some(cell(100, "alpha"))));
    assert!(rig.file(5).exists(), "the number was free");
    rig.win(101);
    assert!(!rig.file(5).exists());
}

#[test]
fn a_missing_parent_is_an_error_and_not_an_empty_cell() {
    let shared = tempfile::tempdir().unwrap();
    let mut arbiter = FileArbiter::new(&shared.path().join("not-mounted/web.cell"), "web");
    let error = arbiter.read().unwrap_err();
    assert!(matches!(error.trouble, Trouble::Storage { errno: Errno::ENOENT, .. }), "{error}");
    assert_eq!(arbiter.probe(), Err(error.clone()));
    assert_eq!(arbiter.compare_and_set(None, cell(1, "alpha")), Outcome::NotAttempted(error));
}

#[test]
fn the_cell_of_another_vm_is_refused() {
    let mut rig = Rig::new();
    rig.win(1);
    let mut other = FileArbiter::new(&rig.path, "db");
    let error = other.read().unwrap_err();
    assert_eq!(error.trouble, Trouble::OtherVm { found: "web".into(), vm: "db".into() });
    assert_eq!(other.compare_and_set(Some(1), cell(2, "alpha")), Outcome::NotAttempted(error));
}

#[test]
fn a_torn_cell_is_an_error_even_with_sound_older_generations() {
    let mut rig = Rig::new();
    rig.win(1);
    rig.win(2);
    let is_damaged = |rig: &mut Rig| {
        let error = rig.arbiter.read().unwrap_err();
        assert!(matches!(&error.trouble, Trouble::Damaged { file, .. } if *file == file_name(2)), "{error}");
        assert_eq!(rig.arbiter.compare_and_set(Some(2), cell(3, "beta")), Outcome::NotAttempted(error));
    };
    let whole = fs::read(rig.file(2)).unwrap();
    for len in 0..whole.len() {
        fs::write(rig.file(2), &whole[..len]).unwrap();
        is_damaged(&mut rig);
    }
    fs::copy(rig.file(1), rig.file(2)).unwrap();
    is_damaged(&mut rig);
}

/// A link(2) that a network file system repeats: the first try's success is reported as a name that is taken.
#[test]
fn a_link_that_its_own_first_try_has_made_is_won() {
    let mut rig = Rig::new();
    rig.win(1);
    let attempt = rig.arbiter.cell.compare_and_set(Some(1), cell(2, "alpha"), "repeated");
    let outcome = rig.finish(attempt, |rig, call| {
        matches!(call, Call::Link { .. }).then(|| {
            rig.arbiter.directory.perform(call).unwrap();
            rig.arbiter.directory.perform(call)
        })
    });
    assert_eq!(outcome, Outcome::Won(cell(2, "alpha")));
}

#[test]
fn a_taken_name_that_cannot_be_compared_leaves_the_claim_in_doubt() {
    let mut rig = Rig::new();
    rig.win(1);
    let attempt = rig.arbiter.cell.compare_and_set(Some(1), cell(2, "alpha"), "repeated");
    let outcome = rig.finish(attempt, |rig, call| match call {
        Call::Link { .. } => {
            rig.arbiter.directory.perform(call).unwrap();
            Some(Err(Errno::EEXIST))
        }
        Call::Compare(..) => Some(Err(Errno::EIO)),
        _ => None,
    });
    assert!(matches!(outcome, Outcome::Unknown(_)), "{outcome:?}");
}

/// Where a claim fails decides whether it is certain that nothing was changed.
#[test]
fn a_failure_up_to_the_link_is_certain_and_after_it_in_doubt() {
    let mut failed = Vec::new();
    for nth in 0.. {
        let mut rig = Rig::new();
        rig.win(1);
        let attempt = rig.arbiter.cell.compare_and_set(Some(1), cell(2, "alpha"), "failing");
        let mut calls = 0;
        let mut kind = None;
        let outcome = rig.finish(attempt, |_, call| {
            calls += 1;
            (calls == nth + 1).then(|| {
                kind = Some(call.clone());
                Err(Errno::EIO)
            })
        });
        let Some(call) = kind else { break };
        let certain = match call {
            Call::List if nth == 0 => true,
            Call::Read(_) if nth == 1 => true,
            Call::Write(..) => true,
            Call::Link { .. } | Call::Sync(_) | Call::Read(_) | Call::List => false,
            Call::Remove(..) => {
                assert_eq!(outcome, Outcome::Won(cell(2, "alpha")));
                continue;
            }
            other => panic!("{other:?} is no call of a claim"),
        };
        match outcome {
            Outcome::NotAttempted(_) if certain => assert!(!rig.file(2).exists()),
            Outcome::Unknown(_) if !certain => {}
            outcome => panic!("{call:?}: {outcome:?}"),
        }
        failed.push(call);
    }
    assert_eq!(failed.len(), 7, "{failed:?}");
}

/// A network file system may report any error for a call whose first try it has carried out.
#[test]
fn no_error_of_the_link_is_a_certain_refusal() {
    for errno in [Errno::ENOSPC, Errno::EDQUOT, Errno::EACCES, Errno::EPERM, Errno::EROFS, Errno::ENOENT] {
        let mut rig = Rig::new();
        rig.win(1);
        let attempt = rig.arbiter.cell.compare_and_set(Some(1), cell(2, "alpha"), "refused");
        let outcome = rig.finish(attempt, |rig, call| {
            matches!(call, Call::Link { .. }).then(|| {
                rig.arbiter.directory.perform(call).unwrap();
                Err(errno)
            })
        });
        assert!(matches!(outcome, Outcome::Unknown(_)), "{errno}: {outcome:?}");
        assert_eq!(rig.arbiter.read(), Ok(Some(cell(2, "alpha"))));
    }
}

#[test]
fn a_claim_that_lost_and_cannot_be_read_back_is_in_doubt() {
    let mut rig = Rig::new();
    rig.win(1);
    let attempt = rig.arbiter.cell.compare_and_set(Some(1), cell(2, "alpha"), "late");
    let mut linked = false;
    let outcome = rig.finish(attempt, |rig, call| match call {
        Call::Link { .. } => {
            rig.win(2);
            linked = true;
            None
        }
        Call::List if linked => Some(Err(Errno::EIO)),
        _ => None,
    });
    assert!(matches!(outcome, Outcome::Unknown(_)), "{outcome:?}");
}

#[test]
fn a_name_that_cannot_be_found_is_an_error_and_not_waited_for() {
    let mut rig = Rig::new();
    rig.win(1);
    std::os::unix::fs::symlink("/nonexistent", rig.file(99)).unwrap();
    let error = rig.arbiter.read().unwrap_err();
    assert!(matches!(&error.trouble, Trouble::Damaged { file, .. } if *file == file_name(99)), "{error}");
    assert_eq!(rig.arbiter.compare_and_set(Some(1), cell(2, "alpha")), Outcome::NotAttempted(error));
}

/// The storage crashes between a claim's link and its flush, and comes back without the link.
#[test]
fn a_claim_that_a_crash_took_back_is_not_won() {
    for other in [None, Some(cell(2, "beta"))] {
        let mut rig = Rig::new();
        rig.win(1);
        let attempt = rig.arbiter.cell.compare_and_set(Some(1), cell(2, "alpha"), "crashed");
        let outcome = rig.finish(attempt, |rig, call| {
            if matches!(call, Call::Sync(_)) && fs::remove_file(rig.file(2)).is_ok() {
                // The number is free again, also for somebody else.
                if let Some(new) = other.clone() {
                    assert_eq!(rig.arbiter.compare_and_set(Some(1), new.clone()), Outcome::Won(new));
                }
            }
            None
        });
        match other {
            Some(_) => assert_eq!(outcome, Outcome::Lost(other)),
            None => {
                let Outcome::Unknown(error) = outcome else { panic!("{outcome:?}") };
                assert_eq!(error.trouble, Trouble::TakenBack { generation: 2 });
                assert_eq!(rig.arbiter.read(), Ok(Some(cell(1, "alpha"))));
            }
        }
    }
}

#[test]
fn a_reader_is_not_told_a_cell_that_a_crash_took_back() {
    let mut rig = Rig::new();
    rig.win(1);
    rig.win(2);
    let read = rig.arbiter.cell.read();
    let answer = rig.finish(read, |rig, call| {
        if matches!(call, Call::Sync(_)) {
            let _again = fs::remove_file(rig.file(2));
        }
        None
    });
    assert_eq!(answer, Ok(Some(cell(1, "alpha"))));
}

/// A reader that is told a cell acts on it: a crash of the storage must not take it back.
#[test]
fn a_cell_is_told_only_when_it_is_durable() {
    let mut rig = Rig::new();
    rig.win(1);
    let read = rig.arbiter.cell.read();
    let answer = rig.finish(read, |_, call| matches!(call, Call::Sync(_)).then_some(Err(Errno::EIO)));
    assert!(matches!(answer.unwrap_err().trouble, Trouble::Storage { errno: Errno::EIO, .. }));
    let late = rig.arbiter.cell.compare_and_set(None, cell(1, "beta"), "late");
    let outcome = rig.finish(late, |_, call| matches!(call, Call::Sync(_)).then_some(Err(Errno::EIO)));
    assert!(matches!(outcome, Outcome::NotAttempted(_)), "{outcome:?}");
}
