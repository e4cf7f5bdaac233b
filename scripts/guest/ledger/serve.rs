//! The ledger on the network: a line asks, lines answer. No knowledge of how entries are kept.
//!
//! | request | answer |
//! |---|---|
//! | `PING` | `PONG` |
//! | `RUN` | `ACK n` for each entry once it is durable, until another line comes |
//! | `HOLD` | `HELD n`: nothing is written any more, entry n is the last |
//! | `CHECK n` | `LAST m`: all is read from the disk, entries up to m are there; n was acknowledged to whoever asks |
//!
//! What cannot be done is answered `ERR why`. There is one client at a time that lets entries be written.

use super::trouble::Trouble;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The port that the ledger listens on.
pub const PORT: u16 = 7778;
const LINE_MAX: u64 = 128;

/// Numbered entries on a disk.
pub trait Ledger {
    /// Writes the next entry for good, and says its number.
    fn write(&mut self) -> Result<u64, Trouble>;
    /// Reads all from the disk, and says which entry is the last.
    fn check(&mut self, acknowledged: u64) -> Result<u64, Trouble>;
}

/// A ledger, or why there is none.
type Shared<L> = Arc<Mutex<Result<L, Trouble>>>;

/// Serves everybody who connects, for good.
pub fn serve<L: Ledger + Send + 'static>(listener: &TcpListener, ledger: Result<L, Trouble>) {
    let ledger = Arc::new(Mutex::new(ledger));
    for stream in listener.incoming().flatten() {
        let ledger = Arc::clone(&ledger);
        // An error is the end of one connection; its peer notices.
        std::thread::spawn(move || serve_connection(&stream, &ledger));
    }
}

fn serve_connection<L: Ledger>(stream: &TcpStream, ledger: &Shared<L>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut input, mut last) = (BufReader::new(stream), 0);
    loop {
        let mut line = String::new();
        if input.by_ref().take(LINE_MAX).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let answer = match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["PING"] => "PONG".to_owned(),
            ["HOLD"] => format!("HELD {last}"),
            ["CHECK", number] => match number.parse() {
                Ok(number) => answer("LAST", with(ledger, |ledger| ledger.check(number))),
                Err(_) => "ERR no number".to_owned(),
            },
            ["RUN"] => {
                while !is_asked(&input)? {
                    let written = with(ledger, L::write);
                    last = *written.as_ref().unwrap_or(&last);
                    let failed = written.is_err();
                    say(stream, &answer("ACK", written))?;
                    if failed {
                        break;
                    }
                }
                continue;
            }
            _ => "ERR no such request".to_owned(),
        };
        say(stream, &answer)?;
    }
}

fn say(mut stream: &TcpStream, answer: &str) -> io::Result<()> {
    stream.write_all(format!("{answer}\n").as_bytes())
}

fn answer(word: &str, result: Result<u64, String>) -> String {
    result.map_or_else(|why| format!("ERR {why}"), |number| format!("{word} {number}"))
}

fn with<L>(ledger: &Shared<L>, act: impl FnOnce(&mut L) -> Result<u64, Trouble>) -> Result<u64, String> {
    // One who panicked has left an entry half-written; the check tells.
    let mut ledger: MutexGuard<'_, _> = ledger.lock().unwrap_or_else(PoisonError::into_inner);
    let result = match &mut *ledger {
        Ok(ledger) => act(ledger),
        Err(trouble) => return Err(trouble.to_string()),
    };
    result.map_err(|trouble| trouble.to_string())
}

/// Whether another line, or the connection's end, is there to be read.
fn is_asked(input: &BufReader<&TcpStream>) -> io::Result<bool> {
    if !input.buffer().is_empty() {
        return Ok(true);
    }
    let stream = input.get_ref();
    stream.set_nonblocking(true)?;
    let peeked = stream.peek(&mut [0]);
    stream.set_nonblocking(false)?;
    match peeked {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}
