//! The clock and the sleeps of a guest at rest go with the wall clock: by itself, protected, after a take-over, and
//! where it has booted under protection. The engine and the mode are those of the run.

use crate::fixture::{Config, Daemon, Engine, PATIENCE, World, eventually, linux, vm_address};
use ft_tests::kv::connection::Connection;
use ftd::control::api::{Role, State};
use std::time::{Duration, Instant};

const PHASE: Duration = Duration::from_secs(20);
/// A host has other things to do as well.
const TOLERANCE: Duration = Duration::from_millis(1500);
/// Of the sleeps that the guest counts.
const SLEEP: Duration = Duration::from_millis(100);
/// A busy host wakes a guest late, for a while; a guest whose time is wrong is wrong each time.
const ATTEMPTS: usize = 3;

/// Percent of its sleeps that a guest counts at least. Where the host emulates KVM, a kernel takes its time to wake.
fn sleeps_pct_min(engine: Engine) -> u128 {
    match engine {
        Engine::Soft => 90,
        Engine::Kvm => 50,
    }
}

/// What the guest says of its time, and when it was asked and has answered.
struct Seen {
    asked: Instant,
    answered: Instant,
    uptime: Duration,
    sleeps: u64,
}

impl Seen {
    fn now() -> Self {
        let asked = Instant::now();
        let answer = eventually("the guest tells its time", Self::ask, || "the VM does not answer".into());
        let number = |name: &str| {
            let word = answer.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            word.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {name} in {answer}"))
        };
        let uptime = Duration::from_nanos(number("uptime_ns"));
        Self { asked, answered: Instant::now(), uptime, sleeps: number("sleeps") }
    }

    /// A kernel that boots has no address yet, and then no service.
    fn ask() -> Option<String> {
        Connection::open(vm_address(), PATIENCE).and_then(|mut vm| vm.call("STATS", PATIENCE)).ok()
    }
}

/// Nobody talks to the guest meanwhile: it is at rest. Its clock is right every time; late sleeps are tried again.
fn goes_with_the_wall_clock(phase: &str, engine: Engine) {
    let mut said = String::new();
    for _ in 0..ATTEMPTS {
        let before = Seen::now();
        std::thread::sleep(PHASE);
        let after = Seen::now();
        let least = (after.asked - before.answered).saturating_sub(TOLERANCE);
        let most = after.answered - before.asked + TOLERANCE;
        let guest = after.uptime.saturating_sub(before.uptime);
        let sleeps = u128::from(after.sleeps - before.sleeps);
        said = format!("{phase}: {guest:?} and {sleeps} sleeps in {:?}", after.asked - before.answered);
        eprintln!("{said}");
        assert!((least..=most).contains(&guest), "{said}");
        let sleeps_max = guest.as_millis() / SLEEP.as_millis() + 1;
        assert!(sleeps <= sleeps_max, "{said}");
        if sleeps * 100 >= sleeps_max * sleeps_pct_min(engine) {
            return;
        }
    }
    panic!("too few of its sleeps, {ATTEMPTS} times: {said}");
}

fn takes_over(alpha: &mut Daemon, beta: &mut Daemon, engine: Engine) {
    let before = Seen::now();
    alpha.kill();
    beta.wait_until(Role::Primary, State::Solo);
    assert!(Seen::now().uptime >= before.uptime, "the guest's clock went back");
    goes_with_the_wall_clock("after a take-over", engine);
}

/// It boots by itself, and is protected later.
fn a_guest_at_rest(world: &World, change: &impl Fn(Config) -> Config) {
    let mut alpha = Daemon::start(world, &change(Config::alpha(world)));
    alpha.wait_until(Role::Primary, State::Solo);
    goes_with_the_wall_clock("by itself", world.engine);
    let mut beta = Daemon::start(world, &change(Config::beta(world)));
    alpha.wait_until(Role::Primary, State::Protected);
    beta.wait_until(Role::Backup, State::Protected);
    goes_with_the_wall_clock("protected", world.engine);
    takes_over(&mut alpha, &mut beta, world.engine);
}

/// Its backup is there before it boots.
fn a_guest_that_boots_protected(world: &World, change: &impl Fn(Config) -> Config) {
    let mut beta = Daemon::start(world, &change(Config::beta(world)));
    beta.wait_until(Role::Backup, State::Waiting);
    let began = Instant::now();
    let mut alpha = Daemon::start(world, &change(Config::alpha(world)));
    alpha.wait_until(Role::Primary, State::Protected);
    let booted = Seen::now();
    let age = booted.answered - began;
    eprintln!("{:?} of uptime, {age:?} after its start", booted.uptime);
    assert!(booted.uptime <= age + TOLERANCE, "{:?} of uptime in {age:?}", booted.uptime);
    goes_with_the_wall_clock("booted under protection", world.engine);
    takes_over(&mut alpha, &mut beta, world.engine);
}

#[test]
fn the_time_of_the_builtin_guest_at_rest_goes_with_the_wall_clock() {
    World::run("the_time_of_the_builtin_guest_at_rest_goes_with_the_wall_clock", |world| {
        a_guest_at_rest(world, &|config| config);
    });
}

#[test]
fn the_time_of_a_linux_guest_at_rest_goes_with_the_wall_clock() {
    const NAME: &str = "the_time_of_a_linux_guest_at_rest_goes_with_the_wall_clock";
    let Some(linux) = linux(NAME) else { return };
    World::run(NAME, move |world| a_guest_at_rest(world, &linux));
}

#[test]
fn the_time_of_the_builtin_guest_that_boots_protected_goes_with_the_wall_clock() {
    World::run("the_time_of_the_builtin_guest_that_boots_protected_goes_with_the_wall_clock", |world| {
        a_guest_that_boots_protected(world, &|config| config);
    });
}

#[test]
fn the_time_of_a_linux_guest_that_boots_protected_goes_with_the_wall_clock() {
    const NAME: &str = "the_time_of_a_linux_guest_that_boots_protected_goes_with_the_wall_clock";
    let Some(linux) = linux(NAME) else { return };
    // Where the host emulates KVM, a kernel that boots in epochs takes minutes.
    World::run_on(Engine::Soft, NAME, move |world| a_guest_that_boots_protected(world, &linux));
}
