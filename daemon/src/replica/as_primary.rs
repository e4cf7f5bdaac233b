//! What the executor does as primary: welcomes a backup, listens to it, boots the guest, ends a pairing.

use super::checkpointer::Order;
use super::intake::Intake;
use super::link::{Link, PeerReader};
use super::pairing::Pairing;
use super::progress::Replay;
use super::{Replica, Settling};
use crate::role::{ConnId, Event, Exit, Gone, Welcome as Welcoming};
use crate::telemetry::Telemetry;
use ft_checkpoint::wire::Message;
use ft_checkpoint::wire::message::{Ack, Diverged, Identity, Welcome};
use std::sync::Arc;

/// Epochs of log in flight at most. They are small: bytes bound them.
const LOG_DEPTH: u64 = 1024;

impl Replica {
    /// Primary: a backup is accepted.
    pub(super) fn welcome(&mut self, conn: ConnId, pairing: u64, generation: u64, how: Welcoming) {
        let Some(mut fitting) = self.arriving.remove(&conn) else { return };
        let resume_from = match how {
            Welcoming::Copy => None,
            Welcoming::ResumeAfter(epoch) => Some(epoch),
        };
        let identity = Identity { generation, ..self.local.identity.clone() };
        fitting.writer.set_generation(generation);
        let backup = BackupNews { conn, replay: self.replay.clone(), telemetry: Arc::clone(&self.telemetry) };
        let link = Message::Welcome(Welcome { identity, pairing, resume_from })
            .send(0, &mut fitting.writer)
            .map_err(|e| e.to_string())
            .and_then(|()| {
                Link::start(fitting, self.inputs.clone(), move |reader, intake| backup.read(reader, intake))
                    .map_err(|e| e.to_string())
            });
        let link = match link {
            Ok(link) => link,
            Err(why) => return self.own_news.push_back(Event::PeerGone { conn, why: Gone::Lost(why) }),
        };
        self.telemetry.connected(Arc::clone(&link.written));
        self.note_peer(true, None);
        let outbox = Arc::clone(&link.outbox);
        self.links.insert(conn, link);
        match (how, &self.pairing) {
            (Welcoming::Copy, _) => {
                // Pages that are applied behind the guest's back are in no dirty log: none may be left.
                if let Some(Settling { lazy, .. }) = self.settling.take() {
                    lazy.finish();
                }
                tracing::info!("a backup has connected: full copy");
                self.telemetry.copy_begun();
                let depth = if self.replay.on { LOG_DEPTH } else { self.pipeline_depth };
                self.replay.progress.reset();
                let pairing = Pairing::new(pairing, outbox, depth, self.inflight_bytes);
                self.pairing = Some(Arc::clone(&pairing));
                self.order(Order::BeginPairing(pairing));
            }
            (Welcoming::ResumeAfter(held), Some(current)) => {
                tracing::info!(epoch = held, "the backup is back: re-sending what it lacks");
                if let Err(e) = current.resume(held, outbox) {
                    self.own_news.push_back(Event::PeerGone { conn, why: Gone::Lost(e.to_string()) });
                }
                self.order(Order::Room);
            }
            (Welcoming::ResumeAfter(_), None) => {
                unreachable!("the core resumes only a pairing it has not ended")
            }
        }
    }

    pub(super) fn end_pairing(&mut self) {
        let Some(pairing) = self.pairing.take() else { return };
        // Whoever waits for room in a connection's outbox must not: the checkpointer might be the one.
        pairing.close();
        self.order_and_wait(Order::EndPairing);
        self.replay.progress.reset();
        self.telemetry.pairing_ended();
    }

    pub(super) fn boot(&mut self) {
        let _ = self.output.pass();
        match self.order_and_wait(Order::Boot) {
            Some(Ok(())) => tracing::info!("the guest is booting"),
            Some(Err(why)) => self.exit = Some(Exit::Failed(format!("cannot boot the guest: {why}"))),
            None => self.exit = Some(Exit::Failed("the checkpointer has ended".into())),
        }
    }
}

/// Primary: what a backup says.
struct BackupNews {
    conn: ConnId,
    replay: Replay,
    telemetry: Arc<Telemetry>,
}

impl BackupNews {
    fn read(self, mut reader: PeerReader, intake: &Arc<Intake>) -> Option<Gone> {
        let conn = self.conn;
        loop {
            let message = match reader.read().and_then(|frame| Message::decode(&frame).map(own)) {
                _ if intake.is_stopped() => return None,
                Ok(Some(message)) => message,
                Ok(None) => return Some(Gone::Lost("it sent what only a primary sends".into())),
                Err(e) => return Some(Gone::Lost(e.to_string())),
            };
            let event = match message {
                Message::Ack(Ack { epoch, stamp_us }) => Event::Ack { conn, epoch, stamp: stamp_us },
                Message::Echo { stamp_us } => Event::Echo { conn, stamp: stamp_us },
                Message::TookOver { generation } => Event::PeerTookOver { conn, generation },
                Message::Decline { text } => Event::HandOverDeclined { conn, why: text },
                Message::Bye(bye) => return Some(Gone::Bye(bye.text)),
                Message::Position(position) if self.replay.on => {
                    self.replay.progress.set(position);
                    continue;
                }
                Message::Diverged(Diverged { count, what }) if self.replay.on => {
                    tracing::error!("the backup diverged at instruction {count}: {what}");
                    self.telemetry.diverged(count, &what);
                    continue;
                }
                _ => return Some(Gone::Lost("it sent what only a primary sends".into())),
            };
            if !intake.tell(event) {
                return None;
            }
        }
    }
}

/// A message that borrows nothing from its frame; a backup sends no others.
fn own(message: Message<'_>) -> Option<Message<'static>> {
    Some(match message {
        Message::Ack(ack) => Message::Ack(ack),
        Message::Echo { stamp_us } => Message::Echo { stamp_us },
        Message::TookOver { generation } => Message::TookOver { generation },
        Message::Decline { text } => Message::Decline { text },
        Message::Bye(bye) => Message::Bye(bye),
        Message::Position(position) => Message::Position(position),
        Message::Diverged(diverged) => Message::Diverged(diverged),
        _ => return None,
    })
}
