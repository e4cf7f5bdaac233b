//! The deterministic engine behind the trait that the machine commands, and its further abilities: record and replay.
//! Everything is done on the vCPU's thread (see `vcpu/`), between two instructions.

use super::outbox::{Console, Outbox};
use super::platform::{Lines, Reach};
use super::state::SoftState;
use super::tape::{Source, Tape};
use super::vcpu::{self, Parts, Progress, Shared, Worker};
use crate::boot::entry::Entry;
use crate::devices::inbox::{Bell, Inbox};
use crate::devices::{Deterministic, Devices, FrameSink, IrqChip, Wiring};
use crate::engine::worktime::{Stint, Stints};
use crate::engine::{Engine, IdleWork};
use crate::error::{MachineError, MachineEvent};
use crate::replay::log::LogReader;
use crate::replay::{LogCut, Registers, ReplayPosition};
use crate::spec::{EngineKind, MachineSpec};
use crate::state::{EngineState, StateError};
use ft_confine::ThreadKind;
use ft_ram::{GuestRam, PageIndex};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long the thread may take to answer: the host can be busy.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Between two looks at disks that are waited for.
const LAND_INTERVAL: Duration = Duration::from_micros(200);

/// One machine's processor in software.
pub(crate) struct SoftEngine {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Where the log has been read up to, while the machine replays one.
    log: Option<LogReader>,
    stints: Stints,
}

impl SoftEngine {
    /// Its thread, and the devices around it.
    pub(crate) fn new(
        spec: &MachineSpec,
        ram: &GuestRam,
        wiring: Wiring,
        events: Sender<MachineEvent>,
    ) -> Result<(Self, Arc<Devices>), MachineError> {
        let (parts, devices) = parts(spec, ram, wiring, events)?;
        let shared = Arc::clone(&parts.shared);
        let thread = std::thread::Builder::new()
            .name("vcpu0".into())
            .spawn(move || {
                ft_confine::this_thread(ThreadKind::Vcpu);
                vcpu::main(parts);
            })
            .map_err(MachineError::Thread)?;
        Ok((Self { shared, thread: Some(thread), log: None, stints: Stints::default() }, devices))
    }

    /// Has the vCPU's thread do something; what it answers.
    fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Worker) -> R + Send + 'static,
    ) -> Result<R, MachineError> {
        let (sender, answer) = sync_channel(1);
        self.shared.send(Box::new(move |worker| {
            // Nobody waits any more for an answer that took too long.
            let _ = sender.send(work(worker));
        }));
        answer.recv_timeout(ANSWER_WITHIN).map_err(|e| match e {
            RecvTimeoutError::Timeout => MachineError::Unresponsive { vcpu: 0, waited: ANSWER_WITHIN },
            RecvTimeoutError::Disconnected => {
                MachineError::Failed { vcpu: 0, why: "internal error on its thread".into() }
            }
        })
    }

    /// See [`Machine::start_recording`](crate::machine::Machine::start_recording), and so on.
    pub(crate) fn start_recording(&self) -> Result<(), MachineError> {
        self.call(Worker::start_recording)?
    }

    pub(crate) fn land_disks(&self, within: Duration) -> Result<bool, MachineError> {
        let deadline = Instant::now() + within;
        while !self.call(Worker::land_disks)? {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(LAND_INTERVAL);
        }
        Ok(true)
    }

    pub(crate) fn cut_log(
        &self,
        out: &mut Vec<u8>,
        at_cut: Box<dyn FnOnce() + Send>,
    ) -> Result<LogCut, MachineError> {
        let mut bytes = std::mem::take(out);
        let (cut, bytes) = self.call(move |worker| (worker.cut(&mut bytes, at_cut), bytes))?;
        *out = bytes;
        cut
    }

    pub(crate) fn stop_recording(&self) -> Result<(), MachineError> {
        self.call(Worker::stop_recording)
    }

    pub(crate) fn start_replaying(&mut self) -> Result<(), MachineError> {
        let start = self.call(Worker::start_replaying)??;
        self.log = Some(LogReader::new(start));
        Ok(())
    }

    pub(crate) fn show_replayed_console(&self, shown: bool) -> Result<(), MachineError> {
        self.call(move |worker| worker.show_replayed_console(shown))
    }

    /// The log is read here: the vCPU's thread has the guest to run.
    pub(crate) fn feed_log(&mut self, bytes: &[u8]) -> Result<(), MachineError> {
        let Some(log) = &mut self.log else {
            return Err(MachineError::Mode { what: "feeding a log", why: "the machine does not replay" });
        };
        let batches = log.read_all(bytes)?;
        self.call(move |worker| worker.feed(batches))
    }

    pub(crate) fn go_live(&mut self) -> Result<(), MachineError> {
        self.call(Worker::end_replay)??;
        self.log = None;
        Ok(())
    }

    pub(crate) fn replay_position(&self) -> ReplayPosition {
        let progress = self.shared.progress.lock();
        progress.fed.map_or_else(ReplayPosition::default, |fed| ReplayPosition { count: progress.count, fed })
    }

    pub(crate) fn awaits_disk(&self) -> bool {
        self.shared.progress.lock().awaits_disk
    }

    pub(crate) fn wait_replayed(&self, timeout: Duration) -> Result<bool, MachineError> {
        let deadline = Instant::now() + timeout;
        let mut progress = self.shared.progress.lock();
        loop {
            if let Some(stuck) = &progress.stuck {
                return Err(stuck.error());
            }
            if progress.fed.is_none() {
                let why = "the machine does not replay";
                return Err(MachineError::Mode { what: "waiting for a replay", why });
            }
            if progress.replayed {
                return Ok(true);
            }
            if self.shared.moved.wait_until(&mut progress, deadline).timed_out() {
                return Ok(false);
            }
        }
    }

    pub(crate) fn registers(&self) -> Result<Registers, MachineError> {
        self.call(Worker::registers)
    }

    pub(crate) fn press_power_button(&self) -> Result<(), MachineError> {
        self.call(Worker::press_power_button)
    }

    pub(crate) fn announce(&self) -> Result<(), MachineError> {
        self.call(Worker::announce)
    }

    pub(crate) fn set_link(&self, card: u8, up: bool) -> Result<(), MachineError> {
        self.call(move |worker| worker.set_link(card, up))
    }

    pub(crate) fn throttle(&self, permille: u16) {
        self.shared.throttle.store(permille, Ordering::Relaxed);
    }

    pub(crate) fn count(&self) -> u64 {
        self.shared.progress.lock().count
    }

    pub(crate) fn unknown_instructions(&self) -> u64 {
        self.shared.progress.lock().unknown_instructions
    }
}

/// What the thread of one machine's processor is made with, and the devices around it.
pub(super) fn parts(
    spec: &MachineSpec,
    ram: &GuestRam,
    wiring: Wiring,
    events: Sender<MachineEvent>,
) -> Result<(Parts, Arc<Devices>), MachineError> {
    if spec.vcpus != 1 {
        return Err(MachineError::SoftVcpus(spec.vcpus));
    }
    let Wiring { frames, console, disks } = wiring;
    let bell = Arc::new(Bell::default());
    let inbox = Arc::new(Inbox::new(Arc::clone(&bell)));
    let lines = Arc::new(Lines::default());
    let outbox = Arc::new(Outbox::new(frames, Arc::clone(&bell)));
    let console_mute = Arc::new(AtomicBool::new(false));
    let tape = Arc::new(Tape::new(Arc::clone(&bell)));
    let now_ns = Arc::new(AtomicU64::new(0));
    let wiring = Wiring {
        frames: Some(Arc::clone(&outbox) as Arc<dyn FrameSink>),
        console: Box::new(Console { sink: console, mute: Arc::clone(&console_mute) }),
        disks,
    };
    let by = Deterministic {
        now_ns: Arc::clone(&now_ns),
        random: Box::new(Source(Arc::clone(&tape))),
        inbox: Arc::clone(&inbox),
    };
    let irq = Arc::clone(&lines) as Arc<dyn IrqChip>;
    let devices = Arc::new(Devices::deterministic(spec, ram, irq, wiring, by)?);
    ram.keep_journal();
    let reach = Reach { devices: Arc::clone(&devices), lines, inbox, bell, ram: ram.clone(), now_ns };
    let shared = Arc::new(Shared {
        jobs: Mutex::default(),
        reach,
        progress: Mutex::new(Progress::default()),
        moved: Condvar::new(),
        throttle: AtomicU16::new(0),
    });
    let view = ram.view()?;
    Ok((Parts { shared, outbox, console_mute, tape, events, view }, devices))
}

impl Engine for SoftEngine {
    fn resume(&mut self) -> Result<(), MachineError> {
        self.call(Worker::resume)?;
        self.stints.begin(self.thread.iter());
        Ok(())
    }

    fn stop(&mut self) -> Result<(), MachineError> {
        self.stints.end(self.thread.iter());
        self.call(Worker::stop)
    }

    /// Nothing is pending between two instructions, and the processor is what it was loaded with.
    fn enter_once(&mut self) -> Result<(), MachineError> {
        self.call(|_| ())
    }

    fn offer(&mut self, work: &IdleWork) {
        let work = Arc::clone(work);
        self.shared.send(Box::new(move |_| work()));
    }

    fn stint(&self) -> Stint {
        self.stints.last()
    }

    fn capture(&mut self) -> Result<EngineState, MachineError> {
        Ok(EngineState::Soft(Box::new(self.call(Worker::capture)??)))
    }

    fn apply(&mut self, state: &EngineState) -> Result<(), StateError> {
        let EngineState::Soft(state) = state else { return Err(state.foreign(EngineKind::Soft)) };
        let state = state.clone();
        self.log = None;
        self.call(move |worker| worker.load(&state)).map_err(|_| StateError::Gone { vcpu: 0 })?
    }

    fn entered(&self, entry: &Entry) -> Result<EngineState, StateError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut state = SoftState::power_on(now.as_secs());
        state.enter(entry);
        Ok(EngineState::Soft(Box::new(state)))
    }

    fn start_dirty_log(&mut self) -> Result<(), MachineError> {
        self.call(Worker::start_dirty_log)
    }

    fn stop_dirty_log(&mut self) -> Result<(), MachineError> {
        self.call(Worker::stop_dirty_log)
    }

    fn harvest(&mut self, dirty: &mut Vec<PageIndex>) -> Result<(), MachineError> {
        dirty.extend(self.call(Worker::harvest)?.ok_or(MachineError::NotLogging)?);
        Ok(())
    }
}

impl Drop for SoftEngine {
    fn drop(&mut self) {
        self.shared.send(Box::new(Worker::quit));
        if let Some(thread) = self.thread.take() {
            // The thread's panics are caught inside it.
            let _ = thread.join();
        }
    }
}
