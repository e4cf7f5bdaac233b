//! One of the connections: asks, waits for the answer, notes both.

use super::check::{Exchange, Noted};
use super::{SharedEnd, SharedPlan, choose};
use crate::kv::connection::{Connection, ConnectionError};
use crate::kv::history::Operation;
use ft_history::TimedCall;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::time::{Duration, Instant};

/// How often whoever waits looks whether the service is gone.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub struct Worker<'a> {
    number: usize,
    connection: Connection,
    random: SmallRng,
    end: SharedEnd<'a>,
    plan: &'a SharedPlan,
    pub noted: Vec<Noted>,
    /// What ended the connection.
    pub error: Option<ConnectionError>,
}

impl<'a> Worker<'a> {
    pub fn connect(number: usize, plan: &'a SharedPlan, end: SharedEnd<'a>) -> Result<Self, ConnectionError> {
        let connection = Connection::open(plan.addr, plan.timeout)?;
        let random = SmallRng::seed_from_u64(plan.seed.wrapping_mul(1000) + number as u64);
        Ok(Self { number, connection, random, end, plan, noted: Vec::new(), error: None })
    }

    /// Works until it is to end, or the connection does. The times of all are on one clock, since `clock`.
    pub fn work(&mut self, clock: Instant) {
        let interval = Duration::from_secs_f64(1.0 / self.plan.rate);
        let mut unique = self.number as u64;
        while self.error.is_none() && !(self.end.stop)() && !(self.end.gone)() {
            let key = self.random.random_range(0..self.plan.keys);
            unique += self.plan.connections as u64;
            let operation = choose(&mut self.random, key, unique);
            let asked = Instant::now();
            self.perform(clock, key, operation);
            std::thread::sleep(interval.saturating_sub(asked.elapsed()));
        }
    }

    pub fn read_back(&mut self, clock: Instant) {
        for key in 0..self.plan.keys {
            if self.error.is_none() {
                self.perform(clock, key, Operation::Get);
            }
        }
    }

    fn perform(&mut self, clock: Instant, key: usize, operation: Operation) {
        let request = operation.request(&format!("{}-{key}", self.plan.name));
        let now_us = || clock.elapsed().as_micros() as u64;
        let began = now_us();
        let answer = self.ask(&request);
        let ended = now_us();
        match answer {
            Ok(answer) => {
                let ended = answer.is_some().then_some(ended);
                let op = Exchange { operation, answer };
                self.noted.push(Noted { key, connection: self.number, call: TimedCall { op, began, ended } });
            }
            Err(error) => {
                let op = Exchange { operation, answer: None };
                self.noted.push(Noted {
                    key,
                    connection: self.number,
                    call: TimedCall { op, began, ended: None },
                });
                self.error = Some(error);
            }
        }
    }

    /// The answer; `None`: the service was said to be gone.
    fn ask(&mut self, request: &str) -> Result<Option<String>, ConnectionError> {
        self.connection.send(request)?;
        let deadline = Instant::now() + self.plan.timeout;
        while Instant::now() < deadline {
            if let Some(answer) = self.connection.receive(LOOK_EVERY)? {
                return Ok(Some(answer));
            }
            if (self.end.gone)() {
                return Ok(None);
            }
        }
        Err(ConnectionError::TimedOut(self.plan.timeout))
    }
}
