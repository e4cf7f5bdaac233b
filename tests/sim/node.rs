//! A node's executor: it does what the daemon's does with the core's commands, one small step at a time, so that a
//! freeze or a kill can fall between any two of them.

use ftd::role::{Command, ConnId, Event, Exit, Gone, Held, Welcome};
use rand::Rng;

use crate::model::{Ask, Checkpoint, Frame, Gate, Image, Input, Item, Msg, Mutant, NAMES, Replication, Vm};
use crate::stats::Count;
use crate::trace;
use crate::world::{Act, Hook, World};

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
            if node.todo.is_empty() && node.inbox.is_empty() {
                return;
            }
            match &mut node.trip {
                Some((0, trip)) => {
                    let trip = *trip;
                    node.trip = None;
                    self.trip(n, trip);
                    continue;
                }
                Some((steps, _)) => *steps -= 1,
                None => {}
            }
            self.step(n);
            let node = &mut self.nodes[n];
            if node.slow_us > 0 && node.up {
                node.stepping = true;
                let inc = node.inc;
                let delay = self.rng.random_range(1..=self.nodes[n].slow_us);
                self.later(delay, Act::Step { n, inc });
            }
        }
    }

    fn step(&mut self, n: usize) {
        if let Some(command) = self.nodes[n].todo.pop_front() {
            return self.execute(n, command);
        }
        let Some(input) = self.nodes[n].inbox.pop_front() else { return };
        let event = match input {
            Input::Event(event) => event,
            Input::Reset(conn) => {
                if !self.is_open(n, conn) {
                    return;
                }
                self.close(n, conn, false);
                Event::PeerGone { conn, why: Gone::Lost("reset".into()) }
            }
            Input::Net(conn, item) => match self.take_item(n, conn, item) {
                Some(event) => event,
                None => return,
            },
        };
        // The daemon's follower has ended before anything new is received: its news comes first.
        if matches!(event, Event::StateLost(_)) && !self.nodes[n].exec.diverged {
            return;
        }
        match event {
            Event::PeerGone { .. } => {
                self.hook(Hook::PeerGone);
                if self.mutant == Some(Mutant::PassOnLoss) && self.nodes[n].exec.vm.is_some() {
                    self.nodes[n].todo.push_back(Command::EmitFreely);
                }
            }
            Event::FirstCaptured { .. } => self.hook(Hook::FirstCaptured),
            Event::PeerHello { .. } => self.hook(Hook::Hello),
            Event::Ack { .. } => self.hook(Hook::Ack),
            _ => {}
        }
        if event != Event::Tick {
            trace!(self, "{} <- {event:?}", NAMES[n]);
        }
        let answer = match &event {
            _ if self.mutant != Some(Mutant::FollowAnyway) => None,
            Event::Heartbeat { conn, stamp } => Some(Command::SendEcho { conn: *conn, stamp: *stamp }),
            Event::Sealed { conn, epoch, stamp, .. } => {
                Some(Command::SendAck { conn: *conn, epoch: *epoch, stamp: *stamp })
            }
            _ => None,
        };
        let welcomed = match event {
            Event::Welcomed { conn, pairing, resumed, .. } => Some((conn, pairing, resumed)),
            _ => None,
        };
        let node = &mut self.nodes[n];
        if let (Event::PairingBroken { .. }, Some(repl)) = (&event, &mut node.exec.repl) {
            repl.known_broken = repl.broken;
        }
        let now = node.clock(self.now);
        let mut commands = Vec::new();
        if let Some(core) = &mut node.core {
            core.handle(now, event, &mut commands);
        }
        // A connection that the core does not follow is closed.
        if let Some((welcomed, pairing, resumed)) = welcomed
            && !commands
                .iter()
                .any(|command| matches!(command, Command::Follow { conn, .. } if *conn == welcomed))
        {
            commands.push(match self.mutant {
                Some(Mutant::FollowAnyway) => Command::Follow { conn: welcomed, pairing, resumed },
                _ => Command::DropLink { conn: welcomed },
            });
        }
        if let Some(answer) = answer
            && !commands.contains(&answer)
        {
            commands.push(answer);
        }
        node.todo.extend(commands);
    }

    /// What the executor makes of something that came in on a connection.
    fn take_item(&mut self, n: usize, conn: ConnId, item: Item) -> Option<Event> {
        let open = self.is_open(n, conn);
        let msg = match item {
            Item::Fin if open => {
                self.close(n, conn, true);
                return Some(Event::PeerGone { conn, why: Gone::Lost("closed".into()) });
            }
            Item::Fin => return None,
            Item::Msg(msg) => msg,
        };
        Some(match msg {
            Msg::Hello { generation, held } => Event::PeerHello { conn, generation, held },
            Msg::Refuse if open => {
                self.close(n, conn, true);
                return None;
            }
            Msg::Welcome { generation, pairing, resumed } if open => {
                let exec = &mut self.nodes[n].exec;
                exec.attempt = None;
                exec.dialling = false;
                self.hook(Hook::Welcome);
                Event::Welcomed { conn, generation, pairing, resumed }
            }
            Msg::Refuse | Msg::Welcome { .. } => return None,
            Msg::Progress => Event::Heard { conn },
            Msg::Part { pairing, epoch, counter } => {
                if self.mutant == Some(Mutant::SealAtFirstPiece) && open {
                    self.nodes[n].exec.image = Some(Image { pairing, epoch, counter, complete: false });
                }
                Event::Heard { conn }
            }
            msg @ Msg::End { .. } => return if open { self.seal(n, conn, msg) } else { None },
            Msg::Ack { epoch, stamp } => {
                if let Some(repl) = self.nodes[n].exec.repl.as_mut().filter(|repl| repl.conn == Some(conn)) {
                    while repl.owed.front().is_some_and(|owed| owed.epoch <= epoch) {
                        repl.owed.pop_front();
                    }
                }
                Event::Ack { conn, epoch, stamp }
            }
            Msg::Heartbeat { stamp } => Event::Heartbeat { conn, stamp },
            Msg::Echo { stamp } => Event::Echo { conn, stamp },
            Msg::Paired { generation } => Event::Paired { conn, generation },
            // Told when all of it is executed.
            Msg::HandOver { epoch } => self.verify(n, Event::HandedOver { conn, epoch }),
            Msg::TookOver { generation } => Event::PeerTookOver { conn, generation },
            Msg::Decline { why } => Event::HandOverDeclined { conn, why },
            Msg::Bye { why } => {
                if open {
                    self.close(n, conn, true);
                }
                Event::PeerGone { conn, why: Gone::Bye(why) }
            }
        })
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
            self.close(n, conn, false);
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

    /// Looks at all that is held: the news, or that it is of no use.
    fn verify(&mut self, n: usize, news: Event) -> Event {
        let exec = &mut self.nodes[n].exec;
        if exec.diverged && self.mutant != Some(Mutant::VerifiesNothing) {
            return Event::StateLost("diverged".into());
        }
        exec.verified = exec.image.map(|image| image.epoch);
        news
    }

    /// The answer to the core's question whether what is held is good.
    pub fn verified(&mut self, n: usize, inc: u32, epoch: u64) {
        if self.nodes[n].inc == inc && self.nodes[n].up && self.nodes[n].exec.image.is_some() {
            let answer = self.verify(n, Event::Verified { epoch });
            self.incoming(n, Input::Event(answer));
        }
    }

    /// This end of a connection is closed: nothing is sent on it or taken from it any more.
    pub fn forget_conn(&mut self, n: usize, conn: ConnId) {
        let forget = self.mutant == Some(Mutant::ForgetOwed);
        let exec = &mut self.nodes[n].exec;
        if let Some(repl) = exec.repl.as_mut().filter(|repl| repl.conn == Some(conn)) {
            repl.conn = None;
            if forget {
                repl.owed.clear();
            }
        }
        if exec.recv.is_some_and(|(from, _)| from == conn) {
            exec.recv = None;
        }
        if exec.attempt.is_some_and(|(attempt, _)| attempt == conn) {
            exec.attempt = None;
        }
    }

    fn execute(&mut self, n: usize, command: Command) {
        if !matches!(command, Command::Release { .. }) {
            trace!(self, "{} -> {command:?}", NAMES[n]);
        }
        match command {
            Command::ReadCell => self.ask(n, Ask::Read),
            Command::CompareAndSet { expected, new } => self.ask(n, Ask::Set { expected, new }),
            Command::Dial => {
                let inc = self.nodes[n].inc;
                let exec = &mut self.nodes[n].exec;
                exec.dialling = true;
                if !exec.dial_loop {
                    exec.dial_loop = true;
                    let delay = self.rng.random_range(0..10_000);
                    self.later(delay, Act::Dial { n, inc });
                }
            }
            Command::StopDialling => self.nodes[n].exec.dialling = false,
            Command::Welcome { conn, pairing, generation, how } => {
                self.welcome(n, conn, pairing, generation, how);
            }
            Command::Refuse { conn, .. } => {
                self.send(n, conn, Msg::Refuse);
                self.close(n, conn, true);
            }
            Command::Follow { conn, pairing, resumed: _ } => {
                self.nodes[n].exec.recv = Some((conn, pairing));
            }
            Command::DropLink { conn } => {
                let in_order = self.rng.random_bool(0.7);
                self.close(n, conn, in_order);
            }
            Command::EndPairing => self.nodes[n].exec.repl = None,
            Command::Boot => {
                self.check_boot(n);
                self.begin_run(n, 0);
            }
            Command::EmitFreely => {
                let exec = &mut self.nodes[n].exec;
                match exec.frames.pop_front() {
                    Some(frame) => {
                        self.nodes[n].todo.push_front(Command::EmitFreely);
                        self.emit(n, frame);
                    }
                    None if exec.vm.is_some() => exec.gate = Gate::Passing,
                    None => {}
                }
            }
            Command::Release { through, until } => self.release(n, through, until),
            Command::SendHeartbeat { conn, stamp } => self.send(n, conn, Msg::Heartbeat { stamp }),
            Command::SendPaired { conn, generation } => {
                self.stats.add(Count::Protected);
                self.send(n, conn, Msg::Paired { generation });
            }
            Command::FinalCheckpoint => self.begin_last(n),
            Command::SendHandOver { conn, epoch } => {
                self.send(n, conn, Msg::HandOver { epoch });
                self.hook(Hook::HandOver);
            }
            Command::Thaw => {
                if let Some(repl) = &mut self.nodes[n].exec.repl {
                    repl.last = None;
                }
            }
            Command::SendAck { conn, epoch, stamp } => self.send(n, conn, Msg::Ack { epoch, stamp }),
            Command::SendEcho { conn, stamp } => self.send(n, conn, Msg::Echo { stamp }),
            Command::SendDecline { conn, why } => self.send(n, conn, Msg::Decline { why }),
            Command::TakeOver { epoch, generation } => self.take_over(n, epoch, generation),
            Command::SendTookOver { conn, generation } => {
                self.stats.add(Count::HandedOver);
                self.send(n, conn, Msg::TookOver { generation });
            }
            Command::Verify { epoch } => {
                let inc = self.nodes[n].inc;
                // Not drawn: what others draw stays what it is.
                self.later(1_000 * (self.now % 31), Act::Verified { n, inc, epoch });
            }
            Command::Discard => {
                self.check_discard(n);
                self.nodes[n].exec.image = None;
                self.nodes[n].exec.diverged = false;
                self.nodes[n].exec.verified = None;
                self.check_copies("discarded", self.nodes[n].stopping);
            }
            Command::StopVm => {
                let exec = &mut self.nodes[n].exec;
                let ended = exec.vm.take().is_some_and(|vm| vm.ended);
                exec.gate = Gate::Muted;
                exec.frames.clear();
                exec.repl = None;
                self.check_stopped(n, ended);
            }
            Command::SendBye { conn, why } => self.send(n, conn, Msg::Bye { why }),
            Command::SwitchoverDone(Ok(())) => self.stats.add(Count::SwitchoversDone),
            Command::SwitchoverDone(Err(_)) => self.stats.add(Count::SwitchoversFailed),
            Command::Exit(exit) => {
                self.stats.add(Count::Exits);
                if matches!(exit, Exit::Fenced(_)) {
                    self.stats.add(Count::Fences);
                }
                self.die(n, false, "the process ended", true);
                let fast = self.healed || self.rng.random_bool(0.5);
                let delay = if fast { 50_000 } else { 2_000_000 };
                self.later(delay, Act::Start { n, fresh: false });
            }
        }
    }

    fn welcome(&mut self, n: usize, conn: ConnId, pairing: u64, generation: u64, how: Welcome) {
        let resumed = matches!(how, Welcome::ResumeAfter(_));
        self.send(n, conn, Msg::Welcome { generation, pairing, resumed });
        let open = self.is_open(n, conn).then_some(conn);
        let inc = self.nodes[n].inc;
        match how {
            Welcome::Copy => {
                self.repls += 1;
                let repl = self.repls;
                self.nodes[n].exec.repl = Some(Replication {
                    id: repl,
                    conn: open,
                    pairing,
                    copying: true,
                    next_epoch: 1,
                    owed: Default::default(),
                    last: None,
                    broken: false,
                    known_broken: false,
                });
                let left = self.rng.random_range(0..6);
                self.later(3_000, Act::Copy { n, inc, repl, left });
            }
            Welcome::ResumeAfter(epoch) => {
                self.stats.add(Count::Resumed);
                let Some(repl) = &mut self.nodes[n].exec.repl else {
                    return self.fail(format!("{} resumes a pairing that it has not", NAMES[n]));
                };
                if repl.pairing != pairing {
                    return self.fail(format!("{} resumes another pairing", NAMES[n]));
                }
                if repl.known_broken {
                    return self.fail(format!("{} resumes a pairing that ships nothing", NAMES[n]));
                }
                repl.conn = open;
                while repl.owed.front().is_some_and(|owed| owed.epoch <= epoch) {
                    repl.owed.pop_front();
                }
                let owed: Vec<_> = repl.owed.iter().copied().collect();
                let first = owed.first().map_or(repl.next_epoch, |owed| owed.epoch);
                if first != epoch + 1 {
                    return self
                        .fail(format!("I4: {} resumes after {epoch}, but owes from {first}", NAMES[n]));
                }
                for checkpoint in owed {
                    self.send_checkpoint(n, checkpoint);
                }
            }
        }
    }

    fn send_checkpoint(&mut self, n: usize, checkpoint: Checkpoint) {
        let Some(repl) = self.nodes[n].exec.repl.as_ref().filter(|repl| !repl.broken) else { return };
        let (Some(conn), pairing) = (repl.conn, repl.pairing) else { return };
        let Checkpoint { epoch, counter } = checkpoint;
        if self.mutant == Some(Mutant::SealAtFirstPiece) || self.rng.random_bool(0.1) {
            self.send(n, conn, Msg::Part { pairing, epoch, counter });
        }
        let stamp = self.nodes[n].clock(self.now);
        self.send(n, conn, Msg::End { pairing, epoch, counter, stamp });
    }

    pub fn copy_on(&mut self, n: usize, inc: u32, id: u32, left: u32) {
        let Some(repl) = self.nodes[n].exec.repl.as_ref().filter(|repl| repl.id == id && repl.copying) else {
            return;
        };
        let (Some(conn), pairing) = (repl.conn, repl.pairing) else { return };
        if left > 0 {
            self.send(n, conn, Msg::Progress);
            let delay = self.rng.random_range(2_000..20_000);
            return self.later(delay, Act::Copy { n, inc, repl: id, left: left - 1 });
        }
        if self.nodes[n].exec.vm.is_none() {
            return;
        }
        if let Some(repl) = &mut self.nodes[n].exec.repl {
            repl.copying = false;
        }
        if self.mutant != Some(Mutant::HoldTooLate) {
            self.nodes[n].exec.gate = Gate::Holding;
        }
        self.incoming(n, Input::Event(Event::FirstCaptured { pairing }));
        self.capture(n);
        let epoch = self.knobs.epoch_us;
        self.later(epoch, Act::Capture { n, inc, repl: id });
    }

    pub fn capture_tick(&mut self, n: usize, inc: u32, id: u32) {
        let depth = self.knobs.depth;
        let Some(repl) = self.nodes[n].exec.repl.as_ref().filter(|repl| repl.id == id) else { return };
        if repl.last.is_none() && repl.owed.len() < depth {
            self.capture(n);
        }
        let epoch = self.knobs.epoch_us;
        self.later(epoch, Act::Capture { n, inc, repl: id });
    }

    fn capture(&mut self, n: usize) {
        let at_capture = self.mutant == Some(Mutant::ReleaseAtCapture);
        let exec = &mut self.nodes[n].exec;
        let (Some(repl), Some(vm)) = (&mut exec.repl, &exec.vm) else { return };
        let checkpoint = Checkpoint { epoch: repl.next_epoch, counter: vm.counter };
        repl.next_epoch += 1;
        repl.owed.push_back(checkpoint);
        if at_capture {
            self.nodes[n].todo.push_back(Command::Release { through: checkpoint.epoch, until: u64::MAX });
        }
        trace!(self, "{} captured {checkpoint:?}", NAMES[n]);
        self.send_checkpoint(n, checkpoint);
        self.drive(n);
    }

    fn begin_last(&mut self, n: usize) {
        self.repls += 1;
        let request = self.repls;
        let inc = self.nodes[n].inc;
        match &mut self.nodes[n].exec.repl {
            Some(repl) => repl.last = Some(request),
            None => return self.fail(format!("{} is to capture a last checkpoint of no pairing", NAMES[n])),
        }
        let delay = self.rng.random_range(0..5_000);
        self.later(delay, Act::Last { n, inc, request });
    }

    pub fn capture_last(&mut self, n: usize, request: u32) {
        let Some(repl) = self.nodes[n].exec.repl.as_ref().filter(|repl| repl.last == Some(request)) else {
            return;
        };
        let epoch = repl.next_epoch;
        self.capture(n);
        self.incoming(n, Input::Event(Event::FinalCaptured { epoch }));
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
                let generation = node.core.as_ref().map_or(0, |core| core.generation());
                let held = node.exec.image.map(|image| Held { pairing: image.pairing, epoch: image.epoch });
                let conn = self.connect(n, Msg::Hello { generation, held });
                self.nodes[n].exec.attempt = Some((conn, self.now));
                trace!(self, "{} dials on {conn}, holds {held:?}", NAMES[n]);
            }
        }
        let delay = self.rng.random_range(10_000..30_000);
        self.later(delay, Act::Dial { n, inc });
    }

    fn begin_run(&mut self, n: usize, counter: u64) {
        let run = self.truth.newest_run().unwrap_or(0);
        let inc = self.nodes[n].inc;
        let exec = &mut self.nodes[n].exec;
        exec.vm = Some(Vm { run, counter, ended: false });
        exec.gate = Gate::Passing;
        exec.frames.clear();
        self.later(1_000, Act::Vm { n, inc, run });
    }

    fn take_over(&mut self, n: usize, epoch: u64, generation: u64) {
        self.check_take_over(n, epoch, generation);
        let Some(image) = self.nodes[n].exec.image.take() else { return };
        self.hook(Hook::TakeOver);
        self.nodes[n].exec.verified = None;
        if std::mem::take(&mut self.nodes[n].fail_takeover) {
            self.stats.add(Count::FaultTakeOver);
            self.check_copies("restoring failed", true);
            return self.incoming(n, Input::Event(Event::TakeOverFailed("no memory".into())));
        }
        self.begin_run(n, image.counter);
    }

    /// The VM goes on a little: its counter advances, and most times it sends a frame.
    pub fn run_vm(&mut self, n: usize, inc: u32, run: u32) {
        let depth = self.knobs.depth;
        let epoch_us = self.knobs.epoch_us;
        let sends = self.rng.random_bool(0.7);
        let born = self.now;
        let exec = &mut self.nodes[n].exec;
        let Some(vm) = exec.vm.as_mut().filter(|vm| vm.run == run && !vm.ended) else { return };
        let waits = exec.repl.as_ref().is_some_and(|repl| {
            repl.last.is_some() || !repl.copying && repl.owed.len() >= depth && exec.gate == Gate::Holding
        });
        if !waits {
            vm.counter += 1;
            if sends {
                let epoch = exec.repl.as_ref().map_or(u64::MAX, |repl| repl.next_epoch);
                let frame = Frame { run, counter: vm.counter, epoch, born };
                match exec.gate {
                    Gate::Passing => self.emit(n, frame),
                    Gate::Holding => exec.frames.push_back(frame),
                    Gate::Muted => {}
                }
            }
        }
        let delay = self.rng.random_range(epoch_us / 3..epoch_us);
        self.later(delay, Act::Vm { n, inc, run });
    }

    /// One frame, or the end, of a release.
    fn release(&mut self, n: usize, through: u64, until: u64) {
        let ignore = self.mutant == Some(Mutant::IgnorePermit);
        let now = self.nodes[n].clock(self.now);
        let exec = &mut self.nodes[n].exec;
        if exec.frames.front().is_none_or(|frame| frame.epoch > through) {
            return;
        }
        if now >= until && !ignore {
            self.stats.add(Count::ReleaseCuts);
            return self.incoming(n, Input::Event(Event::ReleaseCut));
        }
        if let Some(frame) = exec.frames.pop_front() {
            self.stats.add(Count::FramesHeld);
            self.nodes[n].todo.push_front(Command::Release { through, until });
            self.emit(n, frame);
            self.hook(Hook::Release);
        }
    }
}
