//! The daemon's hands: threads, sockets, a machine.

mod as_backup;
mod as_primary;
mod error;
mod imaging;
mod kept;
mod network;
mod news;
mod parts;
mod patience;
mod resuming;
mod stamping;

pub use error::{HandsError, StartError};
pub use kept::TellLackBeside;
pub use parts::Parts;

use super::arbiter_thread::{ArbiterThread, Question};
use super::hands::{Closing, Hands, Verification};
use super::input::Input;
use super::record_thread::RecordThread;
use crate::clock;
use crate::control::{WishError, WishReply};
use crate::disks::Disks;
use crate::host::{Host, Watchdog};
use crate::keeper::{
    Feed, Images, Keeper, Order, OrderReply, Pairing, Rehearser, Replay, Service, Setup, StateLoss,
    WarmStandby,
};
use crate::limited::{Limited, unsaid};
use crate::observe::{Telemetry, Window};
use crate::outlet::Outlet;
use crate::peer::{self, ConnIds, Dialler, Fitting, HandshakeError, Link, LinkEnd, Local, Outgoing};
use crate::role::{
    ConnId, Done, Lapsed, Micros, NodeRecord, PairingStart, RequestId, RequestRefusal, Saved, State, View,
};
use ft_arbiter::{Cell, CellId};
use ft_checkpoint::wire::Message;
use ft_checkpoint::wire::message::{Diverged, Network, Position, Refuse};
use ft_netbuf::OutputBuffer;
use kept::Kept;
use parking_lot::Mutex;
use resuming::{Resuming, Settling};
use stamping::Stamping;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, sync_channel};
use std::time::{Duration, Instant};

/// Time that an ending process gives its last messages to leave.
const FAREWELL: Duration = Duration::from_millis(200);

/// Lines about connections that ended: a few, then one each ten seconds.
const LOSS_LINES: (u32, Duration) = (5, Duration::from_secs(10));

/// See the module.
pub struct RealHands {
    inputs: Sender<Input>,
    orders: Sender<Order>,
    arbiter: ArbiterThread,
    record_thread: RecordThread,
    dialler: Dialler,
    local: Arc<Local>,
    /// The standby's receiver, for the dialler's hellos.
    held: Arc<Mutex<Option<Feed>>>,
    output: OutputBuffer,
    announce: Arc<dyn Fn() + Send + Sync>,
    arriving: HashMap<ConnId, Fitting>,
    links: HashMap<ConnId, Link>,
    pairing: Option<Arc<Pairing>>,
    /// The connection that it goes over.
    pairing_over: Option<ConnId>,
    standby: Option<WarmStandby>,
    /// What is left of the VM's memory when nothing is held.
    kept: Kept,
    rehearser: Arc<Rehearser>,
    /// The pairing that was rehearsed last.
    rehearsed: Option<u64>,
    resuming: Option<Resuming>,
    images: Images,
    /// Why the image did not get to disk, as told.
    unsaved: String,
    settling: Option<Settling>,
    /// Where the operator's requests are answered.
    replies: HashMap<RequestId, WishReply>,
    /// Requests so far.
    requests: RequestId,
    pipeline_depth: u64,
    inflight_bytes: usize,
    service: Service,
    replay: Replay,
    pub(super) window: Arc<Window>,
    pub(super) telemetry: Arc<Telemetry>,
    watchdog: Arc<Watchdog>,
    peer_lost: Option<Instant>,
    /// Lines about connections that ended.
    losses: Limited,
    /// Why the last dial came to nothing, as told.
    undialled: String,
    /// The VM's way to the network on this host.
    network: Network,
    stamping: Stamping,
    /// The VM's writable disks, if it has any.
    disks: Option<Arc<Disks>>,
}

/// What becomes of the disks is the executor's input.
fn hear_of_disks(disks: &Disks, inputs: &Sender<Input>) {
    let stood = Outlet::into_queue(inputs, |stands| Input::Disk { stands });
    disks.on_stand(Box::new(move |stands| drop(stood.tell(stands))));
    let compared = Outlet::into_queue(inputs, |(session, differ)| Input::Compared { session, differ });
    disks.on_compared(Box::new(move |session, differ| drop(compared.tell((session, differ)))));
}

impl RealHands {
    /// Starts the threads of every room; their news comes in through the queue.
    pub(super) fn new(parts: Parts) -> Result<(Self, Receiver<Input>), StartError> {
        let failed = |what| move |source| StartError { what, source };
        let (inputs, received) = parts.inputs;
        let (orders, for_keeper) = std::sync::mpsc::channel();
        let held = Arc::new(Mutex::new(None::<Feed>));
        let (held_now, ids) = (Arc::clone(&held), Arc::new(ConnIds::default()));
        let (kept, lacks) = Kept::beside(parts.lacks).map_err(failed("the thread that looks for memory"))?;
        let local = Arc::new(Local {
            lasting: parts.identity,
            contents: parts.contents,
            lacks,
            peer: Arc::clone(&parts.peer),
            generation: 0.into(),
            held: Box::new(move || held_now.lock().as_ref().and_then(Feed::held)),
        });
        let Host { spec, boot, wiring, scratch_wiring, disks, attach, output, announce, .. } = parts.host;
        let news = Outlet::into_queue(&inputs, Input::Keeper);
        let rehearser = Arc::new(Rehearser::new(spec.clone(), scratch_wiring, news.clone()));
        let images = Images::start(parts.image_file, spec.clone(), parts.disks, news)
            .map_err(failed("the thread for images"))?;
        let setup = Setup {
            spec,
            boot,
            on_panic: parts.on_panic,
            on_watchdog: parts.on_watchdog,
            epoch: parts.epoch,
            service: parts.service,
            on_overload: parts.on_overload,
            replay: parts.replay.clone(),
            shadow_bytes: parts.shadow_bytes,
            backing: parts.backing,
            wiring,
            attach,
            disks: disks.clone(),
            output: output.clone(),
            news: Outlet::into_queue(&inputs, Input::Keeper),
            telemetry: Arc::clone(&parts.telemetry),
            watchdog: Arc::clone(&parts.watchdog),
        };
        let told = orders.clone();
        output.on_held(move || drop(told.send(Order::Output)));
        Keeper::start(setup, for_keeper).map_err(failed("the keeper"))?;
        let answers = Outlet::into_queue(&inputs, Input::Arbiter);
        let hangs = Arc::clone(parts.window.arbiter_hangs());
        let arbiter =
            ArbiterThread::start(parts.arbiter, answers, hangs).map_err(failed("the arbiter's thread"))?;
        let record_thread = RecordThread::start(
            move |record| parts.record_file.save(record),
            Outlet::into_queue(&inputs, Input::Record),
        )
        .map_err(failed("the thread of the record"))?;
        let news = Outlet::into_queue(&inputs, Input::Peer);
        peer::listen(parts.port, Arc::clone(&local), Arc::clone(&ids), news.clone())
            .map_err(failed("the listener"))?;
        let dialler =
            Dialler::start(parts.peer, Arc::clone(&local), ids, news).map_err(failed("the dialler"))?;
        let stamping = Stamping::start(local.lasting.node.clone(), disks.as_deref())
            .map_err(failed("the thread of stamps"))?;
        disks.iter().for_each(|disks| hear_of_disks(disks, &inputs));
        let hands = Self {
            inputs,
            orders,
            arbiter,
            record_thread,
            dialler,
            local,
            held,
            output,
            announce,
            arriving: HashMap::new(),
            links: HashMap::new(),
            pairing: None,
            pairing_over: None,
            standby: None,
            kept,
            rehearser,
            rehearsed: None,
            resuming: None,
            images,
            unsaved: String::new(),
            settling: None,
            replies: HashMap::new(),
            requests: 0,
            pipeline_depth: parts.pipeline_depth,
            inflight_bytes: parts.inflight_bytes,
            service: parts.service,
            replay: parts.replay,
            window: parts.window,
            telemetry: parts.telemetry,
            watchdog: parts.watchdog,
            peer_lost: None,
            losses: Limited::new(LOSS_LINES),
            undialled: String::new(),
            network: Network::default(),
            stamping,
            disks,
        };
        Ok((hands, received))
    }

    /// The executor's loop lives.
    pub(super) fn feed_watchdog(&self) {
        self.watchdog.fed(|| self.window.view().is_some_and(|view| view.what.state == State::Protected));
    }

    /// A connection has shaken hands.
    pub(super) fn arrived(&mut self, fitting: Fitting) -> ConnId {
        let conn = fitting.conn;
        self.arriving.insert(conn, fitting);
        conn
    }

    /// A connection begins its work: the peer hears how the VM's network is here.
    fn greet(&mut self, conn: ConnId, link: Link) {
        link.send(Message::Network(self.network.clone()));
        self.links.insert(conn, link);
    }

    /// The operator asks for something, and waits.
    pub(super) fn expect_answer(&mut self, reply: WishReply) -> RequestId {
        self.requests += 1;
        self.replies.insert(self.requests, reply);
        self.requests
    }

    /// The backup's own word of how far it has come.
    pub(super) fn note_position(&self, conn: ConnId, position: Position) {
        if self.links.contains_key(&conn) {
            self.replay.progress.set(position);
        }
    }

    /// What is held here is not the primary's VM any more: the peer shall know of it too.
    pub(super) fn note_loss(&self, why: &StateLoss) {
        tracing::error!("this backup cannot take over until the next full copy: {why}");
        match why {
            StateLoss::Diverged { count, what } => {
                self.telemetry.diverged(*count, what);
                for link in self.links.values() {
                    link.send(Message::Diverged(Diverged { count: *count, what: what.clone() }));
                }
            }
            StateLoss::Scrubbed(_) => self.telemetry.scrub_mismatch(),
            StateLoss::NotStarted(_)
            | StateLoss::LogRefused(_)
            | StateLoss::MachineFailed(_)
            | StateLoss::MachineGone(_)
            | StateLoss::Stuck { .. } => {}
        }
    }

    /// The peer was reached, and there is no pairing. A peer that is not there is not worth a line.
    fn note_undialled(&mut self, error: &HandshakeError, why: &str) {
        let is_answer = matches!(error, HandshakeError::Misfit(_) | HandshakeError::Refused(_));
        if !is_answer || error.is_reading() || self.undialled == why {
            return;
        }
        why.clone_into(&mut self.undialled);
        if let Some(more) = self.losses.pass(Instant::now()) {
            tracing::warn!("no pairing with the peer: {why}{}", unsaid(more));
        }
    }

    /// A connection has ended, if it is one of ours.
    pub(super) fn note_gone(&self, conn: ConnId, why: &LinkEnd) {
        if !self.links.contains_key(&conn) {
            return;
        }
        let shown = match why {
            LinkEnd::Lost(e) => e.to_string(),
            LinkEnd::Bye(why) => format!("it said good-bye: {why}"),
        };
        if let Some(more) = self.losses.pass(Instant::now()) {
            tracing::warn!("lost the peer: {shown}{}", unsaid(more));
        }
        self.window.show_disconnected(Some(shown));
    }

    fn order(&self, order: Order) {
        // A keeper that has ended has crashed: who waits for its answer finds out.
        let _ = self.orders.send(order);
    }

    fn order_and_wait<T>(&self, order: impl FnOnce(OrderReply<T>) -> Order) -> Result<T, HandsError> {
        let (reply, answer) = sync_channel(1);
        self.order(order(reply));
        answer.recv().map_err(|_| HandsError::KeeperGone)
    }

    /// Ends what the process still has, after its last messages.
    pub(super) fn farewell(mut self, view: View) {
        self.output.mute();
        for (_, reply) in self.replies.drain() {
            reply(Err(WishError::Ending));
        }
        let links: Vec<Link> = self.links.drain().map(|(_, link)| link).collect();
        for link in &links {
            link.finish();
        }
        let until = Instant::now() + FAREWELL;
        while links.iter().any(|link| !link.outbox.is_idle()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.show(view);
        self.stop_vm();
    }
}

/// One line for each lapse that begins or ends.
fn tell_lapses(before: &[Lapsed], now: &[Lapsed]) {
    let is_in = |lapsed: &Lapsed, list: &[Lapsed]| {
        list.iter().any(|other| (other.lapse.kind(), other.since) == (lapsed.lapse.kind(), lapsed.since))
    };
    for lapsed in now.iter().filter(|lapsed| !is_in(lapsed, before)) {
        tracing::warn!("not proven: {}", lapsed.lapse);
    }
    for lapsed in before.iter().filter(|lapsed| !is_in(lapsed, now)) {
        tracing::info!("in order again: {} no more", lapsed.lapse.kind());
    }
}

impl Hands for RealHands {
    type Error = HandsError;

    fn now_us(&self) -> Micros {
        clock::now_us()
    }

    fn output(&self) -> &OutputBuffer {
        &self.output
    }

    fn show(&mut self, view: View) {
        self.local.generation.store(view.generation, Ordering::Relaxed);
        let before = self.window.show(view.clone());
        let Some(before) = before else { return };
        if before.peer != view.peer {
            tracing::info!("node {} is the peer now, in place of {}", view.peer, before.peer);
            if let Ok(node) = view.peer.parse() {
                self.local.peer.rename(node);
            }
        }
        if (before.role, before.state, before.generation) != (view.role, view.state, view.generation) {
            tracing::info!(generation = view.generation, "{}, {}: {}", view.role, view.state, view.detail);
        }
        tell_lapses(&before.lapses, &view.lapses);
    }

    fn read_cell(&mut self) {
        self.arbiter.ask(Question::Read);
    }

    fn probe_cell(&mut self) {
        self.arbiter.ask(Question::Probe);
    }

    fn record(&mut self, record: NodeRecord) -> Result<(), Self::Error> {
        if let Some(disks) = &self.disks {
            disks.follower().know_cell(record.cell);
        }
        Ok(self.record_thread.record(record)?)
    }

    fn compare_and_set(&mut self, expected: Option<u64>, new: Cell) {
        self.arbiter.ask(Question::Set { expected, new });
    }

    fn leave_arbiter(&mut self) {
        self.arbiter.leave();
    }

    fn dial(&mut self) {
        self.dialler.dial();
    }

    fn stop_dialling(&mut self) {
        self.dialler.stop();
    }

    fn refuse(&mut self, conn: ConnId, why: String) {
        if let Some(mut fitting) = self.arriving.remove(&conn) {
            tracing::debug!("refused the peer: {why}");
            // A peer that does not even take the refusal is closed all the same.
            let _ = Message::Refuse(Refuse { code: 0, text: why }).send(0, &mut fitting.writer);
        }
    }

    fn turn_away(&mut self, conn: ConnId) {
        // Dropping it closes it.
        self.arriving.remove(&conn);
    }

    fn welcome(
        &mut self,
        conn: ConnId,
        pairing: u64,
        generation: u64,
        how: PairingStart,
    ) -> Result<(), Self::Error> {
        self.welcome_backup(conn, pairing, generation, how)
    }

    fn follow(&mut self, conn: ConnId, _pairing: u64, _how: PairingStart) -> Result<(), Self::Error> {
        self.follow_primary(conn)
    }

    fn beat(&mut self, conn: ConnId, outgoing: Outgoing) {
        if let Some(link) = self.links.get(&conn) {
            link.beat(outgoing);
        }
    }

    fn send(&mut self, conn: ConnId, message: Message<'static>) {
        if let Some(link) = self.links.get(&conn) {
            link.send(message);
        }
    }

    fn close(&mut self, conn: ConnId, closing: Closing) -> bool {
        let Some(link) = self.links.remove(&conn) else { return false };
        match closing {
            Closing::Now => link.close(),
            Closing::AfterQueued => {
                link.finish();
                self.window.show_disconnected(None);
            }
        }
        self.peer_lost = Some(Instant::now());
        true
    }

    fn boot(&mut self) -> Result<(), Self::Error> {
        self.stamping.claim(self.disks.as_deref())?;
        self.kept.give_up();
        let (reply, answer) = sync_channel(1);
        self.order(Order::Boot(reply));
        // What the guest boots may lie on slow storage. No other host has this VM: nobody is kept from a take-over.
        patience::wait_feeding(&answer, || self.watchdog.fed(|| false))??;
        tracing::info!("the guest is booting");
        Ok(())
    }

    fn press_power_button(&mut self) {
        tracing::info!("pressing the guest's power button");
        self.order(Order::PressPowerButton);
    }

    fn stop_vm(&mut self) {
        // A keeper that is gone has no machine either.
        if let Ok(Some(ram)) = self.order_and_wait(Order::Stop) {
            self.kept.keep(ram);
        }
        self.stamping.rest();
    }

    fn begin_pairing(&mut self, conn: ConnId, pairing: u64) {
        self.start_pairing(conn, pairing);
    }

    fn resume_pairing(&mut self, conn: ConnId, held: u64) -> Result<(), Self::Error> {
        self.send_again(conn, held)
    }

    fn unlink_pairing(&mut self, conn: ConnId) {
        if let Some(pairing) = &self.pairing
            && self.pairing_over == Some(conn)
        {
            pairing.unlink();
            self.pairing_over = None;
        }
    }

    fn end_pairing(&mut self) {
        self.drop_pairing();
    }

    fn acked(&mut self, conn: ConnId, epoch: u64, stamp: Micros) -> Result<(), Self::Error> {
        self.commit(conn, epoch, stamp)
    }

    fn freeze(&mut self) {
        self.order(Order::Freeze);
    }

    fn thaw(&mut self) {
        self.order(Order::Thaw);
    }

    fn prepare(&mut self) -> Result<(), Self::Error> {
        self.prepare_standby()
    }

    fn position(&self) -> Option<Position> {
        self.replay.on.then(|| self.replay.progress.get())
    }

    fn verify(&mut self, epoch: u64) -> Verification {
        // In replay mode what is held is known to be good when it is executed; else it was verified as it was sealed.
        if !self.replay.on {
            return Verification::Done;
        }
        self.order(Order::Verify { epoch });
        Verification::Follows
    }

    fn load(&mut self, epoch: u64) -> Verification {
        match &self.standby {
            // In replay mode the machine that will go on has executed all that is held.
            Some(standby) if !self.replay.on => {
                self.order(Order::Load { epoch, feed: standby.feed() });
                Verification::Follows
            }
            _ => self.verify(epoch),
        }
    }

    fn rehearse(&mut self, _epoch: u64) {
        self.try_out();
    }

    fn renew(&mut self) {
        self.renew_machine();
    }

    fn stop_receiving(&mut self) {
        *self.held.lock() = None;
        for link in self.links.values_mut() {
            link.stop_reading();
        }
    }

    fn seal_off(&mut self, epoch: u64) -> Result<(), Self::Error> {
        self.seal_standby_off(epoch)
    }

    fn resume_vm(&mut self) -> Result<(), Self::Error> {
        // In replay mode the images are nobody's until what is held is executed.
        if !self.replay.on {
            self.stamping.ran()?;
        }
        self.resume_sealed()
    }

    fn save_image(&mut self, saved: Saved) {
        self.save_sealed(saved);
    }

    fn read_image(&mut self, saved: Saved) {
        self.prepare_for_image(saved);
    }

    fn find_image(&mut self, cell: CellId) {
        self.images.find(cell);
    }

    fn drop_image(&mut self, cell: CellId, below: u64) {
        self.images.remove_below(cell, below);
    }

    fn announce(&mut self, generation: u64) {
        (self.announce)();
        self.order(Order::Announce);
        self.report_take_over(generation);
    }

    fn discard(&mut self) {
        self.rehearser.forget();
        if let Some(standby) = self.standby.take() {
            standby.discard();
        }
        self.images.call_off();
        self.resuming = None;
        self.stop_vm();
    }

    fn answer(&mut self, request: RequestId, outcome: Result<Done, RequestRefusal>) {
        if let Some(reply) = self.replies.remove(&request) {
            reply(outcome.map_err(WishError::Refused));
        }
    }
}
