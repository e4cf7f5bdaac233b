//! A long way: bytes arrive a fixed time after they were sent, however many are under way at once. So does a far link,
//! unlike a pause of the stream.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Pieces under way at most; with more, the sender waits.
const PIECES_MAX: usize = 4096;
const PIECE_BYTES: usize = 64 * 1024;

/// Reads what its source sent some time ago.
pub struct Distant {
    arriving: Receiver<Piece>,
    piece: io::Cursor<Vec<u8>>,
}

struct Piece {
    due: Instant,
    /// None left: the source has ended.
    content: io::Result<Vec<u8>>,
}

impl Distant {
    /// Puts `source` at this distance. It is read by a thread of its own, until it ends or nobody reads on.
    pub fn start(source: impl Read + Send + 'static, delay: Duration) -> Self {
        let (departing, arriving) = sync_channel(PIECES_MAX);
        thread::spawn(move || depart(source, delay, &departing));
        Self { arriving, piece: io::Cursor::default() }
    }
}

fn depart(mut source: impl Read, delay: Duration, departing: &SyncSender<Piece>) {
    let mut chunk = vec![0; PIECE_BYTES];
    loop {
        let content = match source.read(&mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map(|length| chunk[..length].to_vec()),
        };
        let is_last = content.as_ref().map_or(true, Vec::is_empty);
        if departing.send(Piece { due: Instant::now() + delay, content }).is_err() || is_last {
            return;
        }
    }
}

impl Read for Distant {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.piece.read(buffer)?;
        if length > 0 {
            return Ok(length);
        }
        let Ok(Piece { due, content }) = self.arriving.recv() else { return Ok(0) };
        thread::sleep(due.saturating_duration_since(Instant::now()));
        self.piece = io::Cursor::new(content?);
        self.piece.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_arrives_whole_and_late() {
        let sent: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        let (delay, start) = (Duration::from_millis(40), Instant::now());
        let mut distant = Distant::start(io::Cursor::new(sent.clone()), delay);
        let mut arrived = vec![0];
        distant.read_exact(&mut arrived).unwrap();
        assert!(start.elapsed() >= delay, "{:?}", start.elapsed());
        distant.read_to_end(&mut arrived).unwrap();
        assert_eq!(arrived, sent);
    }

    #[test]
    fn an_error_arrives_behind_what_came_before_it() {
        struct Broken(bool);
        impl Read for Broken {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                if std::mem::replace(&mut self.0, true) {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                buffer[0] = 7;
                Ok(1)
            }
        }
        let mut distant = Distant::start(Broken(false), Duration::from_millis(1));
        let mut arrived = Vec::new();
        assert_eq!(distant.read_to_end(&mut arrived).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(arrived, [7]);
    }
}
