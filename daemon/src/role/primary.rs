//! The primary: it owns the cell and runs the VM, alone (solo), while it prepares a backup, or protected by one.

mod cell;
mod ending;
mod switchover;

use self::ending::End;
use self::switchover::{Step, Switchover, Then};
use super::attempts::{Ending, in_seconds};
use super::command::{Command, Exit, PairingStart};
use super::core::{Core, Next};
use super::event::{ConnId, Event, Gone, Held, Micros};
use super::hearing::Hearing;
use super::proof::{Lapse, Lapsed, Verdict, only_images_differ};
use super::request::{Leave, RequestRefusal};
use super::standing::in_words;
use super::view::State;
use ft_arbiter::Cell;

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
    switchover: Option<Switchover>,
    ending: Option<End>,
    /// The power button is pressed; the cord is pulled then.
    power_off_at: Option<Micros>,
    /// When a guest that has reset is booted again.
    boot_at: Option<Micros>,
    /// Why the state is what it is, for the operator.
    why: String,
}

#[derive(Clone, Debug)]
struct Link {
    hearing: Hearing,
    /// Of the process at its other end.
    nonce: u64,
    last_beat: Micros,
}

/// A node that asks to be the backup.
struct Caller {
    conn: ConnId,
    nonce: u64,
    generation: u64,
    held: Option<Held>,
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
    /// The peer has come back and is in step, but the request to be alone is still unanswered, and may be carried out.
    /// Counts as protected. If the cell comes to name nobody, the backup is a stranger and begins anew.
    Rejoined { pairing: u64 },
    /// The VM has moved here and runs, its output held. The cell names the former primary, which still holds it, until
    /// it says that we are alone. Or an image of it is on disk here, until the cell has moved past that.
    Confirming { pairing: u64, former: Option<ConnId> },
}

impl Pair {
    fn pairing(self) -> Option<u64> {
        match self {
            Self::Solo => None,
            Self::Copying { pairing }
            | Self::Sealing { pairing }
            | Self::Enlisting { pairing }
            | Self::Protected { pairing }
            | Self::Alone { pairing }
            | Self::Rejoined { pairing }
            | Self::Confirming { pairing, .. } => Some(pairing),
        }
    }
}

/// The permission to release.
#[derive(Clone, Copy, Debug, Default)]
struct Permit {
    acked: u64,
    until: Micros,
    /// A round trip to the backup, of late: the longest, which fades.
    round_trip: Micros,
    /// No lease outlives such a round trip.
    out_of_reach: bool,
    /// Something acked is still held, because the permission had lapsed: since when.
    wanting: Option<Micros>,
}

impl Permit {
    fn want(&mut self, now: Micros) {
        self.wanting = self.wanting.or(Some(now));
    }

    /// The permission has been missed for longer than a moment.
    fn lapse(&self, core: &Core) -> Option<Lapsed> {
        let since = self.wanting?;
        let lasts = core.now.saturating_sub(since) > PERMIT_MOMENT_US.max(core.policy.failure_timeout_us);
        lasts.then(|| Lapsed { lapse: Lapse::NoPermit { backup: core.policy.peer.clone() }, since })
    }

    /// The lease to ask for: an answer that comes after a round trip is to permit something still, until the next one.
    fn lease(&self, core: &Core) -> Micros {
        let policy = &core.policy;
        (3 * self.round_trip + policy.heartbeat_us).clamp(policy.lease_us, policy.lease_us_max())
    }
}

/// A permission that is missed for no longer is nobody's business.
const PERMIT_MOMENT_US: Micros = 1_000_000;

impl Primary {
    /// Owns `cell`, runs alone.
    pub(super) fn solo(cell: Cell, why: &str) -> Self {
        Self {
            cell,
            link: None,
            pair: Pair::Solo,
            broken: false,
            permit: Permit::default(),
            switchover: None,
            ending: None,
            power_off_at: None,
            boot_at: None,
            why: why.into(),
        }
    }

    /// Owns `cell`, in which the former primary is the standby, and runs the VM that it handed over.
    pub(super) fn confirming(cell: Cell, pairing: u64, former: Option<ConnId>) -> Self {
        Self { pair: Pair::Confirming { pairing, former }, ..Self::solo(cell, "took over") }
    }

    pub(super) fn on_event(&mut self, core: &mut Core, event: Event) -> Option<Next> {
        match event {
            Event::Tick => return self.on_tick(core),
            Event::PeerHello { conn, nonce, generation, held } => {
                return self.on_hello(core, Caller { conn, nonce, generation, held });
            }
            Event::PeerGone { conn, why } if self.is_linked(conn) => {
                let why = match why {
                    Gone::Lost(why) | Gone::Unable(why) => {
                        core.suspicions += 1;
                        format!("lost the backup: {why}")
                    }
                    Gone::Bye(why) => {
                        core.attempts.excuse();
                        format!("the backup left: {why}")
                    }
                };
                return self.lose_peer(core, why);
            }
            Event::Heard { conn } => self.hear(conn, |hearing| hearing.stream(core.now)),
            Event::Standing { conn, said } if self.is_linked(conn) => {
                self.hear(conn, |hearing| hearing.stream(core.now));
                core.on_standing(said);
                self.freeze_if_proven(core);
            }
            Event::ImagesCompared { differ } if self.pair.pairing().is_some() => {
                self.on_images_compared(core, differ);
            }
            Event::FirstCaptured { pairing } if self.pair == (Pair::Copying { pairing }) => {
                self.pair = Pair::Sealing { pairing };
            }
            Event::Ack { conn, epoch, stamp } if self.is_linked(conn) => {
                return self.on_ack(core, conn, epoch, stamp);
            }
            Event::AckRefused { conn, why } if self.is_linked(conn) => return self.drop_peer(core, why),
            Event::Echo { conn, stamp, lease } if self.is_linked(conn) => {
                self.hear(conn, |hearing| hearing.pulse(core.now));
                let lease = lease.min(core.policy.lease_us_max());
                if let Err(why) = self.extend_permit(core, stamp, lease) {
                    return self.drop_peer(core, why);
                }
                let fading = self.permit.round_trip - self.permit.round_trip / 8;
                self.permit.round_trip = fading.max(core.now - stamp);
                self.permit.out_of_reach = self.permit.round_trip >= core.policy.lease_us_max();
                if self.permit.wanting.is_some() {
                    self.release(core);
                    self.offer_if_drained(core);
                }
            }
            Event::ReleaseCut => {
                self.permit.want(core.now);
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
                if let Some(switchover) = &mut self.switchover
                    && switchover.step == Step::Pausing
                {
                    switchover.step = Step::Draining(epoch);
                    self.offer_if_drained(core);
                }
            }
            Event::PeerTookOver { conn, .. } if self.is_linked(conn) => {
                core.drop_link(conn);
                // The cell is the witness, not the peer: asking to be alone finds out.
                return self.lose_peer(core, "the peer says that it runs the VM".into());
            }
            Event::SwitchoverDeclined { conn, why } if self.is_linked(conn) && self.has_offered() => {
                self.abandon_switchover(
                    core,
                    RequestRefusal::Abandoned(format!("the backup declined: {why}")),
                );
            }
            Event::BootFailed(why) => {
                let why = format!("cannot boot the guest: {why}");
                core.out.push(Command::StopVm);
                self.end_vm(core, End::Exit(Exit::Failed(why)));
            }
            Event::MachineFailed(why) => return Some(self.on_machine_failure(core, why)),
            Event::SwitchoverRequested { request, until } => self.on_switchover(core, request, until),
            Event::StopRequested { request, vm: Leave::PowerOff { within_us } } => {
                self.on_power_off(core, request, within_us);
            }
            Event::StopRequested { request, vm } => self.on_stop(core, request, vm),
            Event::GuestEnded(end) => return self.on_guest_end(core, end),
            _ => {}
        }
        None
    }

    pub(super) fn conn(&self) -> Option<ConnId> {
        self.link.as_ref().map(|link| link.hearing.conn)
    }

    /// Whether neither the cell nor a pairing under way names a backup.
    pub(super) fn has_no_backup(&self) -> bool {
        self.pair == Pair::Solo
    }

    fn is_linked(&self, conn: ConnId) -> bool {
        self.conn() == Some(conn)
    }

    fn hear(&mut self, conn: ConnId, note: impl FnOnce(&mut Hearing)) {
        if let Some(link) = &mut self.link
            && link.hearing.conn == conn
        {
            note(&mut link.hearing);
        }
    }

    pub(super) fn excuse_silence(&mut self, now: Micros) {
        if let Some(link) = &mut self.link {
            link.hearing.excuse(now);
        }
    }

    fn on_tick(&mut self, core: &mut Core) -> Option<Next> {
        if self.boot_at.is_some_and(|boot_at| boot_at <= core.now || core.stop_requested) {
            self.boot_at = None;
            if self.ending.is_none() {
                return self.begin_reboot(core);
            }
        }
        if matches!(self.pair, Pair::Protected { .. })
            && self.switchover.is_none()
            && self.ending.is_none()
            && core.surroundings.moves(core.policy.on_uplink_loss, core.now)
        {
            self.begin_switchover(core, Then::Follow, None);
        }
        if let Some(link) = &mut self.link {
            if let Some(why) = link.hearing.verdict(core.now, &core.policy) {
                core.suspicions += 1;
                return self.drop_peer(core, why);
            }
            if link.hearing.is_to_tell(core.now, &core.policy) {
                core.tell_standing(link.hearing.conn, false);
            }
            if core.now.saturating_sub(link.last_beat) >= core.policy.heartbeat_us {
                self.beat(core);
            }
        }
        if self.power_off_at.is_some_and(|at| core.now >= at) {
            self.shut_down(core, "powered off; the guest did not do it in the time given");
        }
        self.time_switchover(core)
    }

    fn beat(&mut self, core: &mut Core) {
        if let Some(link) = &mut self.link {
            link.last_beat = core.now;
            let lease = self.permit.lease(core);
            core.out.push(Command::SendHeartbeat { conn: link.hearing.conn, lease });
        }
    }

    /// A node asks to be the backup. It is judged before anything that is there is dropped.
    fn on_hello(&mut self, core: &mut Core, caller: Caller) -> Option<Next> {
        let Caller { conn, nonce, generation, held } = caller;
        let refuse = |core: &mut Core, why: &str| core.out.push(Command::Refuse { conn, why: why.into() });
        if generation > self.cell.generation {
            let owned = self.cell.generation;
            let why = format!("the backup knows generation {generation}, but this primary owns only {owned}");
            refuse(core, &why);
            return None;
        }
        match &self.link {
            // It dials only when it has lost its connection: ours to it is dead, and we have not noticed yet.
            Some(link) if link.nonce == nonce => {
                if let Some(next) = self.drop_peer(core, "it connected again".into()) {
                    return Some(next);
                }
            }
            // If the old one has died, its silence will say so soon.
            Some(_) => {
                refuse(core, "another process is the backup, and its connection lives");
                return None;
            }
            None => {}
        }
        if self.ending.is_some() || self.switchover.is_some() || core.stop_requested {
            refuse(core, "the VM is stopping or moving");
            return None;
        }
        let link = Link { hearing: Hearing::begin(conn, core.now), nonce, last_beat: core.now };
        match self.pair {
            Pair::Solo if core.attempts.wait_us(core.now) > 0 => {
                refuse(core, &format!("the primary is {}", self.alone(core)));
            }
            Pair::Solo => {
                core.attempts.begin(core.now);
                let pairing = core.new_pairing();
                self.pair = Pair::Copying { pairing };
                core.note_unfit(None, None);
                self.link = Some(link);
                self.permit = Permit::default();
                let generation = self.cell.generation;
                core.out.push(Command::Welcome { conn, pairing, generation, how: PairingStart::Copy });
                core.forget_their_word();
                core.tell_standing(conn, false);
            }
            // The peer is back, and holds what the cell says: the pair goes on. What may still become of a request to
            // be alone does not change that; its answer is dealt with when it comes.
            Pair::Alone { pairing } => match held {
                Some(held) if !self.broken && held.pairing == pairing && held.epoch >= self.permit.acked => {
                    self.pair = match core.arbiter.is_setting() {
                        true => Pair::Rejoined { pairing },
                        false => Pair::Protected { pairing },
                    };
                    self.link = Some(link);
                    let wanting = self.permit.wanting.or(Some(core.now));
                    self.permit = Permit { acked: held.epoch, wanting, ..Permit::default() };
                    let generation = self.cell.generation;
                    let how = PairingStart::ResumeAfter(held.epoch);
                    core.out.push(Command::Welcome { conn, pairing, generation, how });
                    // It may have been lost before it was ever told.
                    core.out.push(Command::SendPaired { conn, generation });
                    core.forget_their_word();
                    core.begin_proof();
                    core.tell_standing(conn, false);
                    self.why = "in step".into();
                    self.beat(core);
                }
                _ => refuse(
                    core,
                    "the primary is still waiting for the arbiter's permission to go on without its old backup",
                ),
            },
            _ => refuse(core, "the primary is waiting for the arbiter's answer"),
        }
        None
    }

    fn on_ack(&mut self, core: &mut Core, conn: ConnId, epoch: u64, stamp: Micros) -> Option<Next> {
        self.hear(conn, |hearing| hearing.stream(core.now));
        if matches!(self.pair, Pair::Solo | Pair::Copying { .. }) {
            return self
                .drop_peer(core, format!("it acked epoch {epoch} before the first epoch of its pairing"));
        }
        if let Err(why) = self.extend_permit(core, stamp, core.policy.lease_us) {
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

    fn extend_permit(&mut self, core: &Core, stamp: Micros, lease: Micros) -> Result<(), String> {
        if stamp > core.now {
            return Err(format!("it answered a stamp from the future ({stamp} us, now {} us)", core.now));
        }
        self.permit.until = self.permit.until.max(stamp + lease);
        Ok(())
    }

    /// Lets out what is acked, if the permission is alive; else asks for it anew.
    fn release(&mut self, core: &mut Core) {
        if self.has_offered() {
            return;
        }
        if self.is_giving_up(core) {
            // Once the cell names nobody, anybody may found anew; no lease binds a founder.
            self.permit.want(core.now);
            return;
        }
        if core.now < self.permit.until {
            self.permit.wanting = None;
            core.out.push(Command::Release { through: self.permit.acked, until: self.permit.until });
        } else if self.permit.wanting.is_none() {
            self.permit.want(core.now);
            self.beat(core);
        }
    }

    /// Closes the connection from our side, then does as when it is lost.
    fn drop_peer(&mut self, core: &mut Core, why: String) -> Option<Next> {
        if let Some(link) = &self.link {
            core.drop_link(link.hearing.conn);
        }
        self.lose_peer(core, format!("lost the backup: {why}"))
    }

    fn lose_peer(&mut self, core: &mut Core, why: String) -> Option<Next> {
        self.link = None;
        self.why = why;
        core.forget_their_word();
        if self.switchover.as_ref().is_some_and(|switchover| switchover.step == Step::Asking) {
            self.abandon_switchover(core, RequestRefusal::Abandoned(self.why.clone()));
        }
        match self.pair {
            Pair::Solo | Pair::Alone { .. } | Pair::Confirming { .. } => {}
            Pair::Copying { .. } | Pair::Sealing { .. } => self.go_solo(core),
            // The request to name it may be under way: what we are, its answer says.
            Pair::Enlisting { .. } if core.arbiter.is_setting() => {}
            Pair::Enlisting { .. } => self.go_solo(core),
            Pair::Protected { pairing } => {
                self.pair = Pair::Alone { pairing };
                self.permit.want(core.now);
                core.arbiter.hurry();
            }
            Pair::Rejoined { pairing } => self.pair = Pair::Alone { pairing },
        }
        None
    }

    /// The cell names nobody but us: everything may leave.
    fn go_solo(&mut self, core: &mut Core) {
        let how = if self.broken { Ending::Failed } else { Ending::Lost };
        core.attempts.end(core.now, how, &core.policy);
        self.pair = Pair::Solo;
        self.broken = false;
        self.permit = Permit::default();
        core.out.push(Command::EndPairing);
        if !self.is_giving_up(core) {
            core.out.push(Command::EmitFreely);
        }
        self.abandon_switchover(core, RequestRefusal::Abandoned(self.why.clone()));
    }

    pub(super) fn state(&self, core: &Core) -> State {
        match self.pair {
            _ if self.ending.is_some() => State::Waiting,
            Pair::Solo => State::Solo,
            Pair::Copying { .. } | Pair::Sealing { .. } | Pair::Enlisting { .. } => State::Resyncing,
            Pair::Protected { pairing } => match self.verdict(core, pairing) {
                Verdict::Proven => State::Protected,
                Verdict::Pending => State::Resyncing,
                Verdict::Lapsed(_) => State::Degraded,
            },
            Pair::Rejoined { .. } => State::Degraded,
            Pair::Alone { .. } | Pair::Confirming { .. } => State::Waiting,
        }
    }

    fn verdict(&self, core: &Core, pairing: u64) -> Verdict {
        match (core.verdict_of_primary(pairing, self.cell.generation), self.permit.lapse(core)) {
            (verdict, None) => verdict,
            (Verdict::Lapsed(mut lapses), Some(lapse)) => {
                lapses.push(lapse);
                Verdict::Lapsed(lapses)
            }
            (Verdict::Proven | Verdict::Pending, Some(lapse)) => Verdict::Lapsed(vec![lapse]),
        }
    }

    pub(super) fn lapses(&self, core: &Core) -> Vec<Lapsed> {
        match self.pair {
            Pair::Protected { pairing } => match self.verdict(core, pairing) {
                Verdict::Lapsed(lapses) => lapses,
                Verdict::Proven | Verdict::Pending => Vec::new(),
            },
            Pair::Alone { .. } | Pair::Rejoined { .. } => {
                core.own_lapses().into_iter().chain(self.permit.lapse(core)).collect()
            }
            _ => core.own_lapses(),
        }
    }

    fn alone(&self, core: &Core) -> String {
        let alone = format!("running without a backup ({})", self.why);
        match core.attempts.wait_us(core.now) {
            0 => alone,
            wait_us => format!("{alone}; takes a backup again in {}", in_seconds(wait_us)),
        }
    }

    pub(super) fn detail(&self, core: &Core) -> String {
        if let Some(switchover) = &self.switchover {
            return match switchover.step {
                Step::Asking => "switchover: asking both arbiters".into(),
                Step::Pausing | Step::Draining(_) => "switchover: sending the last checkpoint".into(),
                Step::Offered => "switchover: waiting for the backup to take over".into(),
            };
        }
        match self.pair {
            _ if self.ending.is_some() => format!("the VM has ended; telling the arbiter ({})", self.why),
            _ if self.power_off_at.is_some() => "waiting for the guest to power off, as asked".into(),
            Pair::Solo => match core.own_lapses() {
                lapses if lapses.is_empty() => self.alone(core),
                lapses => format!("{}; {}", self.alone(core), in_words(&lapses)),
            },
            Pair::Copying { .. } => match core.attempts.failures() {
                0 => "sending the backup a full copy".into(),
                times => format!("sending the backup a full copy; pairing failed {times} times ({})", self.why),
            },
            Pair::Sealing { .. } => "waiting for the first checkpoint's ack".into(),
            Pair::Enlisting { .. } => "asking the arbiter to name the standby".into(),
            Pair::Protected { .. } if self.permit.out_of_reach => format!(
                "in step, but the VM's output is held: a round trip to the backup takes {} ms, longer than any lease; \
                 raise failure_timeout_ms on both nodes to twice that",
                self.permit.round_trip / 1000
            ),
            Pair::Protected { pairing } => match self.verdict(core, pairing) {
                Verdict::Proven => "in step".into(),
                Verdict::Pending => "in step; waiting for the backup's word that it has read the cell".into(),
                Verdict::Lapsed(lapses)
                    if self.permit.lapse(core).is_some() || only_images_differ(&lapses) =>
                {
                    format!("in step, but {}", in_words(&lapses))
                }
                Verdict::Lapsed(lapses) => {
                    format!("in step, but a take-over would have to wait: {}", in_words(&lapses))
                }
            },
            Pair::Rejoined { .. } => {
                "in step again, but a take-over would have to wait: the arbiter has not answered yet whether the cell \
                 still names the backup"
                    .into()
            }
            Pair::Alone { .. } => {
                format!("output is held until the arbiter or the peer answers ({})", self.why)
            }
            Pair::Confirming { .. } => {
                format!(
                    "runs the VM that became its own; output is held until the arbiter confirms ({})",
                    self.why
                )
            }
        }
    }
}
