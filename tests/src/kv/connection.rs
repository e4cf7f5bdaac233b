//! One TCP connection to the service: a request out, an answer line in.

use super::protocol::VALUE_MAX;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// An answer longer than this is none of the service's.
const ANSWER_MAX: usize = VALUE_MAX + 1024;

/// Why there is no connection, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// It could not be made.
    #[error("cannot connect to {addr}: {source}")]
    Connect {
        /// The service's address.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The peer closed it.
    #[error("the connection was closed by the peer")]
    Closed,
    /// It was reset, or the network said that there is no peer.
    #[error("the connection failed: {0}")]
    Failed(#[from] std::io::Error),
    /// No answer came in time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// What came was no answer line.
    #[error("the answer has more than {ANSWER_MAX} bytes")]
    Overlong,
}

/// A connection.
pub struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Connection {
    /// Connects.
    pub fn open(addr: SocketAddr, timeout: Duration) -> Result<Self, ConnectionError> {
        let connect = |source| ConnectionError::Connect { addr, source };
        let stream = TcpStream::connect_timeout(&addr, timeout).map_err(connect)?;
        stream.set_nodelay(true).map_err(connect)?;
        stream.set_write_timeout(Some(timeout)).map_err(connect)?;
        Ok(Self { stream, received: Vec::new() })
    }

    /// Sends one request.
    pub fn send(&mut self, request: &str) -> Result<(), ConnectionError> {
        let mut line = String::with_capacity(request.len() + 1);
        line.push_str(request);
        line.push('\n');
        Ok(self.stream.write_all(line.as_bytes())?)
    }

    /// Waits up to `wait` for an answer line. `None`: not yet.
    pub fn receive(&mut self, wait: Duration) -> Result<Option<String>, ConnectionError> {
        let deadline = Instant::now() + wait;
        loop {
            if let Some(end) = self.received.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            if self.received.len() > ANSWER_MAX {
                return Err(ConnectionError::Overlong);
            }
            if !read_by(&mut self.stream, &mut self.received, deadline)? {
                return Ok(None);
            }
        }
    }

    /// Asks and waits for the answer.
    pub fn call(&mut self, request: &str, timeout: Duration) -> Result<String, ConnectionError> {
        self.send(request)?;
        self.receive(timeout)?.ok_or(ConnectionError::TimedOut(timeout))
    }
}

/// Adds what comes to what was received. `false`: nothing came by then.
pub(crate) fn read_by(
    stream: &mut TcpStream,
    received: &mut Vec<u8>,
    deadline: Instant,
) -> Result<bool, ConnectionError> {
    let mut bytes = [0; 16 * 1024];
    loop {
        // A timeout of zero would mean none.
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut bytes) {
            Ok(0) => return Err(ConnectionError::Closed),
            Ok(n) => {
                received.extend_from_slice(&bytes[..n]);
                return Ok(true);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if Instant::now() >= deadline {
                    return Ok(false);
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}
