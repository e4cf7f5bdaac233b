//! A Linux guest with a file system on a writable disk that both hosts have an image of: what the guest goes on with on
//! the other host is on that host's disk, and the two images become one. On the software engine, where Linux boots in
//! seconds on any host.

use crate::fixture::{Config, Daemon, Engine, Pair, World, eventually, mode_of_this_run};
use crate::metrics::must_move;
use ftd::control::api::{Role, State};
use ftd::control::client::Client;
use ftd::exit::DaemonExit;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use toml::{Table, Value};

const DISK_BYTES: u64 = 64 << 20;

/// What the guest does: each file says in its name and its content which one it is.
const WRITE: &str = "i=0; while [ ! -e /stop ]; do i=$((i+1)); head -c 30000 /dev/urandom >/mnt/data; \
                     echo number $i >/mnt/$((i % 50)); sync; echo $i >/count; done; echo stopped-$?";
/// What it finds: the last fifty, of the disk and not of its memory.
const CHECK: &str = "sync; echo 3 >/proc/sys/vm/drop_caches; n=$(cat /count); \
                     for j in $(seq $((n > 49 ? n-49 : 1)) $n); do \
                     [ \"$(cat /mnt/$((j % 50)))\" = \"number $j\" ] || echo bad-$j; done; echo checked-$n-$?";

/// Where the Linux guest of this run is, and the tools for its file system.
pub(crate) fn guest(test: &str) -> Option<PathBuf> {
    let Some(kernel) = std::env::var_os("FTD_TEST_KERNEL") else {
        eprintln!("SKIPPED {test}: FTD_TEST_KERNEL names no kernel");
        return None;
    };
    if Command::new("mkfs.ext4").arg("-V").output().is_err() {
        eprintln!("SKIPPED {test}: there is no mkfs.ext4 (package e2fsprogs)");
        return None;
    }
    Some(kernel.into())
}

pub(crate) fn image(world: &World, node: &str) -> PathBuf {
    world.path(format!("{node}.img"))
}

/// Whether the backup's machine makes the changes itself.
pub(crate) fn is_replay() -> bool {
    mode_of_this_run() == "replay"
}

/// A disk on the node's own image.
pub(crate) fn disk_of(world: &World, node: &str) -> Table {
    let mut disk = Table::new();
    disk.insert("image".into(), image(world, node).display().to_string().into());
    disk.insert("read_only".into(), false.into());
    disk
}

/// A configuration with the guest, and a disk on the node's own image.
pub(crate) fn with_disk(world: &World, kernel: &Path, config: Config) -> Config {
    let disk = disk_of(world, config.node);
    linux(kernel, config).with("machine.disk", vec![Value::Table(disk)])
}

/// A configuration with the guest.
pub(crate) fn linux(kernel: &Path, config: Config) -> Config {
    // Without a card the kernel would wait for one.
    let cmdline = std::env::var("FTD_TEST_CMDLINE").unwrap();
    config
        .with("machine.guest", "linux")
        .with("machine.kernel", kernel.display().to_string())
        .with("machine.initrd", kernel.with_file_name("initramfs.cpio").display().to_string())
        .with("machine.cmdline", cmdline.trim())
        .with("machine.memory_mib", 64)
        .with("replication.journal_mib", 64)
}

/// A file system on alpha's image, and something else on beta's.
fn make_images(world: &World) {
    let made = |node| {
        let file = File::create_new(image(world, node)).unwrap();
        file.set_len(DISK_BYTES).unwrap();
        file
    };
    made("alpha");
    let status = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image(world, "alpha")).status().unwrap();
    assert!(status.success());
    let beta = made("beta");
    beta.write_all_at(&[0xaa; 1 << 20], 7 << 20).unwrap();
}

/// The guest's console, by way of a node.
pub(crate) struct Shell {
    input: Box<dyn Write>,
    seen: Arc<Mutex<String>>,
}

impl Shell {
    pub(crate) fn on(daemon: &Daemon) -> Self {
        let (mut output, input) = Client::connect(daemon.socket()).unwrap().console().unwrap();
        let seen = Arc::new(Mutex::new(String::new()));
        let sees = Arc::clone(&seen);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                sees.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..length]));
            }
        });
        Self { input: Box::new(input), seen }
    }

    /// Waits for a line that the guest says with this in it, and answers with it.
    pub(crate) fn line(&self, part: &str) -> String {
        let text = || self.seen.lock().unwrap().clone();
        let found = || said(&text()).find(|line| line.contains(part)).map(str::to_owned);
        eventually(part, found, text)
    }

    /// Waits until the guest has said so many lines with this in it.
    pub(crate) fn lines(&self, part: &str, count: usize) {
        let text = || self.seen.lock().unwrap().clone();
        let found = || (said(&text()).filter(|line| line.contains(part)).count() >= count).then_some(());
        eventually(&format!("{part}, {count} times"), found, text);
    }

    /// Types a command, and waits for nothing.
    pub(crate) fn types(&mut self, command: &str) {
        self.input.write_all(format!("{command}\n").as_bytes()).unwrap();
        self.input.flush().unwrap();
    }

    /// Types a command that succeeds.
    pub(crate) fn does(&mut self, command: &str, word: &str) {
        self.types(&format!("{command}; echo {word}-$?"));
        self.line(&format!("{word}-0"));
    }

    /// Everything that was written is on the disk.
    fn finds_all(&mut self) {
        self.types(CHECK);
        let checked = self.line("checked-");
        let seen = self.seen.lock().unwrap().clone();
        let is_bad = said(&seen).any(|line| line.contains("bad-"));
        assert!(checked.trim().ends_with("-0") && !is_bad, "{seen}");
    }
}

/// What the guest says, after a prompt or not: not the echo of what is typed, in which there are variables.
fn said(console: &str) -> impl Iterator<Item = &str> {
    console.lines().filter(|line| !line.contains('$'))
}

/// A protected pair whose guest writes.
pub(crate) fn writing(world: &World, kernel: &Path) -> (Pair, Shell) {
    make_images(world);
    let pair = Pair::protected_with(world, |config| with_disk(world, kernel, config));
    let mut shell = Shell::on(&pair.alpha);
    starts_to_write(&mut shell);
    (pair, shell)
}

/// The guest begins to write, and has written all its files once.
pub(crate) fn starts_to_write(shell: &mut Shell) {
    // What is typed before is lost.
    shell.line("guest: userland is up");
    shell.does("mkdir -p /mnt && mount -t ext4 /dev/vda /mnt", "mounted");
    shell.types(&format!("({WRITE}) &"));
    shell.does("while [ \"$(cat /count 2>/dev/null || echo 0)\" -lt 60 ]; do sleep 0.1; done", "written");
}

/// The guest stops writing, finds everything, and lets go of its disk.
pub(crate) fn ends(shell: &mut Shell) {
    shell.types("touch /stop");
    shell.line("stopped-");
    shell.finds_all();
    shell.does("umount /mnt && sync", "unmounted");
}

pub(crate) fn must_be_sound(image: &Path) {
    let checked = Command::new("e2fsck").args(["-f", "-n"]).arg(image).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

fn same_content(world: &World) -> Option<()> {
    let content = |node| fs::read(image(world, node)).unwrap();
    (content("alpha") == content("beta")).then_some(())
}

#[test]
fn a_guest_whose_host_dies_goes_on_with_what_is_on_the_other_hosts_disk() {
    const NAME: &str = "a_guest_whose_host_dies_goes_on_with_what_is_on_the_other_hosts_disk";
    let Some(kernel) = guest(NAME) else { return };
    World::run_on(Engine::Soft, NAME, move |world| {
        let (mut pair, _) = writing(world, &kernel);
        pair.alpha.kill();
        pair.beta.wait_until(Role::Primary, State::Solo);
        let mut shell = Shell::on(&pair.beta);
        ends(&mut shell);
        must_be_sound(&image(world, "beta"));
        // Alpha's is behind, and becomes the same again.
        pair.alpha = Daemon::start(world, &pair.alpha_config);
        pair.wait_protected_the_other_way_round();
        eventually("both images are the same", || same_content(world), || pair.alpha.log());
        must_be_sound(&image(world, "alpha"));
    });
}

#[test]
fn after_a_switchover_under_load_both_images_become_the_same() {
    const NAME: &str = "after_a_switchover_under_load_both_images_become_the_same";
    let Some(kernel) = guest(NAME) else { return };
    World::run_on(Engine::Soft, NAME, move |world| {
        let (mut pair, _) = writing(world, &kernel);
        must_move(&pair.alpha, &["ftd_disk_differing_bytes"]);
        if !is_replay() {
            must_move(&pair.alpha, &["ftd_disk_unacked_bytes"]);
            must_move(&pair.beta, &["ftd_disk_journal_bytes"]);
        }
        let output = pair.alpha.ctl(&["failover", "--yes"]);
        assert_eq!(output.code, 0, "{output:?}");
        pair.wait_protected_the_other_way_round();
        let mut shell = Shell::on(&pair.beta);
        ends(&mut shell);
        eventually("both images are the same", || same_content(world), || pair.alpha.log());
        must_be_sound(&image(world, "alpha"));
        let output = pair.beta.ctl(&["stop", "--power-off", "--timeout", "0"]);
        assert_eq!(output.code, 0, "{output:?}");
        pair.beta.must_end(DaemonExit::Ok);
    });
}

/// What replay mode alone has: the backup's machine reads its own image.
#[test]
fn an_image_of_a_replaying_backup_that_is_wrong_is_found_when_the_guest_has_read_it() {
    const NAME: &str = "an_image_of_a_replaying_backup_that_is_wrong_is_found_when_the_guest_has_read_it";
    let Some(kernel) = guest(NAME).filter(|_| is_replay()) else { return };
    World::run_on(Engine::Soft, NAME, move |world| {
        let (pair, mut shell) = writing(world, &kernel);
        shell.types("touch /stop");
        shell.line("stopped-");
        shell.does("head -c 4096 /dev/zero | tr '\\0' x >/mnt/mark && sync", "marked");
        shell.does("cat /mnt/mark >/dev/null; sync; echo 3 >/proc/sys/vm/drop_caches", "dropped");
        let content = fs::read(image(world, "beta")).unwrap();
        let at = content.windows(4096).step_by(512).position(|block| block.iter().all(|byte| *byte == b'x'));
        let at = 512 * at.expect("the backup's image has what the guest has flushed") as u64;
        let beta = File::options().write(true).open(image(world, "beta")).unwrap();
        beta.write_all_at(b"y", at).unwrap();
        beta.sync_all().unwrap();
        shell.does("cat /mnt/mark >/dev/null", "read");
        pair.alpha.wait_for_log("the backup diverged at instruction");
        // The copy that replaces it compares what the maps have, and that is among it.
        eventually("both images are the same", || same_content(world), || pair.alpha.log());
    });
}
