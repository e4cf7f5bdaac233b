//! Messages that wait to be written to a link's stream: a few urgent ones (acks, control), and bulk (pages, state)
//! bounded in bytes. One writer thread drains the outbox, urgent messages first. Only the shipper ever waits for a slow
//! peer.

use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;

/// The queue in front of a connection's writer thread. `U`: urgent items, `B`: bulk items.
pub struct Outbox<U, B> {
    queues: Mutex<Queues<U, B>>,
    /// Something to write, or closed.
    filled: Condvar,
    /// Room for bulk, or closed.
    drained: Condvar,
    bulk_bytes_max: usize,
}

struct Queues<U, B> {
    urgent: VecDeque<U>,
    bulk: VecDeque<(B, usize)>,
    bulk_bytes: usize,
    closed: bool,
    /// No more is taken; what is queued is still written.
    closing: bool,
}

/// The next thing to write.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<U, B> {
    /// A small message.
    Urgent(U),
    /// A piece of a checkpoint.
    Bulk(B),
}

/// The connection is over; what was offered is not going to be written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection is closed")]
pub struct Closed;

/// More urgent messages than any honest peer leaves unread.
const URGENT_MAX: usize = 4096;

impl<U, B> Outbox<U, B> {
    /// An empty outbox that takes bulk until `bulk_bytes_max` bytes wait.
    pub fn new(bulk_bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            queues: Mutex::new(Queues {
                urgent: VecDeque::new(),
                bulk: VecDeque::new(),
                bulk_bytes: 0,
                closed: false,
                closing: false,
            }),
            filled: Condvar::new(),
            drained: Condvar::new(),
            bulk_bytes_max,
        })
    }

    /// Queues an urgent message. Never blocks; a peer that leaves thousands unread is as good as gone.
    pub fn send(&self, message: U) -> Result<(), Closed> {
        let mut queues = self.queues.lock();
        if queues.closed || queues.closing || queues.urgent.len() >= URGENT_MAX {
            return Err(Closed);
        }
        queues.urgent.push_back(message);
        self.filled.notify_one();
        Ok(())
    }

    /// Queues a piece of bulk of `bytes` bytes; waits while there is no room. A piece larger than the bound is taken
    /// when nothing else waits.
    pub fn ship(&self, piece: B, bytes: usize) -> Result<(), Closed> {
        let mut queues = self.queues.lock();
        while !queues.closed && queues.bulk_bytes > 0 && queues.bulk_bytes + bytes > self.bulk_bytes_max {
            self.drained.wait(&mut queues);
        }
        self.enqueue(&mut queues, piece, bytes)
    }

    /// Queues a piece of bulk that somebody else accounts for; never waits.
    pub fn ship_now(&self, piece: B) -> Result<(), Closed> {
        self.enqueue(&mut self.queues.lock(), piece, 0)
    }

    fn enqueue(&self, queues: &mut Queues<U, B>, piece: B, bytes: usize) -> Result<(), Closed> {
        if queues.closed || queues.closing {
            return Err(Closed);
        }
        queues.bulk_bytes += bytes;
        queues.bulk.push_back((piece, bytes));
        self.filled.notify_one();
        Ok(())
    }

    /// The writer's side: the next item, urgent first; none when the outbox is closed (or closing, and empty).
    pub fn next(&self) -> Option<Item<U, B>> {
        let mut queues = self.queues.lock();
        loop {
            if queues.closed {
                return None;
            }
            if let Some(message) = queues.urgent.pop_front() {
                return Some(Item::Urgent(message));
            }
            if let Some((piece, bytes)) = queues.bulk.pop_front() {
                queues.bulk_bytes -= bytes;
                self.drained.notify_all();
                return Some(Item::Bulk(piece));
            }
            if queues.closing {
                return None;
            }
            self.filled.wait(&mut queues);
        }
    }

    /// Bytes of bulk that wait.
    pub fn bulk_bytes(&self) -> usize {
        self.queues.lock().bulk_bytes
    }

    /// Whether nothing waits.
    pub fn is_idle(&self) -> bool {
        let queues = self.queues.lock();
        queues.urgent.is_empty() && queues.bulk.is_empty()
    }

    /// Takes nothing more, drops what is queued, wakes everybody.
    pub fn close(&self) {
        let mut queues = self.queues.lock();
        queues.closed = true;
        queues.urgent.clear();
        queues.bulk.clear();
        queues.bulk_bytes = 0;
        self.filled.notify_all();
        self.drained.notify_all();
    }

    /// Takes nothing more; the urgent messages that are queued are still written, the bulk is dropped.
    pub fn finish(&self) {
        let mut queues = self.queues.lock();
        queues.closing = true;
        queues.bulk.clear();
        queues.bulk_bytes = 0;
        self.filled.notify_all();
        self.drained.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urgent_goes_before_bulk() {
        let outbox = Outbox::<u8, u8>::new(10);
        outbox.ship(1, 5).unwrap();
        outbox.send(2).unwrap();
        assert_eq!(outbox.next(), Some(Item::Urgent(2)));
        assert_eq!(outbox.next(), Some(Item::Bulk(1)));
        assert!(outbox.is_idle());
    }

    #[test]
    fn bulk_waits_for_room_and_closing_wakes_it() {
        let outbox = Outbox::<u8, u8>::new(10);
        outbox.ship(1, 50).unwrap();
        let waiting = {
            let outbox = Arc::clone(&outbox);
            std::thread::spawn(move || outbox.ship(2, 1))
        };
        assert_eq!(outbox.next(), Some(Item::Bulk(1)));
        assert_eq!(waiting.join().unwrap(), Ok(()));
        outbox.ship(3, 9).unwrap();
        let waiting = {
            let outbox = Arc::clone(&outbox);
            std::thread::spawn(move || outbox.ship(4, 10))
        };
        outbox.close();
        assert_eq!(waiting.join().unwrap(), Err(Closed));
        assert_eq!(outbox.next(), None);
    }

    #[test]
    fn finishing_still_writes_what_is_urgent() {
        let outbox = Outbox::<u8, u8>::new(10);
        outbox.send(1).unwrap();
        outbox.ship(2, 1).unwrap();
        outbox.finish();
        assert_eq!(outbox.send(3), Err(Closed));
        assert_eq!(outbox.next(), Some(Item::Urgent(1)));
        assert_eq!(outbox.next(), None);
    }

    #[test]
    fn a_peer_that_reads_nothing_is_given_up_before_memory_is() {
        let outbox = Outbox::<u8, u8>::new(10);
        for _ in 0..URGENT_MAX {
            outbox.send(0).unwrap();
        }
        assert_eq!(outbox.send(0), Err(Closed));
    }
}
