//! Carries out the core's commands with the hands it is given. It says which verbs a command takes, in which order, and
//! which steps are undone when one fails. It runs in the daemon and in the simulator.
//!
//! One command is one step, so the simulator can put a freeze or a death between any two. Events that come from a
//! command itself are handled before any other.

use super::hands::{Closing, Hands, Verification};
use crate::peer::Outgoing;
use crate::role::{Command, ConnId, Core, Event, Exit, Gone, PairingStart, Policy, Succession, View};
use ft_checkpoint::wire::Message;
use ft_checkpoint::wire::message::{Ack, Bye};
use ft_netbuf::{BootTime, Permit};
use std::collections::VecDeque;

/// See the module.
#[derive(Debug)]
pub struct Executor {
    core: Core,
    todo: VecDeque<Step>,
    own: VecDeque<Event>,
    exit: Option<Exit>,
}

#[derive(Debug)]
enum Step {
    Command(Command),
    /// The event that came with this connection is handled: one that the core did not take is closed.
    TurnAway(ConnId),
    /// This node can do nothing more on this connection. The core was told, and has said why.
    End(ConnId),
}

impl Executor {
    /// A node that has just started; its first steps are still to be taken.
    pub fn new(policy: Policy, hands: &impl Hands) -> Self {
        let (core, commands) = Core::new(policy, hands.now_us());
        let todo = commands.into_iter().map(Step::Command).collect();
        Self { core, todo, own: VecDeque::new(), exit: None }
    }

    /// Takes an event, and every step that follows from it.
    pub fn take(&mut self, event: Event, hands: &mut impl Hands) {
        self.begin(event, hands);
        while self.step(hands) {}
        hands.show(self.core.view());
    }

    /// Takes an event in; the steps that follow from it are still to be taken. All earlier ones have been.
    pub fn begin(&mut self, event: Event, hands: &mut impl Hands) {
        let event = match event {
            Event::Ack { conn, epoch, stamp } => match hands.acked(conn, epoch, stamp) {
                Ok(()) => Event::Ack { conn, epoch, stamp },
                Err(e) => Event::AckRefused { conn, why: e.to_string() },
            },
            Event::PeerGone { conn, why: why @ Gone::Unable(_) } => {
                hands.unlink_pairing(conn);
                let event = Event::PeerGone { conn, why };
                self.handle(event, hands);
                self.todo.push_back(Step::End(conn));
                return;
            }
            Event::PeerGone { conn, why } => {
                if !hands.close(conn, Closing::Now) {
                    return;
                }
                hands.unlink_pairing(conn);
                Event::PeerGone { conn, why }
            }
            other => other,
        };
        let arriving = match &event {
            Event::PeerHello { conn, .. } | Event::Welcomed { conn, .. } => Some(*conn),
            _ => None,
        };
        self.handle(event, hands);
        self.todo.extend(arriving.map(Step::TurnAway));
    }

    /// Takes the next step, if there is one.
    pub fn step(&mut self, hands: &mut impl Hands) -> bool {
        if self.exit.is_some() {
            return false;
        }
        match self.todo.pop_front() {
            Some(Step::Command(command)) => self.execute(command, hands),
            Some(Step::TurnAway(conn)) => hands.turn_away(conn),
            Some(Step::End(conn)) => {
                hands.close(conn, Closing::AfterQueued);
            }
            None => match self.own.pop_front() {
                Some(event) => self.handle(event, hands),
                None => return false,
            },
        }
        true
    }

    /// Whether every step is taken.
    pub fn is_at_rest(&self) -> bool {
        self.exit.is_some() || self.todo.is_empty() && self.own.is_empty()
    }

    /// How the process is to end, once it is.
    pub fn exit(&mut self) -> Option<Exit> {
        self.exit.take()
    }

    /// The core's view of itself.
    pub fn view(&self) -> View {
        self.core.view()
    }

    /// The highest generation that this node knows of.
    pub fn generation(&self) -> u64 {
        self.core.generation()
    }

    fn handle(&mut self, event: Event, hands: &impl Hands) {
        let mut commands = Vec::new();
        self.core.handle(hands.now_us(), event, &mut commands);
        self.todo.extend(commands.into_iter().map(Step::Command));
    }

    fn execute(&mut self, command: Command, hands: &mut impl Hands) {
        match command {
            Command::ReadCell => hands.read_cell(),
            Command::ProbeCell => hands.probe_cell(),
            Command::Record(record) => {
                let saved = hands.record(record);
                self.own.push_back(Event::of_record(record, saved));
            }
            Command::CompareAndSet { expected, new } => hands.compare_and_set(expected, new),
            Command::LeaveArbiter => hands.leave_arbiter(),
            Command::Dial => hands.dial(),
            Command::StopDialling => hands.stop_dialling(),
            Command::Welcome { conn, pairing, generation, how } => {
                let welcomed = hands.welcome(conn, pairing, generation, how).and_then(|()| match how {
                    PairingStart::Copy => {
                        hands.begin_pairing(conn, pairing);
                        Ok(())
                    }
                    PairingStart::ResumeAfter(held) => hands.resume_pairing(conn, held),
                });
                self.lost_if_failed(conn, welcomed, hands);
            }
            Command::Refuse { conn, why } => hands.refuse(conn, why),
            Command::Follow { conn, pairing, how } => {
                self.follow(conn, pairing, how, hands);
            }
            Command::DropLink { conn } => {
                hands.close(conn, Closing::AfterQueued);
                hands.unlink_pairing(conn);
            }
            Command::EndPairing => hands.end_pairing(),
            Command::Boot => self.boot(hands),
            Command::EmitFreely => {
                let released = hands.output().pass();
                tracing::info!(frames = released.frames, "the VM's output passes without waiting for acks");
            }
            Command::Release { through, until } => {
                let permit = Permit { valid_until: BootTime::from_us(until) };
                if hands.output().release_through(through, permit).left > 0 {
                    self.own.push_back(Event::ReleaseCut);
                }
            }
            Command::FinalCheckpoint => hands.freeze(),
            Command::Thaw => hands.thaw(),
            Command::Verify { epoch } => match hands.verify(epoch) {
                Verification::Done => self.own.push_back(Event::Verified { epoch }),
                Verification::Follows => {}
            },
            Command::Load { epoch } => match hands.load(epoch) {
                Verification::Done => self.own.push_back(Event::Verified { epoch }),
                Verification::Follows => {}
            },
            Command::TakeOver { epoch, generation, succession } => {
                self.take_over(epoch, generation, succession, hands)
            }
            Command::SaveImage(saved) => hands.save_image(saved),
            Command::ReadImage(saved) => hands.read_image(saved),
            Command::FindImage { cell } => hands.find_image(cell),
            Command::DropImage { cell, below } => hands.drop_image(cell, below),
            Command::Rehearse { epoch } => hands.rehearse(epoch),
            Command::Renew => hands.renew(),
            Command::Discard => {
                hands.stop_receiving();
                hands.discard();
            }
            Command::StopVm => {
                hands.output().mute();
                hands.stop_vm();
            }
            Command::PressPowerButton => hands.press_power_button(),
            Command::Answer { request, outcome } => hands.answer(request, outcome),
            Command::Exit(exit) => self.exit = Some(exit),

            Command::SendHeartbeat { conn, lease } => hands.beat(conn, Outgoing::Heartbeat { lease }),
            Command::SendPaired { conn, generation } => hands.send(conn, Message::Paired { generation }),
            Command::SendStanding { conn, standing } => hands.send(conn, Message::Standing(standing)),
            Command::SendOffer { conn, epoch } => hands.send(conn, Message::Switchover { epoch }),
            Command::SendAck { conn, epoch, stamp } => {
                hands.send(conn, Message::Ack(Ack { epoch, stamp_us: stamp }));
            }
            Command::SendEcho { conn, stamp, lease } => {
                hands.beat(conn, Outgoing::Echo { stamp, lease });
                if let Some(position) = hands.position() {
                    hands.send(conn, Message::Position(position));
                }
            }
            Command::SendDecline { conn, why } => hands.send(conn, Message::Decline { text: why }),
            Command::SendTookOver { conn, generation } => hands.send(conn, Message::TookOver { generation }),
            Command::SendBye { conn, why } => hands.send(conn, Message::Bye(Bye { reason: 0, text: why })),
        }
    }

    fn boot(&mut self, hands: &mut impl Hands) {
        let _ = hands.output().pass();
        match hands.boot() {
            // The network may still look for the VM on the host where it ran before.
            Ok(()) => hands.announce(self.core.generation()),
            Err(e) => {
                hands.output().mute();
                self.own.push_back(Event::BootFailed(e.to_string()));
            }
        }
    }

    /// The VM is ours: from what is held to a running guest. After a switchover nothing may leave before the former
    /// primary cannot go on with the VM any more, nor before an image on disk is stale.
    fn take_over(&mut self, epoch: u64, generation: u64, succession: Succession, hands: &mut impl Hands) {
        hands.stop_receiving();
        let resumed = hands.seal_off(epoch).and_then(|()| {
            match succession {
                Succession::Failover => drop(hands.output().pass()),
                Succession::Switchover | Succession::Image => hands.output().hold(),
            }
            hands.resume_vm()
        });
        match resumed {
            Ok(()) => {
                hands.announce(generation);
                self.own.push_back(Event::TookOver);
            }
            Err(e) => {
                hands.output().mute();
                self.own.push_back(Event::TakeOverFailed(e.to_string()));
            }
        }
    }

    /// Receives from the primary. If this node cannot, the primary hears why.
    fn follow(&mut self, conn: ConnId, pairing: u64, how: PairingStart, hands: &mut impl Hands) {
        let prepared = match how {
            PairingStart::Copy => {
                hands.output().mute();
                hands.prepare()
            }
            PairingStart::ResumeAfter(_) => Ok(()),
        };
        if let Err(e) = prepared {
            let why = e.to_string();
            hands.refuse(conn, why.clone());
            self.own.push_back(Event::PeerGone { conn, why: Gone::Unable(why) });
            return;
        }
        let followed = hands.follow(conn, pairing, how);
        self.lost_if_failed(conn, followed, hands);
    }

    /// A connection of which nothing came is lost like any other.
    fn lost_if_failed<H: Hands>(&mut self, conn: ConnId, result: Result<(), H::Error>, hands: &mut H) {
        if let Err(e) = result {
            hands.close(conn, Closing::Now);
            hands.unlink_pairing(conn);
            self.own.push_back(Event::PeerGone { conn, why: Gone::Lost(e.to_string()) });
        }
    }
}
