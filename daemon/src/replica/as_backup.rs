//! What the executor does as backup: follows a primary, gives up what it holds, and takes the VM over.

use super::{Input, Replica, Settling};
use crate::keeper::{Feed, Order, Standby};
use crate::outlet::Outlet;
use crate::peer::{Fitting, HandshakeError, Link};
use crate::role::{ConnId, Event, Exit, Gone};
use ft_checkpoint::lazy::LazyApply;
use ft_checkpoint::wire::message::Welcome;
use std::sync::Arc;
use std::time::Instant;

impl Replica {
    /// The primary has accepted us; whether we still want that is the core's to say.
    pub(super) fn on_welcome(&mut self, fitting: Fitting, welcome: Welcome) {
        let conn = fitting.conn;
        let generation = welcome.identity.generation;
        let resumed = welcome.resume_from.is_some();
        self.arriving.insert(conn, fitting);
        self.tell(Event::Welcomed { conn, generation, pairing: welcome.pairing, resumed });
        // Still there: the core does not follow it. Dropping it closes it.
        self.arriving.remove(&conn);
    }

    /// Receives from a primary that has welcomed us: on top of what is held, or a full copy into fresh memory.
    pub(super) fn follow(&mut self, conn: ConnId, resumed: bool) {
        let Some(fitting) = self.arriving.remove(&conn) else { return };
        let feed = if resumed { self.held_feed() } else { self.fresh_feed() };
        let link = feed.and_then(|feed| {
            feed.connected(fitting.generation);
            let telemetry = Arc::clone(&self.telemetry);
            let news = Outlet::into_queue(&self.inputs, Input::Keeper);
            Link::start(fitting, Outlet::into_queue(&self.inputs, Input::Peer), move |reader, intake| {
                feed.read(conn, reader, intake, &news, &telemetry)
            })
            .map_err(|e| e.to_string())
        });
        match link {
            Ok(link) => {
                self.telemetry.connected(Arc::clone(&link.written));
                self.window.show_peer(true, None);
                self.peer_lost = None;
                self.links.insert(conn, link);
            }
            Err(why) => {
                tracing::error!("cannot receive the VM's state: {why}");
                self.own_news.push_back(Event::PeerGone { conn, why: Gone::Lost(why) });
            }
        }
    }

    fn held_feed(&self) -> Result<Feed, String> {
        Ok(self.standby.as_ref().ok_or("nothing is held to go on with")?.feed())
    }

    fn fresh_feed(&mut self) -> Result<Feed, String> {
        self.output.mute();
        let ram =
            self.order_and_wait(Order::Prepare).ok_or("the keeper has ended")?.map_err(|e| e.to_string())?;
        self.replay.progress.reset();
        let standby = Standby::new(ram, &self.replay, &self.orders).map_err(|e| e.to_string())?;
        let feed = standby.feed();
        *self.held.lock() = Some(feed.clone());
        self.standby = Some(standby);
        Ok(feed)
    }

    pub(super) fn on_dial_failed(&mut self, error: &HandshakeError) {
        if error.is_permanent() && self.standby.is_none() {
            self.exit = Some(Exit::Misfit(error.to_string()));
            return;
        }
        self.window.show_peer(false, Some(error.to_string()));
    }

    /// The VM is ours. From the sealed checkpoint to a running guest.
    pub(super) fn take_over(&mut self, epoch: u64, generation: u64) -> Result<(), String> {
        let began = Instant::now();
        for link in self.links.values_mut() {
            link.stop_reading();
        }
        *self.held.lock() = None;
        let standby = self.standby.take().ok_or("nothing is held")?;
        let (resumed_epoch, pending) = match self.replay.on {
            true => self.go_live(standby, epoch)?,
            false => self.resume_sealed(standby, epoch)?,
        };
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
        self.telemetry.took_over(generation, resumed_epoch, took, lost_for, pending);
        Ok(())
    }

    /// Replay mode: the machine that follows comes to the end of its log, and goes on by itself.
    fn go_live(&mut self, standby: Standby, epoch: u64) -> Result<(u64, u64), String> {
        let sealed = standby.feed().held().map_or(0, |held| held.epoch);
        if sealed < epoch {
            return Err(format!("epoch {epoch} was sealed, but {sealed} is held"));
        }
        // The machine has all of it.
        standby.discard();
        let _ = self.output.pass();
        let gone =
            self.order_and_wait(Order::GoLive).ok_or("the keeper has ended")?.map_err(|e| e.to_string())?;
        self.replay.progress.reset();
        Ok((sealed, gone.pending))
    }

    /// Checkpoint mode: the machine goes on from the last sealed checkpoint, served with pages that are still pending.
    fn resume_sealed(&mut self, standby: Standby, epoch: u64) -> Result<(u64, u64), String> {
        let (ram, mut sealed) = standby.into_sealed().map_err(|e| e.to_string())?;
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
        self.order_and_wait(|reply| Order::Restore(state, reply))
            .ok_or("the keeper has ended")?
            .map_err(|e| e.to_string())?;
        Ok((resumed_epoch, pending as u64))
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
