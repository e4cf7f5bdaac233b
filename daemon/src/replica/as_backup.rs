//! What the executor does as backup: follows a primary, gives up what it holds, and takes the VM over.

use super::checkpointer::Order;
use super::handshake::{self, Fitting, HandshakeError};
use super::link::Link;
use super::standby::Standby;
use super::{Replica, Settling};
use crate::role::{Event, Exit, Gone};
use ft_checkpoint::lazy::LazyApply;
use ft_checkpoint::wire::message::Welcome;
use std::sync::Arc;
use std::time::Instant;

impl Replica {
    /// Backup: the primary has accepted us.
    pub(super) fn on_welcome(&mut self, fitting: Fitting, welcome: Welcome) {
        let conn = fitting.conn;
        let generation = welcome.identity.generation;
        let resumed = welcome.resume_from.is_some();
        self.arriving.insert(conn, fitting);
        self.tell(Event::Welcomed { conn, generation, pairing: welcome.pairing, resumed });
        // If the core does not want it (any more), it has dropped it.
        let Some(fitting) = self.arriving.remove(&conn) else { return };
        if let Err(why) = self.follow(fitting, generation, resumed) {
            self.tell(Event::PeerGone { conn, why: Gone::Lost(why) });
        }
    }

    fn follow(&mut self, fitting: Fitting, generation: u64, resumed: bool) -> Result<(), String> {
        let conn = fitting.conn;
        if !resumed {
            self.output.mute();
            let ram = self.order_and_wait(Order::Prepare).ok_or("the checkpointer has ended")??;
            let standby = Standby::new(ram)?;
            *self.held.lock() = Some(standby.feed());
            self.standby = Some(standby);
        }
        let feed = self.standby.as_ref().ok_or("nothing to go on with")?.feed();
        feed.connected(generation);
        let telemetry = Arc::clone(&self.telemetry);
        let link = Link::start(fitting, self.inputs.clone(), move |reader, intake| {
            feed.read(conn, reader, intake, &telemetry)
        })
        .map_err(|e| e.to_string())?;
        self.telemetry.connected(Arc::clone(&link.written));
        self.note_peer(true, None);
        self.links.insert(conn, link);
        Ok(())
    }

    pub(super) fn on_dial_failed(&mut self, error: &HandshakeError) {
        let permanent = match error {
            HandshakeError::Misfit(refusal) => handshake::is_permanent(refusal.code()),
            HandshakeError::Refused(refuse) => handshake::is_permanent(refuse.code),
            _ => false,
        };
        if permanent && self.standby.is_none() {
            self.exit = Some(Exit::Misfit(error.to_string()));
            return;
        }
        self.note_peer(false, Some(error.to_string()));
    }

    /// Backup: the VM is ours. From the sealed checkpoint to a running guest.
    pub(super) fn take_over(&mut self, epoch: u64, generation: u64) -> Result<(), String> {
        let began = Instant::now();
        for link in self.links.values_mut() {
            link.stop_reading();
        }
        *self.held.lock() = None;
        let standby = self.standby.take().ok_or("nothing is held")?;
        let (ram, mut sealed) = standby.into_sealed()?;
        if sealed.epoch < epoch {
            return Err(format!("epoch {epoch} was sealed, but {} is held", sealed.epoch));
        }
        let resumed_epoch = sealed.epoch;
        let pending: usize = sealed.pending.iter().map(|checkpoint| checkpoint.len()).sum();
        let state = std::mem::take(&mut sealed.state);
        // Serves what is still pending while the guest runs already.
        let lazy = LazyApply::start(&ram, &sealed);
        self.settling = Some(Settling { lazy, _sealed: sealed });
        let _ = self.output.pass();
        self.order_and_wait(|reply| Order::Restore(state, reply)).ok_or("the checkpointer has ended")??;
        let took = began.elapsed();
        (self.announce)();
        let lost_for = self.peer_lost.take().map(|at| at.elapsed());
        tracing::info!(
            generation,
            epoch = resumed_epoch,
            pending,
            ?took,
            ?lost_for,
            "took over: the guest runs here"
        );
        self.telemetry.took_over(generation, resumed_epoch, took, lost_for, pending as u64);
        Ok(())
    }

    pub(super) fn discard(&mut self) {
        *self.held.lock() = None;
        for link in self.links.values_mut() {
            link.stop_reading();
        }
        if let Some(standby) = self.standby.take() {
            standby.discard();
        }
        self.order_and_wait(Order::Stop);
    }
}
