//! What the executor does as primary: welcomes a backup, listens to it, boots the guest, ends a pairing.

use super::{Input, Replica, Settling};
use crate::keeper::{Order, Pairing};
use crate::outlet::Outlet;
use crate::peer::{BackupReader, Link};
use crate::role::{ConnId, Event, Exit, Gone, Welcome as Welcoming};
use ft_checkpoint::wire::Message;
use ft_checkpoint::wire::message::{Identity, Welcome};
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
        let news = Outlet::into_queue(&self.inputs, Input::Peer);
        let backup = BackupReader { conn, mode: identity.mode, news: news.clone() };
        let link = Message::Welcome(Welcome { identity, pairing, resume_from })
            .send(0, &mut fitting.writer)
            .map_err(|e| e.to_string())
            .and_then(|()| {
                Link::start(fitting, news, move |reader, intake| backup.read(reader, intake))
                    .map_err(|e| e.to_string())
            });
        let link = match link {
            Ok(link) => link,
            Err(why) => return self.own_news.push_back(Event::PeerGone { conn, why: Gone::Lost(why) }),
        };
        self.telemetry.connected(Arc::clone(&link.written));
        self.window.show_peer(true, None);
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
        // Whoever waits for room in a connection's outbox must not: the keeper might be the one.
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
            None => self.exit = Some(Exit::Failed("the keeper has ended".into())),
        }
    }
}
