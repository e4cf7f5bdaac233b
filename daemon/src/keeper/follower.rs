//! Replay mode's backup: a machine of its own that starts from the received checkpoint and executes the sealed log a
//! little behind the primary. Lag is the age of the oldest log that is not executed to its end.
//!
//! A backup that diverges from the primary, for any reason, holds no state to resume. It reports that once and asks for
//! nothing more.

use super::error::{GoLiveError, RestoreError, StateLoss};
use super::news::KeeperNews;
use super::order::GoneLive;
use super::setup::Setup;
use super::vm::{Vm, end_of};
use crate::disks::Tapped;
use crate::role::GuestEnd;
use ft_checkpoint::backlog::Applier;
use ft_checkpoint::wire::message::{Held, Position};
use ft_vm::machine::MachineError;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How often the position is looked at while there is something to execute.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// A machine that does not come to the end of its log, and to no instruction further in this time, never will.
const STUCK_AFTER: Duration = Duration::from_secs(5);
/// So much of it passes between two looks at most: while the process was not run, the machine was not either.
const LOOK_MAX: Duration = Duration::from_millis(20);

/// See the module.
#[derive(Default)]
pub(super) struct Follower {
    /// The machine changes the images of its disks itself, for as long as this is here.
    _tapped: Option<Tapped>,
    /// Epochs of which the images may lack something, and where each ends. The oldest first.
    unsettled: VecDeque<(u64, u64)>,
    /// What is not executed to its end, oldest first.
    fed: VecDeque<Fed>,
    pending_bytes: u64,
    /// What is to be verified: all of it is to be executed.
    verifying: Option<Verifying>,
    /// A rehearsal that was asked for: its pairing, and the instruction that shows it.
    rehearsing: Option<(u64, u64)>,
    /// Epochs of log that were still to be executed when that was asked.
    pending: u64,
    /// The guest came to its end as the log says.
    ended: Option<GuestEnd>,
    /// It has been said that the state is of no use.
    lost: bool,
}

struct Verifying {
    epoch: u64,
    stillness: Stillness,
}

/// For how long a machine has been seen at the same instruction.
struct Stillness {
    count: u64,
    seen_at: Instant,
    still: Duration,
}

impl Stillness {
    fn begin(count: u64, now: Instant) -> Self {
        Self { count, seen_at: now, still: Duration::ZERO }
    }

    /// The machine is there now. Whether it is stuck.
    fn look(&mut self, count: u64, now: Instant) -> bool {
        if self.count != count {
            *self = Self::begin(count, now);
        }
        self.still += now.saturating_duration_since(self.seen_at).min(LOOK_MAX);
        self.seen_at = now;
        self.still > STUCK_AFTER
    }
}

struct Fed {
    cut: u64,
    bytes: u64,
    at: Instant,
}

impl Follower {
    /// Starts to execute from a sealed checkpoint: its pages are applied, its state restored.
    pub(super) fn start(
        vm: &mut Vm,
        setup: &Setup,
        held: Held,
        state: &[u8],
        applier: &Applier,
    ) -> Result<Self, RestoreError> {
        while applier.apply_next().is_some() {}
        let tapped = setup.disks.as_ref().map(|disks| {
            disks.plug(Some(&vm.machine));
            disks.tap().execute(held.epoch + 1)
        });
        vm.machine.restore(state)?;
        vm.machine.start_replaying()?;
        vm.machine.resume()?;
        Ok(Self { _tapped: tapped, ..Self::default() })
    }

    /// One that could not start: its state is lost from the beginning.
    pub(super) fn failed(setup: &Setup, why: StateLoss) -> Self {
        let mut follower = Self::default();
        follower.lose(setup, why);
        follower
    }

    /// When there is something to look at.
    pub(super) fn wait_limit(&self, calm: Duration) -> Duration {
        let waits = !self.fed.is_empty() || self.verifying.is_some() || self.rehearsing.is_some();
        if waits { LOOK_INTERVAL } else { calm }
    }

    /// The log of one more epoch.
    pub(super) fn feed(&mut self, vm: &mut Vm, setup: &Setup, epoch: u64, log: &[u8], at: Instant) {
        if self.lost {
            return;
        }
        if let Some(disks) = &setup.disks {
            // Before the machine shows its guest anything of it.
            disks.tap().runs(epoch);
        }
        if let Err(e) = vm.machine.feed_log(log) {
            return self.lose(setup, StateLoss::LogRefused(e));
        }
        let (bytes, cut) = (log.len() as u64, vm.machine.replay_position().fed);
        self.fed.push_back(Fed { cut, bytes, at });
        if setup.disks.is_some() {
            self.unsettled.push_back((epoch, cut));
        }
        self.pending_bytes += bytes;
        self.look(vm, setup);
    }

    /// Says so when everything is executed, and durable where it concerns disks, unless that shows that the state is
    /// lost.
    pub(super) fn verify(&mut self, vm: &mut Vm, setup: &Setup, epoch: u64) {
        self.pending = self.fed.len() as u64;
        let count = vm.machine.replay_position().count;
        self.verifying = Some(Verifying { epoch, stillness: Stillness::begin(count, Instant::now()) });
        self.look(vm, setup);
    }

    /// Says so when the machine has executed all that is fed to it by now. It took the checkpoint, it runs, and every
    /// digest on the way agreed: no scratch machine could show more.
    pub(super) fn rehearse(&mut self, vm: &mut Vm, setup: &Setup, pairing: u64) {
        self.rehearsing = Some((pairing, self.fed.back().map_or(0, |fed| fed.cut)));
        self.look(vm, setup);
    }

    /// Looks how far the machine has come, and what it says.
    pub(super) fn look(&mut self, vm: &mut Vm, setup: &Setup) {
        self.listen(vm, setup);
        let count = vm.machine.replay_position().count;
        while let Some(fed) = self.fed.front()
            && fed.cut <= count
        {
            self.pending_bytes -= fed.bytes;
            self.fed.pop_front();
        }
        if let Some((pairing, _)) = self.rehearsing.take_if(|(_, shown_at)| *shown_at <= count && !self.lost)
        {
            setup.tell(KeeperNews::Rehearsed { pairing });
        }
        let lag_us = self.fed.front().map_or(0, |fed| fed.at.elapsed().as_micros() as u64);
        setup.replay.progress.set(Position { count, lag_us, pending_bytes: self.pending_bytes });
        let is_executed = self.is_executed(vm);
        self.tell_executed(setup, count, is_executed);
        if self.lost {
            self.verifying = None;
        }
        if let Some(Verifying { stillness, .. }) = &mut self.verifying {
            // A disk of this host that takes its time, or fails, is waited for.
            let waits = is_executed || vm.machine.awaits_disk();
            if waits {
                *stillness = Stillness::begin(count, Instant::now());
            } else if stillness.look(count, Instant::now()) {
                self.lose(setup, StateLoss::Stuck { count });
            }
        }
        if is_executed && let Some(Verifying { epoch, .. }) = self.verifying.take_if(|_| is_settled(setup)) {
            setup.tell(KeeperNews::Verified { epoch });
        }
    }

    /// Tells how far the machine has executed to who makes that durable.
    fn tell_executed(&mut self, setup: &Setup, count: u64, is_executed: bool) {
        let Some(executed) = setup.disks.as_ref().and_then(|disks| disks.executed()) else { return };
        // At the very count of a cut the guest may have to be shown more of what the log has there.
        while let Some((epoch, cut)) = self.unsettled.front()
            && (*cut < count || is_executed)
            && !self.lost
        {
            executed.through(*epoch);
            self.unsettled.pop_front();
        }
    }

    /// Whether the machine has come to the end of its log, or the guest to its own.
    fn is_executed(&self, vm: &Vm) -> bool {
        !self.lost
            && self.fed.is_empty()
            && match vm.machine.wait_replayed(Duration::ZERO) {
                Ok(executed) => executed,
                Err(_) => self.has_crashed(),
            }
    }

    fn has_crashed(&self) -> bool {
        matches!(self.ended, Some(GuestEnd::Crashed(_)))
    }

    fn listen(&mut self, vm: &mut Vm, setup: &Setup) {
        while let Some(event) = vm.machine.next_event() {
            match end_of(event, setup) {
                Ok(end) => self.ended = end.or(self.ended.take()),
                Err(MachineError::Diverged { count, what }) => {
                    self.lose(setup, StateLoss::Diverged { count, what });
                }
                Err(why) => self.lose(setup, StateLoss::MachineFailed(why)),
            }
        }
    }

    fn lose(&mut self, setup: &Setup, why: StateLoss) {
        if !std::mem::replace(&mut self.lost, true) {
            setup.tell(KeeperNews::StateLost(why));
        }
    }

    /// All that is held is to be executed.
    fn must_be_executed(&mut self, vm: &mut Vm, setup: &Setup) -> Result<(), GoLiveError> {
        self.look(vm, setup);
        match self.lost {
            true => Err(GoLiveError::Lost),
            false if self.is_executed(vm) => Ok(()),
            false => Err(GoLiveError::Unexecuted { end: vm.machine.replay_position().fed }),
        }
    }

    /// All that is held is to be executed, and the images of the machine's disks are to have that, durably.
    pub(super) fn must_be_settled(&mut self, vm: &mut Vm, setup: &Setup) -> Result<(), GoLiveError> {
        self.must_be_executed(vm, setup)?;
        if is_settled(setup) { Ok(()) } else { Err(GoLiveError::Unsettled) }
    }

    /// All that is held is executed: makes the machine one like any other. It is paused then.
    pub(super) fn go_live(&mut self, vm: &mut Vm, setup: &Setup) -> Result<GoneLive, GoLiveError> {
        self.must_be_executed(vm, setup)?;
        if !self.has_crashed() {
            vm.machine.pause()?;
            self.listen(vm, setup);
            vm.machine.go_live()?;
        }
        Ok(GoneLive { pending: self.pending, ended: self.ended.take() })
    }
}

/// Whether the images of the machine's disks have, durably, what it has executed.
fn is_settled(setup: &Setup) -> bool {
    let executed = setup.disks.as_ref().and_then(|disks| disks.executed());
    executed.is_none_or(|executed| executed.is_settled())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_stuck_when_it_was_looked_at_for_long_enough_and_not_when_nobody_ran() {
        let began = Instant::now();
        let mut machine = Stillness::begin(7, began);
        assert!(!machine.look(7, began + Duration::from_secs(3600)), "the process was stopped");
        let mut now = began + Duration::from_secs(3600);
        let mut looks = |count: u64, many: u32| {
            (0..many).any(|_| {
                now += LOOK_INTERVAL;
                machine.look(count, now)
            })
        };
        assert!(!looks(7, 4_900));
        assert!(!looks(8, 4_900), "it has moved");
        assert!(looks(8, 200));
    }
}
