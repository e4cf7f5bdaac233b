//! What may happen next. Left alone, everything happens at once and in one order: letters arrive, the arbiter answers,
//! and when nothing is left to happen, time passes. What does not is a fault, of which there are so many as the budget
//! says: a lane that stands still, a call that hangs, a process that is frozen or killed. A fault begins at any point
//! and lasts for any time: when time would pass, it may end.

use ftd::role::{Event, Leave, Micros};

use crate::arbiter::{Call, Fate};
use crate::net::Letter;
use crate::world::World;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    Deliver {
        at: usize,
        from: usize,
        lane: usize,
    },
    Answer(usize),
    Pass,

    Unstall {
        at: usize,
        from: usize,
        lane: usize,
    },
    Thaw(usize),
    Return(usize),
    CarryOut(usize),
    Start(usize),
    PutBack,

    Stall {
        at: usize,
        from: usize,
        lane: usize,
    },
    Freeze(usize),
    /// Frozen as soon as it is about to let something out.
    Trip(usize),
    Kill {
        n: usize,
        silent: bool,
    },
    Cut(usize),
    Befall(usize, Fate),
    /// An older copy is put in the cell's place.
    Restore,

    Switchover(usize),
    Stop(usize),
}

impl World {
    /// What happens next if nothing goes wrong. None: nothing but that time passes.
    fn next(&self) -> Option<Move> {
        for at in 0..self.wires.len() {
            for from in 0..2 {
                let found = (0..2).find(|lane| self.is_deliverable(at, from, *lane));
                if let Some(lane) = found {
                    return Some(Move::Deliver { at, from, lane });
                }
            }
        }
        let calls =
            |n: &usize| self.nodes[*n].is_awake() && self.nodes[*n].call.as_ref().is_some_and(|c| !c.hangs);
        (0..2).find(calls).map(Move::Answer)
    }

    /// What has gone wrong, and may come right.
    fn cures(&self) -> Vec<Move> {
        let mut cures = Vec::new();
        for (at, wire) in self.wires.iter().enumerate() {
            for from in 0..2 {
                let stalled = (0..2).filter(|lane| wire.lanes[from][*lane].stalled);
                cures.extend(stalled.map(|lane| Move::Unstall { at, from, lane }));
            }
        }
        for (n, host) in self.nodes.iter().enumerate() {
            if !host.is_up() {
                cures.push(Move::Start(n));
            } else if host.frozen {
                cures.push(Move::Thaw(n));
            } else if matches!(host.call, Some(Call { hangs: true, .. })) {
                cures.push(Move::Return(n));
            }
        }
        cures.extend((0..self.late.len()).map(Move::CarryOut));
        if self.newest.is_some() {
            cures.push(Move::PutBack);
        }
        cures
    }

    /// What happens if from now on nothing goes wrong, and what has gone wrong comes right.
    pub fn fair(&self) -> Move {
        // The right cell is back before anybody asks the other one.
        let first = self.newest.as_ref().map(|_| Move::PutBack).or_else(|| self.next());
        first.or_else(|| self.cures().first().copied()).unwrap_or(Move::Pass)
    }

    pub fn moves(&self, moves: &mut Vec<Move>) {
        if self.violation.is_some() || self.known.forked {
            return;
        }
        let next = self.next();
        match next {
            // No order between stream and pulse is relied on.
            Some(Move::Deliver { at, from, .. }) => {
                let lanes = (0..2).filter(|lane| self.is_deliverable(at, from, *lane));
                moves.extend(lanes.map(|lane| Move::Deliver { at, from, lane }));
            }
            Some(next) => moves.push(next),
            None => {
                moves.extend(self.cures());
                moves.push(Move::Pass);
            }
        }
        if self.budget.faults > 0 {
            self.faults(next, moves);
        }
        if self.budget.requests > 0 && next.is_none() {
            for n in (0..2).filter(|n| self.nodes[*n].is_awake()) {
                moves.push(Move::Stop(n));
                if self.nodes[n].guest.is_some() {
                    moves.push(Move::Switchover(n));
                }
            }
        }
    }

    /// A fault strikes what is about to happen, or what stands there while time passes.
    fn faults(&self, next: Option<Move>, moves: &mut Vec<Move>) {
        let strikes = |n: usize, moves: &mut Vec<Move>| {
            if self.nodes[n].is_up() {
                moves.extend([false, true].map(|silent| Move::Kill { n, silent }));
            }
            if self.nodes[n].is_awake() {
                moves.push(Move::Freeze(n));
            }
        };
        match next {
            Some(Move::Deliver { at, from, lane }) => {
                moves.push(Move::Stall { at, from, lane });
                moves.push(Move::Cut(at));
                strikes(1 - from, moves);
                let front = self.wires[at].lanes[from][lane].letters.front();
                if matches!(front, Some(Letter::Ack { .. } | Letter::Echo { .. })) {
                    moves.push(Move::Trip(1 - from));
                }
            }
            Some(Move::Answer(n)) => {
                strikes(n, moves);
                moves.extend(Fate::ALL.map(|fate| Move::Befall(n, fate)));
                if self.before.is_some() && self.newest.is_none() {
                    moves.push(Move::Restore);
                }
            }
            _ => {
                moves.extend((0..self.wires.len()).map(Move::Cut));
                (0..2).for_each(|n| strikes(n, moves));
            }
        }
    }

    /// The state after this move. None: it is no other.
    pub fn after(&self, step: Move) -> Option<Self> {
        let mut world = self.clone();
        world.perform(step).then(|| {
            world.forget_vain();
            world.check_state();
            world
        })
    }

    /// False: nothing came of it.
    fn perform(&mut self, step: Move) -> bool {
        match step {
            Move::Stall { .. }
            | Move::Freeze(_)
            | Move::Trip(_)
            | Move::Kill { .. }
            | Move::Cut(_)
            | Move::Befall(..)
            | Move::Restore => self.budget.faults -= 1,
            Move::Switchover(_) | Move::Stop(_) => self.budget.requests -= 1,
            _ => {}
        }
        match step {
            Move::Deliver { at, from, lane } => self.deliver(at, from, lane),
            Move::Answer(n) => self.answer(n),
            Move::Pass => self.pass(),
            Move::Unstall { at, from, lane } => self.wires[at].lanes[from][lane].stalled = false,
            Move::Thaw(n) => {
                self.nodes[n].frozen = false;
                self.drive(n);
            }
            Move::Return(n) => self.answer(n),
            Move::CarryOut(at) => self.carry_out_late(at),
            Move::Start(n) => self.start(n),
            Move::PutBack => self.cell = self.newest.take(),
            Move::Stall { at, from, lane } => self.wires[at].lanes[from][lane].stalled = true,
            Move::Freeze(n) => self.nodes[n].frozen = true,
            Move::Trip(n) => return self.trip(n),
            Move::Kill { n, silent } => self.die(n, silent, "a process was killed", true),
            Move::Cut(at) => self.cut(at),
            Move::Befall(n, fate) => return self.befall(n, fate),
            Move::Restore => {
                self.newest = self.cell.take();
                self.cell = self.before.take();
            }
            Move::Switchover(n) => {
                self.serial.request += 1;
                let request = self.serial.request;
                self.feed(n, Event::SwitchoverRequested { request, until: Micros::MAX });
            }
            Move::Stop(n) => {
                self.serial.request += 1;
                let request = self.serial.request;
                self.feed(n, Event::StopRequested { request, vm: Leave::Move });
            }
        }
        true
    }

    /// The next letter arrives, and the process is frozen before it lets out what is released by that.
    fn trip(&mut self, n: usize) -> bool {
        self.nodes[n].trips = true;
        if let Some(Move::Deliver { at, from, lane }) = self.next() {
            self.deliver(at, from, lane);
        }
        let tripped = self.nodes[n].frozen;
        self.nodes[n].trips = false;
        tripped
    }
}
