//! A host comes back, and the images of a disk become the same again: what that costs is what differs, also when it is
//! interrupted, and the operator sees how far it is.

use crate::disks::{Shell, guest, image, with_disk};
use crate::fixture::{Config, Daemon, Engine, Pair, World, eventually};
use ftd::control::api::{Role, State, Status};
use nix::sys::signal::Signal;
use std::fs::File;
use std::os::unix::fs::FileExt;
use toml::{Table, Value};

const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 2 << 30;
/// What the guest's kernel may write by itself.
const SPARE_BYTES: u64 = 4 * MIB;
/// What the sparse image of alpha has, and where: in every 32nd MiB.
const DATA: u64 = 64;

/// A configuration with a disk on the node's own image. The built-in guest leaves it alone.
pub(crate) fn with_image(world: &World, config: Config) -> Config {
    let mut disk = Table::new();
    disk.insert("image".into(), image(world, config.node).display().to_string().into());
    disk.insert("read_only".into(), false.into());
    config.with("machine.disk", vec![Value::Table(disk)]).with("replication.journal_mib", 64)
}

/// Sparse images with nothing in them, and on alpha's some data.
pub(crate) fn make_sparse(world: &World, data: u64) {
    for node in ["alpha", "beta"] {
        File::create_new(image(world, node)).unwrap().set_len(DISK_BYTES).unwrap();
    }
    let alpha = File::options().write(true).open(image(world, "alpha")).unwrap();
    for at in 0..data {
        alpha.write_all_at(&[at as u8 + 1; MIB as usize], at * 32 * MIB).unwrap();
    }
}

/// What the copy under way has made the same so far, in bytes.
fn made_same(status: &Status) -> u64 {
    let copy = status.disks.as_ref().and_then(|disks| disks.copy).unwrap_or_default();
    copy.same_bytes.saturating_sub(copy.compared_bytes - copy.differing_bytes)
}

/// Whether these MiB are the same on both hosts.
fn is_same(world: &World, mut places: impl Iterator<Item = u64>) -> bool {
    let [alpha, beta] = ["alpha", "beta"].map(|node| File::open(image(world, node)).unwrap());
    let mut content = [vec![0; MIB as usize], vec![0; MIB as usize]];
    places.all(|at| {
        alpha.read_exact_at(&mut content[0], at * MIB).unwrap();
        beta.read_exact_at(&mut content[1], at * MIB).unwrap();
        content[0] == content[1]
    })
}

#[test]
fn what_an_interrupted_return_has_made_the_same_is_not_sent_again() {
    World::run("what_an_interrupted_return_has_made_the_same_is_not_sent_again", |world| {
        make_sparse(world, DATA);
        let slow = with_image(world, Config::alpha(world)).with("replication.disk_copy_mib_s", 16);
        let beta_config = with_image(world, Config::beta(world));
        let mut alpha = Daemon::start(world, &slow);
        alpha.wait_until(Role::Primary, State::Solo);
        let mut beta = Daemon::start(world, &beta_config);
        let status = alpha.wait_for("half way", |status| made_same(status) >= DATA / 4 * MIB);
        let shown = alpha.ctl(&["status"]).stdout;
        assert!(shown.contains("are the same on both hosts") && shown.contains("time left: "), "{shown}");
        assert_ne!(status.state, State::Protected);
        beta.kill();
        alpha.wait_until(Role::Primary, State::Solo);
        // What ends it is what is known of it last.
        let interrupted = alpha.wait_for("told", |status| {
            status.disks.as_ref().is_some_and(|disks| disks.copy.is_none() && disks.last_copy.is_some())
        });
        let interrupted = interrupted.disks.unwrap().last_copy.unwrap();
        assert!(interrupted.same_bytes < interrupted.total_bytes.unwrap(), "{interrupted:?}");
        let made_same = interrupted.same_bytes - (interrupted.compared_bytes - interrupted.differing_bytes);
        assert!(made_same >= DATA / 4 * MIB, "{interrupted:?}");

        // It need not be as slow from now on.
        world.file("alpha.toml", slow.clone().with("replication.disk_copy_mib_s", 0).text());
        alpha.signal(Signal::SIGHUP);
        alpha.wait_for_log("changed: replication.disk_copy_mib_s");
        let mut beta = Daemon::start(world, &beta_config);
        let status = alpha.wait_until(Role::Primary, State::Protected);
        beta.wait_until(Role::Backup, State::Protected);
        let copy = status.disks.unwrap().last_copy.unwrap();
        assert_eq!((copy.same_bytes, copy.compared_bytes), (DISK_BYTES, DISK_BYTES), "{copy:?}");
        assert!(copy.sent_bytes <= DATA * MIB - made_same, "{copy:?} after {interrupted:?}");
        assert!(is_same(world, (0..DATA).map(|at| 32 * at)));
    });
}

#[test]
fn a_return_with_one_percent_changed_compares_and_sends_about_that() {
    const NAME: &str = "a_return_with_one_percent_changed_compares_and_sends_about_that";
    let Some(kernel) = guest(NAME) else { return };
    World::run_on(Engine::Soft, NAME, move |world| {
        make_sparse(world, 0);
        let mut pair = Pair::protected_with(world, |config| with_disk(world, &kernel, config));
        let mut shell = Shell::on(&pair.alpha);
        shell.line("guest: userland is up");
        pair.beta.kill();
        pair.alpha.wait_until(Role::Primary, State::Solo);
        let changed = DISK_BYTES / 100 / MIB * MIB;
        shell.does(&format!("yes 0123456789 | head -c {changed} >/dev/vda && sync"), "changed");
        pair.beta = Daemon::start(world, &pair.beta_config);
        let status = pair.alpha.wait_until(Role::Primary, State::Protected);
        let copy = status.disks.unwrap().last_copy.unwrap();
        assert!(copy.compared_bytes <= changed + SPARE_BYTES, "{copy:?}");
        assert!((changed..=changed + SPARE_BYTES).contains(&copy.sent_bytes), "{copy:?}");
        let is_same = || is_same(world, 0..changed / MIB).then_some(());
        eventually("both images are the same", is_same, || pair.alpha.log());

        // What was made the same counts no more, from this pairing on: not in status, and not in the next return.
        pair.alpha.wait_for("forgotten", |status| {
            status.disks.as_ref().is_some_and(|disks| disks.differing_bytes <= SPARE_BYTES)
        });
        pair.beta.kill();
        pair.alpha.wait_until(Role::Primary, State::Solo);
        pair.beta = Daemon::start(world, &pair.beta_config);
        let status = pair.alpha.wait_until(Role::Primary, State::Protected);
        let copy = status.disks.unwrap().last_copy.unwrap();
        assert!(copy.compared_bytes <= SPARE_BYTES, "{copy:?}");
    });
}
