//! The thread that makes this node's record of the cell durable. The disk of the state directory can hang for any
//! length of time; the executor, which also lets output out and feeds the watchdog, waits for it only so long.
//!
//! One save is under way at a time, in the order of the asking, and the newest takes the place of what has not begun: a
//! later record says all that an earlier one did. Nothing is told of a record that a newer one has replaced. What could
//! not be saved is tried again.

use crate::host::RecordError;
use crate::outlet::Outlet;
use crate::role::NodeRecord;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::time::Duration;

/// The executor waits so long for a save: longer than most disks need, shorter than any peer's patience.
const WAIT: Duration = Duration::from_millis(100);
/// A save that failed is tried again after this time.
const RETRY: Duration = Duration::from_secs(1);

/// Why a record is not durable yet.
#[derive(Debug, thiserror::Error)]
pub enum Undurable {
    /// It could not be saved. It is tried again.
    #[error(transparent)]
    Failed(#[from] RecordError),
    /// It is still being saved.
    #[error("the disk of the state directory has not taken it within {} ms; it is waited for", WAIT.as_millis())]
    Late,
}

/// What became of a record that was not durable in time.
pub struct RecordNews {
    /// The record.
    pub record: NodeRecord,
    /// Whether it is durable now.
    pub saved: Result<(), Undurable>,
}

/// See the module. The thread ends when this is dropped.
pub struct RecordThread(Arc<Shared>);

#[derive(Default)]
struct Shared {
    desk: Mutex<Desk>,
    changed: Condvar,
}

/// What the executor and the thread know of each other.
#[derive(Default)]
struct Desk {
    /// What is to be saved next.
    next: Option<NodeRecord>,
    /// What is being saved.
    busy: bool,
    /// The executor waits for the end of the save.
    awaited: bool,
    /// And this is how it ended.
    answer: Option<Result<(), RecordError>>,
    closed: bool,
}

impl RecordThread {
    /// Starts the thread, which saves by `save`.
    pub fn start(
        save: impl FnMut(NodeRecord) -> Result<(), RecordError> + Send + 'static,
        news: Outlet<RecordNews>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new().name("ftd-record".into()).spawn(move || of_thread.run(save, &news))?;
        Ok(Self(shared))
    }

    /// Makes this durable. If that takes too long, or fails, news of it may follow.
    pub fn record(&self, record: NodeRecord) -> Result<(), Undurable> {
        let Shared { desk, changed } = &*self.0;
        let mut desk = desk.lock();
        desk.next = Some(record);
        changed.notify_all();
        // What is under way was waited for already.
        if desk.busy {
            return Err(Undurable::Late);
        }
        desk.awaited = true;
        changed.wait_while_for(&mut desk, |desk| desk.answer.is_none(), WAIT);
        desk.awaited = false;
        match desk.answer.take() {
            Some(saved) => Ok(saved?),
            None => Err(Undurable::Late),
        }
    }
}

impl Shared {
    fn run(&self, mut save: impl FnMut(NodeRecord) -> Result<(), RecordError>, news: &Outlet<RecordNews>) {
        let mut failed = None;
        while let Some(record) = self.take(failed) {
            let saved = save(record);
            let is_known = failed == Some(record) && saved.is_err();
            failed = saved.is_err().then_some(record);
            if let (Err(e), false) = (&saved, is_known) {
                tracing::error!("cannot record the cell; it is tried again each second: {e}");
            }
            let mut desk = self.desk.lock();
            desk.busy = false;
            if is_known || desk.next.is_some() {
                continue;
            }
            if desk.awaited {
                desk.answer = Some(saved);
                self.changed.notify_all();
            } else if news.tell(RecordNews { record, saved: saved.map_err(Undurable::Failed) }).is_err() {
                return;
            }
        }
    }

    /// Waits for what is to be saved next: something new, or after a while what has failed.
    fn take(&self, failed: Option<NodeRecord>) -> Option<NodeRecord> {
        let mut desk = self.desk.lock();
        let is_idle = |desk: &mut Desk| desk.next.is_none() && !desk.closed;
        match failed {
            Some(_) => drop(self.changed.wait_while_for(&mut desk, is_idle, RETRY)),
            None => self.changed.wait_while(&mut desk, is_idle),
        }
        if desk.closed {
            return None;
        }
        desk.busy = true;
        desk.next.take().or(failed)
    }
}

impl Drop for RecordThread {
    fn drop(&mut self) {
        self.0.desk.lock().closed = true;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ft_arbiter::CellId;
    use std::path::PathBuf;
    use std::sync::mpsc::{Receiver, Sender, channel};

    fn record(generation: u64) -> NodeRecord {
        NodeRecord { cell: CellId(7), generation }
    }

    /// A recorder whose disk takes what the test lets it: the saves that begin, how each ends, and the news.
    struct Bench {
        recorder: RecordThread,
        begun: Receiver<NodeRecord>,
        ends: Sender<bool>,
        news: Receiver<RecordNews>,
    }

    impl Bench {
        fn new() -> Self {
            let (begins, begun) = channel();
            let (ends, ended) = channel();
            let (queue, news) = channel();
            let save = move |record| {
                begins.send(record).unwrap();
                match ended.recv().unwrap_or(true) {
                    true => Ok(()),
                    false => {
                        let source = std::io::ErrorKind::StorageFull.into();
                        Err(RecordError::Io { path: PathBuf::from("/state"), source })
                    }
                }
            };
            let recorder = RecordThread::start(save, Outlet::into_queue(&queue, |news| news)).unwrap();
            Self { recorder, begun, ends, news }
        }

        fn next_news(&self) -> (u64, bool) {
            let RecordNews { record, saved } = self.news.recv().unwrap();
            (record.generation, saved.is_ok())
        }
    }

    #[test]
    fn a_save_in_time_is_waited_for_and_is_no_news() {
        let bench = Bench::new();
        // Each may be late on a busy machine, but one in a thousand is not.
        let in_time = (1..1_000).any(|generation| {
            bench.ends.send(true).unwrap();
            let saved = bench.recorder.record(record(generation)).is_ok();
            assert_eq!(bench.begun.recv().unwrap(), record(generation));
            if !saved {
                assert_eq!(bench.next_news(), (generation, true));
            }
            saved
        });
        assert!(in_time);
        assert!(bench.news.try_recv().is_err());
    }

    #[test]
    fn a_save_that_hangs_holds_nobody_up_and_the_newest_is_told_when_it_is_durable() {
        let bench = Bench::new();
        assert!(matches!(bench.recorder.record(record(1)), Err(Undurable::Late)));
        assert_eq!(bench.begun.recv().unwrap(), record(1));
        for generation in [2, 3] {
            assert!(matches!(bench.recorder.record(record(generation)), Err(Undurable::Late)));
        }
        assert!(bench.begun.try_recv().is_err(), "one save is under way at a time");
        bench.ends.send(true).unwrap();
        assert_eq!(bench.begun.recv().unwrap(), record(3), "the newest has replaced what had not begun");
        assert!(bench.news.try_recv().is_err(), "the first is not news any more");
        bench.ends.send(true).unwrap();
        assert_eq!(bench.next_news(), (3, true));
    }

    #[test]
    fn a_save_that_failed_is_told_once_and_tried_again_until_it_is_durable() {
        let bench = Bench::new();
        for end in [false, false, true] {
            bench.ends.send(end).unwrap();
        }
        let saved = bench.recorder.record(record(1));
        let told = match saved {
            Err(Undurable::Failed(e)) => e.to_string(),
            Err(Undurable::Late) => bench.news.recv().unwrap().saved.unwrap_err().to_string(),
            Ok(()) => panic!("it failed"),
        };
        assert!(told.contains("/state"), "{told}");
        assert_eq!(bench.next_news(), (1, true), "the second failure is not told");
        assert_eq!(bench.begun.iter().take(3).collect::<Vec<_>>(), [record(1); 3]);
    }
}
