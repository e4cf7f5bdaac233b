//! Reads the ledger in an image that nobody uses: as the next boot would find it, on a copy. The file system's journal
//! is carried out, `e2fsck -fn` has to find nothing, and the entries have to be there. Needs e2fsprogs, and sqlite3
//! for the ledgers that are databases; no root.

use super::table::{self, Database};
use super::trouble::Trouble;
use super::{slots, tree};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// In which way the entries of an image are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Keeping {
    /// A file of slots.
    Slots,
    /// Names of files and directories.
    Tree,
    /// SQLite with a write-ahead log.
    Wal,
    /// SQLite with a rollback journal.
    Rollback,
}

/// What the guest has seen of its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// Each request was done.
    Well,
    /// Requests failed: the file system has noted that.
    Failing,
}

/// What e2fsck says of a file system that was told of errors, besides.
const OF_ERRORS: [&str; 2] = ["contains a file system with errors, check forced", " files ("];
/// What e2fsck may do before the real check: what a mount does too.
const MOUNTS_DO: [&str; 5] = [
    "recovering journal",
    "Clearing orphaned inode",
    "Truncating orphaned inode",
    "Setting free",
    ": clean, ",
];

/// Reads an image, and says which entry is the last.
pub fn read_image(image: &Path, keeping: Keeping, past: Past, acknowledged: u64) -> Result<u64, Trouble> {
    let directory = tempfile::tempdir().map_err(Trouble::system("make a directory for", image))?;
    let copy = directory.path().join("copy");
    let files = directory.path().join("files");
    std::fs::create_dir(&files).map_err(Trouble::system("make", &files))?;
    done(&run(Command::new("cp").arg("--sparse=always").arg(image).arg(&copy))?)?;
    mount_would(&copy, past)?;
    done(&run(Command::new("e2fsck").args(["-f", "-n"]).arg(&copy))?)?;
    // It ends with 0 whatever happens: what is missing is missed by those who read the ledger.
    run(Command::new("debugfs").arg("-R").arg(format!("rdump / {}", files.display())).arg(&copy))?;
    match keeping {
        Keeping::Slots => slots::verify(&files),
        Keeping::Tree => tree::verify(&files, acknowledged),
        Keeping::Wal | Keeping::Rollback => table::verify(&mut Cli(files.join(table::FILE))),
    }
}

/// Carries out the journal, and what was being deleted.
fn mount_would(copy: &Path, past: Past) -> Result<(), Trouble> {
    let output = run(Command::new("e2fsck").arg("-p").arg(copy))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let usual = match past {
        Past::Well => &MOUNTS_DO[..],
        Past::Failing => &[&MOUNTS_DO[..], &OF_ERRORS].concat(),
    };
    let is_usual = |line: &str| usual.iter().any(|usual| line.contains(usual));
    match output.status.code() {
        Some(0 | 1) if said.lines().all(is_usual) => Ok(()),
        _ => Trouble::damage(format!("e2fsck -p: {}", one_line(&output))),
    }
}

fn run(command: &mut Command) -> Result<Output, Trouble> {
    let name = PathBuf::from(command.get_program());
    command.output().map_err(Trouble::system("run", &name))
}

fn done(output: &Output) -> Result<(), Trouble> {
    if output.status.success() { Ok(()) } else { Trouble::damage(one_line(output)) }
}

fn one_line(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&text).lines().collect::<Vec<_>>().join("; ")
}

/// The program sqlite3 on a database file.
struct Cli(PathBuf);

impl Database for Cli {
    fn rows(&mut self, sql: &str) -> Result<Vec<Vec<String>>, Trouble> {
        let output = run(Command::new("sqlite3").args(["-bail", "-noheader"]).arg(&self.0).arg(sql))?;
        if !output.status.success() {
            return Err(Trouble::Database(one_line(&output)));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().map(|line| line.split('|').map(str::to_owned).collect()).collect())
    }
}
