//! The driver of one device, on either bus. It names registers as virtio-mmio has them (virtio 1.2 §4.2.2); on PCI they
//! are where the same thing is.

use crate::guest::GuestAccess;
use crate::vm::{RINGS, TargetVm};
use ft_ram::layout::{PCI_WINDOW_BASE, VIRTIO_MMIO_BASE, VIRTIO_MMIO_SIZE};
use ft_vm::spec::BusKind;

pub const DEVICE_FEATURES: u64 = 0x10;
pub const DEVICE_FEATURES_SELECT: u64 = 0x14;
pub const DRIVER_FEATURES: u64 = 0x20;
pub const DRIVER_FEATURES_SELECT: u64 = 0x24;
pub const QUEUE_SELECT: u64 = 0x30;
pub const QUEUE_SIZE: u64 = 0x38;
pub const QUEUE_READY: u64 = 0x44;
pub const NOTIFY: u64 = 0x50;
pub const STATUS: u64 = 0x70;
pub const DESC: u64 = 0x80;
pub const AVAIL: u64 = 0x90;
pub const USED: u64 = 0xa0;
pub const CONFIG: u64 = 0x100;

pub const ACKNOWLEDGE: u64 = 1;
pub const DRIVER: u64 = 2;
pub const DRIVER_OK: u64 = 4;
pub const FEATURES_OK: u64 = 8;
pub const NEEDS_RESET: u64 = 0x40;
pub const FAILED: u64 = 0x80;

/// What a driver has said by the end.
const RUNNING: u64 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

pub const VERSION_1: u64 = 1 << 32;
pub const INDIRECT_DESC: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Entries of the queues, unless a case wants others.
pub const ENTRIES: u16 = 8;

/// Address, bytes, flags of a buffer.
pub type Piece = (u64, u32, u16);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Net,
    Block,
    Rng,
}

impl Device {
    /// Its queues.
    pub fn queues(self) -> u64 {
        if self == Self::Net { 3 } else { 1 }
    }

    pub fn window(self) -> u64 {
        VIRTIO_MMIO_BASE + self as u64 * VIRTIO_MMIO_SIZE
    }

    /// Where firmware places its BAR, and its number on the bus.
    pub fn bar(self) -> u64 {
        PCI_WINDOW_BASE + self as u64 * 0x8000
    }

    pub fn number(self) -> u64 {
        self as u64 + 1
    }
}

/// A virtqueue from the driver's side.
#[derive(Clone, Debug)]
pub struct Queue {
    pub index: u64,
    pub size: u64,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    pub next_desc: u16,
    pub next_avail: u16,
    pub next_used: u16,
}

impl Queue {
    pub fn new(device: Device, index: u64) -> Self {
        let base = RINGS + (device as u64 * 4 + index) * 0x8000;
        let (desc, avail, used) = (base, base + 0x2000, base + 0x4000);
        Self { index, size: ENTRIES.into(), desc, avail, used, next_desc: 0, next_avail: 0, next_used: 0 }
    }
}

/// A register's place, and its width.
fn place(bus: BusKind, device: Device, register: u64) -> (u64, u64) {
    if bus == BusKind::Mmio {
        return (device.window() + register, 4);
    }
    let (offset, width) = match register {
        DEVICE_FEATURES => (0x04, 4),
        DEVICE_FEATURES_SELECT => (0x00, 4),
        DRIVER_FEATURES => (0x0c, 4),
        DRIVER_FEATURES_SELECT => (0x08, 4),
        QUEUE_SELECT => (0x16, 2),
        QUEUE_SIZE => (0x18, 2),
        QUEUE_READY => (0x1c, 2),
        STATUS => (0x14, 1),
        0x80..0x88 => (register - 0x60, 4),
        0x90..0x98 => (register - 0x68, 4),
        0xa0..0xa8 => (register - 0x70, 4),
        CONFIG.. => (register - CONFIG + 0x2000, 4),
        _ => panic!("no such register on both"),
    };
    (device.bar() + offset, width)
}

/// A case's hold on the machine: a driver with its queues.
pub struct Stage<'a> {
    pub vm: &'a TargetVm,
    pub device: Device,
    pub queues: Vec<Queue>,
}

impl<'a> Stage<'a> {
    pub fn new(vm: &'a TargetVm, device: Device) -> Self {
        let queues = (0..device.queues()).map(|index| Queue::new(device, index)).collect();
        Self { vm, device, queues }
    }

    pub fn get(&self, register: u64) -> u64 {
        self.vm.access(&[self.getting(register)])[0]
    }

    fn setting(&self, register: u64, value: u64) -> GuestAccess {
        match (self.vm.bus(), register) {
            (BusKind::Pci, NOTIFY) => {
                GuestAccess::write(self.device.bar() + 0x3000 + 4 * (value & 0x3ff), 2, value)
            }
            (bus, register) => {
                let (address, width) = place(bus, self.device, register);
                GuestAccess::write(address, width, value)
            }
        }
    }

    pub fn set(&self, register: u64, value: u64) {
        self.vm.access(&[self.setting(register, value)]);
    }

    pub fn set_all(&self, settings: &[(u64, u64)]) {
        self.vm.access(&self.settings(settings));
    }

    fn settings(&self, settings: &[(u64, u64)]) -> Vec<GuestAccess> {
        settings.iter().map(|&(register, value)| self.setting(register, value)).collect()
    }

    fn getting(&self, register: u64) -> GuestAccess {
        let (address, width) = place(self.vm.bus(), self.device, register);
        GuestAccess::read(address, width)
    }

    pub fn status(&self) -> u64 {
        self.get(STATUS)
    }

    pub fn needs_reset(&self) -> bool {
        self.status() & NEEDS_RESET != 0
    }

    pub fn features(&self) -> u64 {
        let half = |select| {
            self.set(DEVICE_FEATURES_SELECT, select);
            self.get(DEVICE_FEATURES)
        };
        half(0) | half(1) << 32
    }

    /// Writes to the configuration space of the device's function.
    pub fn configure(&self, register: u64, width: u64, value: u64) {
        self.vm.access(&self.configuring(register, width, value));
    }

    fn configuring(&self, register: u64, width: u64, value: u64) -> [GuestAccess; 2] {
        let address = 1 << 31 | self.device.number() << 11 | register & 0xfc;
        let port = 0xcfc + (register & 3) as u16;
        [GuestAccess::port_write(0xcf8, 4, address), GuestAccess::port_write(port, width, value)]
    }

    /// Resets the device and negotiates these features beside VERSION_1, up to FEATURES_OK.
    pub fn negotiate(&self, features: u64) {
        let mut list = Vec::new();
        if self.vm.bus() == BusKind::Pci {
            // Firmware's BAR, memory and bus master.
            list.extend(self.configuring(0x10, 4, self.device.bar()));
            list.extend(self.configuring(0x04, 2, 6));
        }
        let features = features | VERSION_1;
        list.extend(self.settings(&[
            (STATUS, 0),
            (STATUS, ACKNOWLEDGE),
            (STATUS, ACKNOWLEDGE | DRIVER),
            (DRIVER_FEATURES_SELECT, 0),
            (DRIVER_FEATURES, features & 0xffff_ffff),
            (DRIVER_FEATURES_SELECT, 1),
            (DRIVER_FEATURES, features >> 32),
            (STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK),
        ]));
        self.vm.access(&list);
    }

    /// Sets a queue up as it is described, and says whether it is ready.
    pub fn set_up(&self, queue: usize) -> bool {
        self.vm.access(&self.setting_up(queue)).last() == Some(&1)
    }

    /// The last says whether it is ready.
    fn setting_up(&self, queue: usize) -> Vec<GuestAccess> {
        let Queue { index, size, desc, avail, used, .. } = self.queues[queue];
        let mut settings = vec![(QUEUE_SELECT, index), (QUEUE_SIZE, size)];
        for (register, address) in [(DESC, desc), (AVAIL, avail), (USED, used)] {
            settings.extend([(register, address & 0xffff_ffff), (register + 4, address >> 32)]);
        }
        settings.push((QUEUE_READY, 1));
        let mut list = self.settings(&settings);
        list.push(self.getting(QUEUE_READY));
        list
    }

    /// Up to DRIVER_OK, with all queues, which are empty.
    pub fn start(&mut self, features: u64) {
        let status = self.bring_up(features);
        assert_eq!(status & (NEEDS_RESET | DRIVER_OK), DRIVER_OK);
    }

    /// The same, for a device that may have stopped again by then; its status.
    pub fn bring_up(&mut self, features: u64) -> u64 {
        // Before the rings are emptied: a device that was not reset yet may be filling them.
        self.negotiate(features);
        let (mut list, mut ready) = (Vec::new(), Vec::new());
        for at in 0..self.queues.len() {
            self.queues[at] = Queue::new(self.device, at as u64);
            self.clear(at);
            list.extend(self.setting_up(at));
            ready.push(list.len() - 1);
        }
        list.push(self.setting(STATUS, RUNNING));
        list.push(self.getting(STATUS));
        let read = self.vm.access(&list);
        assert!(ready.iter().all(|&at| read[at] == 1), "queues that are not ready");
        read[read.len() - 1]
    }

    /// Empties the rings of a queue, up to the events behind their entries.
    pub fn clear(&self, queue: usize) {
        let Queue { avail, used, .. } = self.queues[queue];
        self.vm.poke(avail, &[0; 0x300]);
        self.vm.poke(used, &[0; 0x900]);
    }

    /// Says DRIVER_OK.
    pub fn go(&self) {
        self.set(STATUS, RUNNING);
    }

    pub fn descriptor(&self, table: u64, index: u16, (address, bytes, flags): Piece, next: u16) {
        let mut descriptor = address.to_le_bytes().to_vec();
        descriptor.extend(bytes.to_le_bytes());
        descriptor.extend(flags.to_le_bytes());
        descriptor.extend(next.to_le_bytes());
        self.vm.poke(table + 16 * u64::from(index), &descriptor);
    }

    /// Makes a chain of these buffers available; its head.
    pub fn offer(&mut self, queue: usize, buffers: &[Piece]) -> u16 {
        let Queue { size, desc, next_desc: head, .. } = self.queues[queue];
        let mut index = head;
        for (i, &(address, bytes, flags)) in buffers.iter().enumerate() {
            let next = (index + 1) % size as u16;
            let flags = flags | if i + 1 < buffers.len() { NEXT } else { 0 };
            self.descriptor(desc, index, (address, bytes, flags), next);
            index = next;
        }
        self.queues[queue].next_desc = index;
        self.offer_head(queue, head);
        head
    }

    pub fn offer_head(&mut self, queue: usize, head: u16) {
        let Queue { size, avail, next_avail, .. } = self.queues[queue];
        let slot = u64::from(next_avail) % size;
        self.vm.poke(avail + 4 + 2 * slot, &head.to_le_bytes());
        self.queues[queue].next_avail = next_avail.wrapping_add(1);
        self.publish(queue);
    }

    /// Shows the device the driver's index.
    pub fn publish(&self, queue: usize) {
        let Queue { avail, next_avail, .. } = self.queues[queue];
        self.vm.poke(avail + 2, &next_avail.to_le_bytes());
    }

    pub fn notify(&self, queue: usize) {
        self.set(NOTIFY, self.queues[queue].index);
    }

    pub fn serve(&mut self, queue: usize, buffers: &[Piece]) {
        self.offer(queue, buffers);
        self.notify(queue);
    }

    /// How many chains the device has given back that were not taken yet.
    fn given_back(&self, queue: usize) -> u16 {
        let Queue { used, next_used, .. } = self.queues[queue];
        self.vm.peek_u16(used + 2).wrapping_sub(next_used)
    }

    /// Takes what the device has given back: head and bytes.
    pub fn take_used(&mut self, queue: usize) -> Vec<(u32, u32)> {
        let mut taken = Vec::new();
        for _ in 0..self.given_back(queue) {
            let Queue { size, used, next_used, .. } = self.queues[queue];
            let entry = self.vm.peek(used + 4 + 8 * (u64::from(next_used) % size), 8);
            let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
            taken.push((word(0), word(4)));
            self.queues[queue].next_used = next_used.wrapping_add(1);
        }
        taken
    }

    /// Waits until the device has given back so many, and takes them.
    pub fn wait_used(&mut self, queue: usize, chains: u16) -> Vec<(u32, u32)> {
        self.vm.until("chains come back", || self.given_back(queue) >= chains);
        self.take_used(queue)
    }
}
