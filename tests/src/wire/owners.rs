//! The history of the arbiter's cell, read from outside: the node that had the right to speak, and since when.
//!
//! The file back end keeps the cell as a directory with one small file for each generation, named by its number. The
//! directory is watched with inotify, and new files are read in the order of their numbers, so no generation is missed;
//! a slow poll covers file systems that report nothing. A record carries two times that enclose the moment of the
//! change: the file's own (written before it got its name) and the time at which it was seen (after that).

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, Read, Write};
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
use serde_json::Value;

/// Files larger than this are not read.
const CELL_BYTES_MAX: u64 = 64 * 1024;
/// The directory is also listed this often without an event.
const POLL_MS: u16 = 20;

/// One value of the cell.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CellRecord {
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

/// Generation, owner and standby out of a generation's file: its first line is a JSON object with the cell in it, what
/// follows is a checksum.
pub fn parse_cell(text: &str) -> Result<(u64, Option<String>, Option<String>)> {
    let line = text.lines().next().context("the file is empty")?;
    let value: Value = serde_json::from_str(line).context("its first line is not JSON")?;
    let cell = value.get("cell").context("it has no `cell`")?;
    let generation = cell.get("generation").and_then(Value::as_u64).context("it has no `generation`")?;
    let owner = match cell.get("owner") {
        None | Some(Value::Null) => None,
        Some(Value::String(owner)) => Some(owner.clone()),
        Some(other) => bail!("its `owner` is {other}, not a name"),
    };
    let standby = cell.get("standby").and_then(|standby| standby.get("node")).and_then(Value::as_str);
    Ok((generation, owner, standby.map(str::to_owned)))
}

/// Reads the history that [`Watcher::run`] wrote.
pub fn read_history(path: &Path) -> Result<Vec<CellRecord>> {
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
    watches_cell: bool,
    /// The last generation recorded.
    last: Option<u64>,
}

impl Watcher {
    /// Starts watching; the cell need not be there yet, the directory it will be in must.
    pub fn new(cell: &Path) -> Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).context("inotify")?;
        let parent = match cell.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        watch(&inotify, parent)?;
        Ok(Self { cell: cell.to_owned(), inotify, watches_cell: false, last: None })
    }

    /// Writes a JSON line for every generation, beginning with the current one, until `stop` becomes readable.
    pub fn run(mut self, out: &mut dyn Write, stop: BorrowedFd<'_>) -> Result<()> {
        let mut stopping = false;
        loop {
            for record in self.news()? {
                writeln!(out, "{}", serde_json::to_string(&record)?)?;
            }
            out.flush()?;
            // Only after one last look: a change just before the stop belongs to the history.
            if stopping {
                return Ok(());
            }
            let mut fds =
                [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN), PollFd::new(stop, PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(POLL_MS)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("poll"),
            }
            stopping = fds[1].any() == Some(true);
            match self.inotify.read_events() {
                Ok(_) | Err(Errno::EAGAIN) => {}
                Err(error) => return Err(error).context("reading inotify events"),
            }
        }
    }

    /// The generations that are new since the last call, in order. One that cannot be understood is an error, for then
    /// there is no history to hold anything against.
    fn news(&mut self) -> Result<Vec<CellRecord>> {
        if !self.watches_cell && self.cell.is_dir() {
            watch(&self.inotify, &self.cell)?;
            self.watches_cell = true;
        }
        let failed = || format!("cannot list {}", self.cell.display());
        let entries = match fs::read_dir(&self.cell) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(failed),
        };
        let mut generations = Vec::new();
        for entry in entries {
            let entry = entry.with_context(failed)?;
            if !entry.file_type().with_context(failed)?.is_file() {
                continue;
            }
            let generation = generation_of(&entry.file_name());
            generations
                .extend(generation.filter(|&generation| self.last.is_none_or(|last| generation > last)));
        }
        generations.sort_unstable();
        if self.last.is_none() {
            // What was before is no concern of this history.
            generations.drain(..generations.len().saturating_sub(1));
        }
        let mut records = Vec::new();
        for generation in generations {
            records.push(self.read(generation)?);
            self.last = Some(generation);
        }
        Ok(records)
    }

    fn read(&self, generation: u64) -> Result<CellRecord> {
        let path = self.cell.join(format!("{generation:020}"));
        let failed = || format!("cannot read {}", path.display());
        let file = fs::File::open(&path).with_context(failed)?;
        let metadata = file.metadata().with_context(failed)?;
        let mut text = String::new();
        file.take(CELL_BYTES_MAX).read_to_string(&mut text).with_context(failed)?;
        let (found, owner, standby) = parse_cell(&text).with_context(failed)?;
        if found != generation {
            bail!("{} holds generation {found}", path.display());
        }
        let written_ns = timespec_ns(TimeSpec::new(metadata.mtime(), metadata.mtime_nsec()));
        Ok(CellRecord { t_ns: now_ns()?, written_ns, generation, owner, standby })
    }
}

fn watch(inotify: &Inotify, directory: &Path) -> Result<()> {
    inotify
        .add_watch(directory, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)
        .with_context(|| format!("cannot watch the directory {}", directory.display()))?;
    Ok(())
}

/// The generation a file is named after; other files, such as temporary ones, have none.
fn generation_of(name: &OsStr) -> Option<u64> {
    let name = name.to_str()?;
    name.bytes().all(|byte| byte.is_ascii_digit()).then(|| name.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::unistd::pipe;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_cell_is_read_with_what_its_file_says_about_it() {
        let text = concat!(
            r#"{"version":1,"vm":"web","cell":{"generation":7,"owner":"alpha","#,
            r#""standby":{"node":"beta","pairing":12}}}"#,
            "\n0badc0de\n",
        );
        assert_eq!(parse_cell(text).unwrap(), (7, Some("alpha".to_owned()), Some("beta".to_owned())));
        let text = r#"{"version":1,"vm":"web","cell":{"generation":1,"owner":null,"standby":null}}"#;
        assert_eq!(parse_cell(text).unwrap(), (1, None, None));
    }

    #[test]
    fn what_is_no_cell_is_refused() {
        for text in
            ["", "[]", "{}", "7", r#"{"cell":{"generation":"x"}}"#, r#"{"cell":{"generation":1,"owner":3}}"#]
        {
            assert!(parse_cell(text).is_err(), "{text}");
        }
    }

    fn set(cell: &Path, generation: u64, owner: &str) {
        let temporary = cell.join(".tmp-1");
        let text = format!(r#"{{"cell":{{"generation":{generation},"owner":"{owner}"}}}}"#);
        fs::write(&temporary, text).unwrap();
        fs::rename(&temporary, cell.join(format!("{generation:020}"))).unwrap();
    }

    #[test]
    fn every_generation_is_recorded_once_from_the_current_one_on() {
        let directory = tempfile::tempdir().unwrap();
        let cell = directory.path().join("cell");
        let mut watcher = Watcher::new(&cell).unwrap();
        assert_eq!(watcher.news().unwrap(), []);
        fs::create_dir(&cell).unwrap();
        for generation in 1..=3 {
            set(&cell, generation, "alpha");
        }
        let seen = |watcher: &mut Watcher| -> Vec<(u64, Option<String>)> {
            watcher.news().unwrap().into_iter().map(|record| (record.generation, record.owner)).collect()
        };
        assert_eq!(seen(&mut watcher), [(3, Some("alpha".to_owned()))]);
        for generation in 4..=12 {
            set(&cell, generation, "beta");
        }
        let generations: Vec<_> = seen(&mut watcher).into_iter().map(|(generation, _)| generation).collect();
        assert_eq!(generations, (4..=12).collect::<Vec<_>>());
        assert_eq!(seen(&mut watcher), []);
    }

    #[test]
    fn a_running_watcher_reports_changes_and_ends_when_told_to() {
        let directory = tempfile::tempdir().unwrap();
        let cell = directory.path().join("cell");
        let watcher = Watcher::new(&cell).unwrap();
        let (stop_read, stop_write) = pipe().unwrap();
        let (seen_read, seen_write) = pipe().unwrap();
        let running =
            std::thread::spawn(move || watcher.run(&mut fs::File::from(seen_write), stop_read.as_fd()));
        let mut lines = io::BufReader::new(fs::File::from(seen_read)).lines();
        fs::create_dir(&cell).unwrap();
        for generation in 1..=20 {
            set(&cell, generation, "alpha");
            let record: CellRecord = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            assert_eq!(record.generation, generation);
            assert!(record.written_ns <= record.t_ns);
        }
        drop(stop_write);
        running.join().unwrap().unwrap();
        assert!(lines.next().is_none());
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in ".{0,200}") {
            let _ = parse_cell(&text);
        }
    }
}
