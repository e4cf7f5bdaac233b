//! The answers that the service must give. One client owns its keys and has one request under way at a time, so every
//! answer is determined by the answers before it: a key's value is known exactly, except after a request whose answer
//! never came, which may have been executed once or not at all.
//!
//! An answer that would have been right at an earlier state of the key means that acknowledged writes are lost, and
//! shows their number; every other unexpected answer is plainly wrong.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

/// An operation on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Adds one.
    Increment,
    /// Appends a text.
    Append(String),
    /// Sets to a text.
    Set(String),
    /// Removes.
    Delete,
    /// Reads.
    Get,
}

impl Operation {
    /// The request line.
    pub fn request(&self, key: &str) -> String {
        match self {
            Self::Increment => format!("INCR {key}"),
            Self::Append(text) => format!("APPEND {key} {text}"),
            Self::Set(text) => format!("SET {key} {text}"),
            Self::Delete => format!("DEL {key}"),
            Self::Get => format!("GET {key}"),
        }
    }

    /// Whether an acknowledgement of it is a promise.
    pub fn is_write(&self) -> bool {
        !matches!(self, Self::Get)
    }

    /// The value after it.
    pub(super) fn apply(&self, value: Option<&str>) -> Option<String> {
        match self {
            Self::Increment => Some((number(value) + 1).to_string()),
            Self::Append(text) => Some(value.unwrap_or("").to_owned() + text),
            Self::Set(text) => Some(text.clone()),
            Self::Delete => None,
            Self::Get => value.map(str::to_owned),
        }
    }

    /// Whether `answer` is right for a key of this value.
    pub(super) fn is_answered(&self, value: Option<&str>, answer: &str) -> bool {
        self.answer_fits(&Fingerprint::of(value), answer)
    }

    /// Whether `answer` is right for a key in the state `before`.
    fn answer_fits(&self, before: &Fingerprint, answer: &str) -> bool {
        match self {
            Self::Increment => answer == format!("INT {}", before.number + 1),
            Self::Append(text) => answer == format!("OK {}", before.bytes + text.len()),
            Self::Set(_) => answer == "OK",
            Self::Delete => answer == if before.present { "OK 1" } else { "OK 0" },
            Self::Get => match answer.strip_prefix("VALUE ") {
                Some(value) => before.present && Fingerprint::of(Some(value)) == *before,
                None => answer == "NONE" && !before.present,
            },
        }
    }
}

fn number(value: Option<&str>) -> u64 {
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// As much of a value as it takes to check answers by.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fingerprint {
    present: bool,
    bytes: usize,
    number: u64,
    hash: u64,
}

impl Fingerprint {
    fn of(value: Option<&str>) -> Self {
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        Self {
            present: value.is_some(),
            bytes: value.map_or(0, str::len),
            number: number(value),
            hash: hasher.finish(),
        }
    }
}

/// What an answer says about the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is as it must be.
    Right,
    /// It was right before the last `writes` acknowledged writes to the key.
    Lost {
        /// How many.
        writes: u64,
    },
    /// It never was right.
    Wrong,
}

/// Past states kept of a key: a take-over loses epochs, which are shorter than this by far.
const PAST_MAX: usize = 100_000;

/// A key and what is known about its value.
#[derive(Debug)]
pub struct Key {
    /// Its name.
    pub name: String,
    value: Option<String>,
    /// The other value that it may have: the one after a request that was not answered.
    maybe: Option<Option<String>>,
    /// The states before the last acknowledged writes, the newest last.
    past: VecDeque<Fingerprint>,
    /// After a loss the value is not known until it is read.
    unknown: bool,
}

impl Key {
    /// A key that does not exist yet.
    pub fn new(name: String) -> Self {
        Self { name, value: None, maybe: None, past: VecDeque::new(), unknown: false }
    }

    /// Whether nothing but a read makes sense now.
    pub fn must_be_read(&self) -> bool {
        self.unknown
    }

    /// Bytes of its value.
    pub fn bytes(&self) -> usize {
        self.value.as_ref().map_or(0, String::len)
    }

    /// The operation was sent and will not be answered.
    pub fn unanswered(&mut self, operation: &Operation) {
        if operation.is_write() && !self.unknown {
            // A second one in a row without an answer in between: three values are possible. Read first.
            match self.maybe {
                Some(_) => self.unknown = true,
                None => self.maybe = Some(operation.apply(self.value.as_deref())),
            }
        }
    }

    /// Checks an answer and goes on from what it says.
    pub fn check(&mut self, operation: &Operation, answer: &str) -> Verdict {
        if self.unknown {
            return self.adopt(operation, answer);
        }
        // What may or may not have happened did not happen, or did: whichever the answer fits.
        let before = Fingerprint::of(self.value.as_deref());
        if operation.answer_fits(&before, answer) {
            self.advance(before, operation);
            self.maybe = None;
            return Verdict::Right;
        }
        if let Some(maybe) = self.maybe.take() {
            let other = Fingerprint::of(maybe.as_deref());
            if operation.answer_fits(&other, answer) {
                // It has been seen now, and must not be forgotten.
                self.remember(before);
                self.value = maybe;
                self.advance(other, operation);
                return Verdict::Right;
            }
        }
        self.unknown = true;
        let age = self.past.iter().rev().position(|state| operation.answer_fits(state, answer));
        match age {
            Some(age) => {
                self.past.truncate(self.past.len() - 1 - age);
                Verdict::Lost { writes: age as u64 + 1 }
            }
            None => Verdict::Wrong,
        }
    }

    fn advance(&mut self, before: Fingerprint, operation: &Operation) {
        self.value = operation.apply(self.value.as_deref());
        if operation.is_write() {
            self.remember(before);
        }
    }

    fn remember(&mut self, before: Fingerprint) {
        self.past.push_back(before);
        if self.past.len() > PAST_MAX {
            self.past.pop_front();
        }
    }

    /// Takes over what is read: the loss was reported already.
    fn adopt(&mut self, operation: &Operation, answer: &str) -> Verdict {
        match (operation, answer.strip_prefix("VALUE ")) {
            (Operation::Get, Some(value)) => self.value = Some(value.to_owned()),
            (Operation::Get, None) if answer == "NONE" => self.value = None,
            _ => return Verdict::Wrong,
        }
        self.unknown = false;
        self.maybe = None;
        Verdict::Right
    }
}

#[cfg(test)]
mod tests {
    use super::Operation::{Append, Delete, Get, Increment, Set};
    use super::*;

    fn key_after(history: &[(Operation, &str)]) -> Key {
        let mut key = Key::new("k".to_owned());
        for (operation, answer) in history {
            assert_eq!(key.check(operation, answer), Verdict::Right, "{operation:?} {answer}");
        }
        key
    }

    #[test]
    fn answers_as_the_service_gives_them_are_right() {
        key_after(&[
            (Get, "NONE"),
            (Increment, "INT 1"),
            (Increment, "INT 2"),
            (Get, "VALUE 2"),
            (Append("x".into()), "OK 2"),
            (Get, "VALUE 2x"),
            (Set(String::new()), "OK"),
            (Get, "VALUE "),
            (Delete, "OK 1"),
            (Delete, "OK 0"),
            (Append("y".into()), "OK 1"),
        ]);
    }

    #[test]
    fn a_state_older_than_acknowledged_is_a_loss_of_so_many_writes() {
        let counted = [(Increment, "INT 1"), (Increment, "INT 2"), (Increment, "INT 3")];
        assert_eq!(key_after(&counted).check(&Increment, "INT 2"), Verdict::Lost { writes: 2 });
        assert_eq!(key_after(&counted).check(&Get, "VALUE 2"), Verdict::Lost { writes: 1 });
        assert_eq!(key_after(&counted).check(&Get, "NONE"), Verdict::Lost { writes: 3 });
        let set = [(Set("a".into()), "OK"), (Set("b".into()), "OK")];
        assert_eq!(key_after(&set).check(&Get, "VALUE a"), Verdict::Lost { writes: 1 });
        let appended = [(Append("ab".into()), "OK 2"), (Delete, "OK 1")];
        assert_eq!(key_after(&appended).check(&Append("c".into()), "OK 3"), Verdict::Lost { writes: 1 });
    }

    #[test]
    fn what_never_was_is_wrong() {
        let counted = [(Increment, "INT 1"), (Increment, "INT 2")];
        for answer in ["INT 4", "INT x", "ERR full", "", "VALUE 3"] {
            assert_eq!(key_after(&counted).check(&Increment, answer), Verdict::Wrong, "{answer}");
        }
        assert_eq!(key_after(&[(Set("a".into()), "OK")]).check(&Get, "VALUE c"), Verdict::Wrong);
    }

    #[test]
    fn a_loss_is_counted_once_and_the_history_goes_on_from_what_is_read() {
        let mut key = key_after(&[(Increment, "INT 1"), (Increment, "INT 2"), (Increment, "INT 3")]);
        assert_eq!(key.check(&Get, "VALUE 1"), Verdict::Lost { writes: 2 });
        assert!(key.must_be_read());
        assert_eq!(key.check(&Get, "VALUE 1"), Verdict::Right);
        assert_eq!(key.check(&Increment, "INT 2"), Verdict::Right);
    }

    #[test]
    fn an_unanswered_write_happened_once_or_not_at_all() {
        for (answer, verdict) in [
            ("INT 2", Verdict::Right),
            ("INT 3", Verdict::Right),
            ("INT 4", Verdict::Wrong),
            ("INT 1", Verdict::Lost { writes: 1 }),
        ] {
            let mut key = key_after(&[(Increment, "INT 1")]);
            key.unanswered(&Increment);
            assert_eq!(key.check(&Increment, answer), verdict, "{answer}");
        }
        let mut key = key_after(&[(Set("a".into()), "OK")]);
        key.unanswered(&Set("b".into()));
        assert_eq!(key.check(&Get, "VALUE b"), Verdict::Right);
        assert_eq!(key.check(&Get, "VALUE a"), Verdict::Lost { writes: 1 });
    }
}
