//! Lets a ledger write entries and notes each acknowledgement, so that whoever comes after a crash knows what must be
//! there. Before and after it has the guest read its disk.

use super::acknowledged;
use crate::kv::connection::{Connection, ConnectionError};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long it looks away from what it is asked to do.
const GLANCE: Duration = Duration::from_millis(50);

/// What is to be followed.
pub struct Following {
    /// The ledger's address.
    pub addr: SocketAddr,
    /// Where the last number is noted that was acknowledged, now or by an earlier client.
    pub noted: PathBuf,
    /// An answer that takes longer does not come. A check reads all of the ledger.
    pub timeout: Duration,
}

/// What a client has seen.
#[derive(Debug, Default, Serialize)]
pub struct Followed {
    /// The last entry that was acknowledged.
    pub acked: u64,
    /// Acknowledgements of this client.
    pub acks: u64,
    /// The longest wait for one, in milliseconds.
    pub gap_ms: u64,
    /// Whether all was still there at the end.
    pub checked: bool,
}

/// Why a ledger cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum FollowingError {
    /// The connection is lost.
    #[error("after entry {acked}: {why}")]
    Connection {
        /// The last entry that was acknowledged.
        acked: u64,
        /// Why.
        why: ConnectionError,
    },
    /// Acknowledged entries are gone.
    #[error("LOST: entry {acked} was acknowledged, and entry {last} is the last")]
    Lost {
        /// Acknowledged.
        acked: u64,
        /// There.
        last: u64,
    },
    /// The guest has found or met something else that is wrong.
    #[error("after entry {acked} the guest says: {answer}")]
    Answer {
        /// The last entry that was acknowledged.
        acked: u64,
        /// Its words.
        answer: String,
    },
    /// The note cannot be read or written.
    #[error("cannot note what is acknowledged: {0}")]
    Note(#[from] std::io::Error),
}

struct Follower {
    connection: Connection,
    timeout: Duration,
    note: File,
    acked: u64,
}

/// Follows a ledger until `stop` says so.
pub fn follow(plan: &Following, stop: &dyn Fn() -> bool) -> Result<Followed, FollowingError> {
    let acked = acknowledged(&plan.noted)?;
    let lost = |why| FollowingError::Connection { acked, why };
    let connection = Connection::open(plan.addr, plan.timeout).map_err(lost)?;
    let note = OpenOptions::new().create(true).truncate(false).write(true).open(&plan.noted)?;
    let mut follower = Follower { connection, timeout: plan.timeout, note, acked };
    // What was written and not acknowledged may be there as well.
    let last = follower.check()?;
    let mut followed = Followed { acked, ..Followed::default() };
    follower.run(last + 1, stop, &mut followed)?;
    follower.check()?;
    followed.checked = true;
    Ok(followed)
}

impl Follower {
    fn check(&mut self) -> Result<u64, FollowingError> {
        let acked = self.acked;
        let answer = self.connection.call(&format!("CHECK {acked}"), self.timeout);
        let answer = answer.map_err(|why| FollowingError::Connection { acked, why })?;
        match answer.strip_prefix("LAST ").and_then(|number| number.parse().ok()) {
            Some(last) if last < acked => Err(FollowingError::Lost { acked, last }),
            Some(last) => Ok(last),
            None => Err(FollowingError::Answer { acked, answer }),
        }
    }

    /// Takes acknowledgements, each the one after the last, until there is enough.
    fn run(
        &mut self,
        mut next: u64,
        stop: &dyn Fn() -> bool,
        seen: &mut Followed,
    ) -> Result<(), FollowingError> {
        let lost = |acked, why| FollowingError::Connection { acked, why };
        self.connection.send("RUN").map_err(|why| lost(self.acked, why))?;
        let (mut heard, mut is_held) = (Instant::now(), false);
        loop {
            if !is_held && stop() {
                self.connection.send("HOLD").map_err(|why| lost(self.acked, why))?;
                is_held = true;
            }
            let answer = self.connection.receive(GLANCE).map_err(|why| lost(self.acked, why))?;
            let Some(answer) = answer else {
                if heard.elapsed() > self.timeout {
                    return Err(lost(self.acked, ConnectionError::TimedOut(self.timeout)));
                }
                continue;
            };
            if answer.strip_prefix("ACK ").and_then(|number| number.parse().ok()) == Some(next) {
                self.note.write_all_at(format!("{next}\n").as_bytes(), 0)?;
                self.acked = next;
                seen.acked = next;
                seen.acks += 1;
                seen.gap_ms = seen.gap_ms.max(heard.elapsed().as_millis() as u64);
                (heard, next) = (Instant::now(), next + 1);
            } else if is_held && answer.starts_with("HELD ") {
                return Ok(());
            } else {
                return Err(FollowingError::Answer { acked: self.acked, answer });
            }
        }
    }
}
