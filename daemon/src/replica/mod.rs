//! One replica of the VM: carries out what the protocol core commands, and tells it what happens.
//!
//! ```text
//!                 control socket      arbiter thread      listener, dialler
//!                       \                  |                  /
//!                        +------> executor (this file) <-----+
//!                                 core: events -> commands
//!   primary:                     /         |           \                       backup:
//!   keeper --captures--> shipper         release     acks, heartbeats   reader --frames--> receiver --> applier
//!     (owns the machine)         |      (netbuf)          |                                  |
//!                                +--> pairing --> outbox --> writer thread                 sealed --> event
//!   replay mode: keeper --logs--> shipper                              receiver --logs--> keeper (executes them)
//! ```
//!
//! The executor is one thread; nothing that it does waits for the peer or for the arbiter. It owns the core, the
//! connections and the standby; the machine is the keeper's. What it does in either role is in `as_primary` and
//! `as_backup`; what the rooms' news means to the core is in `input`.

mod arbiter_thread;
mod as_backup;
mod as_primary;
mod input;

pub use input::Input;

use crate::clock;
use crate::control::{SwitchoverError, SwitchoverReply, Wish};
use crate::host::{Host, Watchdog};
use crate::keeper::{
    self, Awaiting, Feed, FromPrimary, Keeper, Order, Pairing, Replay, Reply, Setup, Standby, StateLoss,
};
use crate::observe::{Telemetry, Window};
use crate::outlet::Outlet;
use crate::peer::{self, ConnIds, Dialler, Fitting, FromBackup, Link, Local};
use crate::role::{Command, ConnId, Core, Event, Exit, Gone, Held, Outcome, Policy};
use arbiter_thread::Question;
use ft_checkpoint::lazy::LazyApply;
use ft_checkpoint::receiver::SealedImage;
use ft_checkpoint::wire::Message;
use ft_checkpoint::wire::message::{Ack, Bye, Diverged, Hello, Refuse};
use ft_netbuf::{BootTime, OutputBuffer, Permit};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, sync_channel};
use std::time::{Duration, Instant};

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
    pub arbiter: Box<dyn crate::arbiter::Arbiter>,
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
        let (orders, for_keeper) = std::sync::mpsc::channel();
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
            news: Outlet::into_queue(&inputs, Input::Keeper),
            telemetry: Arc::clone(&parts.telemetry),
            watchdog: Arc::clone(&parts.watchdog),
        };
        let told = orders.clone();
        output.on_held(move || drop(told.send(Order::Output)));
        Keeper::start(setup, for_keeper).map_err(failed("the keeper"))?;
        let answers = Outlet::into_queue(&inputs, Input::Arbiter);
        let questions =
            arbiter_thread::start(parts.arbiter, answers).map_err(failed("the arbiter's thread"))?;
        let news = Outlet::into_queue(&inputs, Input::Peer);
        peer::listen(parts.listener, Arc::clone(&local), Arc::clone(&ids), news.clone())
            .map_err(failed("the listener"))?;
        let dialler = Dialler::start(parts.peer_address, Arc::clone(&local), ids, news)
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
            Input::Peer(news) => self.on_peer(news),
            Input::Keeper(news) => self.on_keeper(news),
            Input::Arbiter(answer) => self.on_event(answer.into()),
            Input::Control(Wish::Stop) => self.on_event(Event::StopRequested),
            Input::Control(Wish::Switchover(reply)) => {
                self.switchovers.push(reply);
                self.tell(Event::SwitchoverRequested);
            }
        }
    }

    fn on_peer(&mut self, news: peer::News) {
        match news {
            peer::News::Accepted { fitting, hello } => self.on_hello(fitting, &hello),
            peer::News::Dialled { fitting, welcome } => self.on_welcome(fitting, welcome),
            peer::News::DialFailed(error) => self.on_dial_failed(&error),
            // The ticket lives until the event is handled.
            peer::News::FromBackup { conn, said, ticket: _ticket } => self.on_backup(conn, said),
            peer::News::Gone { conn, why } => self.on_event(Event::PeerGone { conn, why: why.into() }),
        }
    }

    fn on_hello(&mut self, fitting: Fitting, hello: &Hello) {
        let conn = fitting.conn;
        let held = hello.held.as_ref().map(|held| Held { pairing: held.pairing, epoch: held.epoch });
        self.arriving.insert(conn, fitting);
        self.tell(Event::PeerHello { conn, generation: hello.identity.generation, held });
        // A core that did not take it has refused it; what is left over is closed.
        self.arriving.remove(&conn);
    }

    fn on_backup(&mut self, conn: ConnId, said: FromBackup) {
        match said {
            FromBackup::Position(position) => {
                if self.links.contains_key(&conn) {
                    self.replay.progress.set(position);
                }
            }
            FromBackup::Diverged(Diverged { count, what }) => {
                tracing::error!("the backup diverged at instruction {count}: {what}");
                self.telemetry.diverged(count, &what);
            }
            FromBackup::Ack { epoch, stamp } => self.on_event(Event::Ack { conn, epoch, stamp }),
            FromBackup::Echo { stamp } => self.on_event(Event::Echo { conn, stamp }),
            FromBackup::TookOver { generation } => self.on_event(Event::PeerTookOver { conn, generation }),
            FromBackup::Declined { why } => self.on_event(Event::HandOverDeclined { conn, why }),
        }
    }

    fn on_keeper(&mut self, news: keeper::News) {
        use keeper::News;
        match news {
            News::FromPrimary { conn, said: FromPrimary::HandedOver { epoch }, ticket: _ticket }
                if self.replay.on =>
            {
                // What is held is complete when it is executed: the keeper says so in its turn.
                self.order(Order::WhenExecuted(Awaiting::HandOver { conn, epoch }));
            }
            // The ticket lives until the event is handled.
            News::FromPrimary { conn, said, ticket: _ticket } => {
                self.on_event(input::event_of_primary(conn, said));
            }
            News::FirstCaptured { pairing } => self.on_event(Event::FirstCaptured { pairing }),
            News::FinalCaptured { epoch } => self.on_event(Event::FinalCaptured { epoch }),
            News::PairingBroken { pairing, why } => {
                self.on_event(Event::PairingBroken { pairing, why: why.to_string() });
            }
            News::GuestEnded(end) => self.on_event(Event::GuestEnded(end)),
            News::Executed(awaited) => self.on_event(awaited.into()),
            News::StateLost(why) => {
                if let StateLoss::Diverged { count, what } = &why {
                    tracing::error!("the backup is not the primary any more: it {why}");
                    self.telemetry.diverged(*count, what);
                    for link in self.links.values() {
                        link.send(Message::Diverged(Diverged { count: *count, what: what.clone() }));
                    }
                }
                self.on_event(Event::StateLost(why.to_string()));
            }
            News::MachineFailed(why) => {
                // The host failed the guest. The backup, if there is one, holds the VM's last committed state.
                self.output.mute();
                self.exit = Some(Exit::Failed(format!("the machine failed: {why}")));
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
            Event::CellRead(answer) => self.window.show_arbiter(answer.is_ok()),
            Event::CellSet(outcome) => {
                self.window.show_arbiter(matches!(outcome, Outcome::Won(_) | Outcome::Lost(_)));
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
                        self.window.show_peer(false, Some(why.clone()));
                    }
                    Gone::Bye(why) => {
                        tracing::info!("the peer says good-bye: {why}");
                        self.window.show_peer(false, Some(format!("it said good-bye: {why}")));
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
        let shown = self.window.show(view.clone());
        if let Some(before) = shown
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
                    self.window.show_peer(false, None);
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
                self.order(Order::WhenExecuted(Awaiting::Verification { epoch }));
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
                    reply(result.clone().map_err(SwitchoverError::Refused));
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

    fn order_and_wait<T>(&self, order: impl FnOnce(Reply<T>) -> Order) -> Option<T> {
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
            reply(Err(SwitchoverError::Ending));
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
