//! The client of the control socket: blocking, for `ftctl` and for tests.

use super::api::{Failure, PROTOCOL_VERSION, RESPONSE_BYTES_MAX, Request, RequestLine, Response, Status};
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// Where daemons put their sockets unless told otherwise.
pub const SOCKET_DIRECTORY: &str = "/run/ftd";
/// How much longer than its own limit a daemon's answer is waited for.
const GRACE: Duration = Duration::from_secs(40);

/// How long a stop may take at most, the guest's own shutting down apart: the VM moves.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No daemon there.
    #[error("no daemon answers on {}: {source}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No socket to choose.
    #[error("no daemon runs here: there is no socket in {}", directory.display())]
    NoSocket {
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// Several sockets to choose from.
    #[error("more than one VM runs here; choose one with --vm: {}", vms.join(", "))]
    Several {
        /// Their VMs.
        vms: Vec<String>,
    },
    /// The daemon closed the connection, or said nothing in time.
    #[error("the daemon closed the connection: {0}")]
    BrokenOff(io::Error),
    /// What came is no response.
    #[error("cannot understand the daemon's answer: {0}")]
    Nonsense(String),
    /// The daemon did not do it.
    #[error(transparent)]
    Failure(#[from] Failure),
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the daemon behind a socket.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        match UnixStream::connect(path) {
            Ok(stream) => Ok(Self { stream: BufReader::new(stream) }),
            Err(source) => Err(ClientError::Unreachable { path: path.to_owned(), source }),
        }
    }

    /// Sends a request and reads the first response; a failure is an error. Requests with a time limit of their own are
    /// given that long and a grace.
    pub fn request(&mut self, request: Request) -> Result<Response, ClientError> {
        let limit = match request {
            Request::Switchover { timeout_ms }
            | Request::Start { timeout_ms, .. }
            | Request::Wait { timeout_ms, .. } => Duration::from_millis(timeout_ms),
            Request::Stop { power_off_ms } => {
                STOP_LIMIT.saturating_add(Duration::from_millis(power_off_ms.unwrap_or(0)))
            }
            Request::Watch { interval_ms } => Duration::from_millis(interval_ms),
            _ => Duration::ZERO,
        };
        let socket = self.stream.get_ref();
        socket.set_read_timeout(Some(limit.saturating_add(GRACE))).map_err(ClientError::BrokenOff)?;
        socket.set_write_timeout(Some(GRACE)).map_err(ClientError::BrokenOff)?;
        let mut line = serde_json::to_vec(&RequestLine { version: PROTOCOL_VERSION, request })
            .expect("enums of numbers and strings always have a JSON form");
        line.push(b'\n');
        // A daemon that refuses at once may have closed before it read; its answer is there all the same.
        let sent = self.stream.get_mut().write_all(&line);
        match (self.response(), sent) {
            (Err(ClientError::BrokenOff(_)), Err(error)) => Err(ClientError::BrokenOff(error)),
            (response, _) => response,
        }
    }

    /// Reads one response more (after `Watch`).
    pub fn response(&mut self) -> Result<Response, ClientError> {
        let mut line = Vec::new();
        let mut limited = (&mut self.stream).take(RESPONSE_BYTES_MAX as u64 + 1);
        limited.read_until(b'\n', &mut line).map_err(ClientError::BrokenOff)?;
        if line.is_empty() {
            return Err(ClientError::BrokenOff(io::ErrorKind::UnexpectedEof.into()));
        }
        match serde_json::from_slice(&line) {
            Ok(Response::Error(failure)) => Err(failure.into()),
            Ok(response) => Ok(response),
            Err(error) => Err(ClientError::Nonsense(error.to_string())),
        }
    }

    /// The status now.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        status_in(self.request(Request::Status)?)
    }

    /// Turns the connection into the console: what is left of the reading side (it may hold output already), and the
    /// writing side.
    pub fn console(mut self) -> Result<(BufReader<UnixStream>, UnixStream), ClientError> {
        match self.request(Request::Console)? {
            Response::Console => {}
            other => return Err(unexpected(&other)),
        }
        let socket = self.stream.get_ref();
        socket.set_read_timeout(None).map_err(ClientError::BrokenOff)?;
        let writer = socket.try_clone().map_err(ClientError::BrokenOff)?;
        Ok((self.stream, writer))
    }
}

/// The status that a response holds.
pub fn status_in(response: Response) -> Result<Status, ClientError> {
    match response {
        Response::Status(status) => Ok(*status),
        other => Err(unexpected(&other)),
    }
}

/// The error for a response of the wrong kind.
#[must_use]
pub fn unexpected(response: &Response) -> ClientError {
    ClientError::Nonsense(format!("unexpected kind of response: {response:?}"))
}

/// Whether somebody may listen there: only a refusal proves that nobody does.
fn is_live(path: &Path) -> bool {
    !UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// The only socket in a directory that a daemon listens on: one that was killed leaves its socket behind.
pub fn only_socket(directory: &Path) -> Result<PathBuf, ClientError> {
    let none = || ClientError::NoSocket { directory: directory.to_owned() };
    let mut sockets: Vec<PathBuf> = fs::read_dir(directory)
        .map_err(|_| none())?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sock") && is_live(path))
        .collect();
    sockets.sort();
    match sockets.len() {
        0 => Err(none()),
        1 => Ok(sockets.remove(0)),
        _ => {
            let stem = |path: &PathBuf| Some(path.file_stem()?.to_string_lossy().into_owned());
            Err(ClientError::Several { vms: sockets.iter().filter_map(stem).collect() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_socket_that_a_killed_daemon_left_does_not_count() {
        let directory = tempfile::tempdir().unwrap();
        let bind = |vm: &str| UnixListener::bind(directory.path().join(format!("{vm}.sock"))).unwrap();
        drop(bind("dead"));
        assert!(matches!(only_socket(directory.path()), Err(ClientError::NoSocket { .. })));
        let _web = bind("web");
        assert_eq!(only_socket(directory.path()).unwrap(), directory.path().join("web.sock"));
        let _db = bind("db");
        let several = only_socket(directory.path()).unwrap_err();
        assert!(matches!(&several, ClientError::Several { vms } if vms == &["db", "web"]), "{several}");
    }
}
