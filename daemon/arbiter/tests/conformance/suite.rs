//! The claims, each against the trait alone.

use crate::history::{Op, Recorder, cell};
use ft_arbiter::{Arbiter, Cell, CellId, GENERATION_MAX, Outcome, Standby, Trouble};
use ft_history::last_state;

/// Where a back end keeps one cell.
pub trait Site: Sync {
    /// A node's own way to the cell.
    fn connect(&self) -> Box<dyn Arbiter>;

    /// Damages what is stored of the cell, which was set before.
    fn damage(&self);
}

fn win(arbiter: &mut dyn Arbiter, expected: Option<u64>, new: Cell) {
    assert_eq!(arbiter.compare_and_set(expected, new.clone()), Outcome::Won(new));
}

/// Sets every generation from 1.
fn set_up_to(arbiter: &mut dyn Arbiter, last: u64) {
    for generation in 1..=last {
        win(arbiter, generation.checked_sub(1).filter(|before| *before > 0), cell(generation, "alpha"));
    }
}

pub fn a_cell_that_was_never_set_is_empty_and_probing_leaves_it_so(site: &impl Site) {
    let mut arbiter = site.connect();
    assert_eq!(arbiter.read(), Ok(None));
    assert_eq!(arbiter.probe(), Ok(None));
    assert_eq!(site.connect().read(), Ok(None));
    win(&mut *arbiter, None, cell(1, "alpha"));
}

pub fn the_first_of_two_wins_and_the_second_learns_what_holds(site: &impl Site) {
    let (mut alpha, mut beta) = (site.connect(), site.connect());
    win(&mut *alpha, None, cell(1, "alpha"));
    assert_eq!(beta.compare_and_set(None, cell(1, "beta")), Outcome::Lost(Some(cell(1, "alpha"))));
    let standby = Some(Standby { node: "beta".into(), pairing: u64::MAX });
    let protected = Cell { standby, ..cell(2, "alpha") };
    win(&mut *alpha, Some(1), protected.clone());
    assert_eq!(beta.compare_and_set(Some(1), cell(2, "beta")), Outcome::Lost(Some(protected.clone())));
    assert_eq!(beta.read(), Ok(Some(protected)));
    let nobody = Cell { owner: None, ..cell(3, "alpha") };
    win(&mut *beta, Some(2), nobody.clone());
    assert_eq!(alpha.read(), Ok(Some(nobody)));
}

pub fn a_set_that_expects_another_generation_changes_nothing(site: &impl Site) {
    let mut arbiter = site.connect();
    assert_eq!(arbiter.compare_and_set(Some(3), cell(4, "alpha")), Outcome::Lost(None));
    assert_eq!(arbiter.read(), Ok(None));
    set_up_to(&mut *arbiter, 2);
    for expected in [1, 3, GENERATION_MAX - 1] {
        let outcome = arbiter.compare_and_set(Some(expected), cell(expected + 1, "beta"));
        assert_eq!(outcome, Outcome::Lost(Some(cell(2, "alpha"))));
    }
    assert_eq!(arbiter.read(), Ok(Some(cell(2, "alpha"))));
}

pub fn another_cell_of_the_same_generation_is_not_set(site: &impl Site) {
    let mut arbiter = site.connect();
    set_up_to(&mut *arbiter, 2);
    let other = Cell { id: CellId(0x07e4), ..cell(3, "beta") };
    assert_eq!(arbiter.compare_and_set(Some(2), other), Outcome::Lost(Some(cell(2, "alpha"))));
    assert_eq!(arbiter.read(), Ok(Some(cell(2, "alpha"))));
    win(&mut *arbiter, Some(2), cell(3, "alpha"));
}

pub fn a_generation_that_does_not_follow_is_not_attempted(site: &impl Site) {
    let mut arbiter = site.connect();
    for (expected, new) in [(None, 0), (None, 2), (Some(1), 1), (Some(1), 3), (Some(u64::MAX), 0)] {
        let outcome = arbiter.compare_and_set(expected, cell(new, "alpha"));
        let Outcome::NotAttempted(error) = &outcome else { panic!("{outcome:?}") };
        assert_eq!(error.trouble, Trouble::Generation { expected, new });
        assert_eq!(error.place, arbiter.place());
    }
    assert_eq!(arbiter.read(), Ok(None));
}

pub fn a_lost_answer_is_read_back_as_ones_own_cell(site: &impl Site) {
    let mut arbiter = site.connect();
    set_up_to(&mut *arbiter, 1);
    let asked = cell(2, "alpha");
    let _lost = arbiter.compare_and_set(Some(1), asked.clone());
    assert_eq!(arbiter.compare_and_set(Some(1), asked.clone()), Outcome::Lost(Some(asked.clone())));
    assert_eq!(arbiter.read(), Ok(Some(asked)));
}

pub fn what_is_told_outlives_the_process_that_was_told(site: &impl Site) {
    let mut arbiter = site.connect();
    set_up_to(&mut *arbiter, 3);
    drop(arbiter);
    assert_eq!(site.connect().read(), Ok(Some(cell(3, "alpha"))));
}

pub fn probing_changes_nothing_and_holds_nobody_up(site: &impl Site) {
    let (mut alpha, mut beta) = (site.connect(), site.connect());
    set_up_to(&mut *alpha, 1);
    std::thread::scope(|scope| {
        scope.spawn(|| (0..50).for_each(|_| assert!(matches!(beta.probe(), Ok(Some(_))))));
        for generation in 2..=20 {
            win(&mut *alpha, Some(generation - 1), cell(generation, "alpha"));
            assert_eq!(alpha.probe(), Ok(Some(cell(generation, "alpha"))));
        }
    });
    assert_eq!(beta.read(), Ok(Some(cell(20, "alpha"))));
}

pub fn damage_is_an_error_and_never_an_empty_or_older_cell(site: &impl Site) {
    let mut arbiter = site.connect();
    set_up_to(&mut *arbiter, 2);
    site.damage();
    let error = arbiter.read().unwrap_err();
    assert!(error.trouble.is_damage(), "{error}");
    assert_eq!(error.place, arbiter.place());
    assert_eq!(arbiter.probe(), Err(error.clone()));
    for expected in [None, Some(1), Some(2)] {
        let new = cell(expected.unwrap_or(0) + 1, "beta");
        assert_eq!(arbiter.compare_and_set(expected, new), Outcome::NotAttempted(error.clone()));
    }
}

pub fn a_long_history_is_told_only_by_its_end(site: &impl Site) {
    let mut arbiter = site.connect();
    set_up_to(&mut *arbiter, 150);
    assert_eq!(arbiter.compare_and_set(Some(4), cell(5, "beta")), Outcome::Lost(Some(cell(150, "alpha"))));
    assert_eq!(site.connect().read(), Ok(Some(cell(150, "alpha"))));
}

/// Three nodes read and set at once. Each history must be explained by some order of its operations that respects which
/// was over before which began.
pub fn concurrent_histories_are_linearizable(site: &impl Site) {
    const ROUNDS: usize = 40;
    let mut before = None;
    for round in 0..ROUNDS {
        let recorder = Recorder::default();
        std::thread::scope(|scope| {
            for node in ["alpha", "beta", "gamma"] {
                let recorder = &recorder;
                scope.spawn(move || {
                    let mut arbiter = site.connect();
                    let mut known = recorder.read(&mut *arbiter).unwrap();
                    for _ in 0..2 {
                        let generation = known.map(|cell: Cell| cell.generation);
                        let new = cell(generation.unwrap_or(0) + 1, node);
                        let outcome = recorder.set(&mut *arbiter, generation, new);
                        assert!(matches!(outcome, Outcome::Won(_) | Outcome::Lost(_)), "{outcome:?}");
                        known = recorder.read(&mut *arbiter).unwrap();
                    }
                });
            }
        });
        assert_eq!(recorder.noted(), 15, "three nodes with five calls each");
        let history = recorder.into_history();
        let wins =
            history.iter().filter(|call| matches!(call.op, Op::Set { outcome: Outcome::Won(_), .. })).count();
        assert!(wins > 0, "round {round}: nobody won: {history:#?}");
        match last_state(&before, &history) {
            Ok(cell) => before = cell,
            Err(call) => panic!("round {round}: call {call} has no place in {history:#?}"),
        }
    }
    assert_eq!(site.connect().read(), Ok(before));
}
