//! Three services that keep a cell together, while members are killed, stand still and come back.

#[path = "common/history.rs"]
mod history;
#[path = "common/process.rs"]
mod process;
#[path = "common/several.rs"]
mod several;

use ft_arbiter::majority::{MajorityPace, MemberRoll, MemberSet};
use ft_arbiter::service::{ServicePace, ServicePlace};
use ft_arbiter::{Arbiter, Cell, MajorityArbiter, Outcome, ServiceArbiter, Trouble};
use ft_history::{TimedCall, last_state};
use history::{Op, Recorder, cell};
use nix::sys::signal::Signal;
use several::SeveralServices;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn pace() -> MajorityPace {
    let wait = Duration::from_millis(250);
    MajorityPace { member: ServicePace { connect: wait, answer: wait }, whole: Duration::from_millis(1000) }
}

fn win(arbiter: &mut MajorityArbiter, expected: Option<u64>, owner: &str) {
    let new = cell(expected.unwrap_or(0) + 1, owner);
    assert_eq!(arbiter.compare_and_set(expected, new.clone()), Outcome::Won(new));
}

#[test]
fn the_loss_of_one_member_is_not_noticed_and_that_of_two_is_told() {
    let three = SeveralServices::start(3);
    let (mut alpha, mut beta) = (three.connect(pace()), three.connect(pace()));
    win(&mut alpha, None, "alpha");
    // Each away in its turn, and killed: what the two others decided is known to any two.
    for member in 0..3 {
        three.kill_member(member);
        let generation = member as u64 + 1;
        win(&mut alpha, Some(generation), "alpha");
        assert_eq!(beta.probe(), Ok(Some(cell(generation + 1, "alpha"))));
        three.start_member(member);
    }
    three.kill_member(0);
    three.kill_member(1);
    let error = beta.read().unwrap_err();
    let Trouble::NoMajority { needed: 2, of: 3, members } = &error.trouble else { panic!("{error}") };
    let away: Vec<SocketAddr> = members.iter().map(|member| member.address).collect();
    assert_eq!(away, three.set.addresses()[..2]);
    assert_eq!(alpha.probe().unwrap_err().trouble, error.trouble);
    assert!(matches!(alpha.compare_and_set(Some(4), cell(5, "alpha")), Outcome::NotAttempted(_)));
    three.start_member(1);
    assert_eq!(beta.read(), Ok(Some(cell(4, "alpha"))));
    win(&mut beta, Some(4), "beta");
}

#[test]
fn members_that_stand_still_hold_nobody_up_unless_they_are_a_majority() {
    let three = SeveralServices::start(3);
    let signal = |member: usize, signal| {
        three.members[member].lock().unwrap().as_ref().unwrap().signal(signal);
    };
    let mut alpha = three.connect(MajorityPace { whole: Duration::from_secs(2), ..pace() });
    win(&mut alpha, None, "alpha");
    signal(1, Signal::SIGSTOP);
    let asked = Instant::now();
    for generation in 1..=10 {
        win(&mut alpha, Some(generation), "alpha");
    }
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    signal(2, Signal::SIGSTOP);
    let error = alpha.read().unwrap_err();
    assert!(error.trouble.is_silence(), "{error}");
    // They are asked for promises, and nothing was proposed.
    let outcome = alpha.compare_and_set(Some(11), cell(12, "alpha"));
    assert!(matches!(outcome, Outcome::NotAttempted(_)), "{outcome:?}");
    signal(1, Signal::SIGCONT);
    signal(2, Signal::SIGCONT);
    let deadline = Instant::now() + Duration::from_secs(20);
    while alpha.read() != Ok(Some(cell(11, "alpha"))) {
        assert!(Instant::now() < deadline);
    }
    win(&mut alpha, Some(11), "alpha");
}

/// Each history must be explained by some order of its operations, whatever became of the members.
#[test]
fn histories_are_linearizable_while_members_are_killed_and_stand_still() {
    const ROUNDS: u64 = 30;
    let three = SeveralServices::start(3);
    let ended = AtomicBool::new(false);
    let mut before: Option<Cell> = None;
    let (mut won, mut unknown) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // One after the other, without a pause between two: sometimes two are away.
            let mut seed = 0x9e37_79b9_u64;
            while !ended.load(Ordering::Relaxed) {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let (member, ms) = ((seed >> 33) as usize % 3, (seed >> 40) % 120);
                let pause = Duration::from_millis(ms);
                if seed >> 60 < 8 {
                    three.kill_member(member);
                    std::thread::sleep(pause / 4);
                    three.start_member(member);
                } else {
                    let stop =
                        |signal| three.members[member].lock().unwrap().as_ref().unwrap().signal(signal);
                    stop(Signal::SIGSTOP);
                    std::thread::sleep(pause * 4);
                    stop(Signal::SIGCONT);
                }
                std::thread::sleep(pause);
            }
        });
        for round in 1..=ROUNDS {
            let recorder = Recorder::default();
            std::thread::scope(|scope| {
                for node in ["alpha", "beta", "gamma"] {
                    let (recorder, three) = (&recorder, &three);
                    scope.spawn(move || {
                        let mut arbiter = three.connect(pace());
                        let mut known = None;
                        for step in 0..3 {
                            if let Ok(cell) = recorder.read(&mut arbiter) {
                                known = cell;
                            }
                            let generation = known.as_ref().map(|cell: &Cell| cell.generation);
                            // Each is another, so that nobody can take another's work for his own.
                            let owner = format!("{node}-{round}-{step}");
                            let new = cell(generation.unwrap_or(0) + 1, &owner);
                            if let Outcome::Won(cell) = recorder.set(&mut arbiter, generation, new) {
                                known = Some(cell);
                            }
                        }
                    });
                }
            });
            assert!(recorder.noted() >= 9, "every set is noted");
            let history = recorder.into_history();
            let sets = |is: fn(&Outcome) -> bool| {
                history
                    .iter()
                    .filter(|call| matches!(&call.op, Op::Set { outcome, .. } if is(outcome)))
                    .count()
            };
            won += sets(|outcome| matches!(outcome, Outcome::Won(_)));
            unknown += sets(|outcome| matches!(outcome, Outcome::Unknown(_)));
            // A set in doubt may happen after its round: the next one begins from what a whole round has fixed.
            let mut arbiter = three.connect(pace());
            let fixed = loop {
                if let Ok(fixed) = arbiter.probe() {
                    break fixed;
                }
            };
            let mut history = history;
            history.push(TimedCall {
                op: Op::Read(fixed.clone()),
                began: u64::MAX - 2,
                ended: Some(u64::MAX - 1),
            });
            match last_state(&before, &history) {
                Ok(_) => before = fixed,
                Err(call) => {
                    panic!("round {round}: from {before:?}, call {call} has no place in {history:#?}")
                }
            }
        }
        ended.store(true, Ordering::Relaxed);
    });
    println!("{won} sets were won, {unknown} were in doubt");
    assert!(won >= ROUNDS as usize, "{won} sets were won");
}

#[test]
fn a_node_with_another_list_or_with_one_member_only_is_refused_by_the_members() {
    let three = SeveralServices::start(3);
    let mut alpha = three.connect(pace());
    win(&mut alpha, None, "alpha");
    let [a, b, c] = *three.set.addresses() else { panic!("they are three") };
    let other = |addresses: &[SocketAddr]| {
        let set = MemberSet::new(addresses).unwrap();
        let places: Vec<ServicePlace> = set.addresses().iter().map(|address| (*address).into()).collect();
        MajorityArbiter::new(set, &places, "web", pace(), &MemberRoll::default())
    };
    let away: SocketAddr = "127.0.0.1:9".parse().unwrap();
    for mut beta in
        [other(&[a, b]), other(&[a, b, away]), other(&[a, b, c, away, "127.0.0.1:10".parse().unwrap()])]
    {
        let error = beta.read().unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("arbiter.addresses say: {}", three.set)), "{text}");
        let outcome = beta.compare_and_set(Some(1), cell(2, "beta"));
        assert!(matches!(outcome, Outcome::NotAttempted(_)), "{outcome:?}");
    }
    let mut alone = ServiceArbiter::new(a, "web", pace().member);
    assert!(matches!(alone.read().unwrap_err().trouble, Trouble::KeptTogether { .. }));
    assert!(matches!(alone.probe().unwrap_err().trouble, Trouble::KeptTogether { .. }));
    let outcome = alone.compare_and_set(Some(1), cell(2, "beta"));
    assert!(matches!(outcome, Outcome::NotAttempted(_)), "{outcome:?}");
    assert_eq!(alpha.read(), Ok(Some(cell(1, "alpha"))));
}
