//! The thread that owns the machine. It runs the guest in epochs: pauses it, harvests its dirty pages, captures its
//! state, copies the pages, closes the epoch's output, and lets it go on. Other threads encode and ship. The thread
//! takes orders over a channel and answers each when it is done. In replay mode, [`LogCutter`] does this work on the
//! primary and [`Follower`] on the backup; this thread owns the machine there too.

use super::copying::{CopyStep, Copying};
use super::epochs::{Epochs, Looked};
use super::error::{GoLiveError, KeepError, PrepareError, RestoreError, StartGuestError, StateLoss};
use super::follower::Follower;
use super::log_cutter::LogCutter;
use super::news::KeeperNews;
use super::order::{GoneLive, Order, OrderReply};
use super::pairing::Pairing;
use super::setup::Setup;
use super::standby::Feed;
use super::vm::Vm;
use crate::disks::FollowError;
use ft_checkpoint::backlog::Applier;
use ft_checkpoint::wire::message::Held;
use ft_ram::GuestRam;
use ft_vm::machine::MachineError;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

/// How late a timer of this thread may be.
const TIMER_SLACK_NS: u64 = 5_000;
/// How often a guest that is not checkpointed is looked at.
const EVENTS_INTERVAL: Duration = Duration::from_millis(20);
/// Without a machine the loop only shows that it lives.
const IDLE_ROUND: Duration = Duration::from_secs(1);
/// Storage that comes no further for so long is not waited for by a take-over, which is tried again.
const LATE_AFTER: Duration = Duration::from_secs(10);

/// See the module.
pub struct Keeper {
    setup: Setup,
    orders: Receiver<Order>,
    vm: Option<Vm>,
    mode: Work,
    /// The links of the VM's cards on this host.
    links: Vec<bool>,
    /// The machine is the VM, which runs here: what it tells its guest comes from this host.
    is_vm: bool,
}

enum Work {
    /// No machine, or a parked one, or one that runs without replication.
    Quiet,
    Copying(Box<Copying>),
    Epochs(Box<Epochs>),
    Log(Box<LogCutter>),
    Following(Box<Follower>),
}

impl Keeper {
    /// Starts the thread.
    pub fn start(setup: Setup, orders: Receiver<Order>) -> std::io::Result<std::thread::JoinHandle<()>> {
        std::thread::Builder::new().name("ftd-keeper".into()).spawn(move || {
            let mut keeper =
                Self { setup, orders, vm: None, mode: Work::Quiet, links: Vec::new(), is_vm: false };
            // A panic must not leave a VM that nobody keeps, and a daemon that says that it is kept. It ends the
            // machine, not the thread: what this node holds beside it may be the last copy, and needs another machine.
            while catch_unwind(AssertUnwindSafe(|| keeper.run())).is_err() {
                keeper.fail(KeepError::Panicked);
            }
        })
    }

    fn run(&mut self) {
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
            if let Err(why) = self.poll_guest_end() {
                self.fail(why);
            }
            let result = match order {
                Ok(order) => self.obey(order),
                Err(RecvTimeoutError::Timeout) => self.work(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let result = match result {
                // The guest crashed while this was done: that is its own end, and it has said so.
                Err(KeepError::Machine(MachineError::Crashed { .. })) => self.poll_guest_end(),
                result => result,
            };
            if let Err(why) = result {
                self.fail(why);
            }
        }
    }

    /// The machine itself failed. What the backup holds is the VM now. In replay mode the backup holds it in the
    /// machine that follows.
    fn fail(&mut self, why: KeepError) {
        self.setup.tell(match std::mem::replace(&mut self.mode, Work::Quiet) {
            Work::Following(_) => KeeperNews::StateLost(StateLoss::MachineGone(Box::new(why))),
            _ => KeeperNews::MachineFailed(why),
        });
        self.drop_machine();
    }

    /// How long to wait for an order before there is something to look at.
    fn wait_limit(&self) -> Duration {
        match &self.mode {
            _ if self.is_at_rest() => EVENTS_INTERVAL,
            Work::Copying(copying) => copying.wait_limit(),
            Work::Epochs(epochs) => epochs.wait_limit(self.setup.epoch),
            Work::Log(cutter) => cutter.wait_limit(self.setup.replay.batch),
            Work::Following(follower) => follower.wait_limit(EVENTS_INTERVAL),
            Work::Quiet if self.vm.is_some() => EVENTS_INTERVAL,
            Work::Quiet => IDLE_ROUND,
        }
    }

    /// Whether the guest stands still until an order says otherwise: it has ended, or its last epoch has. A frozen
    /// guest has no further epoch, however long the last one is on its way: the backup would hold another than it is
    /// offered.
    fn is_at_rest(&self) -> bool {
        self.vm.as_ref().is_some_and(|vm| vm.ended)
            || match &self.mode {
                Work::Epochs(epochs) => epochs.is_frozen(),
                Work::Log(cutter) => cutter.is_frozen(),
                Work::Quiet | Work::Copying(_) | Work::Following(_) => false,
            }
    }

    fn obey(&mut self, order: Order) -> Result<(), KeepError> {
        match order {
            Order::Prepare(kept, reply) => answer(reply, self.prepare(kept)),
            Order::Boot(reply) => answer(reply, self.boot()),
            Order::Renew(ram, reply) => answer(reply, self.renew(ram)),
            Order::Load { epoch, feed } => self.load(epoch, &feed),
            Order::Restore { epoch, state, reply } => answer(reply, self.restore(epoch, &state)),
            Order::BeginPairing(pairing) => return self.begin_pairing(pairing),
            Order::EndPairing(reply) => {
                let result = self.end_pairing();
                answer(reply, ());
                return result;
            }
            Order::Declare(service, on_overload) => {
                (self.setup.service, self.setup.on_overload) = (service, on_overload);
            }
            Order::Freeze => return self.freeze(),
            Order::Thaw => return self.thaw(),
            Order::Room => match &mut self.mode {
                Work::Epochs(epochs) => {
                    epochs.room();
                    return self.work();
                }
                Work::Log(cutter) if cutter.is_starved() => return self.work(),
                _ => {}
            },
            Order::Output => match &mut self.mode {
                Work::Epochs(epochs) => epochs.output_waits(),
                Work::Log(cutter) => cutter.output_waits(),
                _ => {}
            },
            Order::Follow { held, state, applier } => self.follow(held, &state, &applier),
            Order::Feed { epoch, log, at } => {
                self.setup.replay.progress.taken(log.len() as u64);
                if let (Work::Following(follower), Some(vm)) = (&mut self.mode, &mut self.vm) {
                    follower.feed(vm, &self.setup, epoch, &log, at);
                }
            }
            Order::Verify { epoch } => {
                if let (Work::Following(follower), Some(vm)) = (&mut self.mode, &mut self.vm) {
                    follower.verify(vm, &self.setup, epoch);
                }
            }
            Order::Rehearse { pairing } => {
                if let (Work::Following(follower), Some(vm)) = (&mut self.mode, &mut self.vm) {
                    follower.rehearse(vm, &self.setup, pairing);
                }
            }
            Order::PressPowerButton => {
                let pressed = self.vm.as_ref().map_or(Ok(()), |vm| vm.machine.press_power_button());
                // The cord is pulled in time, whatever the button does.
                pressed.unwrap_or_else(|e| tracing::warn!("the guest's power button cannot be pressed: {e}"));
            }
            Order::ShowLinks(links) => {
                self.links = links;
                self.show_links();
            }
            Order::Announce => {
                self.is_vm = true;
                self.show_links();
                let asked = self.vm.as_ref().map_or(Ok(()), |vm| vm.machine.announce());
                // ftd announces it as well.
                asked.unwrap_or_else(|e| tracing::warn!("the guest cannot be asked to announce itself: {e}"));
            }
            Order::Settle(reply) => answer(reply, self.settle_executed()),
            Order::GoLive(reply) => answer(reply, self.go_live()),
            Order::Stop(reply) => {
                self.mode = Work::Quiet;
                let ram = self.vm.as_ref().map(|vm| vm.ram.clone());
                self.drop_machine();
                answer(reply, ram);
            }
        }
        Ok(())
    }

    /// Looks whether the guest has come to an end by itself. What a follower's guest does is the follower's to judge.
    fn poll_guest_end(&mut self) -> Result<(), KeepError> {
        match (&self.mode, &mut self.vm) {
            (Work::Following(_), _) | (_, None) => Ok(()),
            (_, Some(vm)) => Ok(vm.poll_end(&self.setup)?),
        }
    }

    fn work(&mut self) -> Result<(), KeepError> {
        if self.is_at_rest() {
            return Ok(());
        }
        let Some(vm) = &mut self.vm else { return Ok(()) };
        match &mut self.mode {
            Work::Quiet => Ok(()),
            Work::Copying(copying) => match copying.step(vm, &self.setup)? {
                CopyStep::Going => Ok(()),
                CopyStep::Converged => self.begin_epochs(),
                CopyStep::Broken => {
                    self.mode = Work::Quiet;
                    Ok(())
                }
            },
            Work::Epochs(epochs) => match epochs.look(vm, &self.setup)? {
                Looked::Captured if self.setup.replay.on => {
                    self.begin_log();
                    Ok(())
                }
                _ => Ok(()),
            },
            Work::Log(cutter) => cutter.cut(vm, &self.setup),
            Work::Following(follower) => {
                follower.look(vm, &self.setup);
                Ok(())
            }
        }
    }

    fn new_vm(&mut self) -> Result<&mut Vm, PrepareError> {
        self.mode = Work::Quiet;
        self.drop_machine();
        Ok(self.vm.insert(Vm::new(&self.setup)?))
    }

    fn drop_machine(&mut self) {
        (self.setup.attach)(None);
        self.vm = None;
        self.is_vm = false;
    }

    /// Has the cards of the VM that runs here tell of their links.
    fn show_links(&self) {
        let Some(vm) = self.vm.as_ref().filter(|_| self.is_vm) else { return };
        for (card, up) in (0..).zip(&self.links) {
            let shown = vm.machine.set_link(card, *up);
            shown.unwrap_or_else(|e| tracing::warn!("card {card} cannot tell the guest of its link: {e}"));
        }
    }

    fn prepare(&mut self, kept: Option<GuestRam>) -> Result<GuestRam, PrepareError> {
        match kept {
            Some(ram) => self.renew(ram.clone()).map(|()| ram),
            None => Ok(self.new_vm()?.ram.clone()),
        }
    }

    fn boot(&mut self) -> Result<(), StartGuestError> {
        // The machine before is gone with all that it had in hand: what is read of its disks now is what it wrote.
        self.new_vm()?;
        let (boot, origin) = self.setup.boot.resolve()?;
        if let Some(vm) = &mut self.vm {
            vm.machine.boot(&boot)?;
            self.setup.telemetry.booted(origin);
            vm.run(&self.setup)?;
        }
        Ok(())
    }

    fn renew(&mut self, ram: GuestRam) -> Result<(), PrepareError> {
        self.mode = Work::Quiet;
        self.drop_machine();
        self.vm = Some(Vm::over(ram, &self.setup)?);
        Ok(())
    }

    fn load(&mut self, epoch: u64, feed: &Feed) {
        let disks = self.settle_disks();
        let loaded = match (&mut self.vm, feed.sealed(epoch), disks) {
            (_, _, Err(why)) => Err(why.into()),
            (None, ..) => Err(RestoreError::NotPrepared),
            (_, None, _) => Err(RestoreError::NotHeld(epoch)),
            (Some(vm), Some((state, applier)), Ok(())) => {
                while applier.apply_next().is_some() {}
                vm.load(epoch, &state)
            }
        };
        self.setup.tell(match loaded {
            Ok(()) => KeeperNews::Verified { epoch },
            Err(why) => KeeperNews::LoadFailed(why),
        });
    }

    /// Waits until the machine's disks have, durably, what is sealed of them: as long as they come further with that.
    fn settle_disks(&self) -> Result<(), FollowError> {
        let Some(disks) = &self.setup.disks else { return Ok(()) };
        let moved = Cell::new((disks.follower().waiting(), Instant::now()));
        let is_late = || {
            self.setup.watchdog.round();
            let waiting = disks.follower().waiting();
            if moved.get().0 != waiting {
                moved.set((waiting, Instant::now()));
            }
            moved.get().1.elapsed() > LATE_AFTER
        };
        match disks.follower().carry_out(&is_late) {
            Err(FollowError::GivenUp) => Err(FollowError::Late(LATE_AFTER)),
            carried => carried,
        }
    }

    fn restore(&mut self, epoch: u64, state: &[u8]) -> Result<(), RestoreError> {
        self.settle_disks()?;
        self.vm.as_mut().ok_or(RestoreError::NotPrepared)?.restore(epoch, state, &self.setup)
    }

    fn begin_pairing(&mut self, pairing: Arc<Pairing>) -> Result<(), KeepError> {
        let vm = self.vm.as_mut().ok_or(KeepError::NoMachine)?;
        if let Some(copying) = Copying::begin(vm, &self.setup, pairing)? {
            self.mode = Work::Copying(Box::new(copying));
        }
        Ok(())
    }

    /// The copy has converged: the rest goes with the first checkpoint, and from its capture on output is held.
    fn begin_epochs(&mut self) -> Result<(), KeepError> {
        if let Work::Copying(copying) = std::mem::replace(&mut self.mode, Work::Quiet) {
            let ram_pages = self.vm.as_ref().map_or(0, |vm| vm.ram.pages());
            self.mode = Work::Epochs(Box::new(Epochs::begin(*copying, ram_pages, &self.setup)?));
        }
        self.work()
    }

    /// Replay mode: the first checkpoint is captured, the log goes on from it.
    fn begin_log(&mut self) {
        if let Work::Epochs(epochs) = std::mem::replace(&mut self.mode, Work::Quiet) {
            self.mode = Work::Log(Box::new(epochs.into_log()));
        }
    }

    fn end_pairing(&mut self) -> Result<(), KeepError> {
        let mode = std::mem::replace(&mut self.mode, Work::Quiet);
        let Some(vm) = &mut self.vm else { return Ok(()) };
        match mode {
            Work::Quiet => return Ok(()),
            // Nothing of a pairing of ours.
            Work::Following(follower) => {
                self.mode = Work::Following(follower);
                return Ok(());
            }
            Work::Log(cutter) => return cutter.finish(vm, &self.setup),
            Work::Copying(mut copying) => copying.let_run(vm)?,
            Work::Epochs(_) if vm.ended => {}
            Work::Epochs(mut epochs) => epochs.let_run(vm)?,
        }
        Ok(vm.machine.stop_dirty_log()?)
    }

    fn freeze(&mut self) -> Result<(), KeepError> {
        match &mut self.mode {
            Work::Epochs(epochs) => epochs.freeze(),
            Work::Log(cutter) => cutter.freeze(),
            _ => return Ok(()),
        }
        self.work()
    }

    fn thaw(&mut self) -> Result<(), KeepError> {
        match (&mut self.mode, &mut self.vm) {
            (_, Some(vm)) if vm.ended => Ok(()),
            (Work::Epochs(epochs), Some(vm)) => epochs.thaw(vm),
            (Work::Log(cutter), Some(vm)) => cutter.thaw(vm),
            _ => Ok(()),
        }
    }

    fn follow(&mut self, held: Held, state: &[u8], applier: &Applier) {
        let follower = match &mut self.vm {
            Some(vm) => Follower::start(vm, &self.setup, held, state, applier),
            None => Err(RestoreError::NotPrepared),
        };
        let follower =
            follower.unwrap_or_else(|why| Follower::failed(&self.setup, StateLoss::NotStarted(why)));
        self.mode = Work::Following(Box::new(follower));
    }

    /// Whether the images of the machine that follows have, durably, all that there is of the VM.
    fn settle_executed(&mut self) -> Result<(), GoLiveError> {
        let (Work::Following(follower), Some(vm)) = (&mut self.mode, &mut self.vm) else {
            return Err(GoLiveError::NotFollowing);
        };
        follower.must_be_settled(vm, &self.setup)
    }

    fn go_live(&mut self) -> Result<GoneLive, GoLiveError> {
        let (Work::Following(follower), Some(vm)) = (&mut self.mode, &mut self.vm) else {
            return Err(GoLiveError::NotFollowing);
        };
        let gone = follower.go_live(vm, &self.setup)?;
        self.mode = Work::Quiet;
        match &gone.ended {
            // It ended while nobody looked; now it is this node's to say so.
            Some(end) => {
                vm.ended = true;
                self.setup.tell(KeeperNews::GuestEnded(end.clone()));
            }
            None => vm.run(&self.setup)?,
        }
        Ok(gone)
    }
}

fn answer<T>(reply: OrderReply<T>, value: T) {
    // Nobody waits any more: the daemon is ending.
    let _ = reply.send(value);
}
