//! The backup's side of replication: the receiver that connections feed, the thread that applies sealed checkpoints,
//! and the take-over. In replay mode sealed log goes on to the machine that executes it.

use super::error::{SealedError, StandbyError, StateLoss};
use super::news::{FromPrimary, KeeperNews};
use super::order::Order;
use super::progress::{Replay, ReplayProgress};
use super::rehearsal::Sealed;
use crate::disks::{Disks, FollowError, FollowerTurn};
use crate::observe::Telemetry;
use crate::outlet::Outlet;
use crate::peer::{Intake, LinkEnd, LinkError, PeerReader};
use crate::role::ConnId;
use ft_checkpoint::backlog::Applier;
use ft_checkpoint::receiver::{Limits, Received, Receiver, SealedImage};
use ft_checkpoint::wire::message::{Compare, Compared, Held, Mode};
use ft_checkpoint::wire::{FrameType, Message};
use ft_confine::ThreadKind;
use ft_ram::GuestRam;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Instant;

/// What a backup holds, warm: RAM that the prepared machine stands on, and the receiver that fills it.
pub struct WarmStandby {
    ram: GuestRam,
    feed: Feed,
    applier: JoinHandle<()>,
}

/// Frames between two pieces of news that the peer is alive.
const ALIVE_EVERY: u64 = 16;

/// The receiver, for the connection that feeds it.
#[derive(Clone)]
pub struct Feed {
    receiver: Arc<Mutex<Option<Receiver>>>,
    /// Replay mode: where the checkpoint and the log go, to be executed.
    follower: Option<Following>,
    /// Where changes of disks go.
    disks: Option<Arc<Disks>>,
}

/// Replay mode: the way to the machine that executes.
#[derive(Clone)]
struct Following {
    orders: Sender<Order>,
    applier: Applier,
    progress: Arc<ReplayProgress>,
}

/// Log that is kept unexecuted at most; the primary stands still long before. Beyond it the connection is given up
/// before more is sealed.
const UNEXECUTED_BYTES_MAX: u64 = 256 << 20;

impl WarmStandby {
    /// Ready for a full copy into `ram`. In replay mode the taker of these orders executes the sealed log.
    pub fn new(
        ram: GuestRam,
        replay: &Replay,
        orders: &Sender<Order>,
        disks: Option<&Arc<Disks>>,
    ) -> Result<Self, StandbyError> {
        let view = ram.view()?;
        let mode = if replay.on { Mode::Replay } else { Mode::Checkpoint };
        let sizes = disks.map(|disks| disks.sizes()).unwrap_or_default();
        let receiver = Receiver::of_mode(view, Limits::of_memory(ram.pages()), mode).with_disks(sizes);
        let applier = receiver.applier();
        let follower = replay.on.then(|| Following {
            orders: orders.clone(),
            applier: applier.clone(),
            progress: Arc::clone(&replay.progress),
        });
        let applier = std::thread::Builder::new()
            .name("ftd-apply".into())
            .spawn(move || {
                ft_confine::this_thread(ThreadKind::Checkpoint);
                applier.run();
            })
            .map_err(StandbyError::Thread)?;
        let receiver = Arc::new(Mutex::new(Some(receiver)));
        let feed = Feed { receiver, follower, disks: disks.cloned() };
        Ok(Self { ram, feed, applier })
    }

    /// The memory that is held.
    pub fn ram(&self) -> GuestRam {
        self.ram.clone()
    }

    /// The receiver, for a connection.
    pub fn feed(&self) -> Feed {
        self.feed.clone()
    }

    /// What a rehearsal tries: the last sealed checkpoint.
    pub fn sealed(&self) -> Option<Sealed> {
        let receiver = self.feed.receiver.lock();
        let receiver = receiver.as_ref()?;
        Some(Sealed {
            ram: self.ram.clone(),
            held: receiver.held()?,
            state: receiver.sealed_state()?.to_vec(),
        })
    }

    /// Stops receiving and applying, and hands out the last sealed checkpoint. The connection's reader has stopped.
    pub fn into_sealed(self) -> Result<(GuestRam, SealedImage), SealedError> {
        let receiver = self.feed.receiver.lock().take().ok_or(SealedError::GivenUp)?;
        let sealed = receiver.into_sealed().map_err(|_| SealedError::NothingSealed)?;
        // What it has not applied is pending, also if it crashed.
        let _ = self.applier.join();
        Ok((self.ram, sealed))
    }

    /// Gives up what is held.
    pub fn discard(self) {
        // Dropping the receiver stops the applier.
        drop(self.feed.receiver.lock().take());
        let _ = self.applier.join();
    }
}

impl Feed {
    /// What is held, for a hello.
    pub fn held(&self) -> Option<Held> {
        self.receiver.lock().as_ref().and_then(Receiver::held)
    }

    /// The machine's state at this epoch, if that is what is held, and who applies the pages that belong to it.
    pub(super) fn sealed(&self, epoch: u64) -> Option<(Vec<u8>, Applier)> {
        let receiver = self.receiver.lock();
        let receiver = receiver.as_ref()?;
        let held = receiver.held().filter(|held| held.epoch == epoch).and(receiver.sealed_state())?;
        Some((held.to_vec(), receiver.applier()))
    }

    /// A connection was welcomed in this generation, on which this version of the protocol is spoken. What the last one
    /// left half received is dropped.
    pub fn connected(&self, generation: u64, protocol: u16) {
        let turn = self.disks.as_ref().map(|disks| disks.follower().turn());
        if let Some(receiver) = &mut *self.receiver.lock() {
            receiver.connected(generation);
            receiver.compare_copies(protocol >= FrameType::PageHashes.since());
        }
        if let Some(mut turn) = turn {
            turn.connected();
        }
    }

    /// Replay mode: the machine is to execute from the checkpoint that was just sealed.
    fn follow(&self, receiver: &Receiver) -> Result<(), LinkEnd> {
        let Some(Following { orders, applier, .. }) = &self.follower else { return Ok(()) };
        let held = receiver.held().zip(receiver.sealed_state());
        let (held, state) = held.ok_or(LinkEnd::Lost(LinkError::Unusable("it is not held")))?;
        let _ = orders.send(Order::Follow { held, state: state.to_vec(), applier: applier.clone() });
        Ok(())
    }

    /// The same for a machine with disks, which follow by now. No other connection goes on meanwhile.
    fn follow_with_disks(&self, received: &Received<'_>) -> Result<(), LinkEnd> {
        match (received, &*self.receiver.lock()) {
            (Received::Sealed { .. }, Some(receiver)) => self.follow(receiver),
            _ => Ok(()),
        }
    }

    /// What a frame that the receiver took means to the executor. Replay mode: log that is sealed goes on to be
    /// executed, ahead of its ack.
    fn said(
        &self,
        received: Received<'_>,
        receiver: &Receiver,
        telemetry: &Telemetry,
    ) -> Result<Option<FromPrimary>, LinkEnd> {
        let unusable = |why| LinkEnd::Lost(LinkError::Unusable(why));
        Ok(Some(match received {
            Received::Sealed { pairing, epoch, stamp_us } => {
                if self.disks.is_none() {
                    self.follow(receiver)?;
                }
                telemetry.compared(receiver.scrubbed());
                FromPrimary::Sealed { pairing, epoch, stamp: stamp_us }
            }
            Received::SealedLog { pairing, epoch, stamp_us, log } => {
                let following = self.follower.as_ref().ok_or(unusable("no machine executes it"))?;
                following.progress.queued(log.len() as u64);
                let _ = following.orders.send(Order::Feed { epoch, log, at: Instant::now() });
                FromPrimary::Sealed { pairing, epoch, stamp: stamp_us }
            }
            Received::Paired { generation } => FromPrimary::Paired { generation },
            Received::Standing(standing) => FromPrimary::Standing(standing),
            Received::Network(network) => FromPrimary::Network(network),
            Received::Switchover { epoch } => FromPrimary::Offered { epoch },
            Received::Bye(bye) => return Err(LinkEnd::Bye(bye.text)),
            Received::CopyProgress { received_pages, total_pages, same_pages } => {
                telemetry.copy(received_pages.into(), total_pages.into(), same_pages.into());
                return Ok(None);
            }
            Received::Nothing
            | Received::Change(_)
            | Received::Compare(_)
            | Received::DiskMap(_)
            | Received::CopyStarted { .. }
            | Received::TookOver { .. } => return Ok(None),
        }))
    }

    /// Feeds a connection's frames to the receiver until the connection ends or is stopped.
    pub fn read(
        &self,
        conn: ConnId,
        mut reader: PeerReader,
        intake: &Arc<Intake>,
        news: &Outlet<KeeperNews>,
        telemetry: &Telemetry,
    ) -> Option<LinkEnd> {
        let mut frames = 0u64;
        loop {
            let frame = match reader.read() {
                Ok(frame) => frame,
                Err(_) if intake.is_stopped() => return None,
                Err(e) => return Some(LinkEnd::Lost(e.into())),
            };
            if matches!(frame.kind, FrameType::Log | FrameType::LogEnd)
                && let Some(Following { progress, .. }) = &self.follower
                && progress.get().pending_bytes > UNEXECUTED_BYTES_MAX
            {
                return Some(LinkEnd::Lost(LinkError::TooMuchLog));
            }
            let mut turn = self.disks.as_ref().map(|disks| disks.follower().turn());
            let (of_disks, held, said, kept) = {
                let mut receiver = self.receiver.lock();
                if intake.is_stopped() {
                    return None;
                }
                let receiver = receiver.as_mut()?;
                let received = match receiver.on_frame(&frame) {
                    Err(e) if e.is_distrust() => {
                        // What is held is distrusted before the connection is missed, so that it is not offered again.
                        news.tell(KeeperNews::StateLost(StateLoss::Scrubbed(e))).ok()?;
                        return Some(LinkEnd::Lost(LinkError::Distrusted));
                    }
                    Err(e) => return Some(LinkEnd::Lost(e.into())),
                    Ok(received) => received,
                };
                let of_disks = turn.as_ref().map(|_| without_log(&received));
                // Under the lock: in order, also when another connection goes on where this one ends.
                match self.said(received, receiver, telemetry) {
                    Ok(said) => (of_disks, receiver.held(), said, receiver.page_hashes()),
                    Err(end) => return Some(end),
                }
            };
            let mut answers: Vec<_> = kept.into_iter().map(Message::PageHashes).collect();
            answers.extend(match turn.as_mut().zip(of_disks) {
                None => Vec::new(),
                // Others look at the receiver meanwhile: this may take its time.
                Some((turn, received)) => match follow_disks(turn, &received, held, intake) {
                    // The images are the checkpoint's before the machine here changes them.
                    Ok(answers) => match self.follow_with_disks(&received) {
                        Ok(()) => answers,
                        Err(end) => return Some(end),
                    },
                    Err(FollowError::GivenUp) => return None,
                    Err(why) => {
                        // What is sealed in memory is as good as before: it is kept, and may be the last copy.
                        news.tell(KeeperNews::CannotFollow { conn, why }).ok()?;
                        return Some(LinkEnd::Lost(LinkError::DisksFail));
                    }
                },
            });
            drop(turn);
            // A part of a long checkpoint or copy is a sign of life too.
            frames += 1;
            let said = said.or_else(|| frames.is_multiple_of(ALIVE_EVERY).then_some(FromPrimary::Alive));
            let answers = (!answers.is_empty()).then_some(FromPrimary::Answers(answers));
            for said in said.into_iter().chain(answers) {
                let ticket = intake.enter()?;
                news.tell(KeeperNews::FromPrimary { conn, said, ticket }).ok()?;
            }
        }
    }
}

/// What concerns the disks of it.
fn without_log<'f>(received: &Received<'f>) -> Received<'f> {
    match received {
        &Received::SealedLog { pairing, epoch, stamp_us, .. } => {
            Received::SealedLog { pairing, epoch, stamp_us, log: Vec::new() }
        }
        other => other.clone(),
    }
}

/// What came in of the disks, in order. What the primary is to know comes out.
fn follow_disks(
    turn: &mut FollowerTurn<'_>,
    received: &Received<'_>,
    held: Option<Held>,
    intake: &Intake,
) -> Result<Vec<Message<'static>>, FollowError> {
    let is_stopped = || intake.is_stopped();
    match received {
        &Received::CopyStarted { pairing } => {
            let maps = turn.copy_begins(pairing, &is_stopped)?;
            return Ok(maps.into_iter().map(Message::DiskMap).collect());
        }
        Received::DiskMap(part) => turn.mapped(part),
        Received::Change(change) => turn.take(change, &is_stopped)?,
        &Received::Compare(compare) => {
            let Compare { disk, extent, .. } = compare;
            let same = turn.compare(&compare)?;
            let answer = same.map(|same| Message::Compared(Compared { disk, extent, same }));
            return Ok(answer.into_iter().collect());
        }
        &Received::Sealed { pairing, epoch, .. } => {
            let held = Held { pairing, epoch };
            turn.sealed(held)?;
            let settled = turn.settled(held).map(Message::Settled);
            return Ok(settled
                .into_iter()
                .chain(turn.answers().into_iter().map(Message::Compared))
                .collect());
        }
        &Received::SealedLog { pairing, epoch, .. } => {
            turn.sealed_log()?;
            return Ok(turn.settled(Held { pairing, epoch }).map(Message::Settled).into_iter().collect());
        }
        &Received::Paired { generation } => {
            if let Some(held) = held {
                turn.named(held.pairing, generation)?;
            }
        }
        _ => {}
    }
    Ok(Vec::new())
}
