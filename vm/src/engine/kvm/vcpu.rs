//! One vCPU, one thread. The thread owns the vCPU's descriptor and is the only one that issues its ioctls.
//!
//! ```text
//!            order Run            KVM_RUN returned EINTR, and all others' too             state collected
//!   Parked ─────────────> Running ─────────────────────────────────────────> Stopped ───────────────────> Parked
//!     │  order Load: takes over a state, stays parked
//!     └─ order Quit: the thread ends
//! ```
//!
//! A vCPU leaves the guest for good only by an EINTR of KVM_RUN with `immediate_exit` set: by then KVM has completed
//! the port or memory-mapped access that it had handed out, so that the registers are those after the instruction. The
//! thread that stops a vCPU sets `immediate_exit` and then sends the signal: a vCPU that is about to enter the guest
//! sees the flag, and the signal throws out one that is in the guest.
//!
//! No state is collected before the last vCPU has stopped: an interrupt that a running vCPU sends to a vCPU whose state
//! is collected already would be lost. From then on memory is as it will be captured, and whoever stopped the vCPUs
//! goes on with that while their threads collect.
//!
//! In the pause of a guest that works, who waits for the other looks for it for a moment before it sleeps: both are on
//! their processors, and that spares the time to be woken. A vCPU that waits is woken itself, maybe on the very
//! processor that would look for it.

mod shared;

use self::shared::{Control, Order, Phase, Shared, Trouble};
use super::cpuid;
use super::error::KvmError;
use super::exit::{self, Doing};
use super::host::Host;
use super::run_page::RunPage;
use super::state::{Collector, apply, clear_host_msrs, host_counter};
use crate::devices::{DeviceEvent, Devices};
use crate::engine::IdleWork;
use crate::error::{MachineError, MachineEvent};
use crate::state::{StateError, VcpuState};
use ft_confine::{ThreadKind, kick_signal};
use kvm_bindings::{CpuId, kvm_cpuid_entry2, kvm_regs, kvm_sregs};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Barrier, Once, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vmm_sys_util::signal::{Killable, register_signal_handler, unblock_signal};

/// How long one kick may take before the next one.
const KICK_EVERY: Duration = Duration::from_millis(10);
/// How long a vCPU may take to stop: its thread can be in a device, and the host can be busy.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Where a vCPU is after INIT.
const INIT_CS: u16 = 0xf000;
const INIT_RIP: u64 = 0xfff0;

/// How long a vCPU is in the guest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stay {
    UntilStopped,
    /// It comes back ahead of the next instruction.
    ForNothing,
}

/// Where a vCPU thread reports and what it runs against.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub vm: Arc<VmFd>,
    pub host: Arc<Host>,
    /// What each of them is told, but for its place.
    pub processor: Arc<[kvm_cpuid_entry2]>,
    /// Whether that is a processor with a name.
    pub is_named: bool,
    pub devices: Arc<Devices>,
    pub events: Sender<MachineEvent>,
    /// As many parties as vCPUs.
    pub stopped: Arc<Barrier>,
}

/// A vCPU, seen from outside.
pub(crate) struct Vcpu {
    index: usize,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Vcpu {
    /// Starts the thread, which creates vCPU `index` of `count`. [`Self::started`] waits for it.
    pub(crate) fn start(index: usize, count: usize, around: Surroundings) -> Result<Self, MachineError> {
        static HANDLER: Once = Once::new();
        extern "C" fn kicked(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        let mut installed = Ok(());
        HANDLER.call_once(|| installed = register_signal_handler(kick_signal(), kicked));
        installed.map_err(KvmError::of("sigaction"))?;

        let shared = Arc::new(Shared {
            control: Mutex::new(Control {
                phase: Phase::Starting,
                order: None,
                start: None,
                counter: None,
                loaded: None,
                state: None,
                trouble: None,
            }),
            changed: Condvar::new(),
            changes: AtomicU32::new(0),
            looks: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            page: OnceLock::new(),
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(move || thread_main(index, count, around, &theirs))
            .map_err(KvmError::io("starting a vCPU thread"))?;
        Ok(Self { index, shared, thread: Some(thread) })
    }

    /// Waits until the vCPU exists and is parked; its initial state.
    pub(crate) fn started(&self) -> Result<VcpuState, MachineError> {
        let mut control = self.wait(|control| control.phase != Phase::Starting);
        match (control.start.take(), control.state.clone()) {
            (None, Some(state)) => Ok(state),
            (Some(source), _) => Err(MachineError::Vcpu { vcpu: self.index, source }),
            (None, None) => Err(MachineError::Unresponsive { vcpu: self.index, waited: Duration::ZERO }),
        }
    }

    fn wait(&self, mut until: impl FnMut(&Control) -> bool) -> MutexGuard<'_, Control> {
        let mut control = self.shared.control.lock();
        while !until(&control) {
            self.shared.changed.wait(&mut control);
        }
        control
    }

    /// Lets it run. It is parked.
    pub(crate) fn run(&self) {
        self.go(Stay::UntilStopped);
    }

    /// Lets it go into KVM_RUN and out again, ahead of the guest's next instruction. It is parked.
    pub(crate) fn enter_once(&self) {
        self.go(Stay::ForNothing);
    }

    fn go(&self, stay: Stay) {
        let only_once = stay == Stay::ForNothing;
        let mut control = self.shared.control.lock();
        if control.phase == Phase::Parked {
            self.shared.stop.store(only_once, Ordering::SeqCst);
            if let Some(page) = self.shared.page.get() {
                page.set_immediate_exit(only_once);
            }
            control.phase = Phase::Running;
            control.order = Some(Order::Run);
            self.shared.tell();
        }
    }

    /// Whether what is waited for in the pause that comes is expected soon enough to be looked for.
    pub(crate) fn expect_soon(&self, soon: bool) {
        self.shared.looks.store(soon, Ordering::Relaxed);
    }

    /// Tells it to stop; returns at once.
    pub(crate) fn kick(&self) {
        {
            // Under the lock, so that a thread that waits for this misses neither the flag nor the notice.
            let _control = self.shared.control.lock();
            self.shared.stop.store(true, Ordering::SeqCst);
            self.shared.tell();
        }
        if let Some(page) = self.shared.page.get() {
            page.set_immediate_exit(true);
        }
        if let Some(thread) = &self.thread {
            // Fails only for a thread that has ended, which needs no kick.
            let _ = thread.kill(kick_signal());
        }
    }

    /// Offers work to its thread while it is parked, or about to be.
    pub(crate) fn offer(&self, work: IdleWork) {
        let mut control = self.shared.control.lock();
        if matches!(control.phase, Phase::Stopped | Phase::Parked) && control.order.is_none() {
            control.order = Some(Order::Help(work));
            self.shared.tell();
        }
    }

    /// Its thread.
    pub(crate) fn thread(&self) -> Option<&JoinHandle<()>> {
        self.thread.as_ref()
    }

    /// Waits until a vCPU that was kicked has stopped, and all others with it; kicks again, with `again` called each
    /// time.
    pub(crate) fn stopped(&self, mut again: impl FnMut()) -> Result<(), MachineError> {
        let begun = Instant::now();
        self.shared.look_while(Phase::Running);
        let mut control = self.shared.control.lock();
        while control.phase == Phase::Running {
            if !self.shared.changed.wait_for(&mut control, KICK_EVERY).timed_out() {
                continue;
            }
            if begun.elapsed() > STOP_WITHIN {
                return Err(self.unresponsive(begun));
            }
            MutexGuard::unlocked(&mut control, || {
                again();
                self.kick();
            });
        }
        match control.phase {
            Phase::Stopped | Phase::Parked => Ok(()),
            _ => Err(self.unresponsive(begun)),
        }
    }

    /// Waits until a vCPU that has stopped is parked. Its collected state is swapped with `state`.
    pub(crate) fn parked(&self, state: &mut VcpuState) -> Result<(), MachineError> {
        let begun = Instant::now();
        self.shared.look_while(Phase::Stopped);
        let mut control = self.shared.control.lock();
        while control.phase == Phase::Stopped {
            // Nothing is waited for without end: an ioctl can hang in the kernel.
            if self.shared.changed.wait_until(&mut control, begun + STOP_WITHIN).timed_out() {
                return Err(self.unresponsive(begun));
            }
        }
        let Control { phase: Phase::Parked, state: Some(collected), .. } = &mut *control else {
            return Err(self.unresponsive(begun));
        };
        std::mem::swap(collected, state);
        Ok(())
    }

    fn unresponsive(&self, since: Instant) -> MachineError {
        MachineError::Unresponsive { vcpu: self.index, waited: since.elapsed() }
    }

    /// Why the state that was collected last is not one to go on from, if it is not.
    pub(crate) fn trouble(&self) -> Option<Trouble> {
        self.shared.control.lock().trouble.clone()
    }

    /// The counter that a parked vCPU's own is apart from, scaled to this frequency; none where the kernel does not
    /// tell.
    pub(crate) fn host_counter(&self, tsc_khz: u32) -> Result<Option<u64>, StateError> {
        {
            let mut control = self.shared.control.lock();
            control.counter = None;
            control.order = Some(Order::ReadCounter(tsc_khz));
            self.shared.tell();
        }
        let mut control = self.wait(|control| control.counter.is_some() || control.phase == Phase::Ended);
        control.counter.take().unwrap_or(Err(StateError::Gone { vcpu: self.index }))
    }

    /// Has a parked vCPU take over a state, its counter's offset moved by `offset_shift`; returns at once.
    pub(crate) fn load(&self, state: VcpuState, offset_shift: Option<u64>) {
        let mut control = self.shared.control.lock();
        control.loaded = None;
        control.order = Some(Order::Load(Box::new(state), offset_shift));
        self.shared.tell();
    }

    /// Waits for [`Self::load`].
    pub(crate) fn loaded(&self) -> Result<(), StateError> {
        let mut control = self.wait(|control| control.loaded.is_some() || control.phase == Phase::Ended);
        control.loaded.take().unwrap_or(Err(StateError::Gone { vcpu: self.index }))
    }

    /// Tells the thread to end as soon as it is parked.
    fn quit(&self) {
        self.shared.control.lock().order = Some(Order::Quit);
        self.shared.tell();
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.quit();
        self.kick();
        if let Some(thread) = self.thread.take() {
            // The thread's panics are caught inside it.
            let _ = thread.join();
        }
    }
}

fn thread_main(index: usize, count: usize, around: Surroundings, shared: &Shared) {
    ft_confine::this_thread(ThreadKind::Vcpu);
    let mut runner = match Runner::new(index, count, around, shared) {
        Ok((runner, state)) => {
            shared.control.lock().state = Some(state);
            shared.set_phase(Phase::Parked);
            runner
        }
        Err(e) => {
            shared.control.lock().start = Some(e);
            return shared.set_phase(Phase::Ended);
        }
    };
    loop {
        match shared.wait_for(|control| control.order.take()) {
            Order::Run => runner.run_until_stopped(),
            Order::ReadCounter(tsc_khz) => runner.read_counter(tsc_khz),
            // What goes wrong in it is the business of whoever does the rest.
            Order::Help(work) => drop(catch_unwind(AssertUnwindSafe(|| work()))),
            Order::Load(state, offset_shift) => runner.load(*state, offset_shift),
            Order::Quit => return shared.set_phase(Phase::Ended),
        }
    }
}

/// Why the vCPU does not go back into the guest, though nobody asked.
enum Ended {
    /// The guest (or a device on its behalf) said so; the access it said so with is still to be completed.
    Event(MachineEvent),
    /// It cannot go on.
    Trouble(Trouble),
}

struct Runner<'a> {
    index: usize,
    fd: VcpuFd,
    around: Surroundings,
    shared: &'a Shared,
    page: &'a RunPage,
    collector: Collector,
}

impl<'a> Runner<'a> {
    fn new(
        index: usize,
        count: usize,
        around: Surroundings,
        shared: &'a Shared,
    ) -> Result<(Self, VcpuState), KvmError> {
        // A thread inherits its creator's signal mask; kicks must get through.
        unblock_signal(kick_signal()).map_err(|e| KvmError::Call {
            call: "pthread_sigmask",
            source: std::io::Error::other(format!("{e:?}")),
        })?;
        let fd = around.vm.create_vcpu(index as u64).map_err(KvmError::of("KVM_CREATE_VCPU"))?;
        let mapped = RunPage::map(&fd).map_err(KvmError::io("mmap of kvm_run"))?;
        let page = shared.page.get_or_init(|| mapped);
        let entries = cpuid::placed(&around.processor, index, count);
        let cpuid = CpuId::from_entries(&entries).map_err(|_| KvmError::TooMany("CPUID entries"))?;
        fd.set_cpuid2(&cpuid).map_err(KvmError::of("KVM_SET_CPUID2"))?;
        if around.is_named {
            clear_host_msrs(&fd);
        }
        let (collector, state) = Collector::new(&fd, &around.host, entries)?;
        Ok((Self { index, fd, around, shared, page, collector }, state))
    }

    fn read_counter(&mut self, tsc_khz: u32) {
        let mut control = self.shared.control.lock();
        control.counter = Some(match &control.state {
            Some(current) => host_counter(&self.fd, self.index, &self.around.host, tsc_khz, current),
            None => Err(StateError::Gone { vcpu: self.index }),
        });
        self.shared.tell();
    }

    fn load(&mut self, state: VcpuState, offset_shift: Option<u64>) {
        let mut control = self.shared.control.lock();
        let result = match &control.state {
            Some(current) => apply(&self.fd, self.index, &self.around.host, &state, current, offset_shift),
            None => Err(StateError::Gone { vcpu: self.index }),
        };
        if result.is_ok() {
            // Tells a guest with kvmclock that it was stopped, so that it does not take the gap for a lockup.
            // Refused when the guest has no kvmclock.
            let _ = self.fd.kvmclock_ctrl();
            control.state = Some(state);
            control.trouble = None;
        }
        control.loaded = Some(result);
        self.shared.tell();
    }

    fn run_until_stopped(&mut self) {
        let mut trouble = self.shared.control.lock().trouble.clone();
        if trouble.is_some() {
            // It has crashed before and got no new state: it only stands with the others.
            self.wait_for_stop();
            return self.park(trouble);
        }
        // A panic is a bug, in a device most likely. It must not take the other vCPUs along in the barrier below.
        let ended = catch_unwind(AssertUnwindSafe(|| self.run())).unwrap_or_else(|panic| {
            let why = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
            let why = why.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Some(Ended::Trouble(Trouble::Failed(format!("internal error: {why}"))))
        });
        if let Some(ended) = ended {
            let event = match ended {
                Ended::Event(event) => event,
                Ended::Trouble(why) => {
                    trouble = Some(why.clone());
                    why.event(self.index)
                }
            };
            // Nobody listens any more when the machine is being dropped.
            let _ = self.around.events.send(event);
            self.wait_for_stop();
        }
        self.park(trouble);
    }

    /// Waits for the other vCPUs to stop, and reads out this one's state, unless that is none to go on from.
    fn park(&mut self, mut trouble: Option<Trouble>) {
        self.around.stopped.wait();
        let state = {
            let mut control = self.shared.control.lock();
            control.phase = Phase::Stopped;
            control.state.take()
        };
        self.shared.tell();
        let state = state.map(|mut state| {
            if trouble.is_none()
                && let Err(e) = self.collector.collect(&self.fd, &mut state)
            {
                trouble = Some(Trouble::Failed(format!("its state cannot be read: {e}")));
            }
            state
        });
        {
            let mut control = self.shared.control.lock();
            (control.state, control.trouble, control.phase) = (state, trouble, Phase::Parked);
        }
        self.shared.tell();
    }

    fn wait_for_stop(&self) {
        let mut control = self.shared.control.lock();
        while !self.shared.stop.load(Ordering::SeqCst) {
            self.shared.changed.wait(&mut control);
        }
    }

    /// Runs the guest until somebody asks for a stop (none) or it has ended.
    fn run(&mut self) -> Option<Ended> {
        let mut event = None;
        loop {
            let devices = &self.around.devices;
            let said = match self.fd.run() {
                Ok(VcpuExit::IoIn(port, data)) => {
                    data.chunks_mut(self.page.port_io_size()).for_each(|item| devices.pio_read(port, item));
                    None
                }
                Ok(VcpuExit::IoOut(port, data)) => data
                    .chunks(self.page.port_io_size())
                    .fold(None, |said, item| devices.pio_write(port, item).or(said)),
                Ok(VcpuExit::MmioRead(address, data)) => {
                    devices.mmio_read(address, data);
                    None
                }
                Ok(VcpuExit::MmioWrite(address, data)) => devices.mmio_write(address, data),
                Ok(VcpuExit::Intr) => None,
                Ok(exit) => match exit::whose(&exit) {
                    Doing::PoweredOff => Some(DeviceEvent::PoweredOff),
                    Doing::Reset => Some(DeviceEvent::Reset),
                    Doing::TripleFault => return Some(self.crashed()),
                    Doing::InternalError => {
                        // SAFETY: the exit reason says which member of the union the kernel has filled.
                        let suberror = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
                        return Some(self.failed(exit::internal_error(suberror)));
                    }
                    Doing::Host(why) => return Some(self.failed(why)),
                },
                Err(e) if e.errno() == libc::EINTR => {
                    if let Some(event) = event {
                        return Some(Ended::Event(event));
                    }
                    if self.shared.stop.load(Ordering::SeqCst) {
                        return None;
                    }
                    continue;
                }
                // An AP that was woken from waiting for its start.
                Err(e) if e.errno() == libc::EAGAIN => continue,
                Err(e) => return Some(self.failed(format!("KVM_RUN failed: {e}"))),
            };
            if let Some(said) = said {
                // The access that said so is completed by one more KVM_RUN, which must not enter the guest.
                event = Some(match said {
                    DeviceEvent::PoweredOff => MachineEvent::PoweredOff,
                    DeviceEvent::Reset => MachineEvent::Reset,
                    DeviceEvent::Panicked { dumps } => {
                        let _ = self.around.events.send(MachineEvent::Panicked { dumps });
                        continue;
                    }
                    // The devices wait by themselves here.
                    DeviceEvent::Idle { .. } => continue,
                });
                self.page.set_immediate_exit(true);
            }
        }
    }

    fn crashed(&self) -> Ended {
        Ended::Trouble(Trouble::Crashed(self.with_registers("triple fault".into())))
    }

    fn failed(&self, what: String) -> Ended {
        Ended::Trouble(Trouble::Failed(self.with_registers(what)))
    }

    fn with_registers(&self, what: String) -> String {
        match (self.fd.get_regs(), self.fd.get_sregs()) {
            (Ok(regs), Ok(sregs)) => format!("{what}; {}", crash_registers(&regs, &sregs)),
            _ => what,
        }
    }
}

/// What a crashed vCPU's registers were, as far as KVM still has them. On AMD's processors a shutdown leaves undefined
/// what the guest had, and KVM resets the vCPU before it tells (svm.c, `shutdown_interception`).
fn crash_registers(regs: &kvm_regs, sregs: &kvm_sregs) -> String {
    if (sregs.cs.selector, regs.rip) == (INIT_CS, INIT_RIP) {
        return "its registers are lost: on this processor KVM resets the vCPU first".into();
    }
    format!(
        "rip {:#x} rsp {:#x} rflags {:#x} cs {:#x} cpl {} cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}",
        regs.rip,
        regs.rsp,
        regs.rflags,
        sregs.cs.selector,
        sregs.ss.dpl,
        sregs.cr0,
        sregs.cr2,
        sregs.cr3,
        sregs.cr4,
        sregs.efer,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_segment;

    #[test]
    fn registers_after_init_are_not_told_as_the_guests() {
        let regs = |rip| kvm_regs { rip, ..Default::default() };
        let sregs =
            |selector| kvm_sregs { cs: kvm_segment { selector, ..Default::default() }, ..Default::default() };
        let told = crash_registers(&regs(0xfff0), &sregs(0x10));
        assert!(told.starts_with("rip 0xfff0 ") && told.contains("cs 0x10"), "a guest may be there: {told}");
        let told = crash_registers(&regs(0xfff0), &sregs(0xf000));
        assert!(told.contains("registers are lost") && !told.contains("rip"), "{told}");
    }
}
