//! What a stock Linux kernel makes of pvpanic, the watchdog and the RTC, and what its clocks show where the VM stood
//! still. Needs the guest of `scripts/guest/build debian`: FTD_TEST_DEBIAN is its directory. On the software engine:
//! the stock kernel does not boot on a KVM that emulates. FTD_TEST_ENGINE=kvm: on KVM.

use ft_ram::GuestRam;
use ft_vm::machine::MachineEvent;
use ft_vm::spec::{BusKind, EngineKind};
use ft_vm::testing::content;
use ft_vm::testing::linux::{DISK_BYTES, LinuxVm};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const PATIENCE: Duration = Duration::from_secs(600);
/// For how long a VM stands still here.
const STILL_S: u64 = 20;
/// What a shell and a busy host may take for a look at a clock.
const LOOK_S: u64 = 5;

fn engine() -> EngineKind {
    match std::env::var("FTD_TEST_ENGINE").as_deref() {
        Ok("kvm") => EngineKind::Kvm,
        _ => EngineKind::Soft,
    }
}

/// The guest, or word that there is none.
fn needed(test: &str) -> Option<PathBuf> {
    let guest = std::env::var_os("FTD_TEST_DEBIAN").map(PathBuf::from);
    if guest.is_none() {
        eprintln!("SKIPPED {test}: FTD_TEST_DEBIAN names no guest of `scripts/guest/build debian`");
    }
    guest
}

fn image(dir: &Path) -> PathBuf {
    let path = dir.join("disk");
    std::fs::File::create(&path).unwrap().set_len(DISK_BYTES).unwrap();
    path
}

fn booted(guest: &Path, image: &Path) -> LinuxVm {
    let mut vm = LinuxVm::new(engine(), BusKind::Pci, image);
    vm.boot(guest, "");
    vm.machine.resume().unwrap();
    vm.until("userland is up");
    vm
}

/// Another machine goes on with it, after so long.
fn moved(mut vm: LinuxVm, image: &Path, after: Duration) -> LinuxVm {
    vm.machine.pause().unwrap();
    let mut state = Vec::new();
    vm.machine.capture(&mut state).unwrap();
    let memory = content(&vm.ram);
    drop(vm);
    std::thread::sleep(after);
    let mut there = LinuxVm::new(engine(), BusKind::Pci, image);
    put(&memory, &there.ram);
    there.machine.rehearse(&state).unwrap();
    there.machine.restore(&state).unwrap();
    there.machine.resume().unwrap();
    there
}

fn put(pages: &[(u32, Box<[u8; 4096]>)], ram: &GuestRam) {
    let view = ram.view().unwrap();
    pages.iter().for_each(|(index, page)| view.write_page(*index, page));
}

/// What the machine says next.
fn said(vm: &LinuxVm) -> MachineEvent {
    let begun = Instant::now();
    loop {
        if let Some(event) = vm.machine.next_event() {
            return event;
        }
        assert!(begun.elapsed() < PATIENCE, "it says nothing");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn says_nothing(vm: &LinuxVm, span: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < span {
        assert_eq!(vm.machine.next_event(), None, "after {:?}", begun.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_stock_kernel_that_panics_says_so_and_then_resets() {
    let Some(guest) = needed("a stock kernel panics") else { return };
    let dir = tempfile::tempdir().unwrap();
    let vm = booted(&guest, &image(dir.path()));
    assert!(
        vm.shell("ls /sys/bus/acpi/drivers/pvpanic-mmio /sys/bus/platform/drivers/pvpanic-mmio")
            .contains("QEMU0001")
    );
    vm.machine.console().input(b"echo c >/proc/sysrq-trigger\n");
    assert_eq!(said(&vm), MachineEvent::Panicked { dumps: false });
    assert_eq!(said(&vm), MachineEvent::Reset, "panic=-1");
}

#[test]
fn a_stock_kernels_watchdog_is_fed_is_moved_and_fires_when_nobody_feeds_it() {
    let Some(guest) = needed("a stock kernel's watchdog") else { return };
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let vm = booted(&guest, &image);
    vm.shell("watchdog -T 6 -t 2 /dev/watchdog0");
    says_nothing(&vm, Duration::from_secs(12));
    // Where it would have fired several times over, had it counted.
    let vm = moved(vm, &image, Duration::from_secs(STILL_S));
    says_nothing(&vm, Duration::from_secs(8));
    vm.shell("killall -9 watchdog");
    let begun = Instant::now();
    let vm = moved(vm, &image, Duration::ZERO);
    assert_eq!(said(&vm), MachineEvent::WatchdogFired);
    eprintln!("the watchdog fired {:?} after its feeder was killed", begun.elapsed());
}

/// CLOCK_REALTIME and the RTC, in seconds apart from the host's time, and CLOCK_MONOTONIC in seconds.
struct Clocks {
    real: i64,
    rtc: i64,
    monotonic: u64,
}

impl Clocks {
    fn of(vm: &LinuxVm) -> Self {
        let text = vm.shell(
            "echo @ $(date -u +%s) $(cat /sys/class/rtc/rtc0/since_epoch) $(cut -d. -f1 /proc/uptime) @",
        );
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        let numbers: Vec<i64> = text
            .split('@')
            .find_map(|part| {
                let numbers: Vec<_> = part.split_whitespace().filter_map(|word| word.parse().ok()).collect();
                (numbers.len() == 3).then_some(numbers)
            })
            .unwrap_or_else(|| panic!("{text}"));
        let clocks = Self { real: numbers[0] - now, rtc: numbers[1] - now, monotonic: numbers[2] as u64 };
        eprintln!("CLOCK_REALTIME {:+} s, RTC {:+} s, up {} s", clocks.real, clocks.rtc, clocks.monotonic);
        clocks
    }

    fn is_right(apart: i64) -> bool {
        apart.unsigned_abs() <= LOOK_S
    }
}

#[test]
fn what_the_clocks_of_a_stock_kernel_show_where_the_vm_stood_still() {
    let Some(guest) = needed("a stock kernel's clocks") else { return };
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let mut vm = booted(&guest, &image);
    let at_boot = Clocks::of(&vm);
    assert!(Clocks::is_right(at_boot.real) && Clocks::is_right(at_boot.rtc), "at boot");

    // In its process: all clocks go on.
    vm.machine.pause().unwrap();
    std::thread::sleep(Duration::from_secs(STILL_S));
    vm.machine.resume().unwrap();
    let after_wait = Clocks::of(&vm);
    assert!(Clocks::is_right(after_wait.real) && Clocks::is_right(after_wait.rtc), "after it stood still");
    assert!(after_wait.monotonic >= at_boot.monotonic + STILL_S);

    // In a state that lay on disk: the RTC alone goes on.
    let vm = moved(vm, &image, Duration::from_secs(STILL_S));
    let after_move = Clocks::of(&vm);
    assert!(Clocks::is_right(after_move.rtc), "the RTC goes on");
    assert!(after_move.real < -(STILL_S as i64 - LOOK_S as i64), "CLOCK_REALTIME stood still");
    assert!(after_move.monotonic < after_wait.monotonic + STILL_S, "CLOCK_MONOTONIC stood still");

    // What the operator does.
    vm.shell("hwclock --hctosys --utc");
    let after_set = Clocks::of(&vm);
    assert!(Clocks::is_right(after_set.real) && Clocks::is_right(after_set.rtc), "after hwclock");
}
