//! The output-commit buffer: frames from the VM in, frames to its wires out, never before their release. A VM has a
//! wire for each of its cards, and one order for all: a wire that takes no more stops the others as well, for as long
//! as a release is patient.
//!
//! Two locks, always taken in this order: `wire` serialises the threads that empty the queue, for as long as that
//! takes; `inner` guards the queue and the gate, for the time of a copy. A vCPU thread only ever takes `inner` (or
//! tries `wire`), so a long release does not stop the VM. The frame being emitted stays in the queue until it is out,
//! so a concurrent `transmit` stays behind it.
//!
//! Every frame leaves under a gate that was read after the gate's last change: `hold` and `mute` return only once no
//! frame that an earlier gate allowed is still on its way.

use crate::boottime::BootTime;
use crate::queue::FrameQueue;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a release waits for a wire that takes no more, before it leaves the rest to the next release.
const WIRE_PATIENCE: Duration = Duration::from_millis(20);
/// One wait for the wire; `mute` and `hold` wait at most about this long behind a blocked release.
const WIRE_WAIT: Duration = Duration::from_millis(1);
/// Highest hold time that the histogram tells apart, in microseconds.
const HOLD_US_MAX: u64 = 60_000_000;

/// Where frames leave: one Ethernet frame a call, whole.
pub trait Emit: Send + Sync {
    /// Sends one frame without blocking. `WouldBlock`: not sent, try again later. Any other error: the frame is lost,
    /// as on a network whose cable is out.
    fn emit(&self, frame: &[u8]) -> io::Result<()>;

    /// Waits until `emit` may succeed again, at most `timeout`.
    fn wait_room(&self, timeout: Duration) {
        std::thread::sleep(timeout.min(Duration::from_micros(200)));
    }
}

impl<T: Emit + ?Sized> Emit for Arc<T> {
    fn emit(&self, frame: &[u8]) -> io::Result<()> {
        (**self).emit(frame)
    }

    fn wait_room(&self, timeout: Duration) {
        (**self).wait_room(timeout);
    }
}

/// Who may speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Nothing leaves and nothing is kept: a backup, or a fenced primary.
    Muted,
    /// Frames go straight to the wire: a VM that runs solo.
    Passing,
    /// Frames wait for the ack of the checkpoint that covers them.
    Holding,
}

/// How much is held at most. Beyond it frames stay in the guest's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Frames; at least 1.
    pub frames: usize,
    /// Bytes; at least `frame_bytes`, so that every frame fits an empty buffer.
    pub bytes: usize,
    /// The longest frame taken: what the VM's card can send.
    pub frame_bytes: usize,
}

/// What became of an offered frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Transmitted {
    /// Taken: it leaves in order, or the VM will never have sent it.
    Taken,
    /// No room; offer it again once the callback of [`OutputBuffer::on_room`] was called.
    Full,
}

/// The leave to emit, with its term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permit {
    /// No frame leaves at or after this moment. The check and the system call that emits are not one step: a process
    /// stopped exactly between them emits one frame late, and no more than one.
    pub valid_until: BootTime,
}

/// Why frames were left although they were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The permit's term ended.
    Lapsed,
    /// The wire took no more for a while (20 ms).
    Blocked,
    /// The gate was changed meanwhile, or does not allow this.
    Gate,
}

/// The outcome of a release.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Released {
    /// Frames that left.
    pub frames: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Frames that were to leave and are still held; the next release covers them.
    pub left: usize,
    /// Why, if `left` is not 0.
    pub stopped: Option<Stopped>,
}

/// Counters since the buffer was made, and what is held now.
#[derive(Clone, Debug)]
pub struct HoldStats {
    /// The gate.
    pub gate: Gate,
    /// Frames held now.
    pub held_frames: usize,
    /// Bytes held now.
    pub held_bytes: usize,
    /// How long the oldest of them has been held; zero if there is none.
    pub oldest_held: Duration,
    /// Frames that left, held or passed.
    pub released: u64,
    /// Their bytes.
    pub released_bytes: u64,
    /// Microseconds from `transmit` to the wire, of the frames that were held.
    pub hold_us: Histogram<u64>,
    /// Times the buffer became full.
    pub full_events: u64,
    /// Frames that the wire refused for good.
    pub emit_errors: u64,
    /// Frames offered while muted; none of them left. More than a few mean a VM that runs where it must not.
    pub muted_offers: u64,
    /// Held frames that a fence discarded.
    pub discarded: u64,
    /// Frames longer than [`Bounds::frame_bytes`], dropped.
    pub oversized: u64,
}

/// What empties the queue, and up to where.
#[derive(Clone, Copy)]
enum Leave {
    Covered { epoch: u64, permit: Permit },
    All,
}

struct Inner {
    queue: FrameQueue,
    /// The counters; `held_*` are filled in when asked for.
    stats: HoldStats,
    /// Length of the frame that found no room.
    awaiting_room: Option<usize>,
}

type Callback = Box<dyn Fn() + Send + Sync>;
/// What permits are counted on.
type Clock = Box<dyn Fn() -> BootTime + Send + Sync>;

struct Shared {
    bounds: Bounds,
    wires: Vec<Box<dyn Emit>>,
    clock: Clock,
    /// Held by the thread that empties the queue; its content is the frame on its way.
    wire: Mutex<Vec<u8>>,
    inner: Mutex<Inner>,
    on_room: Mutex<Option<Arc<Callback>>>,
    on_held: Mutex<Option<Arc<Callback>>>,
}

/// The buffer; clones share it.
#[derive(Clone)]
pub struct OutputBuffer(Arc<Shared>);

impl OutputBuffer {
    /// A muted buffer before these wires. Bounds below their minimum are raised to it.
    #[must_use]
    pub fn new(wires: Vec<Box<dyn Emit>>, bounds: Bounds) -> Self {
        Self::with_clock(wires, bounds, BootTime::now)
    }

    /// As [`Self::new`], with another clock than the host's for the terms of permits.
    #[must_use]
    pub fn with_clock(
        wires: Vec<Box<dyn Emit>>,
        bounds: Bounds,
        clock: impl Fn() -> BootTime + Send + Sync + 'static,
    ) -> Self {
        let hold_us =
            Histogram::new_with_max(HOLD_US_MAX, 2).expect("constant arguments: 2 digits, maximum above 2");
        let stats = HoldStats {
            gate: Gate::Muted,
            held_frames: 0,
            held_bytes: 0,
            oldest_held: Duration::ZERO,
            released: 0,
            released_bytes: 0,
            hold_us,
            full_events: 0,
            emit_errors: 0,
            muted_offers: 0,
            discarded: 0,
            oversized: 0,
        };
        Self(Arc::new(Shared {
            bounds: Bounds {
                frames: bounds.frames.max(1),
                bytes: bounds.bytes.max(bounds.frame_bytes),
                frame_bytes: bounds.frame_bytes,
            },
            wires,
            clock: Box::new(clock),
            wire: Mutex::new(Vec::with_capacity(bounds.frame_bytes)),
            inner: Mutex::new(Inner { queue: FrameQueue::default(), stats, awaiting_room: None }),
            on_room: Mutex::new(None),
            on_held: Mutex::new(None),
        }))
    }

    /// Offers one frame for a wire, by its number. Called on a vCPU thread; does not wait for the wire.
    ///
    /// Passing: to the wire, behind whatever is still queued. Holding: into the open epoch. Muted: there is no room.
    pub fn transmit(&self, wire: u8, frame: &[u8]) -> Transmitted {
        let mut inner = self.0.inner.lock();
        if frame.len() > self.0.bounds.frame_bytes {
            inner.stats.oversized += 1;
            return Transmitted::Taken;
        }
        if inner.stats.gate == Gate::Muted {
            inner.stats.muted_offers += 1;
            inner.awaiting_room = Some(frame.len());
            return Transmitted::Full;
        }
        let passing = inner.stats.gate == Gate::Passing || cfg!(feature = "early-output");
        if passing && inner.queue.is_empty() && self.pass_directly(&mut inner, wire, frame) {
            return Transmitted::Taken;
        }
        let mut opens_epoch = false;
        let outcome = if inner.has_room(frame.len(), self.0.bounds) {
            opens_epoch = !passing && inner.queue.is_open_empty();
            inner.queue.push(wire, frame, Instant::now());
            Transmitted::Taken
        } else {
            // One episode, one count: a vCPU may offer the frame again before it is told of room.
            inner.stats.full_events += u64::from(inner.awaiting_room.is_none());
            inner.awaiting_room = Some(frame.len());
            Transmitted::Full
        };
        drop(inner);
        if passing {
            self.retry_passing();
        }
        if opens_epoch {
            let callback = self.0.on_held.lock().clone();
            if let Some(callback) = callback {
                callback();
            }
        }
        outcome
    }

    /// Passing becomes holding: from the return on, nothing leaves that is not released by epoch. What could not yet
    /// leave belongs to the open epoch. Muted becomes holding too: a VM that starts protected.
    pub fn hold(&self) {
        self.set_gate(Gate::Holding);
        self.tell_of_room();
    }

    /// Ends the open epoch while the VM is paused: the frames since the last call are covered by checkpoint `epoch`.
    /// Epochs rise until `pass` or `mute`.
    pub fn close_epoch(&self, epoch: u64) {
        let mut inner = self.0.inner.lock();
        if inner.stats.gate == Gate::Holding {
            inner.queue.close_epoch(epoch);
        }
    }

    /// Releases the frames covered by checkpoints up to `epoch`, in order, as long as the permit lasts.
    pub fn release_through(&self, epoch: u64, permit: Permit) -> Released {
        let released = self.drain(&mut self.0.wire.lock(), Leave::Covered { epoch, permit }, WIRE_PATIENCE);
        self.tell_of_room();
        released
    }

    /// The VM may speak freely: what is held leaves in order, and everything after it goes straight through. When
    /// `left` is not 0 the wire was blocked: the gate is open all the same; the next frame or call tries again.
    pub fn pass(&self) -> Released {
        let released = {
            let mut wire = self.0.wire.lock();
            {
                let mut inner = self.0.inner.lock();
                inner.stats.gate = Gate::Passing;
                inner.queue.forget_epochs();
            }
            self.drain(&mut wire, Leave::All, WIRE_PATIENCE)
        };
        self.tell_of_room();
        released
    }

    /// Fences: discards what is held. From the return on nothing leaves until `pass` or `hold`.
    pub fn mute(&self) {
        self.set_gate(Gate::Muted);
        let _wire = self.0.wire.lock();
        let mut inner = self.0.inner.lock();
        // Another thread may have opened the gate again meanwhile; then these frames are its own.
        if inner.stats.gate == Gate::Muted {
            inner.stats.discarded += inner.queue.clear() as u64;
        }
    }

    /// Sets the callback for room after [`Transmitted::Full`]: called once an episode, on the thread that made room,
    /// with no lock held.
    pub fn on_room(&self, callback: impl Fn() + Send + Sync + 'static) {
        *self.0.on_room.lock() = Some(Arc::new(Box::new(callback)));
    }

    /// Sets the callback for output that waits: called when the open epoch gets its first frame, on the vCPU thread
    /// that sends it, with no lock held. Whoever can end an epoch at any time does it now, and holds the frame no
    /// longer than it has to.
    pub fn on_held(&self, callback: impl Fn() + Send + Sync + 'static) {
        *self.0.on_held.lock() = Some(Arc::new(Box::new(callback)));
    }

    /// The gate as it is now.
    #[must_use]
    pub fn gate(&self) -> Gate {
        self.0.inner.lock().stats.gate
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> HoldStats {
        let inner = self.0.inner.lock();
        HoldStats {
            held_frames: inner.queue.frames(),
            held_bytes: inner.queue.bytes(),
            oldest_held: inner.queue.oldest().map_or(Duration::ZERO, |taken_at| taken_at.elapsed()),
            ..inner.stats.clone()
        }
    }

    /// The frame goes to the wire now, or the wire is blocked (false).
    fn pass_directly(&self, inner: &mut Inner, wire: u8, frame: &[u8]) -> bool {
        match self.emit(wire, frame) {
            Err(error) if is_blocked(&error) => return false,
            Err(_) => inner.stats.emit_errors += 1,
            Ok(()) => inner.count_released(frame.len(), None),
        }
        true
    }

    /// Sends it. On a wire that is not there it is lost.
    fn emit(&self, wire: u8, frame: &[u8]) -> io::Result<()> {
        self.0.wires.get(usize::from(wire)).map_or(Ok(()), |wire| wire.emit(frame))
    }

    /// Tries once to empty what a blocked wire has left, unless somebody is at it already.
    fn retry_passing(&self) {
        let released = match self.0.wire.try_lock() {
            Some(mut wire) => self.drain(&mut wire, Leave::All, Duration::ZERO),
            None => return,
        };
        if released.frames > 0 {
            self.tell_of_room();
        }
    }

    fn set_gate(&self, gate: Gate) {
        self.0.inner.lock().stats.gate = gate;
        // Whoever empties the queue looks at the gate before each frame; wait for the frame on its way.
        drop(self.0.wire.lock());
    }

    fn drain(&self, wire: &mut Vec<u8>, leave: Leave, patience: Duration) -> Released {
        let mut released = Released::default();
        let mut blocked_since = None;
        loop {
            let number = {
                let inner = self.0.inner.lock();
                let (wants_gate, wanted) = match leave {
                    Leave::Covered { epoch, .. } => (Gate::Holding, inner.queue.covered_through(epoch)),
                    Leave::All => (Gate::Passing, inner.queue.frames()),
                };
                released.left = wanted;
                if wanted == 0 {
                    released.stopped = None;
                    return released;
                }
                if inner.stats.gate != wants_gate {
                    released.stopped = Some(Stopped::Gate);
                    return released;
                }
                inner.queue.copy_first(wire)
            };
            let Some(number) = number else { return released };
            if let Leave::Covered { permit, .. } = leave
                && (self.0.clock)() >= permit.valid_until
            {
                released.stopped = Some(Stopped::Lapsed);
                return released;
            }
            let emitted = self.emit(number, wire);
            if let Err(error) = &emitted
                && is_blocked(error)
            {
                let since = *blocked_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= patience {
                    released.stopped = Some(Stopped::Blocked);
                    return released;
                }
                if let Some(blocked) = self.0.wires.get(usize::from(number)) {
                    blocked.wait_room(WIRE_WAIT);
                }
                continue;
            }
            blocked_since = None;
            let mut inner = self.0.inner.lock();
            let taken_at = inner.queue.remove_first();
            if emitted.is_ok() {
                inner.count_released(wire.len(), taken_at);
                released.frames += 1;
                released.bytes += wire.len();
            } else {
                inner.stats.emit_errors += 1;
            }
        }
    }

    /// Ends a Full episode if the frame that found no room fits now.
    fn tell_of_room(&self) {
        {
            let mut inner = self.0.inner.lock();
            let Some(len) = inner.awaiting_room else { return };
            if inner.stats.gate == Gate::Muted || !inner.has_room(len, self.0.bounds) {
                return;
            }
            inner.awaiting_room = None;
        }
        let callback = self.0.on_room.lock().clone();
        if let Some(callback) = callback {
            callback();
        }
    }
}

impl Inner {
    fn has_room(&self, len: usize, bounds: Bounds) -> bool {
        self.queue.frames() < bounds.frames && self.queue.bytes() + len <= bounds.bytes
    }

    fn count_released(&mut self, len: usize, held_since: Option<Instant>) {
        self.stats.released += 1;
        self.stats.released_bytes += len as u64;
        if let Some(since) = held_since {
            self.stats
                .hold_us
                .saturating_record(since.elapsed().as_micros().try_into().unwrap_or(HOLD_US_MAX));
        }
    }
}

/// The wire is full, or the kernel is out of memory for the moment: the frame is not lost.
fn is_blocked(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
        || matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM))
}
