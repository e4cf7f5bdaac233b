//! The engines that carry out orders, behind one queue: io_uring, or a pool of threads where the kernel refuses it. Of
//! an image over a base, what needs the base goes to threads (`layered`).

mod layered;
mod ordered;
mod task;
#[cfg(test)]
mod tests;
mod threads;
mod uring;

use crate::image::RawImage;
use crate::io::{IoDone, IoOrder};
use ordered::Ordered;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// Orders that an engine has under way at once, at most; more wait.
const UNDER_WAY_MAX: usize = 128;
/// How long whoever drops a queue waits for what the kernel has in hand.
const END_WITHIN: Duration = Duration::from_secs(1);

/// Takes what is done. Called on a thread of the engine's, never by who orders.
pub trait Finish: Send + Sync {
    /// Takes all of `done` out. With none it is the answer to a [`IoQueue::nudge`].
    fn finish(&self, done: &mut Vec<IoDone>);
}

/// What a device does its I/O by, before it is started.
pub trait Store: Send {
    /// Size in bytes.
    fn bytes(&self) -> u64;

    /// Whether writes are possible.
    fn is_writable(&self) -> bool;

    /// Starts it. `name` is for its threads.
    fn start(self: Box<Self>, name: &str, answer: Completion) -> Result<Box<dyn IoQueue>, StoreError>;
}

/// How who orders is to learn that an order is done.
#[derive(Clone)]
pub enum Completion {
    /// On another thread.
    By(Arc<dyn Finish>),
    /// When [`IoQueue::submit`] returns: the thread that orders does it itself. For an engine whose machine must have
    /// it at the very instruction.
    AtOnce,
}

/// Takes orders. When it is dropped, no order is begun any more, and nothing that is done is told.
pub trait IoQueue: Send {
    /// Takes an order and returns at once. What is done comes by [`Finish`]; it is the answer only where that was asked
    /// for ([`Completion::AtOnce`]).
    #[must_use]
    fn submit(&mut self, order: IoOrder) -> Option<IoDone>;

    /// Has [`Finish::finish`] called soon, on another thread; false where there is none.
    fn nudge(&self) -> bool;
}

/// Why a store cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No thread.
    #[error("cannot start a thread for disk I/O: {0}")]
    Thread(io::Error),
    /// No io_uring, and nothing else was asked for.
    #[error("the kernel refuses io_uring: {0}")]
    Uring(io::Error),
}

/// Which engine carries out orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoEngine {
    /// io_uring, or threads where the kernel refuses it or does it wrongly.
    #[default]
    Auto,
    /// io_uring alone.
    Uring,
    /// A pool of threads.
    Threads,
}

/// What carries out the orders in fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Uring,
    Threads,
}

/// An image, and how it is to be read and written.
pub struct ImageStore {
    image: Arc<RawImage>,
    engine: IoEngine,
}

impl ImageStore {
    /// By this engine. Others in this process who have a part in the image share it: to open it again is refused.
    pub fn new(image: impl Into<Arc<RawImage>>, engine: IoEngine) -> Self {
        Self { image: image.into(), engine }
    }
}

impl Store for ImageStore {
    fn bytes(&self) -> u64 {
        self.image.bytes()
    }

    fn is_writable(&self) -> bool {
        self.image.access() == crate::image::Access::Writable
    }

    fn start(self: Box<Self>, name: &str, answer: Completion) -> Result<Box<dyn IoQueue>, StoreError> {
        let Self { image, engine } = *self;
        let finish = match answer {
            Completion::By(finish) => finish,
            Completion::AtOnce => return Ok(Box::new(Prompt(image))),
        };
        let (kind, queue) = start(image, engine, name, finish, uring::Ring::new)?;
        tracing::debug!(disk = name, engine = ?kind, "disk engine started");
        Ok(queue)
    }
}

/// Starts an engine; `ring` makes the kernel's part of io_uring.
fn start(
    image: Arc<RawImage>,
    engine: IoEngine,
    name: &str,
    finish: Arc<dyn Finish>,
    ring: impl FnOnce() -> io::Result<uring::Ring>,
) -> Result<(Kind, Box<dyn IoQueue>), StoreError> {
    let ring = match engine {
        IoEngine::Threads => None,
        IoEngine::Uring => Some(ring().map_err(StoreError::Uring)?),
        IoEngine::Auto => match image.bars_uring() {
            Some(why) => {
                tracing::info!("disk I/O is done by threads, io_uring is not trusted with this image: {why}");
                None
            }
            None => ring()
                .inspect_err(|e| {
                    tracing::info!("disk I/O is done by threads: the kernel refuses io_uring: {e}")
                })
                .ok(),
        },
    };
    let on_threads = || start_threads(&image, name, &finish);
    let Some(ring) = ring else { return Ok((Kind::Threads, Box::new(on_threads()?))) };
    // What needs the base is done by threads: a base may be no file that the ring could read.
    let with_base = image.overlay().map(|_| on_threads()).transpose()?;
    let orders = Arc::new(Ordered::new().map_err(StoreError::Thread)?);
    let begun = uring::start(ring, Arc::clone(&image), name, Arc::clone(&orders), finish);
    begun.map_err(StoreError::Thread)?;
    let plain = Asynchronous { orders };
    Ok((
        Kind::Uring,
        match with_base {
            Some(with_base) => Box::new(layered::Layered { image, plain, with_base }),
            None => Box::new(plain),
        },
    ))
}

fn start_threads(
    image: &Arc<RawImage>,
    name: &str,
    finish: &Arc<dyn Finish>,
) -> Result<Asynchronous, StoreError> {
    let orders = Arc::new(Ordered::new().map_err(StoreError::Thread)?);
    threads::start(Arc::clone(image), name, &orders, finish).map_err(StoreError::Thread)?;
    Ok(Asynchronous { orders })
}

/// Tells what is done, on a thread that must not end before the kernel has let go of its tasks' memory.
fn tell(finish: &dyn Finish, done: &mut Vec<IoDone>) {
    if catch_unwind(AssertUnwindSafe(|| finish.finish(done))).is_err() {
        tracing::error!("internal error while a disk's requests were given back");
    }
    done.clear();
}

/// The queue of both engines that have threads.
struct Asynchronous {
    orders: Arc<Ordered>,
}

impl IoQueue for Asynchronous {
    fn submit(&mut self, order: IoOrder) -> Option<IoDone> {
        self.orders.put(order);
        None
    }

    fn nudge(&self) -> bool {
        self.orders.nudge();
        true
    }
}

impl Drop for Asynchronous {
    /// The threads own image and buffers, so that a write that the kernel has in hand ends in an image that is still
    /// locked. Nobody waits for a disk that stands still.
    fn drop(&mut self) {
        if !self.orders.end(END_WITHIN) {
            tracing::warn!(
                "a disk has not finished what it was asked for {} s ago: its image stays locked until it has",
                END_WITHIN.as_secs()
            );
        }
    }
}

/// Carries out orders on the thread that orders.
struct Prompt(Arc<RawImage>);

impl IoQueue for Prompt {
    fn submit(&mut self, order: IoOrder) -> Option<IoDone> {
        Some(threads::carry_out(&self.0, order))
    }

    fn nudge(&self) -> bool {
        false
    }
}
