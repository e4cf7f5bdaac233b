//! Parses request lines.

use super::load::{Load, Pattern};
use super::{KEY_MAX, SPIN_MS_MAX};
use core::fmt;

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Is anybody there?
    Ping,
    /// Sets a key.
    Set {
        /// The key.
        key: &'a [u8],
        /// Its new value.
        value: &'a [u8],
    },
    /// Asks for a key's value.
    Get {
        /// The key.
        key: &'a [u8],
    },
    /// Appends to a key's value.
    Append {
        /// The key.
        key: &'a [u8],
        /// What is appended.
        value: &'a [u8],
    },
    /// Adds one to a decimal number; a missing key counts as 0.
    Incr {
        /// The key.
        key: &'a [u8],
    },
    /// Removes a key.
    Del {
        /// The key.
        key: &'a [u8],
    },
    /// Asks for the store's digest.
    Digest,
    /// Asks for the digest of the load's memory.
    MemDigest,
    /// Sets the memory load.
    Load(Load),
    /// Asks for pure computation.
    Spin {
        /// For how long, in milliseconds.
        ms: u64,
    },
    /// Asks for counters.
    Stats,
    /// Ends the machine's run.
    Power(Power),
}

/// Ways to end the machine's run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// Powers off.
    Off,
    /// Resets.
    Reset,
    /// Does something that no machine survives.
    Crash,
    /// Says that it has panicked, and does nothing more.
    Panic,
    /// Starts the watchdog, and feeds it no more.
    Hang,
}

/// Why a line is not a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// Nothing on the line.
    Empty,
    /// Bytes that are not printable ASCII.
    Unprintable,
    /// No such command.
    Unknown,
    /// The key is missing, empty or longer than [`KEY_MAX`].
    Key,
    /// The value is missing.
    Value,
    /// There is more on the line than the command takes.
    Excess,
    /// A number is missing, malformed or out of range.
    Number(&'static str),
    /// No such pattern of the memory load.
    Pattern,
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("empty line"),
            Self::Unprintable => f.write_str("bytes outside printable ASCII"),
            Self::Unknown => f.write_str("unknown command"),
            Self::Key => write!(f, "key: want a word of 1 to {KEY_MAX} bytes"),
            Self::Value => f.write_str("value missing"),
            Self::Excess => f.write_str("too many words"),
            Self::Number(what) => write!(f, "{what}: missing, not a decimal number, or out of range"),
            Self::Pattern => f.write_str("pattern: want count, random or text"),
        }
    }
}

impl<'a> Command<'a> {
    /// Parses a line without its line end.
    pub fn parse(line: &'a [u8]) -> Result<Self, RequestError> {
        if line.iter().any(|byte| !(b' '..=b'~').contains(byte)) {
            return Err(RequestError::Unprintable);
        }
        let (verb, mut rest) = split(line);
        let command = match verb {
            b"" => return Err(RequestError::Empty),
            b"PING" => Self::Ping,
            // The value is all the rest: these two leave nothing for the check below.
            b"SET" => {
                let (key, value) = key_and_value(rest)?;
                return Ok(Self::Set { key, value });
            }
            b"APPEND" => {
                let (key, value) = key_and_value(rest)?;
                return Ok(Self::Append { key, value });
            }
            b"GET" => Self::Get { key: key(&mut rest)? },
            b"INCR" => Self::Incr { key: key(&mut rest)? },
            b"DEL" => Self::Del { key: key(&mut rest)? },
            b"DIGEST" => Self::Digest,
            b"MEMDIGEST" => Self::MemDigest,
            b"LOAD" => Self::Load(load(&mut rest)?),
            b"SPIN" => Self::Spin { ms: number(&mut rest, "milliseconds", SPIN_MS_MAX)? },
            b"STATS" => Self::Stats,
            b"POWEROFF" => Self::Power(Power::Off),
            b"RESET" => Self::Power(Power::Reset),
            b"CRASH" => Self::Power(Power::Crash),
            b"PANIC" => Self::Power(Power::Panic),
            b"HANG" => Self::Power(Power::Hang),
            _ => return Err(RequestError::Unknown),
        };
        if rest.is_some() { Err(RequestError::Excess) } else { Ok(command) }
    }
}

/// The text up to the first space, and what is after that space.
fn split(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    match text.iter().position(|&byte| byte == b' ') {
        Some(space) => (&text[..space], Some(&text[space + 1..])),
        None => (text, None),
    }
}

fn word<'a>(rest: &mut Option<&'a [u8]>) -> Option<&'a [u8]> {
    let (word, left) = split((*rest)?);
    *rest = left;
    Some(word)
}

fn key<'a>(rest: &mut Option<&'a [u8]>) -> Result<&'a [u8], RequestError> {
    word(rest).filter(|key| (1..=KEY_MAX).contains(&key.len())).ok_or(RequestError::Key)
}

fn key_and_value(mut rest: Option<&[u8]>) -> Result<(&[u8], &[u8]), RequestError> {
    let key = key(&mut rest)?;
    Ok((key, rest.ok_or(RequestError::Value)?))
}

fn number(rest: &mut Option<&[u8]>, what: &'static str, max: u64) -> Result<u64, RequestError> {
    word(rest).and_then(decimal).filter(|number| *number <= max).ok_or(RequestError::Number(what))
}

/// Reads an unsigned decimal number: digits alone, no sign, nothing that overflows.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit <= 9)?;
        number.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

fn load(rest: &mut Option<&[u8]>) -> Result<Load, RequestError> {
    let pages_per_second = number(rest, "pages per second", Load::RATE_MAX)?;
    let working_set_pages = number(rest, "working set pages", u64::from(u32::MAX))?;
    if pages_per_second > 0 && working_set_pages == 0 {
        return Err(RequestError::Number("working set pages"));
    }
    let pattern = match word(rest) {
        None | Some(b"count") => Pattern::Count,
        Some(b"random") => Pattern::Random,
        Some(b"text") => Pattern::Text,
        Some(_) => return Err(RequestError::Pattern),
    };
    Ok(Load { pages_per_second, working_set_pages, pattern })
}
