//! The history of a cell that is asked for as a node asks for it: the one in a service or in etcd.
//!
//! A record's times enclose the moment of the change: the question before, whose answer was another cell, was asked
//! before it, and this answer came after it. A change that is undone between two questions is not seen.

use std::io::Write;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ft_arbiter::{Arbiter, ArbiterError};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::owners::{CellRecord, now_ns};

/// Between two questions.
const PAUSE_MS: u16 = 5;
/// The last question is asked for so long, where there is no answer.
const LAST_PATIENCE: Duration = Duration::from_secs(10);

/// Asks for one cell.
pub struct Asker {
    arbiter: Box<dyn Arbiter>,
    /// The last generation recorded.
    last: Option<u64>,
    /// When the question was asked that was answered last.
    asked_ns: u64,
}

impl Asker {
    /// Asks this arbiter, and only reads.
    #[must_use]
    pub fn new(arbiter: Box<dyn Arbiter>) -> Self {
        Self { arbiter, last: None, asked_ns: 0 }
    }

    /// Writes a JSON line for every generation that is seen, beginning with the current one, until `stop` becomes
    /// readable. An arbiter that does not answer is asked again; the history is not whole without an answer in the end.
    pub fn run(mut self, out: &mut dyn Write, stop: BorrowedFd<'_>) -> Result<()> {
        let mut stopped: Option<Instant> = None;
        loop {
            match self.news()? {
                Ok(record) => {
                    if let Some(record) = record {
                        writeln!(out, "{}", serde_json::to_string(&record)?)?;
                        out.flush()?;
                    }
                    if stopped.is_some() {
                        return Ok(());
                    }
                }
                Err(error) if stopped.is_some_and(|stopped| stopped.elapsed() > LAST_PATIENCE) => {
                    return Err(error).context("the history has no end");
                }
                Err(_) => {}
            }
            let mut fds = [PollFd::new(stop, PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(PAUSE_MS)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("poll"),
            }
            if fds[0].any() == Some(true) {
                stopped.get_or_insert_with(Instant::now);
            }
        }
    }

    /// The cell, if it is of a later generation than all before. One that went back is no part of the history.
    fn news(&mut self) -> Result<Result<Option<CellRecord>, ArbiterError>> {
        let asked_ns = now_ns()?;
        let cell = match self.arbiter.read() {
            Ok(cell) => cell,
            Err(error) => return Ok(Err(error)),
        };
        let written_ns = std::mem::replace(&mut self.asked_ns, asked_ns);
        let Some(cell) = cell.filter(|cell| self.last.is_none_or(|last| cell.generation > last)) else {
            return Ok(Ok(None));
        };
        self.last = Some(cell.generation);
        Ok(Ok(Some(CellRecord {
            t_ns: now_ns()?,
            written_ns,
            generation: cell.generation,
            owner: cell.owner,
            standby: cell.standby.map(|standby| standby.node),
        })))
    }
}

#[cfg(test)]
mod tests {
    use ft_tls::Protection;
    use std::fs::File;
    use std::io::{BufRead, BufReader};
    use std::net::{SocketAddr, TcpListener};
    use std::os::fd::AsFd;
    use std::path::Path;

    use ft_arbiter::service::{CellServer, CellStore, ServerLimits, ServicePace};
    use ft_arbiter::{Cell, CellId, Outcome, ServiceArbiter, Standby};
    use nix::unistd::pipe;

    use super::*;

    fn serve(store: &Path, address: &str) -> CellServer {
        let listener = TcpListener::bind(address).unwrap();
        CellServer::start(
            listener,
            CellStore::open(store).unwrap(),
            ServerLimits::default(),
            Protection::None,
        )
        .unwrap()
    }

    fn arbiter(address: SocketAddr) -> ServiceArbiter {
        ServiceArbiter::new(address, "web", ServicePace::default())
    }

    fn set(address: SocketAddr, generation: u64, owner: &str) {
        let standby = Some(Standby { node: "gamma".into(), pairing: generation });
        let cell = Cell { id: CellId(1), generation, owner: Some(owner.into()), standby };
        let expected = (generation > 1).then(|| generation - 1);
        assert_eq!(arbiter(address).compare_and_set(expected, cell.clone()), Outcome::Won(cell));
    }

    #[test]
    fn changes_are_seen_between_their_times_also_after_the_service_was_away_and_had_gone_back() {
        let directory = tempfile::tempdir().unwrap();
        let (store, older) = (directory.path().join("cells"), directory.path().join("older"));
        CellStore::create(&store).unwrap();
        let mut server = serve(&store, "127.0.0.1:0");
        let address = server.address();
        set(address, 1, "alpha");

        let (stop_read, stop_write) = pipe().unwrap();
        let (seen_read, seen_write) = pipe().unwrap();
        let asker = Asker::new(Box::new(arbiter(address)));
        let running = std::thread::spawn(move || asker.run(&mut File::from(seen_write), stop_read.as_fd()));
        let mut lines = BufReader::new(File::from(seen_read)).lines();
        let mut next = || -> CellRecord { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
        assert_eq!(next().generation, 1);

        for generation in 2..=20 {
            let before_ns = now_ns().unwrap();
            set(address, generation, "beta");
            let after_ns = now_ns().unwrap();
            let record = next();
            let said = (record.generation, record.owner.as_deref(), record.standby.as_deref());
            assert_eq!(said, (generation, Some("beta"), Some("gamma")));
            assert!(record.written_ns <= after_ns && before_ns <= record.t_ns, "{record:?} {before_ns}");
            if generation == 10 {
                drop(server);
                std::fs::copy(&store, &older).unwrap();
                server = serve(&store, &address.to_string());
            }
        }
        // An older store takes its place, and then the true one comes back.
        drop(server);
        drop(serve(&older, &address.to_string()));
        let _server = serve(&store, &address.to_string());
        set(address, 21, "alpha");
        assert_eq!(next().generation, 21);
        drop(stop_write);
        running.join().unwrap().unwrap();
        assert!(lines.next().is_none());
    }
}
