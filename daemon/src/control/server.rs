//! Serves the control socket, and each connection of a remote operator once that is secured (`remote`). The server
//! neither trusts its clients nor waits for them: it bounds their number, the length of their requests and the time
//! they take. No client can hold up another one, or the VM.

use super::api::{
    Failure, PROTOCOL_VERSION, REQUEST_BYTES_MAX, Request, RequestLine, Response, Status, TIMEOUT_MS_MAX,
};
use super::caller::Caller;
use crate::disks::OnDifference;
use crate::role::Start;
use std::fs::{self, Permissions};
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};

/// Clients at a time.
pub const CLIENTS_MAX: usize = 64;
/// Time for a client to send its next request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for a client to take what is sent to it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
const WATCH_INTERVAL_MS_MIN: u64 = 50;

/// What the daemon lets its operator see and do.
pub trait Controlled: Send + Sync + 'static {
    /// The status, published by the daemon at every change and at least once a second. Serving it asks nothing of the
    /// replication threads.
    fn status(&self) -> watch::Receiver<Arc<Status>>;

    /// Has the backup go on with the VM; ends when that is done, refused or given up. What was done, in words. Dropping
    /// the future does not call it back, but the time does while it can.
    fn switchover(&self, timeout: Duration) -> impl Future<Output = Result<String, Failure>> + Send;

    /// Has the VM booted here, or gone on with; ends when that is certain.
    fn start(&self, how: Start, timeout: Duration) -> impl Future<Output = Result<String, Failure>> + Send;

    /// Has the daemon end: the VM moves first, or is powered off within this time. Ends when that is certain.
    fn stop(&self, power_off: Option<Duration>) -> impl Future<Output = Result<String, Failure>> + Send;

    /// Begins to compare the backup's disk images with this node's, at so many bytes a second.
    fn verify_disks(
        &self,
        bytes_per_s: u64,
        on_difference: OnDifference,
    ) -> impl Future<Output = Result<String, Failure>> + Send;

    /// A connection to the serial console.
    fn console(&self) -> Result<ConsoleAttachment, Failure>;

    /// The metrics in the text format of Prometheus.
    fn metrics(&self) -> String;
}

/// A connection to the serial console.
#[derive(Debug)]
pub struct ConsoleAttachment {
    /// What was written last, for context.
    pub recent: Vec<u8>,
    /// What the guest writes from now on.
    pub output: broadcast::Receiver<Arc<[u8]>>,
    /// What is typed.
    pub input: mpsc::Sender<Vec<u8>>,
}

/// Why there is no control socket.
#[derive(Debug, Error)]
pub enum BindError {
    /// Somebody listens there.
    #[error("control socket {}: another daemon listens on it", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// There is something that is no socket.
    #[error("control socket {}: the path exists and is not a socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The group does not exist.
    #[error("control socket {}: this host has no group '{group}'", path.display())]
    NoGroup {
        /// The path.
        path: PathBuf,
        /// The group.
        group: String,
    },
    /// Anything else.
    #[error("control socket {}: {at}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// The step that failed.
        at: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// A bound control socket; its file goes with it.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    listener: UnixListener,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Server {
    /// Binds the socket: with mode 0660 for the group, or 0600 without one. A socket that nobody listens on is
    /// replaced. Must be called within a tokio runtime.
    pub fn bind(path: &Path, group: Option<&str>) -> Result<Self, BindError> {
        let failed = |at| move |source| BindError::Io { path: path.to_owned(), at, source };
        let gid = match group {
            None => None,
            Some(name) => match nix::unistd::Group::from_name(name) {
                Ok(Some(group)) => Some(group.gid.as_raw()),
                Ok(None) => return Err(BindError::NoGroup { path: path.to_owned(), group: name.to_owned() }),
                Err(errno) => return Err(failed("looking up its group")(errno.into())),
            },
        };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed("making its directory"))?;
        }
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("looking at it")(error)),
            Ok(metadata) if !std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type()) => {
                return Err(BindError::NotASocket { path: path.to_owned() });
            }
            // Only a refusal proves that nobody listens; a full backlog, say, does not.
            Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(failed("removing a stale one"))?;
                }
                _ => return Err(BindError::InUse { path: path.to_owned() }),
            },
        }
        let listener = UnixListener::bind(path).map_err(failed("binding"))?;
        let server = Self { path: path.to_owned(), listener };
        // Until here it has the process's umask; the group comes before the mode that lets it in.
        std::os::unix::fs::chown(path, None, gid).map_err(failed("giving it to its group"))?;
        let mode = if gid.is_some() { 0o660 } else { 0o600 };
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed("setting its mode"))?;
        Ok(server)
    }

    /// Takes clients until the future is dropped, and has them served by another runtime.
    pub async fn serve<C: Controlled>(self, controlled: Arc<C>, clients: Handle) {
        let places = Arc::new(Semaphore::new(CLIENTS_MAX));
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: they come back when clients go.
                    tracing::warn!(%error, "control socket: cannot accept a client; trying again");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            match places.clone().try_acquire_owned() {
                Ok(place) => {
                    let controlled = controlled.clone();
                    clients.spawn(async move {
                        let _place = place;
                        // How a client ends is its own business.
                        if let Err(error) = serve_one(stream.into_std(), &*controlled).await {
                            tracing::debug!(%error, "control client gone");
                        }
                    });
                }
                Err(_) => {
                    let busy = Failure::Busy(format!(
                        "{CLIENTS_MAX} clients are already connected; try again later"
                    ));
                    // A new connection's buffer is empty, so this does not wait.
                    let _ = stream.try_write(&line(&Response::Error(busy)));
                }
            }
        }
    }
}

async fn serve_one<C: Controlled>(
    stream: io::Result<std::os::unix::net::UnixStream>,
    controlled: &C,
) -> io::Result<()> {
    let (reader, writer) = UnixStream::from_std(stream?)?.into_split();
    Session::new(reader, writer, Caller::local()).serve(controlled).await
}

/// A connection with a client, over whichever transport.
pub(super) struct Session<R, W> {
    reader: BufReader<R>,
    writer: W,
    caller: Caller,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Session<R, W> {
    pub(super) fn new(reader: R, writer: W, caller: Caller) -> Self {
        Self { reader: BufReader::new(reader), writer, caller }
    }

    /// Answers requests until the client hangs up, is silent for too long or takes nothing.
    pub(super) async fn serve<C: Controlled>(mut self, controlled: &C) -> io::Result<()> {
        loop {
            let request = match self.read_request().await? {
                None => return Ok(()),
                Some(Ok(request)) => request,
                Some(Err(problem)) => {
                    return self.send(&Response::Error(Failure::BadRequest(problem.to_string()))).await;
                }
            };
            tracing::debug!(?request, caller = %self.caller, "control request");
            if let Some(refused) = self.caller.refusal(&request) {
                self.send(&Response::Error(refused)).await?;
                continue;
            }
            let change = self.caller.tell_begin(&request);
            let response = match request {
                Request::Status => Response::Status(Box::new(current(&controlled.status()))),
                Request::Watch { interval_ms } => return self.watch(controlled.status(), interval_ms).await,
                Request::Switchover { timeout_ms } => {
                    let limit = Duration::from_millis(timeout_ms.min(TIMEOUT_MS_MAX));
                    controlled.switchover(limit).await.map_or_else(Response::Error, Response::Done)
                }
                Request::Wait { goal, timeout_ms } => {
                    let limit = Duration::from_millis(timeout_ms.min(TIMEOUT_MS_MAX));
                    let mut status = controlled.status();
                    let reached = tokio::select! {
                        reached = timeout(limit, status.wait_for(|status| goal.is_reached(status))) => {
                            reached.map(|result| result.map(|status| Status::clone(&status)))
                        }
                        // A client that waits has nothing to say, unless it hangs up.
                        _ = self.reader.fill_buf() => return Ok(()),
                    };
                    match reached {
                        Ok(Ok(status)) => Response::Status(Box::new(status)),
                        Ok(Err(_)) => Response::Error(Failure::Failed("the daemon is ending".into())),
                        Err(_) => {
                            let now = current(&controlled.status());
                            let message = format!("it is {} {}: {}", now.role, now.state, now.detail);
                            Response::Error(Failure::TimedOut(message))
                        }
                    }
                }
                Request::Start { how, timeout_ms } => {
                    let limit = Duration::from_millis(timeout_ms.min(TIMEOUT_MS_MAX));
                    controlled.start(how, limit).await.map_or_else(Response::Error, Response::Done)
                }
                Request::Stop { power_off_ms } => {
                    let within = power_off_ms.map(|ms| Duration::from_millis(ms.min(TIMEOUT_MS_MAX)));
                    controlled.stop(within).await.map_or_else(Response::Error, Response::Done)
                }
                Request::VerifyDisks { mib_s, repair } => {
                    let on_difference = if repair { OnDifference::Send } else { OnDifference::Tell };
                    let begun = controlled.verify_disks(mib_s.saturating_mul(1 << 20), on_difference);
                    begun.await.map_or_else(Response::Error, Response::Done)
                }
                Request::Console => match controlled.console() {
                    Ok(attachment) => {
                        self.send(&Response::Console).await?;
                        return self.console(attachment).await;
                    }
                    Err(failure) => Response::Error(failure),
                },
                Request::Metrics => Response::Metrics(controlled.metrics()),
            };
            if let Some(name) = change {
                self.caller.tell_end(name, &response);
            }
            self.send(&response).await?;
        }
    }

    /// The next request; `None` at the end, or when the client says nothing for too long.
    async fn read_request(&mut self) -> io::Result<Option<Result<Request, BadRequest>>> {
        let mut bytes = Vec::new();
        let mut limited = (&mut self.reader).take(REQUEST_BYTES_MAX as u64 + 1);
        match timeout(REQUEST_TIMEOUT, limited.read_until(b'\n', &mut bytes)).await {
            Err(_) => return Ok(None),
            Ok(read) => read?,
        };
        if bytes.is_empty() {
            return Ok(None);
        }
        if bytes.len() > REQUEST_BYTES_MAX {
            return Ok(Some(Err(BadRequest::TooLong)));
        }
        Ok(Some(parse(&bytes)))
    }

    async fn watch(mut self, mut status: watch::Receiver<Arc<Status>>, interval_ms: u64) -> io::Result<()> {
        let interval = Duration::from_millis(interval_ms.clamp(WATCH_INTERVAL_MS_MIN, TIMEOUT_MS_MAX));
        loop {
            let shown = Arc::clone(&status.borrow_and_update());
            self.send(&Response::Status(Box::new(Status::clone(&shown)))).await?;
            let next = Instant::now() + interval;
            let changed = status.wait_for(|now| (now.role, now.state) != (shown.role, shown.state));
            tokio::select! {
                changed = timeout_at(next, changed) => if let Ok(Err(_)) = changed { return Ok(()) },
                _ = self.reader.fill_buf() => return Ok(()),
            }
        }
    }

    async fn console(mut self, mut attachment: ConsoleAttachment) -> io::Result<()> {
        self.write(&attachment.recent).await?;
        let mut typed = [0; 1024];
        loop {
            tokio::select! {
                output = attachment.output.recv() => match output {
                    Ok(bytes) => self.write(&bytes).await?,
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        self.write(b"\r\n[ftd: some output was too fast for this console]\r\n").await?;
                    }
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                },
                // Nothing more is read from the client while the guest does not take what it typed.
                input = async {
                    let place = attachment.input.reserve().await.ok();
                    (place, self.reader.read(&mut typed).await)
                } => match input {
                    (Some(place), Ok(len)) if len > 0 => place.send(typed[..len].to_vec()),
                    (_, Err(error)) => return Err(error),
                    _ => return Ok(()),
                },
            }
        }
    }

    /// Sends a response.
    pub(super) async fn send(&mut self, response: &Response) -> io::Result<()> {
        self.write(&line(response)).await
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = async {
            self.writer.write_all(bytes).await?;
            self.writer.flush().await
        };
        timeout(WRITE_TIMEOUT, written)
            .await
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }
}

fn current(status: &watch::Receiver<Arc<Status>>) -> Status {
    Status::clone(&status.borrow())
}

fn line(response: &Response) -> Vec<u8> {
    let mut bytes =
        serde_json::to_vec(response).expect("strings and finite or null numbers always have a JSON form");
    bytes.push(b'\n');
    bytes
}

/// Why a line is no request.
#[derive(Debug, Error)]
pub(super) enum BadRequest {
    #[error("a line is longer than {REQUEST_BYTES_MAX} bytes")]
    TooLong,
    #[error("protocol version {0}; this daemon speaks {PROTOCOL_VERSION}")]
    Version(u32),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// Reads a line.
pub(super) fn parse(bytes: &[u8]) -> Result<Request, BadRequest> {
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } = serde_json::from_slice(bytes)?;
    if version != PROTOCOL_VERSION {
        return Err(BadRequest::Version(version));
    }
    let line: RequestLine = serde_json::from_slice(bytes)?;
    Ok(line.request)
}

#[cfg(test)]
pub(super) mod tests;
