//! Linux with its card and its disk on PCI: by messages and by lines, moved and replayed. Needs the guest of
//! scripts/guest/build: FTD_TEST_GUEST is its directory. On the software engine; FTD_TEST_ENGINE=kvm: on KVM.

use ft_ram::GuestRam;
use ft_vm::spec::{BusKind, EngineKind};
use ft_vm::testing::content;
use ft_vm::testing::linux::{DISK_BYTES, LinuxVm, guest};
use std::path::{Path, PathBuf};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(600);

fn engine() -> EngineKind {
    match std::env::var("FTD_TEST_ENGINE").as_deref() {
        Ok("kvm") => EngineKind::Kvm,
        _ => EngineKind::Soft,
    }
}

/// The guest, or word that there is none.
fn needed(test: &str) -> Option<PathBuf> {
    let guest = guest();
    if guest.is_none() {
        eprintln!("SKIPPED {test}: FTD_TEST_GUEST names no guest of scripts/guest/build");
    }
    guest
}

/// A disk that begins with this.
fn image(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, b"first words").unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(DISK_BYTES).unwrap();
    path
}

fn on_pci(guest: &Path, image: &Path, words: &str) -> LinuxVm {
    let mut vm = LinuxVm::new(engine(), BusKind::Pci, image);
    vm.boot(guest, words);
    vm
}

/// Reads, writes and asks, and finds what it should.
fn uses_its_devices(vm: &LinuxVm, number: u32) {
    assert!(vm.shell("head -c 11 /dev/vda; echo").contains("first words"));
    vm.arp();
    let write = format!("printf word{number} | dd of=/dev/vda bs=1 seek={} conv=notrunc", 4096 * number);
    vm.shell(&format!("{write} 2>/dev/null; sync; echo 3 >/proc/sys/vm/drop_caches"));
    let read = vm.shell(&format!("dd if=/dev/vda bs=1 skip={} count=5 2>/dev/null; echo", 4096 * number));
    assert!(read.contains(&format!("word{number}")), "{read}");
    // All of it by the bus: there is nothing else.
    let drivers = vm.shell("ls /sys/bus/pci/drivers/virtio-pci | grep -c 0000");
    assert!(drivers.contains('3'), "{drivers}");
}

#[test]
fn linux_on_pci_has_messages_and_a_replay_of_it_comes_to_the_same_bits() {
    let Some(guest) = needed("Linux on PCI, replayed") else { return };
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (image(dir.path(), "ours"), image(dir.path(), "theirs"));
    let mut vm = on_pci(&guest, &ours, "");
    let records = engine() == EngineKind::Soft;
    let mut start = Vec::new();
    let start_memory = content(&vm.ram);
    if records {
        vm.machine.start_recording().unwrap();
        vm.machine.capture(&mut start).unwrap();
    }
    vm.machine.resume().unwrap();
    vm.until("userland is up");
    uses_its_devices(&vm, 1);
    let interrupts = vm.shell("grep virtio /proc/interrupts");
    eprintln!("{interrupts}");
    for queue in ["virtio0-input.0", "virtio0-output.0", "virtio1-req.0"] {
        let line = interrupts.lines().find(|line| line.contains(queue)).expect(queue);
        assert!(line.contains("PCI-MSI"), "{line}");
    }
    if !records {
        return;
    }
    vm.machine.pause().unwrap();
    assert!(vm.machine.land_disks(PATIENCE).unwrap());
    let (mut end, mut log) = (Vec::new(), Vec::new());
    vm.machine.capture(&mut end).unwrap();
    vm.machine.cut_log(&mut log, Box::new(|| ())).unwrap();

    let mut there = LinuxVm::new(EngineKind::Soft, BusKind::Pci, &theirs);
    put(&start_memory, &there.ram);
    there.machine.restore(&start).unwrap();
    there.machine.start_replaying().unwrap();
    there.machine.resume().unwrap();
    there.machine.feed_log(&log).unwrap();
    assert!(there.machine.wait_replayed(PATIENCE).unwrap());
    there.machine.pause().unwrap();
    let mut state = Vec::new();
    there.machine.capture(&mut state).unwrap();
    assert!(state == end, "the state differs");
    assert!(content(&there.ram) == content(&vm.ram), "memory differs");
    drop((vm, there));
    assert!(std::fs::read(ours).unwrap() == std::fs::read(theirs).unwrap(), "the disks differ");
}

fn put(pages: &[(u32, Box<[u8; 4096]>)], ram: &GuestRam) {
    let view = ram.view().unwrap();
    pages.iter().for_each(|(index, page)| view.write_page(*index, page));
}

#[test]
fn linux_on_pci_goes_on_elsewhere_again_and_again() {
    let Some(guest) = needed("Linux on PCI, moved") else { return };
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "disk");
    let mut vm = on_pci(&guest, &image, "");
    vm.machine.resume().unwrap();
    vm.until("userland is up");
    for number in 1..6 {
        uses_its_devices(&vm, number);
        vm.machine.pause().unwrap();
        let mut state = Vec::new();
        vm.machine.capture(&mut state).unwrap();
        let memory = content(&vm.ram);
        // The image is the other one's now.
        drop(vm);
        vm = LinuxVm::new(engine(), BusKind::Pci, &image);
        put(&memory, &vm.ram);
        vm.machine.rehearse(&state).unwrap();
        vm.machine.restore(&state).unwrap();
        vm.machine.resume().unwrap();
    }
    uses_its_devices(&vm, 7);
}

#[test]
fn linux_on_pci_without_messages_has_its_interrupts_by_lines() {
    let Some(guest) = needed("Linux on PCI, by lines") else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut vm = on_pci(&guest, &image(dir.path(), "disk"), "pci=nomsi");
    vm.machine.resume().unwrap();
    vm.until("userland is up");
    uses_its_devices(&vm, 1);
    let interrupts = vm.shell("grep virtio /proc/interrupts");
    eprintln!("{interrupts}");
    for device in ["virtio0", "virtio1", "virtio2"] {
        let line = interrupts.lines().find(|line| line.contains(device)).expect(device);
        assert!(line.contains("IO-APIC") && line.contains("fasteoi"), "{line}");
    }
}
