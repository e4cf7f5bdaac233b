//! The primary: it owns the cell and runs the VM; alone (solo), while a backup is being made, or protected by one.

use super::backup::Backup;
use super::command::{Command, Exit, Welcome};
use super::core::{Core, Next, Settled, ViewState};
use super::event::{ConnId, Event, Gone, GuestEnd, Held, Micros};
use crate::arbiter::{Cell, Standby};

/// A node that owns the VM.
#[derive(Clone, Debug)]
pub(super) struct Primary {
    /// The cell as we last set it. Its generation is ours.
    cell: Cell,
    link: Option<Link>,
    pair: Pair,
    /// Nothing can be shipped under the pairing any more: it is never resumed.
    broken: bool,
    permit: Permit,
    handover: Option<HandOver>,
    ending: Option<Ending>,
    /// Why the state is what it is, for the operator.
    why: String,
}

#[derive(Clone, Debug)]
struct Link {
    conn: ConnId,
    last_heard: Micros,
    last_beat: Micros,
}

/// How far a backup has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pair {
    /// None. The cell names no standby: output passes.
    Solo,
    /// It receives the full copy. Output passes.
    Copying { pairing: u64 },
    /// The first checkpoint is captured: from it on, output is held.
    Sealing { pairing: u64 },
    /// The first checkpoint is acked; the cell is being asked to name the standby. Counts as protected.
    Enlisting { pairing: u64 },
    /// The cell names the standby.
    Protected { pairing: u64 },
    /// The cell names the standby, but the peer is lost: asking the cell to be alone. Output is held.
    Alone { pairing: u64 },
}

impl Pair {
    fn pairing(self) -> Option<u64> {
        match self {
            Self::Solo => None,
            Self::Copying { pairing }
            | Self::Sealing { pairing }
            | Self::Enlisting { pairing }
            | Self::Protected { pairing }
            | Self::Alone { pairing } => Some(pairing),
        }
    }
}

/// The permission to release.
#[derive(Clone, Copy, Debug, Default)]
struct Permit {
    acked: u64,
    until: Micros,
    /// Something acked is still held, because the permission had lapsed.
    wanting: bool,
}

/// A planned switchover under way.
#[derive(Clone, Debug)]
struct HandOver {
    step: Step,
    since: Micros,
    /// Stop this node afterwards.
    then_stop: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The VM is being paused for its last checkpoint.
    Pausing,
    /// The last checkpoint is on its way.
    Draining(u64),
    /// The backup was asked to go on. We emit nothing more unless the cell says so.
    Offered,
}

/// The VM's end: the cell is being told.
#[derive(Clone, Debug)]
struct Ending {
    end: End,
    since: Micros,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Exit(Exit),
    Reboot,
}

impl Primary {
    /// Owns `cell`, runs alone.
    pub(super) fn solo(cell: Cell, why: &str) -> Self {
        Self {
            cell,
            link: None,
            pair: Pair::Solo,
            broken: false,
            permit: Permit::default(),
            handover: None,
            ending: None,
            why: why.into(),
        }
    }

    pub(super) fn on_event(&mut self, core: &mut Core, event: Event) -> Option<Next> {
        match event {
            Event::Tick => return self.on_tick(core),
            Event::PeerHello { conn, generation, held } => {
                return self.on_hello(core, conn, generation, held);
            }
            Event::PeerGone { conn, why } if self.is_linked(conn) => {
                let why = match why {
                    Gone::Lost(why) => format!("lost the backup: {why}"),
                    Gone::Bye(why) => format!("the backup left: {why}"),
                };
                return self.lose_peer(core, why);
            }
            Event::Heard { conn } => self.heard(core, conn),
            Event::FirstCaptured { pairing } if self.pair == (Pair::Copying { pairing }) => {
                self.pair = Pair::Sealing { pairing };
            }
            Event::Ack { conn, epoch, stamp } if self.is_linked(conn) => {
                return self.on_ack(core, conn, epoch, stamp);
            }
            Event::Echo { conn, stamp } if self.is_linked(conn) => {
                self.heard(core, conn);
                if let Err(why) = self.extend_permit(core, stamp) {
                    return self.drop_peer(core, why);
                }
                if self.permit.wanting {
                    self.release(core);
                    self.offer_if_drained(core);
                }
            }
            Event::ReleaseCut => {
                self.permit.wanting = true;
                self.beat(core);
            }
            Event::PairingBroken { pairing, why } if self.pair.pairing() == Some(pairing) => {
                self.broken = true;
                let why = format!("the pairing broke: {why}");
                return match &self.link {
                    Some(_) => self.drop_peer(core, why),
                    None => {
                        self.why = why;
                        None
                    }
                };
            }
            Event::FinalCaptured { epoch } => {
                if let Some(handover) = &mut self.handover
                    && handover.step == Step::Pausing
                {
                    handover.step = Step::Draining(epoch);
                    self.offer_if_drained(core);
                }
            }
            Event::PeerTookOver { conn, .. } if self.is_linked(conn) => {
                // The cell is the witness, not the peer: asking to be alone finds out.
                return self.lose_peer(core, "the peer says that it runs the VM".into());
            }
            Event::HandOverDeclined { conn, why } if self.is_linked(conn) && self.has_offered() => {
                return self.abandon_handover(core, format!("the backup declined: {why}"));
            }
            Event::TakeOverFailed(why) => {
                core.out.push(Command::StopVm);
                return Some(Next::Ended(Exit::Failed(format!("take-over failed: {why}"))));
            }
            Event::SwitchoverRequested => self.on_switchover(core, false),
            Event::StopRequested => return self.on_stop(core),
            Event::GuestEnded(end) => return self.on_guest_end(core, end),
            _ => {}
        }
        None
    }

    fn is_linked(&self, conn: ConnId) -> bool {
        self.link.as_ref().is_some_and(|link| link.conn == conn)
    }

    fn has_offered(&self) -> bool {
        self.handover.as_ref().is_some_and(|handover| handover.step == Step::Offered)
    }

    /// The cell may be about to name nobody, or does so already.
    fn is_giving_up(&self, core: &Core) -> bool {
        matches!(&self.ending, Some(Ending { end: End::Exit(_), .. })) && core.arbiter.is_setting()
    }

    fn heard(&mut self, core: &Core, conn: ConnId) {
        if let Some(link) = &mut self.link
            && link.conn == conn
        {
            link.last_heard = core.now;
        }
    }

    pub(super) fn excuse_silence(&mut self, now: Micros) {
        if let Some(link) = &mut self.link {
            link.last_heard = now;
        }
    }

    fn on_tick(&mut self, core: &mut Core) -> Option<Next> {
        if let Some(link) = &self.link {
            let silence = core.now.saturating_sub(link.last_heard);
            if silence > core.policy.failure_timeout_us {
                return self.drop_peer(core, format!("silent for {} ms", silence / 1000));
            }
            if core.now.saturating_sub(link.last_beat) >= core.policy.heartbeat_us {
                self.beat(core);
            }
        }
        if let Some(handover) = &self.handover
            && core.now.saturating_sub(handover.since) > core.policy.patience_us
        {
            match handover.step {
                Step::Pausing | Step::Draining(_) => {
                    return self.abandon_handover(core, "the last checkpoint was not acked in time".into());
                }
                // It may have taken over: only the cell can tell.
                Step::Offered if self.link.is_some() => {
                    return self.drop_peer(core, "it did not take over in time".into());
                }
                Step::Offered => {}
            }
        }
        if let Some(ending) = &self.ending
            && core.now.saturating_sub(ending.since) > core.policy.patience_us
            && !core.arbiter.is_setting()
        {
            let why = format!(
                "the VM has ended, but the arbiter could not be told: the cell still says {}",
                describe(&self.cell)
            );
            core.out.push(Command::StopVm);
            return Some(Next::Ended(Exit::Failed(why)));
        }
        None
    }

    fn beat(&mut self, core: &mut Core) {
        if let Some(link) = &mut self.link {
            link.last_beat = core.now;
            core.out.push(Command::SendHeartbeat { conn: link.conn, stamp: core.now });
        }
    }

    fn on_hello(
        &mut self,
        core: &mut Core,
        conn: ConnId,
        generation: u64,
        held: Option<Held>,
    ) -> Option<Next> {
        let refuse = |core: &mut Core, why: &str| core.out.push(Command::Refuse { conn, why: why.into() });
        let mut next = None;
        if self.link.is_some() {
            // One backup, one connection: it has begun anew before we noticed.
            next = self.drop_peer(core, "it connected anew".into());
            if next.is_some() {
                return next;
            }
        }
        if self.ending.is_some() || self.handover.is_some() || core.stop_requested {
            refuse(core, "the VM is stopping or moving");
            return next;
        }
        if generation > self.cell.generation {
            refuse(core, &format!("you know generation {generation}, I own {}", self.cell.generation));
            return next;
        }
        let link = Link { conn, last_heard: core.now, last_beat: core.now };
        match self.pair {
            Pair::Solo => {
                let pairing = core.new_pairing();
                self.pair = Pair::Copying { pairing };
                self.link = Some(link);
                self.permit = Permit::default();
                let generation = self.cell.generation;
                core.out.push(Command::Welcome { conn, pairing, generation, how: Welcome::Copy });
            }
            // The peer is back, and holds what the cell says. As long as nothing is being asked of the cell, the pair
            // can simply go on.
            Pair::Alone { pairing } if !core.arbiter.is_setting() => match held {
                Some(held) if !self.broken && held.pairing == pairing && held.epoch >= self.permit.acked => {
                    self.pair = Pair::Protected { pairing };
                    self.link = Some(link);
                    self.permit = Permit { acked: held.epoch, until: 0, wanting: true };
                    let generation = self.cell.generation;
                    let how = Welcome::ResumeAfter(held.epoch);
                    core.out.push(Command::Welcome { conn, pairing, generation, how });
                    // It may have been lost before it was ever told.
                    core.out.push(Command::SendPaired { conn, generation });
                    self.why = "in step".into();
                    self.beat(core);
                }
                _ => refuse(core, "the arbiter has not yet said that I may go on without you"),
            },
            _ => refuse(core, "the arbiter is being asked"),
        }
        next
    }

    fn on_ack(&mut self, core: &mut Core, conn: ConnId, epoch: u64, stamp: Micros) -> Option<Next> {
        self.heard(core, conn);
        if matches!(self.pair, Pair::Solo | Pair::Copying { .. }) {
            return self.drop_peer(core, format!("it acked epoch {epoch} of a pairing that has none"));
        }
        if let Err(why) = self.extend_permit(core, stamp) {
            return self.drop_peer(core, why);
        }
        self.permit.acked = self.permit.acked.max(epoch);
        if let Pair::Sealing { pairing } = self.pair {
            self.pair = Pair::Enlisting { pairing };
            core.arbiter.hurry();
        }
        self.release(core);
        self.offer_if_drained(core);
        None
    }

    fn extend_permit(&mut self, core: &Core, stamp: Micros) -> Result<(), String> {
        if stamp > core.now {
            return Err(format!("it answered a stamp of the future ({stamp} us, now {} us)", core.now));
        }
        self.permit.until = self.permit.until.max(stamp + core.policy.lease_us);
        Ok(())
    }

    /// Lets out what is acked, if the permission is alive; else asks for it anew.
    fn release(&mut self, core: &mut Core) {
        if self.has_offered() {
            return;
        }
        if self.is_giving_up(core) {
            // Once the cell names nobody, anybody may found anew; no lease binds a founder.
            self.permit.wanting = true;
            return;
        }
        if core.now < self.permit.until {
            self.permit.wanting = false;
            core.out.push(Command::Release { through: self.permit.acked, until: self.permit.until });
        } else if !self.permit.wanting {
            self.permit.wanting = true;
            self.beat(core);
        }
    }

    /// Closes the connection from our side, then does as when it is lost.
    fn drop_peer(&mut self, core: &mut Core, why: String) -> Option<Next> {
        if let Some(link) = &self.link {
            core.drop_link(link.conn);
        }
        self.lose_peer(core, format!("lost the backup: {why}"))
    }

    fn lose_peer(&mut self, core: &mut Core, why: String) -> Option<Next> {
        self.link = None;
        self.why = why;
        match self.pair {
            Pair::Solo | Pair::Alone { .. } => {}
            Pair::Copying { .. } | Pair::Sealing { .. } => self.go_solo(core),
            // The request to name it may be under way: what we are, its answer says.
            Pair::Enlisting { .. } if core.arbiter.is_setting() => {}
            Pair::Enlisting { .. } => self.go_solo(core),
            Pair::Protected { pairing } => {
                self.pair = Pair::Alone { pairing };
                core.arbiter.hurry();
            }
        }
        None
    }

    /// The cell names nobody but us: everything may leave.
    fn go_solo(&mut self, core: &mut Core) {
        self.pair = Pair::Solo;
        self.broken = false;
        self.permit = Permit::default();
        core.out.push(Command::EndPairing);
        if !self.is_giving_up(core) {
            core.out.push(Command::EmitFreely);
        }
        if self.handover.take().is_some() {
            core.out.push(Command::Thaw);
            core.out.push(Command::SwitchoverDone(Err(self.why.clone())));
        }
        if core.stop_requested {
            self.shut_down(core);
        }
    }

    /// What the state wants of the arbiter.
    pub(super) fn pursue(&mut self, core: &mut Core) {
        let generation = self.cell.generation + 1;
        let me = Some(core.policy.node.clone());
        let new = match (&self.ending, self.pair) {
            (Some(Ending { end: End::Exit(_), .. }), _) => Cell { generation, owner: None, standby: None },
            (Some(Ending { end: End::Reboot, .. }), _) => Cell { generation, owner: me, standby: None },
            (None, Pair::Enlisting { pairing }) => {
                let standby = Some(Standby { node: core.policy.peer.clone(), pairing });
                Cell { generation, owner: me, standby }
            }
            (None, Pair::Alone { .. }) => Cell { generation, owner: me, standby: None },
            _ => return,
        };
        core.ask_set(Some(self.cell.generation), new);
    }

    pub(super) fn on_settled(&mut self, core: &mut Core, settled: Settled) -> Option<Next> {
        match settled {
            Settled::Won(cell) => self.on_won(core, cell),
            Settled::Lost(cell) => self.on_lost(core, cell),
            Settled::NotAttempted(why) => {
                if let (Pair::Enlisting { .. }, None) = (self.pair, &self.link) {
                    self.go_solo(core);
                }
                self.why = format!("the arbiter does not answer: {why}");
                self.stop_if_left_to_peer(core)
            }
        }
    }

    fn on_won(&mut self, core: &mut Core, cell: Cell) -> Option<Next> {
        let standby = cell.standby.as_ref().map(|standby| standby.pairing);
        let released = cell.owner.is_none();
        self.cell = cell;
        if let Some(pairing) = standby {
            match (&self.link, self.pair) {
                (Some(link), Pair::Enlisting { pairing: ours }) if ours == pairing => {
                    self.pair = Pair::Protected { pairing };
                    self.why = "in step".into();
                    core.out.push(Command::SendPaired { conn: link.conn, generation: self.cell.generation });
                }
                // It was lost while the cell was being asked to name it; now the cell does.
                _ => self.pair = Pair::Alone { pairing },
            }
            return None;
        }
        if released {
            let end = self.ending.take().map(|ending| ending.end);
            self.say_bye(core, "the VM has ended");
            core.out.push(Command::EndPairing);
            core.out.push(Command::StopVm);
            let exit = match end {
                Some(End::Exit(exit)) => exit,
                _ => Exit::Stopped("the VM was shut down".into()),
            };
            return Some(Next::Ended(exit));
        }
        if let Some(Ending { end: End::Reboot, .. }) = self.ending {
            self.ending = None;
            return self.reboot(core);
        }
        // We are alone, by the cell. A peer that is still connected is a stranger now.
        if let Some(link) = self.link.take() {
            core.drop_link(link.conn);
        }
        self.go_solo(core);
        None
    }

    fn on_lost(&mut self, core: &mut Core, cell: Option<Cell>) -> Option<Next> {
        let handed_over = self.handover.take();
        core.out.push(Command::EndPairing);
        core.out.push(Command::StopVm);
        if let Some(link) = self.link.take() {
            core.drop_link(link.conn);
        }
        let owner = cell.as_ref().and_then(|cell| cell.owner.clone());
        if let Some(HandOver { step: Step::Offered, then_stop, .. }) = handed_over
            && owner.as_deref() == Some(&core.policy.peer)
        {
            core.out.push(Command::SwitchoverDone(Ok(())));
            if then_stop {
                return Some(Next::Ended(Exit::Stopped(format!("the VM moved to {}", core.policy.peer))));
            }
            return Some(Next::Backup(Backup::new(core.now, "handed the VM over")));
        }
        if handed_over.is_some() {
            core.out.push(Command::SwitchoverDone(Err("lost the arbitration".into())));
        }
        let says = cell.as_ref().map_or("is empty".into(), |cell| format!("says {}", describe(cell)));
        Some(Next::Ended(Exit::Fenced(format!(
            "lost the arbitration: I owned generation {}, the cell {says}",
            self.cell.generation
        ))))
    }

    fn on_switchover(&mut self, core: &mut Core, then_stop: bool) {
        let busy = if self.handover.is_some() {
            Some("a switchover is under way")
        } else if self.ending.is_some() {
            Some("the VM is ending")
        } else if !matches!(self.pair, Pair::Protected { .. }) {
            Some("the VM is not protected: there is no backup that could take over")
        } else {
            None
        };
        match busy {
            Some(why) => core.out.push(Command::SwitchoverDone(Err(why.into()))),
            None => {
                self.handover = Some(HandOver { step: Step::Pausing, since: core.now, then_stop });
                core.out.push(Command::FinalCheckpoint);
            }
        }
    }

    /// Once the last checkpoint is acked and its output is out, the backup may have the VM.
    fn offer_if_drained(&mut self, core: &mut Core) {
        let Some(link) = &self.link else { return };
        let Some(handover) = &mut self.handover else { return };
        if let Step::Draining(epoch) = handover.step
            && self.permit.acked >= epoch
            && !self.permit.wanting
        {
            handover.step = Step::Offered;
            handover.since = core.now;
            core.out.push(Command::SendHandOver { conn: link.conn, epoch });
        }
    }

    /// Goes on as protected primary after a switchover that came to nothing.
    fn abandon_handover(&mut self, core: &mut Core, why: String) -> Option<Next> {
        let handover = self.handover.take()?;
        core.out.push(Command::SwitchoverDone(Err(why.clone())));
        self.why = why;
        if handover.then_stop {
            // Nothing is lost: the cell names the backup, which holds all that was ever released.
            return self.stop_if_left_to_peer(core);
        }
        core.out.push(Command::Thaw);
        None
    }

    fn on_stop(&mut self, core: &mut Core) -> Option<Next> {
        core.stop_requested = true;
        match self.pair {
            Pair::Protected { .. } if self.ending.is_none() => {
                match &mut self.handover {
                    Some(handover) => handover.then_stop = true,
                    None => self.on_switchover(core, true),
                }
                None
            }
            Pair::Alone { .. } => self.stop_if_left_to_peer(core),
            _ => {
                self.shut_down(core);
                None
            }
        }
    }

    /// Stops as asked while the cell names the backup, which may go on. While the cell is being asked to name us alone,
    /// its answer comes first: else the only copy of the VM could be dropped.
    fn stop_if_left_to_peer(&mut self, core: &mut Core) -> Option<Next> {
        let left_to_peer = matches!(self.pair, Pair::Protected { .. } | Pair::Alone { .. });
        if !core.stop_requested || !left_to_peer || self.ending.is_some() || core.arbiter.is_setting() {
            return None;
        }
        if self.handover.take().is_some() {
            core.out.push(Command::SwitchoverDone(Err(self.why.clone())));
        }
        core.out.push(Command::EndPairing);
        core.out.push(Command::StopVm);
        Some(Next::Ended(Exit::Stopped(format!(
            "stopped; {} may take over ({})",
            core.policy.peer, self.why
        ))))
    }

    /// Ends a VM that nobody else can go on with, as asked. It stands still before the cell is given up: from then on
    /// nothing may leave any more.
    fn shut_down(&mut self, core: &mut Core) {
        if self.ending.is_none() {
            core.out.push(Command::StopVm);
            self.end_vm(core, End::Exit(Exit::Stopped("stopped; the VM was shut down".into())));
        }
    }

    fn on_guest_end(&mut self, core: &mut Core, end: GuestEnd) -> Option<Next> {
        match end {
            GuestEnd::PoweredOff => {
                self.end_vm(core, End::Exit(Exit::Stopped("the guest powered off".into())));
            }
            GuestEnd::Crashed(why) => self.end_vm(core, End::Exit(Exit::GuestCrashed(why))),
            GuestEnd::Reset if !core.policy.restart_on_reset => {
                self.end_vm(
                    core,
                    End::Exit(Exit::Stopped("the guest asked for a reset; on_reset = \"stop\"".into())),
                );
            }
            GuestEnd::Reset => {
                // Alone in the cell, a reboot concerns nobody else.
                let alone_in_cell = match self.pair {
                    Pair::Solo | Pair::Copying { .. } | Pair::Sealing { .. } => true,
                    Pair::Enlisting { .. } => !core.arbiter.is_setting(),
                    Pair::Protected { .. } | Pair::Alone { .. } => false,
                };
                if alone_in_cell {
                    return self.reboot(core);
                }
                self.end_vm(core, End::Reboot);
            }
        }
        None
    }

    /// The VM is over; the cell must say so before we go on.
    fn end_vm(&mut self, core: &mut Core, end: End) {
        if self.ending.is_none() {
            self.ending = Some(Ending { end, since: core.now });
            core.arbiter.hurry();
        }
    }

    fn reboot(&mut self, core: &mut Core) -> Option<Next> {
        if let Some(link) = self.link.take() {
            core.out.push(Command::SendBye { conn: link.conn, why: "the guest reboots".into() });
            core.drop_link(link.conn);
        }
        core.out.push(Command::EndPairing);
        core.out.push(Command::StopVm);
        if self.handover.take().is_some() {
            core.out.push(Command::SwitchoverDone(Err("the guest reboots".into())));
        }
        if core.stop_requested {
            self.pair = Pair::Solo;
            self.end_vm(
                core,
                End::Exit(Exit::Stopped("the guest asked for a reset while it was to stop".into())),
            );
            return None;
        }
        core.out.push(Command::Boot);
        Some(Next::Primary(Primary::solo(self.cell.clone(), "rebooted")))
    }

    fn say_bye(&mut self, core: &mut Core, why: &str) {
        if let Some(link) = self.link.take() {
            core.out.push(Command::SendBye { conn: link.conn, why: why.into() });
            core.drop_link(link.conn);
        }
    }

    pub(super) fn view_state(&self) -> ViewState {
        match self.pair {
            Pair::Solo => ViewState::Solo,
            Pair::Copying { .. } | Pair::Sealing { .. } | Pair::Enlisting { .. } => ViewState::Resyncing,
            Pair::Protected { .. } => ViewState::Protected,
            Pair::Alone { .. } => ViewState::Waiting,
        }
    }

    pub(super) fn detail(&self, _now: Micros) -> String {
        if let Some(handover) = &self.handover {
            return match handover.step {
                Step::Pausing | Step::Draining(_) => "switchover: sending the last checkpoint".into(),
                Step::Offered => "switchover: the backup takes over".into(),
            };
        }
        match self.pair {
            _ if self.ending.is_some() => "the VM has ended; telling the arbiter".into(),
            Pair::Solo => format!("running without a backup ({})", self.why),
            Pair::Copying { .. } => "the backup receives a full copy".into(),
            Pair::Sealing { .. } => "waiting for the first checkpoint's ack".into(),
            Pair::Enlisting { .. } => "asking the arbiter to name the standby".into(),
            Pair::Protected { .. } => "in step".into(),
            Pair::Alone { .. } => {
                format!("output is held until the arbiter or the peer answers ({})", self.why)
            }
        }
    }
}

fn describe(cell: &Cell) -> String {
    let owner = cell.owner.as_deref().unwrap_or("nobody");
    match &cell.standby {
        Some(standby) => format!("generation {}, owner {owner}, standby {}", cell.generation, standby.node),
        None => format!("generation {}, owner {owner}, no standby", cell.generation),
    }
}
