//! Epochs: the guest runs, is paused, its changes are captured and copied aside, and it runs on. Output ends an epoch
//! early, so that it is not held for the rest of the epoch. Pauses limit how early: they may take only a fixed share of
//! the time. Where the flow has no room, the guest stands still between, or within, its epochs.

use super::copying::Copying;
use super::error::{KeepError, ShipError};
use super::flow::Turn;
use super::load::Load;
use super::log_cutter::LogCutter;
use super::news::KeeperNews;
use super::pairing::Pairing;
use super::setup::{GROUP, Setup};
use super::shipper::Shipper;
use super::vm::Vm;
use crate::clock;
use crate::config::OnOverload;
use crate::disks::Tapped;
use crate::observe::PauseParts;
use crate::role::Micros;
use ft_checkpoint::scrub::{Sample, Scrubber};
use ft_ram::PageIndex;
use ft_ram::layout::PAGE_SIZE;
use ft_vm::machine::MachineError;
use ft_vm::state::StateError;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Without a connection, the epoch grows to this many times its length; then the guest is paused.
const EPOCH_STRETCH: u32 = 4;

/// Output ends an epoch early, but not before the guest has worked this many times as long as the pause before it: that
/// much of its work pauses may cost it.
const EARLY_PAUSES: u64 = 10;

/// Nor before the epoch has lasted this many times the pause before it, however little the guest works.
const EARLY_PAUSES_IDLE: u64 = 2;

/// A guest that stands still is asked about again after so long, whatever happens.
const STAND_STILL_MAX: Duration = Duration::from_millis(20);

/// Replay mode: a guest stands still so long at most, before the log begins, for its disks to do what it asked of them.
const LAND_WITHIN: Duration = Duration::from_secs(1);

/// Memory for this many pages at least is ready before a pause.
const RESERVE_PAGES_MIN: usize = 1024;

/// The pairing that epochs are shipped to, and the epoch under way.
pub(super) struct Epochs {
    pairing: Arc<Pairing>,
    /// Its disks' changes go to the shipper, which ends only when they do not.
    tapped: Option<Tapped>,
    shipper: Shipper,
    scrubber: Scrubber,
    /// Hashed during the epoch under way.
    samples: Vec<Sample>,
    last: u64,
    /// Dirty pages of the last checkpoint.
    last_pages: usize,
    began: Micros,
    /// How long the pause before the epoch was.
    last_pause: Duration,
    load: Load,
    /// Since when a frame waits for the epoch's end.
    output_since: Option<Micros>,
    /// The guest stands still.
    paused: bool,
    /// The epoch is over, but there is no room for its checkpoint.
    starved: bool,
    /// The next checkpoint is the last one, or was.
    freezing: bool,
    /// It is captured.
    frozen: bool,
    /// The core has been told that the pairing cannot be kept up.
    given_up: bool,
}

/// What came of a look at the epoch.
pub(super) enum Looked {
    /// It is over, its checkpoint is captured and on its way.
    Captured,
    /// It goes on.
    Open,
}

impl Epochs {
    /// The copy has converged: the first checkpoint, which is due at once, holds the rest.
    pub(super) fn begin(copying: Copying, ram_pages: PageIndex, setup: &Setup) -> Result<Self, KeepError> {
        let Copying { pairing, encoder, dispatch, disks, stands, .. } = copying;
        let (news, telemetry) = (setup.news.clone(), Arc::clone(&setup.telemetry));
        let shipper =
            Shipper::start(encoder, dispatch, Arc::clone(&pairing), ram_pages as usize, news, telemetry)
                .map_err(KeepError::Shipper)?;
        Ok(Self {
            pairing,
            shipper,
            tapped: disks.map(|disks| disks.tapped),
            scrubber: Scrubber::new(ram_pages),
            samples: Vec::new(),
            last: 0,
            last_pages: RESERVE_PAGES_MIN,
            began: clock::now_us(),
            last_pause: Duration::ZERO,
            load: Load::default(),
            output_since: None,
            paused: stands,
            starved: false,
            freezing: false,
            frozen: false,
            given_up: false,
        })
    }

    /// Replay mode: the log goes on from the checkpoint captured last.
    pub(super) fn into_log(self) -> LogCutter {
        LogCutter::new(self.pairing, self.tapped, self.shipper, self.last)
    }

    /// The next checkpoint is the last one, and the guest stays paused behind it.
    pub(super) fn freeze(&mut self) {
        self.freezing = true;
    }

    /// The guest goes on after all.
    pub(super) fn thaw(&mut self, vm: &mut Vm) -> Result<(), KeepError> {
        (self.freezing, self.frozen) = (false, false);
        self.began = clock::now_us();
        self.let_run(vm)
    }

    /// Whether the last checkpoint was captured and the guest stands still behind it.
    pub(super) fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// There may be room again.
    pub(super) fn room(&mut self) {
        self.starved = false;
    }

    /// How long until there is something to do, if an epoch lasts no longer than `epoch`.
    pub(super) fn wait_limit(&self, epoch: Duration) -> Duration {
        let now = clock::now_us();
        let at = match self.turn(now, epoch) {
            Turn::Run(until) if !self.paused => until,
            // Order::Room comes when an ack has made room.
            Turn::Stand(until) if self.paused => until.min(now + STAND_STILL_MAX.as_micros() as u64),
            _ => now,
        };
        Duration::from_micros(at.saturating_sub(now))
    }

    /// A frame waits for the epoch's end.
    pub(super) fn output_waits(&mut self) {
        self.output_since.get_or_insert_with(clock::now_us);
    }

    /// What the guest is to do next.
    fn turn(&self, now: Micros, epoch: Duration) -> Turn {
        if self.starved && (self.freezing || !self.pairing.is_linked() && self.is_stretched(now, epoch)) {
            return Turn::Stand(Micros::MAX);
        }
        let due = if self.last == 0 || self.freezing {
            now
        } else {
            due(self.began, epoch, self.last_pause, self.load.permille(), self.output_since)
        };
        self.pairing.with_flow(|flow| flow.turn(now, due, !self.starved))
    }

    fn is_stretched(&self, now: Micros, epoch: Duration) -> bool {
        now.saturating_sub(self.began) >= (epoch * EPOCH_STRETCH).as_micros() as u64
    }

    /// The guest runs on.
    pub(super) fn let_run(&mut self, vm: &mut Vm) -> Result<(), KeepError> {
        if std::mem::take(&mut self.paused) {
            vm.machine.resume()?;
        }
        self.pairing.with_flow(|flow| flow.runs(clock::now_us()));
        Ok(())
    }

    fn stop(&mut self, vm: &mut Vm) -> Result<(), KeepError> {
        if !self.paused {
            vm.machine.pause()?;
            self.load.ran(vm.machine.stint());
            self.paused = true;
            self.pairing.with_flow(|flow| flow.stops(clock::now_us()));
        }
        Ok(())
    }

    /// There is no room for what the guest writes: it stands still.
    fn stand_still(&mut self, vm: &mut Vm, setup: &Setup) -> Result<(), KeepError> {
        if !self.paused && self.starved {
            setup.telemetry.stalled();
        }
        self.stop(vm)?;
        self.pairing.with_flow(|flow| flow.stands(clock::now_us()));
        self.pairing.want_ack();
        Ok(())
    }

    /// Looks whether the epoch is over, and whether the guest is to run or to stand still.
    pub(super) fn look(&mut self, vm: &mut Vm, setup: &Setup) -> Result<Looked, KeepError> {
        let now = clock::now_us();
        match self.turn(now, setup.epoch) {
            Turn::End if self.pairing.reserve() => return self.end(vm, setup),
            Turn::End => self.starved = true,
            Turn::Run(_) => self.let_run(vm)?,
            Turn::Stand(_) => self.stand_still(vm, setup)?,
        }
        self.give_up_if_overloaded(now, setup);
        Ok(Looked::Open)
    }

    /// What the operator declared cannot be kept up: protection yields, if that is what is to happen.
    fn give_up_if_overloaded(&mut self, now: Micros, setup: &Setup) {
        let (overloaded, speed) =
            self.pairing.with_flow(|flow| (flow.is_overloaded(now), flow.speed_permille()));
        setup.telemetry.slowed(1000 - speed as u16);
        if overloaded && setup.on_overload == OnOverload::Yield && !self.freezing {
            self.give_up(ShipError::Overloaded(setup.service), setup);
        }
    }

    /// The pairing cannot be kept up: the core, which is told once, ends it.
    fn give_up(&mut self, why: ShipError, setup: &Setup) {
        if !std::mem::replace(&mut self.given_up, true) {
            setup.tell(KeeperNews::PairingBroken { pairing: self.pairing.nonce, why });
        }
    }

    /// The epoch is over, and there is a place for its checkpoint: captures it and lets the guest go on.
    fn end(&mut self, vm: &mut Vm, setup: &Setup) -> Result<Looked, KeepError> {
        let first = self.last == 0;
        let epoch = self.last + 1;
        let mut capture = self.shipper.empty_capture();
        // Ahead of the pause; without memory for it the pause fails, or finds that less will do.
        let _ =
            capture.arena.reserve((2 * self.last_pages).clamp(RESERVE_PAGES_MIN, vm.ram.pages() as usize));
        let started = Instant::now();
        let stamp_us = clock::now_us();
        self.stop(vm)?;
        let stopped = Instant::now();
        vm.poll_end(setup)?;
        if vm.ended {
            // There is no state to go on from.
            return Ok(Looked::Open);
        }
        // What a disk would do again where the log is executed, a read before it would see there.
        if setup.replay.on && !vm.machine.land_disks(LAND_WITHIN)? {
            self.give_up(ShipError::DiskBusy { within: LAND_WITHIN }, setup);
            self.let_run(vm)?;
            return Ok(Looked::Open);
        }
        vm.machine.harvest(&mut capture.pages)?;
        let harvested = Instant::now();
        // The vCPUs' threads read their state out meanwhile, and help when they have.
        capture.copy_pages_with(&vm.view, |work| vm.machine.offer_while_parked(&work))?;
        let copied = Instant::now();
        match vm.machine.capture_as(self.pairing.state_version, &mut capture.state) {
            Err(MachineError::State(why @ StateError::NotCarried { .. })) => {
                self.give_up(ShipError::NotCarried(why), setup);
                self.let_run(vm)?;
                return Ok(Looked::Open);
            }
            captured => captured?,
        }
        let captured = Instant::now();
        if setup.replay.on {
            vm.machine.start_recording()?;
            vm.machine.stop_dirty_log()?;
        }
        if first {
            setup.output.hold();
        } else {
            setup.output.close_epoch(epoch);
        }
        // What the guest sends from now on is told anew.
        self.output_since = None;
        let pages = capture.pages.len();
        let raw_bytes = (pages * PAGE_SIZE + capture.state.len()) as u64;
        (self.last, self.last_pages, self.began) = (epoch, pages, clock::now_us());
        if let Some(disks) = &setup.disks {
            match setup.replay.on {
                true => disks.tap().recorded(epoch),
                false => disks.tap().captured(epoch),
            }
        }
        self.pairing.with_flow(|flow| flow.captured(stamp_us, epoch, raw_bytes));
        self.frozen = self.freezing;
        if !self.freezing {
            match self.turn(self.began, setup.epoch) {
                Turn::Stand(_) => self.stand_still(vm, setup)?,
                Turn::Run(_) | Turn::End => self.let_run(vm)?,
            }
        }
        let resumed = Instant::now();
        self.last_pause = resumed - started;
        (capture.epoch, capture.stamp_us) = (epoch, stamp_us);
        std::mem::swap(&mut capture.samples, &mut self.samples);

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
            copy: copied - harvested,
            capture: captured - copied,
            resume: resumed - captured,
        });
        self.scrub(vm, setup);
        self.give_up_if_overloaded(stamp_us, setup);
        Ok(Looked::Captured)
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

/// The end of an epoch that began after `last_pause`; the guest works `load` thousandths of its time, and a frame waits
/// since `output_since`.
fn due(
    began: Micros,
    epoch: Duration,
    last_pause: Duration,
    load: u64,
    output_since: Option<Micros>,
) -> Micros {
    let us = |duration: Duration| duration.as_micros() as u64;
    let regular = began + us(epoch);
    output_since.map_or(regular, |since| {
        let pauses_permille = (EARLY_PAUSES * load).max(EARLY_PAUSES_IDLE * 1000);
        let early = (since + us(GROUP)).max(began + us(last_pause) * pauses_permille / 1000);
        regular.min(early)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_ends_an_epoch_early_but_no_sooner_than_pauses_allow_and_never_late() {
        let (began, group) = (1_000_000, GROUP.as_micros() as u64);
        let after = |pause, load, output: Option<u64>| {
            let pause = Duration::from_micros(pause);
            due(began, Duration::from_millis(5), pause, load, output.map(|at| began + at)) - began
        };
        assert_eq!(after(200, 1000, None), 5000, "nobody waits");
        assert_eq!(after(200, 1000, Some(100)), 2000, "the pause was 200 us: a tenth of 2 ms");
        assert_eq!(after(200, 1000, Some(3000)), 3000 + group, "others may share the epoch");
        assert_eq!(after(200, 1000, Some(4990)), 5000, "it is over anyway");
        assert_eq!(after(700, 1000, Some(100)), 5000, "expensive pauses keep their epochs");
        assert_eq!(after(200, 500, Some(100)), 1000, "half of it is not the guest's work");
        assert_eq!(after(200, 0, Some(100)), 400, "nothing but pauses would be no good either");
        assert_eq!(after(20, 0, Some(100)), 100 + group);
    }
}
