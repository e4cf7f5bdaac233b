//! Driver for a virtio network card behind virtio-mmio (virtio 1.2, sections 4.2 and 5.1), by polling.
//!
//! Two queues of fixed buffers. A received frame's buffer goes back to the device once the frame is read; transmit
//! buffers are a stack, so that a quiet guest uses the same one again and dirties no others.

use crate::layout::{VIRTIO_DEVICES_MAX, VIRTIO_MMIO_BASE, VIRTIO_MMIO_SIZE};
use core::cell::UnsafeCell;
use core::sync::atomic::{Ordering, fence};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

// Registers (4.2.2).
const MAGIC: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SEL: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SEL: u64 = 0x024;
const QUEUE_SEL: u64 = 0x030;
const QUEUE_NUM_MAX: u64 = 0x034;
const QUEUE_NUM: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const QUEUE_NOTIFY: u64 = 0x050;
const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
const QUEUE_DESC: u64 = 0x080;
const QUEUE_DRIVER: u64 = 0x090;
const QUEUE_DEVICE: u64 = 0x0a0;
const CONFIG: u64 = 0x100;

const MAGIC_VALUE: u32 = 0x7472_6976;
const VERSION_MODERN: u32 = 2;
const NETWORK_CARD: u32 = 1;

const STATUS_ACKNOWLEDGE: u32 = 1;
const STATUS_DRIVER: u32 = 2;
const STATUS_DRIVER_OK: u32 = 4;
const STATUS_FEATURES_OK: u32 = 8;
const STATUS_NEEDS_RESET: u32 = 64;

/// Feature bit of the low word: the device has an address.
const FEATURE_MAC: u32 = 1 << 5;
/// Feature bit 32, the lowest of the high word: not a legacy device.
const FEATURE_VERSION_1: u32 = 1;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Descriptors, and buffers, of each queue.
const QUEUE_SIZE: usize = 64;
/// Bytes of a buffer: header and frame.
const BUFFER_SIZE: usize = 2048;
/// `struct virtio_net_hdr_v1` (5.1.6).
const HEADER: usize = 12;
/// The largest Ethernet frame.
const FRAME_MAX: usize = 1514;

const DESC_WRITE: u16 = 2;
const AVAIL_NO_INTERRUPT: u16 = 1;
/// Used buffers, and a change of configuration.
const INTERRUPT_ALL: u32 = 3;

#[repr(C)]
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    bytes: u32,
    flags: u16,
    next: u16,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct UsedElement {
    id: u32,
    bytes: u32,
}

/// A split virtqueue (2.7) and its buffers, as the device sees them.
#[repr(C, align(4096))]
struct Ring {
    descriptors: [Descriptor; QUEUE_SIZE],
    avail_flags: u16,
    avail_index: u16,
    avail: [u16; QUEUE_SIZE],
    used_event: u16,
    used: UsedRing,
    buffers: Buffers,
}

#[repr(C, align(4))]
struct UsedRing {
    flags: u16,
    index: u16,
    elements: [UsedElement; QUEUE_SIZE],
}

#[repr(C, align(4096))]
struct Buffers([[u8; BUFFER_SIZE]; QUEUE_SIZE]);

/// Memory that the device also writes.
struct Shared(UnsafeCell<[Ring; 2]>);

// SAFETY: only the one `Card` touches it (see `Card::probe`), by volatile accesses through raw pointers.
unsafe impl Sync for Shared {}

// SAFETY: all zeroes are valid for these plain numbers.
static RINGS: Shared = Shared(UnsafeCell::new(unsafe { core::mem::zeroed() }));

/// Reads a field that the device may write.
macro_rules! get {
    ($ring:expr, $($field:tt)+) => {
        // SAFETY: the ring is static memory; volatile, since the device accesses it too.
        unsafe { (&raw const (*$ring).$($field)+).read_volatile() }
    };
}

/// Writes a field that the device may read.
macro_rules! set {
    ($ring:expr, $value:expr => $($field:tt)+) => {{
        let value = $value;
        // SAFETY: the ring is static memory that only this driver writes; volatile, since the device reads it.
        unsafe { (&raw mut (*$ring).$($field)+).write_volatile(value) }
    }};
}

/// Counters for `STATS`.
#[derive(Clone, Copy, Default)]
pub struct Counters {
    /// Frames received.
    pub frames_in: u64,
    /// Frames sent.
    pub frames_out: u64,
    /// Times that all transmit buffers were with the device.
    pub transmit_full: u64,
}

/// The network card.
pub struct Card {
    window: u64,
    mac: [u8; 6],
    receive: *mut Ring,
    transmit: *mut Ring,
    receive_used: u16,
    transmit_used: u16,
    /// Transmit buffers that are not with the device.
    free: [u8; QUEUE_SIZE],
    free_count: usize,
    notify_transmit: bool,
    /// Receive buffers given back since the device was last told.
    returned: usize,
    /// What was done.
    pub counters: Counters,
}

/// Why there is no network card.
#[derive(Clone, Copy, Debug)]
pub enum ProbeError {
    /// None of the windows has one.
    None,
    /// It lacks a feature that this driver needs.
    Features,
    /// It has no such queue, or one that is too short.
    Queue,
    /// It asked to be reset.
    Failed,
}

impl Card {
    /// Looks for the first network card and starts it. To be called once: there is one set of rings.
    pub fn probe() -> Result<Self, ProbeError> {
        let window = (0..VIRTIO_DEVICES_MAX as u64)
            .map(|i| VIRTIO_MMIO_BASE + i * VIRTIO_MMIO_SIZE)
            .find(|&window| {
                read(window, MAGIC) == MAGIC_VALUE
                    && read(window, VERSION) == VERSION_MODERN
                    && read(window, DEVICE_ID) == NETWORK_CARD
            })
            .ok_or(ProbeError::None)?;

        // The order of 3.1.1.
        let mut status = 0;
        write(window, STATUS, status);
        for step in [STATUS_ACKNOWLEDGE, STATUS_DRIVER] {
            status |= step;
            write(window, STATUS, status);
        }
        for (half, wanted) in [FEATURE_MAC, FEATURE_VERSION_1].into_iter().enumerate() {
            write(window, DEVICE_FEATURES_SEL, half as u32);
            if read(window, DEVICE_FEATURES) & wanted == 0 {
                return Err(ProbeError::Features);
            }
            write(window, DRIVER_FEATURES_SEL, half as u32);
            write(window, DRIVER_FEATURES, wanted);
        }
        status |= STATUS_FEATURES_OK;
        write(window, STATUS, status);
        if read(window, STATUS) & STATUS_FEATURES_OK == 0 {
            return Err(ProbeError::Features);
        }

        let rings = RINGS.0.get().cast::<Ring>();
        // SAFETY: the array has two rings.
        let (receive, transmit) = unsafe { (rings.add(RECEIVE), rings.add(TRANSMIT)) };
        Self::start_queue(window, RECEIVE, receive)?;
        Self::start_queue(window, TRANSMIT, transmit)?;
        let mut card = Self {
            window,
            mac: core::array::from_fn(|i| read_config(window, i as u64)),
            receive,
            transmit,
            receive_used: 0,
            transmit_used: 0,
            free: core::array::from_fn(|i| i as u8),
            free_count: QUEUE_SIZE,
            notify_transmit: false,
            returned: QUEUE_SIZE,
            counters: Counters::default(),
        };
        for i in 0..QUEUE_SIZE {
            let address = buffer(receive, i) as u64;
            let descriptor = Descriptor { address, bytes: BUFFER_SIZE as u32, flags: DESC_WRITE, next: 0 };
            set!(receive, descriptor => descriptors[i]);
            offer(receive, i);
        }

        status |= STATUS_DRIVER_OK;
        write(window, STATUS, status);
        if read(window, STATUS) & STATUS_NEEDS_RESET != 0 {
            return Err(ProbeError::Failed);
        }
        card.disarm();
        card.flush();
        Ok(card)
    }

    fn start_queue(window: u64, queue: usize, ring: *mut Ring) -> Result<(), ProbeError> {
        write(window, QUEUE_SEL, queue as u32);
        if (read(window, QUEUE_NUM_MAX) as usize) < QUEUE_SIZE || read(window, QUEUE_READY) != 0 {
            return Err(ProbeError::Queue);
        }
        write(window, QUEUE_NUM, QUEUE_SIZE as u32);
        // SAFETY: addresses of fields of static memory; nothing is read. The mapping is one to one, so that the device
        // sees the same addresses.
        let parts = unsafe {
            [
                (QUEUE_DESC, (&raw mut (*ring).descriptors) as u64),
                (QUEUE_DRIVER, (&raw mut (*ring).avail_flags) as u64),
                (QUEUE_DEVICE, (&raw mut (*ring).used) as u64),
            ]
        };
        for (register, address) in parts {
            write(window, register, address as u32);
            write(window, register + 4, (address >> 32) as u32);
        }
        write(window, QUEUE_READY, 1);
        Ok(())
    }

    /// The card's address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Tells the device of the buffers that it was given since the last call.
    pub fn flush(&mut self) {
        if core::mem::take(&mut self.notify_transmit) {
            write(self.window, QUEUE_NOTIFY, TRANSMIT as u32);
        }
        // The device sees given buffers in the ring; it is told for the case that it has run out of them and waits.
        // Then more than this many are on their way back to it.
        if self.returned >= QUEUE_SIZE / 4 {
            self.returned = 0;
            write(self.window, QUEUE_NOTIFY, RECEIVE as u32);
        }
    }

    /// Before idling: asks for signals, which end the idling. Returns whether there is something to do already.
    ///
    /// Nothing is lost: what the device did before it could see the request is in the rings by now, and what it does
    /// afterwards it signals. While the driver works it wants no signals: other vCPUs' idling would end by them too.
    pub fn arm(&mut self) -> bool {
        set!(self.receive, 0 => avail_flags);
        if self.free_count == 0 {
            // Transmitted buffers matter only to a driver that has none left.
            set!(self.transmit, 0 => avail_flags);
        }
        fence(Ordering::SeqCst);
        get!(self.receive, used.index) != self.receive_used
            || (self.free_count == 0 && get!(self.transmit, used.index) != self.transmit_used)
    }

    /// After idling: asks for no more signals and acknowledges the one that may have come.
    pub fn disarm(&mut self) {
        set!(self.receive, AVAIL_NO_INTERRUPT => avail_flags);
        set!(self.transmit, AVAIL_NO_INTERRUPT => avail_flags);
        write(self.window, INTERRUPT_ACK, INTERRUPT_ALL);
    }

    /// Takes back the buffers that the device has transmitted.
    fn reclaim(&mut self) {
        while self.transmit_used != get!(self.transmit, used.index) {
            fence(Ordering::Acquire);
            let slot = self.transmit_used as usize % QUEUE_SIZE;
            let id = get!(self.transmit, used.elements[slot].id) as usize;
            assert!(id < QUEUE_SIZE && self.free_count < QUEUE_SIZE, "device returned transmit buffer {id}");
            self.free[self.free_count] = id as u8;
            self.free_count += 1;
            self.transmit_used = self.transmit_used.wrapping_add(1);
        }
    }

    /// Whether there is a transmit buffer.
    fn can_transmit(&mut self) -> bool {
        if self.free_count == 0 {
            self.reclaim();
            self.counters.transmit_full += u64::from(self.free_count == 0);
        }
        self.free_count > 0
    }
}

fn read(window: u64, register: u64) -> u32 {
    // SAFETY: a register of a mapped virtio-mmio window.
    unsafe { ((window + register) as *const u32).read_volatile() }
}

fn write(window: u64, register: u64, value: u32) {
    // SAFETY: a register of a mapped virtio-mmio window; the device reads and writes only the rings given to it.
    unsafe { ((window + register) as *mut u32).write_volatile(value) }
}

fn read_config(window: u64, offset: u64) -> u8 {
    // SAFETY: a byte of the device's configuration space.
    unsafe { ((window + CONFIG + offset) as *const u8).read_volatile() }
}

fn buffer(ring: *mut Ring, i: usize) -> *mut u8 {
    assert!(i < QUEUE_SIZE);
    // SAFETY: inside the array by the assertion.
    unsafe { (&raw mut (*ring).buffers.0[i]).cast() }
}

/// Gives a buffer to the device.
fn offer(ring: *mut Ring, i: usize) {
    let index = get!(ring, avail_index);
    set!(ring, i as u16 => avail[index as usize % QUEUE_SIZE]);
    fence(Ordering::SeqCst);
    set!(ring, index.wrapping_add(1) => avail_index);
}

impl phy::Device for Card {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Transmit<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Transmit<'_>)> {
        // A frame is taken only when there is room for an answer to it.
        if get!(self.receive, used.index) == self.receive_used || !self.can_transmit() {
            return None;
        }
        fence(Ordering::Acquire);
        let slot = self.receive_used as usize % QUEUE_SIZE;
        let used = get!(self.receive, used.elements[slot]);
        let (id, bytes) = (used.id as usize, used.bytes as usize);
        assert!(id < QUEUE_SIZE && bytes <= BUFFER_SIZE, "device filled buffer {id} with {bytes} bytes");
        self.receive_used = self.receive_used.wrapping_add(1);
        self.counters.frames_in += 1;
        self.returned += 1;
        let received = Received { ring: self.receive, id, bytes, lifetime: core::marker::PhantomData };
        Some((received, Transmit(self)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Transmit<'_>> {
        if self.can_transmit() { Some(Transmit(self)) } else { None }
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_MAX;
        capabilities
    }
}

/// A received frame.
pub struct Received<'a> {
    ring: *mut Ring,
    id: usize,
    bytes: usize,
    lifetime: core::marker::PhantomData<&'a mut Card>,
}

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let frame = self.bytes.saturating_sub(HEADER);
        // SAFETY: header and frame are inside the buffer (checked when it was taken), which is the driver's until it is
        // offered again by drop.
        f(unsafe { core::slice::from_raw_parts(buffer(self.ring, self.id).add(HEADER), frame) })
    }
}

impl Drop for Received<'_> {
    fn drop(&mut self) {
        offer(self.ring, self.id);
    }
}

/// Room for one frame.
pub struct Transmit<'a>(&'a mut Card);

impl phy::TxToken for Transmit<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, bytes: usize, f: F) -> R {
        let card = self.0;
        assert!(bytes <= FRAME_MAX && card.free_count > 0, "frame of {bytes} bytes");
        card.free_count -= 1;
        let id = usize::from(card.free[card.free_count]);
        let buffer = buffer(card.transmit, id);
        // SAFETY: header and frame are inside the buffer, which is the driver's until it is offered.
        let (result, address) = unsafe {
            buffer.write_bytes(0, HEADER);
            (f(core::slice::from_raw_parts_mut(buffer.add(HEADER), bytes)), buffer as u64)
        };
        let descriptor = Descriptor { address, bytes: (HEADER + bytes) as u32, flags: 0, next: 0 };
        set!(card.transmit, descriptor => descriptors[id]);
        offer(card.transmit, id);
        card.counters.frames_out += 1;
        card.notify_transmit = true;
        result
    }
}
