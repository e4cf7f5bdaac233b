//! The readers find what is missing, older than it may be, or damaged, and bear with what a crash leaves.

use super::content::last_in;
use super::slots::{self, SLOT_BYTES, SLOTS, Slots, record};
use super::table::{self, Database, Journal};
use super::tree::{self, PLACES, Tree};
use super::trouble::Trouble;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

fn damage(result: Result<u64, Trouble>) -> String {
    match result {
        Err(Trouble::Damage(text)) => text,
        other => panic!("no damage: {other:?}"),
    }
}

#[test]
fn the_newest_entry_of_a_place_is_known() {
    for last in 0..40_u64 {
        for place in 0..7 {
            let newest = (1..=last).rev().find(|number| number % 7 == place);
            assert_eq!(last_in(place, 7, last), newest, "{place} {last}");
        }
    }
}

fn write_slot(directory: &Path, place: u64, bytes: &[u8]) {
    let file = fs::OpenOptions::new().write(true).open(directory.join(slots::FILE)).unwrap();
    file.write_all_at(bytes, place * SLOT_BYTES as u64).unwrap();
}

#[test]
fn slots_that_are_not_as_they_were_written_are_found() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    assert_eq!(slots::verify(path).unwrap(), 0);
    let mut writer = Slots::open(path).unwrap();
    let last = SLOTS + 20;
    for number in 1..=last {
        writer.commit(number).unwrap();
        if number < 3 {
            assert_eq!(slots::verify(path).unwrap(), number);
        }
    }
    assert_eq!(slots::verify(path).unwrap(), last);

    // The next one is half-written.
    let next = record(last + 1);
    write_slot(path, (last + 1) % SLOTS, &next[..next.len() / 2]);
    assert_eq!(slots::verify(path).unwrap(), last);

    // A write that was lost: the older entry is there.
    write_slot(path, 7, &record(7));
    assert!(damage(slots::verify(path)).contains("slot 7 has Entry(7), not Entry(263)"));
    write_slot(path, 7, &record(SLOTS + 7));
    slots::verify(path).unwrap();

    // A flipped bit, in a body and in a slot that nobody writes.
    let mut flipped = record(100);
    flipped[40] ^= 1;
    write_slot(path, 100, &flipped);
    assert!(damage(slots::verify(path)).contains("slot 100 has Torn"));
    write_slot(path, 100, &record(101));
    assert!(damage(slots::verify(path)).contains("slot 100 has Entry(101)"));
    write_slot(path, 100, &record(100));
    slots::verify(path).unwrap();

    // A file that became shorter.
    let file = fs::OpenOptions::new().write(true).open(path.join(slots::FILE)).unwrap();
    file.set_len(200 * SLOT_BYTES as u64).unwrap();
    assert!(damage(slots::verify(path)).contains("has Nothing"));
}

#[test]
fn names_that_are_not_as_they_were_made_are_found() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    assert_eq!(tree::verify(path, 0).unwrap(), 0);
    let mut writer = Tree::open(path).unwrap();
    let last = PLACES + 5;
    for number in 1..=last {
        writer.commit(number).unwrap();
        assert_eq!(tree::verify(path, number).unwrap(), number);
    }
    let at = |directory: &str, place: u64| path.join(format!("tree/{directory}/{place}"));
    // Anything may be missing of the last one, if it was not acknowledged.
    fs::remove_file(at("b", 5)).unwrap();
    assert_eq!(tree::verify(path, last - 1).unwrap(), last);
    assert!(damage(tree::verify(path, last)).contains("place 5"));
    writer.commit(last).unwrap();
    tree::verify(path, last).unwrap();

    // Of older ones nothing, whoever knows of them.
    fs::remove_file(at("b", 3)).unwrap();
    assert!(damage(tree::verify(path, 0)).contains("place 3"));
    fs::hard_link(at("a", 2), at("b", 3)).unwrap();
    assert!(damage(tree::verify(path, 0)).contains("place 3"));
    fs::remove_file(at("b", 3)).unwrap();
    fs::hard_link(at("a", 3), at("b", 3)).unwrap();
    tree::verify(path, last).unwrap();

    // A directory that comes back, and one that is gone.
    let (older, made) = (path.join("tree/c/3-3"), path.join(format!("tree/c/3-{}", PLACES + 3)));
    fs::create_dir(&older).unwrap();
    assert!(damage(tree::verify(path, last)).contains("place 3"));
    fs::remove_dir(&older).unwrap();
    fs::remove_dir_all(&made).unwrap();
    assert!(damage(tree::verify(path, last)).contains("place 3"));
    fs::create_dir(&made).unwrap();
    tree::verify(path, last).unwrap();

    // A file that is shorter than it was when it was synced.
    fs::OpenOptions::new().write(true).open(at("a", 20)).unwrap().set_len(8).unwrap();
    assert!(damage(tree::verify(path, last)).contains("no entry's file"));
}

/// A database that is a script: what it is to be asked, and what it answers.
struct Canned(Vec<(&'static str, Vec<Vec<String>>)>);

impl Database for Canned {
    fn rows(&mut self, sql: &str) -> Result<Vec<Vec<String>>, Trouble> {
        let found = self.0.iter().find(|(part, _)| sql.contains(part));
        Ok(found.map(|(_, rows)| rows.clone()).unwrap_or_default())
    }
}

fn texts(rows: &[&[&str]]) -> Vec<Vec<String>> {
    rows.iter().map(|row| row.iter().map(|text| (*text).to_owned()).collect()).collect()
}

#[test]
fn a_database_that_misses_an_entry_or_fails_its_own_check_is_found() {
    let sound = || ("integrity_check", texts(&[&["ok"]]));
    let schema = || ("sqlite_schema", texts(&[&["account"]]));
    assert_eq!(table::verify(&mut Canned(vec![sound()])).unwrap(), 0);
    let broken = vec![("integrity_check", texts(&[&["row 3 missing from index entry_sum"]]))];
    assert!(damage(table::verify(&mut Canned(broken))).contains("row 3 missing"));
    let short = vec![sound(), schema(), ("last FROM", texts(&[&["2"]])), ("count", texts(&[&["1"]]))];
    assert!(damage(table::verify(&mut Canned(short))).contains("1 entries, 0 of them from 1 to 2"));
    let other = ("BETWEEN", texts(&[&["1", "0", "00"]]));
    let wrong = vec![sound(), schema(), ("last FROM", texts(&[&["1"]])), other];
    assert!(damage(table::verify(&mut Canned(wrong))).contains("entry 1 is not as it was written"));
}

#[test]
fn a_database_that_refuses_its_journal_is_not_written_to() {
    let mut refusing = Canned(vec![("journal_mode", texts(&[&["memory"]]))]);
    assert!(table::prepare(&mut refusing, Journal::Rollback).is_err());
}
