//! Replay mode's backup: a machine of its own that stands on the received checkpoint and executes the sealed log a little
//! behind the primary. Lag is the age of the oldest log that is not executed to its end.
//!
//! A backup that does not execute what the primary executed, for whatever reason, has nothing to go on from: it says so,
//! and asks for nothing any more.

use super::Input;
use super::checkpointer::{Setup, Vm};
use crate::role::{ConnId, Event, GuestEnd};
use ft_checkpoint::backlog::Applier;
use ft_checkpoint::wire::message::Position;
use ft_vm::machine::MachineEvent;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How often the position is looked at while there is something to execute.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// A machine that does not come to the end of its log, and to no instruction further in this time, never will.
const STUCK_AFTER: Duration = Duration::from_secs(5);
/// While the end of the log is waited for, the rest is looked at this often.
const PATIENCE_STEP: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Default)]
pub(super) struct Follower {
    /// What is not executed to its end, oldest first.
    fed: VecDeque<Fed>,
    pending_bytes: u64,
    /// The hand-over to tell of when all is executed.
    handed_over: Option<(ConnId, u64)>,
    /// The guest came to its end as the log says.
    ended: Option<GuestEnd>,
    /// It has been said that the state is of no use.
    lost: bool,
}

struct Fed {
    cut: u64,
    bytes: u64,
    at: Instant,
}

/// What a take-over found.
pub struct GoneLive {
    /// Epochs of log that were still to be executed.
    pub pending: u64,
    /// The guest had come to its end.
    pub ended: Option<GuestEnd>,
}

impl Follower {
    /// Starts to execute from a sealed checkpoint: its pages are applied, its state restored.
    pub(super) fn start(vm: &mut Vm, state: &[u8], applier: &Applier) -> Result<Self, String> {
        while applier.apply_next().is_some() {}
        vm.machine.restore(state).map_err(|e| e.to_string())?;
        vm.machine.start_replaying().map_err(|e| e.to_string())?;
        vm.machine.resume().map_err(|e| e.to_string())?;
        Ok(Self::default())
    }

    /// One that could not start: its state is lost from the beginning.
    pub(super) fn failed(setup: &Setup, why: String) -> Self {
        let mut follower = Self::default();
        follower.lose(setup, why);
        follower
    }

    /// When there is something to look at.
    pub(super) fn wait_limit(&self, calm: Duration) -> Duration {
        if self.fed.is_empty() && self.handed_over.is_none() { calm } else { LOOK_INTERVAL }
    }

    /// The log of one more epoch.
    pub(super) fn feed(&mut self, vm: &mut Vm, setup: &Setup, log: &[u8], at: Instant) {
        if self.lost {
            return;
        }
        if let Err(e) = vm.machine.feed_log(log) {
            return self.lose(setup, format!("the primary's log is refused: {e}"));
        }
        let bytes = log.len() as u64;
        self.fed.push_back(Fed { cut: vm.machine.replay_position().fed, bytes, at });
        self.pending_bytes += bytes;
        self.look(vm, setup);
    }

    /// Tells of the hand-over when everything is executed.
    pub(super) fn hand_over(&mut self, vm: &mut Vm, setup: &Setup, conn: ConnId, epoch: u64) {
        self.handed_over = Some((conn, epoch));
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
        let lag_us = self.fed.front().map_or(0, |fed| fed.at.elapsed().as_micros() as u64);
        setup.replay.progress.set(Position { count, lag_us, pending_bytes: self.pending_bytes });
        if self.fed.is_empty()
            && !self.lost
            && let Some((conn, epoch)) = self.handed_over.take()
        {
            let _ = setup.inputs.send(Input::Event(Event::HandedOver { conn, epoch }));
        }
    }

    fn listen(&mut self, vm: &mut Vm, setup: &Setup) {
        while let Ok(event) = vm.machine.events().try_recv() {
            match event {
                MachineEvent::Diverged { count, what } if !self.lost => {
                    self.lost = true;
                    let _ = setup.inputs.send(Input::Diverged { count, what });
                }
                MachineEvent::Diverged { .. } => {}
                MachineEvent::PoweredOff => self.ended = Some(GuestEnd::PoweredOff),
                MachineEvent::Reset => self.ended = Some(GuestEnd::Reset),
                MachineEvent::Crashed { vcpu, why } => {
                    self.ended = Some(GuestEnd::Crashed(format!("vCPU {vcpu}: {why}")));
                }
            }
        }
    }

    fn lose(&mut self, setup: &Setup, why: String) {
        if !std::mem::replace(&mut self.lost, true) {
            let _ = setup.inputs.send(Input::Event(Event::StateLost(why)));
        }
    }

    /// Executes all that is held, and makes the machine one like any other. It is paused then.
    pub(super) fn go_live(&mut self, vm: &mut Vm, setup: &Setup) -> Result<GoneLive, String> {
        self.look(vm, setup);
        let pending = self.fed.len() as u64;
        let (mut count, mut moved_at) = (vm.machine.replay_position().count, Instant::now());
        while !self.lost && !vm.machine.wait_replayed(PATIENCE_STEP).map_err(|e| e.to_string())? {
            setup.watchdog.round();
            self.look(vm, setup);
            let now = vm.machine.replay_position().count;
            if now != count {
                (count, moved_at) = (now, Instant::now());
            } else if moved_at.elapsed() > STUCK_AFTER {
                return Err(format!("the log is not executed beyond instruction {count}"));
            }
        }
        self.look(vm, setup);
        if self.lost {
            return Err("what was executed here is not what the primary executed".into());
        }
        vm.machine.pause().map_err(|e| e.to_string())?;
        self.listen(vm, setup);
        vm.machine.go_live().map_err(|e| e.to_string())?;
        Ok(GoneLive { pending, ended: self.ended.take() })
    }
}
