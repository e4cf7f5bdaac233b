//! The ledger: a program of the Linux guest that writes numbered entries to its disk and acknowledges each over TCP
//! once it is durable. After a crash it says whether all that was acknowledged is there, and nothing else is damaged.
//! One static program, started by the guest's /init.
//!
//!     ft-ledger slots|tree|wal|rollback DIRECTORY

mod content;
mod durable;
mod serve;
mod slots;
mod sqlite;
mod table;
mod tree;
mod trouble;

use durable::sync_directory;
use serve::Ledger;
use sqlite::Sqlite;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use table::Journal;
use trouble::Trouble;

/// In which way the entries are kept.
#[derive(Clone, Copy)]
enum Work {
    Slots,
    Tree,
    Table(Journal),
}

impl Work {
    fn named(name: &str) -> Option<Self> {
        match name {
            "slots" => Some(Self::Slots),
            "tree" => Some(Self::Tree),
            "wal" => Some(Self::Table(Journal::WriteAhead)),
            "rollback" => Some(Self::Table(Journal::Rollback)),
            _ => None,
        }
    }
}

/// The ledger, open for writing.
enum Writer {
    Slots(slots::Slots),
    Tree(tree::Tree),
    Table(Sqlite),
}

struct OnDisk {
    work: Work,
    directory: PathBuf,
    writer: Writer,
    last: u64,
}

impl OnDisk {
    fn open(work: Work, directory: &Path) -> Result<Self, Trouble> {
        let last = verify(work, directory, 0)?;
        let mut writer = match work {
            Work::Slots => Writer::Slots(slots::Slots::open(directory)?),
            Work::Tree => Writer::Tree(tree::Tree::open(directory)?),
            Work::Table(journal) => {
                let mut database = Sqlite::open(&directory.join(table::FILE))?;
                table::prepare(&mut database, journal)?;
                Writer::Table(database)
            }
        };
        if let (Writer::Tree(tree), 1..) = (&mut writer, last) {
            // It may be half done.
            tree.commit(last)?;
        }
        Ok(Self { work, directory: directory.to_owned(), writer, last })
    }
}

impl Ledger for OnDisk {
    fn write(&mut self) -> Result<u64, Trouble> {
        let number = self.last + 1;
        match &mut self.writer {
            Writer::Slots(slots) => slots.commit(number)?,
            Writer::Tree(tree) => tree.commit(number)?,
            Writer::Table(database) => table::commit(database, number)?,
        }
        self.last = number;
        Ok(number)
    }

    fn check(&mut self, acknowledged: u64) -> Result<u64, Trouble> {
        // What the kernel remembers says nothing about the disk.
        let caches = Path::new("/proc/sys/vm/drop_caches");
        sync_directory(&self.directory)?;
        std::fs::write(caches, "3").map_err(Trouble::system("write", caches))?;
        verify(self.work, &self.directory, acknowledged)
    }
}

fn verify(work: Work, directory: &Path, acknowledged: u64) -> Result<u64, Trouble> {
    match work {
        Work::Slots => slots::verify(directory),
        Work::Tree => tree::verify(directory, acknowledged),
        Work::Table(_) => table::verify(&mut Sqlite::open(&directory.join(table::FILE))?),
    }
}

fn main() {
    let words: Vec<_> = std::env::args().collect();
    let [_, name, directory] = &words[..] else { fail("wants a way of keeping entries, and a directory") };
    let Some(work) = Work::named(name) else { fail(&format!("knows no {name}")) };
    let ledger = OnDisk::open(work, Path::new(directory));
    match &ledger {
        Ok(ledger) => println!("ft-ledger: {name}, entry {} is the last", ledger.last),
        Err(trouble) => println!("ft-ledger: {name}: {trouble}"),
    }
    match TcpListener::bind(("0.0.0.0", serve::PORT)) {
        Ok(listener) => serve::serve(&listener, ledger),
        Err(error) => fail(&format!("cannot listen on port {}: {error}", serve::PORT)),
    }
}

fn fail(why: &str) -> ! {
    eprintln!("ft-ledger: {why}");
    std::process::exit(1)
}
