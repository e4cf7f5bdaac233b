//! The heir: the cell is its own, and what it sealed is to become a running VM. A restore that fails loses nothing: the
//! state is kept, and the heir tries again on a fresh machine, with growing pauses, for as long as it takes.
//!
//! In a switchover the cell goes on naming the former primary as standby until the VM runs here. So the one that still
//! holds the frozen VM takes it back by the cell when it is told of the failure, or hears nothing for too long; the
//! heir finds that in the cell, and follows.

use super::backup::Backup;
use super::command::{Command, Succession};
use super::core::{Core, Next};
use super::event::{ConnId, Event, Held, Micros};
use super::primary::Primary;
use super::request::{Leave, RequestRefusal};
use ft_arbiter::Cell;

/// The longest pause between two attempts, in intervals between two attempts at the arbiter.
const PAUSE_MAX: Micros = 25;

/// A node that owns the VM and does not run it yet.
#[derive(Clone, Debug)]
pub(super) struct Heir {
    /// The cell as we won it.
    cell: Cell,
    held: Held,
    succession: Succession,
    /// The connection to the former primary, if there is one.
    former: Option<ConnId>,
    step: Step,
    failures: u32,
    why: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The machine is taking the state.
    Resuming,
    /// It did not; the next attempt comes then.
    Resting { until: Micros },
}

impl Heir {
    /// Has won `cell`, and begins.
    pub(super) fn new(
        core: &mut Core,
        cell: Cell,
        held: Held,
        succession: Succession,
        former: Option<ConnId>,
    ) -> Self {
        // It may have been read as ours, rather than won: that is recorded before anything is done by it.
        core.act_on(cell.id, cell.generation);
        let mut heir =
            Self { cell, held, succession, former, step: Step::Resuming, failures: 0, why: String::new() };
        heir.resume(core);
        heir
    }

    fn resume(&mut self, core: &mut Core) {
        self.step = Step::Resuming;
        core.out.push(Command::TakeOver {
            epoch: self.held.epoch,
            generation: self.cell.generation,
            succession: self.succession,
        });
    }

    pub(super) fn on_event(&mut self, core: &mut Core, event: Event) -> Option<Next> {
        match event {
            Event::TookOver => {
                let (cell, former) = (self.cell.clone(), self.former.take());
                return Some(Next::Primary(match self.succession {
                    Succession::Failover => Primary::solo(cell, "took over"),
                    Succession::Switchover => Primary::confirming(cell, self.held.pairing, former),
                }));
            }
            Event::TakeOverFailed(why) => self.on_failure(core, why),
            Event::Tick => {
                if let Step::Resting { until } = self.step
                    && core.now >= until
                {
                    self.resume(core);
                }
            }
            Event::PeerGone { conn, .. } if self.former == Some(conn) => self.former = None,
            Event::PeerHello { conn, .. } => {
                core.out.push(Command::Refuse { conn, why: "the VM is still being restored here".into() });
            }
            Event::SwitchoverRequested { request, .. } => core.refuse(request, RequestRefusal::NotRunning),
            Event::StopRequested { request, vm: Leave::Move } => {
                core.refuse(request, RequestRefusal::NotRunning)
            }
            // Only the operator's word gives up what may be the last copy.
            Event::StopRequested { request, vm: Leave::PowerOff { .. } } => {
                core.leave(request);
                core.out.push(Command::Discard);
                let mut primary = Primary::solo(self.cell.clone(), "powered off while it was being restored");
                primary.shut_down(core, "powered off while it was being restored");
                return Some(Next::Primary(primary));
            }
            _ => {}
        }
        None
    }

    fn on_failure(&mut self, core: &mut Core, why: String) {
        self.failures += 1;
        let pause = core.policy.arbiter_retry_us * (1 << (self.failures - 1).min(16)).min(PAUSE_MAX);
        self.step = Step::Resting { until: core.now + pause };
        if let Some(conn) = self.former.take() {
            let why = format!("the VM cannot be resumed there: {why}");
            core.out.push(Command::SendBye { conn, why });
            core.drop_link(conn);
        }
        self.why = why;
    }

    /// Between two attempts it looks whether the VM went on elsewhere.
    pub(super) fn pursue(&mut self, core: &mut Core) {
        if matches!(self.step, Step::Resting { .. }) {
            core.arbiter.wait_until(core.now + core.policy.arbiter_retry_us);
            core.ask_read();
        }
    }

    pub(super) fn on_cell(&mut self, core: &mut Core, answer: Result<Option<Cell>, String>) -> Option<Next> {
        let cell = answer.ok()??;
        if cell.generation <= self.cell.generation {
            return None;
        }
        core.out.push(Command::Discard);
        Some(Next::Backup(Backup::new("the former primary took the VM back")))
    }

    pub(super) fn detail(&self) -> String {
        let Held { epoch, .. } = self.held;
        match self.failures {
            0 => format!("resuming the VM from epoch {epoch}"),
            1 => format!(
                "resuming the VM from epoch {epoch} failed, its state is kept; trying again: {}",
                self.why
            ),
            n => format!(
                "resuming the VM from epoch {epoch} failed {n} times, its state is kept; trying again: {}",
                self.why
            ),
        }
    }
}
