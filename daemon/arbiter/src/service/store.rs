//! The cells on disk: one file, a [redb](https://docs.rs/redb) database.
//!
//! Three tables. `cells`: a VM's name to the [record](super::record) of its cell. `history`: its last changes. `meta`:
//! the format's version, and a counter that each commit moves; probes write nothing else. The store of a member of
//! several has `registers` in the place of `cells`, and says in `set` who they are.
//!
//! What is told must neither vanish nor go back, whatever a bit of the file becomes:
//! - All checksums of the file are verified when it is opened, and each record has one of its own, which also says
//!   whose it is. From then on the cells are in memory too, and answers come from there: the file is only written.
//! - redb alternates between two commit slots; a slot that is damaged, or a flipped bit that says which one counts,
//!   takes the file back by one commit. So each change is committed twice, the second time with nothing new but the
//!   counter, and a store that was opened commits before it is used: what was told is in both slots.
//! - The file is made on purpose, once: a store that is not there, or is cut to nothing, is never taken for an empty
//!   one.

use super::message::{CellChange, Listed, ListedRegister};
use super::record;
use crate::Cell;
use crate::majority::{MemberSet, Register};
use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use thiserror::Error;

const CELLS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("cells");
const HISTORY: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("history");
const REGISTERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("registers");
const SET: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("set");
const MEMBERS: &str = "members";
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const FORMAT: &str = "format";
const COMMITS: &str = "commits";
/// The version of the tables.
pub(super) const STORE_VERSION: u64 = 1;
/// The version of a member's.
pub(super) const MEMBER_STORE_VERSION: u64 = 2;
/// Changes of each cell that are kept.
pub const CHANGES_KEPT: usize = 64;
/// Cells of one store, at most.
pub const VMS_MAX: usize = 4096;
const CACHE_BYTES: usize = 8 << 20;

/// What is wrong with a record.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub(super) struct RecordDamage(String);

/// What the cells hold, or what is wrong with a record.
pub(super) type Cells = BTreeMap<String, Result<Cell, RecordDamage>>;
/// What a member keeps, or what is wrong with a record.
pub(super) type Registers = BTreeMap<String, Result<Register, RecordDamage>>;
/// How the file is opened.
pub(super) type Opener = Arc<dyn Fn(&Path) -> Result<Database, DatabaseError> + Send + Sync>;

/// The cells of many VMs in one file. One process at a time has it.
pub struct CellStore {
    path: PathBuf,
    opener: Opener,
    database: Database,
    pub(super) cells: Cells,
    /// Whose member it is; none: it keeps cells alone.
    pub(super) set: Option<MemberSet>,
    pub(super) registers: Registers,
}

/// Why a store cannot be used.
#[derive(Debug, Error)]
pub enum CellStoreError {
    /// It is not there.
    #[error("{}: there is no store: mount what it is on, or make a new, empty one by --create", .0.display())]
    Missing(PathBuf),
    /// It is there already.
    #[error("{}: is there already; --create makes a new store only", .0.display())]
    Exists(PathBuf),
    /// Another process has it.
    #[error("{}: another process has it open: one store is served by one `ftd arbiter`", .0.display())]
    InUse(PathBuf),
    /// The file is damaged.
    #[error(
        "{}: the store is damaged: {reason}; it is not used. Find out which nodes have their VMs, restore the store \
         from nowhere older than now, or found a new one and run `ftd init --forget` on the stopped nodes",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The disk failed.
    #[error("{}: {at}: {reason}", path.display())]
    Storage {
        /// The file.
        path: PathBuf,
        /// The step that failed.
        at: &'static str,
        /// How.
        reason: String,
    },
}

impl CellStore {
    /// Makes a store without any cell.
    pub fn create(path: &Path) -> Result<(), CellStoreError> {
        Self::create_with(path, &BTreeMap::new())
    }

    /// Makes a store with these cells.
    pub fn create_with(path: &Path, cells: &BTreeMap<String, Cell>) -> Result<(), CellStoreError> {
        Self::make(path, cells, None)
    }

    /// Makes the store of a member of this set, which has promised and accepted this.
    pub fn create_member(
        path: &Path,
        set: &MemberSet,
        registers: &BTreeMap<String, Register>,
    ) -> Result<(), CellStoreError> {
        Self::make(path, &BTreeMap::new(), Some((set, registers)))
    }

    /// The file appears when it is whole.
    fn make(
        path: &Path,
        cells: &BTreeMap<String, Cell>,
        member: Option<(&MemberSet, &BTreeMap<String, Register>)>,
    ) -> Result<(), CellStoreError> {
        let failed = |at, e: &dyn fmt::Display| storage(path, at, e);
        if path.exists() {
            return Err(CellStoreError::Exists(path.to_owned()));
        }
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(".new");
        let unfinished = PathBuf::from(unfinished);
        match fs::remove_file(&unfinished) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(failed("removing an unfinished store", &e));
            }
            _ => {}
        }
        // Its user's alone: the directory may be open to others.
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&unfinished);
        let backend = file.map_err(Into::into).and_then(FileBackend::new);
        let database = backend.and_then(|backend| builder().create_with_backend(backend));
        let database = database.map_err(|e| failed("making it", &e))?;
        let found = || -> Result<(), redb::Error> {
            let at_unix_ms = now_unix_ms();
            let txn = begin(&database)?;
            let (mut known, mut history) = (txn.open_table(CELLS)?, txn.open_table(HISTORY)?);
            for (vm, cell) in cells {
                let bytes = record::encode(vm, &CellChange { at_unix_ms, cell: cell.clone() });
                known.insert(vm.as_str(), bytes.as_slice())?;
                history.insert((vm.as_str(), 0), bytes.as_slice())?;
            }
            drop((known, history));
            if let Some((set, registers)) = member {
                txn.open_table(SET)?.insert(MEMBERS, record::encode_set(set).as_slice())?;
                let mut known = txn.open_table(REGISTERS)?;
                for (vm, register) in registers {
                    known.insert(vm.as_str(), record::encode_register(vm, register).as_slice())?;
                }
            }
            let version = if member.is_some() { MEMBER_STORE_VERSION } else { STORE_VERSION };
            txn.open_table(META)?.insert(FORMAT, version)?;
            Ok(txn.commit()?)
        };
        found().map_err(|e| failed("making it", &e))?;
        database.close().map_err(|e| failed("making it", &e))?;
        let publish = || {
            File::open(&unfinished)?.sync_all()?;
            // Unlike a rename, a link replaces nothing.
            fs::hard_link(&unfinished, path)?;
            fs::remove_file(&unfinished)?;
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
        };
        publish().map_err(|e| failed("naming it", &e))
    }

    /// Opens a store, verifies all of it, and reads the cells.
    pub fn open(path: &Path) -> Result<Self, CellStoreError> {
        Self::open_by(path, Arc::new(|path| builder().open(path)))
    }

    pub(super) fn open_by(path: &Path, opener: Opener) -> Result<Self, CellStoreError> {
        forget_cached(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => CellStoreError::Missing(path.to_owned()),
            _ => storage(path, "opening it", &e),
        })?;
        let database = opener(path).map_err(|e| match e {
            DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
                CellStoreError::InUse(path.to_owned())
            }
            e => unusable(path, "opening it", e.into()),
        })?;
        let (cells, registers) = (Cells::new(), Registers::new());
        let mut store = Self { path: path.to_owned(), opener, database, cells, set: None, registers };
        store.load().map_err(|e| unusable(path, "reading it", e))??;
        // What is in one commit slot only could be taken back.
        store.commit_all(&[], &[]).map_err(|e| storage(path, "writing it", &e))?;
        Ok(store)
    }

    /// Whose member it is; none: it keeps cells alone.
    #[must_use]
    pub fn set(&self) -> Option<&MemberSet> {
        self.set.as_ref()
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How it was opened.
    pub(super) fn opener(&self) -> Opener {
        Arc::clone(&self.opener)
    }

    fn load(&mut self) -> Result<Result<(), CellStoreError>, redb::Error> {
        let damaged = |reason| Ok(Err(CellStoreError::Damaged { path: self.path.clone(), reason }));
        let txn = self.database.begin_read()?;
        match txn.open_table(META)?.get(FORMAT)?.map(|version| version.value()) {
            Some(STORE_VERSION) => {}
            Some(MEMBER_STORE_VERSION) => {
                let set = txn.open_table(SET)?.get(MEMBERS)?.map(|bytes| record::decode_set(bytes.value()));
                match set.unwrap_or_else(|| Err("it is not there".into())) {
                    Ok(set) => self.set = Some(set),
                    Err(reason) => return damaged(format!("its record of its set: {reason}")),
                }
                for entry in txn.open_table(REGISTERS)?.iter()? {
                    let (vm, bytes) = entry?;
                    let register = record::decode_register(vm.value(), bytes.value()).map_err(RecordDamage);
                    self.registers.insert(vm.value().to_owned(), register);
                }
            }
            format => {
                let known = format!("{STORE_VERSION} and {MEMBER_STORE_VERSION}");
                return damaged(format!("its format has version {format:?}, this ftd knows {known}"));
            }
        }
        for entry in txn.open_table(CELLS)?.iter()? {
            let (vm, bytes) = entry?;
            let change = record::decode(vm.value(), bytes.value()).map_err(RecordDamage);
            self.cells.insert(vm.value().to_owned(), change.map(|change| change.cell));
        }
        Ok(Ok(()))
    }

    /// Makes the changes of cells durable, as [`CellStore::commit_all`] does.
    #[cfg(test)]
    pub(super) fn commit(&mut self, changes: &[(String, Cell)]) -> Result<(), redb::Error> {
        self.commit_all(changes, &[])
    }

    /// Makes the changes durable, all or none. After an error nobody knows which: the store is to be opened anew.
    pub(super) fn commit_all(
        &mut self,
        changes: &[(String, Cell)],
        registers: &[(String, Register)],
    ) -> Result<(), redb::Error> {
        let at_unix_ms = now_unix_ms();
        let txn = begin(&self.database)?;
        let number = count(&txn)?;
        let set = self.newly_accepted(registers);
        for (vm, cell) in changes {
            let bytes = record::encode(vm, &CellChange { at_unix_ms, cell: cell.clone() });
            txn.open_table(CELLS)?.insert(vm.as_str(), bytes.as_slice())?;
        }
        for (vm, register) in registers {
            let bytes = record::encode_register(vm, register);
            txn.open_table(REGISTERS)?.insert(vm.as_str(), bytes.as_slice())?;
        }
        for (nth, (vm, cell)) in (0..).zip(changes.iter().chain(&set)) {
            let change = CellChange { at_unix_ms, cell: cell.clone() };
            // Unlike generations, these go on when a cell is founded anew.
            note(&txn, vm, number * 1024 + nth, &change)?;
        }
        txn.commit()?;
        if !changes.is_empty() || !registers.is_empty() {
            let txn = begin(&self.database)?;
            count(&txn)?;
            txn.commit()?;
        }
        self.cells.extend(changes.iter().map(|(vm, cell)| (vm.clone(), Ok(cell.clone()))));
        self.registers.extend(registers.iter().map(|(vm, register)| (vm.clone(), Ok(register.clone()))));
        Ok(())
    }

    /// The cells that these registers have accepted and those before them had not: rounds that change nothing are no
    /// history.
    fn newly_accepted(&self, registers: &[(String, Register)]) -> Vec<(String, Cell)> {
        let value =
            |register: &Register| register.accepted.as_ref().and_then(|accepted| accepted.value.clone());
        let mut last = BTreeMap::new();
        let mut new = Vec::new();
        for (vm, register) in registers {
            let stored = || self.registers.get(vm).and_then(|stored| value(stored.as_ref().ok()?));
            let before = last.get(vm).cloned().unwrap_or_else(stored);
            let now = value(register);
            if now != before {
                new.extend(now.iter().map(|set| (vm.clone(), set.cell.clone())));
            }
            last.insert(vm, now);
        }
        new
    }

    /// Removes the record of a VM's cell, sound or not; whether there was one.
    pub fn forget(&mut self, vm: &str) -> Result<bool, CellStoreError> {
        let remove = || -> Result<bool, redb::Error> {
            let txn = begin(&self.database)?;
            count(&txn)?;
            let mut was_there = txn.open_table(CELLS)?.remove(vm)?.is_some();
            if self.set.is_some() {
                was_there |= txn.open_table(REGISTERS)?.remove(vm)?.is_some();
            }
            txn.commit()?;
            Ok(was_there)
        };
        let was_there = remove().map_err(|e| unusable(&self.path, "removing a cell", e))?;
        self.cells.remove(vm);
        self.registers.remove(vm);
        self.commit_all(&[], &[]).map_err(|e| unusable(&self.path, "removing a cell", e))?;
        Ok(was_there)
    }

    /// The last changes of a VM's cell, the oldest first; those whose record is damaged are left out.
    pub(super) fn history(&self, vm: &str) -> Result<Vec<CellChange>, redb::Error> {
        let txn = self.database.begin_read()?;
        let mut changes = Vec::new();
        for entry in txn.open_table(HISTORY)?.range((vm, 0)..=(vm, u64::MAX))? {
            changes.extend(record::decode(vm, entry?.1.value()));
        }
        Ok(changes)
    }
}

fn now_unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// Up to `count_max` cells of the VMs after `after`.
pub(super) fn list(cells: &Cells, after: &str, count_max: usize) -> Vec<Listed> {
    let rest = cells.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
    rest.take(count_max)
        .map(|(vm, cell)| Listed {
            vm: vm.clone(),
            cell: cell.as_ref().ok().cloned(),
            damage: cell.as_ref().err().map(super::message::short),
        })
        .collect()
}

/// What is kept of up to `count_max` VMs after `after`.
pub(super) fn list_registers(registers: &Registers, after: &str, count_max: usize) -> Vec<ListedRegister> {
    let rest = registers.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
    rest.take(count_max)
        .map(|(vm, register)| ListedRegister {
            vm: vm.clone(),
            register: register.as_ref().ok().cloned(),
            damage: register.as_ref().err().map(super::message::short),
        })
        .collect()
}

pub(super) fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_check_integrity_on_open(true).set_cache_size(CACHE_BYTES);
    builder
}

fn begin(database: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut txn = database.begin_write()?;
    txn.set_durability(redb::Durability::Immediate)?;
    Ok(txn)
}

/// Adds to a VM's history, and takes away what is more than is kept.
fn note(txn: &WriteTransaction, vm: &str, number: u64, change: &CellChange) -> Result<(), redb::Error> {
    let mut history = txn.open_table(HISTORY)?;
    history.insert((vm, number), record::encode(vm, change).as_slice())?;
    let keys = history.range((vm, 0)..=(vm, u64::MAX))?.map(|entry| Ok(entry?.0.value().1));
    let keys = keys.collect::<Result<Vec<_>, redb::StorageError>>()?;
    for key in &keys[..keys.len().saturating_sub(CHANGES_KEPT)] {
        history.remove((vm, *key))?;
    }
    Ok(())
}

/// Moves the counter.
fn count(txn: &WriteTransaction) -> Result<u64, redb::Error> {
    let mut meta = txn.open_table(META)?;
    let number = meta.get(COMMITS)?.map_or(0, |number| number.value()) + 1;
    meta.insert(COMMITS, number)?;
    Ok(number)
}

/// After a failed flush the page cache may hold what the disk does not: what is read next comes from the disk.
fn forget_cached(path: &Path) -> io::Result<()> {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    Ok(posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
}

fn storage(path: &Path, at: &'static str, reason: &dyn fmt::Display) -> CellStoreError {
    CellStoreError::Storage { path: path.to_owned(), at, reason: reason.to_string() }
}

/// A file that was cut is told as damage, too.
fn unusable(path: &Path, at: &'static str, e: redb::Error) -> CellStoreError {
    match e {
        redb::Error::Io(e) if e.kind() != io::ErrorKind::UnexpectedEof => storage(path, at, &e),
        e => CellStoreError::Damaged { path: path.to_owned(), reason: e.to_string() },
    }
}

impl fmt::Debug for CellStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CellStore").field("path", &self.path).finish_non_exhaustive()
    }
}
