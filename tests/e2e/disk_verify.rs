//! The backup's image of a disk is not what it should be: it is found under protection, named, and made good.

use crate::disk_return::with_image;
use crate::disks::{guest, image, writing};
use crate::fixture::{CtlOutput, Daemon, Engine, Pair, World, eventually};
use ftd::control::api::{Role, State};
use std::fs::File;
use std::os::unix::fs::FileExt;

const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 24 * MIB;
/// Storage has turned this byte round.
const TURNED: u64 = 5 * MIB + 77;

fn open(world: &World, node: &str) -> File {
    File::options().read(true).write(true).open(image(world, node)).unwrap()
}

fn byte(file: &File) -> u8 {
    let mut byte = [0];
    file.read_exact_at(&mut byte, TURNED).unwrap();
    byte[0]
}

fn turn_round(world: &World, node: &str) {
    let file = open(world, node);
    file.write_all_at(&[!byte(&file)], TURNED).unwrap();
    file.sync_all().unwrap();
}

fn verify(daemon: &Daemon, arguments: &[&str]) -> CtlOutput {
    daemon.ctl(&[&["disk", "verify", "--limit", "0"], arguments].concat())
}

fn metric(daemon: &Daemon, name: &str) -> u64 {
    let text = daemon.ctl(&["metrics"]).stdout;
    let value = text.lines().find(|line| line.starts_with(name)).and_then(|line| line.rsplit(' ').next());
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// What differs is named with its disk and its place, by the command, the log, the status and the metric.
fn is_named(pair: &Pair, output: &CtlOutput, count: u64) {
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stdout.contains("disk 1: bytes 5242880 to 6291455 differ"), "{output:?}");
    pair.alpha
        .wait_for_log("disk 1: bytes 5242880 to 6291455 of the backup's image are not those of this host's");
    assert_eq!(metric(&pair.alpha, "ftd_disk_mismatches_total{"), count);
    assert_eq!(metric(&pair.alpha, "ftd_disk_verified_bytes{"), DISK_BYTES);
    let status = pair.alpha.ctl(&["status"]).stdout;
    assert!(status.contains("1.0 MiB of the backup's differ"), "{status}");
}

#[test]
fn a_byte_that_changed_below_the_backup_is_found_and_named_and_made_good() {
    World::run("a_byte_that_changed_below_the_backup_is_found_and_named_and_made_good", |world| {
        for node in ["alpha", "beta"] {
            File::create_new(image(world, node)).unwrap().set_len(DISK_BYTES).unwrap();
        }
        open(world, "alpha").write_all_at(&[7; 9 << 20], 3 * MIB).unwrap();
        let mut pair = Pair::protected_with(world, |config| with_image(world, config));
        let output = verify(&pair.alpha, &[]);
        assert_eq!(output.code, 0, "{output:?}");
        assert!(
            output.stdout.contains("24.0 MiB compared") && output.stdout.contains("all the same"),
            "{output:?}"
        );
        let output = verify(&pair.beta, &[]);
        assert!(output.code == 5 && output.stderr.contains("on the node that runs the VM"), "{output:?}");

        turn_round(world, "beta");
        is_named(&pair, &verify(&pair.alpha, &[]), 1);
        pair.alpha.wait_until(Role::Primary, State::Degraded);
        let status = pair.beta.wait_until(Role::Backup, State::Degraded);
        assert_eq!(status.lapses[0].kind, "images_differ", "{status:?}");
        assert_eq!(pair.alpha.ctl(&["status"]).code, 3);
        // A host that comes back is made good there, although neither has changed anything.
        pair.beta.kill();
        pair.alpha.wait_until(Role::Primary, State::Solo);
        pair.beta = Daemon::start(world, &pair.beta_config);
        let status = pair.alpha.wait_until(Role::Primary, State::Protected);
        let copy = status.disks.unwrap().last_copy.unwrap();
        assert_eq!((copy.differing_bytes, copy.sent_bytes), (MIB, MIB), "{copy:?}");
        assert_eq!(byte(&open(world, "beta")), 7);

        // While it is protected, too.
        pair.wait_protected();
        turn_round(world, "beta");
        let output = verify(&pair.alpha, &["--repair"]);
        assert_eq!(output.code, 0, "{output:?}");
        assert!(output.stdout.contains("disk 1: bytes 5242880 to 6291455 differ"), "{output:?}");
        assert!(output.stdout.contains("1.0 MiB sent anew"), "{output:?}");
        pair.wait_protected();
        let good = || (byte(&open(world, "beta")) == 7).then_some(());
        eventually("beta's image is good", good, || pair.beta.log());
        let output = verify(&pair.alpha, &["--json"]);
        assert_eq!(output.code, 0, "{output:?}");
        assert!(output.stdout.contains("\"state\":\"done\""), "{output:?}");
    });
}

#[test]
fn images_that_are_the_same_are_found_so_while_the_guest_writes() {
    const NAME: &str = "images_that_are_the_same_are_found_so_while_the_guest_writes";
    let Some(kernel) = guest(NAME) else { return };
    World::run_on(Engine::Soft, NAME, move |world| {
        let (pair, mut shell) = writing(world, &kernel);
        for _ in 0..3 {
            let output = verify(&pair.alpha, &[]);
            assert_eq!(output.code, 0, "{output:?}");
        }
        turn_round_free(world);
        let output = verify(&pair.alpha, &[]);
        assert_eq!(output.code, 1, "{output:?}");
        shell.does("true", "alive");
    });
}

/// The last byte of the disk, which the file system leaves alone.
fn turn_round_free(world: &World) {
    let file = open(world, "beta");
    let last = file.metadata().unwrap().len() - 1;
    file.write_all_at(&[0x5a], last).unwrap();
    file.sync_all().unwrap();
}
