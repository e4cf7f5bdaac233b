//! The clock and the sleeps of a guest at rest go with the wall clock: by itself, protected, and after a take-over.

use crate::fixture::{Config, Daemon, PATIENCE, World, eventually, vm_address};
use ft_tests::kv::connection::Connection;
use ftd::control::api::{Role, State};
use std::path::Path;
use std::time::{Duration, Instant};

/// Three of them are some 20 s.
const PHASE: Duration = Duration::from_millis(6700);
/// A host has other things to do as well.
const TOLERANCE: Duration = Duration::from_millis(1500);
/// Of the sleeps that the guest counts.
const SLEEP: Duration = Duration::from_millis(100);

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

/// Nobody talks to the guest meanwhile: it is at rest.
fn goes_with_the_wall_clock(phase: &str) {
    let before = Seen::now();
    std::thread::sleep(PHASE);
    let after = Seen::now();
    let least = (after.asked - before.answered).saturating_sub(TOLERANCE);
    let most = after.answered - before.asked + TOLERANCE;
    let guest = after.uptime.saturating_sub(before.uptime);
    let sleeps = after.sleeps - before.sleeps;
    let said = format!("{phase}: {guest:?} and {sleeps} sleeps in {:?}", after.asked - before.answered);
    eprintln!("{said}");
    assert!((least..=most).contains(&guest), "{said}");
    let sleeps_max = guest.as_millis() / SLEEP.as_millis() + 1;
    assert!((sleeps_max / 4..=sleeps_max).contains(&u128::from(sleeps)), "{said}");
}

fn a_guest_at_rest(world: &World, change: impl Fn(Config) -> Config) {
    let mut alpha = Daemon::start(world, &change(Config::alpha(world)));
    alpha.wait_until(Role::Primary, State::Solo);
    goes_with_the_wall_clock("by itself");
    let mut beta = Daemon::start(world, &change(Config::beta(world)));
    alpha.wait_until(Role::Primary, State::Protected);
    beta.wait_until(Role::Backup, State::Protected);
    goes_with_the_wall_clock("protected");
    let before = Seen::now();
    alpha.kill();
    beta.wait_until(Role::Primary, State::Solo);
    assert!(Seen::now().uptime >= before.uptime, "the guest's clock went back");
    goes_with_the_wall_clock("after a take-over");
}

#[test]
fn the_time_of_the_builtin_guest_at_rest_goes_with_the_wall_clock() {
    World::run("the_time_of_the_builtin_guest_at_rest_goes_with_the_wall_clock", |world| {
        a_guest_at_rest(world, |config| config);
    });
}

#[test]
fn the_time_of_a_linux_guest_at_rest_goes_with_the_wall_clock() {
    let Some(kernel) = std::env::var_os("FTD_TEST_KERNEL") else {
        eprintln!("SKIPPED the_time_of_a_linux_guest_at_rest: FTD_TEST_KERNEL names no kernel");
        return;
    };
    World::run("the_time_of_a_linux_guest_at_rest_goes_with_the_wall_clock", move |world| {
        let beside = |name| Path::new(&kernel).with_file_name(name);
        let text = |name| beside(name).display().to_string();
        let cmdline = std::fs::read_to_string(beside("cmdline")).unwrap();
        a_guest_at_rest(world, |config| {
            config
                .with("machine.guest", "linux")
                .with("machine.kernel", text("kernel"))
                .with("machine.initrd", text("initramfs.cpio"))
                .with("machine.cmdline", cmdline.trim())
                .with("machine.memory_mib", 64)
        });
    });
}
