//! The daemon's hands on a primary: welcome a backup, listen to it, replicate to it.

use super::{HandsError, RealHands};
use crate::clock;
use crate::control::Tuning;
use crate::keeper::{Order, Pairing, Service};
use crate::observe::Declared;
use crate::outlet::Outlet;
use crate::peer::{BackupReader, Link, LinkSide, OfDisks};
use crate::replica::Input;
use crate::role::{ConnId, Event, Micros, PairingStart};
use ft_checkpoint::wire::Message;
use ft_checkpoint::wire::message::{Identity, Mode, PageHashes, Welcome};
use std::sync::Arc;

/// Epochs of log in flight at most. They are small: bytes bound them.
const LOG_DEPTH: u64 = 1024;

impl RealHands {
    pub(super) fn welcome_backup(
        &mut self,
        conn: ConnId,
        pairing: u64,
        generation: u64,
        how: PairingStart,
    ) -> Result<(), HandsError> {
        let mut fitting = self.arriving.remove(&conn).ok_or(HandsError::NotArriving)?;
        let resume_from = match how {
            PairingStart::Copy => None,
            PairingStart::ResumeAfter(epoch) => Some(epoch),
        };
        let identity = Identity { generation, ..fitting.ours.clone() };
        fitting.writer.set_generation(generation);
        let news = Outlet::into_queue(&self.inputs, Input::Peer);
        let mode = if self.replay.on { Mode::Replay } else { Mode::Checkpoint };
        let backup = BackupReader { conn, mode, news: news.clone() };
        Message::Welcome(Welcome { identity, pairing, resume_from }).send(0, &mut fitting.writer)?;
        let from = fitting.writer.get_ref().socket().peer_addr().ok();
        let link =
            Link::start(fitting, LinkSide::Primary, news, move |reader, intake| backup.read(reader, intake))
                .map_err(HandsError::Link)?;
        self.telemetry.connected(Arc::clone(&link.written), link.meter());
        self.window.show_connected(from);
        self.greet(conn, link);
        Ok(())
    }

    pub(super) fn start_pairing(&mut self, conn: ConnId, pairing: u64) {
        // Pages that are applied behind the guest's back are in no dirty log: none may be left.
        if let Some(settling) = self.settling.take() {
            settling.finish();
        }
        let Some(link) = self.links.get(&conn) else { return };
        tracing::info!("a backup has connected: sending a full copy");
        self.telemetry.copy_begun();
        let depth = if self.replay.on { LOG_DEPTH } else { self.pipeline_depth };
        self.replay.progress.reset();
        let outbox = Arc::clone(&link.outbox);
        let agreed = link.agreed;
        let pairing = Pairing::new(pairing, outbox, agreed, depth, self.inflight_bytes, self.service);
        self.pairing = Some(Arc::clone(&pairing));
        self.pairing_over = Some(conn);
        self.order(Order::BeginPairing(pairing));
    }

    /// What the backup says of the memory that it kept. None of it is believed but that it is not to be sent.
    pub(super) fn note_kept_there(&self, conn: ConnId, said: &PageHashes) -> Option<Event> {
        let pairing = self.pairing.as_ref().filter(|_| self.pairing_over == Some(conn))?;
        let why = pairing.kept.as_ref()?.tell(said).err()?.to_string();
        tracing::error!("the pairing broke: {why}");
        Some(Event::PairingBroken { pairing: pairing.nonce, why })
    }

    /// What the backup says of the disks.
    pub(super) fn note_disks(&self, conn: ConnId, said: OfDisks) {
        if let Some(disks) = self.disks.as_ref().filter(|_| self.pairing_over == Some(conn)) {
            match said {
                OfDisks::Map(part) => disks.mapped(&part),
                OfDisks::Compared(compared) => disks.compared(compared),
                OfDisks::Settled(settled) => disks.settled(settled),
            }
        }
    }

    /// What is declared of output and speed is another from now on.
    pub(super) fn retune(&mut self, tuning: Tuning) -> Event {
        let Tuning { service, on_overload, times } = tuning;
        self.service = service;
        self.order(Order::Declare(service, on_overload));
        if let Some(pairing) = &self.pairing {
            pairing.with_flow(|flow| flow.declare(service));
        }
        let Service { hold_us_max, speed_pct_min } = service;
        self.window.declare(Declared { hold_us_max, speed_pct_min });
        Event::Retimed(times)
    }

    pub(super) fn send_again(&mut self, conn: ConnId, held: u64) -> Result<(), HandsError> {
        let (Some(pairing), Some(link)) = (&self.pairing, self.links.get(&conn)) else {
            return Err(HandsError::NothingHeld);
        };
        tracing::info!(epoch = held, "the backup has reconnected: re-sending the epochs that it lacks");
        pairing.resume(held, Arc::clone(&link.outbox))?;
        if let Some(disks) = &self.disks {
            disks.tap().acked(held, pairing.with_flow(|flow| flow.window()));
            disks.reconnected();
        }
        self.pairing_over = Some(conn);
        self.order(Order::Room);
        Ok(())
    }

    pub(super) fn drop_pairing(&mut self) {
        let Some(pairing) = self.pairing.take() else { return };
        // Whoever waits for room in a connection's outbox must not: the keeper might be the one.
        pairing.close();
        // A keeper that is gone replicates nothing either.
        let _ = self.order_and_wait(Order::EndPairing);
        self.replay.progress.reset();
        self.telemetry.pairing_ended();
    }

    pub(super) fn commit(&mut self, conn: ConnId, epoch: u64, stamp: Micros) -> Result<(), HandsError> {
        // Late news of an old connection, or of a pairing that has ended, is the core's to ignore.
        let (Some(pairing), true) = (&self.pairing, self.links.contains_key(&conn)) else { return Ok(()) };
        let committed = pairing.ack(epoch)?;
        if let Some(disks) = &self.disks {
            disks.tap().acked(epoch, pairing.with_flow(|flow| flow.window()));
        }
        self.telemetry.acked(epoch, committed, clock::now_us().saturating_sub(stamp));
        if pairing.was_wanting() {
            self.order(Order::Room);
        }
        Ok(())
    }
}
