//! The thread that owns the processor, and with it chips and devices, while the machine runs. Other threads send it a
//! [`Job`], which it does between two instructions: within microseconds, running or not.
//!
//! ```text
//!   jobs ──┐                                     ┌── an input is applied, and logged where the machine is recorded
//!   bell ──┴─> between two instructions ─────────┼── time: moved forward to the host's where it lags
//!               ^                                └── a device wrote memory: code decoded from it goes
//!               └──────── run(limit) <───────────┘
//! ```
//!
//! An input takes effect at the count at which the processor stands. Everything that is due then (timers, an interrupt)
//! is done before the next input or the next instruction. So it does not matter where else a run was interrupted: a
//! replay, which stops only where the log has an input, comes to the same state.

mod input;
mod jobs;
mod live;
mod replaying;
#[cfg(test)]
mod tests;

use super::host_time::HostTime;
use super::outbox::Outbox;
use super::platform::{Platform, Reach};
use super::record::Recorder;
use super::replay::Replayer;
use super::state::SoftState;
use super::tape::Tape;
use crate::error::{MachineError, MachineEvent};
use ft_cpu::Cpu;
use ft_cpu::CpuExit;
use ft_ram::{PageIndex, RamView};
use parking_lot::{Condvar, Mutex};
use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16};
use std::sync::mpsc::Sender;
use std::time::Instant;

/// Something for the thread to do.
pub(super) type Job = Box<dyn FnOnce(&mut Worker) + Send>;

/// Instructions between two looks at the host's clock.
const SLICE_COUNTS: std::ops::RangeInclusive<u64> = 20_000..=2_000_000;

/// What the thread shares with those who command it.
pub(super) struct Shared {
    pub jobs: Mutex<VecDeque<Job>>,
    pub reach: Reach,
    pub progress: Mutex<Progress>,
    /// The progress is another.
    pub moved: Condvar,
    /// Thousandths of its time that the guest stands still.
    pub throttle: AtomicU16,
}

/// How far the machine has come, for other threads: not to the last instruction while it runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    pub count: u64,
    pub unknown_instructions: u64,
    /// Where a replay may go, while there is one.
    pub fed: Option<u64>,
    /// It is there, and whatever the log has there is done.
    pub replayed: bool,
    /// It waits for what a disk of this host has not done yet.
    pub awaits_disk: bool,
    /// Why it goes no further.
    pub stuck: Option<Stuck>,
}

#[derive(Clone, Debug)]
pub(super) enum Stuck {
    Crashed(String),
    Failed(String),
    Diverged { count: u64, what: String },
}

impl Stuck {
    pub(super) fn error(&self) -> MachineError {
        match self.clone() {
            Self::Crashed(why) => MachineError::Crashed { vcpu: 0, why },
            Self::Failed(why) => MachineError::Failed { vcpu: 0, why },
            Self::Diverged { count, what } => MachineError::Diverged { count, what },
        }
    }
}

impl Shared {
    /// Sends a job.
    pub(super) fn send(&self, job: Job) {
        self.jobs.lock().push_back(job);
        self.reach.bell.ring();
    }
}

enum Mode {
    Live,
    Recording(Recorder),
    Replaying(Replayer),
}

pub(super) struct Worker {
    cpu: Cpu,
    shared: Arc<Shared>,
    reach: Reach,
    outbox: Arc<Outbox>,
    console_mute: Arc<AtomicBool>,
    tape: Arc<Tape>,
    events: Sender<MachineEvent>,
    view: RamView,
    running: bool,
    /// The guest said that it is at an end: it stands until it was stopped and let run again.
    ended: bool,
    quit: bool,
    stuck: Option<Stuck>,
    idle_until_ns: Option<u64>,
    host_time: HostTime,
    slice: u64,
    throttled_until: Option<Instant>,
    mode: Mode,
    harvesting: bool,
    /// Of a digest or of what devices wrote; kept for its memory.
    pages: Vec<PageIndex>,
}

/// What the worker is made with.
pub(super) struct Parts {
    pub shared: Arc<Shared>,
    pub outbox: Arc<Outbox>,
    pub console_mute: Arc<AtomicBool>,
    pub tape: Arc<Tape>,
    pub events: Sender<MachineEvent>,
    pub view: RamView,
}

/// The thread's main function.
pub(super) fn main(parts: Parts) {
    let shared = Arc::clone(&parts.shared);
    let bell = Arc::clone(&shared.reach.bell);
    let mut worker = Worker::new(parts);
    while !worker.quit {
        bell.take();
        loop {
            // Popped in a statement of its own: the lock is not held while the job is done.
            let job = shared.jobs.lock().pop_front();
            let Some(job) = job else { break };
            worker.guarded(job);
        }
        if worker.quit {
            break;
        }
        if worker.running && !worker.ended && worker.stuck.is_none() {
            worker.guarded(Worker::turn);
        } else {
            bell.wait(None);
        }
    }
}

impl Worker {
    fn new(parts: Parts) -> Self {
        let Parts { shared, outbox, console_mute, tape, events, view } = parts;
        let reach = shared.reach.clone();
        let state = SoftState::power_on(0);
        let platform = Platform { chips: state.chips, reach: reach.clone() };
        Self {
            cpu: Cpu::new(&reach.ram, Box::new(platform)),
            shared,
            reach,
            outbox,
            console_mute,
            tape,
            events,
            view,
            running: false,
            ended: false,
            quit: false,
            stuck: None,
            idle_until_ns: None,
            host_time: HostTime::start(0),
            slice: *SLICE_COUNTS.start(),
            throttled_until: None,
            mode: Mode::Live,
            harvesting: false,
            pages: Vec::new(),
        }
    }

    /// A panic is a bug; it must not take the thread along, which others wait for.
    fn guarded(&mut self, work: impl FnOnce(&mut Self)) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(self))) {
            let why = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
            let why = why.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            let why = self.with_registers(&format!("internal error: {why}"));
            self.stick(Stuck::Failed(why.clone()), MachineEvent::Failed { vcpu: 0, why });
        }
    }

    fn platform(&mut self) -> &mut Platform {
        let bus: &mut dyn Any = self.cpu.bus.as_mut();
        bus.downcast_mut().expect("the worker made the processor with this bus")
    }

    fn virtual_ns(&self) -> u64 {
        self.cpu.clock.ns(self.cpu.count)
    }

    /// One step of the machine's life: what came in, then the guest for a millisecond or so.
    fn turn(&mut self) {
        self.take_journal();
        match &self.mode {
            Mode::Replaying(_) => self.replay(),
            Mode::Live | Mode::Recording(_) => self.live(),
        }
        self.publish();
    }

    fn run(&mut self, limit: u64) -> CpuExit {
        let exit = self.cpu.run(limit, self.reach.bell.attention());
        self.take_journal();
        exit
    }

    /// Pages that devices wrote count as written, and code decoded from them is forgotten.
    fn take_journal(&mut self) {
        if self.reach.ram.journal_is_empty() {
            return;
        }
        self.pages.clear();
        self.reach.ram.take_journal(&mut self.pages);
        for &page in &self.pages {
            self.cpu.mark_dirty(page);
            self.cpu.invalidate_code_page(page);
        }
    }

    fn crash(&mut self) {
        let why = self.with_registers("triple fault");
        self.stick(Stuck::Crashed(why.clone()), MachineEvent::Crashed { vcpu: 0, why });
    }

    fn diverge(&mut self, what: String) {
        let count = self.cpu.count;
        self.stick(Stuck::Diverged { count, what: what.clone() }, MachineEvent::Diverged { count, what });
    }

    /// It goes no further.
    fn stick(&mut self, why: Stuck, event: MachineEvent) {
        self.stuck = Some(why);
        // First, so that whoever sees the progress finds the event. Nobody listens when the machine is being dropped.
        let _ = self.events.send(event);
        self.publish();
    }

    fn with_registers(&self, what: &str) -> String {
        let (cpu, system) = (&self.cpu, &self.cpu.sys);
        format!(
            "{what}; rip {:#x} rsp {:#x} rflags {:#x} cs {:#x} cpl {} \
             cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x} count {}",
            cpu.rip,
            cpu.regs[4],
            cpu.rflags(),
            system.segs[1].selector,
            cpu.cpl,
            system.cr0,
            system.cr2,
            system.cr3,
            system.cr4,
            system.efer,
            cpu.count,
        )
    }

    fn publish(&self) {
        let count = self.cpu.count;
        let (fed, replayed, awaits_disk) = match &self.mode {
            Mode::Replaying(replayer) => {
                let awaits_disk = replayer.awaits_disk(count) || self.reach.devices.are_disks_crowded();
                (Some(replayer.fed()), replayer.is_done(count), awaits_disk)
            }
            _ => (None, false, false),
        };
        let mut progress = self.shared.progress.lock();
        (progress.count, progress.fed, progress.replayed) = (count, fed, replayed);
        progress.awaits_disk = awaits_disk;
        progress.unknown_instructions = self.cpu.unknown_instructions;
        progress.stuck.clone_from(&self.stuck);
        drop(progress);
        self.shared.moved.notify_all();
    }
}
