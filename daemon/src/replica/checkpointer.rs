//! The thread that owns the machine. It runs the guest in epochs: pauses it, harvests what it dirtied, captures its
//! state, copies the dirty pages, closes the epoch's output, and lets it go on; encoding and shipping happen on other
//! threads. It takes its orders over a channel and answers each when it is done. What replay mode does instead of epochs
//! of pages is the [`LogCutter`]'s on the primary, and on the backup, where this thread owns the machine too, the
//! [`Follower`]'s.

use super::Input;
use super::follower::{Follower, GoneLive};
use super::log_cutter::LogCutter;
use super::pairing::Pairing;
use super::progress::Replay;
use super::shipper::Shipper;
use super::wiring::{Attach, MakeWiring};
use crate::clock;
use crate::role::{Event, GuestEnd};
use crate::service::Watchdog;
use crate::telemetry::Telemetry;
use ft_checkpoint::backlog::Applier;
use ft_checkpoint::copy::FullCopy;
use ft_checkpoint::encoder::Encoder;
use ft_netbuf::OutputBuffer;
use ft_vm::machine::{Machine, MachineEvent};
use ft_vm::memory::{GuestRam, PageIndex, RamView};
use ft_vm::spec::{Boot, MachineSpec};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError};
use std::time::{Duration, Instant};

/// What the checkpointer is told to do. Orders with a reply are answered when they are carried out.
pub enum Order {
    /// Fresh RAM and a parked machine over it, ready to be filled by a full copy.
    Prepare(Reply<Result<GuestRam, String>>),
    /// Fresh RAM and machine, booted and running.
    Boot(Reply<Result<(), String>>),
    /// The prepared machine takes this state and runs. What is in its RAM is the caller's business.
    Restore(Vec<u8>, Reply<Result<(), String>>),
    /// Full copy, then epochs, for this pairing.
    BeginPairing(Arc<Pairing>),
    /// No more checkpoints.
    EndPairing(Reply<()>),
    /// One last checkpoint of the running pairing, after which the guest stays paused.
    Freeze,
    /// The guest runs again, checkpoints go on.
    Thaw,
    /// There may be room for the next checkpoint.
    Room,
    /// A frame waits for the epoch to end.
    Output,
    /// Backup in replay mode: the prepared machine takes this state, once all is applied, and executes the log.
    Follow(Vec<u8>, Applier),
    /// Backup in replay mode: the log of one more epoch, which was sealed at this time.
    Feed(Vec<u8>, Instant),
    /// Backup in replay mode: tell the core this when all the log there is has been executed.
    WhenExecuted(Event),
    /// Backup in replay mode: the machine, which has executed all the log there is, runs on by itself.
    GoLive(Reply<Result<GoneLive, String>>),
    /// Stops and drops the machine.
    Stop(Reply<()>),
}

/// Where an order's answer goes.
pub type Reply<T> = SyncSender<T>;

/// What does not change while the daemon runs.
pub struct Setup {
    /// The machine.
    pub spec: MachineSpec,
    /// What it boots.
    pub boot: Boot,
    /// Run interval.
    pub epoch: Duration,
    /// Replay mode.
    pub replay: Replay,
    /// Bytes of last-sent pages to remember for deltas.
    pub shadow_bytes: usize,
    /// Makes the host side of the devices.
    pub wiring: MakeWiring,
    /// Told about every machine that comes and goes.
    pub attach: Attach,
    /// Output commit.
    pub output: OutputBuffer,
    /// Where news goes.
    pub inputs: Sender<Input>,
    /// Figures.
    pub telemetry: Arc<Telemetry>,
    /// Shown that this loop lives.
    pub watchdog: Arc<Watchdog>,
}

/// A pre-copy round that leaves at most this many pages is the last: they make a first pause of a few milliseconds.
const PRECOPY_PAGES_LEFT: usize = 2048;
/// A guest that dirties faster than it is copied gets a longer first pause rather than an endless copy.
const PRECOPY_ROUNDS_MAX: u32 = 8;
/// Pages of the full copy between two looks at the orders.
const COPY_STEP_PAGES: u32 = 256;
/// Without room for a checkpoint the epoch is stretched to this many times its length, then the guest is paused.
const EPOCH_STRETCH: u32 = 4;

/// Memory for this many pages at least is ready before a pause.
const RESERVE_PAGES_MIN: usize = 1024;

/// How late a timer of this thread may be.
const TIMER_SLACK_NS: u64 = 5_000;
/// How often a guest that is not checkpointed is looked at.
const EVENTS_INTERVAL: Duration = Duration::from_millis(20);
/// Without a machine the loop only shows that it lives.
const IDLE_ROUND: Duration = Duration::from_secs(1);

/// See the module.
pub struct Checkpointer {
    setup: Setup,
    orders: Receiver<Order>,
    vm: Option<Vm>,
    mode: Mode,
    /// The guest has come to an end by itself and stands still.
    ended: bool,
}

pub(super) struct Vm {
    pub(super) machine: Machine,
    ram: GuestRam,
    view: RamView,
}

enum Mode {
    /// No machine, or a parked one, or one that runs without replication.
    Quiet,
    Copying(Box<Copying>),
    Epochs(Epochs),
    Log(Box<LogCutter>),
    Following(Box<Follower>),
}

struct Copying {
    pairing: Arc<Pairing>,
    encoder: Encoder,
    copy: FullCopy,
    round: u32,
    dirty: Vec<PageIndex>,
}

struct Epochs {
    pairing: Arc<Pairing>,
    shipper: Shipper,
    last: u64,
    /// Dirty pages of the last checkpoint.
    last_pages: usize,
    began: Instant,
    /// The guest stands still.
    paused: bool,
    /// The epoch is over, but there is no room for its checkpoint.
    starved: bool,
    /// The next checkpoint is the last one, or was.
    freezing: bool,
}

impl Epochs {
    fn is_frozen(&self) -> bool {
        self.freezing && self.paused && !self.starved
    }
}

impl Checkpointer {
    /// Starts the thread.
    pub fn start(setup: Setup, orders: Receiver<Order>) -> std::io::Result<std::thread::JoinHandle<()>> {
        std::thread::Builder::new().name("ftd-checkpoint".into()).spawn(move || {
            Self { setup, orders, vm: None, mode: Mode::Quiet, ended: false }.run();
        })
    }

    fn run(mut self) {
        if self.setup.replay.on {
            // Cuts are due to tens of microseconds.
            let _ = nix::sys::prctl::set_timerslack(TIMER_SLACK_NS);
        }
        loop {
            self.setup.watchdog.round();
            if let Some(vm) = &self.vm {
                self.setup.telemetry.looked_at(&vm.machine);
            }
            let order = match self.wait_limit() {
                Duration::ZERO => self.orders.try_recv().map_err(|e| match e {
                    TryRecvError::Empty => RecvTimeoutError::Timeout,
                    TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
                }),
                limit => self.orders.recv_timeout(limit),
            };
            if self.poll_guest_end() && matches!(order, Err(RecvTimeoutError::Timeout)) {
                continue;
            }
            let result = match order {
                Ok(order) => self.obey(order),
                Err(RecvTimeoutError::Timeout) => self.work(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if let Err(why) = result {
                // The machine itself failed. What the backup holds is the VM now.
                let _ = self.setup.inputs.send(Input::MachineFailed(why));
                self.mode = Mode::Quiet;
                self.drop_machine();
            }
        }
    }

    /// How long to wait for an order before there is something to look at.
    fn wait_limit(&self) -> Duration {
        match &self.mode {
            Mode::Copying(_) if !self.ended => Duration::ZERO,
            Mode::Epochs(epochs) if !self.ended && !epochs.is_frozen() => {
                if epochs.starved {
                    // Order::Room comes when an ack has made room; this is only for one that came just before.
                    Duration::from_millis(1)
                } else {
                    self.setup.epoch.saturating_sub(epochs.began.elapsed())
                }
            }
            Mode::Log(cutter) if !self.ended && !cutter.is_frozen() => {
                cutter.wait_limit(self.setup.replay.batch)
            }
            Mode::Following(follower) => follower.wait_limit(EVENTS_INTERVAL),
            _ if self.vm.is_some() => EVENTS_INTERVAL,
            _ => IDLE_ROUND,
        }
    }

    fn obey(&mut self, order: Order) -> Result<(), String> {
        match order {
            Order::Prepare(reply) => answer(reply, self.prepare()),
            Order::Boot(reply) => answer(reply, self.boot()),
            Order::Restore(state, reply) => answer(reply, self.restore(&state)),
            Order::BeginPairing(pairing) => return self.begin_copy(pairing),
            Order::EndPairing(reply) => {
                let result = self.end_pairing();
                answer(reply, ());
                return result;
            }
            Order::Freeze => {
                if let (Mode::Log(cutter), Some(vm), false) = (&mut self.mode, &mut self.vm, self.ended) {
                    return cutter.freeze(vm, &self.setup);
                }
                if let Mode::Epochs(epochs) = &mut self.mode {
                    epochs.freezing = true;
                    return self.work();
                }
            }
            Order::Thaw => {
                if let (Mode::Log(cutter), Some(vm), false) = (&mut self.mode, &mut self.vm, self.ended) {
                    return cutter.thaw(vm);
                }
                if let (Mode::Epochs(epochs), Some(vm), false) = (&mut self.mode, &mut self.vm, self.ended) {
                    epochs.freezing = false;
                    epochs.let_run(vm)?;
                }
            }
            Order::Room => match &self.mode {
                Mode::Epochs(epochs) if epochs.starved => return self.work(),
                Mode::Log(cutter) if cutter.is_starved() => return self.work(),
                _ => {}
            },
            Order::Output => {
                if let Mode::Log(cutter) = &mut self.mode {
                    cutter.output_waits();
                }
            }
            Order::Follow(state, applier) => self.follow(&state, &applier),
            Order::Feed(log, at) => {
                self.setup.replay.progress.taken(log.len() as u64);
                if let (Mode::Following(follower), Some(vm)) = (&mut self.mode, &mut self.vm) {
                    follower.feed(vm, &self.setup, &log, at);
                }
            }
            Order::WhenExecuted(news) => {
                if let (Mode::Following(follower), Some(vm)) = (&mut self.mode, &mut self.vm) {
                    follower.tell_when_executed(vm, &self.setup, news);
                }
            }
            Order::GoLive(reply) => answer(reply, self.go_live()),
            Order::Stop(reply) => {
                self.mode = Mode::Quiet;
                self.drop_machine();
                answer(reply, ());
            }
        }
        Ok(())
    }

    /// Looks whether the guest has come to an end by itself. Then it stands still from now on.
    fn poll_guest_end(&mut self) -> bool {
        if let Some(vm) = &mut self.vm
            && !self.ended
            && !matches!(self.mode, Mode::Following(_))
            && let Ok(event) = vm.machine.events().try_recv()
        {
            self.ended = true;
            let end = match event {
                MachineEvent::PoweredOff => GuestEnd::PoweredOff,
                MachineEvent::Reset => GuestEnd::Reset,
                MachineEvent::Crashed { vcpu, why } => GuestEnd::Crashed(format!("vCPU {vcpu}: {why}")),
                MachineEvent::Diverged { count, what } => {
                    GuestEnd::Crashed(format!("replay diverged at count {count}: {what}"))
                }
            };
            if let Err(e) = vm.machine.pause() {
                tracing::error!("stopping a guest that has ended: {e}");
            }
            let _ = self.setup.inputs.send(Input::Event(Event::GuestEnded(end)));
        }
        self.ended
    }

    fn work(&mut self) -> Result<(), String> {
        match &mut self.mode {
            _ if self.ended => Ok(()),
            Mode::Quiet => Ok(()),
            Mode::Copying(_) => self.copy_step(),
            Mode::Epochs(_) => self.end_epoch(),
            Mode::Log(cutter) => match &mut self.vm {
                Some(vm) => cutter.cut(vm, &self.setup),
                None => Ok(()),
            },
            Mode::Following(follower) => {
                if let Some(vm) = &mut self.vm {
                    follower.look(vm, &self.setup);
                }
                Ok(())
            }
        }
    }

    fn new_vm(&mut self) -> Result<&mut Vm, String> {
        self.mode = Mode::Quiet;
        self.drop_machine();
        let ram = GuestRam::new(self.setup.spec.ram_bytes).map_err(|e| e.to_string())?;
        let view = ram.view().map_err(|e| e.to_string())?;
        let wiring = (self.setup.wiring)()?;
        let machine = Machine::new(&self.setup.spec, &ram, wiring).map_err(|e| e.to_string())?;
        Ok(self.vm.insert(Vm { machine, ram, view }))
    }

    fn drop_machine(&mut self) {
        (self.setup.attach)(None);
        self.vm = None;
        self.ended = false;
    }

    fn prepare(&mut self) -> Result<GuestRam, String> {
        Ok(self.new_vm()?.ram.clone())
    }

    fn boot(&mut self) -> Result<(), String> {
        let boot = self.setup.boot.clone();
        let vm = self.new_vm()?;
        vm.machine.boot(&boot).map_err(|e| e.to_string())?;
        self.set_running()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        let vm = self.vm.as_mut().ok_or("there is no prepared machine")?;
        vm.machine.restore(state).map_err(|e| e.to_string())?;
        self.set_running()
    }

    fn follow(&mut self, state: &[u8], applier: &Applier) {
        let Some(vm) = &mut self.vm else { return };
        let follower = Follower::start(vm, state, applier).unwrap_or_else(|why| {
            Follower::failed(&self.setup, format!("the checkpoint cannot be executed: {why}"))
        });
        self.mode = Mode::Following(Box::new(follower));
    }

    fn go_live(&mut self) -> Result<GoneLive, String> {
        let (Mode::Following(follower), Some(vm)) = (&mut self.mode, &mut self.vm) else {
            return Err("no machine executes the log here".into());
        };
        let gone = follower.go_live(vm, &self.setup)?;
        self.mode = Mode::Quiet;
        match &gone.ended {
            // It ended while nobody looked; now it is this node's to say so.
            Some(end) => {
                self.ended = true;
                let _ = self.setup.inputs.send(Input::Event(Event::GuestEnded(end.clone())));
            }
            None => self.set_running()?,
        }
        Ok(gone)
    }

    fn set_running(&mut self) -> Result<(), String> {
        let vm = self.vm.as_mut().ok_or("there is no machine")?;
        (self.setup.attach)(Some(&vm.machine));
        vm.machine.resume().map_err(|e| e.to_string())
    }

    fn begin_copy(&mut self, pairing: Arc<Pairing>) -> Result<(), String> {
        let vm = self.vm.as_mut().ok_or("there is no machine to protect")?;
        // Before the first page is read: what changes while it is copied is dirty afterwards.
        vm.machine.start_dirty_log().map_err(|e| e.to_string())?;
        let mut encoder = Encoder::new(vm.ram.pages(), self.setup.shadow_bytes);
        match FullCopy::begin(&mut encoder, pairing.nonce, &vm.view, &mut pairing.copy_sink()) {
            Ok(copy) => {
                let copying = Copying { pairing, encoder, copy, round: 0, dirty: Vec::new() };
                self.mode = Mode::Copying(Box::new(copying));
            }
            // The connection is gone already; whoever closed it has told the core.
            Err(e) => tracing::debug!("full copy not begun: {e}"),
        }
        Ok(())
    }

    fn copy_step(&mut self) -> Result<(), String> {
        let (Mode::Copying(copying), Some(vm)) = (&mut self.mode, &mut self.vm) else { return Ok(()) };
        let Copying { pairing, encoder, copy, round, dirty } = &mut **copying;
        let mut sink = pairing.copy_sink();
        let progress = if copy.progress().is_complete() {
            dirty.clear();
            vm.machine.harvest(dirty).map_err(|e| e.to_string())?;
            *round += 1;
            copy.resend(encoder, &vm.view, dirty, &mut sink)
        } else {
            copy.step(encoder, &vm.view, COPY_STEP_PAGES, &mut sink)
        };
        match progress {
            Ok(progress) => {
                self.setup.telemetry.copying(progress);
                if progress.is_complete()
                    && *round > 0
                    && (dirty.len() <= PRECOPY_PAGES_LEFT || *round >= PRECOPY_ROUNDS_MAX)
                {
                    return self.begin_epochs();
                }
            }
            // The connection is gone; the core hears of it from the reader and ends the pairing.
            Err(e) => {
                tracing::debug!("full copy stopped: {e}");
                self.mode = Mode::Quiet;
            }
        }
        Ok(())
    }

    /// The copy has converged: the rest goes with the first checkpoint, and from its capture on output is held.
    fn begin_epochs(&mut self) -> Result<(), String> {
        let Mode::Copying(copying) = std::mem::replace(&mut self.mode, Mode::Quiet) else { return Ok(()) };
        let Copying { pairing, encoder, .. } = *copying;
        let pages_max = self.vm.as_ref().map_or(0, |vm| vm.ram.pages()) as usize;
        let Setup { inputs, telemetry, .. } = &self.setup;
        let shipper =
            Shipper::start(encoder, Arc::clone(&pairing), pages_max, inputs.clone(), Arc::clone(telemetry))
                .map_err(|e| format!("cannot start the shipper: {e}"))?;
        let (began, last, last_pages) = (Instant::now(), 0, PRECOPY_PAGES_LEFT);
        let epochs = Epochs {
            pairing,
            shipper,
            last,
            last_pages,
            began,
            paused: false,
            starved: false,
            freezing: false,
        };
        self.mode = Mode::Epochs(epochs);
        self.end_epoch()
    }

    /// The epoch is over, if there is room for its checkpoint: captures it and lets the guest go on.
    fn end_epoch(&mut self) -> Result<(), String> {
        let (Mode::Epochs(epochs), Some(vm)) = (&mut self.mode, &mut self.vm) else { return Ok(()) };
        if !epochs.pairing.reserve() {
            return epochs.starve(vm, self.setup.epoch, &self.setup.telemetry);
        }
        let first = epochs.last == 0;
        let epoch = epochs.last + 1;
        let mut capture = epochs.shipper.empty_capture();
        // Ahead of the pause; without memory for it the pause fails, or finds that less will do.
        let _ =
            capture.arena.reserve((2 * epochs.last_pages).clamp(RESERVE_PAGES_MIN, vm.ram.pages() as usize));
        let started = Instant::now();
        let stamp_us = clock::now_us();
        if !epochs.paused {
            vm.machine.pause().map_err(|e| e.to_string())?;
            epochs.paused = true;
        }
        let stopped = Instant::now();
        // A guest that ended in this epoch has no state to go on from.
        if self.poll_guest_end() {
            return Ok(());
        }
        let (Mode::Epochs(epochs), Some(vm)) = (&mut self.mode, &mut self.vm) else { return Ok(()) };
        vm.machine.harvest(&mut capture.pages).map_err(|e| e.to_string())?;
        let harvested = Instant::now();
        vm.machine.capture(&mut capture.state).map_err(|e| e.to_string())?;
        let captured = Instant::now();
        capture.copy_pages(&vm.view).map_err(|e| e.to_string())?;
        if self.setup.replay.on {
            vm.machine.start_recording().map_err(|e| e.to_string())?;
            vm.machine.stop_dirty_log().map_err(|e| e.to_string())?;
        }
        let copied = Instant::now();
        if first {
            self.setup.output.hold();
        } else {
            self.setup.output.close_epoch(epoch);
        }
        epochs.starved = false;
        if !epochs.freezing {
            epochs.let_run(vm)?;
        }
        let resumed = Instant::now();
        (capture.epoch, capture.stamp_us) = (epoch, stamp_us);
        let pages = capture.pages.len();

        (epochs.last, epochs.last_pages) = (epoch, pages);
        // Said before the checkpoint is on its way, so that its ack cannot come first.
        if first {
            let pairing = epochs.pairing.nonce;
            let _ = self.setup.inputs.send(Input::Event(Event::FirstCaptured { pairing }));
        }
        if epochs.freezing {
            let _ = self.setup.inputs.send(Input::Event(Event::FinalCaptured { epoch }));
        }
        epochs.shipper.ship(capture);
        self.setup.telemetry.paused(PauseParts {
            epoch,
            pages,
            stop: stopped - started,
            harvest: harvested - stopped,
            capture: captured - harvested,
            copy: copied - captured,
            resume: resumed - copied,
        });
        if self.setup.replay.on
            && let Mode::Epochs(epochs) = std::mem::replace(&mut self.mode, Mode::Quiet)
        {
            let Epochs { pairing, shipper, last, .. } = epochs;
            self.mode = Mode::Log(Box::new(LogCutter::new(pairing, shipper, last)));
        }
        Ok(())
    }

    fn end_pairing(&mut self) -> Result<(), String> {
        let mode = std::mem::replace(&mut self.mode, Mode::Quiet);
        let Some(vm) = &mut self.vm else { return Ok(()) };
        match mode {
            Mode::Quiet => return Ok(()),
            // Nothing of a pairing of ours.
            Mode::Following(follower) => {
                self.mode = Mode::Following(follower);
                return Ok(());
            }
            Mode::Log(cutter) => return cutter.end(vm, &self.setup, self.ended),
            Mode::Copying(_) => {}
            Mode::Epochs(_) if self.ended => {}
            Mode::Epochs(mut epochs) => epochs.let_run(vm)?,
        }
        vm.machine.stop_dirty_log().map_err(|e| e.to_string())
    }
}

impl Epochs {
    /// Begins the next epoch.
    fn let_run(&mut self, vm: &mut Vm) -> Result<(), String> {
        if std::mem::take(&mut self.paused) {
            vm.machine.resume().map_err(|e| e.to_string())?;
        }
        self.began = Instant::now();
        Ok(())
    }

    /// No room for a checkpoint: the epoch grows longer, and when it has grown enough the guest stands still.
    fn starve(&mut self, vm: &mut Vm, epoch: Duration, telemetry: &Telemetry) -> Result<(), String> {
        self.starved = true;
        if !self.paused && (self.freezing || self.began.elapsed() >= epoch * EPOCH_STRETCH) {
            vm.machine.pause().map_err(|e| e.to_string())?;
            self.paused = true;
            telemetry.choked();
        }
        Ok(())
    }
}

/// What a pause was made of.
#[derive(Clone, Copy, Debug)]
pub struct PauseParts {
    /// The epoch that it ended.
    pub epoch: u64,
    /// Dirty pages.
    pub pages: usize,
    /// Until every vCPU stood still.
    pub stop: Duration,
    /// Reading and clearing the dirty logs.
    pub harvest: Duration,
    /// Machine state.
    pub capture: Duration,
    /// Copying the dirty pages aside.
    pub copy: Duration,
    /// Closing the epoch's output and letting the guest go.
    pub resume: Duration,
}

impl PauseParts {
    /// The whole pause.
    pub fn total(&self) -> Duration {
        self.stop + self.harvest + self.capture + self.copy + self.resume
    }
}

fn answer<T>(reply: Reply<T>, value: T) {
    // Nobody waits any more: the daemon is ending.
    let _ = reply.send(value);
}
