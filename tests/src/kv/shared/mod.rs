//! Several connections on the same keys, each with one request under way. Their answers are right if, for each key,
//! some order of all that was asked explains them (linearizability); nobody knows an answer beforehand, as the client
//! of one connection does ([`super::history`]).

mod check;
mod work;

pub use check::Exchange;

use super::connection::ConnectionError;
use super::history::Operation;
use check::{Noted, broken_keys};
use rand::Rng;
use rand::rngs::SmallRng;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use work::Worker;

/// What to do.
#[derive(Clone, Debug)]
pub struct SharedPlan {
    /// The service.
    pub addr: SocketAddr,
    /// Begins the names of the keys, which nobody else uses.
    pub name: String,
    /// Number of keys.
    pub keys: usize,
    /// Number of connections.
    pub connections: usize,
    /// Requests a second of each connection, at most.
    pub rate: f64,
    /// Chooses the operations.
    pub seed: u64,
    /// An answer that takes longer does not come: the connection is lost.
    pub timeout: Duration,
    /// Where all that was asked of a key goes whose answers no order explains, and why; a line of JSON each.
    pub history: Option<PathBuf>,
}

/// How it went.
#[derive(Debug, Serialize)]
pub struct SharedSummary {
    /// Connections that asked; one more has read everything back, where the service was not gone.
    pub connections: usize,
    /// Of all these, connections that were closed, reset, or silent for too long.
    pub connections_lost: usize,
    /// Keys that were used.
    pub keys: usize,
    /// Answered operations by kind.
    pub operations: BTreeMap<&'static str, u64>,
    /// Operations whose answers never came: each took effect once, at any time, or never.
    pub unanswered: usize,
    /// Longest time that an answer took, in milliseconds.
    pub client_gap_ms: f64,
    /// How long the search for an order took, in milliseconds.
    pub check_ms: f64,
    /// The keys whose answers no order explains, with the first answer that has no place.
    pub broken: Vec<String>,
    /// What ended the connections that were lost.
    pub errors: Vec<String>,
}

impl SharedSummary {
    /// Whether the service kept its promises.
    pub fn is_good(&self) -> bool {
        self.connections_lost == 0 && self.broken.is_empty()
    }
}

/// When a run ends.
#[derive(Clone, Copy)]
pub struct SharedEnd<'a> {
    /// It is to end once the answers under way have come; then everything is read back over another connection.
    pub stop: &'a (dyn Fn() -> bool + Sync),
    /// The service is gone: no answer will come.
    pub gone: &'a (dyn Fn() -> bool + Sync),
}

/// Runs until told to end; calls `ready` once all connections are made.
///
/// # Errors
///
/// A connection could not be made, or the history not be written.
pub fn run(
    plan: &SharedPlan,
    end: SharedEnd<'_>,
    ready: impl FnOnce(),
) -> Result<SharedSummary, SharedError> {
    let mut workers = (0..plan.connections)
        .map(|number| Worker::connect(number, plan, end))
        .collect::<Result<Vec<_>, ConnectionError>>()?;
    ready();
    let clock = Instant::now();
    std::thread::scope(|scope| {
        for worker in &mut workers {
            scope.spawn(move || worker.work(clock));
        }
    });
    if !(end.gone)() {
        // Another one: what is there is read whatever became of the others.
        let mut reader = Worker::connect(plan.connections, plan, end)?;
        reader.read_back(clock);
        workers.push(reader);
    }
    let errors = workers.iter().filter_map(|worker| Some(worker.error.as_ref()?.to_string())).collect();
    let mut keys = vec![Vec::new(); plan.keys];
    for noted in workers.into_iter().flat_map(|worker| worker.noted) {
        keys[noted.key].push(noted);
    }
    summary(plan, &keys, errors)
}

fn summary(
    plan: &SharedPlan,
    keys: &[Vec<Noted>],
    errors: Vec<String>,
) -> Result<SharedSummary, SharedError> {
    let mut operations = BTreeMap::new();
    let mut gap_us = 0;
    let mut unanswered = 0;
    for Noted { call, .. } in keys.iter().flatten() {
        match call.ended {
            Some(ended) => {
                *operations.entry(call.op.kind()).or_default() += 1;
                gap_us = gap_us.max(ended - call.began);
            }
            None => unanswered += 1,
        }
    }
    let checked = Instant::now();
    let broken = broken_keys(keys);
    let check_ms = (checked.elapsed().as_secs_f64() * 1e6).round() / 1e3;
    if let (Some(path), false) = (&plan.history, broken.is_empty()) {
        let calls = broken.iter().flat_map(|broken| &keys[broken.key]);
        write_history(path, calls).map_err(|source| SharedError::History { path: path.clone(), source })?;
    }
    Ok(SharedSummary {
        connections: plan.connections,
        connections_lost: errors.len(),
        keys: keys.iter().filter(|calls| !calls.is_empty()).count(),
        operations,
        unanswered,
        client_gap_ms: gap_us as f64 / 1e3,
        check_ms,
        broken: broken.iter().map(|broken| format!("{}-{}", plan.name, broken.text)).collect(),
        errors,
    })
}

fn write_history<'a>(path: &Path, calls: impl Iterator<Item = &'a Noted>) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for call in calls {
        serde_json::to_writer(&mut file, &call.line())?;
        writeln!(file)?;
    }
    file.flush()
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    /// A connection could not be made.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The history could not be written.
    #[error("cannot write {}: {source}", path.display())]
    History {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Keys of even numbers hold numbers, and the others texts; each value that is set is another.
fn choose(random: &mut SmallRng, key: usize, unique: u64) -> Operation {
    match (random.random_range(0..10), key % 2) {
        (0..4, _) => Operation::Get,
        (4, _) => Operation::Delete,
        // So far apart that what is added to one never makes another.
        (5..7, 0) => Operation::Set((unique << 20).to_string()),
        (5..7, _) => Operation::Set(format!("{unique}.")),
        (_, 0) => Operation::Increment,
        (..) => Operation::Append(format!("{unique};")),
    }
}

#[cfg(test)]
mod tests;
