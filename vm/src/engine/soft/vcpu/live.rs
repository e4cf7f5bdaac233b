//! A guest that runs live, recorded or not: a millisecond or so at a time, with virtual time kept near the host's.

use super::input::Applied;
use super::{Mode, SLICE_COUNTS, Worker};
use crate::replay::log::LogInput;
use ft_cpu::CpuExit;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Virtual time that a busy guest may be ahead of the host's.
pub(super) const AHEAD_NS: u64 = 100_000_000;
/// How long a run of the guest should take, between two looks at the host's clock.
const SLICE: Duration = Duration::from_millis(1);
/// A timer that stays due though it fires to no effect is looked at this often.
const STALE_TIMER_NS: u64 = 1_000_000;
/// A guest that is woken later than this stood still.
const LATE_NS: u64 = 1_000_000_000;
/// The most of its time that a machine can be made to stand still.
const THROTTLE_MAX: u16 = 950;

impl Worker {
    pub(super) fn live(&mut self) {
        let full = matches!(&self.mode, Mode::Recording(recorder) if recorder.is_full());
        if full || !self.outbox.flush() {
            self.host_time.stand_still();
            return self.reach.bell.wait(None);
        }
        self.take_inputs();
        if self.stuck.is_some() {
            return;
        }
        if let Some(until) = self.throttled_until {
            if until > Instant::now() {
                self.host_time.stand_still();
                return self.reach.bell.wait(Some(until));
            }
            self.throttled_until = None;
        }
        if self.reach.devices.are_disks_crowded() {
            self.host_time.stand_still();
            return self.reach.bell.wait(None);
        }
        let missed_ns = self.host_time.go_on(self.virtual_ns());
        self.make_up(missed_ns);
        if self.stuck.is_some() {
            return;
        }
        if let Some(until_ns) = self.idle_until_ns {
            return self.wait_until(Some(until_ns));
        }
        let (begun, count) = (Instant::now(), self.cpu.count);
        let mut limit = count + self.slice;
        if let Mode::Recording(recorder) = &self.mode {
            limit = limit.min(recorder.digest_due());
        }
        let exit = self.run(limit);
        let (took, executed) = (begun.elapsed(), self.cpu.count - count);
        self.host_time.note_work(took, executed);
        self.note_random();
        let waits = match exit {
            CpuExit::Limit | CpuExit::Attention => false,
            CpuExit::Halted => true,
            CpuExit::Event(event) => {
                self.event(event);
                false
            }
            CpuExit::TripleFault => return self.crash(),
        };
        if let Mode::Recording(recorder) = &self.mode
            && recorder.wants_digest(self.cpu.count)
        {
            let digest = self.digest();
            if let Mode::Recording(recorder) = &mut self.mode {
                recorder.note_digest(self.cpu.count, digest);
            }
        }
        self.follow_host();
        if waits {
            // On its way to rest it may have made room for what waits, and it notifies nobody of that.
            self.take_inputs();
            if !self.waits() || self.stuck.is_some() {
                return;
            }
            let now_ns = self.virtual_ns();
            let timer = self.cpu.bus.next_timer_ns();
            return self.wait_until(timer.map(|ns| if ns > now_ns { ns } else { now_ns + STALE_TIMER_NS }));
        }
        self.after_work(took, executed);
    }

    /// Sets the pace anew where virtual time does not go as the host's.
    fn follow_host(&mut self) {
        if let Some(ns_per_256) = self.host_time.follow(self.cpu.clock.pace(), self.virtual_ns()) {
            self.input(&LogInput::Pace { ns_per_256 });
        }
    }

    /// After the guest was busy for so long, has executed so much, and has more to do.
    fn after_work(&mut self, elapsed: Duration, executed: u64) {
        if executed >= *SLICE_COUNTS.start() {
            let wanted = SLICE.as_nanos() * u128::from(executed) / elapsed.as_nanos().max(1);
            let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
            self.slice = wanted.clamp(*SLICE_COUNTS.start(), *SLICE_COUNTS.end());
        }
        let throttle = self.shared.throttle.load(Ordering::Relaxed).min(THROTTLE_MAX);
        if throttle != 0 {
            let pause = elapsed * u32::from(throttle) / u32::from(1000 - throttle);
            self.throttled_until = Instant::now().checked_add(pause);
        }
        let (due_ns, now_ns) = (self.host_time.due_ns(), self.virtual_ns());
        if now_ns > due_ns + AHEAD_NS {
            self.host_time.stand_still();
            self.reach.bell.wait(self.host_time.instant_of(now_ns));
        }
    }

    /// The guest does nothing until `due_ns`, or until an input.
    fn wait_until(&mut self, due_ns: Option<u64>) {
        let deadline = due_ns.and_then(|ns| self.host_time.instant_of(ns));
        self.reach.bell.wait(deadline);
        if let Some(due_ns) = due_ns
            && deadline.is_some_and(|deadline| deadline <= Instant::now())
        {
            self.advance_to(due_ns);
            let late_ns = self.host_time.due_ns().saturating_sub(self.virtual_ns());
            // Later than any host is: the process was stopped.
            if late_ns > LATE_NS {
                self.make_up(late_ns);
            } else {
                self.advance_to(self.host_time.due_ns());
            }
        }
    }

    /// Moves virtual time forward for a guest that stood still.
    fn make_up(&mut self, ns: u64) {
        if ns != 0 {
            self.input(&LogInput::StoodStill { ns });
        }
    }

    /// Whether the guest does nothing before an input or a timer.
    pub(super) fn waits(&self) -> bool {
        self.cpu.halted || self.idle_until_ns.is_some()
    }

    /// Moves virtual time forward.
    pub(super) fn advance_to(&mut self, ns: u64) {
        let ns = ns.saturating_sub(self.virtual_ns());
        if ns != 0 {
            self.input(&LogInput::Advance { ns });
        }
    }

    /// Applies what waits in the inbox, as far as the guest has room for it.
    fn take_inputs(&mut self) {
        if !self.reach.inbox.is_waiting() {
            return;
        }
        if self.waits() {
            // It comes at the time at which it comes, to a guest that has let time go by.
            self.advance_to(self.host_time.due_ns());
        }
        self.land_disks();
        while let Some((card, packet)) = self.reach.inbox.take_frame() {
            let input = LogInput::Frame { card, packet };
            if self.input(&input) == Applied::NoRoom
                && let LogInput::Frame { card, packet } = input
            {
                self.reach.inbox.put_back(card, packet);
                break;
            }
        }
        let room = self.reach.devices.console_room();
        if room != 0 {
            let bytes = self.reach.inbox.take_console(room);
            if !bytes.is_empty() {
                self.input(&LogInput::Console(bytes));
            }
        }
    }

    fn note_random(&mut self) {
        if let Mode::Recording(recorder) = &mut self.mode {
            for bytes in self.tape.take_recorded() {
                recorder.note(self.cpu.count, &LogInput::Random(bytes));
            }
        }
    }
}
