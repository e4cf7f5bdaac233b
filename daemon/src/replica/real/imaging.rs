//! The daemon's hands on an heir whose machine does not take the state: to disk with it, and back.

use super::RealHands;
use super::resuming::Resuming;
use crate::host::extend_stop;
use crate::keeper::{KeeperNews, Order, SaveError};
use crate::replica::Input;
use crate::role::{Event, Saved};
use ft_checkpoint::receiver::SealedImage;
use ft_ram::GuestRam;
use std::sync::Arc;
use std::time::Instant;

impl RealHands {
    pub(super) fn save_sealed(&mut self, saved: Saved) {
        // What was still being applied behind a machine that did not run belongs to the image.
        if let Some(settling) = self.settling.take() {
            settling.finish();
        }
        let why = match &self.resuming {
            Some(Resuming { sealed: Some((ram, sealed)), .. }) => {
                let (ram, sealed) = (ram.clone(), Arc::clone(sealed));
                extend_stop();
                if self.unsaved.is_empty() {
                    tracing::warn!("no machine here takes the VM's state: writing it to disk");
                }
                return self.images.write(saved, ram, sealed);
            }
            Some(_) => SaveError::Replay,
            None => SaveError::NothingHeld,
        };
        self.tell_keepers(KeeperNews::ImageWritten { generation: saved.generation, outcome: Err(why) });
    }

    pub(super) fn prepare_for_image(&mut self, saved: Saved) {
        self.resuming = None;
        self.kept.give_up();
        self.images.want();
        match self.order_and_wait(|reply| Order::Prepare(None, reply)).and_then(|prepared| Ok(prepared?)) {
            Ok(ram) => self.images.read(saved, ram),
            Err(why) => {
                self.tell_keepers(KeeperNews::ImageRead(Err(SaveError::Unprepared(why.to_string()))));
            }
        }
    }

    fn tell_keepers(&self, news: KeeperNews) {
        // The queue lives as long as these hands.
        let _ = self.inputs.send(Input::Keeper(news));
    }

    pub(super) fn event_of_written(&mut self, generation: u64, outcome: Result<(), SaveError>) -> Event {
        let why = match outcome {
            Ok(()) => return Event::ImageSaved { generation },
            Err(why) => why,
        };
        let (is_failure, why) = (!matches!(why, SaveError::CalledOff), why.to_string());
        // It is tried again and again: one line for each reason.
        if is_failure && self.unsaved != why {
            tracing::error!("the VM's state is not written to disk: {why}");
            self.unsaved.clone_from(&why);
        }
        Event::ImageUnsaved { generation, why }
    }

    pub(super) fn event_of_read(
        &mut self,
        outcome: Result<(GuestRam, Arc<SealedImage>), SaveError>,
    ) -> Option<Event> {
        if !self.images.was_wanted() {
            return None;
        }
        Some(match outcome {
            Ok((ram, sealed)) => {
                let (epoch, sealed) = (sealed.epoch, Some((ram, sealed)));
                let began = Instant::now();
                self.resuming = Some(Resuming { began, epoch, pending: 0, attempts: 0, sealed });
                Event::ImageRead
            }
            Err(why) => {
                tracing::error!("the VM's state is not read from disk: {why}");
                // The memory was filled in part.
                let _ = self.order_and_wait(Order::Stop);
                Event::ImageUnread(why.trouble())
            }
        })
    }
}
