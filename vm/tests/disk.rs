//! A Linux guest with a file system on a writable disk. What it has synced is there after a cold boot, also if it was
//! moved from machine to machine with requests in flight; a replay writes the same image. Needs a guest of
//! scripts/guest/build: FTD_TEST_GUEST is its directory. With FTD_TEST_ENGINE on that engine only.

use ft_disk::{Access, ImageStore, IoEngine, RawImage};
use ft_ram::GuestRam;
use ft_vm::devices::{Disk, Wiring};
use ft_vm::machine::{Machine, MachineError, MachineEvent};
use ft_vm::spec::{Boot, DiskSpec, EngineKind, MachineSpec};
use ft_vm::testing::{Remember, content, engines, is_too_slow_for_linux, spec};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const RAM_BYTES: u64 = 128 << 20;
const DISK_BYTES: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(3600);
const MOVE_EVERY: Duration = Duration::from_millis(500);
const MOVES_MAX: usize = 20;

/// The guest's directory, and a place for an image with an empty ext4.
fn needs(test: &str) -> Option<(PathBuf, tempfile::TempDir)> {
    let Some(guest) = std::env::var_os("FTD_TEST_GUEST").map(PathBuf::from) else {
        eprintln!("SKIPPED {test}: FTD_TEST_GUEST names no guest of scripts/guest/build");
        return None;
    };
    // Not in memory, where there may be no O_DIRECT.
    let directory =
        tempfile::tempdir_in(std::env::var_os("CARGO_TARGET_TMPDIR").unwrap_or(".".into())).unwrap();
    let image = directory.path().join("image");
    File::create(&image).unwrap().set_len(DISK_BYTES).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image).status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED {test}: mkfs.ext4 makes no file system (package e2fsprogs)");
        return None;
    }
    Some((guest, directory))
}

struct Vm {
    machine: Machine,
    ram: GuestRam,
    console: Remember,
}

fn disk_spec(engine: EngineKind) -> MachineSpec {
    let disks = vec![DiskSpec { bytes: DISK_BYTES, read_only: false }];
    MachineSpec { disks, rng: true, ..spec(engine, 1, RAM_BYTES) }
}

impl Vm {
    fn new(engine: EngineKind, image: &Path, console: &Remember) -> Self {
        let store = ImageStore::new(RawImage::open(image, Access::Writable).unwrap(), IoEngine::Auto);
        let wiring =
            Wiring { frames: None, console: Box::new(console.clone()), disks: vec![Disk::new(store)] };
        let ram = GuestRam::new(RAM_BYTES).unwrap();
        let machine = Machine::new(&disk_spec(engine), &ram, wiring).unwrap();
        Self { machine, ram, console: console.clone() }
    }

    /// Linux is up, and its disk is mounted.
    fn boot(&mut self, guest: &Path) {
        let words = std::fs::read_to_string(guest.join("cmdline")).unwrap();
        let cmdline: Vec<_> = words.split_whitespace().filter(|word| !word.starts_with("ip=")).collect();
        let initrd = Some(guest.join("initramfs.cpio"));
        let boot = Boot::Linux { kernel: guest.join("kernel"), initrd, cmdline: cmdline.join(" ") };
        self.machine.boot(&boot).unwrap();
        self.machine.resume().unwrap();
        self.until("userland is up");
        self.command(MOUNT, "mounted");
    }

    fn says(&self, words: &str) -> bool {
        if let Ok(event) = self.machine.events().try_recv() {
            assert_eq!(event, MachineEvent::Reset, "{}", self.console.text());
            panic!("the guest has ended: {}", self.console.text());
        }
        self.console.text().contains(words)
    }

    fn until(&self, words: &str) {
        let begun = Instant::now();
        while !self.says(words) {
            assert!(begun.elapsed() < PATIENCE, "no {words:?} in\n{}", self.console.text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Types a command that ends with `echo WORD-$?`; it has to succeed.
    fn command(&self, command: &str, word: &str) {
        self.type_in(command, word);
        self.until(&format!("{word}-0"));
    }

    fn type_in(&self, command: &str, word: &str) {
        self.machine.console().input(format!("{command}; echo {word}-$?\n").as_bytes());
    }

    /// Goes on in another machine, as on another host that has the same image.
    fn moved(mut self, engine: EngineKind, image: &Path) -> Self {
        self.machine.pause().unwrap();
        let mut state = Vec::new();
        self.machine.capture(&mut state).unwrap();
        let pages = content(&self.ram);
        let Self { machine, ram: _, console } = self;
        drop(machine);
        let mut next = Self::new(engine, image, &console);
        let view = next.ram.view().unwrap();
        pages.iter().for_each(|(index, page)| view.write_page(*index, page));
        next.machine.restore(&state).unwrap();
        next.machine.resume().unwrap();
        next
    }
}

const MOUNT: &str = "mkdir -p /mnt && mount -t ext4 /dev/vda /mnt";
const FILL: &str = "for i in 1 2 3 4 5 6 7 8; do dd if=/dev/urandom of=/mnt/$i bs=64k count=8 2>/dev/null; sync; done; \
                    md5sum /mnt/[1-8] >/mnt/sums && sync";
const CHECK: &str = "md5sum -c /mnt/sums";

#[test]
fn what_linux_has_synced_is_there_after_a_cold_boot_also_if_the_machine_was_moved_meanwhile() {
    const TEST: &str = "what Linux has synced is there";
    let Some((guest, directory)) = needs(TEST) else { return };
    let image = directory.path().join("image");
    for engine in engines(TEST).into_iter().filter(|engine| !is_too_slow_for_linux(*engine, TEST)) {
        let console = Remember::default();
        let mut vm = Vm::new(engine, &image, &console);
        vm.boot(&guest);
        vm.type_in(FILL, "filled");
        let (begun, mut moves) = (Instant::now(), 0);
        while !vm.says("filled-0") {
            assert!(begun.elapsed() < PATIENCE, "{}", console.text());
            std::thread::sleep(MOVE_EVERY);
            // A guest on a slow host comes to an end as well.
            if moves < MOVES_MAX {
                vm = vm.moved(engine, &image);
                moves += 1;
            }
        }
        eprintln!("{engine}: filled in {:?}, moved {moves} times", begun.elapsed());
        // The power fails.
        drop(vm);

        let console = Remember::default();
        let mut vm = Vm::new(engine, &image, &console);
        vm.boot(&guest);
        vm.command(CHECK, "same");
        vm.command("rm /mnt/* 2>/dev/null; umount /mnt", "clean");
        drop(vm);
        let checked = Command::new("e2fsck").args(["-f", "-n"]).arg(&image).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    }
}

#[test]
fn what_linux_has_synced_is_there_after_its_process_was_killed_in_the_middle_of_writing() {
    const TEST: &str = "what_linux_has_synced_is_there_after_its_process_was_killed_in_the_middle_of_writing";
    if let Some(image) = std::env::var_os(KILLED) {
        let guest = std::env::var_os("FTD_TEST_GUEST").map(PathBuf::from).unwrap();
        write_until_killed(&guest, Path::new(&image));
    }
    let Some((guest, directory)) = needs("what Linux has synced is there after SIGKILL") else { return };
    let image = directory.path().join("image");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([TEST, "--exact", "--nocapture"])
        .env(KILLED, &image)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(told.any(|line| line.contains(SYNCED)), "the child ends before it has synced");
    child.kill().unwrap();
    child.wait().unwrap();

    let mut vm = Vm::new(EngineKind::Soft, &image, &Remember::default());
    vm.boot(&guest);
    vm.command(CHECK, "same");
}

/// Set for the process that is to be killed: where its image is.
const KILLED: &str = "FTD_TEST_DISK_KILLED";
const SYNCED: &str = "the guest has synced";

fn write_until_killed(guest: &Path, image: &Path) -> ! {
    let mut vm = Vm::new(EngineKind::Soft, image, &Remember::default());
    vm.boot(guest);
    vm.command(FILL, "filled");
    println!("{SYNCED}");
    // More that is never synced.
    vm.type_in(
        "while :; do dd if=/dev/zero of=/mnt/more bs=64k count=64 conv=fsync 2>/dev/null; done",
        "never",
    );
    loop {
        assert!(!vm.says("never-"));
        std::thread::sleep(MOVE_EVERY);
    }
}

/// A machine that executes what `vm` does from now on, and its image, which is a copy.
fn twin(vm: &mut Vm, image: &Path, change: impl FnOnce(&Path)) -> (Vm, PathBuf) {
    vm.machine.pause().unwrap();
    assert!(vm.machine.land_disks(PATIENCE).unwrap());
    vm.machine.start_recording().unwrap();
    let mut state = Vec::new();
    vm.machine.capture(&mut state).unwrap();
    let copy = image.with_file_name("replayed");
    std::fs::copy(image, &copy).unwrap();
    change(&copy);
    let mut twin = Vm::new(EngineKind::Soft, &copy, &Remember::default());
    let view = twin.ram.view().unwrap();
    content(&vm.ram).iter().for_each(|(index, page)| view.write_page(*index, page));
    twin.machine.restore(&state).unwrap();
    twin.machine.start_replaying().unwrap();
    twin.machine.resume().unwrap();
    vm.machine.resume().unwrap();
    (twin, copy)
}

/// What has happened goes from one to the other.
fn cut(vm: &mut Vm, twin: &mut Vm) {
    let mut log = Vec::new();
    vm.machine.cut_log(&mut log, Box::new(|| ())).unwrap();
    twin.machine.feed_log(&log).unwrap();
}

#[test]
fn a_replay_writes_the_same_image_and_comes_to_the_same_state() {
    let Some((guest, directory)) = needs("a replay writes the same image") else { return };
    let image = directory.path().join("image");
    let mut vm = Vm::new(EngineKind::Soft, &image, &Remember::default());
    vm.boot(&guest);
    vm.type_in(FILL, "filled");
    std::thread::sleep(MOVE_EVERY);
    let (mut twin, replayed) = twin(&mut vm, &image, |_| ());
    let begun = Instant::now();
    while !vm.says("filled-0") {
        assert!(begun.elapsed() < PATIENCE, "{}", vm.console.text());
        std::thread::sleep(Duration::from_millis(50));
        cut(&mut vm, &mut twin);
    }
    vm.command("umount /mnt", "unmounted");
    vm.machine.pause().unwrap();
    cut(&mut vm, &mut twin);
    assert!(twin.machine.wait_replayed(PATIENCE).unwrap(), "the replay comes to the log's end");
    twin.machine.pause().unwrap();
    assert_eq!(twin.machine.registers().unwrap(), vm.machine.registers().unwrap());
    drop((vm.machine, twin.machine));
    assert!(std::fs::read(&image).unwrap() == std::fs::read(&replayed).unwrap(), "the images differ");
}

#[test]
fn a_replay_that_goes_live_while_its_guest_writes_goes_on_with_what_is_in_flight() {
    let Some((guest, directory)) = needs("a replay goes live while its guest writes") else { return };
    let image = directory.path().join("image");
    let mut vm = Vm::new(EngineKind::Soft, &image, &Remember::default());
    vm.boot(&guest);
    vm.type_in(FILL, "filled");
    let (mut twin, replayed) = twin(&mut vm, &image, |_| ());
    let begun = Instant::now();
    while begun.elapsed() < MOVE_EVERY {
        std::thread::sleep(Duration::from_millis(10));
        cut(&mut vm, &mut twin);
    }
    assert!(!vm.says("filled-0"), "it writes");
    // What it does from here on is lost with it.
    drop(vm);
    assert!(twin.machine.wait_replayed(PATIENCE).unwrap());
    twin.machine.pause().unwrap();
    twin.machine.go_live().unwrap();
    twin.machine.resume().unwrap();
    twin.until("filled-0");
    twin.command(CHECK, "same");
    twin.command("umount /mnt", "unmounted");
    drop(twin);
    let checked = Command::new("e2fsck").args(["-f", "-n"]).arg(&replayed).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

#[test]
fn a_sector_that_is_wrong_where_a_log_is_replayed_is_found_when_the_guest_has_read_it() {
    let Some((guest, directory)) = needs("a wrong sector is found") else { return };
    let image = directory.path().join("image");
    let mut vm = Vm::new(EngineKind::Soft, &image, &Remember::default());
    vm.boot(&guest);
    vm.command("head -c 4096 /dev/zero | tr '\\0' x >/mnt/mark && sync", "marked");
    vm.command("umount /mnt && mount -t ext4 /dev/vda /mnt", "again");
    let turn_round = |copy: &Path| {
        let mut content = std::fs::read(copy).unwrap();
        let mark = content.windows(512).step_by(512).position(|sector| sector == [b'x'; 512]);
        content[512 * mark.expect("it was synced")] = b'y';
        std::fs::write(copy, content).unwrap();
    };
    let (mut twin, _) = twin(&mut vm, &image, turn_round);
    vm.command("md5sum /mnt/mark", "read");
    // A digest is due each second.
    std::thread::sleep(Duration::from_secs(2));
    cut(&mut vm, &mut twin);
    let error = twin.machine.wait_replayed(PATIENCE).unwrap_err();
    assert!(matches!(error, MachineError::Diverged { .. }), "{error}");
}
