//! The history of the arbiter's cell, read from outside: who had the right to speak, from when.
//!
//! The file back end replaces one small file by rename, so the directory is watched with inotify and the file read after
//! each event; a slow poll covers file systems that report nothing. A record carries two times that enclose the moment
//! of the change: the file's own (written before the rename) and the time at which it was seen (after it).

use std::fs;
use std::io::{self, BufRead, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Cells larger than this are not read.
const CELL_BYTES_MAX: u64 = 64 * 1024;
/// The file is also read this often without an event.
const POLL_MS: u16 = 20;

/// One value of the cell.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// When it was seen (CLOCK_REALTIME): the change had happened by then.
    pub t_ns: u64,
    /// The file's modification time: the change had not happened before.
    pub written_ns: u64,
    /// The cell's generation.
    pub generation: u64,
    /// The owner, if any.
    pub owner: Option<String>,
    /// The standby, if any.
    pub standby: Option<String>,
}

/// The time of day in nanoseconds, the clock of all records here.
pub fn now_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).context("clock_gettime")?;
    Ok(timespec_ns(now))
}

/// A time stamp in nanoseconds; before 1970 counts as 0.
pub fn timespec_ns(time: TimeSpec) -> u64 {
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec()).unwrap_or(0))
}

/// Generation, owner and standby out of the cell's text: a JSON or TOML object that has them, at the top level or in a
/// table beside a checksum.
pub fn parse_cell(text: &str) -> Result<(u64, Option<String>, Option<String>)> {
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(_) => toml::from_str(text).context("the cell is neither JSON nor TOML")?,
    };
    let object = value.as_object().context("the cell is not an object")?;
    let cell = with_generation(object)
        .or_else(|| object.values().filter_map(Value::as_object).find_map(with_generation))
        .context("the cell has no `generation`")?;
    let generation = cell["generation"].as_u64().context("the cell's `generation` is not a number")?;
    let owner = match cell.get("owner") {
        None | Some(Value::Null) => None,
        Some(Value::String(owner)) => Some(owner.clone()),
        Some(other) => bail!("the cell's `owner` is {other}, not a name"),
    };
    let standby = match cell.get("standby") {
        Some(Value::String(node)) => Some(node.clone()),
        Some(Value::Object(standby)) => standby.get("node").and_then(Value::as_str).map(str::to_owned),
        _ => None,
    };
    Ok((generation, owner, standby))
}

fn with_generation(object: &Map<String, Value>) -> Option<&Map<String, Value>> {
    object.contains_key("generation").then_some(object)
}

/// Reads the history that [`Watcher::run`] wrote.
pub fn read_history(path: &Path) -> Result<Vec<Record>> {
    let file = fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut records = Vec::new();
    for (number, line) in io::BufReader::new(file).lines().enumerate() {
        let line = line.with_context(|| format!("cannot read {}", path.display()))?;
        if line.trim().is_empty() {
            continue;
        }
        let record = serde_json::from_str(&line)
            .with_context(|| format!("{}:{}: not a record of the cell", path.display(), number + 1))?;
        records.push(record);
    }
    Ok(records)
}

/// Watches one cell.
pub struct Watcher {
    cell: PathBuf,
    inotify: Inotify,
    last: Option<(u64, u64, u64)>,
}

impl Watcher {
    /// Starts watching; the cell need not be there yet, its directory must.
    pub fn new(cell: &Path) -> Result<Self> {
        let directory = match cell.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).context("inotify")?;
        let events = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_CREATE;
        inotify
            .add_watch(directory, events)
            .with_context(|| format!("cannot watch the directory {}", directory.display()))?;
        Ok(Self { cell: cell.to_owned(), inotify, last: None })
    }

    /// Writes a JSON line for every new value of the cell until `stop` becomes readable.
    pub fn run(mut self, out: &mut dyn Write, stop: BorrowedFd<'_>) -> Result<()> {
        loop {
            if let Some(record) = self.changed()? {
                writeln!(out, "{}", serde_json::to_string(&record)?)?;
                out.flush()?;
            }
            let mut fds =
                [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN), PollFd::new(stop, PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(POLL_MS)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("poll"),
            }
            if fds[1].any() == Some(true) {
                // One last look: a change just before the stop belongs to the history.
                if let Some(record) = self.changed()? {
                    writeln!(out, "{}", serde_json::to_string(&record)?)?;
                }
                return Ok(out.flush()?);
            }
            match self.inotify.read_events() {
                Ok(_) | Err(Errno::EAGAIN) => {}
                Err(error) => return Err(error).context("reading inotify events"),
            }
        }
    }

    /// The cell's value, if it is another than at the last call. A cell that is being replaced, or is not there yet, is
    /// no change; one that cannot be understood is an error, for then there is no history to hold anything against.
    fn changed(&mut self) -> Result<Option<Record>> {
        let file = match fs::File::open(&self.cell) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot open {}", self.cell.display())),
        };
        let metadata = file.metadata()?;
        let written_ns = timespec_ns(TimeSpec::new(metadata.mtime(), metadata.mtime_nsec()));
        let identity = (metadata.ino(), written_ns, metadata.len());
        if self.last == Some(identity) {
            return Ok(None);
        }
        if metadata.len() > CELL_BYTES_MAX {
            bail!(
                "{} has {} bytes; a cell has at most {CELL_BYTES_MAX}",
                self.cell.display(),
                metadata.len()
            );
        }
        let text = io::read_to_string(file)?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        let (generation, owner, standby) =
            parse_cell(&text).with_context(|| format!("cannot read the cell {}", self.cell.display()))?;
        self.last = Some(identity);
        Ok(Some(Record { t_ns: now_ns()?, written_ns, generation, owner, standby }))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::unistd::pipe;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_cell_is_read_as_json_or_toml_flat_or_beside_a_checksum() {
        let expected = (7, Some("alpha".to_owned()), Some("beta".to_owned()));
        for text in [
            r#"{"generation":7,"owner":"alpha","standby":{"node":"beta","pairing":12}}"#,
            r#"{"version":1,"crc32c":99,"cell":{"generation":7,"owner":"alpha","standby":{"node":"beta","pairing":1}}}"#,
            "generation = 7\nowner = \"alpha\"\nstandby = { node = \"beta\", pairing = 12 }\n",
        ] {
            assert_eq!(parse_cell(text).unwrap(), expected, "{text}");
        }
        assert_eq!(parse_cell(r#"{"generation":1,"owner":null}"#).unwrap(), (1, None, None));
    }

    #[test]
    fn what_is_no_cell_is_refused() {
        for text in ["", "[]", "{}", "7", r#"{"generation":"x"}"#, r#"{"generation":1,"owner":3}"#] {
            assert!(parse_cell(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_replacement_of_the_cell_is_recorded_once() {
        let directory = tempfile::tempdir().unwrap();
        let cell = directory.path().join("cell");
        let watcher = Watcher::new(&cell).unwrap();
        let (stop_read, stop_write) = pipe().unwrap();
        let (seen_read, seen_write) = pipe().unwrap();
        let reader = std::thread::spawn(move || {
            let mut out = fs::File::from(seen_write);
            watcher.run(&mut out, stop_read.as_fd())
        });
        let mut lines = io::BufReader::new(fs::File::from(seen_read)).lines();
        for generation in 1..=20u64 {
            let temporary = directory.path().join("new");
            let owner = if generation % 3 == 0 { "beta" } else { "alpha" };
            fs::write(&temporary, format!(r#"{{"generation":{generation},"owner":"{owner}"}}"#)).unwrap();
            fs::rename(&temporary, &cell).unwrap();
            let record: Record = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            assert_eq!((record.generation, record.owner.as_deref()), (generation, Some(owner)));
            assert!(record.written_ns <= record.t_ns);
        }
        drop(stop_write);
        reader.join().unwrap().unwrap();
        assert!(lines.next().is_none());
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in ".{0,200}") {
            let _ = parse_cell(&text);
        }
    }
}
