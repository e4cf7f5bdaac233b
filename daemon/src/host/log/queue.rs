//! Lines on their way to stderr. A thread that logs puts its line into a bounded queue; one thread writes. While stderr
//! takes nothing (a journal that hangs, a pager, Ctrl-S) the queue fills, and further lines are dropped and counted.
//!
//! tracing-appender has such a writer. At the end of the process it reports its own trouble on stderr, and waits there
//! for the very pipe that is full; so this one is ours.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing_subscriber::fmt::MakeWriter;

/// Bytes that may wait: some thousand lines.
const WAITING_BYTES_MAX: usize = 1 << 20;

/// See the module.
#[derive(Clone, Default)]
pub(super) struct LineQueue(Arc<Shared>);

#[derive(Default)]
struct Shared {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default)]
struct Lines {
    waiting: VecDeque<Box<[u8]>>,
    waiting_bytes: usize,
    /// The writer has taken a line out and is not done with it.
    writing: bool,
    /// Dropped since the start, and how many of them the log itself has told.
    lost: u64,
    lost_told: u64,
}

impl LineQueue {
    /// Starts the thread that writes to `sink`; it lives as long as the process.
    pub(super) fn start(&self, mut sink: impl Write + Send + 'static) -> io::Result<()> {
        let queue = self.clone();
        std::thread::Builder::new().name("ftd-log".into()).spawn(move || {
            loop {
                let line = queue.next();
                let written = sink.write_all(&line).is_ok();
                if let Some(lost) = queue.settle(written) {
                    tracing::warn!(lost, "{lost} log messages were dropped: stderr took none for a while");
                }
            }
        })?;
        Ok(())
    }

    /// Adds a line, unless there is no room for it. Never waits for the writer.
    fn push(&self, line: &[u8]) {
        let mut lines = self.0.lines.lock();
        if lines.waiting_bytes + line.len() > WAITING_BYTES_MAX {
            lines.lost += 1;
            return;
        }
        lines.waiting_bytes += line.len();
        lines.waiting.push_back(line.into());
        drop(lines);
        self.0.changed.notify_all();
    }

    /// Waits for a line.
    fn next(&self) -> Box<[u8]> {
        let mut lines = self.0.lines.lock();
        lines.writing = false;
        self.0.changed.notify_all();
        loop {
            if let Some(line) = lines.waiting.pop_front() {
                lines.waiting_bytes -= line.len();
                lines.writing = true;
                return line;
            }
            self.0.changed.wait(&mut lines);
        }
    }

    /// A line is written, or could not be. Once the writer has caught up: how many were lost and are not told yet.
    fn settle(&self, written: bool) -> Option<u64> {
        let mut lines = self.0.lines.lock();
        if !written {
            lines.lost += 1;
            return None;
        }
        let lost = lines.lost - lines.lost_told;
        if lost == 0 || !lines.waiting.is_empty() {
            return None;
        }
        lines.lost_told = lines.lost;
        Some(lost)
    }

    /// Lines dropped since the start.
    pub(super) fn lost(&self) -> u64 {
        self.0.lines.lock().lost
    }

    /// Waits until every line is written, at most this long; whether it is.
    pub(super) fn drain(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut lines = self.0.lines.lock();
        while lines.writing || !lines.waiting.is_empty() {
            if self.0.changed.wait_until(&mut lines, deadline).timed_out() {
                return false;
            }
        }
        true
    }
}

/// What tracing writes one message into.
pub(super) struct LineWriter<'a>(&'a LineQueue);

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LineQueue {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter(self)
    }
}

/// The process's stderr, past the lock of the standard library, which a blocked writer would hold against everybody
/// else. Somebody who shares the file may have made it non-blocking: then it is waited for.
pub(super) struct Stderr(File);

impl Stderr {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self(io::stderr().as_fd().try_clone_to_owned()?.into()))
    }
}

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    // Interrupted or failed: the write tells.
                    let _ = poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE);
                }
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    const LONG: Duration = Duration::from_secs(300);

    fn line(number: u64) -> Vec<u8> {
        format!("{number} {}\n", "x".repeat(1000)).into_bytes()
    }

    #[test]
    fn nobody_waits_for_a_full_pipe_and_the_lines_without_room_are_counted() {
        let (reader, writer) = io::pipe().unwrap();
        let queue = LineQueue::default();
        queue.start(writer).unwrap();
        let mut pushed = 0;
        while queue.lost() < 10 {
            queue.push(&line(pushed));
            pushed += 1;
        }
        assert!(!queue.drain(Duration::ZERO), "nothing can have been written");
        let kept = pushed - queue.lost();

        let mut arrived = BufReader::new(reader).lines();
        for number in 0..kept {
            let text = arrived.next().unwrap().unwrap();
            assert!(text.starts_with(&format!("{number} ")), "line {number} is {text:.20}");
        }
        assert!(queue.drain(LONG));
        queue.push(b"and on\n");
        assert!(arrived.next().unwrap().unwrap().starts_with("and on"), "it flows again");
    }

    #[test]
    fn the_loss_is_told_once_when_the_writer_has_caught_up() {
        let queue = LineQueue::default();
        queue.push(b"one");
        queue.push(b"two");
        queue.0.lines.lock().lost = 7;
        queue.next();
        assert_eq!(queue.settle(true), None, "another line waits");
        queue.next();
        assert_eq!(queue.settle(true), Some(7));
        assert_eq!(queue.settle(true), None);
        assert_eq!(queue.settle(false), None, "stderr is closed");
        assert_eq!(queue.settle(true), Some(1));
    }
}
