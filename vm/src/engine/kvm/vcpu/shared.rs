//! What a vCPU's thread shares with those who command it: orders, answers, and how they wait for each other.

use super::super::error::KvmError;
use super::super::run_page::RunPage;
use crate::engine::IdleWork;
use crate::error::{MachineError, MachineEvent};
use crate::state::{StateError, VcpuState};
use parking_lot::{Condvar, Mutex};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a thread looks for the other before it sleeps: longer than a vCPU takes out of the guest, and than a short
/// pause takes.
const LOOK_FOR: Duration = Duration::from_micros(200);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    Starting,
    Parked,
    Running,
    /// Out of the guest, as all others are; its state is being collected.
    Stopped,
    Ended,
}

pub(super) enum Order {
    Run,
    /// The host's counter, scaled to this frequency in kHz.
    ReadCounter(u32),
    /// With the shift of the counters' offsets.
    Load(Box<VcpuState>, Option<u64>),
    /// Something that others do, too.
    Help(IdleWork),
    Quit,
}

pub(super) struct Control {
    pub(super) phase: Phase,
    pub(super) order: Option<Order>,
    /// How the thread's start went, while it is `Ended`.
    pub(super) start: Option<KvmError>,
    /// The answer to `ReadCounter`.
    pub(super) counter: Option<Result<Option<u64>, StateError>>,
    /// The answer to `Load`.
    pub(super) loaded: Option<Result<(), StateError>>,
    /// As of the last time it was parked.
    pub(super) state: Option<VcpuState>,
    /// Why its state is not one to go on from.
    pub(super) trouble: Option<Trouble>,
}

/// Why a vCPU cannot go on, whoever's doing it is.
#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    Crashed(String),
    Failed(String),
}

impl Trouble {
    pub(crate) fn error(self, vcpu: usize) -> MachineError {
        match self {
            Self::Crashed(why) => MachineError::Crashed { vcpu, why },
            Self::Failed(why) => MachineError::Failed { vcpu, why },
        }
    }

    pub(super) fn event(self, vcpu: usize) -> MachineEvent {
        match self {
            Self::Crashed(why) => MachineEvent::Crashed { vcpu, why },
            Self::Failed(why) => MachineEvent::Failed { vcpu, why },
        }
    }
}

/// What the thread shares with those who command it.
pub(super) struct Shared {
    pub(super) control: Mutex<Control>,
    pub(super) changed: Condvar,
    /// Grows with every change, for those who look.
    pub(super) changes: AtomicU32,
    /// Whether they do.
    pub(super) looks: AtomicBool,
    pub(super) stop: AtomicBool,
    pub(super) page: OnceLock<RunPage>,
}

impl Shared {
    pub(super) fn set_phase(&self, phase: Phase) {
        self.control.lock().phase = phase;
        self.tell();
    }

    /// Something has changed.
    pub(super) fn tell(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Until when one who waits from now on looks.
    fn look_until(&self) -> Instant {
        let now = Instant::now();
        if self.looks.load(Ordering::Relaxed) { now + LOOK_FOR } else { now }
    }

    /// Waits until there is something.
    pub(super) fn wait_for<R>(&self, mut something: impl FnMut(&mut Control) -> Option<R>) -> R {
        let until = self.look_until();
        loop {
            let seen = self.changes.load(Ordering::SeqCst);
            let mut control = self.control.lock();
            if let Some(found) = something(&mut control) {
                return found;
            }
            if Instant::now() >= until {
                self.changed.wait(&mut control);
                continue;
            }
            drop(control);
            self.look(seen, until);
        }
    }

    /// Looks for the end of a phase that is about to end.
    pub(super) fn look_while(&self, phase: Phase) {
        let until = self.look_until();
        loop {
            let seen = self.changes.load(Ordering::SeqCst);
            if Instant::now() >= until || self.control.lock().phase != phase {
                return;
            }
            self.look(seen, until);
        }
    }

    /// Until something has changed or the time is over.
    fn look(&self, seen: u32, until: Instant) {
        while self.changes.load(Ordering::SeqCst) == seen && Instant::now() < until {
            std::hint::spin_loop();
        }
    }
}
