//! A disk in memory that does what it is asked for when it is told to, one request at a time, in any order.

use super::*;
use ft_disk::{Io, IoDone, IoFault, IoOrder, Persist};
use std::collections::VecDeque;

/// The disk. Clones are the same.
#[derive(Clone)]
pub(super) struct Hand(Arc<State>);

struct State {
    content: Mutex<Vec<u8>>,
    orders: Mutex<VecDeque<IoOrder>>,
    finish: Mutex<Option<Arc<dyn Finish>>>,
    nudged: AtomicBool,
}

impl Hand {
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(State {
            content: Mutex::new(vec![0; bytes]),
            orders: Mutex::default(),
            finish: Mutex::default(),
            nudged: AtomicBool::new(false),
        }))
    }

    /// To be made devices with.
    pub(super) fn disk(&self) -> Disk {
        Disk::new(self.clone())
    }

    /// A disk with what this one holds, as on another host.
    pub(super) fn copy(&self) -> Self {
        let copy = Self::new(0);
        copy.0.content.lock().clone_from(&self.0.content.lock());
        copy
    }

    pub(super) fn content(&self, offset: usize, bytes: usize) -> Vec<u8> {
        self.0.content.lock()[offset..offset + bytes].to_vec()
    }

    /// Requests that it has.
    pub(super) fn orders(&self) -> usize {
        self.0.orders.lock().len()
    }

    /// Bytes of the reads and writes that it has.
    pub(super) fn bytes_held(&self) -> usize {
        let bytes = |order: &IoOrder| match &order.io {
            Io::Read { into: data, .. } | Io::Write { from: data, .. } => data.len(),
            Io::Flush | Io::WriteZeroes { .. } => 0,
        };
        self.0.orders.lock().iter().map(bytes).sum()
    }

    /// Whether the write that it has at this place is to be durable when it is done.
    pub(super) fn persists(&self, at: usize) -> bool {
        matches!(self.0.orders.lock()[at].io, Io::Write { persist: Persist::Now, .. })
    }

    /// Answers a nudge, if there was one.
    pub(super) fn wake(&self) {
        if self.0.nudged.swap(false, Ordering::Relaxed) {
            self.tell(Vec::new());
        }
    }

    /// Does the request at this place.
    pub(super) fn do_one(&self, at: usize) {
        let order = self.0.orders.lock().remove(at).unwrap();
        let done = self.carry_out(order);
        self.tell(vec![done]);
    }

    /// Does all that it has, and what is ordered thereupon.
    pub(super) fn do_all(&self) {
        self.wake();
        while self.orders() != 0 {
            self.do_one(0);
            self.wake();
        }
    }

    /// Does the request at this place without telling it.
    pub(super) fn do_silently(&self, at: usize) -> IoDone {
        let order = self.0.orders.lock().remove(at).unwrap();
        self.carry_out(order)
    }

    /// Fails at the request at this place.
    pub(super) fn fail(&self, at: usize) {
        let IoOrder { tag, io } = self.0.orders.lock().remove(at).unwrap();
        let source = std::io::Error::from_raw_os_error(libc::EIO);
        self.tell(vec![IoDone { tag, io, result: Err(IoFault { what: "do it", offset: 0, source }) }]);
    }

    pub(super) fn tell(&self, mut done: Vec<IoDone>) {
        let finish = self.0.finish.lock().clone();
        if let Some(finish) = finish {
            finish.finish(&mut done);
        }
        assert!(done.is_empty());
    }

    fn carry_out(&self, order: IoOrder) -> IoDone {
        let IoOrder { tag, mut io } = order;
        let mut content = self.0.content.lock();
        match &mut io {
            Io::Read { offset, into } => {
                let (start, bytes) = (*offset as usize, into.len());
                into.copy_from_slice(&content[start..start + bytes]);
            }
            Io::Write { offset, from, .. } => {
                let start = *offset as usize;
                content[start..start + from.len()].copy_from_slice(from);
            }
            Io::WriteZeroes { offset, bytes, .. } => {
                content[*offset as usize..(*offset + *bytes) as usize].fill(0);
            }
            Io::Flush => {}
        }
        IoDone { tag, io, result: Ok(()) }
    }
}

impl Store for Hand {
    fn bytes(&self) -> u64 {
        self.0.content.lock().len() as u64
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn start(self: Box<Self>, _: &str, completion: Completion) -> Result<Box<dyn IoQueue>, StoreError> {
        let Completion::By(finish) = completion else { panic!("a writable disk answers later") };
        *self.0.finish.lock() = Some(finish);
        Ok(self)
    }
}

impl IoQueue for Hand {
    fn submit(&mut self, order: IoOrder) -> Option<IoDone> {
        self.0.orders.lock().push_back(order);
        None
    }

    fn nudge(&self) -> bool {
        self.0.nudged.store(true, Ordering::Relaxed);
        true
    }
}
