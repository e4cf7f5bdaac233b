//! A guest against all devices of a small machine: registers, ports, PCI configuration, descriptor tables and rings
//! anywhere in its memory, frames and disk I/O coming in between. An input is a byte that says on which bus the devices
//! are, and steps. Now and then the devices are captured and go on as others, which they must be able to at any moment.

use crate::input::{FuzzInput, put_piece};
use ft_disk::{Completion, Finish, Io, IoDone, IoFault, IoOrder, IoQueue, Store, StoreError};
use ft_ram::layout::{
    COM1_PORT, PAGE_SIZE, PCI_CONFIG_PORT, PCI_WINDOW_BASE, PLATFORM_BASE, PM1A_EVT_PORT, RTC_PORT,
    VIRTIO_MMIO_BASE, VIRTIO_MMIO_SIZE, WATCHDOG_PORT,
};
use ft_ram::{GuestRam, PageIndex, RamView};
use ft_vm::devices::{
    ConsoleSink, Devices, Disk, FrameSink, IrqChip, Msi, NET_HEADER_BYTES, Offloads, PACKET_BYTES_MAX,
    Transmit, Wiring,
};
use ft_vm::spec::{BusKind, CpuModel, DiskSpec, EngineKind, MachineSpec, NetSpec};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;

const RAM_BYTES: u64 = 16 << 20;
const DISK_BYTES: usize = 128 << 10;
/// What all requests that a disk has at a time may have in buffers: the device bounds them.
const HELD_BYTES_MAX: usize = 64 << 20;
const STEPS_MAX: usize = 400;
const WINDOWS: u64 = 4;
/// A queue's parts lie so far apart; so do queues.
const PART: u64 = 0x1000;
const QUEUE_SIZE: u16 = 8;
const QUEUES: u64 = 0x10_0000;
const BUFFERS: u64 = 0x40_0000;

struct Nothing;

impl ConsoleSink for Nothing {
    fn write(&mut self, _: &[u8]) {}
}

impl IrqChip for Nothing {
    fn set_level(&self, _: u32, _: bool) {}

    fn signal(&self, _: Msi) {}
}

/// Has no room for each fifth frame at first.
#[derive(Default)]
struct Wire(Mutex<usize>);

impl FrameSink for Wire {
    fn transmit(&self, _: u8, packet: &[u8]) -> Transmit {
        assert!((NET_HEADER_BYTES..=PACKET_BYTES_MAX).contains(&packet.len()));
        let mut count = self.0.lock();
        *count += 1;
        if count.is_multiple_of(5) { Transmit::Full } else { Transmit::Taken }
    }

    fn set_offloads(&self, _: u8, _: Offloads) {}
}

/// A disk in memory that does what it was asked for when it is told to. Clones are the same.
#[derive(Clone, Default)]
struct SlowDisk(Arc<Mutex<SlowState>>);

#[derive(Default)]
struct SlowState {
    orders: VecDeque<IoOrder>,
    finish: Option<Arc<dyn Finish>>,
    was_nudged: bool,
}

impl Store for SlowDisk {
    fn bytes(&self) -> u64 {
        DISK_BYTES as u64
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn start(self: Box<Self>, _: &str, answer: Completion) -> Result<Box<dyn IoQueue>, StoreError> {
        let Completion::By(finish) = answer else { panic!("a writable disk answers later") };
        self.0.lock().finish = Some(finish);
        Ok(self)
    }
}

impl IoQueue for SlowDisk {
    fn submit(&mut self, order: IoOrder) -> Option<IoDone> {
        let (offset, bytes) = match &order.io {
            Io::Read { offset, into: data } | Io::Write { offset, from: data, .. } => {
                (*offset, data.len() as u64)
            }
            Io::WriteZeroes { offset, bytes, .. } => (*offset, *bytes),
            Io::Flush => (0, 0),
        };
        let is_inside = offset.checked_add(bytes).is_some_and(|end| end <= DISK_BYTES as u64);
        assert!(is_inside && offset.is_multiple_of(512) && bytes.is_multiple_of(512), "{offset} {bytes}");
        self.0.lock().orders.push_back(order);
        None
    }

    fn nudge(&self) -> bool {
        self.0.lock().was_nudged = true;
        true
    }
}

impl SlowDisk {
    fn held_bytes(&self) -> usize {
        let bytes = |order: &IoOrder| match &order.io {
            Io::Read { into: data, .. } | Io::Write { from: data, .. } => data.len(),
            Io::Flush | Io::WriteZeroes { .. } => 0,
        };
        self.0.lock().orders.iter().map(bytes).sum()
    }

    /// Answers a nudge, and does the request at this place, or fails at it.
    fn go_on(&self, at: usize, fails: bool) {
        let (finish, mut done) = {
            let mut state = self.0.lock();
            let mut done = Vec::new();
            let place = at % state.orders.len().max(1);
            if let Some(IoOrder { tag, io }) = state.orders.remove(place) {
                let source = std::io::Error::from(std::io::ErrorKind::Other);
                let fault = IoFault { what: "do it", offset: 0, source };
                done.push(IoDone { tag, io, result: if fails { Err(fault) } else { Ok(()) } });
            }
            if done.is_empty() && !std::mem::take(&mut state.was_nudged) {
                return;
            }
            (state.finish.clone(), done)
        };
        if let Some(finish) = finish {
            finish.finish(&mut done);
        }
    }
}

struct Guest {
    spec: MachineSpec,
    ram: GuestRam,
    view: RamView,
    wire: Arc<Wire>,
    disk: SlowDisk,
    devices: Devices,
    /// The available indices that the driver has come to.
    next: [[u16; 2]; WINDOWS as usize],
}

fn devices(spec: &MachineSpec, ram: &GuestRam, wire: &Arc<Wire>, disk: &SlowDisk) -> Devices {
    let wiring = Wiring {
        frames: Some(Arc::clone(wire) as Arc<dyn FrameSink>),
        console: Box::new(Nothing),
        disks: vec![Disk { drain_within: std::time::Duration::ZERO, ..Disk::new(disk.clone()) }],
    };
    let devices = Devices::new(spec, ram, Arc::new(Nothing), wiring).expect("the devices can be made");
    // An access that gives the processor up would take real time.
    devices.interrupt_idle();
    devices
}

impl Guest {
    fn new(bus: BusKind) -> Self {
        let spec = MachineSpec {
            engine: EngineKind::Kvm,
            vcpus: 1,
            ram_bytes: RAM_BYTES,
            nets: vec![NetSpec { mac: [2, 0, 0, 0, 0, 1], mtu: 1500 }],
            disks: vec![DiskSpec { bytes: DISK_BYTES as u64, read_only: false }],
            rng: true,
            bus,
            cpu: CpuModel::Host,
        };
        let ram = GuestRam::new(RAM_BYTES).expect("there is memory");
        let (view, wire, disk) = (ram.view().expect("it can be mapped"), Arc::default(), SlowDisk::default());
        let devices = devices(&spec, &ram, &wire, &disk);
        Self { spec, ram, view, wire, disk, devices, next: Default::default() }
    }

    /// Where the registers of a device begin: a window, or a BAR where firmware puts it.
    fn base(&self, window: u64) -> u64 {
        match self.spec.bus {
            BusKind::Mmio => VIRTIO_MMIO_BASE + window * VIRTIO_MMIO_SIZE,
            BusKind::Pci => PCI_WINDOW_BASE + window * 0x8000,
        }
    }

    fn poke(&self, mut address: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() && address < RAM_BYTES {
            let offset = address as usize % PAGE_SIZE;
            let (now, rest) = bytes.split_at(bytes.len().min(PAGE_SIZE - offset));
            self.view.write_in_page((address / PAGE_SIZE as u64) as PageIndex, offset, now);
            (address, bytes) = (address + now.len() as u64, rest);
        }
    }

    /// A register of the common configuration as virtio-mmio numbers it.
    fn set(&self, window: u64, register: u64, value: u32) {
        let base = self.base(window);
        let (address, width) = match (self.spec.bus, register) {
            (BusKind::Mmio, _) => (base + register, 4),
            (BusKind::Pci, 0x20) => (base + 0x0c, 4),
            (BusKind::Pci, 0x24) => (base + 0x08, 4),
            (BusKind::Pci, 0x30) => (base + 0x16, 2),
            (BusKind::Pci, 0x38) => (base + 0x18, 2),
            (BusKind::Pci, 0x44) => (base + 0x1c, 2),
            (BusKind::Pci, 0x50) => (base + 0x3000 + 4 * u64::from(value), 2),
            (BusKind::Pci, 0x70) => (base + 0x14, 1),
            (BusKind::Pci, 0x80 | 0x84) => (base + register - 0x60, 4),
            (BusKind::Pci, 0x90 | 0x94) => (base + register - 0x68, 4),
            (BusKind::Pci, _) => (base + register - 0x70, 4),
        };
        let _ = self.devices.mmio_write(address, &value.to_le_bytes()[..width]);
    }

    fn configure(&self, device: u32, register: u32, data: &[u8]) {
        let address = 1 << 31 | device << 11 | register & 0xfc;
        let _ = self.devices.pio_write(PCI_CONFIG_PORT, &address.to_le_bytes());
        let _ = self.devices.pio_write(PCI_CONFIG_PORT + 4 + (register & 3) as u16, data);
    }

    /// Where a queue's descriptors, available and used rings are.
    fn parts(window: u64, queue: u64) -> [u64; 3] {
        let base = QUEUES + (window * 2 + queue) * 4 * PART;
        [base, base + PART, base + 2 * PART]
    }

    /// Brings a device up as a driver does, with these of its features.
    fn start(&mut self, window: u64, features: u32) {
        if self.spec.bus == BusKind::Pci {
            self.configure(window as u32 + 1, 4, &6u16.to_le_bytes());
        }
        for status in [0, 1, 3] {
            self.set(window, 0x70, status);
        }
        for (select, half) in [(0, features), (1, 1)] {
            self.set(window, 0x24, select);
            self.set(window, 0x20, half);
        }
        self.set(window, 0x70, 0xb);
        for queue in 0..2 {
            self.set(window, 0x30, queue as u32);
            self.set(window, 0x38, QUEUE_SIZE.into());
            let [desc, avail, used] = Self::parts(window, queue);
            for (register, address) in [(0x80, desc), (0x90, avail), (0xa0, used)] {
                self.set(window, register, address as u32);
                self.set(window, register + 4, 0);
            }
            self.poke(avail, &[0; 4]);
            self.next[window as usize][queue as usize] = 0;
            self.set(window, 0x44, 1);
        }
        self.set(window, 0x70, 0xf);
    }

    fn descriptor(&self, window: u64, queue: u64, input: &mut FuzzInput<'_>) {
        let index = u64::from(input.u8() % 16);
        let place = input.u8();
        let address = match place % 4 {
            // Mostly buffers, or where other descriptors and rings are.
            0 | 1 => BUFFERS + u64::from(input.u16()),
            2 => QUEUES + u64::from(input.u16()),
            _ => input.u64(),
        };
        let bytes = if place & 0x80 == 0 { u32::from(input.u16()) } else { input.u32() };
        let (flags, next) = (u16::from(input.u8() % 8), u16::from(input.u8() % 16));
        let mut descriptor = address.to_le_bytes().to_vec();
        descriptor.extend_from_slice(&bytes.to_le_bytes());
        descriptor.extend_from_slice(&flags.to_le_bytes());
        descriptor.extend_from_slice(&next.to_le_bytes());
        self.poke(Self::parts(window, queue)[0] + 16 * index, &descriptor);
    }

    /// Makes a chain available, and notifies.
    fn offer(&mut self, window: u64, queue: u64, head: u16, jump: u16) {
        let [_, avail, _] = Self::parts(window, queue);
        let next = &mut self.next[window as usize][queue as usize];
        let entry = avail + 4 + 2 * u64::from(*next % QUEUE_SIZE);
        *next = next.wrapping_add(1).wrapping_add(jump);
        let index = *next;
        self.poke(entry, &head.to_le_bytes());
        self.poke(avail + 2, &index.to_le_bytes());
        self.set(window, 0x50, queue as u32);
    }

    /// The machine goes on elsewhere: other devices take the state over, whatever it is.
    fn move_away(&mut self) {
        self.devices.quiesce();
        let state = self.devices.capture();
        let disk = SlowDisk::default();
        let devices = devices(&self.spec, &self.ram, &self.wire, &disk);
        devices.quiesce();
        devices.restore(&state).expect("what devices can be in, others can take over");
        let taken = devices.capture();
        assert_eq!((&taken.virtio, &taken.pci), (&state.virtio, &state.pci));
        assert_eq!((taken.com1, taken.power), (state.com1, state.power));
        devices.resume();
        devices.interrupt_idle();
        (self.devices, self.disk) = (devices, disk);
    }

    fn port(input: &mut FuzzInput<'_>) -> u16 {
        let near = u16::from(input.u8() % 16);
        match input.u8() % 8 {
            0 => COM1_PORT + near,
            1 => PM1A_EVT_PORT + near,
            2 => RTC_PORT + near,
            3 => WATCHDOG_PORT + near,
            4 => 0x500 + near,
            5 => 0x60 + near,
            6 => PCI_CONFIG_PORT + near,
            _ => input.u16(),
        }
    }

    fn step(&mut self, input: &mut FuzzInput<'_>) {
        let kind = input.u8();
        let place = input.u8();
        let (window, queue) = (u64::from(place) % WINDOWS, u64::from(place >> 4) % 2);
        match kind % 16 {
            0 => self.start(window, input.u32()),
            1 | 2 => {
                let address = self.base(window) + u64::from(input.u16()) % 0x8000;
                let mut data = input.u64().to_le_bytes();
                let width = [1, 2, 4, 8][usize::from(place >> 6)];
                match kind % 16 {
                    1 => {
                        let _ = self.devices.mmio_write(address, &data[..width]);
                    }
                    _ => self.devices.mmio_read(address, &mut data[..width]),
                }
            }
            3 => {
                let (port, mut data) = (Self::port(input), input.u32().to_le_bytes());
                let width = [1, 2, 4, 4][usize::from(place >> 6)];
                match place & 1 {
                    0 => {
                        let _ = self.devices.pio_write(port, &data[..width]);
                    }
                    _ => self.devices.pio_read(port, &mut data[..width]),
                }
            }
            4 | 5 => self.descriptor(window, queue, input),
            6 | 7 => self.offer(window, queue, (input.u8() % 16).into(), u16::from(input.u8()) / 64),
            8 => self.poke(QUEUES + u64::from(input.u16()) * 2, input.piece()),
            9 => self.poke(BUFFERS + u64::from(input.u16()), input.piece()),
            10 => {
                if let Some(card) = self.devices.net(0) {
                    let mut packet = input.array::<NET_HEADER_BYTES>().to_vec();
                    packet.resize(NET_HEADER_BYTES + usize::from(input.u16()), place);
                    let _ = card.deliver(&packet);
                    card.resume_transmit();
                }
            }
            11 | 12 => self.disk.go_on(usize::from(place & 7), place & 0x80 != 0),
            13 => self.configure(
                window as u32 + 1,
                input.u8().into(),
                &input.array::<4>()[..1 << (place >> 6 & 1)],
            ),
            14 => match place % 4 {
                0 => self.devices.console_input(input.piece()),
                1 => self.devices.reset(),
                2 => {
                    let _ =
                        self.devices.mmio_write(PLATFORM_BASE + u64::from(input.u8()), &input.array::<8>());
                }
                _ => self.devices.mmio_read(PLATFORM_BASE + u64::from(input.u8()), &mut [0; 8]),
            },
            _ => self.move_away(),
        }
        assert!(self.disk.held_bytes() <= HELD_BYTES_MAX);
    }
}

/// See the module.
pub(crate) fn run(input: &[u8]) {
    let mut input = FuzzInput::new(input);
    let mut guest = Guest::new(if input.u8() & 1 == 0 { BusKind::Mmio } else { BusKind::Pci });
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        guest.step(&mut input);
    }
    guest.move_away();
}

/// A step that puts a descriptor: of a buffer at this place.
fn descriptor(into: &mut Vec<u8>, place: u8, index: u8, at: u16, bytes: u16, flags: u8) {
    into.extend_from_slice(&[4, place, index, 0]);
    into.extend_from_slice(&at.to_le_bytes());
    into.extend_from_slice(&bytes.to_le_bytes());
    into.extend_from_slice(&[flags, index + 1]);
}

/// See the module.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    const NEXT: u8 = 1;
    const WRITE: u8 = 2;
    const SECOND: u8 = 0x10;
    let mut seeds = Vec::new();
    for bus in [0, 1] {
        let mut card = vec![bus, 0, 0, 0, 0, 0, 0x10];
        descriptor(&mut card, SECOND, 0, 0, 100, 0);
        card.extend_from_slice(&[6, SECOND, 0, 0]);
        descriptor(&mut card, 0, 0, 4096, 4000, WRITE);
        card.extend_from_slice(&[6, 0, 0, 0, 10, 7]);
        card.extend_from_slice(&[0; NET_HEADER_BYTES]);
        card.extend_from_slice(&60u16.to_le_bytes());
        card.extend_from_slice(&[15, 0]);
        seeds.push(card);

        // Read, write, flush, discard and zeroes, each of a sector.
        let mut disk = vec![bus];
        for (number, kind) in [0u8, 1, 4, 11, 13].into_iter().enumerate() {
            disk.extend_from_slice(&[0, 1, 0xff, 0xff, 0xff, 0x1f]);
            disk.extend_from_slice(&[9, 1, 0, 0]);
            let mut head = vec![0; 16];
            (head[0], head[8]) = (kind, number as u8);
            // Of a discard or zeroes: the sectors.
            head.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
            put_piece(&mut disk, &head);
            let of_data = if kind == 0 { NEXT | WRITE } else { NEXT };
            descriptor(&mut disk, 1, 0, 0, 16, NEXT);
            descriptor(&mut disk, 1, 1, 16, if kind < 2 { 512 } else { 16 }, of_data);
            descriptor(&mut disk, 1, 2, 4096, 1, WRITE);
            disk.extend_from_slice(&[6, 1, 0, 0, 15, 0, 11, 0]);
        }
        seeds.push(disk);

        let mut rng = vec![bus, 0, 2, 0, 0, 0, 0x10];
        descriptor(&mut rng, 2, 0, 0, 64, WRITE);
        rng.extend_from_slice(&[6, 2, 0, 0]);
        seeds.push(rng);
    }
    seeds
}
