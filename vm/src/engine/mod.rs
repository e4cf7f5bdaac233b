//! The engines that execute the guest: KVM, or a deterministic processor in software. The machine commands either by
//! [`Engine`].

pub(crate) mod kvm;
pub(crate) mod soft;
mod worktime;

use crate::boot::entry::Entry;
use crate::error::MachineError;
use crate::spec::EngineKind;
use crate::state::{EngineState, StateError};
use ft_ram::PageIndex;
use std::sync::Arc;

pub use worktime::Stint;

/// What whoever has nothing else to do can take part in, if there is still something to do.
pub type IdleWork = Arc<dyn Fn() + Send + Sync>;

/// The processors of a machine, with what surrounds them up to the devices. After its creation it is stopped.
pub(crate) trait Engine: Send {
    /// Lets the guest run.
    fn resume(&mut self) -> Result<(), MachineError>;

    /// Stops the guest: when it returns, each vCPU has completed what was pending and none touches memory or a device.
    fn stop(&mut self) -> Result<(), MachineError>;

    /// Goes up to the guest's next instruction and no further: completes what is pending and reads the state out. The
    /// guest is stopped, and stays so.
    fn enter_once(&mut self) -> Result<(), MachineError>;

    /// Has the vCPUs' threads, which have nothing to do while the guest is stopped, do this work as well. Returns at
    /// once; a thread that comes to it late may do so at any time until the guest is let run.
    fn offer(&mut self, work: &IdleWork);

    /// How the guest ran before it was stopped last.
    fn stint(&self) -> Stint;

    /// The state. The guest is stopped.
    fn capture(&mut self) -> Result<EngineState, MachineError>;

    /// Takes over a state, which is untrusted. The guest is stopped; the devices take theirs over afterwards.
    fn apply(&mut self, state: &EngineState) -> Result<(), StateError>;

    /// The power-on state with a guest's entry set.
    fn entered(&self, entry: &Entry) -> Result<EngineState, StateError>;

    /// Starts afresh to log which pages are written.
    fn start_dirty_log(&mut self) -> Result<(), MachineError>;

    /// Stops logging and forgets what was logged.
    fn stop_dirty_log(&mut self) -> Result<(), MachineError>;

    /// Appends the pages written since the last harvest, by guest or devices, in order, each once. On an error nothing
    /// is appended and nothing is forgotten.
    fn harvest(&mut self, dirty: &mut Vec<PageIndex>) -> Result<(), MachineError>;
}

/// What two hosts must have in common, beside the machine's specification, for one to go on with what the other
/// executed: for the deterministic engine a hash of all that decides what a guest sees of it, so that another build is
/// refused; for KVM zero, since there the processors are compared ([`CpuProfile`](crate::machine::CpuProfile)).
pub fn engine_fingerprint(kind: EngineKind) -> u64 {
    match kind {
        EngineKind::Kvm => 0,
        EngineKind::Soft => SOFT_FINGERPRINT,
    }
}

const SOFT_FINGERPRINT: u64 = match u64::from_str_radix(env!("FTD_SOFT_FINGERPRINT"), 16) {
    Ok(fingerprint) => fingerprint,
    Err(_) => panic!("the build script writes sixteen hexadecimal digits"),
};
