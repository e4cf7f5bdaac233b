//! The client's run: pgbench's transaction (`tpcb-like`), one query at a time, every answer checked; at the end the
//! whole database.

use super::check::{Acknowledged, Findings, verify};
use super::wire::{BankConnection, BankError, QueryAnswer};
use crate::kv::measure::unix_ms;
use crate::kv::meter::{LoadMeter, LoadProgress};
use crate::kv::run::Summary;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What pgbench makes at scale 1.
const ACCOUNTS: u32 = 100_000;
const TELLERS: u32 = 10;
/// Complaints kept for the summary.
const COMPLAINTS_MAX: usize = 10;

/// What to do.
#[derive(Clone, Debug)]
pub struct BankPlan {
    /// PostgreSQL.
    pub addr: SocketAddr,
    /// Chooses accounts and amounts.
    pub seed: u64,
    /// An answer that takes longer does not come.
    pub timeout: Duration,
    /// Where each client's last acknowledged number is noted, for those after it: a line `CLIENT NUMBER` each.
    pub acked: Option<PathBuf>,
    /// Where every answer is noted (`kv::trace`).
    pub trace: Option<PathBuf>,
}

/// The lines of a file of acknowledgements; none without the file.
pub fn acknowledged(path: &Path) -> io::Result<Vec<Acknowledged>> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    let line = |line: &str| {
        let (client, number) = line.split_once(' ')?;
        Some(Acknowledged { client: client.to_owned(), number: number.parse().ok()? })
    };
    let wrong = || io::Error::other(format!("{}: not a file of acknowledgements", path.display()));
    text.lines().map(line).collect::<Option<_>>().ok_or_else(wrong)
}

/// Runs until `stop` says so; `tell` is called every 200 ms, also while an answer is waited for.
pub fn run(plan: &BankPlan, stop: &dyn Fn() -> bool, tell: &mut dyn FnMut(&LoadProgress)) -> Summary {
    let mut client = Client {
        plan,
        meter: LoadMeter::new(plan.trace.as_deref(), tell),
        random: SmallRng::seed_from_u64(plan.seed),
        own: Acknowledged { client: format!("{:x}", unix_ms()), number: 0 },
        balances: HashMap::new(),
        connections: 0,
        wrong_answers: 0,
        lost: 0,
        complaints: Vec::new(),
        verified: false,
    };
    let outcome = client.work(stop);
    client.note();
    client.summary(outcome.err())
}

struct Client<'a> {
    plan: &'a BankPlan,
    meter: LoadMeter<'a>,
    random: SmallRng,
    own: Acknowledged,
    /// Of the accounts that were seen: nobody else changes them.
    balances: HashMap<u32, i64>,
    connections: u64,
    wrong_answers: u64,
    lost: u64,
    complaints: Vec<String>,
    verified: bool,
}

impl Client<'_> {
    fn work(&mut self, stop: &dyn Fn() -> bool) -> Result<(), BankError> {
        let mut database = BankConnection::open(self.plan.addr, self.plan.timeout)?;
        self.connections += 1;
        while !stop() && self.wrong_answers == 0 {
            self.transact(&mut database)?;
        }
        self.read_back(&mut database)
    }

    /// One transaction; it counts when its COMMIT is answered.
    fn transact(&mut self, database: &mut BankConnection) -> Result<(), BankError> {
        let account = self.random.random_range(1..=ACCOUNTS);
        let teller = self.random.random_range(1..=TELLERS);
        let delta = self.random.random_range(-5000_i64..=5000);
        let mark = format!("{}-{}", self.own.client, self.own.number + 1);
        let history = format!(
            "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime, filler) \
             VALUES ({teller}, 1, {account}, {delta}, CURRENT_TIMESTAMP, '{mark}')"
        );
        let add = |table: &str, letter: char, key: u32| {
            format!("UPDATE {table} SET {letter}balance = {letter}balance + {delta} WHERE {letter}id = {key}")
        };
        let select = format!("SELECT abalance FROM pgbench_accounts WHERE aid = {account}");
        for (sql, tag) in [
            ("BEGIN", "BEGIN"),
            (&add("pgbench_accounts", 'a', account), "UPDATE 1"),
            (&select, "SELECT 1"),
            (&add("pgbench_tellers", 't', teller), "UPDATE 1"),
            (&add("pgbench_branches", 'b', 1), "UPDATE 1"),
            (&history, "INSERT 0 1"),
            ("END", "COMMIT"),
        ] {
            database.send(sql)?;
            let answer = self.meter.answer(self.plan.timeout, |wait| database.receive(wait))?;
            if answer.error.is_some() || answer.tag != tag {
                self.wrong_answers += 1;
                self.complain(format!("{sql} -> {answer:?}"));
                return Ok(());
            }
            if tag == "SELECT 1" {
                self.judge_balance(account, delta, &answer);
            }
        }
        self.own.number += 1;
        Ok(())
    }

    fn judge_balance(&mut self, account: u32, delta: i64, answer: &QueryAnswer) {
        let column = answer.rows.first().and_then(|row| row.first()).and_then(Option::as_ref);
        let balance = column.and_then(|text| text.parse::<i64>().ok());
        let expected = self.balances.get(&account).map(|before| before + delta);
        match balance {
            Some(balance) if expected.is_none_or(|expected| expected == balance) => {
                self.balances.insert(account, balance);
            }
            _ => {
                self.wrong_answers += 1;
                self.complain(format!("account {account} has {balance:?}, not {expected:?}"));
            }
        }
    }

    /// The database has all that was acknowledged, to this client and those before.
    fn read_back(&mut self, database: &mut BankConnection) -> Result<(), BankError> {
        let mut all = match self.plan.acked.as_deref().map(acknowledged) {
            Some(Ok(earlier)) => earlier,
            Some(Err(error)) => {
                self.complain(error.to_string());
                return Ok(());
            }
            None => Vec::new(),
        };
        all.push(self.own.clone());
        let timeout = self.plan.timeout;
        // These take long, and nobody waits for them: they are not measured.
        let Findings { lost, wrong } = verify(&all, |sql| database.call(sql, timeout))?;
        self.lost += lost;
        self.wrong_answers += wrong.len() as u64;
        if lost > 0 {
            self.complain(format!("{lost} acknowledged transactions are not in the history"));
        }
        wrong.into_iter().for_each(|text| self.complain(text));
        self.verified = true;
        Ok(())
    }

    fn note(&mut self) {
        let Some(path) = &self.plan.acked else { return };
        let line = format!("{} {}\n", self.own.client, self.own.number);
        let file = OpenOptions::new().create(true).append(true).open(path);
        if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
            self.verified = false;
            self.complain(format!("{}: {error}", path.display()));
        }
    }

    fn complain(&mut self, text: String) {
        if self.complaints.len() < COMPLAINTS_MAX {
            self.complaints.push(text.chars().take(300).collect());
        }
    }

    fn summary(mut self, error: Option<BankError>) -> Summary {
        self.meter.trace.flush();
        let connection_error = error.map(|error| error.to_string());
        Summary {
            connection_survived: self.connections == 1 && connection_error.is_none(),
            connections: self.connections,
            acked_writes: self.own.number,
            acked_lost: self.lost,
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
