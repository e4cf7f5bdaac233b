//! A store whose changes are told to the intents: when they begin, and how they end.

use super::desk::Order;
use super::{Intents, Outcome};
use ft_disk::{Completion, Finish, Io, IoDone, IoOrder, IoQueue, Store, StoreError};
use std::ops::Range;
use std::sync::Arc;

/// See the module.
pub struct Watched {
    watch: Watch,
    store: Box<dyn Store>,
}

#[derive(Clone)]
struct Watch {
    intents: Arc<Intents>,
    disk: u16,
    queue: u64,
}

impl Watched {
    pub(super) fn new(intents: Arc<Intents>, disk: u16, store: Box<dyn Store>) -> Self {
        let queue = intents.new_queue();
        Self { watch: Watch { intents, disk, queue }, store }
    }
}

impl Watch {
    fn order(&self, tag: u64) -> Order {
        Order { disk: self.disk, queue: self.queue, tag }
    }

    fn begun(&self, order: &IoOrder) {
        if let Some(bytes) = changed(&order.io) {
            self.intents.begun(self.order(order.tag), &bytes);
        }
    }

    fn ended(&self, done: &IoDone) {
        match (&done.io, &done.result) {
            (Io::Read { .. }, _) | (Io::Flush, Ok(())) => {}
            (Io::Flush, Err(_)) => self.intents.doubt(self.disk),
            (Io::Write { .. } | Io::WriteZeroes { .. }, result) => {
                let outcome = if result.is_ok() { Outcome::Done } else { Outcome::InDoubt };
                self.intents.ended(self.order(done.tag), outcome);
            }
        }
    }
}

/// The bytes that a request changes.
fn changed(io: &Io) -> Option<Range<u64>> {
    match io {
        Io::Read { .. } | Io::Flush => None,
        Io::Write { offset, from, .. } => Some(*offset..*offset + from.len() as u64),
        Io::WriteZeroes { offset, bytes, .. } => Some(*offset..*offset + bytes),
    }
}

impl Store for Watched {
    fn bytes(&self) -> u64 {
        self.store.bytes()
    }

    fn is_writable(&self) -> bool {
        self.store.is_writable()
    }

    fn start(self: Box<Self>, name: &str, answer: Completion) -> Result<Box<dyn IoQueue>, StoreError> {
        let Self { watch, store } = *self;
        let answer = match answer {
            Completion::By(finish) => {
                Completion::By(Arc::new(WatchedFinish { watch: watch.clone(), finish }))
            }
            Completion::AtOnce => Completion::AtOnce,
        };
        let queue = store.start(name, answer)?;
        Ok(Box::new(WatchedQueue { watch, queue }))
    }
}

struct WatchedFinish {
    watch: Watch,
    finish: Arc<dyn Finish>,
}

impl Finish for WatchedFinish {
    fn finish(&self, done: &mut Vec<IoDone>) {
        done.iter().for_each(|done| self.watch.ended(done));
        self.finish.finish(done);
    }
}

struct WatchedQueue {
    watch: Watch,
    queue: Box<dyn IoQueue>,
}

impl IoQueue for WatchedQueue {
    fn submit(&mut self, order: IoOrder) -> Option<IoDone> {
        self.watch.begun(&order);
        let done = self.queue.submit(order);
        if let Some(done) = &done {
            self.watch.ended(done);
        }
        done
    }

    fn nudge(&self) -> bool {
        self.queue.nudge()
    }
}

impl Drop for WatchedQueue {
    fn drop(&mut self) {
        self.watch.intents.abandoned(self.watch.queue);
    }
}
