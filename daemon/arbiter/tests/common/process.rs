//! A service in a process of its own, which the test program is started as: it can be killed and stopped.

#[path = "signal.rs"]
mod signal;

use ft_arbiter::service::{CellServer, CellStore, ServerLimits};
use ft_tls::Protection;
use nix::sys::signal::Signal;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

const STORE: &str = "FT_TEST_STORE";
const ADDRESS: &str = "FT_TEST_ADDRESS";

/// Not a test but the service of the others.
#[test]
fn serve_if_told_to() {
    let (Ok(store), Ok(address)) = (std::env::var(STORE), std::env::var(ADDRESS)) else { return };
    let listener = TcpListener::bind(address).unwrap();
    let store = CellStore::open(Path::new(&store)).unwrap();
    let server = CellServer::start(listener, store, ServerLimits::default(), Protection::None).unwrap();
    println!("\nlistens on {}", server.address());
    loop {
        std::thread::park();
    }
}

pub struct ServiceProcess {
    child: Child,
    pub address: SocketAddr,
}

impl ServiceProcess {
    pub fn start(store: &Path, address: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process::serve_if_told_to", "--nocapture"])
            .env(STORE, store)
            .env(ADDRESS, address)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let address = lines.find_map(|line| line.strip_prefix("listens on ").map(|at| at.parse().unwrap()));
        Self { address: address.expect("it says where it listens"), child }
    }

    /// Sends it; who was told to stand still does so when this returns.
    pub fn signal(&self, signal: Signal) {
        signal::send(&self.child, signal);
    }
}

impl Drop for ServiceProcess {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
    }
}
