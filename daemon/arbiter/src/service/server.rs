//! Connections: bounded in number, in all and from one source, and in how long each may be idle.

use super::committer::Desk;
use super::figures::ServiceFigures;
use super::frame::{NoFrame, receive, send};
use super::message::{Question, Refusal, Reply, enclose, open};
use super::store::CellStore;
use ft_tls::{Channel, Party, PartyKind, Places, Protection, SecuredService, TlsError};
use nix::poll::{PollFd, PollFlags, poll};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the listening thread looks whether it is to end.
const STOP_LOOK_MS: u16 = 100;
/// Between two lines about connections that cannot prove themselves.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(1);
const STACK_BYTES: usize = 512 << 10;

/// What connections may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerLimits {
    /// Connections in all.
    pub connections_max: usize,
    /// Connections from one address, or from one /64 of IPv6.
    pub per_source_max: usize,
    /// How long a connection may wait with its first question.
    pub first: Duration,
    /// How long it may wait with the next one.
    pub idle: Duration,
    /// How long the rest of a frame may take, and an answer that is not taken.
    pub frame: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections_max: 512,
            per_source_max: 64,
            first: Duration::from_secs(5),
            idle: Duration::from_secs(30),
            frame: Duration::from_secs(5),
        }
    }
}

/// A service that runs. Dropped, it ends; what it told is in its store.
#[derive(Debug)]
pub struct CellServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    limits: ServerLimits,
    protection: Protection,
    figures: Arc<ServiceFigures>,
    ended: AtomicBool,
    /// When a connection without proof was told last.
    complained: Mutex<Option<Instant>>,
    /// The open connections, by number.
    open: Mutex<HashMap<u64, TcpStream>>,
    places: Arc<Places>,
}

impl CellServer {
    /// Serves the cells of `store` on `listener`.
    pub fn start(
        listener: TcpListener,
        store: CellStore,
        limits: ServerLimits,
        protection: Protection,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            limits,
            protection,
            figures: Arc::default(),
            ended: AtomicBool::new(false),
            complained: Mutex::default(),
            open: Mutex::default(),
            places: Places::new(limits.connections_max, limits.per_source_max),
        });
        let (desk, committer) = Desk::start(store, Arc::clone(&shared.figures))?;
        let listening = Arc::clone(&shared);
        let acceptor = std::thread::Builder::new()
            .name("ftd-accept".into())
            .spawn(move || listening.accept_all(&listener, desk))?;
        Ok(Self { address, shared, threads: vec![acceptor, committer] })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has done so far.
    #[must_use]
    pub fn figures(&self) -> Arc<ServiceFigures> {
        Arc::clone(&self.shared.figures)
    }

    /// Whether one of its threads has ended, which none does by itself.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }
}

impl Drop for CellServer {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            // The acceptor ends the connections, and with the last of them the committer ends.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn accept_all(self: &Arc<Self>, listener: &TcpListener, desk: Desk) {
        let mut number = 0;
        while !self.ended.load(Ordering::SeqCst) {
            let mut ready = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut ready, STOP_LOOK_MS);
            match listener.accept() {
                Ok((stream, from)) => {
                    number += 1;
                    if let Err(e) = self.admit(stream, from.ip(), number, desk.clone()) {
                        tracing::debug!("a connection from {from} could not be served: {e}");
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                // Out of descriptors, say: those in use are bounded, and some end soon.
                Err(e) => {
                    tracing::debug!("no connection could be accepted: {e}");
                    std::thread::sleep(Duration::from_millis(STOP_LOOK_MS.into()));
                }
            }
        }
        for stream in self.open.lock().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Serves a connection on a thread of its own, if there is room for it.
    fn admit(self: &Arc<Self>, stream: TcpStream, from: IpAddr, number: u64, desk: Desk) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        let place = match self.places.take(from) {
            Ok(place) => place,
            Err(no_place) => {
                ServiceFigures::one(&self.figures.turned_away);
                let reason = no_place.to_string();
                return match self.protection {
                    // A greeting is small enough for any socket's buffer.
                    Protection::None => send(
                        &mut Channel::clear(stream),
                        &enclose(0, &Reply::Refused(Refusal::Busy { reason })),
                        self.limits.frame,
                    ),
                    // Not even a handshake is to be had.
                    Protection::Tls(_) => Err(io::Error::new(io::ErrorKind::ConnectionRefused, reason)),
                };
            }
        };
        self.enlist(number, stream.try_clone()?);
        let source = place.source();
        let shared = Arc::clone(self);
        let spawned =
            std::thread::Builder::new().name("ftd-serve".into()).stack_size(STACK_BYTES).spawn(move || {
                match shared.secure(stream) {
                    Ok(mut channel) => {
                        let end = shared.converse(&mut channel, &desk);
                        tracing::debug!("the connection from {source} has ended: {end}");
                        let _ = channel.socket().shutdown(Shutdown::Both);
                    }
                    Err(e) => shared.complain(source, &e),
                }
                drop(place);
                shared.delist(number);
            });
        // The place went with the closure.
        spawned.map(drop).inspect_err(|_| self.delist(number))
    }

    fn enlist(&self, number: u64, stream: TcpStream) {
        let mut open = self.open.lock();
        open.insert(number, stream);
        self.figures.connections.store(open.len() as u64, Ordering::Relaxed);
    }

    fn delist(&self, number: u64) {
        let mut open = self.open.lock();
        open.remove(&number);
        self.figures.connections.store(open.len() as u64, Ordering::Relaxed);
    }

    /// Shakes hands, where there is a certificate.
    fn secure(&self, stream: TcpStream) -> Result<Channel, TlsError> {
        let admits = |party: &Party| match party.kind() {
            PartyKind::Arbiter => Err(format!("it is {party}, and neither a node nor an operator")),
            PartyKind::Node | PartyKind::Operator | PartyKind::Observer => Ok(()),
        };
        self.protection.take(stream, SecuredService::Arbiter, admits, Instant::now() + self.limits.first)
    }

    /// Whoever cannot prove himself may try as often as he likes: few of his attempts are told.
    fn complain(&self, source: IpAddr, error: &TlsError) {
        ServiceFigures::one(&self.figures.unproven);
        let mut last = self.complained.lock();
        if last.is_none_or(|last| last.elapsed() >= COMPLAINT_PAUSE) {
            *last = Some(Instant::now());
            tracing::warn!("no connection in TLS from {source}: {error}");
        }
    }

    /// Answers questions until the connection ends; returns why it did.
    fn converse(&self, stream: &mut Channel, desk: &Desk) -> NoFrame {
        let ServerLimits { first, idle, frame: rest, .. } = self.limits;
        if let Err(e) = send(stream, &enclose(0, &Reply::Welcome), rest) {
            return e.into();
        }
        let mut patience = first;
        loop {
            let frame = match receive(stream, patience, rest) {
                Ok(frame) => frame,
                Err(end) => return end,
            };
            patience = idle;
            let reply = match open::<Question>(&frame) {
                Ok(question) => match may_not(stream.party(), &question) {
                    None => desk.answer(question),
                    Some(reason) => {
                        ServiceFigures::one(&self.figures.refusals);
                        Reply::Refused(Refusal::Question { reason })
                    }
                },
                Err(reason) => Reply::Refused(Refusal::Question { reason: super::message::short(reason) }),
            };
            if let Err(e) = send(stream, &enclose(frame.id, &reply), rest) {
                return e.into();
            }
        }
    }
}

/// Why this party may not ask this; none: it may. In the clear everybody may ask everything.
fn may_not(party: Option<&Party>, question: &Question) -> Option<String> {
    let party = party?;
    let (is_node, is_operator) = match party.kind() {
        PartyKind::Node => (true, false),
        PartyKind::Operator | PartyKind::Observer => (false, true),
        PartyKind::Arbiter => (false, false),
    };
    let may = match question {
        Question::Set { .. } | Question::Probe { .. } | Question::Member { .. } => is_node,
        Question::Read { .. } => is_node || is_operator,
        Question::List { .. } | Question::History { .. } | Question::Registers { .. } => is_operator,
    };
    (!may).then(|| format!("{party} may not ask this"))
}
