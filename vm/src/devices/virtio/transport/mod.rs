//! What every virtio device is, whatever its driver reaches it by (virtio 1.2 §2 and §3; the legacy interface is
//! refused): feature negotiation, queue set-up, status, interrupts, and stopping a device whose driver breaks the
//! rules.
//!
//! ```text
//!   driver ──> registers of a face: mmio or pci ──> Virtio<B>: the same rules for all ──> backend: net, block, rng
//! ```
//!
//! Notifications are served on the vCPU thread that sent them, with the device locked. What a device has taken from a
//! queue and not given back by the time the machine stands still is a part of its state ([`VirtioState::requests`]).

mod mmio;
mod pci;
mod shared;

pub(crate) use shared::{Shared, Window};

use super::Malformed;
use super::block::flight::RequestState;
use super::queue::{Ring, RingFeatures, RingState};
use crate::devices::counters::{Counters, add, count};
use crate::devices::error::DeviceStateError;
use crate::devices::host::IrqChip;
use crate::devices::idle::Idle;
use crate::devices::pci::intx::Intx;
use crate::devices::pci::{PciFunctionState, VirtioFunction};
use ft_ram::{GuestMemory, GuestRam};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};

const STATUS_DRIVER_BITS: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_FAILED;
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
/// Bits of the interrupt status (virtio 1.2 §4.1.4.5 and §4.2.2, which agree).
const INT_QUEUE: u32 = 1 << 0;
const INT_CONFIG: u32 = 1 << 1;

/// Why a device interrupts its driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// It has given back chains of this queue.
    Queue(usize),
    /// Its status or its configuration is another.
    Config,
}

/// What a virtio device is, behind its transport. What the guest can see of it is in the registers and the rings, which
/// the transport captures, and in the requests that it has taken and not given back.
pub(crate) trait Backend: Send {
    /// Device type (virtio 1.2 §5).
    const DEVICE_ID: u32;
    /// The most entries that each queue can have.
    const QUEUES: &'static [u16];
    /// For messages.
    const NAME: &'static str;
    /// Bits of the status in its configuration space.
    const CONFIG_STATUS: u16 = 0;

    /// Feature bits of this type of device.
    fn features(&self) -> u64;

    /// The configuration space, of which nothing changes but the status.
    fn config(&self) -> &[u8];

    /// The status in it.
    fn config_status(&self) -> u16 {
        0
    }

    /// Sets the status to bits that it can have.
    fn set_config_status(&mut self, _: u16) {}

    /// Serves a queue that the driver notified: at most the chains that are available now. Says whether to interrupt
    /// for this queue.
    fn notify(&mut self, queue: usize, rings: &mut [Ring], memory: &GuestMemory) -> Result<bool, Malformed>;

    /// The driver has taken these features; none after a reset.
    fn negotiated(&mut self, _: u64) {}

    /// Forgets the requests that it has taken and not given back.
    fn reset(&mut self) {}

    /// The requests that it has taken and not given back.
    fn capture(&self) -> Vec<RequestState> {
        Vec::new()
    }

    /// What is wrong with requests that come with these rings, which are untrusted.
    fn check(&self, requests: &[RequestState], _: &[Ring]) -> Result<(), DeviceStateError> {
        match requests.len() {
            0 => Ok(()),
            requests => Err(DeviceStateError::Requests { requests, taken: 0 }),
        }
    }

    /// Takes over what [`Self::check`] passed.
    fn restore(&mut self, _: &[RequestState]) {}
}

/// Registers and queues of a virtio device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioState {
    /// Device type; a state of another type is refused.
    pub device_id: u32,
    /// Status register.
    pub status: u32,
    /// Features that the driver took.
    pub driver_features: u64,
    /// DeviceFeaturesSel.
    pub device_features_select: u32,
    /// DriverFeaturesSel.
    pub driver_features_select: u32,
    /// QueueSel.
    pub queue_select: u32,
    /// Interrupt status; the line is high while it is not zero.
    pub interrupt_status: u32,
    /// How often the configuration space has changed, modulo 2^32.
    pub config_generation: u32,
    /// What of it changes: the status of a network card.
    pub config_status: u16,
    /// The queues.
    pub rings: Vec<RingState>,
    /// What a disk has taken from its queue and not given back, in the order in which it was taken.
    pub requests: Vec<RequestState>,
}

/// A checked [`VirtioState`], to be taken over by the device that checked it.
pub(crate) struct Checked {
    registers: Registers,
    config_status: u16,
    requests: Vec<RequestState>,
    function: Option<pci::CheckedFunction>,
}

/// What the driver has set, and how far its queues have come.
pub(crate) struct Registers {
    status: u32,
    driver_features: u64,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u32,
    interrupt_status: u32,
    config_generation: u32,
    pub(crate) rings: Vec<Ring>,
}

impl Registers {
    fn new(queues: &[u16]) -> Self {
        Self {
            status: 0,
            driver_features: 0,
            device_features_select: 0,
            driver_features_select: 0,
            queue_select: 0,
            interrupt_status: 0,
            config_generation: 0,
            rings: queues.iter().map(|&max_size| Ring::new(max_size)).collect(),
        }
    }
}

/// What every virtio device is given.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) ram: GuestRam,
    pub(crate) chip: Arc<dyn IrqChip>,
    pub(crate) idle: Arc<Idle>,
    pub(crate) counters: Arc<Counters>,
}

/// A virtio device.
pub(crate) struct Virtio<B> {
    pub(crate) backend: B,
    pub(crate) registers: Registers,
    pub(crate) around: Surroundings,
    index: usize,
    face: Face,
}

/// Where a device is.
pub(crate) enum Place {
    Mmio(super::VirtioWindow),
    Pci(VirtioFunction, Arc<Intx>),
}

/// How its driver reaches it, and how its interrupts reach the driver.
enum Face {
    Mmio(mmio::Line),
    Pci(Box<pci::Function>),
}

impl<B: Backend> Virtio<B> {
    pub(crate) fn new(backend: B, place: Place, around: Surroundings) -> Self {
        let registers = Registers::new(B::QUEUES);
        let (index, face) = match place {
            Place::Mmio(window) => (window.index, Face::Mmio(mmio::Line::new(window.gsi))),
            Place::Pci(function, intx) => {
                (function.index, Face::Pci(Box::new(pci::Function::of(&backend, function, intx))))
            }
        };
        Self { backend, registers, around, index, face }
    }

    fn features(&self) -> u64 {
        self.backend.features() | VERSION_1 | RingFeatures::OFFERED
    }

    /// The driver has set the device up and nothing is wrong.
    pub(crate) fn running(&self) -> bool {
        let stopped = VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED;
        let may_reach_memory = match &self.face {
            Face::Mmio(_) => true,
            Face::Pci(function) => function.is_master(),
        };
        let status = self.registers.status;
        may_reach_memory && status & (VIRTIO_CONFIG_S_DRIVER_OK | stopped) == VIRTIO_CONFIG_S_DRIVER_OK
    }

    /// Reads the configuration space; false beyond its end.
    fn read_config(&self, offset: u64, data: &mut [u8]) -> bool {
        let config = self.backend.config();
        let Ok(start) = usize::try_from(offset) else { return false };
        let Some(bytes) = config.get(start..start.saturating_add(data.len())) else { return false };
        data.copy_from_slice(bytes);
        true
    }

    /// The selected half of the features that are offered.
    fn offered_features(&self) -> u32 {
        half(self.features(), self.registers.device_features_select)
    }

    /// Takes features, in the selected half; false for such as there are none of.
    fn take_features(&mut self, value: u32) -> bool {
        let negotiating = self.registers.status & (VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK)
            == VIRTIO_CONFIG_S_DRIVER;
        match self.registers.driver_features_select {
            _ if !negotiating => return false,
            0 => set_low(&mut self.registers.driver_features, value),
            1 => set_high(&mut self.registers.driver_features, value),
            // Feature bits from 64 are not offered, so taking them is refused at FEATURES_OK.
            _ => return value == 0,
        }
        true
    }

    fn selected(&self) -> Option<&Ring> {
        self.registers.rings.get(self.registers.queue_select as usize)
    }

    /// Changes the selected queue, which the driver may do from FEATURES_OK to DRIVER_OK while it is not ready; at
    /// other times it has no effect.
    fn set_up_queue(&mut self, change: impl FnOnce(&mut Ring)) {
        let status = self.registers.status;
        let may = status & VIRTIO_CONFIG_S_FEATURES_OK != 0
            && status & (VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED)
                == 0;
        let ring = self.registers.rings.get_mut(self.registers.queue_select as usize);
        if let Some(ring) = ring.filter(|ring| may && !ring.ready()) {
            change(ring);
        }
    }

    /// The driver takes the selected queue back.
    fn disable_queue(&mut self) {
        if let Some(ring) = self.registers.rings.get_mut(self.registers.queue_select as usize) {
            ring.disable();
            self.backend.reset();
        }
    }

    /// The driver has set the selected queue up.
    fn enable_queue(&mut self) {
        let mut result = Ok(());
        let ram = self.around.ram.clone();
        let means = RingFeatures::of(self.registers.driver_features);
        self.set_up_queue(|ring| result = ring.enable(means, ram.memory()));
        if let Err(malformed) = result {
            self.stop(malformed);
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            add(&self.around.counters.resets, 1);
            self.reset();
            return;
        }
        let from = self.registers.status;
        // The driver only ever adds bits; NEEDS_RESET is the device's.
        let mut to = from | (value & STATUS_DRIVER_BITS);
        let added = to & !from;
        if added & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            let features = self.registers.driver_features;
            // Left clear when the driver's choice will not do; the driver reads it back (virtio 1.2 §3.1.1).
            if features & !self.features() != 0 || features & VERSION_1 == 0 {
                to &= !VIRTIO_CONFIG_S_FEATURES_OK;
            } else {
                self.backend.negotiated(features);
            }
        }
        if added & VIRTIO_CONFIG_S_DRIVER_OK != 0 && to & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            self.stop(Malformed::Status { from, to: value });
            return;
        }
        self.registers.status = to;
    }

    fn notify(&mut self, queue: u32) {
        let queue = queue as usize;
        if !self.running() || !self.registers.rings.get(queue).is_some_and(Ring::ready) {
            return;
        }
        self.serve(queue, |backend, rings, memory| backend.notify(queue, rings, memory));
    }

    /// Lets the backend work on its queues, and interrupts for this one or stops the device accordingly.
    pub(crate) fn serve(
        &mut self,
        queue: usize,
        work: impl FnOnce(&mut B, &mut [Ring], &GuestMemory) -> Result<bool, Malformed>,
    ) {
        let memory = self.around.ram.memory();
        let status = self.backend.config_status();
        let worked = work(&mut self.backend, &mut self.registers.rings, memory);
        self.note_config(status);
        match worked {
            Ok(true) => self.interrupt(Cause::Queue(queue)),
            Ok(false) => {}
            Err(malformed) => self.stop(malformed),
        }
    }

    /// Changes the status in the configuration space of a device that runs, and tells the driver.
    pub(crate) fn change_config(&mut self, change: impl FnOnce(u16) -> u16) {
        let status = self.backend.config_status();
        self.backend.set_config_status(change(status));
        if self.note_config(status) {
            self.interrupt(Cause::Config);
        }
    }

    /// Whether the status has changed.
    fn note_config(&mut self, before: u16) -> bool {
        let changed = self.backend.config_status() != before;
        let generation = &mut self.registers.config_generation;
        *generation = generation.wrapping_add(u32::from(changed));
        changed
    }

    /// Stops the device: the driver must reset it (virtio 1.2 §2.1.2).
    pub(crate) fn stop(&mut self, malformed: Malformed) {
        if count(&self.around.counters.malformed) {
            tracing::warn!(device = B::NAME, index = self.index, %malformed, "virtio device stopped");
        }
        let was_running = self.running();
        self.registers.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        if was_running {
            self.interrupt(Cause::Config);
        }
    }

    fn interrupt(&mut self, cause: Cause) {
        let status = &mut self.registers.interrupt_status;
        match &mut self.face {
            Face::Mmio(line) => line.raise(cause, status, &*self.around.chip),
            Face::Pci(function) => function.interrupt(cause, status, &self.around),
        }
        self.around.idle.signal();
    }

    fn reset(&mut self) {
        let status = &mut self.registers.interrupt_status;
        match &mut self.face {
            Face::Mmio(line) => line.acknowledge(u32::MAX, status, &*self.around.chip),
            Face::Pci(function) => function.reset(status),
        }
        self.registers = Registers::new(B::QUEUES);
        self.backend.reset();
        self.backend.negotiated(0);
    }

    fn capture(&self) -> VirtioState {
        let &Registers {
            status,
            driver_features,
            device_features_select,
            driver_features_select,
            queue_select,
            interrupt_status,
            config_generation,
            ref rings,
        } = &self.registers;
        VirtioState {
            device_id: B::DEVICE_ID,
            status,
            driver_features,
            device_features_select,
            driver_features_select,
            queue_select,
            interrupt_status,
            config_generation,
            config_status: self.backend.config_status(),
            rings: rings.iter().map(Ring::capture).collect(),
            requests: self.backend.capture(),
        }
    }

    fn check(
        &self,
        state: &VirtioState,
        function: Option<&PciFunctionState>,
    ) -> Result<Checked, DeviceStateError> {
        let &VirtioState {
            device_id,
            status,
            driver_features,
            device_features_select,
            driver_features_select,
            queue_select,
            interrupt_status,
            config_generation,
            config_status,
            ref rings,
            ref requests,
        } = state;
        let refuse = |why: String| DeviceStateError::Virtio { device: B::NAME, index: self.index, why };
        if device_id != B::DEVICE_ID {
            return Err(refuse(format!("state of a device of type {device_id}")));
        }
        let negotiated = status & VIRTIO_CONFIG_S_FEATURES_OK != 0;
        if status & !(STATUS_DRIVER_BITS | VIRTIO_CONFIG_S_NEEDS_RESET) != 0
            || (status & VIRTIO_CONFIG_S_DRIVER_OK != 0 && !negotiated)
        {
            return Err(refuse(format!("status {status:#x}")));
        }
        if negotiated && (driver_features & !self.features() != 0 || driver_features & VERSION_1 == 0) {
            return Err(refuse(format!("features {driver_features:#x} of {:#x}", self.features())));
        }
        if interrupt_status & !(INT_QUEUE | INT_CONFIG) != 0 {
            return Err(refuse(format!("interrupt status {interrupt_status:#x}")));
        }
        if config_status & !B::CONFIG_STATUS != 0 {
            return Err(refuse(format!("configuration status {config_status:#x}")));
        }
        if rings.len() != B::QUEUES.len() {
            return Err(refuse(format!("{} queues of {}", rings.len(), B::QUEUES.len())));
        }
        if !negotiated && rings.iter().any(|ring| ring.position.is_some()) {
            return Err(refuse("queues in use before feature negotiation".into()));
        }
        let means = RingFeatures::of(driver_features);
        let rings = rings
            .iter()
            .zip(B::QUEUES)
            .map(|(ring, &max_size)| Ring::from_state(max_size, means, ring, self.around.ram.memory()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| refuse(e.to_string()))?;
        self.backend.check(requests, &rings).map_err(|e| refuse(e.to_string()))?;
        let registers = Registers {
            status,
            driver_features,
            device_features_select,
            driver_features_select,
            queue_select,
            interrupt_status,
            config_generation,
            rings,
        };
        let function = match (&self.face, function) {
            (Face::Pci(ours), Some(state)) => Some(ours.check(state).map_err(|e| refuse(e.to_string()))?),
            _ => None,
        };
        Ok(Checked { registers, config_status, requests: requests.clone(), function })
    }

    fn restore(&mut self, checked: Checked) {
        let Checked { registers, config_status, requests, function } = checked;
        self.registers = registers;
        if let (Face::Pci(ours), Some(function)) = (&mut self.face, function) {
            ours.restore(function, self.registers.interrupt_status);
        }
        self.backend.restore(&requests);
        let negotiated = self.registers.status & VIRTIO_CONFIG_S_FEATURES_OK != 0;
        self.backend.negotiated(if negotiated { self.registers.driver_features } else { 0 });
        self.backend.set_config_status(config_status);
    }
}

/// A half of a register of 64 bits; zero beyond them.
fn half(register: u64, select: u32) -> u32 {
    match select {
        0 => register as u32,
        1 => (register >> 32) as u32,
        _ => 0,
    }
}

fn set_low(register: &mut u64, low: u32) {
    *register = *register & !u64::from(u32::MAX) | u64::from(low);
}

fn set_high(register: &mut u64, high: u32) {
    *register = *register & u64::from(u32::MAX) | u64::from(high) << 32;
}
