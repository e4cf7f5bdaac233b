//! The simulator's hands: they carry out the executor's commands on a node, on models of sockets, keeper and receiver.

use ft_arbiter::{Cell, CellId};
use ft_checkpoint::wire::Message;
use ft_checkpoint::wire::message::Position;
use ft_netbuf::OutputBuffer;
use ftd::peer::Outgoing;
use ftd::replica::{Closing, Hands, Verification};
use ftd::role::{
    ConnId, Done, Event, Micros, NodeRecord, PairingStart, RequestId, RequestRefusal, Role, Saved, View,
};
use rand::Rng;

use crate::faults::Fault;
use crate::model::{Ask, Input, Msg, NAMES};
use crate::mutant::Mutant;
use crate::schedule::{Act, Hook};
use crate::stats::Count;
use crate::trace;
use crate::world::World;

/// Why something cannot be done.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(&'static str);

/// The hands of node `n`.
pub struct SimHands<'a> {
    pub world: &'a mut World,
    pub n: usize,
    /// The node's output buffer, which outlives what happens to the process.
    pub output: OutputBuffer,
}

impl SimHands<'_> {
    fn inc(&self) -> u32 {
        self.world.nodes[self.n].inc
    }

    fn arriving(&mut self, conn: ConnId) -> bool {
        let arriving = &mut self.world.nodes[self.n].exec.arriving;
        let found = arriving.iter().position(|(known, _)| *known == conn);
        found.map(|at| arriving.swap_remove(at)).is_some()
    }

    fn say(&self, what: &str) {
        trace!(self.world, "{} {what}", NAMES[self.n]);
    }
}

impl Hands for SimHands<'_> {
    type Error = Refused;

    fn now_us(&self) -> Micros {
        self.world.nodes[self.n].clock(self.world.now)
    }

    fn output(&self) -> &OutputBuffer {
        &self.output
    }

    fn show(&mut self, _: View) {}

    fn read_cell(&mut self) {
        self.world.ask(self.n, Ask::Read);
    }

    fn probe_cell(&mut self) {
        self.world.ask(self.n, Ask::Probe);
    }

    fn record(&mut self, record: NodeRecord) -> Result<(), Self::Error> {
        self.say(&format!("records {record:?}"));
        match self.world.give_record(self.n, record) || self.world.mutant == Some(Mutant::SaysItIsRecorded) {
            true => Ok(()),
            false => Err(Refused("the disk hangs")),
        }
    }

    fn compare_and_set(&mut self, expected: Option<u64>, new: Cell) {
        self.world.ask(self.n, Ask::Set { expected, new });
    }

    fn leave_arbiter(&mut self) {
        if self.world.mutant != Some(Mutant::WaitsForTheStorage) {
            self.world.leave_call(self.n);
        }
    }

    fn dial(&mut self) {
        let (n, inc) = (self.n, self.inc());
        let exec = &mut self.world.nodes[n].exec;
        exec.dialling = true;
        if !std::mem::replace(&mut exec.dial_loop, true) {
            let delay = self.world.rng.random_range(0..10_000);
            self.world.later(delay, Act::Dial { n, inc });
        }
    }

    fn stop_dialling(&mut self) {
        self.world.nodes[self.n].exec.dialling = false;
    }

    fn refuse(&mut self, conn: ConnId, why: String) {
        self.world.nodes[self.n].exec.refused_conn = Some(conn);
        if self.arriving(conn) {
            self.world.send(self.n, conn, Msg::Refuse { why, permanent: false });
            self.world.close(self.n, conn, true);
        }
    }

    fn turn_away(&mut self, conn: ConnId) {
        let exec = &mut self.world.nodes[self.n].exec;
        let Some((_, pairing)) = exec.arriving.iter().find(|(known, _)| *known == conn).copied() else {
            return;
        };
        self.arriving(conn);
        match (self.world.mutant, pairing) {
            (Some(Mutant::FollowAnyway), Some(pairing)) => {
                self.world.nodes[self.n].exec.recv = Some((conn, pairing));
            }
            _ => self.world.close(self.n, conn, true),
        }
    }

    fn welcome(
        &mut self,
        conn: ConnId,
        pairing: u64,
        generation: u64,
        how: PairingStart,
    ) -> Result<(), Self::Error> {
        if !self.arriving(conn) {
            return Err(Refused("the connection is gone"));
        }
        if self.world.strangers.contains(&conn) {
            let name = NAMES[self.n];
            self.world.fail(format!("evicted: {name} welcomes a second self while the backup lives"));
        }
        if how == PairingStart::Copy {
            self.world.check_attempt(self.n, Role::Primary);
        }
        self.world.link(self.n, conn);
        self.world.send(self.n, conn, Msg::Welcome { generation, pairing, how });
        self.world.tell_network(self.n, conn);
        Ok(())
    }

    fn follow(&mut self, conn: ConnId, pairing: u64, _: PairingStart) -> Result<(), Self::Error> {
        if !self.arriving(conn) {
            return Err(Refused("the connection is gone"));
        }
        let exec = &mut self.world.nodes[self.n].exec;
        exec.recv = Some((conn, pairing));
        self.world.link(self.n, conn);
        self.world.tell_network(self.n, conn);
        Ok(())
    }

    fn beat(&mut self, conn: ConnId, mut outgoing: Outgoing) {
        match &mut outgoing {
            // More than it has promised.
            Outgoing::Echo { lease, .. }
                if matches!(self.world.mutant, Some(Mutant::NoPromise | Mutant::GrantsMore)) =>
            {
                *lease = Micros::MAX;
            }
            Outgoing::Echo { lease, .. } if *lease > self.world.knobs.lease_us => {
                self.world.stats.add(Count::LongLeases);
            }
            _ => {}
        }
        let pulses = &mut self.world.nodes[self.n].exec.pulses;
        // The newest takes the place of what still waits.
        let waits = pulses.iter_mut().find(|(known, _)| *known == conn);
        match waits {
            Some((_, waiting)) => *waiting = outgoing,
            None => {
                pulses.push((conn, outgoing));
                let (n, inc) = (self.n, self.inc());
                let delay = self.world.rng.random_range(0..200);
                self.world.later(delay, Act::Beat { n, inc, conn });
            }
        }
    }

    fn send(&mut self, conn: ConnId, mut message: Message<'static>) {
        match &mut message {
            Message::Paired { .. } => {
                self.world.stats.add(Count::Protected);
                self.world.check_proven(self.n);
            }
            Message::Standing(standing) if self.world.mutant == Some(Mutant::HidesARehearsal) => {
                standing.unfit = None;
            }
            Message::Standing(standing) if self.world.mutant == Some(Mutant::DatesByArrival) => {
                standing.asked_us = standing.asked_us.map(|_| Micros::MAX);
            }
            Message::Switchover { .. } => {
                self.world.check_move(self.n);
                self.world.hook(Hook::HandOver);
            }
            Message::TookOver { .. } => self.world.stats.add(Count::HandedOver),
            Message::Bye(_) => self.world.check_said(self.n, conn),
            _ => {}
        }
        self.world.send(self.n, conn, Msg::Said(message));
    }

    fn close(&mut self, conn: ConnId, closing: Closing) -> bool {
        let links = &mut self.world.nodes[self.n].exec.links;
        let Some(at) = links.iter().position(|known| *known == conn) else { return false };
        if self.world.mutant == Some(Mutant::LeavesLinks) && closing == Closing::AfterQueued {
            return true;
        }
        links.swap_remove(at);
        if self.world.mutant == Some(Mutant::PassOnLoss) && self.world.nodes[self.n].exec.vm.is_some() {
            let _ = self.output.pass();
        }
        let in_order = closing == Closing::AfterQueued && self.world.rng.random_bool(0.8);
        self.world.close(self.n, conn, in_order);
        true
    }

    fn boot(&mut self) -> Result<(), Self::Error> {
        self.say("boots");
        if std::mem::take(&mut self.world.nodes[self.n].fail_boot) {
            self.world.stats.add(Count::FaultBoot);
            self.world.nodes[self.n].may_end = true;
            let ignores = self.world.mutant == Some(Mutant::IgnoresBoot);
            return if ignores { Ok(()) } else { Err(Refused("no kernel")) };
        }
        self.world.check_boot(self.n);
        self.world.begin_run(self.n, 0);
        Ok(())
    }

    fn press_power_button(&mut self) {
        if self.world.rng.random_bool(0.5) {
            let delay = self.world.rng.random_range(0..80_000);
            self.world.later(delay, Act::Inject(Fault::Guest { kind: 0 }));
        }
    }

    fn stop_vm(&mut self) {
        self.say("stops its machine");
        let exec = &mut self.world.nodes[self.n].exec;
        let ended = exec.vm.take().map(|vm| vm.ended);
        let offered = exec.repl.take().is_some_and(|repl| repl.last.is_some());
        if let Some(ended) = ended {
            if !ended && !offered && self.world.owner().is_some_and(|owner| owner != self.n) {
                self.world.stats.add(Count::Fences);
            }
            self.world.check_stopped(self.n, ended);
        }
    }

    fn begin_pairing(&mut self, conn: ConnId, pairing: u64) {
        self.world.begin_copy(self.n, conn, pairing);
    }

    fn resume_pairing(&mut self, conn: ConnId, held: u64) -> Result<(), Self::Error> {
        self.world.send_again(self.n, conn, held);
        Ok(())
    }

    fn unlink_pairing(&mut self, conn: ConnId) {
        let forget = self.world.mutant == Some(Mutant::ForgetOwed);
        let repl = self.world.nodes[self.n].exec.repl.as_mut();
        if let Some(repl) = repl.filter(|repl| repl.conn == Some(conn)) {
            repl.conn = None;
            if forget {
                repl.owed.clear();
            }
        }
    }

    fn end_pairing(&mut self) {
        self.world.take_back(self.n);
        self.world.nodes[self.n].exec.repl = None;
    }

    fn acked(&mut self, conn: ConnId, epoch: u64, _: Micros) -> Result<(), Self::Error> {
        let believes = self.world.mutant == Some(Mutant::BelievesAnyAck);
        let repl = self.world.nodes[self.n].exec.repl.as_mut();
        let Some(repl) = repl.filter(|repl| repl.conn == Some(conn)) else { return Ok(()) };
        if epoch >= repl.next_epoch && !believes {
            return Err(Refused("it acked what was never sent"));
        }
        repl.owed.retain(|owed| owed.epoch > epoch);
        Ok(())
    }

    fn freeze(&mut self) {
        self.world.check_asked(self.n);
        self.world.begin_last(self.n);
    }

    fn thaw(&mut self) {
        if let Some(repl) = &mut self.world.nodes[self.n].exec.repl {
            repl.last = None;
        }
    }

    fn prepare(&mut self) -> Result<(), Self::Error> {
        self.world.check_attempt(self.n, Role::Backup);
        if self.world.nodes[self.n].unfit && self.world.rng.random_bool(0.5) {
            self.world.stats.add(Count::Unprepared);
            self.world.nodes[self.n].exec.unprepared_at = Some(self.world.now);
            return Err(Refused("no memory"));
        }
        Ok(())
    }

    fn position(&self) -> Option<Position> {
        None
    }

    fn verify(&mut self, epoch: u64) -> Verification {
        if !self.world.knobs.replay {
            return Verification::Done;
        }
        let (n, inc) = (self.n, self.inc());
        let delay = self.world.rng.random_range(0..30_000);
        self.world.later(delay, Act::Verified { n, inc, epoch });
        Verification::Follows
    }

    fn load(&mut self, epoch: u64) -> Verification {
        let (n, inc) = (self.n, self.inc());
        let delay = self.world.rng.random_range(0..30_000);
        self.world.later(delay, Act::Loaded { n, inc, epoch });
        Verification::Follows
    }

    fn rehearse(&mut self, _: u64) {
        let (n, inc) = (self.n, self.inc());
        let Some(image) = self.world.nodes[n].exec.image else { return };
        let delay = self.world.rng.random_range(0..30_000);
        self.world.later(delay, Act::Rehearsed { n, inc, pairing: image.pairing });
    }

    fn renew(&mut self) {
        self.say("has another machine stand ready");
    }

    fn stop_receiving(&mut self) {
        self.world.nodes[self.n].exec.recv = None;
    }

    fn seal_off(&mut self, epoch: u64) -> Result<(), Self::Error> {
        self.world.check_take_over(self.n, epoch);
        let exec = &mut self.world.nodes[self.n].exec;
        exec.verified = None;
        exec.sealed_off = exec.image.take().or(exec.sealed_off);
        match exec.sealed_off {
            Some(image) if image.epoch >= epoch => Ok(()),
            _ => Err(Refused("nothing is held")),
        }
    }

    fn resume_vm(&mut self) -> Result<(), Self::Error> {
        let Some(image) = self.world.nodes[self.n].exec.sealed_off else {
            return Err(Refused("nothing was sealed off"));
        };
        self.world.hook(Hook::TakeOver);
        let fails = &mut self.world.nodes[self.n].fail_takeovers;
        if *fails > 0 {
            *fails -= 1;
            self.world.stats.add(Count::FaultTakeOver);
            if self.world.mutant == Some(Mutant::DropsWhatFailed) {
                self.world.nodes[self.n].exec.sealed_off = None;
                self.world.check_copies("restoring failed", false);
            }
            return Err(Refused("no memory"));
        }
        self.world.nodes[self.n].exec.sealed_off = None;
        let from_disk = self.world.nodes[self.n].exec.from_disk;
        let speaks = match self.world.mutant {
            Some(Mutant::PassesAtSwitchover) => true,
            Some(Mutant::SpeaksBesideAnImage) => self.world.nodes[self.n].disk.is_some(),
            _ => false,
        };
        if speaks {
            let _ = self.output.pass();
        }
        let fails = &mut self.world.nodes[self.n].fail_runs;
        if from_disk && *fails > 0 {
            *fails -= 1;
            self.world.stats.add(Count::FaultRun);
            let delay = self.world.rng.random_range(0..20_000);
            self.world.later(delay, Act::Inject(Fault::FailMachine));
        }
        self.world.call_image_off(self.n);
        // The former primary may have taken the VM back: then this one never speaks.
        if self.world.owner() == Some(self.n) {
            self.world.truth.runs += 1;
            self.world.truth.alive = true;
            self.world.begin_run(self.n, image.counter);
        } else {
            self.world.begin_vain_run(self.n, image.counter);
        }
        Ok(())
    }

    fn save_image(&mut self, saved: Saved) {
        self.say(&format!("writes {saved:?} to disk"));
        self.world.save_image(self.n, saved);
    }

    fn read_image(&mut self, saved: Saved) {
        self.say(&format!("reads {saved:?} from disk"));
        self.world.read_image(self.n);
    }

    fn find_image(&mut self, _: CellId) {
        self.world.find_image(self.n);
    }

    fn drop_image(&mut self, cell: CellId, below: u64) {
        self.say("removes its image on disk");
        self.world.drop_image(self.n, cell, below);
    }

    fn announce(&mut self, generation: u64) {
        self.world.check_announced(self.n, generation);
    }

    fn discard(&mut self) {
        self.say("discards what it holds");
        self.world.check_discard(self.n);
        let exec = &mut self.world.nodes[self.n].exec;
        exec.image = None;
        exec.sealed_off = None;
        exec.saving = None;
        exec.reading = false;
        exec.from_disk = false;
        exec.diverged = false;
        exec.knows_diverged = false;
        exec.verified = None;
        let powers_off = self.world.nodes[self.n].powered_off;
        self.world.check_copies("discarded", powers_off);
    }

    fn answer(&mut self, request: RequestId, outcome: Result<Done, RequestRefusal>) {
        self.say(&format!("answers request {request}: {outcome:?}"));
        let asked = &self.world.nodes[self.n].asked;
        let request = match self.world.mutant {
            Some(Mutant::SwapsAnswers) => {
                asked.iter().map(|(other, ..)| *other).find(|other| *other != request).unwrap_or(request)
            }
            _ => request,
        };
        self.world.answered(self.n, request, outcome);
    }
}

/// What a message of the peer's executor is to the core.
pub fn event_of(conn: ConnId, message: Message<'static>) -> Option<Event> {
    Some(match message {
        Message::Ack(ack) => Event::Ack { conn, epoch: ack.epoch, stamp: ack.stamp_us },
        Message::Heartbeat { stamp_us, lease_us } => {
            Event::Heartbeat { conn, stamp: stamp_us, lease: lease_us }
        }
        Message::Echo { stamp_us, lease_us } => Event::Echo { conn, stamp: stamp_us, lease: lease_us },
        Message::Standing(said) => Event::Standing { conn, said },
        Message::Paired { generation } => Event::Paired { conn, generation },
        Message::Switchover { epoch } => Event::SwitchoverOffered { conn, epoch },
        Message::TookOver { generation } => Event::PeerTookOver { conn, generation },
        Message::Network(network) => crate::surroundings::seen(&network),
        Message::Decline { text } => Event::SwitchoverDeclined { conn, why: text },
        Message::Bye(bye) => Event::PeerGone { conn, why: ftd::role::Gone::Bye(bye.text) },
        _ => return None,
    })
}

impl World {
    /// News of a node's own threads.
    pub fn tell(&mut self, n: usize, event: Event) {
        self.incoming(n, Input::Event(event));
    }
}
