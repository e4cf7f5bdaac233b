//! The operator: asks for switchovers and stops, and wants an answer to each.

use ftd::role::{Done, Event, Leave, Micros, RequestId, RequestRefusal, Start};
use rand::Rng;

use crate::faults::{Fault, Return};
use crate::model::{Desire, Input, Msg, NAMES, Trip};
use crate::mutant::Mutant;
use crate::schedule::Act;
use crate::stats::Count;
use crate::trace;
use crate::world::World;

/// A living process that nothing goes wrong with answers in this time: an ending VM and a switchover have their
/// patience.
const ANSWERED_WITHIN_US: Micros = 4_000_000;

impl World {
    /// Longer than any switchover lasts.
    pub const PATIENT_US: Micros = 60_000_000;

    fn asks(&mut self, n: usize, wish: Desire, event: impl FnOnce(RequestId) -> Event) {
        if !self.nodes[n].up {
            return;
        }
        self.requests += 1;
        let request = self.requests;
        let now = self.now;
        self.nodes[n].asked.push((request, now, wish));
        self.incoming(n, Input::Event(event(request)));
    }

    pub fn ask_switchover(&mut self, n: usize, within_us: Micros) {
        let until = self.nodes[n].clock(self.now) + within_us;
        self.asks(n, Desire::Move, |request| Event::SwitchoverRequested { request, until });
    }

    pub fn ask_stop(&mut self, n: usize, power_off: bool) {
        self.stats.add(if power_off { Count::OperatorPowerOff } else { Count::OperatorStop });
        self.nodes[n].may_end |= power_off;
        self.nodes[n].powered_off |= power_off;
        let powers_off = power_off || self.mutant == Some(Mutant::StopPowersOff);
        let vm = if powers_off { Leave::PowerOff { within_us: 50_000 } } else { Leave::Move };
        self.asks(n, Desire::Stop, |request| Event::StopRequested { request, vm });
    }

    /// The host goes down. Its process is told again and again, and then dies with it.
    pub fn take_host_down(&mut self, n: usize, asks: u32) {
        if !self.nodes[n].up || self.healed {
            return;
        }
        self.stats.add(Count::FaultHostDown);
        let Some(left) = asks.checked_sub(1) else {
            let down_us = self.rng.random_range(50_000..800_000);
            return self.trip(n, Trip::Kill { silent: false, down_us, fresh: false });
        };
        self.nodes[n].host_down = true;
        let vm = match self.mutant {
            Some(Mutant::HostDownPowersOff) => Leave::PowerOff { within_us: 50_000 },
            _ => Leave::HostDown { within_us: 50_000 },
        };
        self.asks(n, Desire::Stop, |request| Event::StopRequested { request, vm });
        let again = self.rng.random_range(20_000..200_000);
        self.later(again, Act::HostDown { n, inc: self.nodes[n].inc, asks: left });
    }

    /// The VM is to boot here, or to go on without the node that owns it.
    pub fn ask_start(&mut self, n: usize, how: Start) {
        self.stats.add(Count::OperatorStart);
        let how = match self.mutant {
            Some(Mutant::StartIsFresh) if how == Start::Ended => Start::Fresh,
            _ => {
                self.nodes[n].fresh |= how != Start::Ended;
                how
            }
        };
        // It begins anew then, whatever failed before.
        self.nodes[n].exec.unprepared_at = None;
        let until = self.nodes[n].clock(self.now) + 1_000_000;
        self.asks(n, Desire::Start, |request| Event::StartRequested { request, how, until });
    }

    pub fn bring_back(&mut self, owner: usize, back: Return) {
        match back {
            // A node that has lost its record founds nothing: he knows that.
            Return::Boot(whom) | Return::BootFresh(whom) if self.nodes[self.pick(whom)].lost_disk => {}
            Return::Boot(whom) => self.ask_start(self.pick(whom), Start::Ended),
            Return::BootFresh(whom) => self.ask_start(self.pick(whom), Start::Fresh),
            Return::Bury => self.bury(owner),
            Return::Release(n) => self.release(n),
        }
    }

    /// The owner's host dies, and the operator has the other one go on without it while it is away.
    fn bury(&mut self, owner: usize) {
        let silence_us = self.knobs.patience_us + 100_000;
        let away_us = silence_us + 300_000;
        match self.mutant {
            Some(Mutant::ReleasesTheLiving) => {
                self.inject(Fault::Cut { from_owner: true, from_other: true, us: away_us });
            }
            _ => self.trip(owner, Trip::Kill { silent: true, down_us: away_us, fresh: false }),
        }
        self.later(silence_us, Act::Inject(Fault::Return(Return::Release(1 - owner))));
    }

    fn release(&mut self, n: usize) {
        if !self.nodes[1 - n].up || self.mutant == Some(Mutant::ReleasesTheLiving) {
            self.ask_start(n, Start::From(NAMES[1 - n].into()));
        }
    }

    /// A node has answered a request.
    pub fn answered(&mut self, n: usize, request: RequestId, outcome: Result<Done, RequestRefusal>) {
        let late = matches!(outcome, Err(RequestRefusal::TimedOut | RequestRefusal::Undecided));
        if late {
            self.stats.add(Count::AnsweredLate);
            if self.mutant == Some(Mutant::ForgetsTheLate) {
                return;
            }
        }
        let of = match &outcome {
            Ok(Done::Moved) => Some(Desire::Move),
            Ok(Done::Stopped(_)) => Some(Desire::Stop),
            Ok(Done::Started(_)) => Some(Desire::Start),
            Err(_) => None,
        };
        let done = matches!(
            outcome,
            Ok(_)
                | Err(RequestRefusal::NotRunning | RequestRefusal::AlreadyRuns | RequestRefusal::Unsaved(_))
        );
        match outcome {
            Ok(Done::Moved) => self.stats.add(Count::SwitchoversDone),
            Ok(Done::Stopped(_)) => self.stats.add(Count::Stopped),
            Ok(Done::Started(_)) => self.stats.add(Count::Started),
            Err(_) => self.stats.add(Count::SwitchoversFailed),
        }
        let asked = &mut self.nodes[n].asked;
        match asked.iter().position(|(known, ..)| *known == request) {
            Some(at) => {
                let (.., wish) = asked.swap_remove(at);
                // Whatever was given up was not, unless it may still be carried out.
                let may_still = late || done || !asked.is_empty();
                self.nodes[n].fresh &= may_still;
                if of.is_some_and(|of| of != wish) {
                    self.fail(format!("answered: {} answers {wish:?} as {of:?}", NAMES[n]));
                }
            }
            None => self.fail(format!("answered: {} answers request {request} again", NAMES[n])),
        }
    }

    /// Whether no living process owes the operator an answer.
    pub fn all_answered(&self) -> bool {
        self.nodes.iter().all(|node| !node.up || node.asked.is_empty())
    }

    /// Nothing that was asked is left without an answer.
    pub fn check_answered(&mut self, n: usize) {
        let node = &self.nodes[n];
        let since = |at: Micros| self.now.saturating_sub(at.max(self.knobs.heal_at));
        let waits = node.asked.iter().find(|(_, at, _)| since(*at) > ANSWERED_WITHIN_US);
        if let Some((request, ..)) = waits.filter(|_| node.up) {
            self.fail(format!("unanswered: {} has not answered request {request}", NAMES[n]));
        }
    }

    /// Another process says that it is the backup: its disk was cloned, or it was decommissioned and is started again.
    pub fn second_self(&mut self, n: usize) {
        let node = &self.nodes[n];
        let linked = |to: usize| {
            self.nodes[to]
                .exec
                .links
                .iter()
                .any(|conn| node.exec.links.contains(conn) && self.is_open(to, *conn))
        };
        if !node.up || node.frozen_until.is_some() || node.exec.image.is_none() || !linked(1 - n) {
            return;
        }
        self.stats.add(Count::SecondSelves);
        let (real, stranger) = (node.nonce, self.nodes[n].nonce ^ 1);
        let nonce = if self.mutant == Some(Mutant::AnyHelloEvicts) { real } else { stranger };
        let conn = self.connect(n, Msg::Hello { nonce, generation: 0, held: None });
        trace!(self, "a second {} dials on {conn}", NAMES[n]);
        self.strangers.push(conn);
    }
}
