//! The guest's console: it goes to the attached clients, and to a file or stdout if so configured.

use super::check::HostError;
use crate::config::ConsoleTarget;
use ft_vm::devices::ConsoleSink;
use ft_vm::machine::ConsoleHandle;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use tokio::sync::broadcast;

/// See the module. It never blocks the guest: what nobody takes in time is dropped.
#[derive(Clone)]
pub struct ConsoleHub(Arc<HubInner>);

struct HubInner {
    output: broadcast::Sender<Arc<[u8]>>,
    recent: Mutex<VecDeque<u8>>,
    input: Mutex<Option<ConsoleHandle>>,
    file: Option<SyncSender<Vec<u8>>>,
}

/// What a newly attached console sees of the past.
const RECENT_BYTES: usize = 16 << 10;
/// A console's file begins anew beyond this; the one before is kept as FILE.1.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Pieces of output that may wait for a slow reader.
const BACKLOG: usize = 1024;

impl ConsoleHub {
    pub(super) fn start(console: &ConsoleTarget) -> Result<Self, HostError> {
        let sink: Option<Box<dyn Write + Send>> = match console {
            ConsoleTarget::Socket => None,
            ConsoleTarget::Stdout => Some(Box::new(std::io::stdout())),
            ConsoleTarget::File(path) => {
                let failed =
                    |source| HostError::Unreadable { key: "machine.console", path: path.clone(), source };
                Some(Box::new(BoundedFile::open(path, FILE_BYTES_MAX).map_err(failed)?))
            }
        };
        let file = sink.map(|mut sink| {
            let (sender, pieces) = sync_channel::<Vec<u8>>(BACKLOG);
            std::thread::Builder::new().name("ftd-console".into()).spawn(move || {
                while let Ok(piece) = pieces.recv() {
                    // A console file on a full disk must not stop the guest.
                    let _ = sink.write_all(&piece).and_then(|()| sink.flush());
                }
            })?;
            Ok(sender)
        });
        let file = file.transpose().map_err(HostError::Thread)?;
        let (output, _) = broadcast::channel(BACKLOG);
        Ok(Self(Arc::new(HubInner { output, recent: Mutex::default(), input: Mutex::default(), file })))
    }

    /// The recent past, and what follows it.
    pub fn attach(&self) -> (Vec<u8>, broadcast::Receiver<Arc<[u8]>>) {
        let recent = self.0.recent.lock();
        (recent.iter().copied().collect(), self.0.output.subscribe())
    }

    /// What is typed goes into this console, or into none.
    pub(super) fn plug(&self, console: Option<ConsoleHandle>) {
        *self.0.input.lock() = console;
    }

    /// Types into the guest's console, if a guest runs here.
    pub fn input(&self, bytes: &[u8]) {
        let console = self.0.input.lock().clone();
        if let Some(console) = console {
            console.input(bytes);
        }
    }
}

/// A file that is appended to, and begins anew when it is long: a guest that talks without end fills no disk. A pipe or
/// a terminal stays as it is.
struct BoundedFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl BoundedFile {
    fn open(path: &Path, bytes_max: u64) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        let metadata = file.metadata()?;
        let bytes_max = if metadata.is_file() { bytes_max } else { u64::MAX };
        Ok(Self { path: path.to_owned(), file, bytes: metadata.len(), bytes_max })
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        let mut before = self.path.clone().into_os_string();
        before.push(".1");
        fs::rename(&self.path, before)?;
        *self = Self::open(&self.path, self.bytes_max)?;
        Ok(())
    }
}

impl Write for BoundedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes >= self.bytes_max {
            self.begin_anew()?;
        }
        let written = self.file.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl ConsoleSink for ConsoleHub {
    fn write(&mut self, bytes: &[u8]) {
        let mut recent = self.0.recent.lock();
        recent.extend(bytes);
        let excess = recent.len().saturating_sub(RECENT_BYTES);
        recent.drain(..excess);
        // Under the lock, so that whoever attaches misses nothing and sees nothing twice. Nobody attached is fine.
        let _ = self.0.output.send(bytes.into());
        drop(recent);
        if let Some(file) = &self.0.file {
            match file.try_send(bytes.to_vec()) {
                Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_file_is_bounded_and_keeps_the_latest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        fs::write(&path, "of an earlier run\n").unwrap();
        let mut file = BoundedFile::open(&path, 1000).unwrap();
        for number in 0..1000 {
            // As a guest's lines come: in one piece.
            file.write_all(format!("line {number}\n").as_bytes()).unwrap();
        }
        let (now, before) =
            (fs::read_to_string(&path).unwrap(), fs::read_to_string(path.with_extension("log.1")).unwrap());
        assert!(now.len() < 1100 && before.len() < 1100, "{} and {}", now.len(), before.len());
        assert!(format!("{before}{now}").ends_with("line 998\nline 999\n"));
        assert!(now.starts_with("line ") && before.starts_with("line "), "no line is cut");
    }
}
