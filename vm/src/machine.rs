//! The machine: the one face of this crate. It is built parked, then booted or given a captured state, run, paused and
//! captured.
//!
//! ```text
//!              boot / restore                    resume
//!   new ──> Paused ──┐       Paused ───────────────────────────> Running
//!             ^──────┘          ^─────────────── pause ─────────────┘
//!                          capture, harvest              harvest (pre-copy)
//! ```
//!
//! A pause first shuts out the host threads that work on the devices, then stops the vCPUs. It reads state only after
//! the last vCPU has stopped. Otherwise a frame that arrives, or an interrupt that one vCPU sends to another, could
//! reach an interrupt controller that has been read already, and would be lost with the primary.

use crate::boot::{self, BootError};
use crate::devices::{DeviceCounters, Devices, DevicesState, DiskPort, NetPort, Wiring};
use crate::engine::Engine;
use crate::engine::kvm::engine::KvmEngine;
use crate::engine::soft::SoftEngine;
use crate::replay::{LogCut, Registers, ReplayPosition};
use crate::spec::{Boot, CpuModel, EngineKind, MachineSpec};
use crate::state::{self, EngineState, MachineState, STATE_VERSION, StateError};
use ft_ram::{GuestRam, PageIndex};
use std::sync::Arc;
#[cfg(feature = "next-version")]
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

pub use crate::engine::kvm::cpuid::{CpuMismatch, CpuProfile, cpu_profile};
pub use crate::engine::kvm::model::CpuLack;
pub use crate::engine::{IdleWork, Stint, engine_fingerprint};
pub use crate::error::{MachineError, MachineEvent};

/// Types into the guest's console. Cheap to clone.
#[derive(Clone)]
pub struct ConsoleHandle {
    devices: Arc<Devices>,
}

impl ConsoleHandle {
    /// Offers input to the guest.
    pub fn input(&self, bytes: &[u8]) {
        self.devices.console_input(bytes);
    }
}

/// What executes the guest.
enum Executor {
    Kvm(Box<KvmEngine>),
    Soft(SoftEngine),
}

impl Executor {
    /// As every machine commands it.
    fn engine(&mut self) -> &mut dyn Engine {
        match self {
            Self::Kvm(engine) => engine.as_mut(),
            Self::Soft(engine) => engine,
        }
    }

    /// The engine that can do more, if this is it.
    fn soft(&self) -> Option<&SoftEngine> {
        match self {
            Self::Kvm(_) => None,
            Self::Soft(engine) => Some(engine),
        }
    }
}

/// One virtual machine. Belongs to one thread at a time; its vCPUs have their own.
pub struct Machine {
    spec: MachineSpec,
    running: bool,
    /// Booted or restored, as a whole.
    complete: bool,
    /// The guest's memory is not that of a fresh machine any more.
    used: bool,
    #[cfg(feature = "next-version")]
    mark: AtomicU64,
    events: Receiver<MachineEvent>,
    // Dropped in this order: the engine's threads use the devices, and both use the memory.
    executor: Executor,
    devices: Arc<Devices>,
    ram: GuestRam,
}

impl Machine {
    /// Makes a machine with everything it needs to run: descriptors, threads, interrupt chips, devices. Nothing runs.
    pub fn new(spec: &MachineSpec, ram: &GuestRam, wiring: Wiring) -> Result<Self, MachineError> {
        if ram.bytes() != spec.ram_bytes {
            return Err(MachineError::RamBytes { spec: spec.ram_bytes, given: ram.bytes() });
        }
        let (sender, events) = channel();
        let (executor, devices) = match spec.engine {
            EngineKind::Kvm => {
                let (engine, devices) = KvmEngine::new(spec, ram, wiring, sender)?;
                (Executor::Kvm(Box::new(engine)), devices)
            }
            EngineKind::Soft if spec.cpu != CpuModel::Host => return Err(MachineError::SoftCpu(spec.cpu)),
            EngineKind::Soft => {
                let (engine, devices) = SoftEngine::new(spec, ram, wiring, sender)?;
                (Executor::Soft(engine), devices)
            }
        };
        let (running, complete, used) = (false, false, false);
        Ok(Self {
            spec: spec.clone(),
            running,
            complete,
            used,
            #[cfg(feature = "next-version")]
            mark: AtomicU64::new(0),
            events,
            executor,
            devices,
            ram: ram.clone(),
        })
    }

    /// Puts the guest into memory and the vCPUs at its entry. On a paused machine that has run before this is a reset:
    /// everything is as at power-on, memory included.
    pub fn boot(&mut self, boot: &Boot) -> Result<(), BootError> {
        if self.running {
            return Err(StateError::Running.into());
        }
        self.complete = false;
        if self.used {
            boot::clear(&self.ram)?;
            self.devices.reset();
        }
        self.used = true;
        let entry = boot::load(boot, &self.ram, &self.spec)?;
        let engine = self.executor.engine().entered(&entry)?;
        let guest_ns = match self.executor {
            Executor::Kvm(_) => self.devices.capture().platform.guest_time_ns,
            // Virtual time begins anew.
            Executor::Soft(_) => 0,
        };
        self.devices.power_on_at(guest_ns);
        let mut devices = self.devices.capture();
        devices.platform.guest_time_ns = guest_ns;
        Ok(self.apply(&engine, &devices)?)
    }

    /// Lets the vCPUs run.
    pub fn resume(&mut self) -> Result<(), MachineError> {
        if !self.complete {
            return Err(MachineError::Incomplete);
        }
        if !self.running {
            self.devices.resume();
            self.executor.engine().resume()?;
            self.running = true;
        }
        Ok(())
    }

    /// Stops everything. When it returns, each vCPU has completed what was pending and read out its own state, and no
    /// thread touches the devices or guest memory.
    pub fn pause(&mut self) -> Result<(), MachineError> {
        if !self.running {
            return Ok(());
        }
        self.devices.quiesce();
        self.executor.engine().stop()?;
        self.running = false;
        Ok(())
    }

    /// Has the vCPUs' threads, which have nothing to do while the machine is paused, take part in this work. Returns at
    /// once. The work is no longer offered when the machine runs again, but a thread may still be at it.
    pub fn offer_while_parked(&mut self, work: &IdleWork) {
        if !self.running {
            self.executor.engine().offer(work);
        }
    }

    /// How the machine ran before it was paused last.
    pub fn stint(&mut self) -> Stint {
        self.executor.engine().stint()
    }

    /// Whether the vCPUs run.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Appends the encoded state of the paused machine, memory apart, to `out`.
    pub fn capture(&mut self, out: &mut Vec<u8>) -> Result<(), MachineError> {
        self.capture_as(STATE_VERSION, out)
    }

    /// The same in an older version, for who does not know the newest. What that version has no place for is refused by
    /// name ([`StateError::NotCarried`]), unless nothing is lost by leaving it out.
    pub fn capture_as(&mut self, version: u16, out: &mut Vec<u8>) -> Result<(), MachineError> {
        if self.running {
            return Err(MachineError::Running);
        }
        let engine = self.executor.engine().capture()?;
        Ok(state::encode(&self.state(engine), version, out)?)
    }

    fn state(&self, engine: EngineState) -> MachineState {
        MachineState {
            spec: self.spec.clone(),
            engine,
            devices: self.devices.capture(),
            #[cfg(feature = "next-version")]
            mark: self.mark.load(Relaxed),
        }
    }

    /// Marks a machine that has no mark (0): a number that stays with it, wherever it goes on.
    #[cfg(feature = "next-version")]
    pub fn mark(&self, mark: u64) {
        let _ = self.mark.compare_exchange(0, mark, Relaxed, Relaxed);
    }

    /// Takes over a captured state. Memory is the caller's business: it has the content that belongs to the state.
    ///
    /// After an error that came while the state was being applied the machine is good for another `restore` or a
    /// `boot`, and refuses to be resumed.
    pub fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        if self.running {
            return Err(StateError::Running);
        }
        let MachineState {
            spec,
            engine,
            devices,
            #[cfg(feature = "next-version")]
            mark,
        } = state::decode(state)?;
        state::check_spec(&spec, &self.spec)?;
        self.used = true;
        #[cfg(feature = "next-version")]
        self.mark.store(mark, Relaxed);
        self.apply(&engine, &devices)
    }

    /// Shows whether this machine could go on from a captured state: takes it over, goes up to the guest's next
    /// instruction, and compares what it reads back with what it was given. Nothing is executed. The machine is a
    /// scratch one, over a [private copy](GuestRam::private_copy) of the memory.
    pub fn rehearse(&mut self, state: &[u8]) -> Result<(), StateError> {
        self.restore(state)?;
        let entry = |e| StateError::Entry(Box::new(e));
        self.executor.engine().enter_once().map_err(entry)?;
        let engine = self.executor.engine().capture().map_err(entry)?;
        let read = self.state(engine);
        match state::compare::difference(&state::decode(state)?, &read) {
            Some(what) => Err(StateError::Different(what)),
            None => Ok(()),
        }
    }

    /// The engine, then the devices: these may drive lines of the interrupt chips, which the engine has.
    fn apply(&mut self, engine: &EngineState, devices: &DevicesState) -> Result<(), StateError> {
        self.complete = false;
        self.executor.engine().apply(engine)?;
        self.devices.restore(devices)?;
        self.complete = true;
        Ok(())
    }

    /// Starts logging which pages are written, afresh: what was written before is not in the log. The machine may run.
    pub fn start_dirty_log(&mut self) -> Result<(), MachineError> {
        self.executor.engine().start_dirty_log()
    }

    /// Stops logging and forgets what was logged.
    pub fn stop_dirty_log(&mut self) -> Result<(), MachineError> {
        self.executor.engine().stop_dirty_log()
    }

    /// Appends the pages written since the last harvest, by the guest or by its devices: sorted, each once. On an
    /// error nothing is appended and nothing is forgotten. The machine may run: a page that is written while this is
    /// under way is in this harvest or in the next one, and whoever copies pages does so after this returns.
    pub fn harvest(&mut self, dirty: &mut Vec<PageIndex>) -> Result<(), MachineError> {
        self.executor.engine().harvest(dirty)?;
        #[cfg(feature = "lost-dirty-bit")]
        lose_a_dirty_bit(dirty);
        Ok(())
    }

    /// Begins to record, with this as the log's first count. The machine is paused; a checkpoint of it that is captured
    /// now, before it runs, is where a replay of the log starts.
    pub fn start_recording(&mut self) -> Result<(), MachineError> {
        self.soft("recording")?.start_recording()
    }

    /// Waits until the disks of the paused machine have done all that the guest has asked of them, and shows it to the
    /// guest; false where that takes longer. A log that begins now replays from the same image: what a disk would do
    /// again, a read before it might see.
    pub fn land_disks(&mut self, within: Duration) -> Result<bool, MachineError> {
        if self.running {
            return Err(MachineError::Running);
        }
        self.soft("waiting for disks")?.land_disks(within)
    }

    /// Appends to `out` the batch of everything logged since the last cut, ended by the count of the instruction at
    /// whose end it was made. The machine may run. `at_cut` is called there and then, on the vCPU thread: whatever the
    /// guest sent by an instruction before the cut has been offered to the [`FrameSink`](crate::devices::FrameSink)
    /// before it, but for frames that a full sink has refused so far; what is sent after the cut is offered after it. A
    /// vCPU thread that does not answer keeps what `out` had.
    pub fn cut_log(
        &mut self,
        out: &mut Vec<u8>,
        at_cut: Box<dyn FnOnce() + Send>,
    ) -> Result<LogCut, MachineError> {
        self.soft("recording")?.cut_log(out, at_cut)
    }

    /// Ends recording; what was not cut is dropped. Booting and restoring end it, too.
    pub fn stop_recording(&mut self) -> Result<(), MachineError> {
        self.soft("recording")?.stop_recording()
    }

    /// Begins to replay: the machine is paused and has been restored to where the log starts. From the next
    /// [`Self::resume`] on it executes what [`Self::feed_log`] gives it, and waits where that ends. Nothing comes in
    /// from outside meanwhile, frames go nowhere, and console output too (but see [`Self::show_replayed_console`]).
    pub fn start_replaying(&mut self) -> Result<(), MachineError> {
        self.complete.then_some(()).ok_or(MachineError::Incomplete)?;
        self.soft_mut("replaying")?.start_replaying()
    }

    /// Whether a replaying machine's console output goes to the console's sink.
    pub fn show_replayed_console(&mut self, shown: bool) -> Result<(), MachineError> {
        self.soft("replaying")?.show_replayed_console(shown)
    }

    /// Gives a replaying machine one or more whole batches. On an error nothing of them was taken. The machine may run.
    pub fn feed_log(&mut self, bytes: &[u8]) -> Result<(), MachineError> {
        self.soft_mut("replaying")?.feed_log(bytes)
    }

    /// How far a replaying machine has come; zeros when it is not replaying.
    pub fn replay_position(&self) -> ReplayPosition {
        self.executor.soft().map_or_else(ReplayPosition::default, SoftEngine::replay_position)
    }

    /// Whether a replaying machine waits for a disk of this host, which has not done yet what the log shows as done.
    pub fn awaits_disk(&self) -> bool {
        self.executor.soft().is_some_and(SoftEngine::awaits_disk)
    }

    /// Waits until a replaying machine has executed all that it was fed (true), or until the time is over (false).
    pub fn wait_replayed(&self, timeout: Duration) -> Result<bool, MachineError> {
        self.soft("replaying")?.wait_replayed(timeout)
    }

    /// Ends replaying: all that was fed has been executed, and the machine is paused. From the next [`Self::resume`] on
    /// it is a machine like any other.
    pub fn go_live(&mut self) -> Result<(), MachineError> {
        self.soft_mut("replaying")?.go_live()
    }

    /// Has a machine on the deterministic engine stand still for this part of its time (in thousandths, at most 950;
    /// zero: no slowing). No effect on others.
    pub fn throttle(&self, permille: u16) {
        if let Some(soft) = self.executor.soft() {
            soft.throttle(permille);
        }
    }

    /// Instructions executed so far; zero where the engine does not count.
    pub fn count(&self) -> u64 {
        self.executor.soft().map_or(0, SoftEngine::count)
    }

    /// Times that this machine's guest executed an instruction that the engine lacks, and was given #UD; zero where the
    /// processor is the host's.
    pub fn unknown_instructions(&self) -> u64 {
        self.executor.soft().map_or(0, SoftEngine::unknown_instructions)
    }

    /// The processor's registers, of a machine on the deterministic engine; also of one that has crashed or diverged.
    pub fn registers(&self) -> Result<Registers, MachineError> {
        self.soft("reading registers")?.registers()
    }

    fn soft(&self, what: &'static str) -> Result<&SoftEngine, MachineError> {
        self.executor.soft().ok_or(MachineError::Engine { what, engine: self.spec.engine })
    }

    fn soft_mut(&mut self, what: &'static str) -> Result<&mut SoftEngine, MachineError> {
        match &mut self.executor {
            Executor::Soft(engine) => Ok(engine),
            Executor::Kvm(_) => Err(MachineError::Engine { what, engine: self.spec.engine }),
        }
    }

    /// Presses the guest's power button, as an operator does who wants it to shut down: an ACPI fixed button. What the
    /// guest makes of it is its own affair. The machine may run or be paused; the press is a part of its state. On one
    /// that replays it has no effect.
    pub fn press_power_button(&self) -> Result<(), MachineError> {
        match &self.executor {
            Executor::Soft(engine) => engine.press_power_button(),
            Executor::Kvm(_) => {
                self.devices.press_power_button();
                Ok(())
            }
        }
    }

    /// Asks the guest to announce its addresses on its network: it runs somewhere else now. One whose driver does no
    /// such thing is told nothing; nor is one that replays.
    pub fn announce(&self) -> Result<(), MachineError> {
        match &self.executor {
            Executor::Soft(engine) => engine.announce(),
            Executor::Kvm(_) => {
                self.devices.announce();
                Ok(())
            }
        }
    }

    /// Has a network card tell the guest of a link, or of none. A machine that replays does so where the log says it.
    pub fn set_link(&self, card: u8, up: bool) -> Result<(), MachineError> {
        match &self.executor {
            Executor::Soft(engine) => engine.set_link(card, up),
            Executor::Kvm(_) => {
                self.devices.set_link(card, up);
                Ok(())
            }
        }
    }

    /// What the machine has said of its own accord, the oldest first. To be asked a few times a second: on KVM nobody
    /// else sees that the guest's watchdog is over.
    pub fn next_event(&self) -> Option<MachineEvent> {
        let watched = matches!(self.executor, Executor::Kvm(_)) && self.running;
        if watched && self.devices.look() {
            return Some(MachineEvent::WatchdogFired);
        }
        self.events.try_recv().ok()
    }

    /// The same, to be waited for; without the watchdog on KVM.
    pub fn events(&self) -> &Receiver<MachineEvent> {
        &self.events
    }

    /// The host side of the network card of this number.
    pub fn net(&self, number: u8) -> Option<NetPort> {
        self.devices.net(number)
    }

    /// A disk's host side.
    pub fn disk(&self, index: usize) -> Option<DiskPort> {
        self.devices.disk(index)
    }

    /// The console's input.
    pub fn console(&self) -> ConsoleHandle {
        ConsoleHandle { devices: Arc::clone(&self.devices) }
    }

    /// What the devices have counted.
    pub fn counters(&self) -> DeviceCounters {
        self.devices.counters()
    }

    /// The machine's specification.
    pub fn spec(&self) -> &MachineSpec {
        &self.spec
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // All vCPUs have to be on their way out before the first thread is waited for.
        if let Err(e) = self.pause() {
            tracing::error!("stopping the machine: {e}");
        }
        // Whoever still has a port or the console keeps no image locked.
        self.devices.end_disks();
    }
}

/// A page that is in the 200th harvest is in none any more.
#[cfg(feature = "lost-dirty-bit")]
fn lose_a_dirty_bit(dirty: &mut Vec<PageIndex>) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    static HARVESTS: AtomicU32 = AtomicU32::new(0);
    static LOST: OnceLock<PageIndex> = OnceLock::new();
    let harvests = HARVESTS.fetch_add(1, Ordering::Relaxed);
    if let Some(&page) = dirty.last().filter(|_| harvests >= 200) {
        let lost = *LOST.get_or_init(|| page);
        dirty.retain(|page| *page != lost);
    }
}
