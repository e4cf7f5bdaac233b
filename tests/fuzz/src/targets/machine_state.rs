//! The state of a machine that a peer or a file brings. An input is its body behind a byte of settings; the header is
//! put before it. A machine takes it over wholly, and goes on from it, or refuses it and is as good as before.

use ft_ram::GuestRam;
use ft_vm::devices::{ConsoleSink, Disk, Wiring};
use ft_vm::guest::CMDLINE_DEFAULT;
use ft_vm::machine::Machine;
use ft_vm::spec::{Boot, BusKind, CpuModel, DiskSpec, EngineKind, FreestandingImage, MachineSpec, NetSpec};
use ft_vm::state::{STATE_OLDEST, STATE_VERSION, pages_written_by_restore};
use std::fs::File;
use std::sync::OnceLock;

const RAM_BYTES: u64 = 16 << 20;
const DISK_BYTES: u64 = 64 << 10;
const HEADER_BYTES: usize = 16;

const OLDER: u8 = 1;
const ON_PCI: u8 = 2;
/// The machine goes on from it for a moment.
const RUNS: u8 = 4;

struct Silent;

impl ConsoleSink for Silent {
    fn write(&mut self, _: &[u8]) {}
}

fn spec(settings: u8) -> MachineSpec {
    MachineSpec {
        engine: EngineKind::Soft,
        vcpus: 1,
        ram_bytes: RAM_BYTES,
        nets: vec![NetSpec { mac: [2, 0, 0, 0, 0, 1], mtu: 1500 }],
        disks: vec![DiskSpec { bytes: DISK_BYTES, read_only: true }],
        rng: true,
        bus: if settings & ON_PCI == 0 { BusKind::Mmio } else { BusKind::Pci },
        cpu: CpuModel::Host,
    }
}

/// An image of zeroes, which all machines read.
fn image() -> File {
    static IMAGE: OnceLock<File> = OnceLock::new();
    let image = IMAGE.get_or_init(|| {
        let image = tempfile::tempfile().expect("there is room for a file");
        image.set_len(DISK_BYTES).expect("it can be as large");
        image
    });
    image.try_clone().expect("there are descriptors")
}

fn machine(settings: u8) -> (Machine, GuestRam) {
    let ram = GuestRam::new(RAM_BYTES).expect("there is memory");
    let image = ft_disk::RawImage::reading(image()).expect("it is an image");
    let disk = Disk::new(ft_disk::ImageStore::new(image, ft_disk::IoEngine::Threads));
    let wiring = Wiring { frames: None, console: Box::new(Silent), disks: vec![disk] };
    (Machine::new(&spec(settings), &ram, wiring).expect("a machine can be made"), ram)
}

fn captured(machine: &mut Machine, version: u16) -> Vec<u8> {
    let mut state = Vec::new();
    machine.capture_as(version, &mut state).expect("what a machine is in can be captured");
    state
}

/// See the module.
pub(crate) fn run(input: &[u8]) {
    let Some((&settings, body)) = input.split_first() else { return };
    let version = if settings & OLDER == 0 { STATE_VERSION } else { STATE_OLDEST };
    let mut state = b"FTVM".to_vec();
    state.extend_from_slice(&version.to_le_bytes());
    state.extend_from_slice(&[0; 2]);
    state.extend_from_slice(&(body.len() as u32).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&state), body);
    state.extend_from_slice(&crc.to_le_bytes());
    state.extend_from_slice(body);
    // Most inputs end here, without a machine.
    if let Err(error) = pages_written_by_restore(&state) {
        assert!(!error.to_string().is_empty());
        return;
    }
    let (mut machine, _ram) = machine(settings);
    match machine.restore(&state) {
        Ok(()) => {
            assert!(captured(&mut machine, version) == state, "it is another state when it is read back")
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            // What was refused leaves nothing behind that a good state would meet.
            let good = good(settings);
            machine.restore(good).expect("a good state is taken over after one that was refused");
            assert!(captured(&mut machine, STATE_VERSION) == good, "something of what was refused is left");
            return;
        }
    }
    if settings & RUNS != 0 {
        machine.resume().expect("what was taken over can run");
        std::thread::sleep(std::time::Duration::from_millis(2));
        machine.pause().expect("what runs can be paused");
        // A guest that has crashed meanwhile has no state.
        let _ = machine.capture(&mut Vec::new());
    }
}

/// The state of a guest that has begun, or on PCI that of a machine without one.
fn good(settings: u8) -> &'static [u8] {
    static STATES: [OnceLock<Vec<u8>>; 2] = [const { OnceLock::new() }; 2];
    let bus = settings & ON_PCI;
    STATES[usize::from(bus != 0)].get_or_init(|| {
        let (mut machine, _ram) = machine(bus);
        // The guest knows no PCI.
        if bus == 0 {
            let (image, cmdline) = (FreestandingImage::BuiltIn, CMDLINE_DEFAULT.to_owned());
            machine.boot(&Boot::Freestanding { image, cmdline }).expect("the guest can be booted");
            machine.resume().expect("it can run");
            while machine.count() == 0 {
                std::thread::yield_now();
            }
            machine.pause().expect("it can be paused");
        }
        captured(&mut machine, STATE_VERSION)
    })
}

/// See the module.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for settings in [0, OLDER, ON_PCI, ON_PCI | RUNS] {
        let mut seed = vec![settings];
        if settings & OLDER == 0 {
            seed.extend_from_slice(&good(settings)[HEADER_BYTES..]);
        } else {
            let (mut machine, _ram) = machine(settings);
            seed.extend_from_slice(&captured(&mut machine, STATE_OLDEST)[HEADER_BYTES..]);
        }
        seeds.push(seed);
    }
    seeds
}
