//! The thread that owns the machine. It runs the guest in epochs: pauses it, harvests what it dirtied, captures its
//! state, copies the dirty pages, closes the epoch's output, and lets it go on; encoding and shipping happen on other
//! threads. It takes its orders over a channel and answers each when it is done. What replay mode does instead of epochs
//! of pages is the [`LogCutter`]'s on the primary, and on the backup, where this thread owns the machine too, the
//! [`Follower`]'s.

mod copying;
mod epochs;

pub use self::epochs::PauseParts;

use self::copying::Copying;
use self::epochs::Epochs;
use super::Input;
use super::follower::{Follower, GoneLive};
use super::log_cutter::LogCutter;
use super::pairing::Pairing;
use super::progress::Replay;
use super::wiring::{Attach, MakeWiring};
use crate::role::{Event, GuestEnd};
use crate::service::Watchdog;
use crate::telemetry::Telemetry;
use ft_checkpoint::backlog::Applier;
use ft_netbuf::OutputBuffer;
use ft_vm::machine::{Machine, MachineEvent};
use ft_vm::memory::{GuestRam, RamView};
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

/// How late a timer of this thread may be.
const TIMER_SLACK_NS: u64 = 5_000;
/// A frame waits so long for others to share its epoch.
pub(super) const GROUP: Duration = Duration::from_micros(150);
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

impl Checkpointer {
    /// Starts the thread.
    pub fn start(setup: Setup, orders: Receiver<Order>) -> std::io::Result<std::thread::JoinHandle<()>> {
        std::thread::Builder::new().name("ftd-checkpoint".into()).spawn(move || {
            Self { setup, orders, vm: None, mode: Mode::Quiet, ended: false }.run();
        })
    }

    fn run(mut self) {
        // Cuts and epochs' ends are due to tens of microseconds.
        let _ = nix::sys::prctl::set_timerslack(TIMER_SLACK_NS);
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
            _ if self.is_at_rest() => EVENTS_INTERVAL,
            Mode::Copying(_) => Duration::ZERO,
            Mode::Epochs(epochs) => epochs.wait_limit(self.setup.epoch),
            Mode::Log(cutter) => cutter.wait_limit(self.setup.replay.batch),
            Mode::Following(follower) => follower.wait_limit(EVENTS_INTERVAL),
            Mode::Quiet if self.vm.is_some() => EVENTS_INTERVAL,
            Mode::Quiet => IDLE_ROUND,
        }
    }

    /// Whether the guest stands still until an order says otherwise: it has ended, or its last epoch has. A frozen guest
    /// has no further epoch, however long the last one is on its way: the backup would hold another than it is offered.
    fn is_at_rest(&self) -> bool {
        self.ended
            || match &self.mode {
                Mode::Epochs(epochs) => epochs.is_frozen(),
                Mode::Log(cutter) => cutter.is_frozen(),
                Mode::Quiet | Mode::Copying(_) | Mode::Following(_) => false,
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
            Order::Output => match &mut self.mode {
                Mode::Epochs(epochs) => epochs.output_waits(),
                Mode::Log(cutter) => cutter.output_waits(),
                _ => {}
            },
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
        if self.is_at_rest() {
            return Ok(());
        }
        match &mut self.mode {
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

fn answer<T>(reply: Reply<T>, value: T) {
    // Nobody waits any more: the daemon is ending.
    let _ = reply.send(value);
}
