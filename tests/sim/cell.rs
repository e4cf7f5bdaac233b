//! The arbiter as the nodes see it: one cell, requests that arrive late or never, answers that are lost, also of
//! requests that are carried out afterwards.

use std::collections::BTreeMap;

use ft_arbiter::{ArbiterError, Cell, Outcome, Place, Trouble};
use ftd::role::{Event, Micros};
use nix::errno::Errno;
use rand::Rng;

use crate::model::{Ask, Input, Mutant, NAMES, Request};
use crate::stats::Count;
use crate::trace;
use crate::world::{Act, Hook, World};

/// Who set a generation.
#[derive(Clone, Debug)]
pub struct Entry {
    pub cell: Cell,
    pub node: usize,
    pub inc: u32,
}

/// The cell, all that it ever was, and what is on its way to it.
#[derive(Clone, Debug, Default)]
pub struct Arbiter {
    pub cell: Option<Cell>,
    pub log: BTreeMap<u64, Entry>,
    pub requests: Vec<Request>,
    pub down: [u32; 2],
    pub flaky: u32,
    pub slow_us: Micros,
}

fn trouble(at: &'static str, errno: Errno) -> ArbiterError {
    let trouble = Trouble::Storage { at, errno };
    ArbiterError { place: Place::File("/shared/vm.cell".into()), trouble }
}

impl World {
    /// A node asks the arbiter.
    pub fn ask(&mut self, n: usize, what: Ask) {
        let hook = if matches!(what, Ask::Read) { Hook::ReadSent } else { Hook::SetSent };
        let id = self.arbiter.requests.len();
        self.arbiter.requests.push(Request { node: n, inc: self.nodes[n].inc, what, pending: false });
        self.hook(hook);
        let down = self.arbiter.down[n] > 0;
        let flaky = self.arbiter.flaky > 0 && self.rng.random_bool(0.4);
        let is_read = matches!(self.arbiter.requests[id].what, Ask::Read);
        let timeout = self.knobs.failure_timeout_us;
        if !down && !flaky {
            let latency = self.arbiter_latency();
            self.arbiter.requests[id].pending = true;
            self.later(latency, Act::Arrive { id, answer: true });
            return;
        }
        if is_read {
            self.stats.add(Count::ReadFailed);
            let wait = if self.rng.random_bool(0.5) { 500 } else { timeout };
            self.answer_later(n, wait, Event::CellRead(Err(trouble("reaching it", Errno::EHOSTUNREACH))));
            return;
        }
        match self.rng.random_range(0..10) {
            0..3 => {
                self.stats.add(Count::CasNotAttempted);
                self.answer_later(
                    n,
                    500,
                    Event::CellSet(Outcome::NotAttempted(trouble("asking it", Errno::ECONNREFUSED))),
                );
                return;
            }
            // Never carried out, and nobody knows.
            3..5 => {}
            // Carried out, the answer lost; `down` only means that it was on its way before.
            5..8 => {
                self.arbiter.requests[id].pending = true;
                let latency = self.arbiter_latency();
                self.later(latency, Act::Arrive { id, answer: false });
            }
            // Carried out long after everybody has given up.
            _ => {
                self.stats.add(Count::CasLate);
                self.arbiter.requests[id].pending = true;
                let late = timeout + self.rng.random_range(0..800_000);
                self.later(late, Act::Arrive { id, answer: false });
            }
        }
        self.stats.add(Count::CasUnknown);
        let wait = self.rng.random_range(1_000..=timeout);
        self.answer_later(n, wait, Event::CellSet(Outcome::Unknown(trouble("asking it", Errno::ETIMEDOUT))));
    }

    fn arbiter_latency(&mut self) -> Micros {
        // Slow on the way there, or on the way back: then the answer is old.
        let slow = self.arbiter.slow_us;
        let slow = if slow > 0 && self.rng.random_bool(0.5) { self.rng.random_range(0..=slow) } else { 0 };
        self.knobs.arbiter_us / 4 + self.rng.random_range(0..=self.knobs.arbiter_us) + slow
    }

    fn answer_later(&mut self, n: usize, us: Micros, event: Event) {
        let inc = self.nodes[n].inc;
        self.later(us, Act::Answer { n, inc, event });
    }

    /// The answer comes back to the process that asked, if it still lives.
    pub fn answered(&mut self, n: usize, inc: u32, event: Event) {
        if self.nodes[n].inc != inc || !self.nodes[n].up {
            return;
        }
        let event = match (self.mutant, event) {
            (Some(Mutant::UnknownIsNotAttempted), Event::CellSet(Outcome::Unknown(why))) => {
                Event::CellSet(Outcome::NotAttempted(why))
            }
            (Some(Mutant::UnknownIsWon), Event::CellSet(Outcome::Unknown(why))) => {
                let wanted = self.arbiter.requests.iter().rev().find_map(|request| match &request.what {
                    Ask::Set { new, .. } if request.node == n => Some(new.clone()),
                    _ => None,
                });
                Event::CellSet(wanted.map_or(Outcome::Unknown(why), Outcome::Won))
            }
            (_, event) => event,
        };
        self.incoming(n, Input::Event(event));
    }

    /// A request reaches the arbiter and is carried out.
    pub fn arrive(&mut self, id: usize, answer: bool) {
        self.arbiter.requests[id].pending = false;
        let Request { node: n, inc, what, .. } = self.arbiter.requests[id].clone();
        let event = match what {
            Ask::Read => Event::CellRead(Ok(self.arbiter.cell.clone())),
            Ask::Set { expected, new } => {
                let found = self.arbiter.cell.as_ref().map(|cell| cell.generation);
                let wild = self.mutant == Some(Mutant::SetWithoutCompare);
                if found == expected || wild {
                    self.set_cell(n, inc, new.clone());
                    Event::CellSet(Outcome::Won(new))
                } else {
                    self.stats.add(Count::CasLost);
                    trace!(self, "arbiter refuses {}: expected {expected:?}, found {found:?}", NAMES[n]);
                    Event::CellSet(Outcome::Lost(self.arbiter.cell.clone()))
                }
            }
        };
        if answer {
            let latency = self.arbiter_latency();
            self.later(latency, Act::Answer { n, inc, event });
        }
    }

    fn set_cell(&mut self, node: usize, inc: u32, new: Cell) {
        trace!(self, "arbiter: {} sets {new:?}", NAMES[node]);
        self.stats.add(Count::CasWon);
        let before = self.arbiter.cell.replace(new.clone());
        let generation = new.generation;
        if generation != before.as_ref().map_or(0, |cell| cell.generation) + 1 {
            self.fail(format!("arbiter: generation {generation} follows {before:?}"));
        }
        if self.arbiter.log.insert(generation, Entry { cell: new.clone(), node, inc }).is_some() {
            self.fail(format!("arbiter: two winners of generation {generation}"));
        }
        if before.as_ref().is_some_and(|cell| cell.standby.is_some() && new.owner == cell.owner)
            && new.standby.is_none()
        {
            self.stats.add(Count::SoloGrants);
        }
        if new.owner.is_none() {
            self.truth.alive = false;
        }
        let dead = self.nodes[node].inc != inc || !self.nodes[node].up;
        let cause = match (dead, self.nodes[node].fresh) {
            (true, _) => "a dead process's request was carried out",
            (false, true) => "given up by the operator (--fresh)",
            (false, false) => "cell set",
        };
        self.check_copies(cause, dead || self.nodes[node].fresh);
        self.hook(Hook::CellSet);
    }
}
