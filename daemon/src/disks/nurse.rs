//! Disks of the guest that stand still, since this host could not do what was asked of them. It is tried again each
//! second; and the executor is told while one stands for which the operator wishes that the VM moves then.

use super::tap::WriteTap;
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Between two attempts.
const RETRY: Duration = Duration::from_secs(1);
/// A disk of which nothing was heard for so long goes on.
const QUIET: Duration = Duration::from_millis(2500);

/// Is told whether a disk stands still for which the VM shall move.
pub type TellStands = Box<dyn Fn(bool) + Send>;

/// A disk that stands still.
struct Standing {
    why: String,
    since: Instant,
    /// When that was heard last.
    heard: Instant,
}

#[derive(Default)]
struct Ward {
    standing: BTreeMap<u16, Standing>,
    tell: Option<TellStands>,
    told: bool,
    is_over: bool,
}

struct Shared {
    ward: Mutex<Ward>,
    changed: Condvar,
    /// Those for which the VM shall move.
    moving: BTreeSet<u16>,
}

/// See the module. The thread ends when this is dropped.
pub(super) struct Nurse(Arc<Shared>);

impl Nurse {
    /// Starts the thread. Of these disks the executor is told.
    pub(super) fn start(tap: Weak<WriteTap>, moving: BTreeSet<u16>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { ward: Mutex::default(), changed: Condvar::new(), moving });
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new().name("ftd-nurse".into()).spawn(move || of_thread.run(&tap))?;
        Ok(Self(shared))
    }

    /// Who is told from now on.
    pub(super) fn on_stand(&self, tell: TellStands) {
        self.0.ward.lock().tell = Some(tell);
    }

    /// A disk stands still.
    pub(super) fn note(&self, disk: u16, why: String) {
        let mut ward = self.0.ward.lock();
        let now = Instant::now();
        let before = ward.standing.get(&disk);
        let is_news = before.is_none_or(|before| before.why != why);
        if is_news {
            tracing::error!(
                "disk {} of the VM stands still, and is tried again each second: {why}",
                disk + 1
            );
            self.0.changed.notify_all();
        }
        let since = before.map_or(now, |before| before.since);
        ward.standing.insert(disk, Standing { why, since, heard: now });
    }

    /// Which have stood still for so long, in words.
    pub(super) fn trouble(&self, since: Duration) -> Option<String> {
        let ward = self.0.ward.lock();
        let long = ward.standing.iter().filter(|(_, standing)| standing.since.elapsed() >= since);
        let all: Vec<String> = long
            .map(|(disk, Standing { why, .. })| format!("disk {} stands still: {why}", disk + 1))
            .collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

impl Drop for Nurse {
    fn drop(&mut self) {
        self.0.ward.lock().is_over = true;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn run(&self, tap: &Weak<WriteTap>) {
        let mut ward = self.ward.lock();
        while !ward.is_over {
            ward.look(&self.moving);
            if ward.standing.is_empty() {
                self.changed.wait(&mut ward);
                continue;
            }
            self.changed.wait_for(&mut ward, RETRY);
            parking_lot::MutexGuard::unlocked(&mut ward, || {
                if let Some(tap) = tap.upgrade() {
                    tap.try_again();
                }
            });
        }
    }
}

impl Ward {
    fn look(&mut self, moving: &BTreeSet<u16>) {
        self.standing.retain(|disk, Standing { heard, .. }| {
            let stands = heard.elapsed() < QUIET;
            if !stands {
                tracing::info!("disk {} of the VM goes on", *disk + 1);
            }
            stands
        });
        let stands = self.standing.keys().any(|disk| moving.contains(disk));
        if stands != self.told
            && let Some(tell) = &self.tell
        {
            self.told = stands;
            tell(stands);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_disk_that_stands_is_tried_again_and_told_of_until_it_goes_on() {
        struct Port(std::sync::mpsc::Sender<()>);
        impl crate::disks::TappedDisk for Port {
            fn try_again(&self) {
                let _ = self.0.send(());
            }
            fn is_changing(&self, _: &std::ops::Range<u64>) -> bool {
                false
            }
        }
        let tap = WriteTap::new(1 << 20, None);
        let (tries, tried) = channel();
        tap.plug(vec![(2, Box::new(Port(tries)) as _)]);
        let nurse = Nurse::start(Arc::downgrade(&tap), BTreeSet::from([2])).unwrap();
        let (tells, told) = channel();
        nurse.on_stand(Box::new(move |stands| {
            let _ = tells.send(stands);
        }));
        nurse.note(1, "it is full".into());
        nurse.note(2, "it is gone".into());
        assert!(told.recv().unwrap());
        let expected = "disk 2 stands still: it is full; disk 3 stands still: it is gone";
        assert_eq!(nurse.trouble(Duration::ZERO).unwrap(), expected);
        assert_eq!(nurse.trouble(Duration::from_secs(3600)), None, "not for so long");
        for _ in 0..2 {
            tried.recv().unwrap();
            nurse.note(2, "it is gone".into());
        }
        assert!(told.try_recv().is_err(), "it stands still");
        assert!(!told.recv().unwrap(), "it has been quiet");
        assert_eq!(nurse.trouble(Duration::ZERO), None);
    }
}
