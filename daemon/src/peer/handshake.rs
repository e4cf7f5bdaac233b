//! Both ends of a new connection, up to the point where two nodes know that they fit each other. The listener takes
//! hellos; the dialler sends them. Every step has a deadline, every refusal a reason.

use super::error::HandshakeError;
use super::news::PeerNews;
use super::port::{PeerPlace, Port};
use super::pulse::PulseEnds;
use super::rendezvous::Rendezvous;
use super::stream::{Fitting, PeerReader, PeerStream, PeerWriter, tune};
use super::survey;
use crate::config::Name;
use crate::host::{Shortage, Unread};
use crate::limited::{Limited, unsaid};
use crate::nonce::random_nonce;
use crate::observe::RefusingService;
use crate::outlet::Outlet;
use crate::role::ConnId;
use ft_checkpoint::wire::handshake::{self, Agreed, Refusal, Side};
use ft_checkpoint::wire::identity::Fact;
use ft_checkpoint::wire::message::{Held, Hello, Identity, Refuse, Welcome};
use ft_checkpoint::wire::{Frame, FrameError, FrameReader, FrameWriter, Message, vm_id};
use ft_confine::ThreadKind;
use ft_tls::{Channel, Party, PartyKind, SecuredService, TlsError};
use ft_vm::machine::CpuProfile;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// A whole handshake takes no longer.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(2);
/// Connections that are shaking hands at once; more are closed.
const HANDSHAKES_MAX: usize = 64;
/// A dial takes no longer.
const DIAL_LIMIT: Duration = Duration::from_secs(1);
/// Of a refusal that people are shown.
const REFUSAL_CHARS_MAX: usize = 8192;
/// Bytes of a refused peer that are read, to be thrown away.
const UNREAD_BYTES_MAX: u64 = 1 << 20;
/// Between two dials.
const DIAL_PAUSE: Duration = Duration::from_millis(50);
/// Between two dials to a peer that has refused so often that it will do so for a while, and while a node reads its
/// files.
const REFUSED_PAUSE: Duration = Duration::from_millis(250);
const REFUSED_OFTEN: u32 = 20;
/// Between two dials while this host has not what a backup needs.
const LACK_PAUSE: Duration = Duration::from_secs(1);
/// Lines about connections that are refused: a few, then one each ten seconds.
const REFUSAL_LINES: (u32, Duration) = (8, Duration::from_secs(10));

/// What this node says of itself.
pub struct Local {
    /// All but the generation, which `generation` holds, and the facts that `contents` tells.
    pub lasting: Identity,
    /// What the machine's files hold; or why that is not known yet.
    pub contents: TellContents,
    /// What this host lacks to be the backup.
    pub lacks: TellLack,
    /// Who the peer is: its name counts, not the one in `lasting`.
    pub peer: Arc<PeerPlace>,
    /// The highest generation known.
    pub generation: AtomicU64,
    /// What this node holds, asked at every dial.
    pub held: Box<dyn Fn() -> Option<Held> + Send + Sync>,
}

/// Tells what the machine's files hold, or why that is not known yet. Asked at every handshake.
pub type TellContents = Box<dyn Fn() -> Result<Vec<Fact>, Unread> + Send + Sync>;

/// Tells what this host lacks to receive a copy of the VM. Asked at every dial of a node that holds none.
pub type TellLack = Box<dyn Fn() -> Option<Shortage> + Send + Sync>;

impl Local {
    fn shortage(&self) -> Option<Refusal> {
        let what = (self.lacks)()?.to_string();
        Some(Refusal::Lacks { node: self.lasting.node.clone(), what })
    }

    /// All but the facts of files.
    pub(super) fn without_files(&self) -> Identity {
        let mut identity = self.lasting.clone();
        identity.peer = self.peer.get().node.to_string();
        identity.generation = self.generation.load(Ordering::Relaxed);
        identity
    }

    fn identity(&self) -> Result<Identity, Refusal> {
        let mut identity = self.without_files();
        let not_ready =
            |unread: Unread| Refusal::NotReady { node: identity.node.clone(), why: unread.to_string() };
        identity.facts.extend((self.contents)().map_err(not_ready)?);
        Ok(identity)
    }
}

pub(super) fn check(theirs: &Identity, ours: &Identity, side: Side) -> Result<Agreed, Refusal> {
    handshake::check(theirs, ours, side, |theirs, ours| match side {
        // The VM runs here and would go on there.
        Side::Primary => cpu_fits(theirs, ours),
        Side::Backup => cpu_fits(ours, theirs),
    })
}

/// Why a machine cannot move between two CPUs.
#[derive(Debug, thiserror::Error)]
enum CpuError {
    #[error("unreadable description: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("{0}")]
    Mismatch(String),
}

/// Whether a machine that runs on CPU `from` can go on on CPU `to`. Where the engine is software the CPU is no fact.
fn cpu_fits(to: &[u8], from: &[u8]) -> Result<(), CpuError> {
    let (to, from): (CpuProfile, CpuProfile) = (serde_json::from_slice(to)?, serde_json::from_slice(from)?);
    let differences = to.differences(&from);
    let fatal: Vec<_> =
        differences.iter().filter(|difference| difference.is_fatal()).map(ToString::to_string).collect();
    if fatal.is_empty() { Ok(()) } else { Err(CpuError::Mismatch(fatal.join("; "))) }
}

/// Numbers for connections.
#[derive(Default)]
pub struct ConnIds(AtomicU64);

impl ConnIds {
    /// A number never given before.
    pub fn next(&self) -> ConnId {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Takes connections of peers for as long as the process lives.
pub fn listen(
    mut port: Port,
    local: Arc<Local>,
    ids: Arc<ConnIds>,
    news: Outlet<PeerNews>,
) -> std::io::Result<()> {
    let busy = Arc::new(AtomicUsize::new(0));
    let complaints = Arc::new(Limited::new(REFUSAL_LINES));
    let rendezvous = Arc::new(Rendezvous::default());
    let telemetry = port.telemetry();
    std::thread::Builder::new().name("ftd-listen".into()).spawn(move || {
        loop {
            let stream = match port.accept() {
                Ok(stream) => stream,
                Err(e) => {
                    tracing::warn!("cannot accept a connection from the peer: {e}");
                    std::thread::sleep(DIAL_PAUSE);
                    continue;
                }
            };
            if busy.load(Ordering::Relaxed) >= HANDSHAKES_MAX {
                tracing::debug!("too many handshakes at once: closing the newest connection");
                telemetry.refused(RefusingService::Replication, "full");
                continue;
            }
            busy.fetch_add(1, Ordering::Relaxed);
            let (local, ids, news, slot) =
                (Arc::clone(&local), Arc::clone(&ids), news.clone(), BusySlot(Arc::clone(&busy)));
            let (complaints, rendezvous, telemetry) =
                (Arc::clone(&complaints), Arc::clone(&rendezvous), Arc::clone(&telemetry));
            let spawned = std::thread::Builder::new().name("ftd-hello".into()).spawn(move || {
                ft_confine::this_thread(ThreadKind::Link);
                let _slot = slot;
                let from = stream.peer_addr().ok();
                match take_connection(stream, &local, &rendezvous) {
                    Ok(Taken::Link(shaken, hello)) => {
                        let fitting = shaken.fitting(ids.next(), hello.identity.generation);
                        let _ = news.tell(PeerNews::Accepted { fitting, hello });
                    }
                    Ok(Taken::Pulse | Taken::Question) => {}
                    Err(e) => {
                        if !e.is_reading() {
                            telemetry.refused(RefusingService::Replication, e.kind());
                            complain(&complaints, from, &e);
                        }
                        if let HandshakeError::Misfit(_) | HandshakeError::Declined(_) = e {
                            let _ = news.tell(PeerNews::TurnedAway(e.to_string()));
                        }
                    }
                }
            });
            if let Err(e) = spawned {
                tracing::warn!("cannot start a thread for a handshake: {e}");
            }
        }
    })?;
    Ok(())
}

fn complain(complaints: &Limited, from: Option<SocketAddr>, error: &HandshakeError) {
    let Some(more) = complaints.pass(Instant::now()) else { return };
    for line in error.to_string().lines() {
        tracing::warn!(peer = ?from, "refused a connection: {line}{}", unsaid(more));
    }
}

struct BusySlot(Arc<AtomicUsize>);

impl Drop for BusySlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn prepare(
    channel: Channel,
    local: &Local,
    until: Instant,
) -> Result<(PeerReader, PeerWriter), HandshakeError> {
    let vm = vm_id(&local.lasting.vm);
    let writer = FrameWriter::new(channel.try_clone()?, vm, local.generation.load(Ordering::Relaxed));
    Ok((FrameReader::new(PeerStream::new(channel, until)), writer))
}

/// The peer, as certificates name it.
pub(super) fn party(peer: &Name) -> Result<Party, HandshakeError> {
    Party::new(PartyKind::Node, peer.as_str()).map_err(|e| TlsError::NotAdmitted(e.to_string()).into())
}

/// A connection to the peer that was accepted, once it is proven to be the peer's where that can be proven.
fn take(
    stream: TcpStream,
    local: &Local,
    until: Instant,
) -> Result<(PeerReader, PeerWriter), HandshakeError> {
    tune(&stream)?;
    let peer = Arc::clone(&local.peer);
    let admits = move |party: &Party| {
        let node = peer.get().node;
        let is_peer = party.kind() == PartyKind::Node && party.name() == node.as_str();
        if is_peer { Ok(()) } else { Err(format!("it is {party}, and not the peer, node {node}")) }
    };
    prepare(local.peer.protection().take(stream, SecuredService::Replication, admits, until)?, local, until)
}

/// A connection to the peer that was made here.
fn call(
    stream: TcpStream,
    local: &Local,
    until: Instant,
) -> Result<(PeerReader, PeerWriter), HandshakeError> {
    tune(&stream)?;
    let channel = local.peer.protection().dial(
        stream,
        &party(&local.peer.get().node)?,
        SecuredService::Replication,
        until,
    )?;
    prepare(channel, local, until)
}

/// Both connections, what this node said on them of itself, and what the two agreed on.
struct Shaken {
    ours: Identity,
    agreed: Agreed,
    reader: PeerReader,
    writer: PeerWriter,
    pulse: PulseEnds,
}

impl Shaken {
    /// From here on the two speak what they agreed on.
    fn fitting(self, conn: ConnId, generation: u64) -> Box<Fitting> {
        let Self { ours, agreed, reader, mut writer, mut pulse } = self;
        writer.speak(agreed.protocol);
        pulse.writer.speak(agreed.protocol);
        Box::new(Fitting { conn, generation, ours, agreed, reader, writer, pulse })
    }
}

/// What a connection turned out to be.
enum Taken {
    /// A node that fits, with its pulse.
    Link(Box<Shaken>, Hello),
    /// A pulse, which waits for its hello.
    Pulse,
    /// A question for a survey, which has its answer.
    Question,
}

fn take_connection(
    stream: TcpStream,
    local: &Local,
    rendezvous: &Rendezvous,
) -> Result<Taken, HandshakeError> {
    let until = Instant::now() + HANDSHAKE_LIMIT;
    let (mut reader, mut writer) = take(stream, local, until)?;
    let hello = match reader.read().and_then(|frame| first(&frame)) {
        Ok(First::Hello(hello)) => hello,
        Ok(First::AsksForSurvey) => return survey::answer(local, &mut writer).map(|()| Taken::Question),
        Ok(First::Pulse(name)) => {
            reader.expect(vm_id(&local.lasting.vm), 0);
            rendezvous.bring(name, PulseEnds { reader, writer }, until);
            return Ok(Taken::Pulse);
        }
        Ok(First::Declines(text)) => return Err(HandshakeError::Declined(text)),
        Ok(First::Other) => return Err(HandshakeError::Unexpected("a hello")),
        Err(FrameError::Version { theirs, ours }) => {
            let refusal = Refusal::Frames { theirs, ours };
            turn_away(&refusal, &mut reader, &mut writer);
            return Err(refusal.into());
        }
        Err(e) => {
            let error = HandshakeError::from(e);
            if matches!(error, HandshakeError::TlsThere) {
                // Whatever it is: that it is no TLS is what the other end needs to see.
                let node = local.lasting.node.clone();
                let refusal = Refusal::NotReady { node, why: error.to_string() };
                turn_away(&refusal, &mut reader, &mut writer);
            }
            return Err(error);
        }
    };
    // The generation is the core's to judge: a node that does not own the VM cannot compare.
    let theirs = Identity { generation: 0, ..hello.identity.clone() };
    let judged = local.identity().and_then(|ours| Ok((check(&theirs, &ours, Side::Primary)?, ours)));
    match judged {
        Ok((agreed, ours)) => {
            reader.expect(vm_id(&ours.vm), 0);
            let pulse = rendezvous.meet(hello.pulse, until).ok_or(HandshakeError::NoPulse)?;
            Ok(Taken::Link(Box::new(Shaken { ours, agreed, reader, writer, pulse }), hello))
        }
        Err(refusal) => {
            Message::Refuse(refusal.to_message()).send(0, &mut writer)?;
            Err(refusal.into())
        }
    }
}

/// What a connection begins with.
enum First {
    Hello(Hello),
    Pulse(u64),
    /// It is no node, and asks how this one sees its host.
    AsksForSurvey,
    /// It cannot be the backup now.
    Declines(String),
    Other,
}

fn first(frame: &Frame<'_>) -> Result<First, FrameError> {
    Ok(match Message::decode(frame)? {
        Message::Hello(hello) => First::Hello(hello),
        Message::Pulse { name } => First::Pulse(name),
        Message::Survey(None) => First::AsksForSurvey,
        Message::Refuse(refuse) => First::Declines(shown(&refuse.text)),
        _ => First::Other,
    })
}

/// A refusal as people are shown it.
pub(super) fn shown(text: &str) -> String {
    text.chars().filter(|c| *c == '\n' || !c.is_control()).take(REFUSAL_CHARS_MAX).collect()
}

/// Refuses a peer whose frames cannot be read here, and who cannot read ours beyond the version that stands where it
/// has always stood: to see that is what it needs. What it has sent is taken in first, or closing would take the
/// refusal back.
fn turn_away(refusal: &Refusal, reader: &mut PeerReader, writer: &mut PeerWriter) {
    let said = Message::Refuse(refusal.to_message()).send(0, writer);
    if said.is_ok() && writer.get_ref().socket().shutdown(Shutdown::Write).is_ok() {
        // Up to the peer's own end, or the handshake's limit.
        let _ = reader.drain(UNREAD_BYTES_MAX);
    }
}

/// The thread that dials the peer while it is wanted.
pub struct Dialler {
    wanted: Arc<AtomicBool>,
    thread: std::thread::Thread,
}

impl Dialler {
    /// Starts the thread; it does nothing until [`Self::dial`].
    pub fn start(
        peer: Arc<PeerPlace>,
        local: Arc<Local>,
        ids: Arc<ConnIds>,
        news: Outlet<PeerNews>,
    ) -> std::io::Result<Self> {
        let wanted = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&wanted);
        let handle = std::thread::Builder::new().name("ftd-dial".into()).spawn(move || {
            let mut refusals = 0;
            loop {
                while !flag.load(Ordering::Acquire) {
                    std::thread::park();
                }
                match dial(peer.get().address, &local) {
                    Ok((shaken, welcome)) => {
                        flag.store(false, Ordering::Release);
                        refusals = 0;
                        let fitting = shaken.fitting(ids.next(), welcome.identity.generation);
                        if news.tell(PeerNews::Dialled { fitting, welcome }).is_err() {
                            return;
                        }
                    }
                    Err(e) => {
                        refusals = if matches!(e, HandshakeError::Refused(_)) { refusals + 1 } else { 0 };
                        let pause = match &e {
                            HandshakeError::Misfit(Refusal::Lacks { .. }) => LACK_PAUSE,
                            _ if e.is_reading() || refusals > REFUSED_OFTEN => REFUSED_PAUSE,
                            _ => DIAL_PAUSE,
                        };
                        if news.tell(PeerNews::DialFailed(e)).is_err() {
                            return;
                        }
                        std::thread::sleep(pause);
                    }
                }
            }
        })?;
        Ok(Self { wanted, thread: handle.thread().clone() })
    }

    /// Dials until a connection is welcomed.
    pub fn dial(&self) {
        self.wanted.store(true, Ordering::Release);
        self.thread.unpark();
    }

    /// Dials no more. A connection that is welcomed at this moment still arrives.
    pub fn stop(&self) {
        self.wanted.store(false, Ordering::Release);
    }
}

/// Connects, and has a confined thread shake hands: it reads what the other end sends, and may not connect.
fn dial(peer: SocketAddr, local: &Arc<Local>) -> Result<(Shaken, Welcome), HandshakeError> {
    let connect = || TcpStream::connect_timeout(&peer, DIAL_LIMIT);
    let ours = local.identity()?;
    let stream = connect()?;
    let held = (local.held)();
    // Who holds a copy has the memory for it.
    let lacks = if held.is_none() { local.shortage() } else { None };
    let offer = Offer { ours, held, lacks };
    let (ask, asked) = sync_channel(1);
    let (connected, connections) = sync_channel(1);
    let more = MoreConnections { ask, connections };
    let local = Arc::clone(local);
    let shaking = std::thread::Builder::new().name("ftd-greet".into()).spawn(move || {
        ft_confine::this_thread(ThreadKind::Link);
        greet(stream, &more, offer, &local)
    })?;
    while let Ok(()) = asked.recv() {
        if connected.send(connect()).is_err() {
            break;
        }
    }
    shaking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// What a dialler has to say of itself.
struct Offer {
    ours: Identity,
    held: Option<Held>,
    lacks: Option<Refusal>,
}

/// Connections to the peer, made by a thread that may.
struct MoreConnections {
    ask: SyncSender<()>,
    connections: Receiver<std::io::Result<TcpStream>>,
}

impl MoreConnections {
    fn connect(&self) -> std::io::Result<TcpStream> {
        let gone = || std::io::Error::other("the dialling thread has ended");
        self.ask.send(()).map_err(|_| gone())?;
        self.connections.recv().map_err(|_| gone())?
    }
}

fn greet(
    stream: TcpStream,
    more: &MoreConnections,
    offer: Offer,
    local: &Local,
) -> Result<(Shaken, Welcome), HandshakeError> {
    let Offer { ours, held, lacks } = offer;
    let until = Instant::now() + HANDSHAKE_LIMIT;
    let (mut reader, mut writer) = call(stream, local, until)?;
    if let Some(refusal) = lacks {
        Message::Refuse(refusal.to_message()).send(0, &mut writer)?;
        return Err(refusal.into());
    }
    let name = random_nonce();
    Message::Hello(Hello { identity: ours.clone(), held, pulse: name }).send(0, &mut writer)?;
    // The peer meanwhile judges the hello.
    let pulse = greet_pulse(more.connect()?, local, name, until)?;
    match Message::decode(&reader.read()?)? {
        Message::Welcome(welcome) => {
            let agreed = check(&welcome.identity, &ours, Side::Backup)?;
            reader.expect(vm_id(&ours.vm), welcome.identity.generation);
            Ok((Shaken { ours, agreed, reader, writer, pulse }, welcome))
        }
        Message::Refuse(Refuse { code, text }) => {
            Err(HandshakeError::Refused(Refuse { code, text: shown(&text) }))
        }
        _ => Err(HandshakeError::Unexpected("a welcome")),
    }
}

/// The second connection of a dial.
fn greet_pulse(
    stream: TcpStream,
    local: &Local,
    name: u64,
    until: Instant,
) -> Result<PulseEnds, HandshakeError> {
    let (mut reader, mut writer) = call(stream, local, until)?;
    Message::Pulse { name }.send(0, &mut writer)?;
    reader.expect(vm_id(&local.lasting.vm), 0);
    Ok(PulseEnds { reader, writer })
}
