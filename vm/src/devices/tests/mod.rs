//! Tests of the devices through their bus, by a small guest driver that knows the virtio specification and nothing of
//! the implementation. It writes guest memory by an untracked view, as a vCPU would, so that the VMM's dirty bitmap
//! holds what the devices wrote and nothing else.

mod announce;
mod block;
mod bus;
mod disk;
mod driver;
mod hand;
mod hostile;
mod net;
mod offloads;
mod pci;
mod state;
mod told;
mod twins;

use super::*;
use crate::spec::{BusKind, CpuModel, DiskSpec, EngineKind, NetSpec};
use ft_disk::{Completion, Finish, ImageStore, IoEngine, IoQueue, RawImage, Store, StoreError};
use ft_ram::layout::{PAGE_SIZE, PCI_GSI_BASE, PCI_WINDOW_BASE, VIRTIO_GSI_BASE};
use ft_ram::{PageIndex, RamView};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::sync::LazyLock;

const RAM_BYTES: u64 = 16 << 20;
const DISK_BYTES: usize = 256 << 10;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const NET: u64 = VIRTIO_MMIO_BASE;
const DISK: u64 = VIRTIO_MMIO_BASE + VIRTIO_MMIO_SIZE;
const RNG: u64 = VIRTIO_MMIO_BASE + 2 * VIRTIO_MMIO_SIZE;
const NET_GSI: u32 = 5;

const VERSION_1: u64 = 1 << 32;
const INDIRECT_DESC: u64 = 1 << 28;
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 0x40;
const QUEUE_SIZE: u16 = 8;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

thread_local! {
    /// Where the devices of this thread's tests are.
    static BUS: std::cell::Cell<BusKind> = const { std::cell::Cell::new(BusKind::Mmio) };
}

/// Makes these tests again, for devices on PCI.
macro_rules! on_pci_too {
    ($($test:ident),* $(,)?) => {
        mod on_pci {
            $(
                #[test]
                fn $test() {
                    super::BUS.set(super::BusKind::Pci);
                    super::$test();
                }
            )*
        }
    };
}
use on_pci_too;

/// Remembers every line's level and how often it rose, and the messages in order.
#[derive(Default)]
struct Chip(Mutex<BTreeMap<u32, (bool, usize)>>, Mutex<Vec<Msi>>);

impl Chip {
    fn level(&self, gsi: u32) -> bool {
        self.0.lock().get(&gsi).is_some_and(|line| line.0)
    }

    fn edges(&self, gsi: u32) -> usize {
        self.0.lock().get(&gsi).map_or(0, |line| line.1)
    }
}

impl IrqChip for Chip {
    /// The lines of functions on PCI go by the numbers that their devices' lines have on mmio.
    fn set_level(&self, gsi: u32, high: bool) {
        let gsi = if gsi < PCI_GSI_BASE { gsi } else { gsi - PCI_GSI_BASE + VIRTIO_GSI_BASE };
        let mut lines = self.0.lock();
        let line = lines.entry(gsi).or_default();
        line.1 += usize::from(high && !line.0);
        line.0 = high;
    }

    fn signal(&self, message: Msi) {
        self.1.lock().push(message);
    }
}

/// Keeps up to `room` frames, and their headers apart.
#[derive(Default)]
struct Sink {
    room: Mutex<usize>,
    frames: Mutex<Vec<Vec<u8>>>,
    headers: Mutex<Vec<[u8; NET_HEADER_BYTES]>>,
    offloads: Mutex<Vec<Offloads>>,
    /// What somebody does while a frame leaves.
    meanwhile: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl FrameSink for Sink {
    fn transmit(&self, _: u8, packet: &[u8]) -> Transmit {
        let mut room = self.room.lock();
        if *room == 0 {
            return Transmit::Full;
        }
        *room -= 1;
        if let Some(meanwhile) = &*self.meanwhile.lock() {
            meanwhile();
        }
        let (header, frame) = packet.split_first_chunk().unwrap();
        self.headers.lock().push(*header);
        self.frames.lock().push(frame.to_vec());
        Transmit::Taken
    }

    fn set_offloads(&self, _: u8, offloads: Offloads) {
        self.offloads.lock().push(offloads);
    }
}

#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl ConsoleSink for Screen {
    fn write(&mut self, bytes: &[u8]) {
        self.0.lock().extend(bytes);
    }
}

fn spec() -> MachineSpec {
    MachineSpec {
        engine: EngineKind::Kvm,
        vcpus: 2,
        ram_bytes: RAM_BYTES,
        nets: vec![NetSpec { mac: MAC, mtu: 1500 }],
        disks: vec![DiskSpec { bytes: DISK_BYTES as u64, read_only: true }],
        rng: true,
        bus: BUS.get(),
        cpu: CpuModel::Host,
    }
}

fn disk_content() -> &'static [u8] {
    static CONTENT: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..DISK_BYTES).map(|i| (i / 512) as u8 | 0x80).collect());
    &CONTENT
}

fn disk_image() -> File {
    let mut image = tempfile::tempfile().unwrap();
    image.write_all(disk_content()).unwrap();
    image
}

/// A disk that has done what it is asked for before the notification returns.
struct AtOnce(ImageStore);

impl AtOnce {
    fn reading(image: &File) -> Disk {
        let image = RawImage::reading(image.try_clone().unwrap()).unwrap();
        Disk::new(Self(ImageStore::new(image, IoEngine::Auto)))
    }
}

impl Store for AtOnce {
    fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    fn is_writable(&self) -> bool {
        self.0.is_writable()
    }

    fn start(self: Box<Self>, name: &str, _: Completion) -> Result<Box<dyn IoQueue>, StoreError> {
        Box::new(self.0).start(name, Completion::AtOnce)
    }
}

struct Rig {
    ram: GuestRam,
    view: RamView,
    devices: Devices,
    chip: Arc<Chip>,
    sink: Arc<Sink>,
    screen: Screen,
    disk: File,
}

impl Rig {
    fn new() -> Self {
        Self::on(GuestRam::new(RAM_BYTES).unwrap())
    }

    /// Devices around this memory.
    fn on(ram: GuestRam) -> Self {
        let disk = disk_image();
        Self::with_disk(ram, AtOnce::reading(&disk), disk)
    }

    /// With this disk, which is writable if its image is.
    fn with_disk(ram: GuestRam, made: Disk, disk: File) -> Self {
        Self::made(ram, made, disk, Devices::new)
    }

    fn made(
        ram: GuestRam,
        made: Disk,
        disk: File,
        make: impl FnOnce(&MachineSpec, &GuestRam, Arc<dyn IrqChip>, Wiring) -> Result<Devices, DeviceError>,
    ) -> Self {
        let chip = Arc::new(Chip::default());
        let sink = Arc::new(Sink { room: Mutex::new(usize::MAX), ..Sink::default() });
        let screen = Screen::default();
        let mut spec = spec();
        spec.disks[0].read_only = !made.store.is_writable();
        let wiring = Wiring {
            frames: Some(Arc::clone(&sink) as Arc<dyn FrameSink>),
            console: Box::new(screen.clone()),
            disks: vec![made],
        };
        let irq = Arc::clone(&chip) as Arc<dyn IrqChip>;
        let devices = make(&spec, &ram, irq, wiring).unwrap();
        let view = ram.view().unwrap();
        Self { ram, view, devices, chip, sink, screen, disk }
    }

    fn poke(&self, mut address: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let offset = address as usize % PAGE_SIZE;
            let (now, rest) = bytes.split_at(bytes.len().min(PAGE_SIZE - offset));
            self.view.write_in_page((address / PAGE_SIZE as u64) as PageIndex, offset, now);
            address += now.len() as u64;
            bytes = rest;
        }
    }

    fn page(&self, index: PageIndex) -> [u8; PAGE_SIZE] {
        let mut page = [0; PAGE_SIZE];
        self.view.read_page(index, &mut page);
        page
    }

    fn peek(&self, address: u64, bytes: usize) -> Vec<u8> {
        let (first, skip) = (address as usize / PAGE_SIZE, address as usize % PAGE_SIZE);
        let mut memory = Vec::new();
        for index in first..(first * PAGE_SIZE + skip + bytes).div_ceil(PAGE_SIZE) {
            memory.extend_from_slice(&self.page(index as PageIndex));
        }
        memory.drain(..skip);
        memory.truncate(bytes);
        memory
    }

    fn peek_u16(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.peek(address, 2).try_into().unwrap())
    }

    /// All of the guest's memory.
    fn memory(&self) -> Vec<u8> {
        self.peek(0, RAM_BYTES as usize)
    }

    fn take_dirty(&self) -> BTreeSet<PageIndex> {
        let mut dirty = BTreeSet::new();
        self.ram.take_vmm_dirty(|page| assert!(dirty.insert(page)));
        dirty
    }

    /// Sets a queue up, and says whether it is ready.
    fn set_up(&self, ring: &Ring, size: u32) -> bool {
        let window = ring.window;
        self.set(window + 0x30, ring.queue);
        self.set(window + 0x38, size);
        for (register, address) in [(0x80, ring.desc), (0x90, ring.avail), (0xa0, ring.used)] {
            self.set(window + register, address as u32);
            self.set(window + register + 4, (address >> 32) as u32);
        }
        self.set(window + 0x44, 1);
        self.get(window + 0x44) == 1
    }

    /// Brings a device up as a driver does, with `queues` queues.
    fn start(&self, window: u64, queues: u32) -> Vec<Ring> {
        self.start_with(window, queues, VERSION_1)
    }

    fn start_with(&self, window: u64, queues: u32, features: u64) -> Vec<Ring> {
        self.negotiate(window, features);
        let rings: Vec<_> = (0..queues).map(|queue| Ring::new(window, queue)).collect();
        for ring in &rings {
            self.poke(ring.avail, &[0; 4]);
            self.poke(ring.used, &[0; 4]);
            assert!(self.set_up(ring, QUEUE_SIZE.into()));
        }
        self.set(window + 0x70, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        assert_eq!(self.status(window) & NEEDS_RESET, 0);
        rings
    }

    fn malformed(&self) -> u64 {
        self.devices.counters().malformed
    }
}

/// A virtqueue from the driver's side. Chains use descriptors one after the other and never reuse one in flight, as
/// long as no more than the queue's size are in use.
struct Ring {
    window: u64,
    queue: u32,
    desc: u64,
    avail: u64,
    used: u64,
    next_desc: u16,
    next_avail: u16,
    next_used: u16,
}

impl Ring {
    fn new(window: u64, queue: u32) -> Self {
        let base = 0x10_0000 + (window - VIRTIO_MMIO_BASE) * 0x10 + u64::from(queue) * 0x4000;
        let (desc, avail, used) = (base, base + 0x1000, base + 0x2000);
        Self { window, queue, desc, avail, used, next_desc: 0, next_avail: 0, next_used: 0 }
    }

    fn copy(&self) -> Self {
        let &Self { window, queue, desc, avail, used, next_desc, next_avail, next_used } = self;
        Self { window, queue, desc, avail, used, next_desc, next_avail, next_used }
    }

    fn descriptor(&self, rig: &Rig, index: u16, address: u64, bytes: u32, flags: u16, next: u16) {
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&address.to_le_bytes());
        descriptor[8..12].copy_from_slice(&bytes.to_le_bytes());
        descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
        descriptor[14..].copy_from_slice(&next.to_le_bytes());
        rig.poke(self.desc + 16 * u64::from(index), &descriptor);
    }

    /// Makes a chain of `(address, bytes, flags)` available without a notification.
    fn offer(&mut self, rig: &Rig, buffers: &[(u64, u32, u16)]) {
        let head = self.next_desc;
        for (i, &(address, bytes, flags)) in buffers.iter().enumerate() {
            let index = self.next_desc;
            self.next_desc = (index + 1) % QUEUE_SIZE;
            let flags = flags | if i + 1 < buffers.len() { NEXT } else { 0 };
            self.descriptor(rig, index, address, bytes, flags, self.next_desc);
        }
        self.offer_head(rig, head);
    }

    fn offer_head(&mut self, rig: &Rig, head: u16) {
        let entry = self.avail + 4 + 2 * u64::from(self.next_avail % QUEUE_SIZE);
        rig.poke(entry, &head.to_le_bytes());
        self.next_avail = self.next_avail.wrapping_add(1);
        rig.poke(self.avail + 2, &self.next_avail.to_le_bytes());
    }

    fn notify(&self, rig: &Rig) {
        rig.set(self.window + 0x50, self.queue);
    }

    /// Takes what the device gave back: `(head, bytes written)`.
    fn take_used(&mut self, rig: &Rig) -> Vec<(u32, u32)> {
        let index = rig.peek_u16(self.used + 2);
        let mut taken = vec![];
        while self.next_used != index {
            let entry = rig.peek(self.used + 4 + 8 * u64::from(self.next_used % QUEUE_SIZE), 8);
            let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
            taken.push((word(0), word(4)));
            self.next_used = self.next_used.wrapping_add(1);
        }
        taken
    }
}
