//! Turns the rooms' news into events for the core, and keeps those parts that the hands need.

use super::RealHands;
use crate::clock;
use crate::control::Wish;
use crate::host::extend_stop;
use crate::keeper::{FromPrimary, KeeperNews};
use crate::peer::{Beat, FromBackup, LinkEnd, PeerNews, Ticket};
use crate::replica::Input;
use crate::replica::arbiter_thread::CellNews;
use crate::replica::record_thread::RecordNews;
use crate::role::{ConnId, Event, Gone, PairingStart, Reach, Whose};
use ft_arbiter::Outcome;
use ft_checkpoint::wire::message::{Diverged, Network};

impl From<LinkEnd> for Gone {
    fn from(ending: LinkEnd) -> Self {
        match ending {
            LinkEnd::Lost(e) => Self::Lost(e.to_string()),
            LinkEnd::Bye(why) => Self::Bye(why),
        }
    }
}

impl RealHands {
    /// Takes the objects that came with news to itself. What is left is the core's; the ticket lives until it is
    /// handled.
    pub(in crate::replica) fn take_in(&mut self, input: Input) -> (Option<Event>, Option<Ticket>) {
        match input {
            Input::Peer(news) => self.take_peer(news),
            Input::Keeper(news) => self.take_keeper(news),
            Input::Arbiter(answer) => (Some(self.event_of_arbiter(answer)), None),
            Input::Record(RecordNews { record, saved }) => (Some(Event::of_record(record, saved)), None),
            Input::Network(trouble) => {
                let reach = if trouble.cuts_off() { Reach::CutOff } else { Reach::Open };
                self.note_network(&trouble);
                (Some(Event::NetworkSeen { whose: Whose::Ours, reach }), None)
            }
            Input::Disk { stands } => (Some(Event::DiskSeen { stands }), None),
            Input::Compared { session, differ } => {
                let goes_on = self.disks.as_ref().is_some_and(|disks| disks.tap().is_open(session));
                (goes_on.then_some(Event::ImagesCompared { differ }), None)
            }
            Input::Control(Wish::Retune(tuning)) => (Some(self.retune(tuning)), None),
            Input::Control(Wish::ReplacePeer(node)) => (Some(Event::PeerReplaced { node }), None),
            Input::Control(Wish::Stop { vm, reply }) => {
                (Some(Event::StopRequested { request: self.expect_answer(reply), vm }), None)
            }
            Input::Control(Wish::Start { how, within, reply }) => {
                let until = clock::now_us().saturating_add(within.as_micros() as u64);
                (Some(Event::StartRequested { request: self.expect_answer(reply), how, until }), None)
            }
            Input::Control(Wish::Switchover { within, reply }) => {
                let until = clock::now_us().saturating_add(within.as_micros() as u64);
                (Some(Event::SwitchoverRequested { request: self.expect_answer(reply), until }), None)
            }
        }
    }

    fn take_peer(&mut self, news: PeerNews) -> (Option<Event>, Option<Ticket>) {
        let event = match news {
            PeerNews::Accepted { fitting, hello } => {
                let conn = self.arrived(*fitting);
                let identity = hello.identity;
                Event::PeerHello {
                    conn,
                    nonce: identity.process,
                    generation: identity.generation,
                    held: hello.held,
                }
            }
            PeerNews::Dialled { fitting, welcome } => {
                let conn = self.arrived(*fitting);
                let how = welcome.resume_from.map_or(PairingStart::Copy, PairingStart::ResumeAfter);
                let generation = welcome.identity.generation;
                Event::Welcomed { conn, generation, pairing: welcome.pairing, how }
            }
            PeerNews::DialFailed(error) => {
                let why = error.to_string();
                self.note_undialled(&error, &why);
                self.window.show_disconnected(Some(why.clone()));
                Event::DialFailed { why, permanent: error.is_permanent(), answered: error.is_answer() }
            }
            PeerNews::TurnedAway(why) => {
                self.window.show_turned_away(why);
                return (None, None);
            }
            PeerNews::FromBackup { conn, said, ticket } => {
                return (self.event_of_backup(conn, said), Some(ticket));
            }
            PeerNews::Pulse { conn, beat, ticket } => {
                let event = match beat {
                    Beat::Heartbeat { stamp, lease } => Event::Heartbeat { conn, stamp, lease },
                    Beat::Echo { stamp, lease } => Event::Echo { conn, stamp, lease },
                };
                return (Some(event), Some(ticket));
            }
            PeerNews::Gone { conn, why } => {
                self.note_gone(conn, &why);
                Event::PeerGone { conn, why: why.into() }
            }
        };
        (Some(event), None)
    }

    fn event_of_network(&mut self, conn: ConnId, network: Network) -> Option<Event> {
        let reach = if network.is_cut_off { Reach::CutOff } else { Reach::Open };
        let is_linked = self.note_peer_network(conn, network);
        is_linked.then_some(Event::NetworkSeen { whose: Whose::Peers, reach })
    }

    fn event_of_backup(&mut self, conn: ConnId, said: FromBackup) -> Option<Event> {
        Some(match said {
            FromBackup::Position(position) => {
                self.note_position(conn, position);
                return None;
            }
            FromBackup::OfDisks(said) => {
                self.note_disks(conn, said);
                return None;
            }
            FromBackup::Kept(said) => return self.note_kept_there(conn, &said),
            FromBackup::Network(network) => return self.event_of_network(conn, network),
            FromBackup::Diverged(Diverged { count, what }) => {
                tracing::error!("the backup diverged at instruction {count}: {what}");
                self.telemetry.diverged(count, &what);
                return None;
            }
            #[cfg(feature = "next-version")]
            FromBackup::Build(text) => {
                tracing::info!("the backup is of the next version too: it is built from {text}");
                return None;
            }
            FromBackup::Ack { epoch, stamp } => Event::Ack { conn, epoch, stamp },
            FromBackup::Standing(said) => Event::Standing { conn, said },
            FromBackup::TookOver { generation } => Event::PeerTookOver { conn, generation },
            FromBackup::Declined { why } => Event::SwitchoverDeclined { conn, why },
        })
    }

    fn event_of_primary(&mut self, conn: ConnId, said: FromPrimary) -> Option<Event> {
        Some(match said {
            FromPrimary::Network(network) => return self.event_of_network(conn, network),
            FromPrimary::Answers(answers) => {
                if let Some(link) = self.links.get(&conn) {
                    answers.into_iter().for_each(|answer| link.send(answer));
                }
                return None;
            }
            FromPrimary::Alive => Event::Heard { conn },
            FromPrimary::Sealed { pairing, epoch, stamp } => {
                self.telemetry.sealed(epoch);
                Event::Sealed { conn, pairing, epoch, stamp }
            }
            FromPrimary::Paired { generation } => Event::Paired { conn, generation },
            FromPrimary::Standing(said) => Event::Standing { conn, said },
            FromPrimary::Offered { epoch } => Event::SwitchoverOffered { conn, epoch },
        })
    }

    fn take_keeper(&mut self, news: KeeperNews) -> (Option<Event>, Option<Ticket>) {
        let event = match news {
            KeeperNews::FirstCaptured { pairing } => Event::FirstCaptured { pairing },
            KeeperNews::FinalCaptured { epoch } => Event::FinalCaptured { epoch },
            KeeperNews::PairingBroken { pairing, why } => {
                tracing::error!("the pairing broke: {why}");
                Event::PairingBroken { pairing, why: why.to_string() }
            }
            KeeperNews::GuestEnded(end) => Event::GuestEnded(end),
            KeeperNews::FromPrimary { conn, said, ticket } => {
                return (self.event_of_primary(conn, said), Some(ticket));
            }
            KeeperNews::Verified { epoch } => Event::Verified { epoch },
            KeeperNews::LoadFailed(why) => {
                tracing::error!("the VM's state cannot be loaded into the machine here: {why}");
                Event::LoadFailed(why.to_string())
            }
            KeeperNews::Rehearsed { pairing } => {
                self.telemetry.rehearsed();
                Event::Rehearsed { pairing }
            }
            KeeperNews::RehearsalFailed { pairing, why } => {
                tracing::error!("the VM could not go on from the state held here: {why}");
                self.telemetry.rehearsal_failed();
                Event::RehearsalFailed { pairing, why: why.to_string() }
            }
            KeeperNews::ImageProgress { generation, percent } => {
                extend_stop();
                Event::ImageProgress { generation, percent }
            }
            KeeperNews::ImageWritten { generation, outcome } => self.event_of_written(generation, outcome),
            KeeperNews::ImageFound(found) => Event::ImageFound(found),
            KeeperNews::ImageRead(outcome) => return (self.event_of_read(outcome), None),
            KeeperNews::StateLost(why) => {
                self.note_loss(&why);
                Event::StateLost(why.to_string())
            }
            KeeperNews::CannotFollow { conn, why } => {
                tracing::error!("this node cannot follow the primary, and keeps what is sealed: {why}");
                Event::PeerGone { conn, why: Gone::Unable(why.to_string()) }
            }
            KeeperNews::MachineFailed(why) => {
                tracing::error!("the host failed the machine: {why}");
                Event::MachineFailed(why.to_string())
            }
        };
        (Some(event), None)
    }

    fn event_of_arbiter(&mut self, answer: CellNews) -> Event {
        match answer {
            CellNews::Read(cell) => {
                self.window.show_arbiter(cell.is_ok());
                if let Ok(cell) = &cell {
                    self.kept.note_cell(cell.as_ref());
                    self.stamping.note_cell(cell.as_ref());
                    if let (Some(disks), Some(cell)) = (&self.disks, &cell) {
                        disks.follower().know_cell(cell.id);
                    }
                }
                Event::CellRead(cell)
            }
            CellNews::Set(outcome) => {
                self.window.show_arbiter(matches!(outcome, Outcome::Won(_) | Outcome::Lost(_)));
                if let Outcome::Won(cell) | Outcome::Lost(Some(cell)) = &outcome {
                    self.kept.note_cell(Some(cell));
                }
                self.stamping.note_outcome(&outcome);
                Event::CellSet(outcome)
            }
        }
    }
}
