//! One replica of the VM: carries out what the protocol core commands, and tells it what happens.
//!
//! ```text
//!                 control socket      arbiter thread      listener, dialler
//!                       \                  |                  /
//!                        +------> executor (this file) <-----+
//!                                 core: events -> commands
//!   primary:                     /         |           \                       backup:
//!   checkpointer --captures--> shipper   release     acks, heartbeats   reader --frames--> receiver --> applier
//!     (owns the machine)         |      (netbuf)          |                                  |
//!                                +--> pairing --> outbox --> writer thread                 sealed --> event
//!   replay mode: log cutter --logs--> shipper                                receiver --logs--> follower (a machine)
//! ```
//!
//! The executor is one thread; nothing that it does waits for the peer or for the arbiter. It owns the core, the
//! connections and the standby; the machine is the checkpointer's. What it does in either role is in `as_primary` and
//! `as_backup`.

mod arbiter_thread;
mod as_backup;
mod as_primary;
mod checkpointer;
mod follower;
mod handshake;
mod intake;
mod link;
mod log_cutter;
mod outbox;
mod pairing;
mod progress;
pub(crate) mod pump;
mod shipper;
mod standby;
mod wiring;

pub use checkpointer::PauseParts;
pub use progress::{Progress, Replay};
pub use wiring::{ConsoleHub, Host, prepare_host};

use crate::clock;
use crate::role::{Command, ConnId, Core, Event, Exit, Gone, Policy, View};
use crate::service::Watchdog;
use crate::telemetry::Telemetry;
use arbiter_thread::Question;
use checkpointer::{Checkpointer, Order, Setup};
use ft_arbiter::{Arbiter, Outcome};
use ft_checkpoint::lazy::LazyApply;
use ft_checkpoint::receiver::SealedImage;
use ft_checkpoint::wire::Message;
use ft_checkpoint::wire::message::{Ack, Bye, Diverged, Hello, Refuse, Welcome};
use ft_netbuf::{BootTime, OutputBuffer, Permit};
use handshake::{ConnIds, Dialler, Fitting, HandshakeError, Local};
use intake::Ticket;
use link::Link;
use pairing::Pairing;
use parking_lot::Mutex;
use standby::{Feed, Standby};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, sync_channel};
use std::time::{Duration, Instant};

/// What reaches the executor.
pub enum Input {
    /// For the core.
    Event(Event),
    /// For the core, from a connection.
    FromPeer(Event, Ticket),
    /// A peer has shaken hands and asks to be our backup.
    Accepted {
        /// The connection.
        fitting: Fitting,
        /// What it says.
        hello: Hello,
    },
    /// The primary has welcomed us.
    Dialled {
        /// The connection.
        fitting: Fitting,
        /// What it says.
        welcome: Welcome,
    },
    /// A dial came to nothing; the dialler goes on.
    DialFailed(HandshakeError),
    /// Backup: the machine that executes the log is not the primary's any more.
    Diverged {
        /// Instructions that had been executed.
        count: u64,
        /// What differs.
        what: String,
    },
    /// The machine failed for a reason of the host's.
    MachineFailed(String),
    /// The operator asks for a switchover; this is where the outcome goes.
    Switchover(SwitchoverReply),
}

/// Where the outcome of a switchover goes.
pub type SwitchoverReply = Box<dyn FnOnce(Result<(), String>) + Send>;

/// What other threads may look at.
#[derive(Default)]
pub struct Window {
    view: Mutex<Option<View>>,
    peer: Mutex<PeerView>,
    arbiter_silent: AtomicBool,
}

/// The connection to the peer as `status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerView {
    /// Whether there is a connection.
    pub connected: bool,
    /// What the last attempt came to, when there is none.
    pub trouble: Option<String>,
}

impl Window {
    /// The core's view of itself.
    pub fn view(&self) -> Option<View> {
        self.view.lock().clone()
    }

    /// Whether the arbiter answered the last request.
    pub fn is_arbiter_reachable(&self) -> bool {
        !self.arbiter_silent.load(Ordering::Relaxed)
    }

    /// The connection to the peer.
    pub fn peer(&self) -> PeerView {
        self.peer.lock().clone()
    }
}

/// What a replica is made of.
pub struct Parts {
    /// The core's configuration.
    pub policy: Policy,
    /// The machine's host side.
    pub host: Host,
    /// Checkpoints in flight at most.
    pub pipeline_depth: u64,
    /// Bytes in flight, about.
    pub inflight_bytes: usize,
    /// Run interval.
    pub epoch: Duration,
    /// Replay mode.
    pub replay: Replay,
    /// Bytes of last-sent pages to remember.
    pub shadow_bytes: usize,
    /// `ip:port` of the peer.
    pub peer_address: String,
    /// Where we listen.
    pub listener: std::net::TcpListener,
    /// What we say of ourselves in a handshake.
    pub identity: ft_checkpoint::wire::message::Identity,
    /// The arbiter.
    pub arbiter: Box<dyn Arbiter>,
    /// Inputs; the sender's clones are everywhere.
    pub inputs: (Sender<Input>, Receiver<Input>),
    /// For other threads to look through.
    pub window: Arc<Window>,
    /// Figures.
    pub telemetry: Arc<Telemetry>,
    /// systemd's.
    pub watchdog: Arc<Watchdog>,
}

/// The core is given the time at least this often.
const TICK: Duration = Duration::from_millis(2);
/// A process that ends gives its last messages so long to leave.
const FAREWELL: Duration = Duration::from_millis(200);

/// The end of a take-over: the guest runs, and what the checkpoint still had pending is being applied. What was sealed is
/// kept until then, and let go when nobody waits.
struct Settling {
    lazy: LazyApply,
    _sealed: SealedImage,
}

/// The executor.
pub struct Replica {
    core: Core,
    inputs: Sender<Input>,
    orders: Sender<Order>,
    questions: Sender<Question>,
    dialler: Dialler,
    local: Arc<Local>,
    /// The standby's receiver, for the dialler's hellos.
    held: Arc<Mutex<Option<Feed>>>,
    output: OutputBuffer,
    announce: Arc<dyn Fn() + Send + Sync>,
    arriving: HashMap<ConnId, Fitting>,
    links: HashMap<ConnId, Link>,
    pairing: Option<Arc<Pairing>>,
    standby: Option<Standby>,
    settling: Option<Settling>,
    switchovers: Vec<SwitchoverReply>,
    pipeline_depth: u64,
    inflight_bytes: usize,
    replay: Replay,
    window: Arc<Window>,
    telemetry: Arc<Telemetry>,
    watchdog: Arc<Watchdog>,
    peer_lost: Option<Instant>,
    exit: Option<Exit>,
    /// News that commands themselves made; handled before anything else.
    own_news: VecDeque<Event>,
}

/// Why a replica cannot start.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {what}: {source}")]
pub struct StartError {
    what: &'static str,
    source: std::io::Error,
}

impl Replica {
    /// Runs the replica until it ends, and says how it ended. The caller's thread becomes the executor.
    pub fn run(parts: Parts) -> Result<Exit, StartError> {
        let failed = |what| move |source| StartError { what, source };
        let (inputs, received) = parts.inputs;
        let (orders, for_checkpointer) = std::sync::mpsc::channel();
        let held = Arc::new(Mutex::new(None::<Feed>));
        let held_now = Arc::clone(&held);
        let local = Arc::new(Local {
            identity: parts.identity,
            generation: 0.into(),
            held: Box::new(move || held_now.lock().as_ref().and_then(Feed::held)),
        });
        let ids = Arc::new(ConnIds::default());
        let Host { spec, boot, wiring, attach, output, announce } = parts.host;
        let setup = Setup {
            spec,
            boot,
            epoch: parts.epoch,
            replay: parts.replay.clone(),
            shadow_bytes: parts.shadow_bytes,
            wiring,
            attach,
            output: output.clone(),
            inputs: inputs.clone(),
            telemetry: Arc::clone(&parts.telemetry),
            watchdog: Arc::clone(&parts.watchdog),
        };
        let told = orders.clone();
        output.on_held(move || drop(told.send(Order::Output)));
        Checkpointer::start(setup, for_checkpointer).map_err(failed("the checkpointer"))?;
        let questions =
            arbiter_thread::start(parts.arbiter, inputs.clone()).map_err(failed("the arbiter's thread"))?;
        handshake::listen(parts.listener, Arc::clone(&local), Arc::clone(&ids), inputs.clone())
            .map_err(failed("the listener"))?;
        let dialler = Dialler::start(parts.peer_address, Arc::clone(&local), ids, inputs.clone())
            .map_err(failed("the dialler"))?;
        let (core, commands) = Core::new(parts.policy, clock::now_us());
        let mut replica = Self {
            core,
            inputs,
            orders,
            questions,
            dialler,
            local,
            held,
            output,
            announce,
            arriving: HashMap::new(),
            links: HashMap::new(),
            pairing: None,
            standby: None,
            settling: None,
            switchovers: Vec::new(),
            pipeline_depth: parts.pipeline_depth,
            inflight_bytes: parts.inflight_bytes,
            replay: parts.replay,
            window: parts.window,
            telemetry: parts.telemetry,
            watchdog: parts.watchdog,
            peer_lost: None,
            exit: None,
            own_news: VecDeque::new(),
        };
        replica.carry_out(commands);
        Ok(replica.event_loop(&received))
    }

    fn event_loop(mut self, inputs: &Receiver<Input>) -> Exit {
        let mut next_tick = Instant::now();
        loop {
            if let Some(exit) = self.exit.take() {
                self.farewell();
                return exit;
            }
            let now = Instant::now();
            if now >= next_tick {
                next_tick = now + TICK;
                self.watchdog.fed();
                self.tell(Event::Tick);
                continue;
            }
            match inputs.recv_timeout(next_tick - now) {
                Ok(input) => self.take(input),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("the executor holds a sender itself"),
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            // What is held is complete when it is executed: the machine's thread says so in its turn.
            Input::FromPeer(Event::HandedOver { conn, epoch }, _) if self.replay.on => {
                self.order(Order::WhenExecuted(Event::HandedOver { conn, epoch }));
            }
            Input::Event(event) | Input::FromPeer(event, _) => self.on_event(event),
            Input::Accepted { fitting, hello } => {
                let conn = fitting.conn;
                let held =
                    hello.held.map(|held| crate::role::Held { pairing: held.pairing, epoch: held.epoch });
                self.arriving.insert(conn, fitting);
                self.tell(Event::PeerHello { conn, generation: hello.identity.generation, held });
                // A core that did not take it has refused it; what is left over is closed.
                self.arriving.remove(&conn);
            }
            Input::Dialled { fitting, welcome } => self.on_welcome(fitting, welcome),
            Input::DialFailed(error) => self.on_dial_failed(&error),
            Input::Diverged { count, what } => {
                let why = format!("diverged at instruction {count}: {what}");
                tracing::error!("the backup is not the primary any more: it {why}");
                self.telemetry.diverged(count, &what);
                for link in self.links.values() {
                    link.send(Message::Diverged(Diverged { count, what: what.clone() }));
                }
                self.on_event(Event::StateLost(why));
            }
            Input::MachineFailed(why) => {
                // The host failed the guest. The backup, if there is one, holds the VM's last committed state.
                self.output.mute();
                self.exit = Some(Exit::Failed(format!("the machine failed: {why}")));
            }
            Input::Switchover(reply) => {
                self.switchovers.push(reply);
                self.tell(Event::SwitchoverRequested);
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        match &event {
            Event::Ack { conn, epoch, stamp } if self.links.contains_key(conn) => {
                let Some(pairing) = &self.pairing else { return };
                match pairing.ack(*epoch) {
                    Ok(committed) => {
                        let age_us = clock::now_us().saturating_sub(*stamp);
                        self.telemetry.acked(*epoch, committed, age_us);
                    }
                    Err(e) => {
                        let why = Gone::Lost(e.to_string());
                        return self.on_event(Event::PeerGone { conn: *conn, why });
                    }
                }
                if pairing.was_wanting() {
                    self.order(Order::Room);
                }
            }
            Event::CellRead(answer) => self.note_arbiter(answer.is_ok()),
            Event::CellSet(outcome) => {
                self.note_arbiter(matches!(outcome, Outcome::Won(_) | Outcome::Lost(_)));
            }
            Event::Sealed { epoch, .. } => self.telemetry.sealed(*epoch),
            Event::PairingBroken { why, .. } => tracing::error!("the pairing broke: {why}"),
            Event::PeerGone { conn, why } => {
                let Some(link) = self.links.remove(conn) else { return };
                link.close();
                self.peer_lost = Some(Instant::now());
                if let Some(pairing) = &self.pairing {
                    pairing.unlink();
                }
                match why {
                    Gone::Lost(why) => {
                        tracing::warn!("lost the peer: {why}");
                        self.note_peer(false, Some(why.clone()));
                    }
                    Gone::Bye(why) => {
                        tracing::info!("the peer says good-bye: {why}");
                        self.note_peer(false, Some(format!("it said good-bye: {why}")));
                    }
                }
            }
            _ => {}
        }
        self.tell(event);
    }

    /// Gives an event to the core and carries out what it answers, and what follows from that.
    fn tell(&mut self, event: Event) {
        let mut commands = Vec::new();
        self.own_news.push_back(event);
        while let Some(event) = self.own_news.pop_front() {
            self.core.handle(clock::now_us(), event, &mut commands);
            self.carry_out(std::mem::take(&mut commands));
        }
        self.local.generation.store(self.core.generation(), Ordering::Relaxed);
        self.publish();
    }

    fn publish(&self) {
        let view = self.core.view();
        let mut shown = self.window.view.lock();
        if let Some(before) = &*shown
            && (before.role, before.state, before.generation) != (view.role, view.state, view.generation)
        {
            tracing::info!(
                generation = view.generation,
                "{:?}, {:?}: {}",
                view.role,
                view.state,
                view.detail
            );
        }
        *shown = Some(view);
    }

    fn note_peer(&self, connected: bool, trouble: Option<String>) {
        *self.window.peer.lock() = PeerView { connected, trouble };
    }

    fn note_arbiter(&self, answered: bool) {
        self.window.arbiter_silent.store(!answered, Ordering::Relaxed);
    }

    fn carry_out(&mut self, commands: Vec<Command>) {
        for command in commands {
            if self.exit.is_some() {
                return;
            }
            self.execute(command);
        }
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::ReadCell => self.ask(Question::Read),
            Command::CompareAndSet { expected, new } => self.ask(Question::Set { expected, new }),
            Command::Dial => self.dialler.dial(),
            Command::StopDialling => self.dialler.stop(),
            Command::Welcome { conn, pairing, generation, how } => {
                self.welcome(conn, pairing, generation, how)
            }
            Command::Refuse { conn, why } => {
                if let Some(mut fitting) = self.arriving.remove(&conn) {
                    tracing::debug!("refused the peer: {why}");
                    // A peer that does not even take the refusal is closed all the same.
                    let _ = Message::Refuse(Refuse { code: 0, text: why }).send(0, &mut fitting.writer);
                }
            }
            Command::Follow { conn, resumed, pairing: _ } => self.follow(conn, resumed),
            Command::DropLink { conn } => {
                if let Some(link) = self.links.remove(&conn) {
                    link.finish();
                    self.peer_lost = Some(Instant::now());
                    self.note_peer(false, None);
                }
                if let Some(pairing) = &self.pairing {
                    pairing.unlink();
                }
            }
            Command::EndPairing => self.end_pairing(),
            Command::Boot => self.boot(),
            Command::EmitFreely => {
                let released = self.output.pass();
                tracing::info!(frames = released.frames, "output passes");
            }
            Command::Release { through, until } => {
                let permit = Permit { valid_until: BootTime::from_us(until) };
                let released = self.output.release_through(through, permit);
                if released.left > 0 {
                    self.own_news.push_back(Event::ReleaseCut);
                }
            }
            Command::SendHeartbeat { conn, stamp } => self.send(conn, Message::Heartbeat { stamp_us: stamp }),
            Command::SendPaired { conn, generation } => self.send(conn, Message::Paired { generation }),
            Command::FinalCheckpoint => self.order(Order::Freeze),
            // In replay mode what is held is known to be good when it is executed; else it was verified as it was sealed.
            Command::Verify { epoch } if self.replay.on => {
                self.order(Order::WhenExecuted(Event::Verified { epoch }));
            }
            Command::Verify { epoch } => self.own_news.push_back(Event::Verified { epoch }),
            Command::SendHandOver { conn, epoch } => self.send(conn, Message::Switchover { epoch }),
            Command::Thaw => self.order(Order::Thaw),
            Command::SendAck { conn, epoch, stamp } => {
                self.send(conn, Message::Ack(Ack { epoch, stamp_us: stamp }));
            }
            Command::SendEcho { conn, stamp } => {
                self.send(conn, Message::Echo { stamp_us: stamp });
                if self.replay.on {
                    self.send(conn, Message::Position(self.replay.progress.get()));
                }
            }
            Command::SendDecline { conn, why } => self.send(conn, Message::Decline { text: why }),
            Command::TakeOver { epoch, generation } => {
                if let Err(why) = self.take_over(epoch, generation) {
                    self.output.mute();
                    self.own_news.push_back(Event::TakeOverFailed(why));
                }
            }
            Command::SendTookOver { conn, generation } => self.send(conn, Message::TookOver { generation }),
            Command::Discard => self.discard(),
            Command::StopVm => {
                self.output.mute();
                self.order_and_wait(Order::Stop);
            }
            Command::SendBye { conn, why } => self.send(conn, Message::Bye(Bye { reason: 0, text: why })),
            Command::SwitchoverDone(result) => {
                for reply in self.switchovers.drain(..) {
                    reply(result.clone());
                }
            }
            Command::Exit(exit) => self.exit = Some(exit),
        }
    }

    fn ask(&self, question: Question) {
        // The arbiter's thread lives as long as we hold its sender.
        let _ = self.questions.send(question);
    }

    fn order(&self, order: Order) {
        let _ = self.orders.send(order);
    }

    fn order_and_wait<T>(&self, order: impl FnOnce(checkpointer::Reply<T>) -> Order) -> Option<T> {
        let (reply, answer) = sync_channel(1);
        self.order(order(reply));
        answer.recv().ok()
    }

    fn send(&self, conn: ConnId, message: Message<'static>) {
        if let Some(link) = self.links.get(&conn) {
            link.send(message);
        }
    }

    fn farewell(mut self) {
        self.output.mute();
        for reply in self.switchovers.drain(..) {
            reply(Err("the daemon is ending".into()));
        }
        let links: Vec<Link> = self.links.drain().map(|(_, link)| link).collect();
        for link in &links {
            link.finish();
        }
        let until = Instant::now() + FAREWELL;
        while links.iter().any(|link| !link.outbox.is_idle()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.publish();
        self.order_and_wait(Order::Stop);
    }
}
