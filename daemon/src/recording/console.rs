//! The guest's console on standard output. A thread of its own writes it, many small pieces at a time, in order.

use super::RunError;
use ft_vm::devices::ConsoleSink;
use std::io::{self, Write};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

/// Pieces that may wait; the guest writes a byte or a few at a time.
const BACKLOG: usize = 1 << 16;
/// Bytes handed to the system at once.
const WRITE_BYTES: usize = 64 << 10;

/// What to do with output that standard output does not take in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhenFull {
    /// A live guest is not held up: it is lost.
    Drop,
    /// A replay can wait.
    Wait,
}

/// The writer, to be waited for when the machine is gone.
pub(super) struct Printer(JoinHandle<()>);

impl Printer {
    /// Starts it; the sink is for the machine.
    fn start(when_full: WhenFull) -> io::Result<(Self, Box<dyn ConsoleSink>)> {
        let (pieces, received) = sync_channel::<Vec<u8>>(BACKLOG);
        let thread = std::thread::Builder::new().name("ftd-console".into()).spawn(move || {
            let mut out = io::stdout().lock();
            while let Ok(mut bytes) = received.recv() {
                while bytes.len() < WRITE_BYTES
                    && let Ok(more) = received.try_recv()
                {
                    bytes.extend(more);
                }
                // Whoever read it may have seen enough; the run goes on.
                let _ = out.write_all(&bytes).and_then(|()| out.flush());
            }
        })?;
        Ok((Self(thread), Box::new(Sink { pieces, when_full })))
    }

    /// Waits until everything is written. The sink is gone.
    pub(super) fn finish(self) {
        // It does not panic; and if it did, its message is on stderr.
        let _ = self.0.join();
    }
}

struct Sink {
    pieces: SyncSender<Vec<u8>>,
    when_full: WhenFull,
}

impl ConsoleSink for Sink {
    fn write(&mut self, bytes: &[u8]) {
        if let Err(TrySendError::Full(bytes)) = self.pieces.try_send(bytes.to_vec())
            && self.when_full == WhenFull::Wait
        {
            // It fails only when nobody reads any more.
            let _ = self.pieces.send(bytes);
        }
    }
}

/// A console on standard output, or one that nobody looks at.
pub(super) fn open(
    quiet: bool,
    when_full: WhenFull,
) -> Result<(Option<Printer>, Box<dyn ConsoleSink>), RunError> {
    if quiet {
        return Ok((None, Box::new(Quiet)));
    }
    let (printer, sink) =
        Printer::start(when_full).map_err(|e| RunError::System("no thread for the console", e))?;
    Ok((Some(printer), sink))
}

struct Quiet;

impl ConsoleSink for Quiet {
    fn write(&mut self, _: &[u8]) {}
}
