//! What a system call costs a confined thread more than another: its filter runs ahead of each.

use ft_confine::ThreadKind;
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Calls in a batch. The shortest of the batches counts.
const CALLS: u32 = 20_000;

/// A system call, in nanoseconds of processor time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CallCost {
    /// Which.
    pub call: &'static str,
    /// Of a thread that is not confined.
    pub free_ns: f64,
    /// Of one that is, as a vCPU's.
    pub confined_ns: f64,
}

/// Measures each call in so many batches. Confines threads of this process from then on.
pub fn measure(batches: u32) -> anyhow::Result<Vec<CallCost>> {
    let free = of_thread(None, batches)?;
    ft_confine::on()?;
    let confined = of_thread(Some(ThreadKind::Vcpu), batches)?;
    let pair = |((call, free_ns), (_, confined_ns)): (Call, Call)| CallCost { call, free_ns, confined_ns };
    Ok(free.into_iter().zip(confined).map(pair).collect())
}

type Call = (&'static str, f64);

fn of_thread(kind: Option<ThreadKind>, batches: u32) -> anyhow::Result<Vec<Call>> {
    // What a vCPU's thread does at every exit of its guest is a request to KVM.
    let kvm = File::open("/dev/kvm")?;
    let thread = std::thread::spawn(move || {
        if let Some(kind) = kind {
            ft_confine::this_thread(kind);
        }
        let request = || {
            // SAFETY: asks for the interface's version, which is a number.
            unsafe { libc::ioctl(kvm.as_raw_fd(), 0xae00, 0) }
        };
        let identity = || {
            // SAFETY: has no arguments.
            unsafe { libc::syscall(libc::SYS_gettid) as libc::c_int }
        };
        let (request, identity) = (shortest(batches, &request)?, shortest(batches, &identity)?);
        Ok::<_, io::Error>(vec![("a request to KVM", request), ("gettid", identity)])
    });
    Ok(thread.join().map_err(|_| anyhow::anyhow!("the measurement's thread has panicked"))??)
}

fn shortest(batches: u32, call: &dyn Fn() -> libc::c_int) -> io::Result<f64> {
    let mut least = f64::INFINITY;
    for _ in 0..batches {
        let began = cpu_ns()?;
        for _ in 0..CALLS {
            if call() < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        least = least.min((cpu_ns()? - began) / f64::from(CALLS));
    }
    Ok((least * 10.0).round() / 10.0)
}

/// Processor time of the calling thread.
fn cpu_ns() -> io::Result<f64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(time.tv_sec() as f64 * 1e9 + time.tv_nsec() as f64)
}
