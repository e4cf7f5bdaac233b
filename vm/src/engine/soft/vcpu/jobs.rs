//! The jobs of the vCPU's thread: the machine's commands.

use super::input::Applied;
use super::{Mode, Worker};

use crate::engine::soft::host_time::HostTime;
use crate::engine::soft::platform::Platform;
use crate::engine::soft::record::Recorder;
use crate::engine::soft::replay::Replayer;
use crate::engine::soft::state::{IdleState, SoftState};
use crate::error::MachineError;
use crate::replay::log::{Batch, ControlAction, LogCut, LogInput};
use crate::state::StateError;
use ft_cpu::CpuState;
use ft_cpu::Tracker;
use ft_ram::PageIndex;
use std::sync::atomic::Ordering;

impl Worker {
    pub(crate) fn quit(&mut self) {
        self.quit = true;
    }

    pub(crate) fn resume(&mut self) {
        (self.running, self.ended) = (true, false);
        if !self.host_time.stands_still() {
            self.host_time = HostTime::start(self.virtual_ns());
        }
        self.throttled_until = None;
        match self.mode {
            Mode::Replaying(_) => self.reach.devices.go_on_unseen(),
            // What was done while a log was replayed, and had not been shown where that ended, is shown now.
            Mode::Live | Mode::Recording(_) => {
                let seconds = self.reach.devices.time_of_day_behind_s(self.host_time.due_ns());
                if seconds != 0 {
                    self.input(&LogInput::TimeOfDay { seconds });
                }
                self.land_disks();
            }
        }
        self.reach.inbox.open(!matches!(self.mode, Mode::Replaying(_)));
    }

    pub(crate) fn stop(&mut self) {
        if self.running && !self.ended && self.stuck.is_none() && !matches!(self.mode, Mode::Replaying(_)) {
            if self.waits() {
                // What is captured now is a guest that has waited until now.
                self.advance_to(self.host_time.due_ns());
            }
            self.host_time.stand_still();
        }
        self.running = false;
        self.reach.inbox.open(false);
        self.take_journal();
        self.reach.now_ns.store(self.virtual_ns(), Ordering::Relaxed);
        self.publish();
    }

    pub(crate) fn capture(&mut self) -> Result<SoftState, MachineError> {
        if let Some(stuck) = &self.stuck {
            return Err(stuck.error());
        }
        // Whoever is restored from this has no cached translation, and old ones can be told from new ones by the guest.
        // (A replay goes on as its recorder, and is captured to be compared.)
        if !matches!(self.mode, Mode::Replaying(_)) {
            self.input(&LogInput::Control(ControlAction::FlushTranslations));
        }
        self.reach.now_ns.store(self.virtual_ns(), Ordering::Relaxed);
        let signalled = self.reach.devices.take_signal();
        self.reach.devices.set_signal(signalled);
        let chips = self.platform().chips.clone();
        Ok(SoftState {
            cpu: CpuState::of(&self.cpu),
            system: self.cpu.sys.clone(),
            fpu: self.cpu.fpu.clone(),
            chips,
            clock: self.cpu.clock,
            idle: IdleState { signalled, until_ns: self.idle_until_ns },
            outbox: self.outbox.waiting(),
        })
    }

    /// Shows the guest, which stands still, what its disks have done; whether that is all that it has asked for.
    pub(crate) fn land_disks(&mut self) -> bool {
        self.reach.devices.take_finished(&self.reach.inbox);
        while let Some((disk, head, well)) = self.reach.devices.next_finished() {
            if self.input(&LogInput::Disk { disk, head, well }) != Applied::Done {
                break;
            }
        }
        self.reach.devices.are_disks_at_rest()
    }

    /// Takes over a state: on a fresh processor, which has nothing cached.
    pub(crate) fn load(&mut self, state: &SoftState) -> Result<(), StateError> {
        state.validate()?;
        let SoftState { cpu, system, fpu, chips, clock, idle, outbox } = state;
        self.go_live();
        self.reach.lines.clear();
        self.reach.inbox.clear();
        self.pages.clear();
        self.reach.ram.take_journal(&mut self.pages);
        let platform = Platform { chips: chips.clone(), reach: self.reach.clone() };
        self.cpu.reset(&self.reach.ram, Box::new(platform));
        (self.cpu.sys, self.cpu.fpu, self.cpu.clock) = (system.clone(), fpu.clone(), *clock);
        cpu.put(&mut self.cpu);
        self.idle_until_ns = idle.until_ns;
        self.reach.devices.set_signal(idle.signalled);
        self.outbox.set_waiting(outbox);
        self.reach.now_ns.store(self.virtual_ns(), Ordering::Relaxed);
        self.host_time = HostTime::start(self.virtual_ns());
        (self.stuck, self.ended) = (None, false);
        self.publish();
        Ok(())
    }

    /// A replay presses it where the log says so.
    pub(crate) fn press_power_button(&mut self) {
        if self.stuck.is_none() && !matches!(self.mode, Mode::Replaying(_)) {
            self.input(&LogInput::Control(ControlAction::PressPowerButton));
        }
    }

    /// A replay asks for it where the log says so.
    pub(crate) fn announce(&mut self) {
        if self.stuck.is_none() && !matches!(self.mode, Mode::Replaying(_)) {
            self.input(&LogInput::Control(ControlAction::Announce));
        }
    }

    /// A replay has it where the log says so.
    pub(crate) fn set_link(&mut self, card: u8, up: bool) {
        let changes = self.reach.devices.has_link(card).is_some_and(|is_up| is_up != up);
        if changes && self.stuck.is_none() && !matches!(self.mode, Mode::Replaying(_)) {
            self.input(&LogInput::Link { card, up });
        }
    }

    pub(crate) fn start_dirty_log(&mut self) {
        self.take_journal();
        self.reach.ram.take_vmm_dirty(|_| ());
        self.cpu.track_dirty(Tracker::Harvest, true);
        self.harvesting = true;
    }

    pub(crate) fn stop_dirty_log(&mut self) {
        self.cpu.track_dirty(Tracker::Harvest, false);
        self.harvesting = false;
    }

    /// The pages written since the last time, in order; none when nothing is logged.
    pub(crate) fn harvest(&mut self) -> Option<Vec<PageIndex>> {
        if !self.harvesting {
            return None;
        }
        self.take_journal();
        let mut pages = Vec::new();
        self.cpu.take_dirty(Tracker::Harvest, &mut pages);
        self.reach.ram.take_vmm_dirty(|page| pages.push(page));
        pages.sort_unstable();
        pages.dedup();
        Some(pages)
    }

    pub(crate) fn start_recording(&mut self) -> Result<(), MachineError> {
        let refuse = |why| Err(MachineError::Mode { what: "recording", why });
        match &self.mode {
            Mode::Recording(_) => return refuse("it is on already"),
            Mode::Replaying(_) => return refuse("the machine replays a log"),
            Mode::Live if self.running => return refuse("the machine runs: pause it"),
            Mode::Live => {}
        }
        self.take_journal();
        self.cpu.track_dirty(Tracker::Digest, true);
        self.tape.record();
        // A checkpoint that was captured in this pause has no cached translations either way.
        self.cpu.flush_tlb_all();
        self.mode = Mode::Recording(Recorder::new(self.cpu.count));
        Ok(())
    }

    /// Ends the batch under way; `at_cut` is called at its end.
    pub(crate) fn cut(&mut self, out: &mut Vec<u8>, at_cut: impl FnOnce()) -> Result<LogCut, MachineError> {
        self.outbox.flush();
        let Mode::Recording(recorder) = &mut self.mode else {
            return Err(MachineError::Mode { what: "cutting the log", why: "nothing is recorded" });
        };
        let cut = recorder.cut(self.cpu.count, out)?;
        at_cut();
        Ok(cut)
    }

    /// From the count that it answers.
    pub(crate) fn start_replaying(&mut self) -> Result<u64, MachineError> {
        let refuse = |why| Err(MachineError::Mode { what: "replaying", why });
        match &self.mode {
            Mode::Replaying(_) => return refuse("it is on already"),
            Mode::Recording(_) => return refuse("the machine is recorded"),
            Mode::Live if self.running => return refuse("the machine runs: pause it"),
            Mode::Live => {}
        }
        if let Some(stuck) = &self.stuck {
            return Err(stuck.error());
        }
        self.take_journal();
        self.cpu.track_dirty(Tracker::Digest, true);
        self.cpu.flush_tlb_all();
        self.tape.replay();
        self.outbox.mute.store(true, Ordering::Relaxed);
        self.outbox.set_waiting(&[]);
        self.console_mute.store(true, Ordering::Relaxed);
        self.mode = Mode::Replaying(Replayer::new(self.cpu.count));
        self.publish();
        Ok(self.cpu.count)
    }

    pub(crate) fn show_replayed_console(&mut self, shown: bool) {
        if let Mode::Replaying(_) = self.mode {
            self.console_mute.store(!shown, Ordering::Relaxed);
        }
    }

    /// More of the log, which continues what was fed before.
    pub(crate) fn feed(&mut self, batches: Vec<Batch>) {
        if let Mode::Replaying(replayer) = &mut self.mode {
            replayer.feed(batches, |count, bytes| self.tape.feed(count, bytes));
            self.publish();
        }
    }

    /// Ends a replay that has come to its log's end.
    pub(crate) fn end_replay(&mut self) -> Result<(), MachineError> {
        let refuse = |why| Err(MachineError::Mode { what: "going live", why });
        if let Some(stuck) = &self.stuck {
            return Err(stuck.error());
        }
        let Mode::Replaying(replayer) = &self.mode else { return refuse("the machine does not replay") };
        if !replayer.is_done(self.cpu.count) {
            return refuse("there is log that was not executed yet");
        }
        if self.running {
            return refuse("the machine runs: pause it");
        }
        self.go_live();
        self.host_time = HostTime::start(self.virtual_ns());
        Ok(())
    }

    pub(crate) fn stop_recording(&mut self) {
        if let Mode::Recording(_) = self.mode {
            self.go_live();
        }
    }

    /// Inputs come from outside, output goes there, and nothing is recorded.
    fn go_live(&mut self) {
        self.cpu.track_dirty(Tracker::Digest, false);
        self.tape.live();
        self.outbox.mute.store(false, Ordering::Relaxed);
        self.console_mute.store(false, Ordering::Relaxed);
        self.mode = Mode::Live;
        self.publish();
    }
}
