//! How often a Linux guest leaves itself for a device, on virtio-mmio and on PCI: accesses a disk request and a frame.
//! Needs the guest of scripts/guest/build (FTD_TEST_GUEST); on the software engine, where the counts do not depend on
//! the host's speed.

use ft_vm::spec::{BusKind, EngineKind};
use ft_vm::testing::linux::{DISK_BYTES, LinuxVm, guest};
use std::io::Write;

const REQUESTS: u64 = 1000;
const FRAMES: u64 = 200;

fn main() {
    let Some(guest) = guest() else {
        eprintln!("SKIPPED: FTD_TEST_GUEST names no guest of scripts/guest/build");
        return;
    };
    println!("{:>5} {:>28} {:>28}", "bus", "accesses a disk request", "accesses a frame asked for");
    for bus in [BusKind::Mmio, BusKind::Pci] {
        let mut image = tempfile::NamedTempFile::new().unwrap();
        image.write_all(&vec![7; DISK_BYTES as usize]).unwrap();
        let mut vm = LinuxVm::new(EngineKind::Soft, bus, image.path());
        vm.boot(&guest, "");
        vm.machine.resume().unwrap();
        vm.until("userland is up");
        vm.arp();
        let idle = during(&vm, |vm| drop(vm.shell("true")));
        let read = format!("dd if=/dev/vda of=/dev/null bs=4k count={REQUESTS} iflag=direct 2>/dev/null");
        let disk = during(&vm, |vm| drop(vm.shell(&read)));
        let card = during(&vm, |vm| (0..FRAMES).for_each(|_| vm.arp()));
        let each = |all: u64, count: u64| all as f64 / count as f64;
        println!(
            "{:>5} {:>28.2} {:>28.2}",
            bus.to_string(),
            each(disk.saturating_sub(idle), REQUESTS),
            each(card, FRAMES)
        );
    }
}

/// Accesses while this is done.
fn during(vm: &LinuxVm, work: impl FnOnce(&LinuxVm)) -> u64 {
    let before = vm.machine.counters().accesses;
    work(vm);
    vm.machine.counters().accesses - before
}
