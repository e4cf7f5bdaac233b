//! The truth that no node knows, and the claims that are checked against it in every state and at every step.

use std::collections::VecDeque;

use ft_arbiter::Cell;
use ftd::role::{Role, State};

use crate::moves::Move;
use crate::mutant::Mutant;
use crate::world::{Host, NAMES, Port, World};

/// A claim that holds always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// I1: whoever may come to go on with the VM holds everything that has left it.
    Covered,
    /// I2: a frame leaves only from the newest run of the VM, on the node that the cell names; no two nodes may emit at
    /// once.
    OneSpeaks,
    /// I3: what a node goes on from is the sealed state that the cell named, and the world has seen nothing newer.
    Continues,
    /// I9: protected is said only while the backup has read the cell that names it, with a state that was rehearsed,
    /// and no request to be alone is in doubt.
    Proven,
    /// I10: the last copy is given up for a cause from outside only, and nobody boots over one.
    KeepsCopies,
    /// I11: nobody acts on a cell that went back.
    NeverBack,
    /// If nothing more goes wrong, the pair is protected again within a bounded number of moves.
    Heals,
}

impl Claim {
    pub fn name(self) -> &'static str {
        match self {
            Self::Covered => "I1: covered",
            Self::OneSpeaks => "I2: one speaks",
            Self::Continues => "I3: continues",
            Self::Proven => "I9: proven",
            Self::KeepsCopies => "I10: keeps copies",
            Self::NeverBack => "I11: never back",
            Self::Heals => "heals",
        }
    }
}

/// What is known from outside.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// The highest counter that has left in this life of the VM.
    shown: u64,
    /// The highest counter sealed, by pairing.
    sealed: Vec<(u64, u64)>,
    /// Nodes, and the pairings that were tried there.
    rehearsed: Vec<(usize, u64)>,
    /// A VM was booted and has not been lost.
    pub alive: bool,
    /// Why no copy of the state is left.
    pub lost: Option<&'static str>,
    /// An older copy of the cell and the cell itself have both gone on.
    pub forked: bool,
    /// The last cells, oldest first.
    log: VecDeque<Cell>,
}

impl Known {
    pub fn note_sealed(&mut self, pairing: u64, counter: u64) {
        match self.sealed.iter_mut().find(|(known, _)| *known == pairing) {
            Some((_, sealed)) => *sealed = (*sealed).max(counter),
            None => self.sealed.push((pairing, counter)),
        }
    }

    pub fn note_rehearsed(&mut self, n: usize, pairing: u64) {
        if !self.rehearsed.contains(&(n, pairing)) {
            self.rehearsed.push((n, pairing));
        }
    }

    pub fn note_set(&mut self, cell: &Cell) {
        self.log.push_back(cell.clone());
        if self.log.len() > 3 {
            self.log.pop_front();
        }
    }

    pub fn begin_life(&mut self, counter: u64) {
        (self.shown, self.alive, self.lost) = (counter - 1, true, None);
    }

    fn sealed(&self, pairing: u64) -> Option<u64> {
        self.sealed.iter().find(|(known, _)| *known == pairing).map(|(_, counter)| *counter)
    }
}

impl World {
    pub fn fail(&mut self, claim: Claim, text: String) {
        // Two copies of the cell that have both gone on name two owners, and nothing follows from that.
        if !self.known.forked {
            self.violation.get_or_insert((claim, text));
        }
    }

    /// The pairings that the cell names, or may come to name by a request under way.
    fn exposed(&self) -> Vec<u64> {
        let named = self.truth_cell().and_then(|cell| cell.standby.as_ref()).map(|standby| standby.pairing);
        let asked = self.may_be_set().filter_map(|(_, new)| Some(new.standby.as_ref()?.pairing));
        named.into_iter().chain(asked).collect()
    }

    /// Everything up to this counter leaves node `n`.
    pub fn emit(&mut self, n: usize, counter: u64) {
        let name = NAMES[n];
        if !self.nodes[n].guest.as_ref().is_some_and(|guest| guest.is_newest) {
            self.fail(Claim::OneSpeaks, format!("{name} emits, and another run of the VM began since"));
        }
        if self.owner() != Some(n) {
            self.fail(Claim::OneSpeaks, format!("{name} emits, the cell says {:?}", self.cell));
        }
        for pairing in self.exposed() {
            if self.known.sealed(pairing).is_none_or(|sealed| sealed < counter) {
                self.fail(Claim::Covered, format!("{name} emits what pairing {pairing:x} has not sealed"));
            }
        }
        self.known.shown = self.known.shown.max(counter);
    }

    pub fn check_boot(&mut self, n: usize) {
        let is_alone = self.truth_cell().is_some_and(|cell| cell.standby.is_none());
        if self.owner() != Some(n) || !is_alone {
            self.fail(Claim::OneSpeaks, format!("{} boots, the cell says {:?}", NAMES[n], self.cell));
        }
        if self.known.alive {
            self.fail(Claim::KeepsCopies, format!("{} boots over a state that exists or existed", NAMES[n]));
        }
    }

    pub fn check_take_over(&mut self, n: usize, epoch: u64) {
        let name = NAMES[n];
        let log = &self.known.log;
        let won = log.iter().rposition(|cell| cell.owner.as_deref() == Some(name));
        let before = won.and_then(|won| won.checked_sub(1)).and_then(|at| log.get(at));
        let named = before.and_then(|cell| cell.standby.clone());
        let Some(seal) = self.nodes[n].seal() else {
            return self.fail(Claim::Continues, format!("{name} takes over with nothing sealed"));
        };
        if seal.held.epoch < epoch {
            self.fail(Claim::Continues, format!("{name} takes over at epoch {epoch:x} from {seal:?}"));
        }
        if named.is_none_or(|named| (named.node.as_str(), named.pairing) != (name, seal.held.pairing)) {
            self.fail(Claim::Continues, format!("{name} takes over with {seal:?}, the cell named another"));
        }
        if self.owner() == Some(n) {
            if seal.counter < self.known.shown {
                self.fail(Claim::Continues, format!("{name} resumes what the world has seen more of"));
            }
            self.known.lost = None;
        }
    }

    pub fn check_taken_back(&mut self, n: usize, counter: u64) {
        if counter < self.known.shown {
            self.fail(Claim::Continues, format!("{} takes back what the world has seen more of", NAMES[n]));
        }
        self.known.lost = None;
    }

    /// A backup is about to forget what it holds.
    pub fn check_discard(&mut self, n: usize) {
        let Some(image) = self.nodes[n].image else { return };
        if self.known.alive && self.exposed().contains(&image.held.pairing) {
            self.fail(Claim::KeepsCopies, format!("{} gives up what the cell names or may name", NAMES[n]));
        }
    }

    /// Whether some copy of the VM's state is left that may go on, by the cell.
    fn has_copy(&self) -> bool {
        let Some(cell) = self.truth_cell() else { return false };
        let holds = |n: usize, pairing: u64| {
            let host = &self.nodes[n];
            let seals = host.seal().is_some_and(|seal| seal.held.pairing == pairing);
            let stands = host.ships.as_ref().is_some_and(|ships| ships.pairing == pairing && ships.frozen);
            host.is_up() && (seals || host.guest.is_some() && stands)
        };
        let by_owner = self.owner().is_some_and(|owner| {
            let before = self.known.log.iter().rev().nth(1).and_then(|cell| cell.standby.as_ref());
            self.nodes[owner].guest.as_ref().is_some_and(|guest| guest.is_newest)
                || before.is_some_and(|named| named.node == NAMES[owner] && holds(owner, named.pairing))
        });
        let named = cell.standby.as_ref();
        by_owner
            || named.is_some_and(|named| (0..2).any(|n| named.node == NAMES[n] && holds(n, named.pairing)))
    }

    /// Something happened to a copy of the VM's state.
    pub fn check_copies(&mut self, cause: &'static str, from_outside: bool) {
        if !self.known.alive || self.known.lost.is_some() || self.has_copy() {
            return;
        }
        self.known.lost = Some(cause);
        if !from_outside {
            self.fail(Claim::KeepsCopies, format!("the last copy of the VM's state was given up: {cause}"));
        }
    }

    fn may_emit(&self, n: usize) -> bool {
        let Host { guest, ships, port, .. } = &self.nodes[n];
        let runs = guest.is_some() && !ships.as_ref().is_some_and(|ships| ships.frozen);
        runs && match port {
            Port::Mute => false,
            Port::Passing => true,
            Port::Holding { until } => self.now < *until,
        }
    }

    /// What must be so in every state.
    pub fn check_state(&mut self) {
        if self.may_emit(0) && self.may_emit(1) {
            self.fail(Claim::OneSpeaks, "both nodes may emit".into());
        }
        for (n, name) in NAMES.iter().enumerate() {
            if self.may_emit(n) && self.nodes[n].port == Port::Passing && self.owner() != Some(n) {
                let text = format!("the output of {name} passes, the cell says {:?}", self.cell);
                self.fail(Claim::OneSpeaks, text);
            }
            self.check_proof(n);
        }
        self.forget_old();
    }

    /// A node that says protected can have shown that.
    fn check_proof(&mut self, n: usize) {
        let host = &self.nodes[n];
        let Some(core) = host.core.as_ref().filter(|_| !host.frozen) else { return };
        let view = core.view();
        let proven = match view.state {
            State::Protected => true,
            State::Degraded => self.mutant == Some(Mutant::RejoinedIsProven) && view.lapses.is_empty(),
            _ => false,
        };
        if !proven || view.role != Role::Primary {
            return;
        }
        let (name, peer) = (NAMES[n], 1 - n);
        let read = self.nodes[peer].read.clone().and_then(|(_, cell)| cell);
        let named = read.and_then(|cell| Some((cell.generation, cell.standby?)));
        let Some((generation, standby)) = named.filter(|_| self.nodes[peer].is_up()) else {
            // It has died, or reads a cell that went back: the word of it is on its way, for as long as it counts.
            return;
        };
        if generation < view.generation {
            self.fail(Claim::Proven, format!("{name} says protected, the backup has read an older cell"));
        }
        if !self.known.rehearsed.contains(&(peer, standby.pairing)) {
            self.fail(Claim::Proven, format!("{name} says protected by what nobody has tried"));
        }
        let alone = |(node, new): (usize, &Cell)| node == n && new.owner.is_some() && new.standby.is_none();
        if self.may_be_set().any(alone) {
            self.fail(Claim::Proven, format!("{name} says protected, and may have asked to be alone"));
        }
    }

    /// What concerns no pairing that is left says nothing any more.
    fn forget_old(&mut self) {
        let mut live = self.exposed();
        live.extend(self.nodes.iter().filter_map(|host| Some(host.seal()?.held.pairing)));
        live.extend(self.nodes.iter().filter_map(|host| Some(host.ships.as_ref()?.pairing)));
        self.known.sealed.retain(|(pairing, _)| live.contains(pairing));
        self.known.rehearsed.retain(|(_, pairing)| live.contains(pairing));
    }

    /// Whether the pair is protected, as both nodes say.
    pub fn is_in_step(&self) -> bool {
        let says = |n: usize, role: Role| {
            self.nodes[n].core.as_ref().is_some_and(|core| {
                let view = core.view();
                view.role == role && view.state == State::Protected
            })
        };
        (0..2).any(|n| says(n, Role::Primary) && says(1 - n, Role::Backup))
    }

    /// Whether all is well again, or nothing but the operator's word is missing.
    pub fn is_healed(&self) -> bool {
        let is_whole = |host: &Host| host.guest.as_ref().is_none_or(|guest| guest.held.len() < 3);
        let is_well = self.is_in_step() && self.nodes.iter().all(is_whole);
        (is_well || self.waits_rightly()) && self.fair() == Move::Pass
    }

    /// Whether only the operator can help, for a right reason: no copy of the state is left.
    pub fn waits_rightly(&self) -> bool {
        let is_gone = !self.known.alive && self.owner().is_some() || self.known.lost.is_some();
        is_gone && self.nodes.iter().all(|host| host.guest.is_none())
    }
}
