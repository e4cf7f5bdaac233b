//! The client's run: one connection, one request at a time, every answer checked; at the end every key is read back.

use super::connection::{Connection, ConnectionError};
use super::history::{Key, Operation, Verdict};
use super::measure::Quantiles;
use super::meter::{LoadMeter, LoadProgress, PROGRESS_EVERY};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Length at which an appended-to key is removed, to begin again.
const APPENDED_BYTES_MAX: usize = 2048;
/// Complaints kept for the summary.
const COMPLAINTS_MAX: usize = 10;

/// What to do.
#[derive(Clone, Debug)]
pub struct LoadPlan {
    /// The service.
    pub addr: SocketAddr,
    /// Begins the names of this client's keys: two clients at a time need two.
    pub name: String,
    /// Number of keys.
    pub keys: usize,
    /// Bytes of the values that are set.
    pub value_bytes: usize,
    /// Requests a second; `None`: as fast as the answers come.
    pub rate: Option<f64>,
    /// Chooses the sequence of operations.
    pub seed: u64,
    /// An answer that takes longer does not come.
    pub timeout: Duration,
    /// Whether to connect anew when the connection is lost, to find out what the service still knows. The connection
    /// did not survive then.
    pub reconnect: bool,
    /// Where every answer is noted: a line with the time it came (microseconds since 1970) and its round trip in
    /// microseconds.
    pub trace: Option<PathBuf>,
}

/// How it went.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// One connection carried it all.
    pub connection_survived: bool,
    /// Connections made.
    pub connections: u64,
    /// Writes that were acknowledged.
    pub acked_writes: u64,
    /// Of these, writes that the service later did not know.
    pub acked_lost: u64,
    /// Answers that were wrong in another way.
    pub wrong_answers: u64,
    /// Requests answered.
    pub ops: u64,
    /// Round trips.
    pub rtt_us: Quantiles,
    /// Longest time without an answer while one was due.
    pub client_gap_ms: f64,
    /// When that began.
    pub gap_started_unix_ms: u64,
    /// Every key was read back at the end.
    pub verified: bool,
    /// How long it ran.
    pub duration_ms: u64,
    /// What ended the connection, if it did not survive.
    pub connection_error: Option<String>,
    /// The first unexpected answers.
    pub complaints: Vec<String>,
    /// Why the trace is not complete.
    pub trace_error: Option<String>,
}

impl Summary {
    /// Whether the service kept its promises.
    pub fn is_good(&self) -> bool {
        self.connection_survived && self.verified && self.acked_lost == 0 && self.wrong_answers == 0
    }
}

/// Runs until `stop` says so; `tell` is called every 200 ms, also while an answer is waited for.
pub fn run(plan: &LoadPlan, stop: &dyn Fn() -> bool, tell: &mut dyn FnMut(&LoadProgress)) -> Summary {
    let mut client = Client::new(plan, tell);
    let outcome = client.connect().and_then(|()| client.work(stop)).and_then(|()| client.read_back());
    client.summary(outcome.err())
}

struct Client<'a> {
    plan: &'a LoadPlan,
    meter: LoadMeter<'a>,
    connection: Option<Connection>,
    keys: Vec<Key>,
    random: SmallRng,
    connections: u64,
    first_error: Option<String>,
    acked_writes: u64,
    acked_lost: u64,
    wrong_answers: u64,
    complaints: Vec<String>,
    verified: bool,
}

impl<'a> Client<'a> {
    fn new(plan: &'a LoadPlan, tell: &'a mut dyn FnMut(&LoadProgress)) -> Self {
        Self {
            plan,
            meter: LoadMeter::new(plan.trace.as_deref(), tell),
            connection: None,
            keys: (0..plan.keys.max(1)).map(|i| Key::new(format!("{}-{i}", plan.name))).collect(),
            random: SmallRng::seed_from_u64(plan.seed),
            connections: 0,
            first_error: None,
            acked_writes: 0,
            acked_lost: 0,
            wrong_answers: 0,
            complaints: Vec::new(),
            verified: false,
        }
    }

    fn connect(&mut self) -> Result<(), ConnectionError> {
        self.connection = Some(Connection::open(self.plan.addr, self.plan.timeout)?);
        self.connections += 1;
        Ok(())
    }

    fn work(&mut self, stop: &dyn Fn() -> bool) -> Result<(), ConnectionError> {
        let interval = self.plan.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
        let mut due = Instant::now();
        while !stop() {
            if let Some(interval) = interval {
                self.sleep_until(due, stop);
                // What a slow answer delayed is not caught up with: one at a time, at most at this rate.
                due = (due + interval).max(Instant::now());
            }
            let key = self.random.random_range(0..self.keys.len());
            let operation = self.choose(key);
            self.perform(key, operation)?;
        }
        Ok(())
    }

    fn sleep_until(&mut self, due: Instant, stop: &dyn Fn() -> bool) {
        while let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            if stop() {
                return;
            }
            std::thread::sleep(left.min(PROGRESS_EVERY / 4));
            self.meter.tell_if_due();
        }
    }

    /// A third of the keys are counters, a third are appended to, a third are set; a quarter of the requests read.
    fn choose(&mut self, index: usize) -> Operation {
        let key = &self.keys[index];
        if key.must_be_read() || self.random.random_ratio(1, 4) {
            return Operation::Get;
        }
        match index % 3 {
            0 => Operation::Increment,
            1 if key.bytes() >= APPENDED_BYTES_MAX => Operation::Delete,
            1 => Operation::Append(format!("{};", self.acked_writes)),
            _ => {
                let mut value = format!("{}:", self.acked_writes);
                while value.len() < self.plan.value_bytes {
                    value.push(char::from(self.random.random_range(b'!'..=b'~')));
                }
                Operation::Set(value)
            }
        }
    }

    fn read_back(&mut self) -> Result<(), ConnectionError> {
        for key in 0..self.keys.len() {
            self.perform(key, Operation::Get)?;
        }
        self.verified = true;
        Ok(())
    }

    /// One request and its answer. An error ends the run.
    fn perform(&mut self, key: usize, operation: Operation) -> Result<(), ConnectionError> {
        let request = operation.request(&self.keys[key].name);
        match self.ask(&request) {
            Ok(answer) => {
                self.judge(key, &operation, &request, &answer);
                Ok(())
            }
            Err(error) => {
                self.keys[key].unanswered(&operation);
                if !self.plan.reconnect {
                    return Err(error);
                }
                self.first_error.get_or_insert_with(|| error.to_string());
                self.reconnect()
            }
        }
    }

    fn judge(&mut self, key: usize, operation: &Operation, request: &str, answer: &str) {
        let verdict = self.keys[key].check(operation, answer);
        match verdict {
            Verdict::Right => self.acked_writes += u64::from(operation.is_write()),
            Verdict::Lost { writes } => self.acked_lost += writes,
            Verdict::Wrong => self.wrong_answers += 1,
        }
        if verdict != Verdict::Right && self.complaints.len() < COMPLAINTS_MAX {
            let shorten = |text: &str| text.chars().take(80).collect::<String>();
            self.complaints.push(format!("{verdict:?}: {} -> {}", shorten(request), shorten(answer)));
        }
    }

    fn ask(&mut self, request: &str) -> Result<String, ConnectionError> {
        let Some(mut connection) = self.connection.take() else { return Err(ConnectionError::Closed) };
        connection.send(request)?;
        let answer = self.meter.answer(self.plan.timeout, |wait| connection.receive(wait))?;
        self.connection = Some(connection);
        Ok(answer)
    }

    fn reconnect(&mut self) -> Result<(), ConnectionError> {
        let deadline = Instant::now() + self.plan.timeout;
        loop {
            match self.connect() {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
            self.meter.tell_if_due();
        }
    }

    fn summary(mut self, error: Option<ConnectionError>) -> Summary {
        self.meter.trace.flush();
        let connection_error = self.first_error.or(error.map(|error| error.to_string()));
        Summary {
            connection_survived: self.connections == 1 && connection_error.is_none(),
            connections: self.connections,
            acked_writes: self.acked_writes,
            acked_lost: self.acked_lost,
            wrong_answers: self.wrong_answers,
            ops: self.meter.ops,
            rtt_us: self.meter.round_trips.quantiles(),
            client_gap_ms: self.meter.gap.ms(),
            gap_started_unix_ms: self.meter.gap.started_unix_ms,
            verified: self.verified,
            duration_ms: self.meter.ran_ms(),
            connection_error,
            complaints: self.complaints,
            trace_error: self.meter.trace.error,
        }
    }
}

#[cfg(test)]
mod tests;
