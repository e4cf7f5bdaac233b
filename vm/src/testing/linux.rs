//! A machine with the Linux guest of scripts/guest/build (its directory is FTD_TEST_GUEST), a card and a disk.

use super::{Remember, spec};
use crate::devices::{
    Delivered, Disk, FrameSink, NET_HEADER_BYTES, Offloads, Transmit, Wiring, plain_packet,
};
use crate::machine::Machine;
use crate::spec::{Boot, BusKind, DiskSpec, EngineKind, MachineSpec, NetSpec};
use ft_disk::{Access, ImageStore, IoEngine, RawImage};
use ft_ram::GuestRam;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Enough for a distribution's kernel.
const RAM_BYTES: u64 = 128 << 20;
const PATIENCE: Duration = Duration::from_secs(600);
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// Bytes of its disk.
pub const DISK_BYTES: u64 = 8 << 20;

/// The guest's directory, if there is one.
pub fn guest() -> Option<PathBuf> {
    std::env::var_os("FTD_TEST_GUEST").map(PathBuf::from)
}

/// What the guest has sent.
#[derive(Clone, Default)]
struct Sent(Arc<Mutex<Vec<Vec<u8>>>>);

impl FrameSink for Sent {
    fn transmit(&self, _: u8, packet: &[u8]) -> Transmit {
        self.0.lock().unwrap().push(packet[NET_HEADER_BYTES..].to_vec());
        Transmit::Taken
    }

    fn set_offloads(&self, _: u8, _: Offloads) {}
}

/// The machine.
pub struct LinuxVm {
    /// Itself.
    pub machine: Machine,
    /// Its memory.
    pub ram: GuestRam,
    console: Remember,
    sent: Sent,
}

impl LinuxVm {
    /// With its disk in this file, which has [`DISK_BYTES`].
    pub fn new(engine: EngineKind, bus: BusKind, image: &Path) -> Self {
        let spec = MachineSpec {
            nets: vec![NetSpec { mac: [0x52, 0x54, 0, 0xf7, 0xd0, 1], mtu: 1500 }],
            disks: vec![DiskSpec { bytes: DISK_BYTES, read_only: false }],
            rng: true,
            bus,
            ..spec(engine, 1, RAM_BYTES)
        };
        let (console, sent) = (Remember::default(), Sent::default());
        let store = ImageStore::new(RawImage::open(image, Access::Writable).unwrap(), IoEngine::Auto);
        let wiring = Wiring {
            frames: Some(Arc::new(sent.clone())),
            console: Box::new(console.clone()),
            disks: vec![Disk::new(store)],
        };
        let ram = GuestRam::new(RAM_BYTES).unwrap();
        Self { machine: Machine::new(&spec, &ram, wiring).unwrap(), ram, console, sent }
    }

    /// Puts the guest into memory, with more words on its command line. Nothing runs.
    pub fn boot(&mut self, guest: &Path, words: &str) {
        let cmdline = std::fs::read_to_string(guest.join("cmdline")).unwrap();
        let initrd = Some(guest.join("initramfs.cpio"));
        let cmdline = format!("{} {words}", cmdline.trim());
        self.machine.boot(&Boot::Linux { kernel: guest.join("kernel"), initrd, cmdline }).unwrap();
    }

    /// Waits for these words on the console.
    pub fn until(&self, words: &str) {
        let begun = Instant::now();
        while !self.console.text().contains(words) {
            assert!(begun.elapsed() < PATIENCE, "no {words:?} in\n{}", self.console.text());
            let said = self.machine.events().try_recv();
            assert!(said.is_err(), "{said:?} after\n{}", self.console.text());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Has its shell execute a command; what it has printed.
    pub fn shell(&self, command: &str) -> String {
        let before = self.console.text().len();
        // What is typed is seen as well, and is not what is waited for.
        let line = format!("{command}; echo the-${{x:-}}end\n");
        line.as_bytes().chunks(16).for_each(|bytes| {
            self.machine.console().input(bytes);
            std::thread::sleep(Duration::from_millis(20));
        });
        let begun = Instant::now();
        loop {
            let text = self.console.text()[before..].to_owned();
            if let Some(end) = text.find("the-end") {
                let typed = text.find('\n').unwrap_or(0);
                return text[typed.min(end)..end].to_owned();
            }
            assert!(begun.elapsed() < PATIENCE, "{command}: {text}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks for the guest's address on its network until it answers.
    pub fn arp(&self) {
        let mut frame = [[0xff; 6], HOST_MAC].concat();
        frame.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend_from_slice(&HOST_MAC);
        frame.extend_from_slice(&[10, 77, 0, 1, 0, 0, 0, 0, 0, 0, 10, 77, 0, 2]);
        let answers = || {
            self.sent
                .0
                .lock()
                .unwrap()
                .iter()
                .filter(|frame| frame[12..14] == [8, 6] && frame[21] == 2)
                .count()
        };
        let packet = plain_packet(&frame);
        let before = answers();
        let begun = Instant::now();
        while answers() == before {
            assert!(begun.elapsed() < PATIENCE, "no answer; {}", self.console.text());
            if self.machine.net(0).unwrap().deliver(&packet) != Delivered::Yes {
                self.machine.net(0).unwrap().wait_for_buffers(Duration::from_secs(1));
            }
            let asked = Instant::now();
            while answers() == before && asked.elapsed() < Duration::from_millis(500) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
