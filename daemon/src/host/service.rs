//! The daemon as a service of its host: the lock that keeps it one per VM, and the notices to systemd (readiness,
//! status, watchdog).

use nix::fcntl::{Flock, FlockArg};
use parking_lot::Mutex;
use sd_notify::NotifyState;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use thiserror::Error;

/// Why a second daemon does not start.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another one holds the lock.
    #[error("{}: a daemon for this VM already runs on this host (process {holder})", path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Its process id, as it wrote it.
        holder: String,
    },
    /// The lock cannot be taken.
    #[error("{}: cannot lock it: {source}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Keeps a second daemon for the same VM off this host. Freed when dropped and when the process dies.
#[derive(Debug)]
pub struct InstanceLock(#[allow(dead_code, reason = "held, not used")] Flock<File>);

impl InstanceLock {
    /// Takes the lock in `state_dir`, which is made if missing.
    pub fn acquire(state_dir: &Path) -> Result<Self, LockError> {
        let path = state_dir.join("lock");
        let failed = |source| LockError::Io { path: path.clone(), source };
        fs::create_dir_all(state_dir).map_err(failed)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        let patience = Instant::now() + DYING_LIMIT;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut lock) => {
                    lock.set_len(0)
                        .and_then(|()| writeln!(lock, "{}", std::process::id()))
                        .map_err(failed)?;
                    return Ok(Self(lock));
                }
                Err((held, nix::errno::Errno::EWOULDBLOCK)) => {
                    let holder = written_holder(&path);
                    if !is_dying(&holder) || Instant::now() >= patience {
                        return Err(LockError::Held { holder, path });
                    }
                    // Killed, and the kernel still takes its VM down.
                    std::thread::sleep(Duration::from_millis(20));
                    file = held;
                }
                Err((_, errno)) => return Err(failed(errno.into())),
            }
        }
    }
}

impl InstanceLock {
    /// The process that holds the lock in `state_dir`, if one does.
    #[must_use]
    pub fn holder(state_dir: &Path) -> Option<String> {
        let path = state_dir.join("lock");
        let file = File::open(&path).ok()?;
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Some(written_holder(&path)),
            // Nobody's: given back at once.
            _ => None,
        }
    }
}

/// The process id that the lock's holder has written into it.
fn written_holder(path: &Path) -> String {
    let mut holder = String::new();
    let _ = File::open(path).and_then(|file| file.take(20).read_to_string(&mut holder));
    holder.trim().to_owned()
}

/// Time that a killed daemon gets to be gone.
const DYING_LIMIT: Duration = Duration::from_secs(30);

/// Whether a process is on its way out: its first thread has ended, or it is gone altogether.
fn is_dying(pid: &str) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The state follows the name, which is in parentheses and may hold anything.
        Ok(stat) => stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X'])),
        Err(_) => !pid.is_empty(),
    }
}

/// What systemd is told. Without systemd every call does nothing.
#[derive(Debug, Default)]
pub struct Notifier {
    last_status: Mutex<String>,
    said_ready: AtomicBool,
}

impl Notifier {
    /// The service does what it is there for. Said once.
    pub fn ready_once(&self) {
        if !self.said_ready.swap(true, Ordering::Relaxed) {
            notify(&[NotifyState::Ready]);
        }
    }

    /// The service is going down.
    pub fn stopping(&self) {
        notify(&[NotifyState::Stopping]);
    }

    /// The line that `systemctl status` shows; sent when it changes.
    pub fn status(&self, line: &str) {
        let mut last = self.last_status.lock();
        if *last != line {
            // A line break would start another assignment of the protocol.
            notify(&[NotifyState::Status(&line.replace(['\n', '\r'], " "))]);
            line.clone_into(&mut last);
        }
    }
}

/// Between two pieces of news of a write that gets on.
const EXTENSION: Duration = Duration::from_secs(300);

/// A stop that is under way is not late before this time is over: it waits for a write that gets on.
pub fn extend_stop() {
    notify(&[NotifyState::ExtendTimeoutUsec(EXTENSION.as_micros() as u32)]);
}

/// A checkpoint loop that takes longer for one round hangs.
const ROUND_LIMIT: Duration = Duration::from_secs(5);

/// Tells systemd that the daemon still does its work. Fed by the loop that does it, not by a timer beside it.
#[derive(Debug)]
pub struct Watchdog {
    /// A quarter of the time that systemd allows.
    interval: Option<Duration>,
    last: Mutex<Option<Instant>>,
    /// When the checkpoint loop last went round.
    round: Mutex<Instant>,
}

impl Watchdog {
    /// As systemd asks for it (`WatchdogSec=`), or one that does nothing.
    #[must_use]
    pub fn from_environment() -> Self {
        let interval = sd_notify::watchdog_enabled().map(|limit| limit / 4);
        Self { interval, last: Mutex::new(None), round: Mutex::new(Instant::now()) }
    }

    /// The checkpoint loop has gone round.
    pub fn round(&self) {
        *self.round.lock() = Instant::now();
    }

    /// The executor has gone round. systemd hears of it; but where another host can go on with the VM, only as long as
    /// the checkpoint loop goes round as well. The death of this process would be the end of an only copy. Cheap: most
    /// calls only look at the clock.
    pub fn fed(&self, has_heir: impl FnOnce() -> bool) {
        if self.tells(Instant::now(), has_heir) {
            notify(&[NotifyState::Watchdog]);
        }
    }

    fn tells(&self, now: Instant, has_heir: impl FnOnce() -> bool) -> bool {
        self.due(now) && (self.is_going_round(now) || !has_heir())
    }

    fn is_going_round(&self, now: Instant) -> bool {
        now.saturating_duration_since(*self.round.lock()) < ROUND_LIMIT
    }

    fn due(&self, now: Instant) -> bool {
        let Some(interval) = self.interval else { return false };
        let mut last = self.last.lock();
        let due = last.is_none_or(|last| now.saturating_duration_since(last) >= interval);
        if due {
            *last = Some(now);
        }
        due
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "cannot tell systemd {state:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_for_the_same_vm_is_refused_and_told_who_runs() {
        let directory = tempfile::tempdir().unwrap();
        let state_dir = directory.path().join("web");
        let lock = InstanceLock::acquire(&state_dir).unwrap();
        let error = InstanceLock::acquire(&state_dir).unwrap_err();
        assert!(error.to_string().ends_with(&format!("(process {})", std::process::id())), "{error}");
        assert_eq!(InstanceLock::holder(&state_dir), Some(std::process::id().to_string()));
        drop(lock);
        assert_eq!(InstanceLock::holder(&state_dir), None);
        InstanceLock::acquire(&state_dir).unwrap();
    }

    #[test]
    fn the_watchdog_is_told_four_times_in_its_limit_however_often_it_is_fed() {
        let watchdog = Watchdog {
            interval: Some(Duration::from_secs(1)),
            last: Mutex::new(None),
            round: Mutex::new(Instant::now()),
        };
        let start = Instant::now();
        let told = (0..1000u64).filter(|ms| watchdog.due(start + Duration::from_millis(ms * 4))).count();
        assert_eq!(told, 4);
        assert!(!Watchdog { interval: None, last: Mutex::new(None), round: Mutex::new(start) }.due(start));
    }
    #[test]
    fn a_checkpoint_loop_that_hangs_costs_the_daemon_its_life_only_where_another_host_has_the_vm() {
        let start = Instant::now();
        let watchdog = || Watchdog {
            interval: Some(Duration::from_secs(1)),
            last: Mutex::new(None),
            round: Mutex::new(start),
        };
        let (lately, long_ago) = (start + ROUND_LIMIT / 2, start + ROUND_LIMIT);
        for (now, has_heir, told) in
            [(lately, false, true), (lately, true, true), (long_ago, true, false), (long_ago, false, true)]
        {
            let case = (now - start, has_heir);
            assert_eq!(watchdog().tells(now, || has_heir), told, "{case:?}");
        }
        // A solo primary whose loop hangs goes on being told of, not once only.
        let solo = watchdog();
        let told = (0..10).filter(|s| solo.tells(long_ago + Duration::from_secs(*s), || false)).count();
        assert_eq!(told, 10);
    }
}
