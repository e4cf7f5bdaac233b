//! Inputs from other threads to a machine whose engine decides when they take effect. They wait here, unseen by the
//! guest, until the engine's thread takes them. Waiting inputs are not part of the machine's state.

use super::host::{Delivered, PACKET_BYTES_MAX};
use ft_disk::IoDone;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Frames that wait at most; whoever brings more is told to wait.
const FRAMES_MAX: usize = 256;
/// Console input that waits at most; more is dropped, as a terminal drops it.
const CONSOLE_BYTES_MAX: usize = 4096;

/// Calls the engine's thread: out of the guest, at the next instruction boundary that suits it, or out of its waiting.
#[derive(Default)]
pub(crate) struct Bell {
    attention: AtomicBool,
    lock: Mutex<()>,
    rung: Condvar,
}

impl Bell {
    /// Calls it.
    pub(crate) fn ring(&self) {
        self.attention.store(true, Ordering::SeqCst);
        // Whoever looked before the store has the lock until it waits.
        drop(self.lock.lock());
        self.rung.notify_all();
    }

    /// Calls the thread that is ours: it does not wait now.
    pub(crate) fn ring_self(&self) {
        self.attention.store(true, Ordering::SeqCst);
    }

    /// What a run of the guest looks at.
    pub(crate) fn attention(&self) -> &AtomicBool {
        &self.attention
    }

    /// Called since the last time.
    pub(crate) fn take(&self) -> bool {
        self.attention.swap(false, Ordering::SeqCst)
    }

    /// Waits for a call, or until `deadline`.
    pub(crate) fn wait(&self, deadline: Option<Instant>) {
        let mut guard = self.lock.lock();
        while !self.attention.load(Ordering::SeqCst) {
            match deadline {
                None => self.rung.wait(&mut guard),
                Some(deadline) if self.rung.wait_until(&mut guard, deadline).timed_out() => return,
                Some(_) => {}
            }
        }
    }
}

/// What waits.
pub(crate) struct Inbox {
    state: Mutex<State>,
    room: Condvar,
    /// Something waits.
    waiting: AtomicBool,
    bell: Arc<Bell>,
}

#[derive(Default)]
struct State {
    /// With the number of the card that each is for.
    frames: VecDeque<(u8, Vec<u8>)>,
    console: VecDeque<u8>,
    /// What disks have finished, with the disk's number.
    finished: VecDeque<(usize, IoDone)>,
    /// Frames are taken in: the machine runs, and not by a log.
    open: bool,
}

impl Inbox {
    pub(crate) fn new(bell: Arc<Bell>) -> Self {
        Self { state: Mutex::default(), room: Condvar::new(), waiting: AtomicBool::new(false), bell }
    }

    /// Takes a frame in for a card; `Yes` says that it will be offered to the guest's driver.
    pub(crate) fn put_frame(&self, card: u8, frame: &[u8]) -> Delivered {
        if frame.len() > PACKET_BYTES_MAX {
            return Delivered::Unfit;
        }
        let mut state = self.state.lock();
        if !state.open {
            return Delivered::Paused;
        }
        if state.frames.len() >= FRAMES_MAX {
            return Delivered::NoBuffers;
        }
        state.frames.push_back((card, frame.to_vec()));
        self.waiting.store(true, Ordering::Release);
        drop(state);
        self.bell.ring();
        Delivered::Yes
    }

    /// Waits until a frame would be taken in, or until the time is over; says which.
    pub(crate) fn wait_for_room(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.state.lock();
        while !state.open || state.frames.len() >= FRAMES_MAX {
            if self.room.wait_until(&mut state, deadline).timed_out() {
                return false;
            }
        }
        true
    }

    /// Takes console input in; how many bytes there was no room for.
    pub(crate) fn put_console(&self, bytes: &[u8]) -> usize {
        let mut state = self.state.lock();
        let taken = bytes.len().min(CONSOLE_BYTES_MAX - state.console.len());
        state.console.extend(&bytes[..taken]);
        if taken != 0 {
            self.waiting.store(true, Ordering::Release);
            drop(state);
            self.bell.ring();
        }
        bytes.len() - taken
    }

    /// Takes in what a disk has finished. It is never refused: there is no more of it than the guest has asked for.
    pub(crate) fn put_finished(&self, disk: usize, done: &mut Vec<IoDone>) {
        let mut state = self.state.lock();
        state.finished.extend(done.drain(..).map(|done| (disk, done)));
        self.waiting.store(true, Ordering::Release);
        drop(state);
        self.bell.ring();
    }

    /// What a disk has finished, in the order in which it came.
    pub(crate) fn take_finished(&self) -> Option<(usize, IoDone)> {
        let mut state = self.state.lock();
        let finished = state.finished.pop_front();
        self.settle(&state);
        finished
    }

    /// Has the engine's thread look again at what it has put off.
    pub(crate) fn ring(&self) {
        self.bell.ring();
    }

    /// Opens or closes it for frames.
    pub(crate) fn open(&self, open: bool) {
        self.state.lock().open = open;
        self.room.notify_all();
    }

    /// Forgets what waits, but for what disks have finished: a disk tells what is still its business.
    pub(crate) fn clear(&self) {
        let mut state = self.state.lock();
        state.frames.clear();
        state.console.clear();
        self.settle(&state);
        self.room.notify_all();
    }

    /// Whether something waits, without taking the lock.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    /// The frame that has waited longest, and the card that it is for.
    pub(crate) fn take_frame(&self) -> Option<(u8, Vec<u8>)> {
        let mut state = self.state.lock();
        let frame = state.frames.pop_front();
        if state.frames.len() + 1 == FRAMES_MAX {
            self.room.notify_all();
        }
        self.settle(&state);
        frame
    }

    /// Puts it back: the guest has no buffer for it.
    pub(crate) fn put_back(&self, card: u8, frame: Vec<u8>) {
        let mut state = self.state.lock();
        state.frames.push_front((card, frame));
        self.settle(&state);
    }

    /// Up to `most` bytes of console input.
    pub(crate) fn take_console(&self, most: usize) -> Vec<u8> {
        let mut state = self.state.lock();
        let taken = most.min(state.console.len());
        let bytes = state.console.drain(..taken).collect();
        self.settle(&state);
        bytes
    }

    fn settle(&self, state: &State) {
        let State { frames, console, finished, open: _ } = state;
        let empty = frames.is_empty() && console.is_empty() && finished.is_empty();
        self.waiting.store(!empty, Ordering::Release);
    }
}
