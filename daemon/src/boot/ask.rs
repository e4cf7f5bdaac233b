//! The daemon's side of the child that reads a disk: starts it, gives it what it asks for, and takes its answer.

use super::child::COMMAND;
use super::error::ImageBootError;
use super::wire::{self, ChildWord, HearError, SECTOR_BYTES};
use crate::disks::DiskReader;
use ft_disk::Buffer;
use ft_image::BootEntry;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long it may all take, also where the host is busy or its storage slow: a guest that cannot be booted has ended.
/// A child that computes without end is ended by its own limit of processor time.
const PATIENCE: Duration = Duration::from_secs(30);
/// A kernel or an initrd is never larger.
const FILE_BYTES_MAX: u64 = 2 << 30;

/// A socket whose reads and writes end in time.
struct Timed {
    socket: UnixStream,
    until: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Duration> {
        match self.until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(left),
        }
    }
}

/// What a socket says when its time is over.
fn in_time(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}

impl Read for Timed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.left()?))?;
        self.socket.read(into).map_err(in_time)
    }
}

impl Write for Timed {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        self.socket.write(from).map_err(in_time)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The child. It ends with this.
struct Reader(Child);

impl Reader {
    fn start(socket: UnixStream, disk_bytes: u64, file_bytes_max: u64) -> io::Result<Self> {
        let child = Command::new("/proc/self/exe")
            .args([COMMAND, &disk_bytes.to_string(), &file_bytes_max.to_string()])
            .stdin(OwnedFd::from(socket))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .env_clear()
            .spawn()?;
        Ok(Self(child))
    }

    /// How it has ended, or ends now.
    fn end(mut self) -> String {
        let killed = self.0.kill();
        match (self.0.wait(), killed) {
            (Ok(status), _) => status.to_string(),
            (Err(e), _) => e.to_string(),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What lies in a disk to be booted, or why there is nothing.
pub(super) fn ask(disk: &DiskReader, ram_bytes: u64) -> Result<Result<BootEntry, String>, ImageBootError> {
    let disk_bytes = disk.bytes() - disk.bytes() % SECTOR_BYTES;
    let file_bytes_max = ram_bytes.min(FILE_BYTES_MAX);
    let (ours, theirs) = UnixStream::pair()?;
    let reader = Reader::start(theirs, disk_bytes, file_bytes_max)?;
    let mut wire = Timed { socket: ours, until: Instant::now() + PATIENCE };
    let outcome = serve(disk, disk_bytes, file_bytes_max, &mut wire);
    outcome.map_err(|error| no_answer(error, || reader.end()))
}

/// Why there is no answer. `end` says how the child has ended, if it has.
fn no_answer(error: HearError, end: impl FnOnce() -> String) -> ImageBootError {
    match error {
        HearError::Nonsense(what) => ImageBootError::Nonsense(what),
        HearError::Io(e) => match e.kind() {
            io::ErrorKind::TimedOut => ImageBootError::Late(PATIENCE),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                ImageBootError::Ended(end())
            }
            _ => ImageBootError::Io(e),
        },
    }
}

/// Gives it what it asks for, until it answers.
fn serve(
    disk: &DiskReader,
    disk_bytes: u64,
    file_bytes_max: u64,
    wire: &mut Timed,
) -> Result<Result<BootEntry, String>, HearError> {
    loop {
        match wire::hear(wire, disk_bytes, file_bytes_max)? {
            ChildWord::Read { offset, bytes } => {
                let mut data = Buffer::zeroed(bytes);
                let read = disk.read(&mut data, offset);
                wire::answer(wire, read.map(|()| &*data))?;
            }
            ChildWord::Found(entry) => return Ok(Ok(*entry)),
            ChildWord::Failed(why) => return Ok(Err(why)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const DISK_BYTES: u64 = 4096;

    /// What the daemon says of a child that does this with its end of the socket, when the time is over soon.
    fn said_of(child: impl FnOnce(UnixStream) + Send + 'static) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(DISK_BYTES).unwrap();
        let disk = DiskReader::open(file.path()).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let child = thread::spawn(|| child(theirs));
        let mut wire = Timed { socket: ours, until: Instant::now() + Duration::from_millis(300) };
        let Err(error) = serve(&disk, DISK_BYTES, DISK_BYTES, &mut wire) else { panic!("it has answered") };
        drop(wire);
        child.join().unwrap();
        no_answer(error, || "killed".to_owned()).to_string()
    }

    /// Says it again and again, until nobody listens.
    fn repeats(mut socket: UnixStream, words: &[u8], every: Duration) {
        while socket.write_all(words).is_ok() {
            thread::sleep(every);
        }
    }

    #[test]
    fn a_child_that_hangs_is_named_when_its_time_is_over() {
        let hangs = |mut socket: UnixStream| {
            let _ = socket.read(&mut [0]);
        };
        // It has begun an answer, of which a byte comes now and then; or it takes no answer to what it asks.
        let trickles = |mut socket: UnixStream| {
            socket.write_all(&[wire::FOUND, 200, 0, 0, 0, 0, 0, 0, 0]).unwrap();
            repeats(socket, b"x", Duration::from_millis(20));
        };
        let only_asks = |socket: UnixStream| {
            let ask = [&[wire::READ][..], &0_u64.to_le_bytes(), &DISK_BYTES.to_le_bytes()].concat();
            repeats(socket, &ask, Duration::ZERO);
        };
        for said in [said_of(hangs), said_of(trickles), said_of(only_asks)] {
            assert!(said.contains("the process that reads the image gave no answer in 30 s"), "{said}");
        }
    }

    #[test]
    fn a_child_that_ends_without_an_answer_is_named() {
        let said = said_of(drop);
        assert!(said.contains("the process that reads the image ended without an answer: killed"), "{said}");
    }
}
