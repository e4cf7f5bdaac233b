//! The arbiter: the cell, and at most one call of each node under way. A call may be left behind by its node, and be
//! carried out later.

use std::path::PathBuf;

use ft_arbiter::{ArbiterError, Cell, Outcome, Place, Standby, Trouble};
use ftd::role::{Event, Micros};

use crate::check::Claim;
use crate::mutant::Mutant;
use crate::world::{NAMES, World};

#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Read,
    Set { expected: Option<u64>, new: Cell },
}

/// A call under way.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub ask: Ask,
    pub asked_at: Micros,
    /// It does not return.
    pub hangs: bool,
    /// It was carried out, and this is on its way.
    pub answer: Option<Event>,
}

/// A compare-and-set for whose answer nobody waits any more.
#[derive(Clone, Debug)]
pub(crate) struct LateSet {
    pub node: usize,
    pub expected: Option<u64>,
    pub new: Cell,
}

/// How a call may fare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It fails, and nothing was done.
    Fails,
    /// It is carried out, and the answer is lost.
    AnswerLost,
    /// The answer is lost, and it may be carried out later.
    RequestDelayed,
    /// It hangs before it is carried out.
    HangsBefore,
    /// It hangs after it was carried out.
    HangsAfter,
}

impl Fate {
    pub const ALL: [Self; 5] =
        [Self::Fails, Self::AnswerLost, Self::RequestDelayed, Self::HangsBefore, Self::HangsAfter];
}

fn error() -> ArbiterError {
    ArbiterError { place: Place::File(PathBuf::from("cell")), trouble: Trouble::NoAnswer { seconds: 1 } }
}

impl World {
    pub fn ask_read(&mut self, n: usize) {
        self.nodes[n].call = Some(Call { ask: Ask::Read, asked_at: self.now, hangs: false, answer: None });
    }

    pub fn ask_set(&mut self, n: usize, expected: Option<u64>, new: Cell) {
        let ask = Ask::Set { expected, new };
        self.nodes[n].call = Some(Call { ask, asked_at: self.now, hangs: false, answer: None });
    }

    /// Carries a request out. Its answer.
    fn carry_out(&mut self, n: usize, ask: &Ask) -> Event {
        match ask {
            Ask::Read => Event::CellRead(Ok(self.cell.clone())),
            Ask::Set { expected, new } => Event::CellSet(self.set(n, *expected, new)),
        }
    }

    fn set(&mut self, n: usize, expected: Option<u64>, new: &Cell) -> Outcome {
        let Some(cell) = self.cell.as_ref().filter(|cell| Some(cell.generation) == expected) else {
            return Outcome::Lost(self.cell.clone());
        };
        assert_eq!((cell.id, cell.generation + 1), (new.id, new.generation), "there is one cell");
        if self.newest.is_some() {
            if new.generation <= self.nodes[n].acted {
                let text = format!("{} sets {new}, and has acted on {:x}", NAMES[n], self.nodes[n].acted);
                self.fail(Claim::NeverBack, text);
            }
            // The node knew of nothing newer: two copies of the cell have gone on.
            self.known.forked = true;
        }
        self.before = self.cell.replace(new.clone());
        self.known.note_set(new);
        Outcome::Won(new.clone())
    }

    /// The call of a node returns, after it was carried out if it was not.
    pub fn answer(&mut self, n: usize) {
        let Some(call) = self.nodes[n].call.take() else { return };
        let event = match call.answer {
            Some(event) => event,
            None => self.carry_out(n, &call.ask),
        };
        self.told(n, call.asked_at, event);
    }

    fn told(&mut self, n: usize, asked_at: Micros, event: Event) {
        let cell = match &event {
            Event::CellRead(Ok(cell)) | Event::CellSet(Outcome::Lost(cell)) => Some(cell.clone()),
            Event::CellSet(Outcome::Won(cell)) => Some(Some(cell.clone())),
            _ => None,
        };
        if let Some(cell) = cell {
            // What went back is not believed.
            let known = |cell: &Option<Cell>| cell.as_ref().map_or(0, |cell| cell.generation);
            if self.nodes[n].read.as_ref().is_none_or(|(_, before)| known(before) <= known(&cell)) {
                self.nodes[n].read = Some((asked_at, cell));
            }
        }
        let event = self.misread(n, event);
        self.feed(n, event);
    }

    /// What mutants make of an answer.
    fn misread(&self, n: usize, event: Event) -> Event {
        let asked = |generation: u64| self.nodes[n].acted.max(generation);
        match (self.mutant, event) {
            (Some(Mutant::UnknownIsNotAttempted), Event::CellSet(Outcome::Unknown(error))) => {
                Event::CellSet(Outcome::NotAttempted(error))
            }
            // A cell that went back counts as one that somebody else has taken.
            (Some(Mutant::WentBackIsLost), Event::CellRead(Ok(Some(mut cell)))) if self.newest.is_some() => {
                cell.generation = asked(cell.generation) + 1;
                Event::CellRead(Ok(Some(cell)))
            }
            // The cell names whatever this node has sealed.
            (Some(Mutant::ContestsUnnamed), Event::CellRead(Ok(Some(mut cell)))) => {
                if let Some(image) = self.nodes[n].image {
                    cell.standby = Some(Standby { node: NAMES[n].into(), pairing: image.held.pairing });
                }
                Event::CellRead(Ok(Some(cell)))
            }
            (_, event) => event,
        }
    }

    /// Lets the call of a node fare as it may. False: it is no other than without.
    pub fn befall(&mut self, n: usize, fate: Fate) -> bool {
        let Some(mut call) = self.nodes[n].call.take() else { return false };
        let lost = |world: &mut Self, call: &Call| match (&call.ask, world.mutant) {
            (Ask::Set { new, .. }, Some(Mutant::UnknownIsWon)) => Event::CellSet(Outcome::Won(new.clone())),
            (Ask::Set { .. }, _) => Event::CellSet(Outcome::Unknown(error())),
            (Ask::Read, _) => Event::CellRead(Err(error())),
        };
        let is_set = matches!(call.ask, Ask::Set { .. });
        match fate {
            Fate::Fails => {
                let event = match is_set {
                    true => Event::CellSet(Outcome::NotAttempted(error())),
                    false => Event::CellRead(Err(error())),
                };
                self.told(n, call.asked_at, event);
            }
            // A read whose answer is lost is one that fails.
            Fate::AnswerLost | Fate::RequestDelayed if !is_set => return false,
            Fate::AnswerLost => {
                self.carry_out(n, &call.ask);
                let event = lost(self, &call);
                self.told(n, call.asked_at, event);
            }
            Fate::RequestDelayed => {
                let event = lost(self, &call);
                self.leave(n, call.clone());
                self.told(n, call.asked_at, event);
            }
            Fate::HangsBefore => {
                call.hangs = true;
                self.nodes[n].call = Some(call);
            }
            Fate::HangsAfter => {
                call.answer = Some(self.carry_out(n, &call.ask));
                call.hangs = true;
                self.nodes[n].call = Some(call);
            }
        }
        true
    }

    /// The node waits no longer: nobody is told what becomes of the call.
    pub fn leave_call(&mut self, n: usize) {
        let Some(call) = self.nodes[n].call.take() else { return };
        let event = match call.ask {
            Ask::Read => Event::CellRead(Err(error())),
            Ask::Set { .. } => Event::CellSet(Outcome::Unknown(error())),
        };
        self.leave(n, call);
        let event = self.misread(n, event);
        self.nodes[n].own.push_back(event);
    }

    pub fn leave(&mut self, node: usize, call: Call) {
        if let Call { ask: Ask::Set { expected, new }, answer: None, .. } = call {
            self.late.push(LateSet { node, expected, new });
        }
    }

    /// What was left behind is carried out after all.
    pub fn carry_out_late(&mut self, at: usize) {
        let LateSet { node, expected, new } = self.late.remove(at);
        let _ = self.set(node, expected, &new);
        // It may name a process as the only one that goes on, and that process is no more.
        self.check_copies("a request of a process that was killed was carried out", true);
    }

    /// What cannot be carried out any more is forgotten.
    pub fn forget_vain(&mut self) {
        let generation = self.cell.as_ref().map(|cell| cell.generation);
        let hidden = self.newest.as_ref().map(|cell| cell.generation);
        self.late.retain(|late| late.expected == generation || late.expected == hidden);
    }

    /// The compare-and-sets that may yet be carried out.
    pub fn may_be_set(&self) -> impl Iterator<Item = (usize, &Cell)> {
        let next = self.truth_cell().map_or(1, |cell| cell.generation + 1);
        let under_way = self.nodes.iter().enumerate().filter_map(|(n, host)| match &host.call {
            Some(Call { ask: Ask::Set { new, .. }, answer: None, .. }) => Some((n, new)),
            _ => None,
        });
        let late = self.late.iter().map(|late| (late.node, &late.new));
        under_way.chain(late).filter(move |(_, new)| new.generation == next)
    }
}
