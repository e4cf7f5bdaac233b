//! The virtio-pci face (virtio 1.2 §4.1, without the legacy interface): a function with configuration space, one BAR
//! with the registers and the MSI-X table, and an interrupt by MSI-X or by INTx.

use super::{Backend, Cause, Face, INT_CONFIG, INT_QUEUE, Surroundings, Virtio, half, set_high, set_low};
use crate::devices::counters::{Counters, add};
use crate::devices::error::DeviceStateError;
use crate::devices::host::IrqChip;
use crate::devices::pci::header::{
    self, BAR, COMMAND, COMMAND_BITS, COMMAND_INTX_DISABLE, COMMAND_MASTER, COMMAND_MEMORY, Header,
    INTERRUPT_LINE, Identity, STATUS, STATUS_INTERRUPT,
};
use crate::devices::pci::intx::Intx;
use crate::devices::pci::msix::{self, CONTROL_BITS, Msi, Msix};
use crate::devices::pci::{BAR_BYTES, Decoded, PciAccess, PciFunctionState, VirtioFunction, decoded_at};
use crate::devices::virtio::queue::Ring;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const VENDOR: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;
const SUBSYSTEM: u16 = 0x1100;

const CAPABILITY_VENDOR: u8 = 0x09;
const CAPABILITY_MSIX: u8 = 0x11;

/// Parts of the BAR, each in a page of its own.
const PART_BYTES: u64 = 0x1000;
const COMMON: u64 = 0;
const ISR: u64 = 1;
const DEVICE: u64 = 2;
const NOTIFY: u64 = 3;
const MSIX_TABLE: u64 = 4;
const MSIX_PENDING: u64 = 5;
/// Bytes of the common configuration without what features add that are not offered.
const COMMON_BYTES: u32 = 0x38;
/// Bytes between the places where two queues are notified.
const NOTIFY_STRIDE: u32 = 4;

/// Class, subclass and interface of a type of device.
fn class(device_id: u32) -> u32 {
    match device_id {
        virtio_bindings::virtio_ids::VIRTIO_ID_NET => 0x02_0000,
        virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK => 0x01_8000,
        // Of no class.
        _ => 0xff_0000,
    }
}

/// A device's function.
pub(crate) struct Function {
    place: VirtioFunction,
    header: Header,
    /// Where in configuration space: access by configuration space, and MSI-X.
    access_at: usize,
    msix_at: usize,
    msix: Msix,
    config_vector: u16,
    queue_vectors: Vec<u16>,
    intx: Arc<Intx>,
    decoded: Decoded,
}

impl Function {
    /// As after power-on, for a device of this type with as many queues and bytes of configuration.
    fn new(
        place: VirtioFunction,
        intx: Arc<Intx>,
        (device_id, queues, config_bytes): (u32, usize, usize),
    ) -> Self {
        let identity = Identity {
            vendor: VENDOR,
            device: DEVICE_BASE + device_id as u16,
            class: class(device_id),
            subsystem: SUBSYSTEM,
            interrupt_pin: 1,
        };
        let mut header = Header::new(identity);
        // Capability length, type, BAR, identity and padding, offset, length.
        let capability = |kind: u8, part: u64, bytes: u32, more: &[u8]| {
            let mut content = vec![16 + more.len() as u8, kind, 0, 0, 0, 0];
            content.extend(((part * PART_BYTES) as u32).to_le_bytes());
            content.extend(bytes.to_le_bytes());
            content.extend(more);
            content
        };
        header.add_capability(CAPABILITY_VENDOR, &capability(1, COMMON, COMMON_BYTES, &[]));
        let notify = capability(2, NOTIFY, queues as u32 * NOTIFY_STRIDE, &NOTIFY_STRIDE.to_le_bytes());
        header.add_capability(CAPABILITY_VENDOR, &notify);
        header.add_capability(CAPABILITY_VENDOR, &capability(3, ISR, 1, &[]));
        if config_bytes != 0 {
            header.add_capability(CAPABILITY_VENDOR, &capability(4, DEVICE, config_bytes as u32, &[]));
        }
        let access_at = header.add_capability(CAPABILITY_VENDOR, &capability(5, 0, 0, &[0; 4]));
        header.allow(access_at + 4, &[0xff]);
        header.allow(access_at + 8, &[0xff; 8]);
        let msix = Msix::new(queues + 1);
        let mut content = msix.control().to_le_bytes().to_vec();
        content.extend(((MSIX_TABLE * PART_BYTES) as u32).to_le_bytes());
        content.extend(((MSIX_PENDING * PART_BYTES) as u32).to_le_bytes());
        let msix_at = header.add_capability(CAPABILITY_MSIX, &content);
        header.allow(msix_at + 2, &CONTROL_BITS.to_le_bytes());
        header.allow(COMMAND, &COMMAND_BITS.to_le_bytes());
        header.allow(BAR, &(!(BAR_BYTES - 1)).to_le_bytes());
        header.allow(INTERRUPT_LINE, &[0xff]);
        let (config_vector, queue_vectors) = (msix::NONE, vec![msix::NONE; queues]);
        let decoded = Decoded::default();
        let mut function =
            Self { place, header, access_at, msix_at, msix, config_vector, queue_vectors, intx, decoded };
        function.power_on();
        function
    }

    pub(super) fn of<B: Backend>(backend: &B, place: VirtioFunction, intx: Arc<Intx>) -> Self {
        Self::new(place, intx, (B::DEVICE_ID, B::QUEUES.len(), backend.config().len()))
    }

    pub(super) fn decoded(&self) -> Decoded {
        Arc::clone(&self.decoded)
    }

    /// What firmware leaves behind: the BAR in its place, and decoded. The interrupt line is not its business here.
    fn power_on(&mut self) {
        self.header.set(COMMAND, &COMMAND_MEMORY.to_le_bytes());
        self.header.set(BAR, &self.place.bar.to_le_bytes());
        self.header.set(INTERRUPT_LINE, &[0xff]);
        self.set_access(PciAccess::default());
        self.msix = Msix::new(self.queue_vectors.len() + 1);
        self.header.set(self.msix_at + 2, &self.msix.control().to_le_bytes());
        self.decode();
    }

    fn command(&self) -> u16 {
        self.header.u16_at(COMMAND)
    }

    pub(super) fn is_master(&self) -> bool {
        self.command() & COMMAND_MASTER != 0
    }

    fn decode(&self) {
        let bar = self.header.u32_at(BAR);
        let base = if self.command() & COMMAND_MEMORY != 0 { decoded_at(bar) } else { 0 };
        self.decoded.store(base, Ordering::Release);
    }

    /// Whether INTA# is asserted.
    fn asserts(&self, status: u32) -> bool {
        status != 0 && !self.msix.is_enabled() && self.command() & COMMAND_INTX_DISABLE == 0
    }

    fn settle_line(&self, status: u32) {
        self.intx.set(self.place.gsi, self.place.index, self.asserts(status));
    }

    /// After a restore, when the chips have their state.
    pub(super) fn drive_line(&self) {
        self.intx.drive(self.place.gsi);
    }

    pub(super) fn interrupt(&mut self, cause: Cause, status: &mut u32, around: &Surroundings) {
        let (bit, vector) = match cause {
            Cause::Queue(queue) => (INT_QUEUE, self.queue_vectors[queue]),
            Cause::Config => (INT_CONFIG, self.config_vector),
        };
        // With MSI-X the driver does not ask which queue it was (virtio 1.2 §4.1.4.5.1).
        if !self.msix.is_enabled() || cause == Cause::Config {
            *status |= bit;
        }
        if self.msix.is_enabled() {
            self.msix.fire(vector, sender(around));
        }
        self.settle_line(*status);
    }

    /// Resets what a virtio device's reset resets.
    pub(super) fn reset(&mut self, status: &mut u32) {
        *status = 0;
        self.config_vector = msix::NONE;
        self.queue_vectors.fill(msix::NONE);
        self.settle_line(0);
    }

    /// Resets the rest, as power-on does.
    pub(super) fn reset_function(&mut self) {
        self.power_on();
        self.settle_line(0);
    }

    fn access(&self) -> PciAccess {
        let at = self.access_at;
        let (offset, bytes) = (self.header.u32_at(at + 8), self.header.u32_at(at + 12));
        PciAccess { bar: self.header.bytes()[at + 4], offset, bytes }
    }

    fn set_access(&mut self, access: PciAccess) {
        let PciAccess { bar, offset, bytes } = access;
        let at = self.access_at;
        self.header.set(at + 4, &[bar]);
        self.header.set(at + 8, &offset.to_le_bytes());
        self.header.set(at + 12, &bytes.to_le_bytes());
    }

    pub(super) fn capture(&self) -> PciFunctionState {
        PciFunctionState {
            command: self.command(),
            bar: self.header.u32_at(BAR),
            interrupt_line: self.header.bytes()[INTERRUPT_LINE],
            access: self.access(),
            msix: self.msix.capture(),
            config_vector: self.config_vector,
            queue_vectors: self.queue_vectors.clone(),
        }
    }

    /// A state that a function like this one can be in, with its vectors.
    pub(super) fn check(&self, state: &PciFunctionState) -> Result<CheckedFunction, DeviceStateError> {
        let PciFunctionState {
            command,
            bar,
            interrupt_line: _,
            access: _,
            msix,
            config_vector,
            queue_vectors,
        } = state;
        let refuse = |why: String| Err(DeviceStateError::Pci(why));
        if command & !COMMAND_BITS != 0 {
            return refuse(format!("command {command:#x}"));
        }
        if bar % BAR_BYTES != 0 {
            return refuse(format!("BAR at {bar:#x}"));
        }
        if queue_vectors.len() != self.queue_vectors.len() {
            return refuse(format!(
                "vectors of {} queues of {}",
                queue_vectors.len(),
                self.queue_vectors.len()
            ));
        }
        let unknown = |vector: &&u16| self.msix.known(**vector) != **vector;
        if let Some(vector) = queue_vectors.iter().chain([config_vector]).find(unknown) {
            return refuse(format!("vector {vector}"));
        }
        let msix = self.msix.with_state(msix, command & COMMAND_MASTER != 0)?;
        Ok(CheckedFunction { state: state.clone(), msix })
    }

    /// Takes over what [`Self::check`] passed. The chips have the line as it is.
    pub(super) fn restore(&mut self, checked: CheckedFunction, status: u32) {
        let CheckedFunction { state, msix } = checked;
        let PciFunctionState { command, bar, interrupt_line, access, msix: _, config_vector, queue_vectors } =
            state;
        self.header.set(COMMAND, &command.to_le_bytes());
        self.header.set(BAR, &bar.to_le_bytes());
        self.header.set(INTERRUPT_LINE, &[interrupt_line]);
        self.set_access(access);
        self.header.set(self.msix_at + 2, &msix.control().to_le_bytes());
        (self.msix, self.config_vector, self.queue_vectors) = (msix, config_vector, queue_vectors);
        self.decode();
        self.intx.note(self.place.gsi, self.place.index, self.asserts(status));
    }
}

/// A checked state of a function.
pub(crate) struct CheckedFunction {
    state: PciFunctionState,
    msix: Msix,
}

/// Sends messages to the interrupt controllers.
fn sender(around: &Surroundings) -> impl FnMut(Msi) {
    let (chip, counters): (&dyn IrqChip, &Counters) = (&*around.chip, &around.counters);
    move |message| match message.is_interrupt() {
        true => chip.signal(message),
        false => add(&counters.unknown_io, 1),
    }
}

impl<B: Backend> Virtio<B> {
    pub(super) fn read_config_space(&mut self, at: usize, data: &mut [u8]) {
        let Face::Pci(function) = &self.face else { return };
        data.copy_from_slice(&function.header.bytes()[at..at + data.len()]);
        let pending = self.registers.interrupt_status != 0 && !function.msix.is_enabled();
        if pending && (at..at + data.len()).contains(&STATUS) {
            data[STATUS - at] |= STATUS_INTERRUPT as u8;
        }
        let (through, access) = (function.access_at + 16, function.access());
        if let Some(bytes) = accessed(&access, at, data.len(), through) {
            let mut read = [0; 4];
            self.read_bar(access.offset.into(), &mut read[..bytes]);
            data[..bytes].copy_from_slice(&read[..bytes]);
        }
    }

    pub(super) fn write_config_space(&mut self, at: usize, data: &[u8]) {
        let Face::Pci(function) = &mut self.face else { return };
        let was_master = function.is_master();
        function.header.write(at, data);
        let control_at = function.msix_at + 2;
        if header::touches(at, data, COMMAND..COMMAND + 2)
            || header::touches(at, data, control_at..control_at + 2)
        {
            let (control, may_send) = (function.header.u16_at(control_at), function.is_master());
            function.msix.set_control(control, may_send, sender(&self.around));
            function.settle_line(self.registers.interrupt_status);
        }
        function.decode();
        let (through, access) = (function.access_at + 16, function.access());
        let woken = !was_master && function.is_master();
        if let Some(bytes) = accessed(&access, at, data.len(), through) {
            self.write_bar(access.offset.into(), &data[..bytes]);
        }
        if woken {
            // What was made available, or was finished, while the device could not reach memory.
            (0..B::QUEUES.len() as u32).for_each(|queue| self.notify(queue));
        }
    }

    pub(super) fn read_bar(&mut self, offset: u64, data: &mut [u8]) {
        let (part, within) = (offset / PART_BYTES, offset % PART_BYTES);
        let answered = match part {
            COMMON => match self.read_common(within, data.len()) {
                Some(value) => {
                    data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
                    true
                }
                None => false,
            },
            ISR if within == 0 && data.len() == 1 => {
                data[0] = self.registers.interrupt_status as u8;
                self.registers.interrupt_status = 0;
                if let Face::Pci(function) = &self.face {
                    function.settle_line(0);
                }
                true
            }
            DEVICE => self.read_config(within, data),
            // What is notified is only written.
            NOTIFY => {
                data.fill(0);
                true
            }
            MSIX_TABLE | MSIX_PENDING => match &self.face {
                Face::Pci(function) if part == MSIX_TABLE => function.msix.read_table(within as usize, data),
                Face::Pci(function) => function.msix.read_pending(within as usize, data),
                Face::Mmio(_) => false,
            },
            _ => false,
        };
        if !answered {
            data.fill(0xff);
            add(&self.around.counters.unknown_io, 1);
        }
    }

    pub(super) fn write_bar(&mut self, offset: u64, data: &[u8]) {
        let (part, within) = (offset / PART_BYTES, offset % PART_BYTES);
        let written = match part {
            COMMON => self.write_common(within, data),
            NOTIFY if matches!(data.len(), 2 | 4) && within.is_multiple_of(NOTIFY_STRIDE.into()) => {
                self.notify((within / u64::from(NOTIFY_STRIDE)) as u32);
                true
            }
            MSIX_TABLE => match &mut self.face {
                Face::Pci(function) => function.msix.write_table(within as usize, data, sender(&self.around)),
                Face::Mmio(_) => false,
            },
            _ => false,
        };
        if !written {
            add(&self.around.counters.unknown_io, 1);
        }
    }

    /// A register of the common configuration, read at its own width or, if it has 64 bits, by halves.
    fn read_common(&self, offset: u64, bytes: usize) -> Option<u64> {
        let Face::Pci(function) = &self.face else { return None };
        let registers = &self.registers;
        let ring = self.selected();
        let vector = |queue: u32| function.queue_vectors.get(queue as usize).copied().unwrap_or(msix::NONE);
        let area = |offset: u64| {
            let ring = ring?;
            Some(match offset & !7 {
                0x20 => ring.desc,
                0x28 => ring.avail,
                _ => ring.used,
            })
        };
        Some(match (offset, bytes) {
            (0x00, 4) => registers.device_features_select.into(),
            (0x04, 4) => self.offered_features().into(),
            (0x08, 4) => registers.driver_features_select.into(),
            (0x0c, 4) => half(registers.driver_features, registers.driver_features_select).into(),
            (0x10, 2) => function.config_vector.into(),
            (0x12, 2) => registers.rings.len() as u64,
            (0x14, 1) => registers.status.into(),
            (0x15, 1) => (registers.config_generation & 0xff).into(),
            (0x16, 2) => registers.queue_select.into(),
            (0x18, 2) => ring.map_or(0, |ring| ring.size.into()),
            (0x1a, 2) => vector(registers.queue_select).into(),
            (0x1c, 2) => ring.is_some_and(Ring::ready).into(),
            (0x1e, 2) => registers.queue_select.into(),
            // Queue reset: not offered, so none is under way.
            (0x3a, 2) => 0,
            (0x20..0x38, 8) if offset.is_multiple_of(8) => area(offset).unwrap_or(0),
            (0x20..0x38, 4) if offset.is_multiple_of(4) => {
                half(area(offset).unwrap_or(0), (offset >> 2 & 1) as u32).into()
            }
            _ => return None,
        })
    }

    fn write_common(&mut self, offset: u64, data: &[u8]) -> bool {
        let value = data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        let low = value as u32;
        let Face::Pci(function) = &mut self.face else { return false };
        match (offset, data.len()) {
            (0x00, 4) => self.registers.device_features_select = low,
            (0x08, 4) => self.registers.driver_features_select = low,
            (0x0c, 4) => return self.take_features(low),
            (0x10, 2) => function.config_vector = function.msix.known(low as u16),
            (0x14, 1) => self.set_status(low),
            (0x16, 2) => self.registers.queue_select = low,
            (0x18, 2) => self.set_up_queue(|ring| ring.size = low),
            (0x1a, 2) => {
                let vector = function.msix.known(low as u16);
                if let Some(own) = function.queue_vectors.get_mut(self.registers.queue_select as usize) {
                    *own = vector;
                }
            }
            // A queue is not taken back but by a reset.
            (0x1c, 2) if low == 1 => self.enable_queue(),
            (0x1c, 2) => {}
            (0x20..0x38, 8) if offset.is_multiple_of(8) => {
                self.set_up_queue(|ring| *area_of(ring, offset) = value);
            }
            (0x20..0x38, 4) if offset.is_multiple_of(4) => {
                let set = if offset & 4 == 0 { set_low } else { set_high };
                self.set_up_queue(|ring| set(area_of(ring, offset), low));
            }
            _ => return false,
        }
        true
    }
}

/// The part of a queue whose address is in this register.
fn area_of(ring: &mut Ring, offset: u64) -> &mut u64 {
    match offset & !7 {
        0x20 => &mut ring.desc,
        0x28 => &mut ring.avail,
        _ => &mut ring.used,
    }
}

/// How many bytes of the BAR an access to configuration space is for; none if it is for configuration space itself.
/// `through` is where those of the BAR show.
fn accessed(access: &PciAccess, at: usize, bytes: usize, through: usize) -> Option<usize> {
    let &PciAccess { bar, offset, bytes: wanted } = access;
    let width = matches!(wanted, 1 | 2 | 4) && offset.is_multiple_of(wanted) && offset < BAR_BYTES;
    (bar == 0 && width && at == through && bytes >= wanted as usize).then_some(wanted as usize)
}
