//! Several services, each in a process of its own, that keep cells together.

use crate::process::ServiceProcess;
use ft_arbiter::MajorityArbiter;
use ft_arbiter::majority::{MajorityPace, MemberRoll, MemberSet};
use ft_arbiter::service::{CellStore, ServicePlace};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};

/// The members, each of which may be away.
pub struct SeveralServices {
    directory: tempfile::TempDir,
    pub set: MemberSet,
    pub members: Vec<Mutex<Option<ServiceProcess>>>,
}

impl SeveralServices {
    /// So many, up to seven.
    pub fn start(count: u8) -> Self {
        // Addresses of loopback that nobody else is given, so that a member can come back to its own.
        static MADE: AtomicU8 = AtomicU8::new(0);
        let (made, pid) = (MADE.fetch_add(1, Ordering::Relaxed), std::process::id());
        let high = 64 + made % 128;
        let nth = |n: u8| [127, high, (pid >> 5) as u8, ((pid & 0x1f) << 3) as u8 | n];
        let addresses: Vec<SocketAddr> = (1..=count).map(|n| (nth(n), 7390).into()).collect();
        let set = MemberSet::new(&addresses).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let members = addresses.iter().map(|_| Mutex::default()).collect();
        let several = Self { directory, set, members };
        for member in 0..usize::from(count) {
            CellStore::create_member(&several.store(member), &several.set, &BTreeMap::new()).unwrap();
            several.start_member(member);
        }
        several
    }

    pub fn store(&self, member: usize) -> PathBuf {
        self.directory.path().join(format!("cells-{member}"))
    }

    pub fn start_member(&self, member: usize) {
        let address = self.set.addresses()[member];
        let process = ServiceProcess::start(&self.store(member), &address.to_string());
        assert_eq!(process.address, address);
        *self.members[member].lock().unwrap() = Some(process);
    }

    /// By SIGKILL.
    pub fn kill_member(&self, member: usize) {
        *self.members[member].lock().unwrap() = None;
    }

    pub fn connect(&self, pace: MajorityPace) -> MajorityArbiter {
        let places: Vec<ServicePlace> =
            self.set.addresses().iter().map(|address| (*address).into()).collect();
        MajorityArbiter::new(self.set.clone(), &places, "web", pace, &MemberRoll::default())
    }
}
