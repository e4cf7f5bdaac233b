//! The storage of the journal takes its time.

use super::*;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Longer than any machine takes.
const LONG: Duration = Duration::from_secs(60);

/// A journal's file whose flushes are let through one by one.
struct Held {
    file: File,
    begun: SyncSender<()>,
    may_end: Mutex<Receiver<()>>,
}

impl Medium for Held {
    fn bytes(&self) -> io::Result<u64> {
        self.file.bytes()
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        Medium::read(&self.file, offset, into)
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        Medium::write(&self.file, offset, from)
    }

    fn sync(&self) -> io::Result<()> {
        let _ = self.begun.send(());
        // None is held any more when the test has let go.
        let _ = self.may_end.lock().recv();
        self.file.sync()
    }
}

/// A follower whose journal's flushes tell when they begin, and end when they are let through.
fn held(node: &Node, durability: Durability) -> (Arc<Follower>, Receiver<()>, SyncSender<()>) {
    let (begun, begins) = sync_channel(1000);
    let (let_through, may_end) = sync_channel(1000);
    let medium = Held { file: node.journal(), begun, may_end: Mutex::new(may_end) };
    // Those of opening it.
    (0..10).for_each(|_| let_through.send(()).unwrap());
    let journal = Journal::open(Arc::new(medium) as Arc<dyn Medium + Send + Sync>).unwrap();
    journal.medium().sync().unwrap();
    let opening = begins.try_iter().count();
    (opening..10).for_each(|_| journal.medium().sync().unwrap());
    begins.try_iter().for_each(drop);
    let journal = Arc::new(Mutex::new(journal));
    let follower = Follower::start(journal, None, intents(), &[node.image()], durability).unwrap();
    (Arc::new(follower), begins, let_through)
}

/// Says when the epoch has been sealed.
fn seals(follower: &Arc<Follower>, epoch: u64) -> Receiver<()> {
    let (done, sealed) = sync_channel(1);
    let follower = Arc::clone(follower);
    std::thread::spawn(move || {
        write(&follower, epoch, epoch as u8);
        seal(&follower, epoch);
        let _ = done.send(());
    });
    sealed
}

#[test]
fn an_ack_waits_for_no_flush_that_it_does_not_need() {
    let node = Node::new();
    let (follower, begins, let_through) = held(&node, Durability::Commit);
    for epoch in 1..4 {
        // That of the first epoch is under way from then on.
        seals(&follower, epoch).recv_timeout(LONG).expect("the ack waits for a flush");
        if epoch == 1 {
            begins.recv_timeout(LONG).unwrap();
        }
    }
    assert_eq!(node.sector(1), 0, "nothing is in the image before it is durable in the journal");
    drop(let_through);
    follower.carry_out(GOES_ON).unwrap();
    assert_eq!((node.sector(1), node.sector(2), node.sector(3)), (1, 2, 3));
}

#[test]
fn an_ack_that_says_stable_storage_shares_the_next_flush_with_all_others() {
    let node = Node::new();
    let (follower, begins, let_through) = held(&node, Durability::Sync);
    let sealed = seals(&follower, 1);
    begins.recv_timeout(LONG).unwrap();
    assert!(sealed.try_recv().is_err(), "the ack is sent before its epoch is durable");
    let_through.send(()).unwrap();
    sealed.recv_timeout(LONG).unwrap();
    // The head's first slot is being flushed.
    begins.recv_timeout(LONG).unwrap();
    let sealed = seals(&follower, 2);
    let is_appended = || follower.shared.journal.lock().sealed().is_some_and(|last| last.epoch == 2);
    while !is_appended() {
        std::thread::yield_now();
    }
    let_through.send(()).unwrap();
    // And its second one, and with it the second epoch.
    begins.recv_timeout(LONG).unwrap();
    assert!(sealed.try_recv().is_err(), "a flush that had begun says nothing of what came after");
    let_through.send(()).unwrap();
    sealed.recv_timeout(LONG).expect("the ack waits for a flush of its own");
    drop(let_through);
    follower.carry_out(GOES_ON).unwrap();
    assert_eq!((node.sector(1), node.sector(2)), (1, 2));
}
