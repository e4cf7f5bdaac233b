//! A Linux kernel boots while it is moved from machine to machine all the time. Needs a kernel: FTD_TEST_KERNEL
//! (bzImage or vmlinux), and optionally FTD_TEST_CMDLINE, and FTD_TEST_INITRD with FTD_TEST_SAYS (what its init
//! prints), and FTD_TEST_VCPUS ("1 2 4": with one vCPU, with two, with four).

use ft_ram::GuestRam;
use ft_vm::machine::{Machine, MachineEvent};
use ft_vm::spec::{Boot, CpuModel, EngineKind, MachineSpec};
use ft_vm::testing::{Remember, engines, spec, wiring};
use std::time::{Duration, Instant};

const RAM_BYTES: u64 = 128 << 20;
const MOVE_EVERY: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(1800);

fn boot_from_environment() -> Option<(Boot, String)> {
    let kernel = std::env::var_os("FTD_TEST_KERNEL")?;
    let initrd = std::env::var_os("FTD_TEST_INITRD").map(Into::into);
    let cmdline = std::env::var("FTD_TEST_CMDLINE").unwrap_or_else(|_| "console=ttyS0 panic=-1".into());
    // Without an initramfs the last thing that a kernel does is to say that there is no root file system.
    let says = std::env::var("FTD_TEST_SAYS").unwrap_or_else(|_| "Kernel panic - not syncing: VFS".into());
    Some((Boot::Linux { kernel: kernel.into(), initrd, cmdline }, says))
}

/// Runs until the console says what it should, moving the machine now and then; the last machine.
fn boot(test: &str, spec: &MachineSpec, moving: bool) {
    let Some((boot, says)) = boot_from_environment() else {
        eprintln!("SKIPPED {test}: FTD_TEST_KERNEL names no kernel");
        return;
    };
    let console = Remember::default();
    let mut ram = GuestRam::new(spec.ram_bytes).unwrap();
    let mut machine = Machine::new(spec, &ram, wiring(&console)).unwrap();
    machine.boot(&boot).unwrap();
    machine.resume().unwrap();
    let begun = Instant::now();
    let (mut moves, mut moved_in) = (0, Duration::ZERO);
    let mut said = None;
    while said.is_none() && !console.text().contains(&says) {
        assert!(begun.elapsed() < PATIENCE, "it said no {says:?} but\n{}", console.text());
        said = machine.events().recv_timeout(MOVE_EVERY.max(2 * moved_in)).ok();
        if !moving || said.is_some() {
            continue;
        }
        let move_begun = Instant::now();
        machine.pause().unwrap();
        let mut state = Vec::new();
        machine.capture(&mut state).unwrap();
        let next_ram = GuestRam::new(spec.ram_bytes).unwrap();
        let view = next_ram.view().unwrap();
        ft_vm::testing::content(&ram).iter().for_each(|(index, page)| view.write_page(*index, page));
        let mut next = Machine::new(spec, &next_ram, wiring(&console)).unwrap();
        // It reads back what it was given.
        next.rehearse(&state).unwrap();
        next.restore(&state).unwrap();
        next.resume().unwrap();
        (machine, ram) = (next, next_ram);
        moves += 1;
        // On a slow host it gets on as well.
        moved_in = move_begun.elapsed();
    }
    eprintln!("{test}: {moves} moves in {:?}, event {said:?}", begun.elapsed());
    assert!(console.text().contains(&says), "{said:?} after\n{}", console.text());
    if said.is_none() && says.contains("panic") {
        // panic=-1: the kernel reboots at once.
        said = machine.events().recv_timeout(PATIENCE).ok();
    }
    if says.contains("panic") {
        assert_eq!(said, Some(MachineEvent::Reset), "{}", console.text());
    }
}

#[test]
fn a_linux_kernel_boots_and_resets() {
    for engine in engines("Linux boots") {
        boot(&format!("Linux boots on {engine}"), &spec(engine, 1, RAM_BYTES), false);
    }
}

/// The processor that FTD_TEST_CPU names, where the engine has more than one.
fn cpu(engine: EngineKind) -> CpuModel {
    let name = std::env::var("FTD_TEST_CPU").unwrap_or_default();
    let models = [CpuModel::X86_64V2, CpuModel::X86_64V3];
    let named = models.into_iter().find(|model| engine == EngineKind::Kvm && model.to_string() == name);
    named.unwrap_or_default()
}

#[test]
fn a_linux_kernel_boots_while_it_is_moved_from_machine_to_machine() {
    for engine in engines("Linux boots while moved") {
        let vcpus = std::env::var("FTD_TEST_VCPUS").unwrap_or_else(|_| "1".into());
        for vcpus in vcpus.split_whitespace().map(|vcpus| vcpus.parse().unwrap()) {
            let spec = MachineSpec { rng: true, cpu: cpu(engine), ..spec(engine, vcpus, RAM_BYTES) };
            let cpu = spec.cpu;
            boot(&format!("Linux with {vcpus} vCPUs ({cpu}) boots while moved, {engine}"), &spec, true);
        }
    }
}

/// A guest that minds its power button, as the guest builder makes it: FTD_TEST_GUEST is its directory. With
/// FTD_TEST_ENGINE=soft on that engine only: a stock kernel does not boot on a KVM that emulates.
#[test]
fn a_linux_guest_powers_off_when_its_power_button_is_pressed() {
    let Some(guest) = std::env::var_os("FTD_TEST_GUEST").map(std::path::PathBuf::from) else {
        eprintln!("SKIPPED a_linux_guest_powers_off: FTD_TEST_GUEST names no guest of scripts/guest/build");
        return;
    };
    for engine in engines("power button of Linux") {
        let spec = MachineSpec { rng: true, ..spec(engine, 1, RAM_BYTES) };
        let ram = GuestRam::new(spec.ram_bytes).unwrap();
        let console = Remember::default();
        let mut machine = Machine::new(&spec, &ram, wiring(&console)).unwrap();
        let words = std::fs::read_to_string(guest.join("cmdline")).unwrap();
        // Without a card there is nothing to give the address to.
        let cmdline: Vec<_> = words.split_whitespace().filter(|word| !word.starts_with("ip=")).collect();
        let initrd = Some(guest.join("initramfs.cpio"));
        machine
            .boot(&Boot::Linux { kernel: guest.join("kernel"), initrd, cmdline: cmdline.join(" ") })
            .unwrap();
        machine.resume().unwrap();
        let begun = Instant::now();
        while !console.text().contains("userland is up") {
            assert!(begun.elapsed() < PATIENCE, "{}", console.text());
            assert!(machine.events().try_recv().is_err(), "{}", console.text());
            std::thread::sleep(Duration::from_millis(20));
        }
        machine.press_power_button().unwrap();
        let said = machine.events().recv_timeout(PATIENCE);
        eprintln!("{engine}: {said:?} {:?} after its boot began", begun.elapsed());
        assert_eq!(said, Ok(MachineEvent::PoweredOff), "{}", console.text());
    }
}
