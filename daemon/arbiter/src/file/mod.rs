//! The cell on storage that both nodes share: a directory with one small file for each generation, named by its number.
//! The cell is the file with the highest number.
//!
//! A generation is claimed by writing a temporary file, flushing it, and linking it to its number: link(2) fails if the
//! name exists, on the file server itself, so exactly one node wins each number, and the file is complete from the
//! moment it is visible. There is no lock on purpose: a node that is frozen in the middle holds nobody up, and one whose
//! lock has expired meanwhile cannot overwrite what others have agreed on.
//!
//! The last [`GENERATIONS_KEPT`] files stay, oldest removed first, as a readable history and because a number must not
//! become free while a sleeper may still claim it: a claim that finds the cell that far ahead has come too late.
//!
//! Needs hard links and attribute caches that do not lie: any local or cluster file system; NFS mounted with actimeo=0.

use crate::{Arbiter, ArbiterError, Cell, Outcome, Place, Trouble};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Files of past generations that stay.
pub const GENERATIONS_KEPT: u64 = 64;
const FORMAT_VERSION: u32 = 1;
/// No cell is longer.
const CELL_BYTES_MAX: u64 = 4096;
const TEMPORARY: &str = ".tmp-";
/// Age at which a temporary file must have been left behind by a crash.
const LEFTOVER_AGE: Duration = Duration::from_secs(3600);

/// The back end "file".
#[derive(Debug)]
pub struct FileArbiter {
    directory: PathBuf,
    vm: String,
}

/// What a file holds, as JSON on its first line; the second line is `crc32c` of the first.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    vm: String,
    cell: Cell,
}

impl FileArbiter {
    /// The cell of `vm` at `path`, an absolute path whose parent must exist: so storage that is not mounted is an
    /// error and not an empty cell.
    #[must_use]
    pub fn new(path: &Path, vm: &str) -> Self {
        Self { directory: path.to_owned(), vm: vm.to_owned() }
    }

    fn parent(&self) -> &Path {
        self.directory.parent().unwrap_or(Path::new("/"))
    }

    fn file_of(&self, generation: u64) -> PathBuf {
        self.directory.join(file_name(generation))
    }

    fn error(&self, trouble: Trouble) -> ArbiterError {
        ArbiterError { place: self.place(), trouble }
    }

    fn failed(&self, at: &'static str) -> impl Fn(io::Error) -> ArbiterError {
        move |error| self.error(Trouble::Storage { at, errno: errno_of(&error) })
    }

    fn damaged(&self, generation: u64, reason: String) -> ArbiterError {
        self.error(Trouble::Damaged { file: file_name(generation), reason })
    }

    /// The generations that have a file, in no order.
    fn generations(&self) -> Result<Vec<u64>, ArbiterError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Never set, if the place where it would be is there.
                fs::metadata(self.parent()).map_err(self.failed("looking for its directory"))?;
                return Ok(Vec::new());
            }
            Err(error) => return Err(self.failed("listing")(error)),
        };
        let mut generations = Vec::new();
        for entry in entries {
            let entry = entry.map_err(self.failed("listing"))?;
            generations.extend(generation_of(&entry.file_name()));
        }
        Ok(generations)
    }

    fn load(&self, generation: u64) -> Result<Cell, ArbiterError> {
        let mut bytes = Vec::new();
        File::open(self.file_of(generation))
            .and_then(|file| file.take(CELL_BYTES_MAX + 1).read_to_end(&mut bytes))
            .map_err(self.failed("reading"))?;
        let record = match decode(&bytes) {
            Ok(record) => record,
            Err(reason) => return Err(self.damaged(generation, reason)),
        };
        if record.vm != self.vm {
            return Err(self.error(Trouble::OtherVm { found: record.vm, vm: self.vm.clone() }));
        }
        if record.cell.generation != generation {
            let reason = format!("it holds generation {} under another's name", record.cell.generation);
            return Err(self.damaged(generation, reason));
        }
        Ok(record.cell)
    }

    fn sync(&self, directory: &Path) -> Result<(), ArbiterError> {
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(self.failed("flushing its directory"))
    }

    fn make_directory(&self) -> Result<(), ArbiterError> {
        match fs::create_dir(&self.directory) {
            Ok(()) => self.sync(self.parent()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(self.failed("making its directory")(error)),
        }
    }

    /// The claim is somebody else's. What is told must be durable, or a crash could take it back.
    fn lost(&mut self) -> Outcome {
        let cell = match self.read() {
            Ok(None) => Ok(None),
            Ok(cell) => self.sync(&self.directory).map(|()| cell),
            Err(error) => Err(error),
        };
        cell.map_or_else(Outcome::NotAttempted, Outcome::Lost)
    }

    /// Claims `new.generation`, which was found to be the next one.
    fn claim(&mut self, new: Cell) -> Outcome {
        let record = Record { version: FORMAT_VERSION, vm: self.vm.clone(), cell: new.clone() };
        let temporary = match Temporary::create(&self.directory, &encode(&record)) {
            Ok(temporary) => temporary,
            Err(error) => return Outcome::NotAttempted(self.failed("writing")(error)),
        };
        let target = self.file_of(new.generation);
        if let Err(error) = fs::hard_link(&temporary.path, &target) {
            // Over NFS a repeated request can report the name as taken by its own first try.
            if error.kind() == io::ErrorKind::AlreadyExists && !temporary.is_also(&target) {
                return self.lost();
            }
            if error.kind() != io::ErrorKind::AlreadyExists {
                let certain = changes_nothing(errno_of(&error));
                let error = self.failed("linking the new generation")(error);
                return if certain { Outcome::NotAttempted(error) } else { Outcome::Unknown(error) };
            }
        }
        if let Err(error) = self.sync(&self.directory) {
            return Outcome::Unknown(error);
        }
        drop(temporary);
        let generations = match self.generations() {
            Ok(generations) => generations,
            Err(error) => return Outcome::Unknown(error),
        };
        let highest = generations.iter().copied().max().unwrap_or(0);
        if highest.saturating_sub(new.generation) >= GENERATIONS_KEPT / 2 {
            return self.lost();
        }
        self.tidy(generations);
        Outcome::Won(new)
    }

    /// Removes files that nobody needs any more; what cannot be removed now will be another time.
    fn tidy(&self, mut generations: Vec<u64>) {
        let highest = generations.iter().copied().max().unwrap_or(0);
        generations.retain(|generation| highest - generation >= GENERATIONS_KEPT);
        // Oldest first: while a number is free, all below it are.
        generations.sort_unstable();
        for generation in generations {
            if fs::remove_file(self.file_of(generation)).is_err() {
                return;
            }
        }
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        for entry in entries.flatten() {
            let age = || SystemTime::now().duration_since(entry.metadata().ok()?.modified().ok()?).ok();
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY) && age() > Some(LEFTOVER_AGE) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

impl Arbiter for FileArbiter {
    fn read(&mut self) -> Result<Option<Cell>, ArbiterError> {
        loop {
            let Some(highest) = self.generations()?.into_iter().max() else { return Ok(None) };
            match self.load(highest) {
                // Overtaken so far between the two steps that the file is gone.
                Err(ArbiterError { trouble: Trouble::Storage { errno: Errno::ENOENT, .. }, .. }) => {}
                result => return result.map(Some),
            }
        }
    }

    fn compare_and_set(&mut self, expected: Option<u64>, new: Cell) -> Outcome {
        if expected.unwrap_or(0).checked_add(1) != Some(new.generation) {
            return Outcome::NotAttempted(self.error(Trouble::Generation { expected, new: new.generation }));
        }
        match self.read() {
            Ok(current) if current.as_ref().map(|cell| cell.generation) != expected => return self.lost(),
            Ok(_) => {}
            Err(error) => return Outcome::NotAttempted(error),
        }
        if expected.is_none()
            && let Err(error) = self.make_directory()
        {
            return Outcome::NotAttempted(error);
        }
        self.claim(new)
    }

    /// Writes, flushes, links and removes a file of this node's own: in the cell's directory, or beside it while there
    /// is none.
    fn probe(&mut self) -> Result<(), ArbiterError> {
        self.read()?;
        let beside = if self.directory.is_dir() { self.directory.as_path() } else { self.parent() };
        let temporary =
            Temporary::create(beside, b"probe").map_err(self.failed("writing beside the cell"))?;
        let linked = temporary.path.with_extension("link");
        fs::hard_link(&temporary.path, &linked).map_err(self.failed("making a hard link"))?;
        fs::remove_file(&linked).map_err(self.failed("removing a hard link"))?;
        self.sync(beside)
    }

    fn place(&self) -> Place {
        Place::File(self.directory.clone())
    }
}

/// A file that is removed when it is no longer needed under this name.
struct Temporary {
    path: PathBuf,
    file: File,
}

impl Temporary {
    /// A new file with this content, flushed.
    fn create(directory: &Path, content: &[u8]) -> io::Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        // Unlike any other's: the nodes share no process table and may share a clock.
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let host = nix::unistd::gethostname().unwrap_or_default();
        let name =
            format!("{TEMPORARY}{}-{}-{nanos:x}-{number:x}", host.to_string_lossy(), std::process::id());
        let path = directory.join(name);
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        let mut temporary = Self { path, file };
        temporary.file.write_all(content)?;
        temporary.file.sync_all()?;
        Ok(temporary)
    }

    /// Whether `path` names the same file.
    fn is_also(&self, path: &Path) -> bool {
        match (self.file.metadata(), fs::symlink_metadata(path)) {
            (Ok(own), Ok(other)) => own.ino() == other.ino() && own.dev() == other.dev(),
            _ => false,
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // A leftover is harmless and removed later.
        let _ = fs::remove_file(&self.path);
    }
}

fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Whether a link that failed so has certainly changed nothing, and never will.
fn changes_nothing(errno: Errno) -> bool {
    use Errno::*;
    matches!(errno, ENOSPC | EDQUOT | EACCES | EPERM | EROFS | ENOENT | EMLINK | EOPNOTSUPP)
}

fn file_name(generation: u64) -> String {
    format!("{generation:020}")
}

fn generation_of(name: &OsStr) -> Option<u64> {
    let name = name.to_str()?;
    (name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit())).then(|| name.parse().ok())?
}

fn encode(record: &Record) -> Vec<u8> {
    let json = serde_json::to_string(record).expect("strings and numbers in structs always have a JSON form");
    format!("{json}\ncrc32c {:08x}\n", crc32c::crc32c(json.as_bytes())).into_bytes()
}

fn decode(bytes: &[u8]) -> Result<Record, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    if bytes.len() as u64 > CELL_BYTES_MAX {
        return Err(format!("it is longer than {CELL_BYTES_MAX} bytes"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text".to_owned())?;
    let (json, sum) = text
        .strip_suffix('\n')
        .and_then(|text| text.split_once("\ncrc32c "))
        .ok_or("it is not two whole lines, the second a checksum")?;
    let computed = format!("{:08x}", crc32c::crc32c(json.as_bytes()));
    if sum != computed {
        return Err(format!("its checksum is {computed}, it says {sum}"));
    }
    let Version { version } = serde_json::from_str(json).map_err(|error| error.to_string())?;
    if version != FORMAT_VERSION {
        return Err(format!("it has format version {version}, this ftd knows {FORMAT_VERSION}"));
    }
    serde_json::from_str(json).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
