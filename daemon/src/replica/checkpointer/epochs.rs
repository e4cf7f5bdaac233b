//! Epochs: the guest runs, is paused, and what it changed is captured and copied aside before it runs on. An epoch with
//! output is over as soon as the share of its time that goes into pauses allows, so that the output is not held for the
//! rest of its length.

use super::copying::{Copying, PRECOPY_PAGES_LEFT};
use super::{Checkpointer, GROUP, Mode, Setup, Vm};
use crate::clock;
use crate::replica::Input;
use crate::replica::log_cutter::LogCutter;
use crate::replica::pairing::Pairing;
use crate::replica::shipper::Shipper;
use crate::role::Event;
use crate::telemetry::Telemetry;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Without room for a checkpoint the epoch is stretched to this many times its length, then the guest is paused.
const EPOCH_STRETCH: u32 = 4;

/// An epoch that output ends has lasted at least so many times as long as the pause before it.
const EARLY_PAUSES: u32 = 10;

/// Memory for this many pages at least is ready before a pause.
const RESERVE_PAGES_MIN: usize = 1024;

/// The pairing that epochs are shipped to, and the epoch under way.
pub(super) struct Epochs {
    pairing: Arc<Pairing>,
    shipper: Shipper,
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
    pub(super) starved: bool,
    /// The next checkpoint is the last one, or was.
    pub(super) freezing: bool,
}

impl Epochs {
    pub(super) fn is_frozen(&self) -> bool {
        self.freezing && self.paused && !self.starved
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
    pub(super) fn let_run(&mut self, vm: &mut Vm) -> Result<(), String> {
        if std::mem::take(&mut self.paused) {
            vm.machine.resume().map_err(|e| e.to_string())?;
        }
        self.began = Instant::now();
        Ok(())
    }

    /// No room for a checkpoint: the epoch grows longer, and when it has grown enough the guest stands still.
    fn starve(&mut self, vm: &mut Vm, epoch: Duration, telemetry: &Telemetry) -> Result<(), String> {
        self.starved = true;
        if !self.paused && (self.freezing || self.began.elapsed() >= epoch * EPOCH_STRETCH) {
            vm.machine.pause().map_err(|e| e.to_string())?;
            self.paused = true;
            telemetry.choked();
        }
        Ok(())
    }
}

/// When an epoch is over that began after such a pause, and in which a frame waits since then.
fn due(began: Instant, epoch: Duration, last_pause: Duration, output_since: Option<Instant>) -> Instant {
    let regular = began + epoch;
    output_since.map_or(regular, |since| {
        let early = (since + GROUP).max(began + last_pause * EARLY_PAUSES);
        regular.min(early)
    })
}

impl Checkpointer {
    /// The copy has converged: the rest goes with the first checkpoint, and from its capture on output is held.
    pub(super) fn begin_epochs(&mut self) -> Result<(), String> {
        let Mode::Copying(copying) = std::mem::replace(&mut self.mode, Mode::Quiet) else { return Ok(()) };
        let Copying { pairing, encoder, .. } = *copying;
        let pages_max = self.vm.as_ref().map_or(0, |vm| vm.ram.pages()) as usize;
        let Setup { inputs, telemetry, .. } = &self.setup;
        let shipper =
            Shipper::start(encoder, Arc::clone(&pairing), pages_max, inputs.clone(), Arc::clone(telemetry))
                .map_err(|e| format!("cannot start the shipper: {e}"))?;
        let (began, last, last_pages) = (Instant::now(), 0, PRECOPY_PAGES_LEFT);
        let epochs = Epochs {
            pairing,
            shipper,
            last,
            last_pages,
            began,
            last_pause: Duration::ZERO,
            output_since: None,
            paused: false,
            starved: false,
            freezing: false,
        };
        self.mode = Mode::Epochs(epochs);
        self.end_epoch()
    }

    /// The epoch is over, if there is room for its checkpoint: captures it and lets the guest go on.
    pub(super) fn end_epoch(&mut self) -> Result<(), String> {
        let (Mode::Epochs(epochs), Some(vm)) = (&mut self.mode, &mut self.vm) else { return Ok(()) };
        if !epochs.pairing.reserve() {
            return epochs.starve(vm, self.setup.epoch, &self.setup.telemetry);
        }
        let first = epochs.last == 0;
        let epoch = epochs.last + 1;
        let mut capture = epochs.shipper.empty_capture();
        // Ahead of the pause; without memory for it the pause fails, or finds that less will do.
        let _ =
            capture.arena.reserve((2 * epochs.last_pages).clamp(RESERVE_PAGES_MIN, vm.ram.pages() as usize));
        let started = Instant::now();
        let stamp_us = clock::now_us();
        if !epochs.paused {
            vm.machine.pause().map_err(|e| e.to_string())?;
            epochs.paused = true;
        }
        let stopped = Instant::now();
        // A guest that ended in this epoch has no state to go on from.
        if self.poll_guest_end() {
            return Ok(());
        }
        let (Mode::Epochs(epochs), Some(vm)) = (&mut self.mode, &mut self.vm) else { return Ok(()) };
        vm.machine.harvest(&mut capture.pages).map_err(|e| e.to_string())?;
        let harvested = Instant::now();
        vm.machine.capture(&mut capture.state).map_err(|e| e.to_string())?;
        let captured = Instant::now();
        capture.copy_pages(&vm.view).map_err(|e| e.to_string())?;
        if self.setup.replay.on {
            vm.machine.start_recording().map_err(|e| e.to_string())?;
            vm.machine.stop_dirty_log().map_err(|e| e.to_string())?;
        }
        let copied = Instant::now();
        if first {
            self.setup.output.hold();
        } else {
            self.setup.output.close_epoch(epoch);
        }
        epochs.starved = false;
        // What the guest sends from now on is told anew.
        epochs.output_since = None;
        if !epochs.freezing {
            epochs.let_run(vm)?;
        }
        let resumed = Instant::now();
        epochs.last_pause = resumed - started;
        (capture.epoch, capture.stamp_us) = (epoch, stamp_us);
        let pages = capture.pages.len();

        (epochs.last, epochs.last_pages) = (epoch, pages);
        // Said before the checkpoint is on its way, so that its ack cannot come first.
        if first {
            let pairing = epochs.pairing.nonce;
            let _ = self.setup.inputs.send(Input::Event(Event::FirstCaptured { pairing }));
        }
        if epochs.freezing {
            let _ = self.setup.inputs.send(Input::Event(Event::FinalCaptured { epoch }));
        }
        epochs.shipper.ship(capture);
        self.setup.telemetry.paused(PauseParts {
            epoch,
            pages,
            stop: stopped - started,
            harvest: harvested - stopped,
            capture: captured - harvested,
            copy: copied - captured,
            resume: resumed - copied,
        });
        if self.setup.replay.on
            && let Mode::Epochs(epochs) = std::mem::replace(&mut self.mode, Mode::Quiet)
        {
            let Epochs { pairing, shipper, last, .. } = epochs;
            self.mode = Mode::Log(Box::new(LogCutter::new(pairing, shipper, last)));
        }
        Ok(())
    }
}

/// What a pause was made of.
#[derive(Clone, Copy, Debug)]
pub struct PauseParts {
    /// The epoch that it ended.
    pub epoch: u64,
    /// Dirty pages.
    pub pages: usize,
    /// Until every vCPU stood still.
    pub stop: Duration,
    /// Reading and clearing the dirty logs.
    pub harvest: Duration,
    /// Machine state.
    pub capture: Duration,
    /// Copying the dirty pages aside.
    pub copy: Duration,
    /// Closing the epoch's output and letting the guest go.
    pub resume: Duration,
}

impl PauseParts {
    /// The whole pause.
    pub fn total(&self) -> Duration {
        self.stop + self.harvest + self.capture + self.copy + self.resume
    }
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
