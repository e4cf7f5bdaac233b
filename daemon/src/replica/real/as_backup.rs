//! The daemon's hands on a backup: receive from a primary, and resume from the sealed state.

use super::resuming::{Resuming, Settling};
use super::{HandsError, RealHands};
use crate::keeper::{Order, Urgency, WarmStandby};
use crate::outlet::Outlet;
use crate::peer::{Link, LinkSide};
use crate::replica::Input;
use crate::role::ConnId;
use ft_checkpoint::lazy::LazyApply;
use std::sync::Arc;
use std::time::Instant;

impl RealHands {
    pub(super) fn follow_primary(&mut self, conn: ConnId) -> Result<(), HandsError> {
        let fitting = self.arriving.remove(&conn).ok_or(HandsError::NotArriving)?;
        let feed = self.standby.as_ref().ok_or(HandsError::NothingHeld)?.feed();
        feed.connected(fitting.generation, fitting.agreed.protocol);
        let telemetry = Arc::clone(&self.telemetry);
        let news = Outlet::into_queue(&self.inputs, Input::Keeper);
        let from = fitting.writer.get_ref().socket().peer_addr().ok();
        let of_link = Outlet::into_queue(&self.inputs, Input::Peer);
        let link = Link::start(fitting, LinkSide::Backup, of_link, move |reader, intake| {
            feed.read(conn, reader, intake, &news, &telemetry)
        })
        .map_err(HandsError::Link)?;
        self.telemetry.connected(Arc::clone(&link.written), link.meter());
        self.window.show_connected(from);
        self.peer_lost = None;
        #[cfg(feature = "next-version")]
        if link.agreed.protocol >= ft_checkpoint::wire::FrameType::Build.since() {
            link.send(ft_checkpoint::wire::Message::Build { text: env!("CARGO_PKG_VERSION").into() });
        }
        self.greet(conn, link);
        Ok(())
    }

    pub(super) fn prepare_standby(&mut self) -> Result<(), HandsError> {
        self.resuming = None;
        // What the VM still had to be given when it ran here last goes into its memory behind everybody's back.
        if let Some(settling) = self.settling.take() {
            settling.finish();
        }
        let kept = self.kept.take();
        if kept.is_some() {
            tracing::info!("the VM's memory is still here: of the copy that comes, what has changed is sent");
        }
        let ram = self.order_and_wait(|reply| Order::Prepare(kept, reply))??;
        if !self.replay.on {
            self.rehearser.make_ready(&ram);
        }
        self.replay.progress.reset();
        let standby = WarmStandby::new(ram, &self.replay, &self.orders, self.disks.as_ref())?;
        *self.held.lock() = Some(standby.feed());
        self.standby = Some(standby);
        Ok(())
    }

    /// In replay mode what was held was in the machine that is gone.
    pub(super) fn renew_machine(&mut self) {
        let Some(standby) = self.standby.as_ref().filter(|_| !self.replay.on) else { return };
        let ram = standby.ram();
        match self.order_and_wait(|reply| Order::Renew(ram, reply)).and_then(|renewed| Ok(renewed?)) {
            Ok(()) => tracing::info!("a fresh machine stands ready in the place of the one that failed"),
            Err(e) => tracing::error!("no machine stands ready for a take-over, which will try again: {e}"),
        }
    }

    /// Has it shown that the VM could go on from what is held. The first time the primary waits for it.
    pub(super) fn try_out(&mut self) {
        let Some(sealed) = self.standby.as_ref().and_then(WarmStandby::sealed) else { return };
        let pairing = sealed.held.pairing;
        let again = self.rehearsed.replace(pairing) == Some(pairing);
        if self.replay.on {
            self.order(Order::Rehearse { pairing });
        } else {
            self.rehearser.rehearse(sealed, if again { Urgency::Again } else { Urgency::First });
        }
    }

    pub(super) fn seal_standby_off(&mut self, wanted: u64) -> Result<(), HandsError> {
        let began = Instant::now();
        self.rehearser.forget();
        if let Some(standby) = self.standby.take() {
            let (held, sealed) = if self.replay.on {
                let held = standby.feed().held().map_or(0, |held| held.epoch);
                standby.discard();
                (held, None)
            } else {
                let (ram, sealed) = standby.into_sealed()?;
                (sealed.epoch, Some((ram, Arc::new(sealed))))
            };
            self.resuming = Some(Resuming { began, epoch: held, pending: 0, attempts: 0, sealed });
        }
        match &self.resuming {
            None => Err(HandsError::NothingHeld),
            Some(resuming) if resuming.epoch < wanted => {
                Err(HandsError::Older { wanted, held: resuming.epoch })
            }
            Some(_) => Ok(()),
        }
    }

    /// Replay mode: the machine that follows has come to the end of its log, its images have that, durably, and say
    /// that the VM runs from them, and it goes on by itself. Checkpoint mode: the machine goes on from the last sealed
    /// checkpoint, served with pages that are still pending. When it failed before, it is a fresh machine over the same
    /// memory, in which all is applied by then.
    pub(super) fn resume_sealed(&mut self) -> Result<(), HandsError> {
        let resuming = self.resuming.as_mut().ok_or(HandsError::NothingHeld)?;
        resuming.attempts += 1;
        let (attempts, epoch) = (resuming.attempts, resuming.epoch);
        let Some((ram, sealed)) = resuming.sealed.clone() else {
            self.order_and_wait(Order::Settle)??;
            self.stamping.ran()?;
            let gone = self.order_and_wait(Order::GoLive)??;
            self.replay.progress.reset();
            self.note_pending(gone.pending);
            return Ok(());
        };
        let state = sealed.state.clone();
        if attempts == 1 {
            self.note_pending(sealed.pending.iter().map(|checkpoint| checkpoint.len() as u64).sum());
            // Serves what is still pending while the guest runs already.
            let lazy = LazyApply::start(&ram, &sealed);
            self.settling = Some(Settling::new(lazy, sealed));
        } else {
            if let Some(settling) = self.settling.take() {
                settling.finish();
            }
            self.order_and_wait(|reply| Order::Renew(ram, reply))??;
        }
        // The guest may run before the answer is here.
        self.images.pause();
        let restored = self.order_and_wait(|reply| Order::Restore { epoch, state, reply });
        match restored.and_then(|restored| Ok(restored?)) {
            Ok(()) => {
                self.images.call_off();
                Ok(())
            }
            Err(why) => {
                self.images.go_on();
                Err(why)
            }
        }
    }

    fn note_pending(&mut self, pending: u64) {
        if let Some(resuming) = &mut self.resuming {
            resuming.pending = pending;
        }
    }

    pub(super) fn report_take_over(&mut self, generation: u64) {
        let Some(Resuming { began, epoch, pending, .. }) = self.resuming.take() else { return };
        let took = began.elapsed();
        let lost_for = self.peer_lost.take().map(|at| at.elapsed());
        tracing::info!(generation, epoch, pending, ?took, ?lost_for, "took over: the guest runs here");
        self.telemetry.took_over(generation, epoch, took, lost_for, pending);
    }
}
