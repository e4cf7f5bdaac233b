//! Rehearsals: a scratch machine over a private copy of a backup's memory takes the sealed state, and shows that the VM
//! could go on from it. Each has a thread of low priority, so that receiving never waits for it. The first ack of a
//! pairing does wait: its machine is made while the full copy is still coming in. In replay mode the machine that
//! executes the log is the proof itself (see [`Follower`](super::follower::Follower)).

use super::news::KeeperNews;
use crate::host::{ScratchWiring, WiringError};
use crate::outlet::Outlet;
use ft_checkpoint::wire::message::Held;
use ft_ram::{GuestRam, MemoryError};
use ft_vm::machine::{Machine, MachineError};
use ft_vm::spec::MachineSpec;
use ft_vm::state::StateError;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Of the thread that rehearses, but for the first time: the first ack waits for that.
const NICE: libc::c_int = 10;

/// Rehearsals under way at most: one that is stuck (in an image on storage that hangs) is not joined by ever more.
const UNDER_WAY_MAX: usize = 4;

/// Why the VM could not go on from what is sealed here.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    /// The memory cannot be mapped once more.
    #[error("guest memory: {0}")]
    Memory(#[from] MemoryError),
    /// The host side of the devices is missing.
    #[error(transparent)]
    Wiring(#[from] WiringError),
    /// There is no such machine here.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// It does not take the state, or is not in it then.
    #[error(transparent)]
    State(#[from] StateError),
    /// Those before came to no end.
    #[error("{0} rehearsals before this one have come to no end")]
    Stuck(usize),
    /// No thread for it.
    #[error("cannot start a thread to rehearse: {0}")]
    Thread(std::io::Error),
}

/// What is tried.
pub struct Sealed {
    /// The backup's memory.
    pub ram: GuestRam,
    /// Pairing and epoch.
    pub held: Held,
    /// The machine's state as of that epoch.
    pub state: Vec<u8>,
}

/// How hard a rehearsal presses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Somebody waits for it.
    First,
    /// Nobody does.
    Again,
}

/// Makes scratch machines.
pub struct Rehearser {
    /// The machine.
    pub spec: MachineSpec,
    /// Makes the host side of devices that reach nothing.
    pub wiring: ScratchWiring,
    /// Where the outcome goes.
    pub news: Outlet<KeeperNews>,
    /// A machine for the first rehearsal in the present memory.
    pub ready: Mutex<Ready>,
    /// Rehearsals that have not come to an end.
    pub under_way: AtomicUsize,
}

/// A scratch machine that was made ahead. It keeps the memory that it is over.
#[derive(Default)]
pub struct Ready {
    /// Counts what was wanted, so that a machine that comes too late is not taken for one that still is.
    wanted: u64,
    machine: Option<Machine>,
}

impl Rehearser {
    /// For machines of this kind.
    #[must_use]
    pub fn new(spec: MachineSpec, wiring: ScratchWiring, news: Outlet<KeeperNews>) -> Self {
        Self { spec, wiring, news, ready: Mutex::default(), under_way: 0.into() }
    }

    /// Makes a machine over this memory ahead of its first rehearsal, on a thread of its own.
    pub fn make_ready(self: &Arc<Self>, ram: &GuestRam) {
        let wanted = self.forget();
        let (rehearser, ram) = (Arc::clone(self), ram.clone());
        let spawned = std::thread::Builder::new().name("ftd-rehearse".into()).spawn(move || {
            // Why there is none is told when it is missed.
            let Ok(machine) = rehearser.make(&ram) else { return };
            let mut ready = rehearser.ready.lock();
            if ready.wanted == wanted {
                ready.machine = Some(machine);
            }
        });
        if let Err(e) = spawned {
            tracing::debug!("cannot start a thread to make a scratch machine: {e}");
        }
    }

    /// The memory is given up, or its VM goes on: nothing here keeps it. The number of what is wanted next.
    pub fn forget(&self) -> u64 {
        let (wanted, _unused) = self.take_ready();
        wanted
    }

    /// Takes what was made ahead, if it is there. What comes from now on has come too late, and goes.
    fn take_ready(&self) -> (u64, Option<Machine>) {
        let mut ready = self.ready.lock();
        ready.wanted += 1;
        (ready.wanted, ready.machine.take())
    }

    /// Tries a sealed state. `Rehearsed` or `RehearsalFailed` follows.
    pub fn rehearse(self: &Arc<Self>, sealed: Sealed, urgency: Urgency) {
        let pairing = sealed.held.pairing;
        let stuck = self.under_way.fetch_add(1, Ordering::Relaxed);
        if stuck >= UNDER_WAY_MAX {
            return self.tell(pairing, Err(RehearsalError::Stuck(stuck)));
        }
        let (_, ready) = self.take_ready();
        let rehearser = Arc::clone(self);
        let spawned = std::thread::Builder::new().name("ftd-rehearse".into()).spawn(move || {
            if urgency == Urgency::Again {
                // SAFETY: changes a number of the calling thread's in the kernel; without it, it presses harder.
                let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
            }
            let began = Instant::now();
            let outcome = rehearser.try_out(&sealed, ready);
            let (epoch, took) = (sealed.held.epoch, began.elapsed());
            match (&outcome, urgency) {
                (Ok(()), Urgency::First) => tracing::info!(epoch, ?took, "tried: the VM could go on here"),
                (Ok(()), Urgency::Again) => {
                    tracing::debug!(epoch, ?took, "tried again: the VM could go on here")
                }
                (Err(_), _) => {}
            }
            rehearser.tell(pairing, outcome);
        });
        if let Err(e) = spawned {
            self.tell(pairing, Err(RehearsalError::Thread(e)));
        }
    }

    fn try_out(&self, sealed: &Sealed, ready: Option<Machine>) -> Result<(), RehearsalError> {
        let mut machine = ready.map_or_else(|| self.make(&sealed.ram), Ok)?;
        Ok(machine.rehearse(&sealed.state)?)
    }

    fn make(&self, ram: &GuestRam) -> Result<Machine, RehearsalError> {
        let ram = ram.private_copy()?;
        Ok(Machine::new(&self.spec, &ram, (self.wiring)()?)?)
    }

    fn tell(&self, pairing: u64, outcome: Result<(), RehearsalError>) {
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        let news = match outcome {
            Ok(()) => KeeperNews::Rehearsed { pairing },
            Err(why) => KeeperNews::RehearsalFailed { pairing, why },
        };
        // Nobody listens any more: the daemon is ending.
        let _ = self.news.tell(news);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ft_vm::devices::{ConsoleSink, Wiring};

    use ft_vm::spec::{BusKind, CpuModel, EngineKind};
    use std::sync::mpsc::channel;
    use std::time::Duration;

    struct Silent;

    impl ConsoleSink for Silent {
        fn write(&mut self, _: &[u8]) {}
    }

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn a_machine_that_is_ready_only_after_the_first_rehearsal_is_not_kept() {
        let (engine, bus, cpu) = (EngineKind::Soft, BusKind::Mmio, CpuModel::Host);
        let (nets, disks, ram_bytes) = (Vec::new(), Vec::new(), 16 << 20);
        let spec = MachineSpec { engine, vcpus: 1, ram_bytes, nets, disks, rng: false, bus, cpu };
        // Each wiring that is asked for waits until this test gives it the word.
        let (asked, asks) = channel();
        let wiring = Box::new(move || {
            let (word, waits) = channel();
            asked.send(word).unwrap();
            waits.recv().unwrap();
            Ok(Wiring { frames: None, console: Box::new(Silent), disks: Vec::new() })
        });
        let (queue, news) = channel();
        let rehearser = Arc::new(Rehearser::new(spec, wiring, Outlet::into_queue(&queue, |news| news)));
        let ram = GuestRam::new(ram_bytes).unwrap();

        rehearser.make_ready(&ram);
        let ahead = asks.recv_timeout(PATIENCE).unwrap();
        let held = Held { pairing: 1, epoch: 0 };
        rehearser.rehearse(Sealed { ram: ram.clone(), held, state: Vec::new() }, Urgency::First);
        asks.recv_timeout(PATIENCE).unwrap().send(()).unwrap();
        let outcome = news.recv_timeout(PATIENCE).unwrap();
        assert!(matches!(outcome, KeeperNews::RehearsalFailed { pairing: 1, .. }), "an empty state is none");

        ahead.send(()).unwrap();
        let began = Instant::now();
        while Arc::strong_count(&rehearser) > 1 {
            assert!(began.elapsed() < PATIENCE, "its thread comes to no end");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(rehearser.ready.lock().machine.is_none(), "nobody asks for it any more");
    }
}
