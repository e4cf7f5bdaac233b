//! A ledger in an SQLite database, `ledger.db`: each entry is one transaction over two tables and an index, and is kept
//! once COMMIT has returned. The newest 1000 entries are kept.
//!
//! With a write-ahead log `synchronous = FULL` syncs at each COMMIT. With a rollback journal that is deleted, FULL does
//! not sync the directory after the deletion, and a journal that comes back takes the transaction back: EXTRA does.

use super::content::{Draw, checksum};
use super::trouble::Trouble;

/// The file's name in the ledger's directory.
pub const FILE: &str = "ledger.db";
const KEPT: u64 = 1000;
/// Entries that are read at a time.
const BATCH: u64 = 100;
const BODY_MAX: usize = 2000;

/// How the database comes back after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journal {
    /// By a write-ahead log.
    WriteAhead,
    /// By a rollback journal.
    Rollback,
}

/// A database that answers in text.
pub trait Database {
    /// Executes a statement, or several, and gives the rows of the answer.
    fn rows(&mut self, sql: &str) -> Result<Vec<Vec<String>>, Trouble>;
}

/// Makes what is not there yet.
pub fn prepare(database: &mut dyn Database, journal: Journal) -> Result<(), Trouble> {
    let (mode, synchronous) = match journal {
        Journal::WriteAhead => ("wal", "FULL"),
        Journal::Rollback => ("delete", "EXTRA"),
    };
    let answer = database.rows(&format!("PRAGMA journal_mode = {mode}"))?;
    if answer != [[mode]] {
        return Err(Trouble::Database(format!("journal mode {mode}: {answer:?}")));
    }
    // A log that is emptied often is written back often.
    let sql = format!(
        "PRAGMA synchronous = {synchronous}; PRAGMA wal_autocheckpoint = 50;
         BEGIN IMMEDIATE;
         CREATE TABLE IF NOT EXISTS entry (number INTEGER PRIMARY KEY, sum TEXT NOT NULL, body BLOB NOT NULL);
         CREATE INDEX IF NOT EXISTS entry_sum ON entry (sum);
         CREATE TABLE IF NOT EXISTS account (id INTEGER PRIMARY KEY CHECK (id = 1), last INTEGER NOT NULL);
         INSERT OR IGNORE INTO account VALUES (1, 0);
         COMMIT"
    );
    database.rows(&sql).map(drop)
}

/// Writes an entry for good.
pub fn commit(database: &mut dyn Database, number: u64) -> Result<(), Trouble> {
    let (sum, body) = row(number);
    let sql = format!(
        "BEGIN IMMEDIATE;
         INSERT INTO entry VALUES ({number}, '{sum}', x'{body}');
         UPDATE account SET last = {number} WHERE last = {number} - 1;
         DELETE FROM entry WHERE number <= {number} - {KEPT};
         COMMIT"
    );
    database.rows(&sql).map(drop)
}

/// Sum and body of an entry, in hexadecimal digits.
fn row(number: u64) -> (String, String) {
    let mut draw = Draw::of(number);
    let bytes = draw.between(1, BODY_MAX);
    let body = draw.bytes(bytes);
    let digits = body.iter().map(|byte| format!("{byte:02X}")).collect();
    (format!("{:016x}", checksum(&body)), digits)
}

/// Reads all, and says which entry is the last.
pub fn verify(database: &mut dyn Database) -> Result<u64, Trouble> {
    let answer = database.rows("PRAGMA integrity_check")?;
    if answer != [["ok"]] {
        return Trouble::damage(format!("integrity_check: {answer:?}"));
    }
    if database.rows("SELECT name FROM sqlite_schema WHERE name = 'account'")?.is_empty() {
        return Ok(0);
    }
    let last = number(&database.rows("SELECT last FROM account")?)?;
    let oldest = (last + 1).saturating_sub(KEPT).max(1);
    let mut count = 0;
    for begin in (oldest..=last).step_by(BATCH as usize) {
        let end = (begin + BATCH - 1).min(last);
        let sql = format!(
            "SELECT number, sum, hex(body) FROM entry WHERE number BETWEEN {begin} AND {end} ORDER BY number"
        );
        let rows = database.rows(&sql)?;
        for (expected, found) in (begin..=end).zip(&rows) {
            let (sum, body) = row(expected);
            if *found != [expected.to_string(), sum, body] {
                return Trouble::damage(format!(
                    "entry {expected} is not as it was written; the last is {last}"
                ));
            }
        }
        count += rows.len() as u64;
    }
    let all = number(&database.rows("SELECT count(*) FROM entry")?)?;
    if count != last + 1 - oldest || all != count {
        return Trouble::damage(format!("{all} entries, {count} of them from {oldest} to {last}"));
    }
    Ok(last)
}

fn number(rows: &[Vec<String>]) -> Result<u64, Trouble> {
    let number = rows.first().and_then(|row| row.first()).and_then(|text| text.parse().ok());
    number.ok_or_else(|| Trouble::Damage(format!("{rows:?} is no number")))
}
