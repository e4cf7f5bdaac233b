//! Epochs: the guest runs, is paused, its changes are captured and copied aside, and it runs on. Output ends an epoch
//! early, so that it is not held for the rest of the epoch. Pauses limit how early: they may take only a fixed share of
//! the time.

use super::copying::{Copying, PRECOPY_PAGES_LEFT};
use super::error::KeepError;
use super::log_cutter::LogCutter;
use super::news::KeeperNews;
use super::pairing::Pairing;
use super::setup::{GROUP, Setup};
use super::shipper::Shipper;
use super::vm::Vm;
use crate::clock;
use crate::observe::{PauseParts, Telemetry};
use ft_checkpoint::scrub::{Sample, Scrubber};
use ft_ram::PageIndex;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Without room for a checkpoint, the epoch grows to this many times its length; then the guest is paused.
const EPOCH_STRETCH: u32 = 4;

/// Output ends an epoch early, but not before the epoch has lasted this many times the pause before it.
const EARLY_PAUSES: u32 = 10;

/// Memory for this many pages at least is ready before a pause.
const RESERVE_PAGES_MIN: usize = 1024;

/// The pairing that epochs are shipped to, and the epoch under way.
pub(super) struct Epochs {
    pairing: Arc<Pairing>,
    shipper: Shipper,
    scrubber: Scrubber,
    /// Hashed during the epoch under way.
    samples: Vec<Sample>,
    last: u64,
    /// Dirty pages of the last checkpoint.
    last_pages: usize,
    began: Instant,
    /// How long the pause before the epoch was.
    last_pause: Duration,
    /// Since when a frame waits for the epoch's end.
    output_since: Option<Instant>,
    /// The guest stands still.
    paused: bool,
    /// The epoch is over, but there is no room for its checkpoint.
    starved: bool,
    /// The next checkpoint is the last one, or was.
    freezing: bool,
}

/// What the end of an epoch came to.
pub(super) enum Ended {
    /// Its checkpoint is captured and on its way.
    Captured,
    /// There is no room for its checkpoint yet.
    Starved,
    /// The guest came to its own end in it: there is no state to go on from.
    WithGuest,
}

impl Epochs {
    /// The copy has converged: the first checkpoint, which is due at once, holds the rest.
    pub(super) fn begin(copying: Copying, ram_pages: PageIndex, setup: &Setup) -> Result<Self, KeepError> {
        let Copying { pairing, encoder, .. } = copying;
        let (news, telemetry) = (setup.news.clone(), Arc::clone(&setup.telemetry));
        let shipper = Shipper::start(encoder, Arc::clone(&pairing), ram_pages as usize, news, telemetry)
            .map_err(KeepError::Shipper)?;
        Ok(Self {
            pairing,
            shipper,
            scrubber: Scrubber::new(ram_pages),
            samples: Vec::new(),
            last: 0,
            last_pages: PRECOPY_PAGES_LEFT,
            began: Instant::now(),
            last_pause: Duration::ZERO,
            output_since: None,
            paused: false,
            starved: false,
            freezing: false,
        })
    }

    /// Replay mode: the log goes on from the checkpoint captured last.
    pub(super) fn into_log(self) -> LogCutter {
        LogCutter::new(self.pairing, self.shipper, self.last)
    }

    /// The next checkpoint is the last one, and the guest stays paused behind it.
    pub(super) fn freeze(&mut self) {
        self.freezing = true;
    }

    /// The guest goes on after all.
    pub(super) fn thaw(&mut self, vm: &mut Vm) -> Result<(), KeepError> {
        self.freezing = false;
        self.let_run(vm)
    }

    /// Whether the last checkpoint was captured and the guest stands still behind it.
    pub(super) fn is_frozen(&self) -> bool {
        self.freezing && self.paused && !self.starved
    }

    /// Whether it waits for room.
    pub(super) fn is_starved(&self) -> bool {
        self.starved
    }

    /// How long until the epoch is over, if it lasts no longer than `epoch`.
    pub(super) fn wait_limit(&self, epoch: Duration) -> Duration {
        if self.starved {
            // Order::Room comes when an ack has made room; this is only for one that came just before.
            return Duration::from_millis(1);
        }
        let due = due(self.began, epoch, self.last_pause, self.output_since);
        due.saturating_duration_since(Instant::now())
    }

    /// A frame waits for the epoch's end.
    pub(super) fn output_waits(&mut self) {
        self.output_since.get_or_insert_with(Instant::now);
    }

    /// Begins the next epoch.
    pub(super) fn let_run(&mut self, vm: &mut Vm) -> Result<(), KeepError> {
        if std::mem::take(&mut self.paused) {
            vm.machine.resume()?;
        }
        self.began = Instant::now();
        Ok(())
    }

    /// No room for a checkpoint: the epoch grows longer, and when it has grown enough the guest stands still.
    fn starve(&mut self, vm: &mut Vm, epoch: Duration, telemetry: &Telemetry) -> Result<(), KeepError> {
        self.starved = true;
        if !self.paused && (self.freezing || self.began.elapsed() >= epoch * EPOCH_STRETCH) {
            vm.machine.pause()?;
            self.paused = true;
            telemetry.stalled();
        }
        Ok(())
    }

    /// The epoch is over, if there is room for its checkpoint: captures it and lets the guest go on.
    pub(super) fn end(&mut self, vm: &mut Vm, setup: &Setup) -> Result<Ended, KeepError> {
        if !self.pairing.reserve() {
            self.starve(vm, setup.epoch, &setup.telemetry)?;
            return Ok(Ended::Starved);
        }
        let first = self.last == 0;
        let epoch = self.last + 1;
        let mut capture = self.shipper.empty_capture();
        // Ahead of the pause; without memory for it the pause fails, or finds that less will do.
        let _ =
            capture.arena.reserve((2 * self.last_pages).clamp(RESERVE_PAGES_MIN, vm.ram.pages() as usize));
        let started = Instant::now();
        let stamp_us = clock::now_us();
        if !self.paused {
            vm.machine.pause()?;
            self.paused = true;
        }
        let stopped = Instant::now();
        if vm.poll_end(setup) {
            return Ok(Ended::WithGuest);
        }
        vm.machine.harvest(&mut capture.pages)?;
        let harvested = Instant::now();
        vm.machine.capture(&mut capture.state)?;
        let captured = Instant::now();
        capture.copy_pages(&vm.view)?;
        if setup.replay.on {
            vm.machine.start_recording()?;
            vm.machine.stop_dirty_log()?;
        }
        let copied = Instant::now();
        if first {
            setup.output.hold();
        } else {
            setup.output.close_epoch(epoch);
        }
        self.starved = false;
        // What the guest sends from now on is told anew.
        self.output_since = None;
        if !self.freezing {
            self.let_run(vm)?;
        }
        let resumed = Instant::now();
        self.last_pause = resumed - started;
        (capture.epoch, capture.stamp_us) = (epoch, stamp_us);
        let pages = capture.pages.len();
        std::mem::swap(&mut capture.samples, &mut self.samples);

        (self.last, self.last_pages) = (epoch, pages);
        // Said before the checkpoint is on its way, so that its ack cannot come first.
        if first {
            setup.tell(KeeperNews::FirstCaptured { pairing: self.pairing.nonce });
        }
        if self.freezing {
            setup.tell(KeeperNews::FinalCaptured { epoch });
        }
        self.shipper.ship(capture);
        setup.telemetry.paused(PauseParts {
            epoch,
            pages,
            stop: stopped - started,
            harvest: harvested - stopped,
            capture: captured - harvested,
            copy: copied - captured,
            resume: resumed - copied,
        });
        self.scrub(vm, setup);
        Ok(Ended::Captured)
    }

    /// Early in an epoch, when nobody waits for its end yet: hashes the pages that its checkpoint lets the backup
    /// compare. In replay mode the log's digests do that.
    fn scrub(&mut self, vm: &Vm, setup: &Setup) {
        if !setup.replay.on {
            self.scrubber.sample(&vm.view, &mut self.samples);
            setup.telemetry.scrubbing(self.samples.len(), self.scrubber.pass());
        }
    }
}

/// The end of an epoch that began after `last_pause`; a frame waits in it since `output_since`.
fn due(began: Instant, epoch: Duration, last_pause: Duration, output_since: Option<Instant>) -> Instant {
    let regular = began + epoch;
    output_since.map_or(regular, |since| {
        let early = (since + GROUP).max(began + last_pause * EARLY_PAUSES);
        regular.min(early)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_ends_an_epoch_early_but_no_sooner_than_pauses_allow_and_never_late() {
        let (began, epoch) = (Instant::now(), Duration::from_millis(5));
        let us = Duration::from_micros;
        let after = |pause, output: Option<u64>| {
            due(began, epoch, us(pause), output.map(|at| began + us(at))).duration_since(began)
        };
        assert_eq!(after(200, None), epoch, "nobody waits");
        assert_eq!(after(200, Some(100)), us(2000), "the pause was 200 us: a tenth of 2 ms");
        assert_eq!(after(200, Some(3000)), us(3000) + GROUP, "others may share the epoch");
        assert_eq!(after(200, Some(4990)), epoch, "it is over anyway");
        assert_eq!(after(700, Some(100)), epoch, "expensive pauses keep their epochs");
    }
}
