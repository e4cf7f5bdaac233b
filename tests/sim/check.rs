//! The truth that no node knows, and the invariants checked against it at every step:
//!
//! - I1: while the cell names a standby, or a request to name one may still be carried out, a frame leaves only if a
//!   checkpoint sealed under that very pairing covers it; and the node that resumes the VM knows every frame that ever
//!   left.
//! - I2: a frame leaves only from the process that started the newest run of the VM, on the node that the cell names as
//!   owner at that instant. Since generations only grow, emitters are totally ordered by them.
//! - I3: a take-over resumes a complete checkpoint of the pairing that the cell named, by the process that won the
//!   cell, and none that has diverged.
//! - I9: a node that says protected has lately been answered by its arbiter, and a primary does so only when the
//!   backup's arbiter has shown the backup the generation that names it.
//!   It is said only when a machine of the backup has taken over that pairing's state, the last time that it tried, and
//!   while nothing may still make the primary a lone owner.
//! - I9 and I11: it is not said while what the node knows of the cell is not recorded durably.
//! - I11: no node sets a generation that it has acted on before, even if the cell was put back to an older copy, nor
//!   any generation of another cell.
//! - A generation that was told survives a crash of the storage, and has one winner.
//! - Nothing leaves a VM while its node could go on once more from an image of it on disk.
//! - A state that exists somewhere is never given up without a cause from outside, nor booted over without leave.

use ft_netbuf::Gate;
use ftd::role::{ConnId, Micros, Role, State};

use crate::arbiter::Entry;
use crate::model::{Desire, Exec, Frame, NAMES, Replication, index_of};
use crate::mutant::Mutant;
use crate::stats::Count;
use crate::trace;
use crate::world::World;

/// The truth.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    /// How often the VM was started: by a boot or a take-over.
    pub runs: u32,
    /// The highest counter that any frame of this life of the VM showed to the world.
    pub shown: u64,
    /// The highest counter sealed by pairing.
    pub sealed: Vec<(u64, u64)>,
    /// A VM was booted and has not been ended or given up.
    pub alive: bool,
    /// Why no copy of the state is left that could go on.
    pub lost: Option<String>,
    /// The newest birth time of a frame that left.
    pub newest_birth: u64,
    /// Nodes, and the pairings that a machine of theirs has shown to be good.
    pub rehearsed: Vec<(usize, u64)>,
    /// Processes that were killed.
    pub killed: Vec<(usize, u32)>,
}

impl Truth {
    pub fn newest_run(&self) -> Option<u32> {
        self.runs.checked_sub(1)
    }

    pub fn note_sealed(&mut self, pairing: u64, counter: u64) {
        match self.sealed.iter_mut().find(|(known, _)| *known == pairing) {
            Some((_, sealed)) => *sealed = (*sealed).max(counter),
            None => self.sealed.push((pairing, counter)),
        }
    }

    fn sealed(&self, pairing: u64) -> Option<u64> {
        self.sealed.iter().find(|(known, _)| *known == pairing).map(|(_, counter)| *counter)
    }
}

impl World {
    pub fn fail(&mut self, what: String) {
        trace!(self, "VIOLATION: {what}");
        if self.violation.is_none() {
            self.violation = Some(format!("{what} (at {} us)", self.now));
        }
    }

    /// The pairings that the cell names, or may come to name by a request under way.
    fn exposed(&self) -> Vec<u64> {
        let cell = self.arbiter.cell.as_ref();
        let generation = cell.map(|cell| cell.generation);
        let named = cell.and_then(|cell| cell.standby.as_ref()).map(|standby| standby.pairing);
        let next = generation.map_or(1, |generation| generation + 1);
        let asked = self.arbiter.may_be_set(|n, inc| self.lives(n, inc)).filter(|new| new.generation == next);
        named.into_iter().chain(asked.filter_map(|new| Some(new.standby.as_ref()?.pairing))).collect()
    }

    /// A frame leaves node `n`.
    pub fn emit(&mut self, n: usize, frame: Frame) {
        trace!(self, "{} EMITS {frame:?}", NAMES[n]);
        self.stats.add(Count::Frames);
        let newest = self.truth.newest_run();
        if newest != Some(frame.run) {
            self.fail(format!(
                "I2: {} emits a frame of run {}, but run {newest:?} began",
                NAMES[n], frame.run
            ));
        }
        if self.owner() != Some(n) {
            self.fail(format!("I2: {} emits, but the cell says {:?}", NAMES[n], self.arbiter.cell));
        }
        if self.image_fits(n) {
            let image = self.nodes[n].disk;
            self.fail(format!("I1: {} emits while it could go on from {image:?} once more", NAMES[n]));
        }
        for pairing in self.exposed() {
            if self.truth.sealed(pairing).is_none_or(|sealed| sealed < frame.counter) {
                self.fail(format!(
                    "I1: {} emits counter {}, standby of pairing {pairing:x} has sealed {:?}",
                    NAMES[n],
                    frame.counter,
                    self.truth.sealed(pairing)
                ));
            }
        }
        self.truth.shown = self.truth.shown.max(frame.counter);
        self.truth.newest_birth = self.truth.newest_birth.max(frame.born);
    }

    /// A node is about to boot the VM.
    pub fn check_boot(&mut self, n: usize) {
        self.stats.add(Count::Boots);
        let Some(cell) = self.arbiter.cell.clone() else {
            return self.fail(format!("{} boots over an empty cell", NAMES[n]));
        };
        if self.owner() != Some(n) || cell.standby.is_some() {
            self.fail(format!("I2: {} boots, the cell says {cell:?}", NAMES[n]));
        }
        let by_policy = self.may_boot_lost(n);
        if self.truth.alive && by_policy {
            self.stats.add(Count::BootedLost);
        }
        if self.truth.alive && !self.nodes[n].fresh && !by_policy {
            self.fail(format!("boots silently: {}, over a state that exists or existed", NAMES[n]));
        }
        if let Some(shelf) = self.image_given_up(n).filter(|_| !self.nodes[n].fresh && !self.nodes[n].may_end)
        {
            self.fail(format!("boots silently: {}, over {shelf:?} on its disk, which was good", NAMES[n]));
        }
        self.truth.runs += 1;
        self.truth.shown = 0;
        self.truth.alive = true;
        self.truth.lost = None;
    }

    /// Whether this node has been without the memory of its VM for as long as the configuration wants.
    pub fn may_boot_lost(&self, n: usize) -> bool {
        let (node, exec) = (&self.nodes[n], &self.nodes[n].exec);
        let bereft =
            exec.vm.is_none() && exec.image.is_none() && exec.sealed_off.is_none() && !self.image_fits(n);
        // By how much clocks drift.
        let long = |after: Micros| self.now >= node.bereft_since + after - after / 20;
        bereft && self.knobs.boot_lost_after_us.is_some_and(long)
    }

    /// A node is about to resume the VM from what it holds.
    pub fn check_take_over(&mut self, n: usize, epoch: u64) {
        self.stats.add(Count::TakeOvers);
        let name = NAMES[n];
        let inc = self.nodes[n].inc;
        if let Some(image) = self.nodes[n].exec.sealed_off.filter(|_| self.nodes[n].exec.from_disk) {
            return self.check_from_disk(n, image);
        }
        // The last that this process won: by now the cell may have been taken back.
        let owned =
            |entry: &Entry| (entry.node, entry.inc) == (n, inc) && entry.cell.owner.as_deref() == Some(name);
        let generation = self.arbiter.log.iter().rev().find(|(_, entry)| owned(entry)).map_or(0, |(g, _)| *g);
        let won = self.arbiter.log.get(&generation).cloned();
        let before = generation.checked_sub(1).and_then(|g| self.arbiter.log.get(&g)).cloned();
        let (Some(won), Some(before)) = (won, before) else {
            return self.fail(format!("I2: {name} takes over generation {generation}, which does not exist"));
        };
        if won.cell.owner.as_deref() != Some(name) || (won.node, won.inc) != (n, inc) {
            self.fail(format!("I2: {name} takes over generation {generation}, which is {won:?}"));
        }
        let Some(image) = self.nodes[n].exec.image.or(self.nodes[n].exec.sealed_off) else {
            return self.fail(format!("I3: {name} takes over with no sealed state"));
        };
        if self.nodes[n].exec.diverged {
            self.fail(format!("I3: {name} won the cell with {image:?}, which has diverged"));
        }
        if !image.complete || image.epoch < epoch {
            self.fail(format!("I3: {name} takes over at epoch {epoch} from {image:?}"));
        }
        let named = before.cell.standby.as_ref().map(|s| (s.node.as_str(), s.pairing));
        // The operator takes what is held here for what a host had that is gone for good. A peer that took the VM back
        // meanwhile may have spoken since: an older copy is the VM's state no more, whatever became of the newer one.
        if self.nodes[n].fresh {
            if self.owner() == Some(n) {
                self.truth.lost = None;
            }
            return;
        }
        if named != Some((name, image.pairing)) {
            self.fail(format!("I3: {name} takes over with {image:?}, the cell named {named:?}"));
        }
        // What was taken back meanwhile never speaks from here.
        if image.counter < self.truth.shown && self.owner() == Some(n) {
            self.fail(format!(
                "I1: {name} resumes from counter {}, the world has seen {}",
                image.counter, self.truth.shown
            ));
        }
        if won.cell.standby.is_some() && self.nodes[n].exec.refused == Some(image.epoch) {
            self.fail(format!("I3: {name} won the cell with {image:?}, which its machine refused"));
        }
        // It was given up for lost before a request under way came to name this copy.
        if self.owner() == Some(n) {
            self.truth.lost = None;
        }
    }

    /// A node goes on with a VM that it has handed over.
    pub fn check_taken_back(&mut self, n: usize, counter: u64) {
        if counter < self.truth.shown {
            let shown = self.truth.shown;
            self.fail(format!("I1: {} takes counter {counter} back, the world has seen {shown}", NAMES[n]));
        }
        // It was given up for lost while the cell named another, by a claim that a crash of the storage undid.
        self.truth.lost = None;
        self.truth.runs += 1;
    }

    /// A backup is about to forget what it holds.
    pub fn check_discard(&mut self, n: usize) {
        let Some(image) = self.nodes[n].exec.image.filter(|_| !self.nodes[n].exec.diverged) else { return };
        if self.truth.alive && self.exposed().contains(&image.pairing) {
            self.fail(format!("given up: {image:?} by {}, and the cell names it or is about to", NAMES[n]));
        }
    }

    /// Whether some copy of the VM's state is left that may go on, by the cell.
    fn has_copy(&self) -> bool {
        let Some(cell) = &self.arbiter.cell else { return false };
        let holds = |n: usize, pairing: u64| {
            let (node, exec) = (&self.nodes[n], &self.nodes[n].exec);
            let image = exec.image.or(exec.sealed_off).is_some_and(|image| image.pairing == pairing);
            let stands = |repl: &Replication| repl.pairing == pairing && repl.last.is_some();
            let frozen =
                exec.vm.as_ref().is_some_and(|vm| !vm.ended) && exec.repl.as_ref().is_some_and(stands);
            node.up && (image && !exec.diverged || frozen)
        };
        let newest = self.truth.newest_run();
        let by_owner = self.owner().is_some_and(|owner| {
            let node = &self.nodes[owner];
            let runs = node.up && node.exec.vm.as_ref().is_some_and(|vm| Some(vm.run) == newest);
            let entry = &self.arbiter.log[&cell.generation];
            let before = self.arbiter.log.get(&(cell.generation - 1));
            let named = before.and_then(|before| before.cell.standby.as_ref());
            let may_resume = entry.inc == node.inc
                && named.is_some_and(|s| s.node == NAMES[owner] && holds(owner, s.pairing));
            runs || may_resume
        });
        let by_standby =
            cell.standby.as_ref().is_some_and(|s| index_of(&s.node).is_some_and(|n| holds(n, s.pairing)));
        by_owner || by_standby || (0..2).any(|n| self.image_fits(n) || self.holds_image_read(n))
    }

    /// Something happened to a copy of the VM's state. Losing the last one needs a cause `from_outside`.
    pub fn check_copies(&mut self, cause: &str, from_outside: bool) {
        if !self.truth.alive || self.truth.lost.is_some() || self.has_copy() {
            return;
        }
        trace!(self, "the VM's state is lost: {cause}");
        self.truth.lost = Some(cause.to_string());
        if !from_outside {
            self.fail(format!("the last copy of the VM's state was given up: {cause}"));
        }
    }

    /// A node pauses its VM to hand it over. Where the operator asked for that, both arbiters have answered since.
    pub fn check_asked(&mut self, n: usize) {
        let moves = self.nodes[n].asked.iter().filter(|(.., desire)| *desire == Desire::Move);
        let Some(since) = moves.map(|(_, at, _)| *at).min() else { return };
        // By how much clocks drift, over the time that a switchover has.
        let margin = self.knobs.patience_us / 10;
        for (m, of) in NAMES.iter().enumerate() {
            if self.arbiter_answered(m).is_none_or(|(at, _)| at + margin < since) {
                let name = NAMES[n];
                self.fail(format!("paused: {name} has not heard from {of}'s arbiter since {since}"));
            }
        }
    }

    /// A node says that it runs the VM by the cell of this generation.
    pub fn check_announced(&mut self, n: usize, generation: u64) {
        let entry = self.arbiter.log.get(&generation);
        if entry.is_none_or(|entry| entry.cell.owner.as_deref() != Some(NAMES[n])) {
            self.fail(format!(
                "I2: {} announces itself in generation {generation}, which is {entry:?}",
                NAMES[n]
            ));
        }
    }

    /// Node `n` says that it is protected.
    pub fn check_proven(&mut self, n: usize) {
        let standby = self.arbiter.cell.as_ref().and_then(|cell| cell.standby.as_ref());
        let Some((backup, pairing)) = standby.and_then(|s| Some((index_of(&s.node)?, s.pairing))) else {
            return;
        };
        if !self.truth.rehearsed.contains(&(backup, pairing)) {
            let backup = NAMES[backup];
            self.fail(format!(
                "I9: {} is protected by {backup}, where nobody tried pairing {pairing:x}",
                NAMES[n]
            ));
        }
    }

    /// A node has stopped its VM.
    pub fn check_stopped(&mut self, n: usize, ended: bool) {
        let cell = self.arbiter.cell.as_ref();
        // The operator shuts down a VM that nobody else may go on with.
        let shut_down = (self.nodes[n].may_end || self.nodes[n].host_down)
            && cell.is_some_and(|cell| cell.standby.is_none() && cell.owner.as_deref() == Some(NAMES[n]));
        if (ended || shut_down) && !self.has_copy() {
            // It had come to its end, and nobody may resume it from before that.
            self.truth.alive = false;
        }
        let powered_off = self.nodes[n].powered_off;
        self.check_copies("the VM was stopped", powered_off);
    }

    /// A node that can never fit its primary, and holds nothing, does not dial on.
    pub fn check_misfit(&mut self, n: usize) {
        let node = &self.nodes[n];
        let idle =
            node.executor.as_ref().is_some_and(|executor| executor.is_at_rest()) && node.inbox.is_empty();
        if !node.up || !node.must_end || !idle || node.stepping || node.frozen_until.is_some() {
            return;
        }
        if node.exec.dialling && node.exec.image.is_none() {
            self.fail(format!("misfit: {} goes on dialling a peer that it never fits", NAMES[n]));
        }
        self.nodes[n].must_end = false;
    }

    /// A pairing begins. After one that failed for a reason of this node's, not at once.
    pub fn check_attempt(&mut self, n: usize, role: Role) {
        let exec = &self.nodes[n].exec;
        let failed_at = match role {
            Role::Backup => exec.unprepared_at,
            Role::Primary => exec.broken_at,
        };
        // Clocks drift.
        let wait_us = self.knobs.pairing_wait_us * 9 / 10;
        if let Some(at) = failed_at.filter(|at| self.now < at + wait_us) {
            self.fail(format!("too soon: {} ({role}) tries again what failed at {at} us", NAMES[n]));
        }
    }

    /// A connection begins to work at a node. One that works already would be forgotten, and never end.
    pub fn link(&mut self, n: usize, conn: ConnId) {
        let Exec { links, heard_at, .. } = &mut self.nodes[n].exec;
        let open = links.clone();
        links.push(conn);
        *heard_at = self.now;
        if !open.is_empty() {
            self.fail(format!("links: {} takes connection {conn} beside {open:?}", NAMES[n]));
        }
    }

    /// A node says good-bye: to a peer that hears it, or has heard why it was refused.
    pub fn check_said(&mut self, n: usize, conn: ConnId) {
        let exec = &self.nodes[n].exec;
        if !exec.links.contains(&conn) && exec.refused_conn != Some(conn) {
            self.fail(format!("unsaid: {}'s good-bye on connection {conn}, which has ended", NAMES[n]));
        }
    }

    /// A node that says protected can have shown that.
    pub fn check_proof(&mut self, n: usize) {
        let node = &self.nodes[n];
        let Some(executor) = &node.executor else { return };
        let idle = node.up && executor.is_at_rest() && node.inbox.is_empty() && node.frozen_until.is_none();
        let view = executor.view();
        let proven = match view.state {
            State::Protected => true,
            State::Degraded => self.mutant == Some(Mutant::RejoinedIsProven) && view.lapses.is_empty(),
            _ => false,
        };
        if !idle || node.slow_us > 0 || !proven {
            return;
        }
        if node.ledger.is_behind() {
            self.fail(format!("I9: {} says protected, and its disk has not taken its record", NAMES[n]));
            return;
        }
        if node.exec.repl.as_ref().is_some_and(|repl| repl.images_differ) {
            self.fail(format!("I9: {} says protected, and the images of its backup differ", NAMES[n]));
            return;
        }
        // By how much clocks drift, and what a tick takes.
        let limit = self.knobs.proof_us + self.knobs.proof_us / 20 + 100_000;
        let lately = self.arbiter_answered(n).is_some_and(|(at, _)| self.now <= at + limit);
        if !lately {
            let answered = self.arbiter_answered(n);
            self.fail(format!("I9: {} says protected, its arbiter answered at {answered:?}", NAMES[n]));
        }
        let shown = self.arbiter_answered(1 - n).map_or(0, |(_, generation)| generation);
        if view.role == Role::Primary && shown < view.generation {
            self.fail(format!(
                "I9: {} says protected in generation {}, the backup has read {shown}",
                NAMES[n], view.generation
            ));
        }
        if self.arbiter.is_asked_for_alone(n, self.nodes[n].inc) {
            self.fail(format!("I9: {} says protected, and has asked to be alone", NAMES[n]));
        }
        // The word of it is on its way for no longer than a silence lasts.
        let limit = limit + self.knobs.failure_timeout_us;
        let standby = self.arbiter.cell.as_ref().and_then(|cell| cell.standby.as_ref());
        let (named, peer) = (standby.map(|standby| standby.pairing), &self.nodes[1 - n]);
        let unfit =
            peer.unfit_for.filter(|(pairing, _)| view.role == Role::Primary && Some(*pairing) == named);
        if let Some((_, since)) = unfit.filter(|(_, since)| peer.slow_us == 0 && self.now > since + limit) {
            self.fail(format!(
                "I9: {} says protected, rehearsals at its backup fail since {since}",
                NAMES[n]
            ));
        }
    }

    /// The pair says that it is protected.
    pub fn check_end(&mut self) {
        for (n, name) in NAMES.iter().enumerate() {
            if self.nodes[n].exec.knows_diverged {
                self.fail(format!("I3: the pair is protected by {}, which knows that it has diverged", name));
            }
        }
    }

    /// Frames that may pass freely only while the cell names nobody else.
    pub fn check_passing(&mut self, n: usize) {
        let runs = self.nodes[n].exec.vm.as_ref().is_some_and(|vm| !vm.ended);
        if runs && self.nodes[n].exec.card.gate() == Gate::Passing && self.owner() != Some(n) {
            self.fail(format!(
                "I2: {} lets its output pass, the cell says {:?}",
                NAMES[n], self.arbiter.cell
            ));
        }
    }
}
