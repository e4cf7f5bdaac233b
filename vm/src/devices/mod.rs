//! The device model. `Devices` owns every device, dispatches port and memory-mapped accesses from the vCPU threads to
//! them, and captures and restores them all.
//!
//! Every device has its own lock, taken by the vCPU thread that accesses it and by the host threads behind [`NetPort`],
//! [`Devices::console_input`] and the disks' engines. Interrupts are raised synchronously under that lock, so a machine
//! whose vCPUs stand still and whose devices are quiesced changes no more; a disk's requests that are under way by then
//! are in its state. The captured state of a device is all that the guest can see of it, without host-side wiring and
//! counters.
//!
//! On a deterministic engine (`Devices::deterministic`) only the engine's thread touches a device: time, randomness and
//! inputs come from the engine, and the input of other threads waits in its `inbox`.

mod clocks;
mod counters;
mod disks;
mod engine;
mod error;
mod host;
mod idle;
pub(crate) mod inbox;
mod pci;
mod platform;
mod power;
mod pvpanic;
mod rtc;
mod serial;
#[cfg(test)]
mod tests;
mod virtio;
mod wall_clock;
mod watchdog;

pub use counters::DeviceCounters;
pub use disks::DiskPort;
pub use error::{DeviceError, DeviceStateError};
pub(crate) use host::Random;
pub use host::{
    ConsoleSink, Delivered, DeviceEvent, Disk, DiskAnswer, DiskChange, DiskOwner, FRAME_BYTES_MAX, FrameSink,
    IrqChip, NET_HEADER_BYTES, Offloads, OnIoError, PACKET_BYTES_MAX, SEGMENT_BYTES_MAX, Transmit, Wiring,
    plain_packet,
};
pub use pci::msix::{Msi, MsixEntry, MsixState};
pub use pci::{PciAccess, PciFunctionState, PciState, VirtioFunction, functions as virtio_functions};
pub use platform::PlatformState;
pub use power::PowerState;
pub use serial::Com1State;
pub use virtio::block::DiskOperation;
pub use virtio::block::flight::RequestState;
pub use virtio::net::NetPort;
pub use virtio::queue::{RingPosition, RingState};
pub(crate) use virtio::rng::HostRandom;
pub use virtio::transport::VirtioState;
pub use virtio::{VirtioWindow, windows as virtio_windows};
pub use wall_clock::WallClockState;
pub use watchdog::WatchdogState;

use crate::spec::{BusKind, EngineKind, MachineSpec, NETS_MAX};
use counters::{Counters, add};
use disks::{DiskNews, check_disks, start_disk};
use ft_ram::GuestRam;
use ft_ram::layout::platform::POWER_BUTTON;
use ft_ram::layout::platform::{PANIC, WATCHDOG_MS};
use ft_ram::layout::{
    COM1_PORT, PLATFORM_BASE, PLATFORM_SIZE, PVPANIC_PORT, VIRTIO_MMIO_BASE, VIRTIO_MMIO_SIZE,
};
use idle::Idle;
use inbox::Inbox;
use parking_lot::Mutex;
use pci::intx::Intx;
use pci::{Bus, functions};
use platform::{GuestClock, Platform};
use power::Power;
use pvpanic::Pvpanic;
use rtc::Rtc;
use serde::{Deserialize, Serialize};
use serial::{Com1, Console};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;
use virtio::block::Block;
pub(crate) use virtio::block::Shown;
pub(crate) use virtio::net::Put;
use virtio::net::{Net, Port};
use virtio::rng::Rng;
use virtio::transport::{Place, Shared, Surroundings, Virtio, Window};
use watchdog::Watchdog;

/// What an engine that decides everything gives the devices in the place of the host.
pub(crate) struct Deterministic {
    /// Virtual time in nanoseconds, which the engine sets before each access.
    pub now_ns: Arc<AtomicU64>,
    pub random: Box<dyn Random>,
    pub inbox: Arc<Inbox>,
}

/// The state of all devices: all that a guest can see of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicesState {
    /// COM1.
    pub com1: Com1State,
    /// Power management registers.
    pub power: PowerState,
    /// The platform device.
    pub platform: PlatformState,
    /// The virtio devices, in their windows' order.
    pub virtio: Vec<VirtioState>,
    /// The PCI bus, if the devices are on it.
    pub pci: Option<PciState>,
    /// The watchdog.
    pub watchdog: WatchdogState,
    /// The clock of the time of day, where the engine has none.
    pub rtc: Option<ft_cpu::Rtc>,
    /// What that clock, the engine's or this one, keeps to.
    pub wall_clock: WallClockState,
}

/// All devices of a machine.
pub struct Devices {
    com1: Mutex<Com1>,
    power: Mutex<Power>,
    pvpanic: Mutex<Pvpanic>,
    rtc: Option<Mutex<Rtc>>,
    wall_clock: Mutex<WallClockState>,
    watchdog: Mutex<Watchdog>,
    /// When it is over; the end of time: never.
    watchdog_due_ns: AtomicU64,
    platform: Platform,
    windows: Vec<Arc<dyn Window>>,
    /// Where the virtio devices are reached, unless each has its window.
    bus: Option<Bus>,
    cards: Vec<Arc<Shared<Net>>>,
    disks: Vec<Arc<Shared<Block>>>,
    /// Where inputs wait for an engine that takes them when it wants.
    inbox: Option<Arc<Inbox>>,
    idle: Arc<Idle>,
    /// Checked by host threads under the lock of the device that they are about to touch.
    quiesced: Arc<AtomicBool>,
    /// A state was taken over and the interrupt lines have not been driven since.
    restored: AtomicBool,
    counters: Arc<Counters>,
}

impl Devices {
    /// Makes the devices of a machine, in their power-on state.
    pub fn new(
        spec: &MachineSpec,
        ram: &GuestRam,
        irq: Arc<dyn IrqChip>,
        wiring: Wiring,
    ) -> Result<Self, DeviceError> {
        Self::build(spec, ram, irq, wiring, GuestClock::host(), Box::new(HostRandom), None)
    }

    /// Makes the devices of a machine whose engine decides when things happen. Only its thread may touch them while it
    /// runs, apart from what goes through the inbox.
    pub(crate) fn deterministic(
        spec: &MachineSpec,
        ram: &GuestRam,
        irq: Arc<dyn IrqChip>,
        wiring: Wiring,
        by: Deterministic,
    ) -> Result<Self, DeviceError> {
        let Deterministic { now_ns, random, inbox } = by;
        Self::build(spec, ram, irq, wiring, GuestClock::Engine(now_ns), random, Some(inbox))
    }

    fn build(
        spec: &MachineSpec,
        ram: &GuestRam,
        irq: Arc<dyn IrqChip>,
        wiring: Wiring,
        clock: GuestClock,
        random: Box<dyn Random>,
        inbox: Option<Arc<Inbox>>,
    ) -> Result<Self, DeviceError> {
        let Wiring { frames, console, disks } = wiring;
        let counters = Arc::new(Counters::default());
        let idle = Arc::new(Idle::default());
        let quiesced = Arc::new(AtomicBool::new(false));
        let console = Console::new(console);
        let com1 = Com1::new(Arc::clone(&irq), console.clone(), Arc::clone(&counters));
        let power = Power::new(Arc::clone(&irq));
        let platform = Platform::new(
            spec.vcpus,
            spec.ram_bytes,
            clock,
            Arc::clone(&idle),
            console,
            Arc::clone(&counters),
        );
        let rtc = (spec.engine == EngineKind::Kvm)
            .then(|| Mutex::new(Rtc::new(Arc::clone(&irq), platform.now_ns())));
        let around = Surroundings {
            ram: ram.clone(),
            chip: irq,
            idle: Arc::clone(&idle),
            counters: Arc::clone(&counters),
        };

        let count = spec.virtio_devices();
        let intx = Arc::new(Intx::new(Arc::clone(&around.chip)));
        let on_pci = functions(spec).map(|function| Place::Pci(function, Arc::clone(&intx)));
        let mut places = virtio_windows(spec).map(Place::Mmio).chain(on_pci);
        let mut place = || places.next().ok_or(DeviceError::TooMany(count));
        let mut windows: Vec<Arc<dyn Window>> = Vec::with_capacity(count);
        let mut cards = Vec::with_capacity(spec.nets.len());
        if spec.nets.len() > NETS_MAX {
            return Err(DeviceError::TooManyCards(spec.nets.len()));
        }
        for (number, card) in (0u8..).zip(&spec.nets) {
            let card = Net::new(number, card, frames.clone(), Arc::clone(&counters), Arc::clone(&quiesced));
            let card = Shared::new(Virtio::new(card, place()?, around.clone()));
            cards.push(Arc::clone(&card));
            windows.push(card);
        }
        check_disks(spec, &disks)?;
        let mut started = Vec::with_capacity(disks.len());
        for (index, disk) in disks.into_iter().enumerate() {
            let to = DiskNews { quiesced: &quiesced, inbox: inbox.as_ref() };
            let disk = start_disk(index, disk, place()?, around.clone(), to)?;
            windows.push(Arc::clone(&disk) as Arc<dyn Window>);
            started.push(disk);
        }
        if spec.rng {
            windows.push(Shared::new(Virtio::new(Rng::new(random), place()?, around)));
        }
        let bus = match spec.bus {
            BusKind::Mmio => None,
            BusKind::Pci => Some(Bus::new(windows.iter().filter_map(|window| window.decoded()).collect())),
        };
        Ok(Self {
            com1: Mutex::new(com1),
            power: Mutex::new(power),
            pvpanic: Mutex::default(),
            rtc,
            wall_clock: Mutex::default(),
            watchdog: Mutex::default(),
            watchdog_due_ns: AtomicU64::new(u64::MAX),
            platform,
            windows,
            bus,
            cards,
            disks: started,
            inbox,
            idle,
            quiesced,
            restored: AtomicBool::new(false),
            counters,
        })
    }

    /// An `in` of 1, 2 or 4 bytes. What no device answers reads as all ones.
    pub fn pio_read(&self, port: u16, data: &mut [u8]) {
        add(&self.counters.accesses, 1);
        if let Some(bus) = self.bus_at(port) {
            return bus.pio_read(port, data, &self.windows);
        }
        data.fill(0xff);
        let mut unknown = false;
        for (byte, port) in data.iter_mut().zip(port..=u16::MAX) {
            if let Some(register) = com1_register(port) {
                *byte = self.com1.lock().read(register);
            } else if Power::owns(port) {
                *byte = self.power.lock().read(port);
            } else if port == PVPANIC_PORT {
                *byte = Pvpanic::read();
            } else if let Some(rtc) = self.rtc_at(port) {
                *byte = rtc.lock().read(self.platform.now_ns(), port);
            } else if Watchdog::owns(port) {
                *byte = self.with_watchdog(|watchdog, now_ns| watchdog.read(now_ns, port));
            } else {
                unknown = true;
            }
        }
        add(&self.counters.unknown_io, u64::from(unknown));
    }

    /// An `out` of 1, 2 or 4 bytes.
    pub fn pio_write(&self, port: u16, data: &[u8]) -> Option<DeviceEvent> {
        add(&self.counters.accesses, 1);
        if let Some(bus) = self.bus_at(port) {
            bus.pio_write(port, data, &self.windows);
            return None;
        }
        let mut event = None;
        let mut unknown = false;
        for (&byte, port) in data.iter().zip(port..=u16::MAX) {
            if let Some(register) = com1_register(port) {
                self.com1.lock().write(register, byte);
            } else if Power::owns(port) {
                event = self.power.lock().write(port, byte).or(event);
            } else if port == PVPANIC_PORT {
                event = self.pvpanic.lock().write(byte).or(event);
            } else if let Some(rtc) = self.rtc_at(port) {
                rtc.lock().write(self.platform.now_ns(), port, byte);
            } else if Watchdog::owns(port) {
                self.with_watchdog(|watchdog, now_ns| watchdog.write(now_ns, port, byte));
            } else {
                unknown = true;
            }
        }
        add(&self.counters.unknown_io, u64::from(unknown));
        event
    }

    /// The PCI bus, where there is one, and the port is its.
    fn bus_at(&self, port: u16) -> Option<&Bus> {
        self.bus.as_ref().filter(|_| Bus::owns(port))
    }

    /// A read of 1 to 8 bytes from an address without memory. What no device answers reads as all ones.
    pub fn mmio_read(&self, addr: u64, data: &mut [u8]) {
        add(&self.counters.accesses, 1);
        match self.target(addr) {
            Some(Target::Virtio(window, offset)) => window.read(offset, data),
            Some(Target::Platform(POWER_BUTTON)) if data.len() == 8 => {
                data.copy_from_slice(&u64::from(self.power.lock().is_pressed()).to_le_bytes());
            }
            Some(Target::Platform(offset)) if self.platform.read(offset, data) => {}
            _ => {
                data.fill(0xff);
                add(&self.counters.unknown_io, 1);
            }
        }
    }

    /// A write of 1 to 8 bytes to an address without memory. A write to the platform device's IDLE_US blocks until a
    /// virtio device has signalled since this thread last returned from it, the time is over (100 ms at most), or
    /// [`Self::interrupt_idle`]; where the engine keeps time it is the engine's to wait.
    pub fn mmio_write(&self, addr: u64, data: &[u8]) -> Option<DeviceEvent> {
        add(&self.counters.accesses, 1);
        match self.target(addr) {
            Some(Target::Virtio(window, offset)) => window.write(offset, data),
            Some(Target::Platform(PANIC)) if data.len() == 8 => return self.pvpanic.lock().write(data[0]),
            Some(Target::Platform(WATCHDOG_MS)) if data.len() == 8 => {
                let ms = data.iter().rev().fold(0, |ms, &byte| ms << 8 | u64::from(byte));
                self.with_watchdog(|watchdog, now_ns| watchdog.set_ms(now_ns, ms));
            }
            Some(Target::Platform(offset)) => return self.platform.write(offset, data),
            None => add(&self.counters.unknown_io, 1),
        }
        None
    }

    fn target(&self, addr: u64) -> Option<Target<'_>> {
        if let Some(offset) = addr.checked_sub(PLATFORM_BASE).filter(|&offset| offset < PLATFORM_SIZE) {
            return Some(Target::Platform(offset));
        }
        if let Some(bus) = &self.bus {
            let (index, offset) = bus.place(addr)?;
            return Some(Target::Virtio(self.windows.get(index)?.as_ref(), offset));
        }
        let offset = addr.checked_sub(VIRTIO_MMIO_BASE)?;
        let window = self.windows.get(usize::try_from(offset / VIRTIO_MMIO_SIZE).ok()?)?;
        Some(Target::Virtio(window.as_ref(), offset % VIRTIO_MMIO_SIZE))
    }

    /// Part of kicking the vCPUs: every vCPU thread that idles inside [`Self::mmio_write`] returns, and idling returns
    /// at once from now on until [`Self::resume`].
    pub fn interrupt_idle(&self) {
        self.idle.forbid();
    }

    /// Stops the host threads' access: when it returns, and until [`Self::resume`], none of them touches guest memory,
    /// device state or an interrupt line. Before that, requests to disks that are under way are given a little time.
    /// The vCPU threads are parked afterwards: an interrupt for a vCPU whose state was read already would be lost.
    pub fn quiesce(&self) {
        if let Some(inbox) = &self.inbox {
            return inbox.open(false);
        }
        let begun = Instant::now();
        self.disks.iter().for_each(|disk| disk.stop());
        self.disks.iter().for_each(|disk| disk.drain(begun));
        self.idle.forbid();
        self.with_watchdog(|watchdog, now_ns| watchdog.hold(now_ns));
        self.quiesced.store(true, Ordering::Relaxed);
        // Whoever holds a lock may have looked before the store; whoever takes it after us sees the store.
        drop(self.com1.lock());
        for window in &self.windows {
            window.settle();
        }
    }

    /// Undoes [`Self::quiesce`], before the vCPUs run. Frames that the guest had left in its transmit queue are
    /// offered again. After [`Self::restore`] it also drives the interrupt lines, so the interrupt chips must have
    /// their state by then.
    ///
    /// On a deterministic engine it does nothing: there the chips keep the lines' levels, and whether inputs come in
    /// and frames that the guest sent are still to be offered is the engine's business.
    pub fn resume(&self) {
        if self.inbox.is_some() {
            return;
        }
        if self.restored.swap(false, Ordering::Relaxed) {
            // Setting a line to the level that the chips already have for it changes nothing.
            self.power.lock().drive_line();
            if let Some(rtc) = &self.rtc {
                self.keep_to_host(&mut rtc.lock());
            }
            for window in &self.windows {
                window.drive_line();
            }
        }
        self.quiesced.store(false, Ordering::Relaxed);
        self.with_watchdog(|watchdog, now_ns| watchdog.go_on(now_ns));
        self.idle.allow();
        self.com1.lock().feed();
        for card in &self.cards {
            card.retry_transmit();
            card.changed.notify_all();
        }
        self.disks.iter().for_each(|disk| disk.go_on());
    }

    /// Ends the disks' engines, for good. Of what they still do, nobody is told.
    pub(crate) fn end_disks(&self) {
        self.disks.iter().for_each(|disk| disk.end());
    }

    /// The host's side of a disk.
    pub fn disk(&self, index: usize) -> Option<DiskPort> {
        self.disks.get(index).map(|disk| DiskPort(Arc::clone(disk)))
    }

    /// Presses the power button. For the machine's owner, and on a deterministic engine for its thread.
    pub(crate) fn press_power_button(&self) {
        self.power.lock().press_button();
    }

    /// Asks the guest to announce its addresses on its network. For the machine's owner, and on a deterministic engine
    /// for its thread.
    pub(crate) fn announce(&self) {
        self.cards.iter().for_each(|card| card.announce());
    }

    /// Has a card tell the guest of a link, or of none. For the machine's owner, and on a deterministic engine for its
    /// thread.
    pub(crate) fn set_link(&self, card: u8, up: bool) {
        if let Some(card) = self.cards.get(usize::from(card)) {
            card.set_link(up);
        }
    }

    /// The state of all devices. The devices are quiesced.
    pub fn capture(&self) -> DevicesState {
        DevicesState {
            com1: self.com1.lock().capture(),
            power: self.power.lock().capture(),
            platform: self.platform.capture(),
            virtio: self.windows.iter().map(|window| window.capture()).collect(),
            pci: self.bus.as_ref().map(|bus| PciState {
                address: bus.address(),
                functions: self.windows.iter().filter_map(|window| window.capture_function()).collect(),
            }),
            watchdog: self.with_watchdog(|watchdog, now_ns| watchdog.capture(now_ns)),
            rtc: self.rtc.as_ref().map(|rtc| rtc.lock().capture()),
            wall_clock: *self.wall_clock.lock(),
        }
    }

    /// Takes over a captured state, whole or not at all. The devices are quiesced or have never run. Neither guest
    /// memory nor any interrupt line is touched; guest time goes on from the captured one at once.
    pub fn restore(&self, state: &DevicesState) -> Result<(), DeviceStateError> {
        let DevicesState { com1, power, platform, virtio, pci, watchdog, rtc, wall_clock } = state;
        if virtio.len() != self.windows.len() {
            return Err(DeviceStateError::DeviceCount { state: virtio.len(), machine: self.windows.len() });
        }
        Com1::check(com1)?;
        Power::check(power)?;
        self.platform.check(platform)?;
        Watchdog::check(watchdog)?;
        match (&self.rtc, rtc) {
            (None, Some(_)) => return Err(DeviceStateError::Rtc("the engine has it".into())),
            (_, Some(rtc)) => Rtc::check(rtc)?,
            (_, None) => {}
        }
        let functions = self.functions_of(pci.as_ref())?;
        let checked = self
            .windows
            .iter()
            .zip(virtio.iter().zip(functions))
            .map(|(window, (state, function))| window.check(state, function))
            .collect::<Result<Vec<_>, _>>()?;

        self.com1.lock().restore(com1)?;
        self.power.lock().restore(*power);
        self.platform.restore(platform);
        *self.wall_clock.lock() = *wall_clock;
        if let Some(ours) = &self.rtc {
            ours.lock().restore(rtc.as_ref(), self.platform.now_ns());
        }
        self.with_watchdog(|ours, now_ns| {
            ours.restore(*watchdog);
            // A deterministic engine has no time in which the guest stands still, but what an input says.
            if self.inbox.is_some() {
                ours.go_on(now_ns);
            }
        });
        if let (Some(bus), Some(state)) = (&self.bus, pci) {
            bus.restore(state.address);
        }
        for (window, registers) in self.windows.iter().zip(checked) {
            window.restore(registers);
        }
        self.restored.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The state of each device's function, none where there is no bus; refused if it does not fit the bus.
    fn functions_of<'a>(
        &self,
        pci: Option<&'a PciState>,
    ) -> Result<Vec<Option<&'a PciFunctionState>>, DeviceStateError> {
        let ours = self.windows.len();
        match (&self.bus, pci) {
            (None, None) => Ok(vec![None; ours]),
            (Some(_), Some(PciState { address, functions })) if functions.len() == ours => {
                Bus::check(*address)?;
                Ok(functions.iter().map(Some).collect())
            }
            _ => {
                let theirs = pci.map_or(0, |pci| pci.functions.len());
                let ours = self.bus.as_ref().map_or(0, |_| ours);
                Err(DeviceStateError::Pci(format!("{theirs} functions, the machine has {ours}")))
            }
        }
    }

    /// Puts every device into its power-on state. Guest time goes on.
    pub fn reset(&self) {
        self.com1.lock().reset();
        self.power.lock().reset();
        self.pvpanic.lock().reset();
        if let Some(rtc) = &self.rtc {
            rtc.lock().reset(self.platform.now_ns());
        }
        self.with_watchdog(|watchdog, _| *watchdog = Watchdog::default());
        if let Some(bus) = &self.bus {
            bus.reset();
        }
        for window in &self.windows {
            window.reset();
        }
    }

    /// The network card of this number, if there is one.
    pub fn net(&self, number: u8) -> Option<NetPort> {
        let card = self.cards.get(usize::from(number))?;
        Some(match &self.inbox {
            Some(inbox) => NetPort(Port::Inbox(number, Arc::clone(inbox))),
            None => NetPort(Port::Card { card: Arc::clone(card), quiesced: Arc::clone(&self.quiesced) }),
        })
    }

    /// Types into the guest's console. What the guest is too slow to read (beyond 4 KiB) is dropped.
    pub fn console_input(&self, bytes: &[u8]) {
        if let Some(inbox) = &self.inbox {
            return add(&self.counters.console_dropped, inbox.put_console(bytes) as u64);
        }
        let mut com1 = self.com1.lock();
        com1.enqueue(bytes);
        if !self.quiesced.load(Ordering::Relaxed) {
            com1.feed();
        }
    }

    /// What the devices have counted.
    pub fn counters(&self) -> DeviceCounters {
        self.counters.snapshot()
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        self.end_disks();
    }
}

/// What a Linux kernel without ACPI needs on its command line to find the virtio devices; empty when there are none.
pub fn cmdline_additions(spec: &MachineSpec) -> String {
    virtio_windows(spec)
        .map(|window| {
            let kib = VIRTIO_MMIO_SIZE / 1024;
            format!("virtio_mmio.device={kib}K@{:#x}:{}", window.base, window.gsi)
        })
        .collect::<Vec<_>>()
        .join(" ")
}

enum Target<'a> {
    Virtio(&'a dyn Window, u64),
    Platform(u64),
}

fn com1_register(port: u16) -> Option<u8> {
    port.checked_sub(COM1_PORT).filter(|&register| register < 8).map(|register| register as u8)
}
