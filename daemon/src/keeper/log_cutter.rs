//! Replay mode's primary: cuts the running guest's log into epochs, without a pause. An epoch ends when the batch
//! interval is over, or sooner when a frame waits for it. The cut closes the epoch's output at the exact instruction,
//! so the ack of that log releases exactly the frames that were sent before.
//!
//! A backup that falls behind, or a link that carries the log late, slows the guest: hardly at all up to half of the
//! bound, by half at the bound, never below the declared least speed. If that does not do, protection yields. The guest
//! stands still only when there is no room left for more log.

use super::error::{KeepError, ShipError};
use super::flow::Service;
use super::news::KeeperNews;
use super::pairing::Pairing;
use super::setup::{GROUP, Setup};
use super::shipper::{LogEpoch, Shipper};
use super::vm::Vm;
use crate::clock;
use crate::config::OnOverload;
use crate::disks::Tapped;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most log that the backup may hold unexecuted; beyond it the guest stands still until there is less.
const UNEXECUTED_BYTES_MAX: u64 = 64 << 20;
/// Most thousandths of its time that a slowed guest stands still, whatever is declared.
const THROTTLE_MAX: u64 = 990;
/// This share lets a backup catch up that executes no faster than its primary, in thousandths.
const THROTTLE_GENTLE: u64 = 30;
/// A backup at most this far behind is in step: the guest is not slowed.
const LAG_FREE_US: u64 = 5_000;

/// See the module.
pub(super) struct LogCutter {
    pairing: Arc<Pairing>,
    /// The backup's machine makes the changes of its disks too, for as long as this is here.
    _tapped: Option<Tapped>,
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
    /// The core has been told that the pairing cannot be kept up.
    given_up: bool,
}

impl LogCutter {
    /// Goes on from the pairing's first epoch, a checkpoint, at whose pause recording began.
    pub(super) fn new(pairing: Arc<Pairing>, tapped: Option<Tapped>, shipper: Shipper, last: u64) -> Self {
        Self {
            pairing,
            _tapped: tapped,
            shipper,
            last,
            cut_at: Instant::now(),
            output_since: None,
            throttle: 0,
            paused: false,
            starved: false,
            freezing: false,
            given_up: false,
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
        let (output, disks) = (setup.output.clone(), setup.disks.clone());
        let at_cut = Box::new(move || {
            output.close_epoch(epoch);
            if let Some(disks) = disks {
                disks.tap().runs(epoch + 1);
            }
        });
        let cut = vm.machine.cut_log(&mut log, at_cut)?;
        (self.last, self.cut_at) = (epoch, Instant::now());
        if self.freezing {
            setup.tell(KeeperNews::FinalCaptured { epoch });
        } else {
            self.let_run(vm)?;
            self.slow_down(vm, setup, progress.lag_us);
        }
        self.pairing.with_flow(|flow| flow.captured(stamp_us, epoch, log.len() as u64));
        self.give_up_if_overloaded(setup);
        setup.telemetry.logged(epoch, &cut);
        self.shipper.ship_log(LogEpoch { epoch, stamp_us, log });
        Ok(())
    }

    /// A backup that executes late slows the guest, and so does a log that is long on its way.
    fn slow_down(&mut self, vm: &Vm, setup: &Setup, lag_us: u64) {
        // A batch that has just come is no lag yet: it takes as long to execute as it took to make.
        let lag_us = lag_us.saturating_sub(setup.replay.batch.as_micros() as u64);
        let (waits_us, wait_max) = self.pairing.with_flow(|flow| flow.queueing(clock::now_us()));
        let permille = throttle_permille(lag_us, setup.replay.lag_max)
            .max(throttle_permille(waits_us, wait_max))
            .min(slowest_permille(setup.service));
        if permille != self.throttle {
            vm.machine.throttle(permille);
            setup.telemetry.slowed(permille);
            self.throttle = permille;
        }
    }

    /// What the operator declared cannot be kept up: protection yields, if that is what is to happen.
    fn give_up_if_overloaded(&mut self, setup: &Setup) {
        let is_slowest = self.throttle >= slowest_permille(setup.service);
        let overloaded = self.pairing.with_flow(|flow| flow.is_overloaded_at(clock::now_us(), is_slowest));
        if overloaded && !self.given_up && setup.on_overload == OnOverload::Yield && !self.freezing {
            self.given_up = true;
            let why = ShipError::Overloaded(setup.service);
            setup.tell(KeeperNews::PairingBroken { pairing: self.pairing.nonce, why });
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

/// The part of its time that the guest stands still at most, by the declared service.
fn slowest_permille(service: Service) -> u16 {
    1000 - (service.speed_pct_min * 10).min(1000) as u16
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
    use super::super::flow::Flow;
    use super::*;
    use std::collections::VecDeque;

    /// A guest that makes so many bytes of log in a microsecond over a link that carries so many: the longest hold of
    /// the last ten of thirty seconds, how the guest is slowed in the end, and whether that was given up.
    fn over(link: f64, guest: f64) -> (u64, u16, bool) {
        let service = Service { hold_us_max: 100_000, speed_pct_min: 10 };
        let slowest = slowest_permille(service);
        let mut flow = Flow::new(service, 64 << 20);
        let (mut throttle, mut longest_us, mut given_up, mut link_free_at) = (0, 0, false, 0);
        let mut acks = VecDeque::<(u64, u64, u64)>::new();
        for epoch in 1..=6_000 {
            let now = 1_000_000 + epoch * 5_000;
            while acks.front().is_some_and(|(at, ..)| *at <= now) {
                let Some((at, acked, began)) = acks.pop_front() else { break };
                flow.acked(at, acked);
                longest_us = if epoch > 4_000 { longest_us.max(at - began) } else { 0 };
            }
            let bytes = 60 + (guest * 5.0 * f64::from(1000 - throttle)) as u64;
            flow.captured(now, epoch, bytes);
            flow.encoded(epoch, bytes, bytes);
            link_free_at = now.max(link_free_at) + (bytes as f64 / link) as u64;
            acks.push_back((link_free_at + 600, epoch, now - 5_000));
            let (waits_us, wait_max) = flow.queueing(now);
            throttle = throttle_permille(waits_us, wait_max).min(slowest);
            given_up |= flow.is_overloaded_at(now, throttle >= slowest);
        }
        (longest_us, throttle, given_up)
    }

    #[test]
    fn a_log_that_is_long_on_its_way_slows_the_guest_down_to_the_declared_floor() {
        const MBIT_10: f64 = 1.25;
        let (hold_us, throttle, given_up) = over(MBIT_10, 0.5);
        assert!(hold_us < 10_000 && throttle < 50 && !given_up, "{hold_us} us, {throttle}");
        for guest in [2.5, 5.0, 9.0] {
            let (hold_us, throttle, given_up) = over(MBIT_10, guest);
            assert!(hold_us <= 100_000 && !given_up, "{guest}: held for {hold_us} us, {throttle}");
        }
        let (_, throttle, given_up) = over(MBIT_10, 50.0);
        assert!(throttle == 900 && given_up, "{throttle}");
    }

    #[test]
    fn a_backup_that_lags_slows_the_guest_gently_and_never_to_a_standstill() {
        let bound = Duration::from_millis(100);
        let lags = [0, 5_000, 10_000, 49_999, 50_000, 60_000, 100_000, 130_000, 500_000, u64::MAX];
        let throttles = lags.map(|lag_us| throttle_permille(lag_us, bound));
        assert_eq!(throttles, [0, 0, 6, 29, 30, 124, 500, 782, 990, 990]);
        assert_eq!(throttle_permille(5, Duration::ZERO), 990, "no bound divides by zero");
    }
}
