//! A real machine with a card, a disk and a source of random numbers, and the guest that does accesses in it.

use crate::guest::{COUNT, DONE, GuestAccess, LIST, LIST_MAX, WANTED, code};
use ft_disk::{Access as DiskAccess, ImageStore, IoEngine, RawImage};
use ft_ram::layout::PAGE_SIZE;
use ft_ram::{GuestRam, PageIndex, RamView};
use ft_vm::devices::{Disk, FrameSink, Offloads, Transmit, Wiring};
use ft_vm::machine::{Machine, MachineEvent};
use ft_vm::spec::{Boot, BusKind, DiskSpec, EngineKind, MachineSpec, NetSpec};
use ft_vm::testing::{Remember, elf, spec};
use std::io::Write;
use std::sync::atomic::{Ordering::SeqCst, fence};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const RAM_BYTES: u64 = 16 << 20;
/// Queues lie from here on; see [`crate::driver::Queue`].
pub const RINGS: u64 = 0x70_0000;
/// Tables of descriptors.
pub const TABLES: u64 = 0x78_0000;
/// Buffers, up to the end of memory.
pub const BUFFERS: u64 = 0x80_0000;
pub const DISK_BYTES: u64 = 8 << 20;
/// Long beyond any speed: who waits so long waits for ever.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Keeps what the guest sends.
#[derive(Default)]
pub struct Frames(Mutex<Vec<Vec<u8>>>);

impl Frames {
    pub fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl FrameSink for Frames {
    fn transmit(&self, _: u8, packet: &[u8]) -> Transmit {
        self.0.lock().unwrap().push(packet.to_vec());
        Transmit::Taken
    }

    fn set_offloads(&self, _: u8, _: Offloads) {}
}

pub struct TargetVm {
    pub machine: Machine,
    pub view: RamView,
    pub frames: Arc<Frames>,
    image: Arc<RawImage>,
    lists: std::cell::Cell<u64>,
}

fn hostile_spec(engine: EngineKind, bus: BusKind) -> MachineSpec {
    let nets = vec![NetSpec { mac: [2, 0, 0, 0, 0, 1], mtu: 1500 }];
    let disks = vec![DiskSpec { bytes: DISK_BYTES, read_only: false }];
    MachineSpec { nets, disks, rng: true, bus, ..spec(engine, 1, RAM_BYTES) }
}

impl TargetVm {
    /// The guest runs.
    pub fn boot(engine: EngineKind, bus: BusKind) -> Self {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(DISK_BYTES).unwrap();
        let image = Arc::new(RawImage::open(image.path(), DiskAccess::Writable).unwrap());
        let mut vm = Self::new(&hostile_spec(engine, bus), image);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&elf(&code())).unwrap();
        let (kernel, initrd, cmdline) = (file.path().to_owned(), None, String::new());
        vm.machine.boot(&Boot::Linux { kernel, initrd, cmdline }).unwrap();
        vm.machine.resume().unwrap();
        vm
    }

    fn new(spec: &MachineSpec, image: Arc<RawImage>) -> Self {
        let ram = GuestRam::new(RAM_BYTES).unwrap();
        let frames = Arc::new(Frames::default());
        let wiring = Wiring {
            frames: Some(Arc::clone(&frames) as Arc<dyn FrameSink>),
            console: Box::new(Remember::default()),
            disks: vec![Disk::new(ImageStore::new(Arc::clone(&image), IoEngine::Auto))],
        };
        let machine = Machine::new(spec, &ram, wiring).unwrap();
        let view = ram.view().unwrap();
        Self { machine, view, frames, image, lists: 0.into() }
    }

    pub fn bus(&self) -> BusKind {
        self.machine.spec().bus
    }

    /// Another machine with what this one has now, as on another host. This one goes on; the other is paused.
    pub fn twin(&mut self) -> Self {
        self.machine.pause().unwrap();
        let mut state = Vec::new();
        self.machine.capture(&mut state).unwrap();
        let mut twin = Self::new(self.machine.spec(), Arc::clone(&self.image));
        let mut page = [0; PAGE_SIZE];
        self.view
            .held(|run| {
                run.for_each(|index| {
                    self.view.read_page(index, &mut page);
                    twin.view.write_page(index, &page);
                });
                std::io::Result::Ok(())
            })
            .unwrap();
        twin.machine.restore(&state).unwrap();
        twin.lists = self.lists.clone();
        self.machine.resume().unwrap();
        twin
    }

    /// Writes memory, after all that was written before.
    pub fn poke(&self, address: u64, mut bytes: &[u8]) {
        fence(SeqCst);
        let mut address = address as usize;
        while !bytes.is_empty() {
            let (page, offset) = (address / PAGE_SIZE, address % PAGE_SIZE);
            let (now, rest) = bytes.split_at(bytes.len().min(PAGE_SIZE - offset));
            self.view.write_in_page(page as PageIndex, offset, now);
            (address, bytes) = (address + now.len(), rest);
        }
    }

    /// Reads memory, after all that was read before: an entry of a ring is there once the index says so.
    pub fn peek(&self, address: u64, bytes: usize) -> Vec<u8> {
        fence(SeqCst);
        let (first, skip) = (address as usize / PAGE_SIZE, address as usize % PAGE_SIZE);
        let mut page = [0; PAGE_SIZE];
        let mut memory = Vec::new();
        for index in first..(first * PAGE_SIZE + skip + bytes).div_ceil(PAGE_SIZE) {
            self.view.read_page(index as PageIndex, &mut page);
            memory.extend_from_slice(&page);
        }
        memory[skip..skip + bytes].to_vec()
    }

    pub fn peek_u16(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.peek(address, 2).try_into().unwrap())
    }

    fn peek_u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.peek(address, 8).try_into().unwrap())
    }

    /// Waits until this holds.
    pub fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let begun = Instant::now();
        while !holds() {
            self.is_well(what);
            assert!(begun.elapsed() < PATIENCE, "hangs: {what}");
            // Not spinning: the guest has the processor.
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// The machine has nothing to tell: its guest runs, and nothing has gone wrong in it.
    pub fn is_well(&self, what: &str) {
        let told: Option<MachineEvent> = self.machine.events().try_recv().ok();
        assert!(told.is_none(), "{what}: {told:?}");
    }

    /// Has the guest do these accesses; what each read.
    pub fn access(&self, list: &[GuestAccess]) -> Vec<u64> {
        assert!(list.len() <= LIST_MAX);
        let number = self.lists.get() + 1;
        self.lists.set(number);
        let bytes: Vec<u8> = list.iter().flat_map(GuestAccess::bytes).collect();
        self.poke(LIST, &bytes);
        self.poke(COUNT, &(list.len() as u64).to_le_bytes());
        self.poke(WANTED, &number.to_le_bytes());
        self.until("the guest's accesses", || self.peek_u64(DONE) == number);
        let back = self.peek(LIST, bytes.len());
        let values = back.chunks(24).map(|entry| u64::from_le_bytes(entry[16..].try_into().unwrap()));
        list.iter().zip(values).map(|(access, value)| access.result(value)).collect()
    }
}
