//! What was asked and answered, and the keys whose answers no order explains.

use crate::kv::history::Operation;
use ft_history::{Answered, TimedCall, last_state};
use serde::Serialize;

/// An operation on a key and its answer, if one came.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// What was asked.
    pub operation: Operation,
    /// The answer line.
    pub answer: Option<String>,
}

impl Exchange {
    /// The operation's name.
    pub fn kind(&self) -> &'static str {
        match self.operation {
            Operation::Increment => "increment",
            Operation::Append(_) => "append",
            Operation::Set(_) => "write",
            Operation::Delete => "delete",
            Operation::Get => "read",
        }
    }
}

impl Answered for Exchange {
    type State = Option<String>;

    fn apply(&self, value: &Option<String>) -> Option<Option<String>> {
        let value = value.as_deref();
        let fits = self.answer.as_ref().is_none_or(|answer| self.operation.is_answered(value, answer));
        fits.then(|| self.operation.apply(value))
    }
}

/// A call on a key, by a connection.
#[derive(Clone, Debug)]
pub struct Noted {
    pub key: usize,
    pub connection: usize,
    /// Times in microseconds since the run began.
    pub call: TimedCall<Exchange>,
}

/// A line of the history that is written.
#[derive(Debug, Serialize)]
pub struct NotedLine<'a> {
    key: usize,
    connection: usize,
    request: String,
    answer: Option<&'a str>,
    began_us: u64,
    ended_us: Option<u64>,
}

impl Noted {
    pub fn line(&self) -> NotedLine<'_> {
        let Self { key, connection, call: TimedCall { op, began, ended } } = self;
        NotedLine {
            key: *key,
            connection: *connection,
            request: op.operation.request(&key.to_string()),
            answer: op.answer.as_deref(),
            began_us: *began,
            ended_us: *ended,
        }
    }
}

/// A key whose answers no order explains.
pub struct BrokenKey {
    pub key: usize,
    /// The key's number, and the answer that has no place.
    pub text: String,
}

/// `keys`: what was asked of each, none of which existed before.
pub fn broken_keys(keys: &[Vec<Noted>]) -> Vec<BrokenKey> {
    let broken = keys.iter().enumerate().filter_map(|(key, noted)| {
        // A read without an answer says nothing.
        let says = |noted: &&Noted| noted.call.ended.is_some() || noted.call.op.operation.is_write();
        let said: Vec<_> = noted.iter().filter(says).collect();
        let calls: Vec<_> = said.iter().map(|noted| noted.call.clone()).collect();
        let misfit = said[last_state(&None, &calls).err()?];
        let TimedCall { op, began, .. } = &misfit.call;
        let answer = op.answer.as_deref().unwrap_or_default();
        let text = format!(
            "{key}: `{}` has no place after {} ms by connection {}: {}",
            answer.chars().take(80).collect::<String>(),
            began / 1000,
            misfit.connection,
            op.kind(),
        );
        Some(BrokenKey { key, text })
    });
    broken.collect()
}
