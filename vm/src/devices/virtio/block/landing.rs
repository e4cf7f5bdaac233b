//! Where a disk's finished requests land: in the device, on the engine's thread, or in the inbox of an engine that
//! decides by itself when the machine sees them. And what the machine's owner does to a disk.

use super::{Block, Showing, Shown};
use crate::devices::inbox::Inbox;
use crate::devices::virtio::transport::{Backend, Shared};
use ft_disk::{Finish, IoDone, IoOrder, IoQueue};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

/// On the engine's thread.
pub(crate) struct Landing {
    disk: OnceLock<Weak<Shared<Block>>>,
    /// Checked under the disk's lock.
    quiesced: Arc<AtomicBool>,
}

impl Landing {
    pub(crate) fn new(quiesced: Arc<AtomicBool>) -> Self {
        Self { disk: OnceLock::new(), quiesced }
    }

    /// Before anything is ordered.
    pub(crate) fn is_for(&self, disk: &Arc<Shared<Block>>) {
        // Once, by whoever made both.
        let _ = self.disk.set(Arc::downgrade(disk));
    }
}

impl Finish for Landing {
    fn finish(&self, done: &mut Vec<IoDone>) {
        let Some(disk) = self.disk.get().and_then(Weak::upgrade) else { return done.clear() };
        let mut device = disk.device.lock();
        done.drain(..).for_each(|done| device.backend.arrive(done));
        if device.running() && !self.quiesced.load(Ordering::Relaxed) {
            device.serve(0, |block, rings, memory| block.notify(0, rings, memory));
        }
        drop(device);
        disk.changed.notify_all();
    }
}

/// Into the inbox, in which the engine's thread finds it.
pub(crate) struct Mailbox {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) disk: usize,
}

impl Finish for Mailbox {
    fn finish(&self, done: &mut Vec<IoDone>) {
        self.inbox.put_finished(self.disk, done);
    }
}

/// The queue of a disk whose machine is at an end.
pub(crate) struct Gone;

impl IoQueue for Gone {
    fn submit(&mut self, _: IoOrder) -> Option<IoDone> {
        None
    }

    fn nudge(&self) -> bool {
        false
    }
}

impl Shared<Block> {
    /// From now on nothing is taken from the ring or ordered, until [`Self::go_on`].
    pub(crate) fn stop(&self) {
        self.device.lock().backend.stopping = true;
    }

    /// Gives what is under way its time, counted from `begun`. A disk on which nothing happened the last time gets
    /// none.
    pub(crate) fn drain(&self, begun: Instant) {
        let mut device = self.device.lock();
        if !device.backend.lively {
            return;
        }
        let deadline = begun + device.backend.drain_within;
        // Said by whatever is finished from here on.
        device.backend.lively = !device.backend.flight.is_under_way();
        while device.running() && device.backend.flight.is_under_way() {
            if self.changed.wait_until(&mut device, deadline).timed_out() {
                return;
            }
        }
        device.backend.lively = true;
    }

    /// Undoes [`Self::stop`]. What was left is done by the engine's thread, if it has one.
    pub(crate) fn go_on(&self) {
        let mut device = self.device.lock();
        device.backend.stopping = false;
        let waiting = device.registers.rings[0].available(device.around.ram.memory()) != Ok(0);
        let due = device.running() && (waiting || device.backend.flight.has_work());
        if due && !device.backend.queue.nudge() {
            device.serve(0, |block, rings, memory| block.notify(0, rings, memory));
        }
    }

    /// Has the requests tried again that the host could not do, and those that the owner has held back.
    pub(crate) fn try_again(&self) {
        let mut device = self.device.lock();
        device.backend.flight.try_again();
        // A queue without a thread of its own leaves nothing to be tried again.
        device.backend.queue.nudge();
    }

    /// Whether a change of any of these bytes was told to the owner and is not made yet.
    pub(crate) fn is_changing(&self, bytes: &Range<u64>) -> bool {
        self.device.lock().backend.flight.is_changing(bytes)
    }

    /// For the engine that decides when the machine sees something: takes what was finished, without showing it.
    pub(crate) fn take_finished(&self, done: IoDone) {
        self.device.lock().backend.arrive(done);
    }

    /// Does what can be done without the guest's seeing it. What was taken is done, also if the device was reset or
    /// stopped since.
    pub(crate) fn go_on_unseen(&self) {
        let mut device = self.device.lock();
        if device.running() {
            device.serve(0, |block, rings, memory| block.read_again(&rings[0], memory).map(|()| false));
        }
        device.backend.issue();
    }

    /// For the engine that decides when the machine sees something: whether the guest is to stand still, since the disk
    /// has too much of what resets have forgotten.
    pub(crate) fn is_crowded(&self) -> bool {
        self.device.lock().backend.is_crowded()
    }

    /// Whether everything that the guest has asked for is done, and shown if there is a driver.
    pub(crate) fn is_at_rest(&self) -> bool {
        let device = self.device.lock();
        let flight = &device.backend.flight;
        flight.is_done() && (flight.taken.is_empty() || !device.running())
    }

    /// A request that is finished and was not shown: its head, and whether it went well.
    pub(crate) fn next_finished(&self) -> Option<(u16, bool)> {
        let device = self.device.lock();
        let told = device.backend.showing == Showing::Told && device.running();
        device.backend.flight.next_finished().filter(|_| told)
    }

    /// Shows that a request is done.
    pub(crate) fn show(&self, head: u16, well: bool) -> Shown {
        let mut device = self.device.lock();
        let mut shown = Shown::Never;
        if device.running() {
            // A driver that breaks the rules sees that, too.
            shown = Shown::Done;
            device.serve(0, |block, rings, memory| {
                let (outcome, interrupt) = block.show(head, well, rings, memory)?;
                shown = outcome;
                Ok(interrupt)
            });
        }
        shown
    }

    /// Ends its engine. Not under the lock, which the engine's thread takes.
    pub(crate) fn end(&self) {
        let queue = std::mem::replace(&mut self.device.lock().backend.queue, Box::new(Gone));
        drop(queue);
    }
}
