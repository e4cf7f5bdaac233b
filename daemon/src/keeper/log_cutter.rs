//! Replay mode's primary: cuts the running guest's log into epochs, without a pause. An epoch ends when the batch
//! interval is over, or sooner when a frame waits for it. The cut closes the epoch's output at the exact instruction,
//! so the ack of that log releases exactly the frames that were sent before.
//!
//! A backup that falls behind slows the guest: hardly at all up to half of the bound, by half at the bound, never to a
//! standstill. The guest stands still only when there is no room left for more log.

use super::error::KeepError;
use super::news::KeeperNews;
use super::pairing::Pairing;
use super::setup::{GROUP, Setup};
use super::shipper::{LogEpoch, Shipper};
use super::vm::Vm;
use crate::clock;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most log that the backup may hold unexecuted; beyond it the guest stands still until there is less.
const UNEXECUTED_BYTES_MAX: u64 = 64 << 20;
/// Most thousandths of its time that a slowed guest stands still.
const THROTTLE_MAX: u64 = 900;
/// This share lets a backup catch up that executes no faster than its primary, in thousandths.
const THROTTLE_GENTLE: u64 = 30;
/// A backup at most this far behind is in step: the guest is not slowed.
const LAG_FREE_US: u64 = 5_000;

/// See the module.
pub(super) struct LogCutter {
    pairing: Arc<Pairing>,
    shipper: Shipper,
    /// The last epoch cut.
    last: u64,
    cut_at: Instant,
    /// Since when a frame waits for the next cut.
    output_since: Option<Instant>,
    throttle: u16,
    /// The guest stands still.
    paused: bool,
    /// There is no room for the next epoch.
    starved: bool,
    /// The next cut is the last one, or was.
    freezing: bool,
}

impl LogCutter {
    /// Goes on from the pairing's first epoch, a checkpoint, at whose pause recording began.
    pub(super) fn new(pairing: Arc<Pairing>, shipper: Shipper, last: u64) -> Self {
        Self {
            pairing,
            shipper,
            last,
            cut_at: Instant::now(),
            output_since: None,
            throttle: 0,
            paused: false,
            starved: false,
            freezing: false,
        }
    }

    /// Whether the last cut was made and the guest stands still behind it.
    pub(super) fn is_frozen(&self) -> bool {
        self.freezing && self.paused && !self.starved
    }

    /// Whether it waits for room.
    pub(super) fn is_starved(&self) -> bool {
        self.starved
    }

    /// When the next cut is due.
    pub(super) fn wait_limit(&self, batch: Duration) -> Duration {
        if self.starved {
            return Duration::from_millis(1);
        }
        let regular = self.cut_at + batch;
        let due = self.output_since.map_or(regular, |since| regular.min(since + GROUP));
        due.saturating_duration_since(Instant::now())
    }

    /// A frame waits for the next cut.
    pub(super) fn output_waits(&mut self) {
        self.output_since.get_or_insert_with(Instant::now);
    }

    /// The next cut is the last, and the guest stands still at it.
    pub(super) fn freeze(&mut self) {
        self.freezing = true;
    }

    /// The guest goes on after all.
    pub(super) fn thaw(&mut self, vm: &mut Vm) -> Result<(), KeepError> {
        self.freezing = false;
        self.cut_at = Instant::now();
        self.let_run(vm)
    }

    /// Ends the epoch, if there is room for another.
    pub(super) fn cut(&mut self, vm: &mut Vm, setup: &Setup) -> Result<(), KeepError> {
        let progress = setup.replay.progress.get();
        if progress.pending_bytes > UNEXECUTED_BYTES_MAX || !self.pairing.reserve() {
            return self.starve(vm, setup);
        }
        self.starved = false;
        if self.freezing && !self.paused {
            vm.machine.pause()?;
            self.paused = true;
        }
        let epoch = self.last + 1;
        let mut log = Vec::new();
        // Before the cut: what the guest sends from then on is told anew.
        self.output_since = None;
        let stamp_us = clock::now_us();
        let output = setup.output.clone();
        let at_cut = Box::new(move || output.close_epoch(epoch));
        let cut = vm.machine.cut_log(&mut log, at_cut)?;
        (self.last, self.cut_at) = (epoch, Instant::now());
        if self.freezing {
            setup.tell(KeeperNews::FinalCaptured { epoch });
        } else {
            self.let_run(vm)?;
            self.slow_down(vm, setup, progress.lag_us);
        }
        setup.telemetry.logged(epoch, &cut);
        self.shipper.ship_log(LogEpoch { epoch, stamp_us, log });
        Ok(())
    }

    fn slow_down(&mut self, vm: &Vm, setup: &Setup, lag_us: u64) {
        // A batch that has just come is no lag yet: it takes as long to execute as it took to make.
        let lag_us = lag_us.saturating_sub(setup.replay.batch.as_micros() as u64);
        let permille = throttle_permille(lag_us, setup.replay.lag_max);
        if permille != self.throttle {
            vm.machine.throttle(permille);
            setup.telemetry.slowed(permille);
            self.throttle = permille;
        }
    }

    fn starve(&mut self, vm: &mut Vm, setup: &Setup) -> Result<(), KeepError> {
        self.starved = true;
        if !self.paused {
            vm.machine.pause()?;
            self.paused = true;
            setup.telemetry.stalled();
        }
        Ok(())
    }

    fn let_run(&mut self, vm: &mut Vm) -> Result<(), KeepError> {
        if std::mem::take(&mut self.paused) {
            vm.machine.resume()?;
        }
        Ok(())
    }

    /// The pairing is over: nothing is recorded or slowed any more, and the guest runs, unless it has come to its end.
    pub(super) fn finish(self, vm: &mut Vm, setup: &Setup) -> Result<(), KeepError> {
        vm.machine.throttle(0);
        setup.telemetry.slowed(0);
        vm.machine.pause()?;
        vm.machine.stop_recording()?;
        match vm.ended {
            true => Ok(()),
            false => Ok(vm.machine.resume()?),
        }
    }
}

/// The part of its time that the guest is to stand still while the backup is this far behind.
fn throttle_permille(lag_us: u64, lag_max: Duration) -> u16 {
    let half = (lag_max.as_micros() as u64 / 2).max(1);
    match lag_us.checked_sub(half) {
        None if lag_us <= LAG_FREE_US => 0,
        None => (THROTTLE_GENTLE * lag_us / half) as u16,
        Some(excess) => {
            let steep = excess.saturating_mul(500 - THROTTLE_GENTLE) / half;
            THROTTLE_GENTLE.saturating_add(steep).min(THROTTLE_MAX) as u16
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_that_lags_slows_the_guest_gently_and_never_to_a_standstill() {
        let bound = Duration::from_millis(100);
        let lags = [0, 5_000, 10_000, 49_999, 50_000, 60_000, 100_000, 130_000, 500_000, u64::MAX];
        let throttles = lags.map(|lag_us| throttle_permille(lag_us, bound));
        assert_eq!(throttles, [0, 0, 6, 29, 30, 124, 500, 782, 900, 900]);
        assert_eq!(throttle_permille(5, Duration::ZERO), 900, "no bound divides by zero");
    }
}
