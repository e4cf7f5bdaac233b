//! Inputs, as they take effect between two instructions, and the guest's requests to its surroundings.

use super::{Mode, Worker};
use crate::devices::{Put, Shown};
use crate::engine::soft::state::TIME_MAX_NS;
use crate::error::MachineEvent;
use crate::replay::log::{ControlAction, LogInput};
use ft_cpu::BusEvent;
use ft_cpu::CpuExit;
use ft_cpu::PACES;

/// The longest that the guest idles for one write to the platform device's register.
const IDLE_MAX_NS: u64 = 100_000_000;

/// What became of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Applied {
    /// The guest has it.
    Done,
    /// The guest has a part of it, which no recorder lets happen.
    Partly,
    /// It has no room for it now.
    NoRoom,
    /// It cannot tell that it was there.
    Nothing,
    /// The host has not done yet what the guest is to see done.
    NotYet,
}

impl Worker {
    /// Applies an input and logs it, unless the guest cannot tell that it was there.
    pub(super) fn input(&mut self, input: &LogInput) -> Applied {
        let applied = self.apply(input);
        if applied == Applied::Done {
            if let Mode::Recording(recorder) = &mut self.mode {
                recorder.note(self.cpu.count, input);
            }
            self.settle();
        }
        applied
    }

    pub(super) fn apply(&mut self, input: &LogInput) -> Applied {
        match input {
            LogInput::Frame { card, packet } => match self.reach.devices.receive(*card, packet) {
                Put::Done => {}
                Put::NoBuffers => return Applied::NoRoom,
                Put::Lost => return Applied::Nothing,
            },
            LogInput::Console(bytes) => match self.reach.devices.type_in(bytes) {
                0 => return Applied::Nothing,
                taken if taken < bytes.len() => return Applied::Partly,
                _ => {}
            },
            LogInput::Advance { ns } | LogInput::StoodStill { ns } => {
                let now_ns = self.virtual_ns();
                if now_ns.checked_add(*ns).is_none_or(|ns| ns > TIME_MAX_NS) {
                    return Applied::Nothing;
                }
                self.cpu.clock.advance(*ns);
                if let LogInput::StoodStill { ns } = input {
                    self.reach.devices.postpone_watchdog(*ns);
                }
            }
            LogInput::TimeOfDay { seconds } => {
                let now_ns = self.virtual_ns();
                self.reach.devices.time_of_day_forwarded(*seconds);
                self.platform().chips.forward_time_of_day(now_ns, *seconds);
            }
            LogInput::Pace { ns_per_256 } => {
                if !PACES.contains(ns_per_256) {
                    return Applied::Nothing;
                }
                self.cpu.clock.set_pace(self.cpu.count, *ns_per_256);
            }
            LogInput::Disk { disk, head, well } => {
                match self.reach.devices.show_request(usize::from(*disk), *head, *well) {
                    Shown::Done => {}
                    Shown::NotYet => return Applied::NotYet,
                    Shown::Never => return Applied::Nothing,
                }
            }
            LogInput::Control(ControlAction::FlushTranslations) => self.cpu.flush_tlb_all(),
            LogInput::Control(ControlAction::PressPowerButton) => self.reach.devices.press_power_button(),
            LogInput::Link { card, up } => self.reach.devices.set_link(*card, *up),
            LogInput::Control(ControlAction::Announce) => self.reach.devices.announce(),
            // Read by a device, or compared.
            LogInput::Random(_) | LogInput::Digest(_) => return Applied::Nothing,
        }
        Applied::Done
    }

    /// After an input: what devices did reaches chips and processor, and what is due at this count is done.
    pub(super) fn settle(&mut self) {
        self.platform().settle();
        self.take_journal();
        self.settle_idle();
        match self.run(self.cpu.count) {
            CpuExit::TripleFault => self.crash(),
            CpuExit::Event(event) => self.event(event),
            CpuExit::Limit | CpuExit::Attention | CpuExit::Halted => {}
        }
    }

    pub(super) fn event(&mut self, event: BusEvent) {
        let said = match event {
            BusEvent::Idle(ns) => {
                if !self.reach.devices.take_signal() {
                    self.idle_until_ns = Some(self.virtual_ns() + ns.min(IDLE_MAX_NS));
                    self.settle_idle();
                }
                return;
            }
            BusEvent::Panicked { dumps } => {
                let _ = self.events.send(MachineEvent::Panicked { dumps });
                return;
            }
            BusEvent::WatchdogFired => {
                let _ = self.events.send(MachineEvent::WatchdogFired);
                return;
            }
            BusEvent::PoweredOff => MachineEvent::PoweredOff,
            BusEvent::Reset => MachineEvent::Reset,
        };
        // A replay goes where the log goes: the recorder may have been let go on.
        self.ended = !matches!(self.mode, Mode::Replaying(_));
        let _ = self.events.send(said);
    }

    /// Whether the guest idles no more: a device signals, or the time is over.
    fn settle_idle(&mut self) {
        if let Some(until_ns) = self.idle_until_ns
            && (self.reach.devices.take_signal() || self.virtual_ns() >= until_ns)
        {
            self.idle_until_ns = None;
        }
    }
}
