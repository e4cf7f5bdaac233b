//! A node's process: the real executor, driven one small step at a time, so that a freeze or a kill can fall between
//! any two of them; and the events that the executor's threads make of incoming bytes.

use ft_checkpoint::wire::Message;
use ft_checkpoint::wire::message::{Ack, Standing};
use ftd::replica::Hands;
use ftd::role::{ConnId, Event, Exit, Gone, Held, Micros};
use rand::Rng;

use crate::card::{Pace, Snag};
use crate::hands::{SimHands, event_of};
use crate::model::{Image, Input, Item, Msg, NAMES, Replication, Trip};
use crate::mutant::Mutant;
use crate::schedule::{Act, Hook};
use crate::stats::Count;
use crate::trace;
use crate::world::World;

impl World {
    /// Something arrives at a process: the kernel keeps it while the process is frozen.
    pub fn incoming(&mut self, n: usize, input: Input) {
        let node = &mut self.nodes[n];
        if !node.up {
            return;
        }
        if node.frozen_until.is_some() {
            node.socket.push_back(input);
            return;
        }
        let input = match input {
            // The receiver's thread seals ahead of the events that wait for the core.
            Input::Net(conn, Item::Msg(msg @ Msg::End { .. }))
                if self.knobs.eager[n] && node.exec.recv.is_some_and(|(from, _)| from == conn) =>
            {
                match self.seal(n, conn, msg) {
                    Some(event) => Input::Event(event),
                    None => return,
                }
            }
            input => input,
        };
        self.nodes[n].inbox.push_back(input);
        self.drive(n);
    }

    /// Lets a process do what it can.
    pub fn drive(&mut self, n: usize) {
        loop {
            let node = &mut self.nodes[n];
            if !node.up || node.frozen_until.is_some() || node.stepping || self.violation.is_some() {
                return;
            }
            // Somebody further up is driving it: its executor is in the hands of a step.
            let Some(executor) = &node.executor else { return };
            if executor.is_at_rest() && node.inbox.is_empty() {
                return;
            }
            let mut snag = None;
            match &mut node.trip {
                Some((0, trip)) => {
                    let trip = *trip;
                    node.trip = None;
                    // Between two steps, or between two frames of one that lets some out.
                    if self.rng.random_bool(0.1) {
                        self.trip(n, trip);
                        continue;
                    }
                    snag = Some(trip);
                }
                Some((steps, _)) => *steps -= 1,
                None => {}
            }
            self.step(n, snag);
            let node = &mut self.nodes[n];
            let held_up_us = std::mem::take(&mut node.held_up_us);
            if (node.slow_us > 0 || held_up_us > 0) && node.up {
                node.stepping = true;
                let inc = node.inc;
                let slow_us = if node.slow_us > 0 { self.rng.random_range(1..=node.slow_us) } else { 0 };
                self.later(held_up_us + slow_us, Act::Step { n, inc });
            }
        }
    }

    /// One step of the executor, or one event taken in.
    fn step(&mut self, n: usize, trip: Option<Trip>) {
        let Some(mut executor) = self.nodes[n].executor.take() else { return };
        let inc = self.nodes[n].inc;
        let snag = trip.map(|trip| match trip {
            Trip::Freeze { us } => Snag::Freeze(us),
            Trip::Kill { .. } => Snag::Kill,
        });
        let after = self.rng.random_range(0..3);
        self.begin_output(n, snag.map(|snag| (after, snag)));
        let output = self.nodes[n].exec.card.output.clone();
        if executor.is_at_rest() {
            if let Some(event) = self.next_event(n) {
                let answer = match self.mutant {
                    Some(Mutant::FollowAnyway) => answer_to(&event),
                    Some(Mutant::StandsUnread) => self.standing_unread(&event),
                    _ => None,
                };
                let is_in_step = |repl: &Replication| !repl.copying && repl.last.is_none();
                let pauses = self.mutant == Some(Mutant::PausesUnasked)
                    && matches!(event, Event::SwitchoverRequested { .. })
                    && self.nodes[n].exec.repl.as_ref().is_some_and(is_in_step);
                let mut hands = SimHands { world: self, n, output };
                executor.begin(event, &mut hands);
                if pauses {
                    hands.freeze();
                }
                if let Some((conn, message)) = answer {
                    hands.send(conn, message);
                }
            }
        } else {
            executor.step(&mut SimHands { world: self, n, output });
        }
        let exit = executor.exit();
        let node = &mut self.nodes[n];
        if node.inc == inc && node.up {
            node.executor = Some(executor);
        }
        let happened = self.end_output(n);
        match (trip, happened) {
            (Some(trip @ Trip::Kill { .. }), true) => return self.trip(n, trip),
            (Some(Trip::Freeze { us }), true) => self.frozen_in_release(n, us),
            // Nothing left in this step.
            (Some(trip), false) => self.nodes[n].trip = Some((0, trip)),
            (None, _) => {}
        }
        if let Some(exit) = exit {
            self.exits(n, exit);
        }
    }

    /// What a backup says that has been told that the cell names it, and takes it for read.
    fn standing_unread(&self, event: &Event) -> Option<(ConnId, Message<'static>)> {
        let Event::Paired { conn, generation } = *event else { return None };
        let cell = self.arbiter.cell.as_ref()?;
        let standing = Standing {
            place: "unread".into(),
            cell: Some((cell.id.0, generation)),
            named: cell.standby.as_ref().map(|standby| standby.pairing),
            asked_us: Some(Micros::MAX),
            trouble: None,
            unfit: None,
            asks: false,
            stamp_us: 0,
        };
        Some((conn, Message::Standing(standing)))
    }

    /// The next thing that has happened, as the executor's threads tell it.
    fn next_event(&mut self, n: usize) -> Option<Event> {
        let input = self.nodes[n].inbox.pop_front()?;
        if !self.note_heard(n, &input) {
            return None;
        }
        let event = match input {
            Input::Event(event) => event,
            Input::Reset(conn) if self.is_open(n, conn) => {
                Event::PeerGone { conn, why: Gone::Lost("reset".into()) }
            }
            Input::Reset(_) => return None,
            Input::Net(conn, item) => self.take_item(n, conn, item)?,
        };
        let event = match event {
            Event::PeerGone { why: Gone::Unable(why), .. }
                if self.mutant == Some(Mutant::DropsWithItsDisks) =>
            {
                return Some(Event::StateLost(why));
            }
            event => event,
        };
        match event {
            // The daemon's follower has ended before anything new is received: its news comes first.
            Event::StateLost(_) if !self.nodes[n].exec.diverged => return None,
            Event::StateLost(_) if self.mutant == Some(Mutant::SilentDivergence) => return None,
            // A backup's. What it holds is beside it, and loses nothing.
            Event::MachineFailed(_) if self.ends_with_its_machine(n) => return None,
            Event::MachineFailed(_) if self.nodes[n].exec.image.is_some() => {}
            Event::MachineFailed(_) if self.mutant == Some(Mutant::IgnoresMachine) => return None,
            Event::MachineFailed(_) => self.note_race(n),
            Event::PeerGone { .. } => self.hook(Hook::PeerGone),
            Event::FirstCaptured { .. } => self.hook(Hook::FirstCaptured),
            Event::PeerHello { .. } => self.hook(Hook::Hello),
            Event::Ack { .. } => self.hook(Hook::Ack),
            _ => {}
        }
        let event = self.hear_of_surroundings(n, event);
        if event != Event::Tick {
            trace!(self, "{} <- {event:?}", NAMES[n]);
        }
        let node = &mut self.nodes[n];
        if let (Event::PairingBroken { .. }, Some(repl)) = (&event, &mut node.exec.repl) {
            repl.known_broken = repl.broken;
            // One that the other node has ended before is the other's to count.
            let is_linked = !node.exec.links.is_empty();
            node.exec.broken_at = (repl.broken && is_linked).then_some(self.now);
        }
        if matches!(event, Event::StopRequested { .. }) && self.stops_at_once(n) {
            return None;
        }
        Some(event)
    }

    /// A mutant that drops what it holds because its machine failed.
    fn ends_with_its_machine(&mut self, n: usize) -> bool {
        let ends = self.mutant == Some(Mutant::EndsWithItsMachine) && self.nodes[n].exec.image.is_some();
        if ends {
            self.exits(n, Exit::Failed("the machine failed".into()));
        }
        ends
    }

    /// Mutants that stop as asked, whatever is lost by it.
    fn stops_at_once(&mut self, n: usize) -> bool {
        let backup = self.nodes[n].exec.image.is_some();
        let stops = match self.mutant {
            Some(Mutant::BackupStopsAtOnce) => backup,
            Some(Mutant::PrimaryStopsAtOnce) => self.nodes[n].exec.vm.is_some() && !backup,
            _ => false,
        };
        if stops {
            self.exits(n, Exit::Stopped("at once".into()));
        }
        stops
    }

    /// What a node's threads make of something that came in on a connection.
    fn take_item(&mut self, n: usize, conn: ConnId, item: Item) -> Option<Event> {
        let open = self.is_open(n, conn);
        let msg = match item {
            Item::Fin if open => return Some(Event::PeerGone { conn, why: Gone::Lost("closed".into()) }),
            Item::Fin => return None,
            Item::Msg(msg) => msg,
        };
        Some(match msg {
            Msg::Hello { .. } if self.net.misfit => {
                self.send(n, conn, Msg::Refuse { why: "another memory size".into(), permanent: true });
                self.close(n, conn, true);
                return None;
            }
            Msg::Hello { nonce, generation, held } => {
                if self.strangers.contains(&conn) && self.nodes[n].exec.links.is_empty() {
                    // The backup is lost: whoever comes may become it. That is not what this is about.
                    self.close(n, conn, true);
                    return None;
                }
                self.nodes[n].exec.arriving.push((conn, None));
                Event::PeerHello { conn, nonce, generation, held }
            }
            // It was welcomed, and cannot follow after all.
            Msg::Refuse { why, .. } if open && self.nodes[n].exec.links.contains(&conn) => {
                Event::PeerGone { conn, why: Gone::Bye(why) }
            }
            Msg::Refuse { why, permanent } if open => {
                self.close(n, conn, true);
                return self.dial_failed(n, why, permanent);
            }
            Msg::Welcome { generation, pairing, how } if open => {
                let exec = &mut self.nodes[n].exec;
                exec.attempt = None;
                exec.dialling = false;
                exec.arriving.push((conn, Some(pairing)));
                self.hook(Hook::Welcome);
                Event::Welcomed { conn, generation, pairing, how }
            }
            Msg::Refuse { .. } | Msg::Welcome { .. } => return None,
            Msg::Progress => Event::Heard { conn },
            Msg::Part { pairing, epoch, counter } => {
                if self.mutant == Some(Mutant::SealAtFirstPiece) && open {
                    self.nodes[n].exec.image = Some(Image { pairing, epoch, counter, complete: false });
                }
                Event::Heard { conn }
            }
            msg @ Msg::End { .. } => return if open { self.seal(n, conn, msg) } else { None },
            Msg::Said(message) => {
                let event = event_of(conn, message)?;
                self.misheard(n, event)
            }
        })
    }

    /// What mutants make of the pulse.
    fn misheard(&mut self, n: usize, event: Event) -> Event {
        match (self.mutant, event) {
            (Some(Mutant::StampsAtArrival), Event::Echo { conn, lease, .. }) => {
                Event::Echo { conn, stamp: self.nodes[n].clock(self.now), lease }
            }
            (Some(Mutant::PulseIsEnough), event) => {
                if let Event::Echo { conn, .. } | Event::Heartbeat { conn, .. } = event {
                    self.nodes[n].inbox.push_front(Input::Event(Event::Heard { conn }));
                }
                event
            }
            (_, event) => event,
        }
    }

    fn dial_failed(&mut self, n: usize, why: String, permanent: bool) -> Option<Event> {
        if permanent {
            self.stats.add(Count::RefusedForGood);
            let exec = &self.nodes[n].exec;
            self.nodes[n].must_end = exec.dialling && exec.image.is_none();
            if self.mutant == Some(Mutant::IgnoresMisfit) {
                return None;
            }
        }
        Some(Event::DialFailed { why, permanent, answered: true })
    }

    /// A checkpoint is complete: it must be the one after what is held.
    fn seal(&mut self, n: usize, conn: ConnId, msg: Msg) -> Option<Event> {
        let Msg::End { pairing, epoch, counter, stamp } = msg else { return None };
        let exec = &mut self.nodes[n].exec;
        if exec.recv != Some((conn, pairing)) {
            return None;
        }
        let expected = match exec.image {
            Some(image) if image.pairing == pairing && !image.complete => image.epoch,
            Some(image) if image.pairing == pairing => image.epoch + 1,
            _ => 1,
        };
        if epoch != expected {
            trace!(self, "{} refuses epoch {epoch}, expected {expected}", NAMES[n]);
            return Some(Event::PeerGone { conn, why: Gone::Lost("an epoch is missing".into()) });
        }
        exec.image = Some(Image { pairing, epoch, counter, complete: true });
        self.truth.note_sealed(pairing, counter);
        self.stats.add(Count::Checkpoints);
        if epoch == 1 {
            self.stats.add(Count::FullCopies);
        }
        Some(Event::Sealed { conn, pairing, epoch, stamp })
    }

    /// Looks at all that is held: the answer to the core's question whether it is good.
    pub fn verified(&mut self, n: usize, epoch: u64) {
        let exec = &mut self.nodes[n].exec;
        if exec.image.is_none() {
            return;
        }
        let answer = if exec.diverged && self.mutant != Some(Mutant::VerifiesNothing) {
            Event::StateLost("diverged".into())
        } else {
            exec.verified = exec.image.map(|image| image.epoch);
            Event::Verified { epoch }
        };
        self.tell(n, answer);
    }

    /// The machine has taken the state that it was to load, or not.
    pub fn loaded(&mut self, n: usize, epoch: u64) {
        self.nodes[n].exec.refused = None;
        if std::mem::take(&mut self.nodes[n].fail_load) {
            self.stats.add(Count::FaultLoad);
            self.nodes[n].exec.refused = Some(epoch);
            if self.mutant != Some(Mutant::SaysItIsLoaded) {
                return self.tell(n, Event::LoadFailed("no memory".into()));
            }
        }
        self.verified(n, epoch);
    }

    /// A scratch machine has tried what is held.
    pub fn rehearsed(&mut self, n: usize, pairing: u64) {
        let unfit = self.nodes[n].unfit;
        if !unfit {
            self.truth.rehearsed.push((n, pairing));
        }
        let since = self.nodes[n].unfit_for.filter(|(of, _)| *of == pairing).map_or(self.now, |(_, at)| at);
        self.nodes[n].unfit_for = unfit.then_some((pairing, since));
        let answer = if unfit && self.mutant != Some(Mutant::RehearsesNothing) {
            self.stats.add(Count::RehearsalsFailed);
            Event::RehearsalFailed { pairing, why: "no machine takes it".into() }
        } else {
            self.stats.add(Count::Rehearsals);
            Event::Rehearsed { pairing }
        };
        self.tell(n, answer);
    }

    /// This end of a connection is closed: nothing is sent on it or taken from it any more.
    pub fn forget_conn(&mut self, n: usize, conn: ConnId) {
        let exec = &mut self.nodes[n].exec;
        if exec.recv.is_some_and(|(from, _)| from == conn) {
            exec.recv = None;
        }
        if exec.attempt.is_some_and(|(attempt, _)| attempt == conn) {
            exec.attempt = None;
        }
    }

    pub fn dial_on(&mut self, n: usize, inc: u32) {
        let exec = &mut self.nodes[n].exec;
        if !exec.dialling {
            exec.dial_loop = false;
            return;
        }
        let patient = self.knobs.failure_timeout_us * 2;
        match exec.attempt {
            Some((_, since)) if self.now < since + patient => {}
            other => {
                if let Some((conn, _)) = other {
                    self.close(n, conn, false);
                }
                let node = &self.nodes[n];
                let generation = node.executor.as_ref().map_or(0, |executor| executor.generation());
                let held = node.exec.image.map(|image| Held { pairing: image.pairing, epoch: image.epoch });
                let nonce = node.nonce;
                let conn = self.connect(n, Msg::Hello { nonce, generation, held });
                self.nodes[n].exec.attempt = Some((conn, self.now));
                trace!(self, "{} dials on {conn}, holds {held:?}", NAMES[n]);
            }
        }
        let delay = self.rng.random_range(10_000..30_000);
        self.later(delay, Act::Dial { n, inc });
    }

    fn exits(&mut self, n: usize, exit: Exit) {
        trace!(self, "{} exits: {exit:?}", NAMES[n]);
        self.stats.add(Count::Exits);
        // A request that it has ended is answered by that.
        self.nodes[n].asked.clear();
        let fenced = matches!(exit, Exit::Fenced(_));
        if matches!(exit, Exit::Misfit(_)) {
            self.stats.add(Count::Misfits);
        }
        self.die(n, false, "the process ended", false);
        if fenced && self.mutant == Some(Mutant::FencedStaysDown) {
            return;
        }
        let fast = self.healed || self.rng.random_bool(0.5);
        let delay = if fast { 50_000 } else { 2_000_000 };
        self.later(delay, Act::Start { n, fresh: false });
    }

    /// Frames may leave from here on; this happens to the process after so many.
    pub fn begin_output(&mut self, n: usize, snag: Option<(u32, Snag)>) {
        let clock = self.nodes[n].clock(self.now);
        let pace = match self.mutant {
            Some(Mutant::IgnorePermit) => Pace::Never,
            Some(Mutant::ClockStopsInFreeze) => Pace::StandsInFreeze,
            _ => Pace::Goes,
        };
        self.nodes[n].exec.card.begin(clock, pace, snag);
    }

    /// Frames that have left are looked at, each at the time that it left. Says whether the snag was met.
    pub fn end_output(&mut self, n: usize) -> bool {
        let left = self.nodes[n].exec.card.end();
        let inc = self.nodes[n].inc;
        for (late_us, frame) in left.frames {
            match late_us {
                0 => self.emit(n, frame),
                us => self.later(us, Act::Emitted { n, inc, frame }),
            }
        }
        left.stalled_us > 0 || left.dead
    }

    fn frozen_in_release(&mut self, n: usize, us: u64) {
        self.stats.add(Count::FrozenInRelease);
        self.nodes[n].frozen_in_release = true;
        self.trip(n, Trip::Freeze { us });
    }
}

/// What a node answers that follows whatever the core says.
fn answer_to(event: &Event) -> Option<(ConnId, Message<'static>)> {
    match event {
        // Whichever connection it comes on.
        Event::Heartbeat { conn, stamp, lease } => {
            Some((*conn, Message::Echo { stamp_us: *stamp, lease_us: *lease }))
        }
        Event::Sealed { conn, epoch, stamp, .. } => {
            Some((*conn, Message::Ack(Ack { epoch: *epoch, stamp_us: *stamp })))
        }
        _ => None,
    }
}
