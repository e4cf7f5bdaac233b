//! The tap on a VM's writable disks. While a backup takes them, each change goes to it in order as the guest makes it.
//! What is told and not acked has a bound: beyond it the guest's disk waits, and so do changes of an extent that is
//! being compared.

use super::intents::{Clearance, Intents};
use super::nurse::{Nurse, TellStands};
use super::pace::Limit;
use ft_checkpoint::wire::{FrameType, SharedPayload, disk};
use ft_disk::IoFault;
use ft_mirror::{Change, Extent, Journal, Space};
use ft_vm::devices::{DiskAnswer, DiskChange, DiskOwner, DiskPort};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// A disk is not slowed below so many bytes on their way: one of the longest requests is as many.
const COST_LEAST: u64 = 256 << 10;

/// A part of the stream, on its way.
pub struct Told {
    /// What it is.
    pub kind: FrameType,
    /// The epoch that it is a part of.
    pub epoch: u64,
    /// What it takes of the bound.
    pub cost: u64,
    /// The frame's content.
    pub payload: SharedPayload,
}

/// Takes what is told, in order; false when nobody needs it any more. Must not block.
pub type Take = Box<dyn Fn(Told) -> bool + Send>;

/// A disk of the machine that runs.
pub trait TappedDisk: Send {
    /// What was refused is offered again.
    fn try_again(&self);
    /// Whether a change of any of these bytes was told and is not made yet.
    fn is_changing(&self, bytes: &Range<u64>) -> bool;
}

impl TappedDisk for DiskPort {
    fn try_again(&self) {
        Self::try_again(self);
    }

    fn is_changing(&self, bytes: &Range<u64>) -> bool {
        Self::is_changing(self, bytes)
    }
}

/// One pairing's part of a tap's time: what is told in its name is told in no later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session(u64);

/// See the module.
pub struct WriteTap {
    inner: Mutex<Inner>,
    /// There is room, or the pairing is over.
    room: Condvar,
    ports: Mutex<Vec<(u16, Box<dyn TappedDisk>)>>,
    cost_max: u64,
    /// Which extents may be changed.
    intents: Option<Arc<Intents>>,
    /// Who is told of disks that stand still.
    nurse: OnceLock<Nurse>,
    /// How fast images are read to be compared and sent.
    limit: Limit,
    /// Changes that the guest was shown as made, by one of two machines.
    shown: AtomicU64,
}

#[derive(Default)]
struct Inner {
    take: Option<Take>,
    /// Counts what has begun and ended.
    session: u64,
    /// The epoch that runs.
    epoch: u64,
    /// What is told and not acked, by epoch, and all of it.
    unacked: VecDeque<(u64, u64)>,
    cost: u64,
    /// How much that may be.
    allowed: u64,
    /// Nothing of it changes now.
    held: Option<Extent>,
    /// A change was refused.
    refused: bool,
    /// Replay mode: the machines of both hosts make the changes, and nothing is told.
    twins: bool,
}

impl Inner {
    fn is_held(&self, extent: &Extent) -> bool {
        self.held.as_ref().is_some_and(|held| {
            held.disk == extent.disk
                && held.bytes.start < extent.bytes.end
                && extent.bytes.start < held.bytes.end
        })
    }

    fn is_open(&self, session: Session) -> bool {
        self.take.is_some() && self.session == session.0
    }

    /// What is told to nobody is of no epoch that a backup could be through.
    fn epoch_of_changes(&self) -> u64 {
        if self.take.is_some() { self.epoch } else { u64::MAX }
    }

    /// What is larger than the bound goes alone.
    fn has_room(&self, cost: u64) -> bool {
        self.cost == 0 || self.cost + cost <= self.allowed
    }

    fn tell(&mut self, kind: FrameType, cost: u64, payload: Vec<u8>) {
        let Some(take) = &self.take else { return };
        let epoch = self.epoch;
        if !take(Told { kind, epoch, cost, payload: Arc::new(payload) }) {
            // The pairing is over, and its end is on its way here.
            return self.take = None;
        }
        self.cost += cost;
        match self.unacked.back_mut() {
            Some((newest, of_it)) if *newest == epoch => *of_it += cost,
            _ => self.unacked.push_back((epoch, cost)),
        }
    }

    fn tell_change(&mut self, change: &Change<'_>) {
        for piece in disk::pieces(change) {
            self.tell(FrameType::Disk, Journal::<File>::cost(&piece), disk::encode(&piece));
        }
    }
}

/// What is told and not acked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnTheWay {
    /// Bytes, as the backup's journal counts them.
    pub bytes: u64,
    /// A change waits until some of it is.
    pub waits: bool,
}

impl WriteTap {
    /// Tells nobody yet; never more than `cost_max` bytes, as the backup's journal counts them, will be on their way.
    pub fn new(cost_max: u64, intents: Option<Arc<Intents>>) -> Arc<Self> {
        let (inner, room, ports) = (Mutex::default(), Condvar::new(), Mutex::default());
        let (nurse, limit, shown) = (OnceLock::new(), Limit::default(), 0.into());
        Arc::new(Self { inner, room, ports, cost_max, intents, nurse, limit, shown })
    }

    /// Images are read to be compared and sent at so many bytes a second at most; 0: as fast as it goes.
    pub fn limit_copy(&self, bytes_per_s: u64) {
        self.limit.set(bytes_per_s);
    }

    /// What [`Self::limit_copy`] has set.
    pub(super) fn copy_limit(&self) -> u64 {
        self.limit.get()
    }

    /// Disks that stand still are tried again from now on.
    pub(super) fn nurse(self: &Arc<Self>, moving: BTreeSet<u16>) -> std::io::Result<()> {
        let nurse = Nurse::start(Arc::downgrade(self), moving)?;
        let _ = self.nurse.set(nurse);
        Ok(())
    }

    /// Who is told while a disk stands still for which the VM shall move.
    pub(super) fn on_stand(&self, tell: TellStands) {
        if let Some(nurse) = self.nurse.get() {
            nurse.on_stand(tell);
        }
    }

    /// Which disks have stood still for so long, in words.
    pub(super) fn trouble(&self, since: Duration) -> Option<String> {
        self.nurse.get()?.trouble(since)
    }

    /// The owner of a disk.
    pub fn owner(self: &Arc<Self>, disk: u16) -> Arc<dyn DiskOwner> {
        Arc::new(TapOfDisk { tap: Arc::clone(self), disk })
    }

    /// The disks of the machine that runs now.
    pub fn plug(&self, ports: Vec<(u16, Box<dyn TappedDisk>)>) {
        *self.ports.lock() = ports;
    }

    /// A pairing begins: until it is dropped every change is told. Its first epoch is 1.
    pub fn begin(self: &Arc<Self>, take: Take) -> Tapped {
        self.restart(Inner { take: Some(take), epoch: 1, allowed: self.cost_max, ..Inner::default() });
        Tapped(Arc::clone(self))
    }

    /// Replay mode's backup: until it is dropped, the machine here makes the changes by itself, as it executes the log
    /// of this epoch and those that follow.
    pub fn execute(self: &Arc<Self>, epoch: u64) -> Tapped {
        self.restart(Inner { twins: true, epoch, ..Inner::default() });
        Tapped(Arc::clone(self))
    }

    /// Replay mode's primary: the machine is paused and captured as of `epoch`, nothing of its disks is in flight, and
    /// the backup's executes what it does from now on. Nothing is told any more.
    pub fn recorded(&self, epoch: u64) {
        let mut inner = self.inner.lock();
        (inner.take, inner.twins, inner.epoch) = (None, true, epoch + 1);
    }

    /// Replay mode: what the guest is shown from now on is of this epoch of the log, or on the backup of none after it.
    pub fn runs(&self, epoch: u64) {
        self.inner.lock().epoch = epoch;
    }

    /// Replay mode: how many changes the guest was shown as made.
    pub(super) fn shown(&self) -> u64 {
        self.shown.load(Ordering::SeqCst)
    }

    fn restart(&self, new: Inner) {
        {
            let mut inner = self.inner.lock();
            let session = inner.session + 1;
            *inner = Inner { session, ..new };
        }
        self.room.notify_all();
        self.try_again();
    }

    /// What is on its way now.
    pub fn on_the_way(&self) -> OnTheWay {
        let inner = self.inner.lock();
        OnTheWay { bytes: inner.cost, waits: inner.refused }
    }

    /// The machine is paused, and captured as of `epoch`: what it changes from now on is the next one's.
    pub fn captured(&self, epoch: u64) {
        self.inner.lock().epoch = epoch + 1;
    }

    /// The backup has sealed `epoch`, and from now on acks come in time if so many bytes are on their way. Not to be
    /// called by a disk.
    pub fn acked(&self, epoch: u64, in_time: u64) {
        let mut inner = self.inner.lock();
        inner.allowed = in_time.max(COST_LEAST).min(self.cost_max);
        let covered = inner.unacked.partition_point(|(of, _)| *of <= epoch);
        let cost: u64 = inner.unacked.drain(..covered).map(|(_, cost)| cost).sum();
        inner.cost -= cost;
        self.refill(inner);
    }

    /// A part of a copy has left for the backup, where it waits for no seal. Not to be called by a disk.
    pub fn left(&self, told: &Told) {
        let mut inner = self.inner.lock();
        if let Some((_, cost)) = inner.unacked.iter_mut().find(|(epoch, _)| *epoch == told.epoch) {
            *cost -= told.cost;
            inner.cost -= told.cost;
        }
        self.refill(inner);
    }

    fn refill(&self, mut inner: MutexGuard<'_, Inner>) {
        let refused = std::mem::take(&mut inner.refused);
        drop(inner);
        self.room.notify_all();
        if refused {
            self.try_again();
        }
    }

    /// Has the disks offer again what was refused. Not to be called by a disk.
    pub(super) fn try_again(&self) {
        self.ports.lock().iter().for_each(|(_, port)| port.try_again());
    }

    /// The pairing that takes the changes now, if there is one.
    pub(super) fn session(&self) -> Session {
        Session(self.inner.lock().session)
    }

    /// Whether this pairing takes the changes.
    pub fn is_open(&self, session: Session) -> bool {
        self.inner.lock().is_open(session)
    }

    /// From now on nothing of this extent changes, until [`Self::release`]. False: the pairing is over.
    pub(super) fn hold(&self, session: Session, extent: Extent) -> bool {
        let mut inner = self.inner.lock();
        let is_open = inner.is_open(session);
        if is_open {
            inner.held = Some(extent);
        }
        is_open
    }

    /// Whether what changes an extent that is held is made: it was told before.
    pub(super) fn is_quiet(&self, extent: &Extent) -> bool {
        let ports = self.ports.lock();
        !ports.iter().any(|(disk, port)| *disk == extent.disk && port.is_changing(&extent.bytes))
    }

    /// What was held may change again.
    pub(super) fn release(&self, session: Session) {
        let mut inner = self.inner.lock();
        if inner.is_open(session) {
            inner.held = None;
            self.refill(inner);
        }
    }

    /// Tells something of an extent that is held, when there is room. False: the pairing is over.
    pub(super) fn put(&self, session: Session, kind: FrameType, payload: Vec<u8>) -> bool {
        let cost = payload.len() as u64;
        self.put_at(session, kind, cost, payload)
    }

    /// Tells what an extent that is held holds, when there is room. False: the pairing is over.
    pub(super) fn put_change(&self, session: Session, change: &Change<'_>) -> bool {
        let cost = |piece: &Change<'_>| Journal::<File>::cost(piece);
        disk::pieces(change)
            .all(|piece| self.put_at(session, FrameType::Disk, cost(&piece), disk::encode(&piece)))
    }

    fn put_at(&self, session: Session, kind: FrameType, cost: u64, payload: Vec<u8>) -> bool {
        let mut inner = self.inner.lock();
        while inner.is_open(session) && !inner.has_room(cost) {
            self.room.wait(&mut inner);
        }
        if inner.is_open(session) {
            inner.tell(kind, cost, payload);
        }
        inner.is_open(session)
    }

    fn change(&self, disk: u16, change: &DiskChange<'_>) -> DiskAnswer {
        let change = match *change {
            DiskChange::Write { offset, data } => Change::write(disk, offset, data),
            DiskChange::Zeroes { offset, bytes, unmap } => Change::Zeroes {
                extent: Extent { disk, bytes: offset..offset + bytes },
                space: if unmap { Space::May } else { Space::Keep },
            },
            // What the backup holds is as durable as the seal of its epoch.
            DiskChange::Flush => return DiskAnswer::Taken,
        };
        let mut inner = self.inner.lock();
        let extent = change.extent();
        if inner.take.is_some() {
            let cost = disk::pieces(&change).map(|piece| Journal::<File>::cost(&piece)).sum();
            if inner.is_held(&extent) || !inner.has_room(cost) {
                inner.refused = true;
                return DiskAnswer::Full;
            }
        }
        let clearance = |intents: &Arc<Intents>| match inner.twins {
            false => intents.may_change(disk, &extent.bytes, inner.epoch_of_changes()),
            true => intents.may_execute(disk, &extent.bytes),
        };
        if self.intents.as_ref().map(clearance) == Some(Clearance::Later) {
            return DiskAnswer::Full;
        }
        inner.tell_change(&change);
        DiskAnswer::Taken
    }

    fn note_shown(&self, disk: u16, bytes: &Range<u64>) {
        let inner = self.inner.lock();
        if inner.twins {
            if let Some(intents) = &self.intents {
                intents.shown(disk, bytes, inner.epoch);
            }
            self.shown.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn note_stopped(&self, disk: u16, fault: &IoFault) {
        if let Some(nurse) = self.nurse.get() {
            nurse.note(disk, fault.to_string());
        }
    }
}

/// A pairing that takes the changes.
pub struct Tapped(Arc<WriteTap>);

impl Drop for Tapped {
    fn drop(&mut self) {
        self.0.restart(Inner::default());
    }
}

/// One disk's.
struct TapOfDisk {
    tap: Arc<WriteTap>,
    disk: u16,
}

impl DiskOwner for TapOfDisk {
    fn change(&self, change: &DiskChange<'_>) -> DiskAnswer {
        self.tap.change(self.disk, change)
    }

    fn shown(&self, bytes: &Range<u64>) {
        self.tap.note_shown(self.disk, bytes);
    }

    fn stopped(&self, fault: &IoFault) {
        self.tap.note_stopped(self.disk, fault);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};

    const COST_MAX: u64 = 4 * (48 + 512);

    fn tapped() -> (Arc<WriteTap>, Tapped, Arc<dyn DiskOwner>, Receiver<Told>) {
        let tap = WriteTap::new(COST_MAX, None);
        let (sender, told) = channel();
        let pairing = tap.begin(Box::new(move |told| sender.send(told).is_ok()));
        let owner = tap.owner(3);
        (tap, pairing, owner, told)
    }

    fn write(owner: &Arc<dyn DiskOwner>, sector: u64, sectors: usize) -> DiskAnswer {
        owner.change(&DiskChange::Write { offset: 512 * sector, data: &vec![7; 512 * sectors] })
    }

    #[test]
    fn changes_are_told_in_order_with_the_epoch_in_which_they_are_made() {
        let (tap, _pairing, owner, told) = tapped();
        assert_eq!(write(&owner, 1, 1), DiskAnswer::Taken);
        tap.captured(1);
        assert_eq!(write(&owner, 2, 1), DiskAnswer::Taken);
        assert_eq!(owner.change(&DiskChange::Flush), DiskAnswer::Taken);
        let zeroes = DiskChange::Zeroes { offset: 0, bytes: 1 << 40, unmap: true };
        assert_eq!(owner.change(&zeroes), DiskAnswer::Taken);
        let told: Vec<Told> = told.try_iter().collect();
        assert_eq!(told.iter().map(|told| told.epoch).collect::<Vec<_>>(), [1, 2, 2]);
        assert_eq!(*told[0].payload, disk::encode(&Change::write(3, 512, &[7; 512])));
        assert_eq!(told[2].cost, 48);
    }

    #[test]
    fn of_two_machines_that_make_the_same_changes_nothing_is_told() {
        let (tap, pairing, owner, told) = tapped();
        assert_eq!(write(&owner, 1, 1), DiskAnswer::Taken);
        tap.recorded(1);
        for sector in 0..100 {
            assert_eq!(write(&owner, sector, 1), DiskAnswer::Taken, "there is no bound");
        }
        owner.shown(&(0..512));
        assert_eq!((told.try_iter().count(), tap.shown()), (1, 1));
        drop(pairing);
        owner.shown(&(0..512));
        assert_eq!(tap.shown(), 1, "nobody else makes it");
    }

    #[test]
    fn a_disk_that_fails_stands_still_and_is_tried_again_whoever_makes_the_changes() {
        let fault = || IoFault { what: "write it", offset: 0, source: std::io::Error::other("it is gone") };
        let (tap, pairing, owner, _told) = tapped();
        tap.nurse(BTreeSet::new()).unwrap();
        drop(pairing);
        let _executing = tap.execute(2);
        assert_eq!(tap.trouble(Duration::ZERO), None);
        owner.stopped(&fault());
        let why = tap.trouble(Duration::ZERO).unwrap();
        assert!(why.starts_with("disk 4 stands still: ") && why.contains("it is gone"), "{why}");
    }

    #[test]
    fn beyond_the_bound_the_disk_waits_for_an_ack_and_no_epoch_is_counted_twice() {
        let (tap, pairing, owner, told) = tapped();
        for sector in 0..4 {
            assert_eq!(write(&owner, sector, 1), DiskAnswer::Taken);
            tap.captured(sector + 1);
        }
        assert_eq!(write(&owner, 9, 1), DiskAnswer::Full);
        assert_eq!(tap.on_the_way(), OnTheWay { bytes: COST_MAX, waits: true });
        tap.acked(2, COST_MAX);
        tap.acked(2, COST_MAX);
        assert!(!tap.inner.lock().refused, "it is told to try again");
        assert_eq!(write(&owner, 9, 1), DiskAnswer::Taken);
        assert_eq!(write(&owner, 10, 1), DiskAnswer::Taken);
        assert_eq!(write(&owner, 11, 1), DiskAnswer::Full);
        tap.acked(99, 0);
        assert_eq!(write(&owner, 11, 200), DiskAnswer::Taken, "what is larger than the bound goes alone");
        assert_eq!(write(&owner, 12, 1), DiskAnswer::Full);
        assert_eq!(told.try_iter().count(), 7);
        drop(pairing);
        assert_eq!(write(&owner, 12, 1), DiskAnswer::Taken, "there is nobody to be told");
        assert_eq!(told.try_iter().count(), 0);
    }

    #[test]
    fn what_leaves_with_a_copy_waits_for_no_ack() {
        let (tap, _pairing, owner, told) = tapped();
        for sector in 0..4 {
            assert_eq!(write(&owner, sector, 1), DiskAnswer::Taken);
        }
        assert_eq!(write(&owner, 9, 1), DiskAnswer::Full);
        told.try_iter().for_each(|told| tap.left(&told));
        for sector in 0..4 {
            assert_eq!(write(&owner, sector, 1), DiskAnswer::Taken);
        }
    }

    #[test]
    fn an_extent_that_is_held_does_not_change_and_others_do() {
        let (tap, _pairing, owner, told) = tapped();
        let extent = |disk, sectors: std::ops::Range<u64>| Extent {
            disk,
            bytes: 512 * sectors.start..512 * sectors.end,
        };
        let session = tap.session();
        assert!(tap.hold(session, extent(3, 8..16)));
        assert_eq!(write(&owner, 15, 1), DiskAnswer::Full);
        assert_eq!(write(&owner, 7, 2), DiskAnswer::Full);
        assert_eq!(write(&owner, 7, 1), DiskAnswer::Taken);
        assert_eq!(write(&owner, 16, 1), DiskAnswer::Taken);
        tap.hold(session, extent(2, 8..16));
        assert_eq!(write(&owner, 8, 1), DiskAnswer::Taken, "it is another disk's");
        tap.release(session);
        assert!(tap.put(session, FrameType::Compare, vec![0; 100]));
        let kinds: Vec<_> = told.try_iter().map(|told| told.kind).collect();
        assert_eq!(kinds, [FrameType::Disk, FrameType::Disk, FrameType::Disk, FrameType::Compare]);
        drop(told);
        assert!(!tap.put(session, FrameType::Compare, vec![0; 100]), "nobody takes it");
    }

    #[test]
    fn what_is_said_in_the_name_of_a_pairing_that_is_over_is_not_told_in_the_next_one() {
        let (tap, pairing, owner, told) = tapped();
        let session = tap.session();
        let extent = Extent { disk: 3, bytes: 0..512 };
        assert!(tap.hold(session, extent.clone()));
        drop((pairing, told));
        let (sender, told) = channel();
        let _next = tap.begin(Box::new(move |told| sender.send(told).is_ok()));
        assert_eq!(write(&owner, 0, 1), DiskAnswer::Taken, "it was held for the last one");
        let next = tap.session();
        assert!(tap.hold(next, extent.clone()));
        assert!(!tap.is_open(session) && !tap.hold(session, extent.clone()));
        tap.release(session);
        assert_eq!(write(&owner, 0, 1), DiskAnswer::Full, "it is held for this one");
        assert!(!tap.put(session, FrameType::Compare, vec![0; 100]));
        assert!(!tap.put_change(session, &Change::write(3, 0, &[1; 512])));
        assert_eq!(told.try_iter().count(), 1);
    }
}
