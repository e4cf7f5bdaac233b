//! The client of the control socket, and of a daemon on another machine: blocking, for `ftctl` and for tests.

use super::api::{Failure, PROTOCOL_VERSION, RESPONSE_BYTES_MAX, Request, RequestLine, Response, Status};
use super::host::{DaemonPlace, HostPort, NoWay};
use ft_tls::{Channel, TlsError};
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
    /// No daemon on the other machine.
    #[error("no daemon answers at {at}: {source}")]
    Away {
        /// Where.
        at: HostPort,
        /// Why.
        source: io::Error,
    },
    /// Who is there has not proven to be the daemon, or does not take this client.
    #[error("no connection in TLS with {at}: {why}")]
    Unproven {
        /// Where.
        at: HostPort,
        /// Why.
        why: String,
    },
    /// It is another daemon than the one that was meant.
    #[error(
        "the daemon at {at} is of VM '{vm}', and not of '{wanted}': each VM of a host has a port of its own"
    )]
    OtherVm {
        /// Where.
        at: HostPort,
        /// Its VM.
        vm: String,
        /// The one that was meant.
        wanted: String,
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
    stream: BufReader<ClientStream>,
}

/// What a client's lines go over.
#[derive(Debug)]
pub enum ClientStream {
    /// The control socket.
    Local(UnixStream),
    /// TLS.
    Remote(Channel),
}

impl ClientStream {
    /// The same connection again: both may be used at the same time, one to read and one to write.
    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Local(stream) => Self::Local(stream.try_clone()?),
            Self::Remote(channel) => Self::Remote(channel.try_clone()?),
        })
    }

    fn set_timeouts(&self, read: Option<Duration>, write: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Local(stream) => {
                stream.set_read_timeout(read).and_then(|()| stream.set_write_timeout(write))
            }
            Self::Remote(channel) => {
                let socket = channel.socket();
                socket.set_read_timeout(read).and_then(|()| socket.set_write_timeout(write))
            }
        }
    }
}

impl Read for ClientStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Local(stream) => stream.read(into),
            Self::Remote(channel) => channel.read(into),
        }
    }
}

impl Write for ClientStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Local(stream) => stream.write(bytes),
            Self::Remote(channel) => channel.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Client {
    /// Connects to the daemon behind a socket.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        match UnixStream::connect(path) {
            Ok(stream) => Ok(Self { stream: BufReader::new(ClientStream::Local(stream)) }),
            Err(source) => Err(ClientError::Unreachable { path: path.to_owned(), source }),
        }
    }

    /// Connects to a daemon on another machine, and hears from it who it is.
    pub fn connect_to(place: &DaemonPlace) -> Result<Self, ClientError> {
        let at = || place.at.clone();
        let unproven = |why: &TlsError| ClientError::Unproven { at: at(), why: why.to_string() };
        let channel = place.connect().map_err(|e| match e {
            NoWay::Away(source) => ClientError::Away { at: at(), source },
            NoWay::Unproven(e) => unproven(&e),
        })?;
        let mut client = Self { stream: BufReader::new(ClientStream::Remote(channel)) };
        let greeting = client.response().map_err(|e| match e {
            // It judges this client's certificate after the handshake is over here.
            ClientError::BrokenOff(source) => match source.get_ref().and_then(|e| e.downcast_ref()) {
                Some(of_tls) => unproven(of_tls),
                None => ClientError::Away { at: at(), source },
            },
            other => other,
        })?;
        match greeting {
            Response::Greeting(greeting) => match &place.vm {
                Some(wanted) if *wanted != greeting.vm => {
                    Err(ClientError::OtherVm { at: at(), vm: greeting.vm, wanted: wanted.clone() })
                }
                _ => Ok(client),
            },
            other => Err(unexpected(&other)),
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
        let timeouts = self.stream.get_ref().set_timeouts(Some(limit.saturating_add(GRACE)), Some(GRACE));
        timeouts.map_err(ClientError::BrokenOff)?;
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
    pub fn console(mut self) -> Result<(BufReader<ClientStream>, ClientStream), ClientError> {
        match self.request(Request::Console)? {
            Response::Console => {}
            other => return Err(unexpected(&other)),
        }
        let stream = self.stream.get_ref();
        let writer = stream.set_timeouts(None, Some(GRACE)).and_then(|()| stream.try_clone());
        Ok((self.stream, writer.map_err(ClientError::BrokenOff)?))
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
