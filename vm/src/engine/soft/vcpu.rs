//! The thread that owns the processor, and with it chips and devices, while the machine runs. Others have it do things by
//! sending a [`Job`], which it does between two instructions: within microseconds, running or not.
//!
//! ```text
//!   jobs ──┐                                     ┌── an input is applied, and logged where the machine is recorded
//!   bell ──┴─> between two instructions ─────────┼── time: moved forward to the host's where it lags
//!               ^                                └── a device wrote memory: code decoded from it goes
//!               └──────── run(limit) <───────────┘
//! ```
//!
//! An input takes effect at the count at which the processor stands, and whatever is due then (timers, an interrupt) is
//! done before the next input or the next instruction: so it does not matter where else a run was interrupted, and a replay,
//! which stops only where the log has an input, comes to the same.

use super::bus::BusEvent;
use super::cpu::Cpu;
use super::dirty::{Dirty, Tracker};
use super::host_time::HostTime;
use super::outbox::Outbox;
use super::platform::{Platform, Reach};
use super::record::Recorder;
use super::replay::Replayer;
use super::run::Exit;
use super::state::{CpuState, IdleState, SoftState, TIME_MAX_NS};
use super::tape::{Tape, Wrong};
use super::time::PACES;
use crate::devices::Put;
use crate::machine::{MachineError, MachineEvent};
use crate::memory::{PageIndex, RamView};
use crate::replay::Registers;
use crate::replay::log::{ControlAction, DIGEST_PAGES_MAX, Digest, Input, LogCut, REGISTERS, page_hash};
use crate::state::StateError;
use parking_lot::{Condvar, Mutex};
use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// Something for the thread to do.
pub(super) type Job = Box<dyn FnOnce(&mut Worker) + Send>;

/// Virtual time that a busy guest may be ahead of the host's.
const AHEAD_NS: u64 = 100_000_000;
/// How long a run of the guest should take, between two looks at the host's clock.
const SLICE: Duration = Duration::from_millis(1);
const SLICE_COUNTS: std::ops::RangeInclusive<u64> = 20_000..=2_000_000;
/// The longest that the guest idles for one write to the platform device's register.
const IDLE_MAX_NS: u64 = 100_000_000;
/// A timer that stays due though it fires to no effect is looked at this often.
const STALE_TIMER_NS: u64 = 1_000_000;
/// The most of its time that a machine can be made to stand still.
const THROTTLE_MAX: u16 = 950;

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
    /// Where a replay may go, while there is one.
    pub fed: Option<u64>,
    /// It is there, and whatever the log has there is done.
    pub replayed: bool,
    /// Why it goes no further.
    pub stuck: Option<Stuck>,
}

#[derive(Clone, Debug)]
pub(super) enum Stuck {
    Crashed(String),
    Diverged { count: u64, what: String },
}

impl Stuck {
    pub(super) fn error(&self) -> MachineError {
        match self.clone() {
            Self::Crashed(why) => MachineError::Crashed { vcpu: 0, why },
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
            host_time: HostTime::start(0, 0),
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
            self.crash(format!("internal error: {why}"));
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

    fn live(&mut self) {
        if !self.outbox.flush() {
            return self.reach.bell.wait(None);
        }
        if let Mode::Recording(recorder) = &self.mode
            && recorder.is_full()
        {
            return self.reach.bell.wait(None);
        }
        self.take_inputs();
        if self.stuck.is_some() {
            return;
        }
        if let Some(until_ns) = self.idle_until_ns {
            return self.wait_until(Some(until_ns));
        }
        if let Some(until) = self.throttled_until {
            if until > Instant::now() {
                return self.reach.bell.wait(Some(until));
            }
            self.throttled_until = None;
        }
        let (begun, count) = (Instant::now(), self.cpu.count);
        let mut limit = count + self.slice;
        if let Mode::Recording(recorder) = &self.mode {
            limit = limit.min(recorder.digest_due());
        }
        let exit = self.run(limit);
        self.note_random();
        let waits = match exit {
            Exit::Limit | Exit::Attention => false,
            Exit::Halted => true,
            Exit::Event(event) => {
                self.event(event);
                false
            }
            Exit::TripleFault => return self.crash("triple fault".into()),
        };
        if let Mode::Recording(recorder) = &self.mode
            && recorder.wants_digest(self.cpu.count)
        {
            let digest = self.digest();
            if let Mode::Recording(recorder) = &mut self.mode {
                recorder.note_digest(self.cpu.count, digest);
            }
        }
        if waits {
            let now_ns = self.virtual_ns();
            let timer = self.cpu.bus.next_timer_ns();
            return self.wait_until(timer.map(|ns| if ns > now_ns { ns } else { now_ns + STALE_TIMER_NS }));
        }
        self.keep_pace(begun.elapsed(), self.cpu.count - count);
    }

    /// After the guest was busy for so long, and has executed so much.
    fn keep_pace(&mut self, elapsed: Duration, executed: u64) {
        if executed >= *SLICE_COUNTS.start() {
            let wanted = SLICE.as_nanos() * u128::from(executed) / elapsed.as_nanos().max(1);
            let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
            self.slice = wanted.clamp(*SLICE_COUNTS.start(), *SLICE_COUNTS.end());
        }
        let throttle = self.shared.throttle.load(Ordering::Relaxed).min(THROTTLE_MAX);
        if throttle != 0 {
            let pause = elapsed * u32::from(throttle) / u32::from(1000 - throttle);
            self.throttled_until = Instant::now().checked_add(pause);
        }
        let (due_ns, now_ns) = (self.host_time.due_ns(), self.virtual_ns());
        if let Some(ns_per_256) = self.host_time.follow(self.cpu.clock.pace(), now_ns, self.cpu.count) {
            self.input(&Input::Pace { ns_per_256 });
        }
        if now_ns > due_ns + AHEAD_NS {
            self.reach.bell.wait(self.host_time.instant_of(now_ns));
        }
    }

    /// The guest does nothing until `due_ns`, or until an input.
    fn wait_until(&mut self, due_ns: Option<u64>) {
        let deadline = due_ns.and_then(|ns| self.host_time.instant_of(ns));
        self.reach.bell.wait(deadline);
        if let Some(due_ns) = due_ns
            && deadline.is_some_and(|deadline| deadline <= Instant::now())
        {
            self.advance_to(due_ns.max(self.host_time.due_ns()));
        }
        self.host_time.begin_again(self.cpu.count);
    }

    /// Moves virtual time forward.
    fn advance_to(&mut self, ns: u64) {
        let ns = ns.saturating_sub(self.virtual_ns());
        if ns != 0 {
            self.input(&Input::Advance { ns });
        }
    }

    /// Applies what waits in the inbox, as far as the guest has room for it.
    fn take_inputs(&mut self) {
        if !self.reach.inbox.is_waiting() {
            return;
        }
        if self.cpu.halted || self.idle_until_ns.is_some() {
            // It comes at the time at which it comes, to a guest that has let time go by.
            self.advance_to(self.host_time.due_ns());
        }
        while let Some(frame) = self.reach.inbox.take_frame() {
            let input = Input::Frame(frame);
            if self.input(&input) == Applied::NoRoom
                && let Input::Frame(frame) = input
            {
                self.reach.inbox.put_back(frame);
                break;
            }
        }
        let room = self.reach.devices.console_room();
        if room != 0 {
            let bytes = self.reach.inbox.take_console(room);
            if !bytes.is_empty() {
                self.input(&Input::Console(bytes));
            }
        }
    }

    /// Applies an input and logs it, unless the guest cannot tell that it was there.
    fn input(&mut self, input: &Input) -> Applied {
        let applied = self.apply(input);
        if applied == Applied::Done {
            if let Mode::Recording(recorder) = &mut self.mode {
                recorder.note(self.cpu.count, input);
            }
            self.settle();
        }
        applied
    }

    fn apply(&mut self, input: &Input) -> Applied {
        match input {
            Input::Frame(frame) => match self.reach.devices.receive(frame) {
                Put::Done => {}
                Put::NoBuffers => return Applied::NoRoom,
                Put::Lost => return Applied::Nothing,
            },
            Input::Console(bytes) => match self.reach.devices.type_in(bytes) {
                0 => return Applied::Nothing,
                taken if taken < bytes.len() => return Applied::Partly,
                _ => {}
            },
            Input::Advance { ns } => {
                let now_ns = self.virtual_ns();
                if now_ns.checked_add(*ns).is_none_or(|ns| ns > TIME_MAX_NS) {
                    return Applied::Nothing;
                }
                self.cpu.clock.advance(*ns);
            }
            Input::Pace { ns_per_256 } => {
                if !PACES.contains(ns_per_256) {
                    return Applied::Nothing;
                }
                self.cpu.clock.set_pace(self.cpu.count, *ns_per_256);
            }
            Input::Control(ControlAction::FlushTranslations) => self.cpu.flush_tlb_all(),
            // Read by a device, or compared.
            Input::Random(_) | Input::Digest(_) => return Applied::Nothing,
        }
        Applied::Done
    }

    /// After an input: what devices did reaches chips and processor, and what is due at this count is done.
    fn settle(&mut self) {
        self.platform().settle();
        self.take_journal();
        self.settle_idle();
        match self.run(self.cpu.count) {
            Exit::TripleFault => self.crash("triple fault".into()),
            Exit::Event(event) => self.event(event),
            Exit::Limit | Exit::Attention | Exit::Halted => {}
        }
    }

    fn run(&mut self, limit: u64) -> Exit {
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
            self.cpu.dirty.mark(page);
            self.cpu.invalidate_code_page(page);
        }
    }

    fn note_random(&mut self) {
        if let Mode::Recording(recorder) = &mut self.mode {
            for bytes in self.tape.take_recorded() {
                recorder.note(self.cpu.count, &Input::Random(bytes));
            }
        }
    }

    fn event(&mut self, event: BusEvent) {
        let said = match event {
            BusEvent::Idle(ns) => {
                if !self.reach.devices.take_signal() {
                    self.idle_until_ns = Some(self.virtual_ns() + ns.min(IDLE_MAX_NS));
                    self.settle_idle();
                }
                return;
            }
            BusEvent::PoweredOff => MachineEvent::PoweredOff,
            BusEvent::Reset => MachineEvent::Reset,
        };
        // A replay goes where the log goes: the recorder may have been let go on.
        self.ended = !matches!(self.mode, Mode::Replaying(_));
        let _ = self.events.send(said);
    }

    /// Whether the guest idles no more: a device signals, or the time is over.
    fn settle_idle(&mut self) {
        if let Some(until_ns) = self.idle_until_ns
            && (self.reach.devices.take_signal() || self.virtual_ns() >= until_ns)
        {
            self.idle_until_ns = None;
        }
    }

    fn replay(&mut self) {
        let Mode::Replaying(replayer) = &mut self.mode else { return };
        let count = self.cpu.count;
        if let Some(input) = replayer.take(count) {
            return self.replay_input(&input);
        }
        let next = replayer.next();
        if next < count {
            return self.diverge(format!("it went past an input that was recorded at count {next}"));
        }
        if next == count {
            self.publish();
            return self.reach.bell.wait(None);
        }
        if self.idle_until_ns.is_some() {
            return self.diverge(format!("the guest idles, the recording went on to count {next}"));
        }
        let exit = self.run(next.min(count.saturating_add(*SLICE_COUNTS.end())));
        if self.tape.check(self.cpu.count) == Err(Wrong) {
            return self.diverge("a device reads other random bytes than in the recording".into());
        }
        match exit {
            Exit::Limit | Exit::Attention => {}
            Exit::Halted => {
                self.diverge(format!("the guest has halted, the recording went on to count {next}"));
            }
            Exit::Event(event) => self.event(event),
            Exit::TripleFault => {
                // Where the log ends, it is the crash that ended the recording.
                let recorded = matches!(&self.mode, Mode::Replaying(log) if log.is_done(self.cpu.count));
                if recorded { self.crash("triple fault".into()) } else { self.diverge("triple fault".into()) }
            }
        }
    }

    fn replay_input(&mut self, input: &Input) {
        if let Input::Digest(recorded) = input {
            let digest = self.digest();
            if let Some(mismatch) = recorded.mismatch(&digest) {
                self.diverge(mismatch.to_string());
            }
            return;
        }
        if self.apply(input) == Applied::Done {
            return self.settle();
        }
        let what = match input {
            Input::Frame(_) => "a frame that was received in the recording",
            Input::Console(_) => "console input that was taken in the recording",
            Input::Advance { .. } | Input::Pace { .. } => "a step of time",
            _ => "an input",
        };
        self.diverge(format!("{what} cannot be delivered"));
    }

    /// Registers, and the pages written since the last digest. Where there are more than a digest has room for, the rest is
    /// the next one's.
    fn digest(&mut self) -> Digest {
        let registers = self.registers().values;
        let mut pages = std::mem::take(&mut self.pages);
        pages.clear();
        self.cpu.take_dirty(Tracker::Digest, &mut pages);
        let rest = pages.split_off(pages.len().min(DIGEST_PAGES_MAX));
        rest.into_iter().for_each(|page| self.cpu.dirty.mark(page));
        let mut content = [0; crate::layout::PAGE_SIZE];
        let mut hash = |page| {
            self.view.read_page(page, &mut content);
            (page, page_hash(&content))
        };
        let digest = Digest { registers, pages: pages.iter().map(|&page| hash(page)).collect() };
        self.pages = pages;
        digest
    }

    pub(super) fn registers(&mut self) -> Registers {
        let now_ns = self.virtual_ns();
        self.reach.now_ns.store(now_ns, Ordering::Relaxed);
        let devices = hash(&self.reach.devices.capture());
        let chips = hash(&self.platform().chips);
        let cpu = &self.cpu;
        let system = &cpu.sys;
        let [es, cs, ss, ds, fs, gs] = system.segs;
        let mut values = [0; REGISTERS.len()];
        values[..16].copy_from_slice(&cpu.regs);
        values[16..].copy_from_slice(&[
            cpu.rip,
            cpu.rflags(),
            cs.selector.into(),
            ss.selector.into(),
            ds.selector.into(),
            es.selector.into(),
            fs.selector.into(),
            gs.selector.into(),
            fs.base,
            gs.base,
            system.kernel_gs_base,
            cpu.cpl.into(),
            system.cr0,
            system.cr2,
            system.cr3,
            system.cr4,
            cpu.bus.cr8().into(),
            system.efer,
            system.gdtr.0,
            system.idtr.0,
            system.tr.base,
            cpu.halted.into(),
            now_ns,
            hash(system),
            hash(&cpu.fpu),
            chips,
            devices,
        ]);
        Registers { count: cpu.count, values }
    }

    fn crash(&mut self, what: String) {
        let (cpu, system) = (&self.cpu, &self.cpu.sys);
        let why = format!(
            "{what}; rip {:#x} rsp {:#x} rflags {:#x} cs {:#x} cpl {} cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x} \
             count {}",
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
        );
        self.stuck = Some(Stuck::Crashed(why.clone()));
        // First, so that whoever sees the progress finds the event. Nobody listens when the machine is being dropped.
        let _ = self.events.send(MachineEvent::Crashed { vcpu: 0, why });
        self.publish();
    }

    fn diverge(&mut self, what: String) {
        let count = self.cpu.count;
        self.stuck = Some(Stuck::Diverged { count, what: what.clone() });
        let _ = self.events.send(MachineEvent::Diverged { count, what });
        self.publish();
    }

    fn publish(&self) {
        let count = self.cpu.count;
        let (fed, replayed) = match &self.mode {
            Mode::Replaying(replayer) => (Some(replayer.fed()), replayer.is_done(count)),
            _ => (None, false),
        };
        let mut progress = self.shared.progress.lock();
        (progress.count, progress.fed, progress.replayed) = (count, fed, replayed);
        progress.stuck.clone_from(&self.stuck);
        drop(progress);
        self.shared.moved.notify_all();
    }
}

/// What became of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Applied {
    /// The guest has it.
    Done,
    /// The guest has a part of it, which no recorder lets happen.
    Partly,
    /// It has no room for it now.
    NoRoom,
    /// It cannot tell that it was there.
    Nothing,
}

fn hash(state: &impl serde::Serialize) -> u64 {
    // Into memory: it fails for no type of ours.
    postcard::to_allocvec(state).map_or(0, |bytes| crc32c::crc32c(&bytes).into())
}

/// What jobs do.
impl Worker {
    pub(super) fn quit(&mut self) {
        self.quit = true;
    }

    pub(super) fn resume(&mut self) {
        (self.running, self.ended) = (true, false);
        self.host_time = HostTime::start(self.virtual_ns(), self.cpu.count);
        self.throttled_until = None;
        self.reach.inbox.open(!matches!(self.mode, Mode::Replaying(_)));
    }

    pub(super) fn stop(&mut self) {
        self.running = false;
        self.reach.inbox.open(false);
        self.take_journal();
        self.reach.now_ns.store(self.virtual_ns(), Ordering::Relaxed);
        self.publish();
    }

    pub(super) fn capture(&mut self) -> Result<SoftState, MachineError> {
        if let Some(stuck) = &self.stuck {
            return Err(stuck.error());
        }
        // Whoever is restored from this has no cached translation, and old ones can be told from new ones by the guest.
        // (A replay goes on as its recorder, and is captured to be compared.)
        if !matches!(self.mode, Mode::Replaying(_)) {
            self.input(&Input::Control(ControlAction::FlushTranslations));
        }
        self.reach.now_ns.store(self.virtual_ns(), Ordering::Relaxed);
        let signalled = self.reach.devices.take_signal();
        self.reach.devices.set_signal(signalled);
        let chips = self.platform().chips.clone();
        Ok(SoftState {
            cpu: CpuState::of(&self.cpu),
            system: self.cpu.sys.clone(),
            fpu: self.cpu.fpu.clone(),
            chips,
            clock: self.cpu.clock,
            idle: IdleState { signalled, until_ns: self.idle_until_ns },
            outbox: self.outbox.waiting(),
        })
    }

    /// Takes over a state: on a fresh processor, which has nothing cached.
    pub(super) fn load(&mut self, state: &SoftState) -> Result<(), StateError> {
        state.validate()?;
        let SoftState { cpu, system, fpu, chips, clock, idle, outbox } = state;
        self.go_live();
        self.reach.lines.clear();
        self.reach.inbox.clear();
        self.pages.clear();
        self.reach.ram.take_journal(&mut self.pages);
        let platform = Platform { chips: chips.clone(), reach: self.reach.clone() };
        let mut fresh = Cpu::new(&self.reach.ram, Box::new(platform));
        // What the guest wrote before is still to be harvested.
        fresh.dirty = std::mem::replace(&mut self.cpu.dirty, Dirty::new(0));
        (fresh.sys, fresh.fpu, fresh.clock) = (system.clone(), fpu.clone(), *clock);
        cpu.put(&mut fresh);
        self.cpu = fresh;
        self.idle_until_ns = idle.until_ns;
        self.reach.devices.set_signal(idle.signalled);
        self.outbox.set_waiting(outbox);
        self.reach.now_ns.store(self.virtual_ns(), Ordering::Relaxed);
        (self.stuck, self.ended) = (None, false);
        self.publish();
        Ok(())
    }

    pub(super) fn start_dirty_log(&mut self) {
        self.take_journal();
        self.reach.ram.take_vmm_dirty(|_| ());
        self.cpu.track_dirty(Tracker::Harvest, true);
        self.harvesting = true;
    }

    pub(super) fn stop_dirty_log(&mut self) {
        self.cpu.track_dirty(Tracker::Harvest, false);
        self.harvesting = false;
    }

    /// The pages written since the last time, in order; none when nothing is logged.
    pub(super) fn harvest(&mut self) -> Option<Vec<PageIndex>> {
        if !self.harvesting {
            return None;
        }
        self.take_journal();
        let mut pages = Vec::new();
        self.cpu.take_dirty(Tracker::Harvest, &mut pages);
        self.reach.ram.take_vmm_dirty(|page| pages.push(page));
        pages.sort_unstable();
        pages.dedup();
        Some(pages)
    }

    pub(super) fn start_recording(&mut self) -> Result<(), MachineError> {
        let refuse = |why| Err(MachineError::Mode { what: "recording", why });
        match &self.mode {
            Mode::Recording(_) => return refuse("it is on already"),
            Mode::Replaying(_) => return refuse("the machine replays a log"),
            Mode::Live if self.running => return refuse("the machine runs: pause it"),
            Mode::Live => {}
        }
        self.take_journal();
        self.cpu.track_dirty(Tracker::Digest, true);
        self.tape.record();
        // A checkpoint that was captured in this pause has no cached translations either way.
        self.cpu.flush_tlb_all();
        self.mode = Mode::Recording(Recorder::new(self.cpu.count));
        Ok(())
    }

    /// Ends the batch under way; `at_cut` is called at its end.
    pub(super) fn cut(&mut self, out: &mut Vec<u8>, at_cut: impl FnOnce()) -> Result<LogCut, MachineError> {
        self.outbox.flush();
        let Mode::Recording(recorder) = &mut self.mode else {
            return Err(MachineError::Mode { what: "cutting the log", why: "nothing is recorded" });
        };
        let cut = recorder.cut(self.cpu.count, out)?;
        at_cut();
        Ok(cut)
    }

    pub(super) fn start_replaying(&mut self) -> Result<(), MachineError> {
        let refuse = |why| Err(MachineError::Mode { what: "replaying", why });
        match &self.mode {
            Mode::Replaying(_) => return refuse("it is on already"),
            Mode::Recording(_) => return refuse("the machine is recorded"),
            Mode::Live if self.running => return refuse("the machine runs: pause it"),
            Mode::Live => {}
        }
        if let Some(stuck) = &self.stuck {
            return Err(stuck.error());
        }
        self.take_journal();
        self.cpu.track_dirty(Tracker::Digest, true);
        self.cpu.flush_tlb_all();
        self.tape.replay();
        self.outbox.mute.store(true, Ordering::Relaxed);
        self.outbox.set_waiting(&[]);
        self.console_mute.store(true, Ordering::Relaxed);
        self.mode = Mode::Replaying(Replayer::new(self.cpu.count));
        self.publish();
        Ok(())
    }

    pub(super) fn show_replayed_console(&mut self, shown: bool) {
        if let Mode::Replaying(_) = self.mode {
            self.console_mute.store(!shown, Ordering::Relaxed);
        }
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), MachineError> {
        let Mode::Replaying(replayer) = &mut self.mode else {
            return Err(MachineError::Mode { what: "feeding a log", why: "the machine does not replay" });
        };
        replayer.feed(bytes, |count, bytes| self.tape.feed(count, bytes))?;
        self.publish();
        Ok(())
    }

    /// Ends a replay that has come to its log's end.
    pub(super) fn end_replay(&mut self) -> Result<(), MachineError> {
        let refuse = |why| Err(MachineError::Mode { what: "going live", why });
        if let Some(stuck) = &self.stuck {
            return Err(stuck.error());
        }
        let Mode::Replaying(replayer) = &self.mode else { return refuse("the machine does not replay") };
        if !replayer.is_done(self.cpu.count) {
            return refuse("there is log that was not executed yet");
        }
        if self.running {
            return refuse("the machine runs: pause it");
        }
        self.go_live();
        Ok(())
    }

    pub(super) fn stop_recording(&mut self) {
        if let Mode::Recording(_) = self.mode {
            self.go_live();
        }
    }

    /// Inputs come from outside, output goes there, and nothing is recorded.
    fn go_live(&mut self) {
        self.cpu.track_dirty(Tracker::Digest, false);
        self.tape.live();
        self.outbox.mute.store(false, Ordering::Relaxed);
        self.console_mute.store(false, Ordering::Relaxed);
        self.mode = Mode::Live;
        self.publish();
    }
}
