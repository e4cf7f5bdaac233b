//! The storage of the journal takes its time, or fails.

use super::*;
use std::io;
use std::sync::atomic::AtomicU32;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Longer than any machine takes.
const LONG: Duration = Duration::from_secs(60);

/// A journal's file whose flushes are let through one by one.
struct Slow {
    file: File,
    begun: SyncSender<()>,
    may_end: Mutex<Receiver<()>>,
}

impl Medium for Slow {
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
    let medium = Slow { file: node.journal(), begun, may_end: Mutex::new(may_end) };
    // Those of opening it.
    (0..10).for_each(|_| let_through.send(()).unwrap());
    let journal = Journal::open(Arc::new(medium) as Arc<dyn Medium + Send + Sync>).unwrap();
    journal.medium().sync().unwrap();
    let opening = begins.try_iter().count();
    (opening..10).for_each(|_| journal.medium().sync().unwrap());
    begins.try_iter().for_each(drop);
    let journal = Arc::new(Mutex::new(journal));
    let writer = ImageWriter::Journal(durability);
    let follower = Follower::start(journal, None, intents(), &[node.image()], writer).unwrap();
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

/// A journal's file that fails so many times.
#[derive(Default)]
struct Fails {
    writes: AtomicU32,
    flushes: AtomicU32,
}

struct Failing {
    file: File,
    fails: Arc<Fails>,
}

fn one_less(left: &AtomicU32) -> io::Result<()> {
    match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
        Ok(_) => Err(io::Error::from_raw_os_error(nix::libc::EIO)),
        Err(_) => Ok(()),
    }
}

impl Medium for Failing {
    fn bytes(&self) -> io::Result<u64> {
        self.file.bytes()
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        Medium::read(&self.file, offset, into)
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        one_less(&self.fails.writes)?;
        Medium::write(&self.file, offset, from)
    }

    fn sync(&self) -> io::Result<()> {
        one_less(&self.fails.flushes)?;
        self.file.sync()
    }
}

fn failing(node: &Node) -> (Follower, Arc<Fails>) {
    let fails = Arc::new(Fails::default());
    let medium = Failing { file: node.journal(), fails: Arc::clone(&fails) };
    (node.follower_on(Arc::new(medium), intents(), Durability::Commit), fails)
}

/// Waits until it is in trouble that is told so.
fn await_trouble(follower: &Follower, told: &str) {
    while !follower.trouble().is_some_and(|trouble| trouble.contains(told)) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_journal_whose_flush_failed_is_mended_without_a_restart() {
    let node = Node::new();
    let (follower, fails) = failing(&node);
    fails.flushes.store(u32::MAX, Ordering::SeqCst);
    write(&follower, 1, 7);
    seal(&follower, 1);
    await_trouble(&follower, "cannot be read or written: Input/output error");
    let refused = follower.turn().take(&Change::write(DISK, 0, &[1; 512]), GOES_ON);
    assert!(matches!(refused, Err(FollowError::Failed(_))), "{refused:?}");
    assert_eq!(node.sector(1), 0, "nothing is in the image before it is durable in the journal");
    fails.flushes.store(0, Ordering::SeqCst);
    while follower.carry_out(GOES_ON).is_err() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!((node.sector(1), follower.trouble()), (7, None));
    write(&follower, 1, 8);
    seal(&follower, 2);
    follower.carry_out(GOES_ON).unwrap();
    assert_eq!(node.sector(1), 8);
}

#[test]
fn a_write_of_the_journal_that_failed_costs_the_open_epoch_and_nothing_else() {
    let node = Node::new();
    let (follower, fails) = failing(&node);
    write(&follower, 1, 7);
    seal(&follower, 1);
    // Nothing is left to the thread, whose writes could be the one that fails.
    follower.carry_out(GOES_ON).unwrap();
    write(&follower, 2, 7);
    fails.writes.store(1, Ordering::SeqCst);
    let failed = follower.turn().take(&Change::write(DISK, 1536, &[7; 512]), GOES_ON);
    assert!(matches!(failed, Err(FollowError::Journal(JournalError::Io(_)))), "{failed:?}");
    // The connection is lost, and the next one brings the epoch again.
    follower.turn().connected();
    write(&follower, 3, 8);
    seal(&follower, 2);
    follower.carry_out(GOES_ON).unwrap();
    assert_eq!((node.sector(1), node.sector(2), node.sector(3)), (7, 0, 8));
}

#[test]
fn what_the_receiver_has_sealed_and_the_journal_could_not_is_sealed_before_anything_else() {
    let owing = || {
        let node = Node::new();
        let (follower, fails) = failing(&node);
        write(&follower, 1, 7);
        seal(&follower, 1);
        follower.carry_out(GOES_ON).unwrap();
        write(&follower, 1, 8);
        write(&follower, 2, 8);
        fails.writes.store(1, Ordering::SeqCst);
        let failed = follower.turn().sealed(Held { pairing: 5, epoch: 2 });
        assert!(matches!(failed, Err(FollowError::Journal(JournalError::Io(_)))), "{failed:?}");
        (node, follower)
    };
    // The VM goes on here: its memory has that epoch.
    let (node, follower) = owing();
    follower.carry_out(GOES_ON).unwrap();
    assert_eq!((node.sector(1), node.sector(2)), (8, 8));
    // The primary comes back: it does not send again what is sealed here.
    for comes in [true, false] {
        let (node, follower) = owing();
        follower.turn().connected();
        if comes {
            write(&follower, 3, 9);
        }
        seal(&follower, 3);
        follower.carry_out(GOES_ON).unwrap();
        assert_eq!((node.sector(1), node.sector(2)), (8, 8));
        assert_eq!(node.sector(3), if comes { 9 } else { 0 });
    }
}

#[test]
fn a_journal_that_cannot_be_mended_is_begun_anew_by_the_next_copy() {
    let node = Node::new();
    let (follower, fails) = failing(&node);
    fails.flushes.store(u32::MAX, Ordering::SeqCst);
    write(&follower, 1, 7);
    seal(&follower, 1);
    write(&follower, 2, 7);
    await_trouble(&follower, "Input/output error");
    follower.turn().connected();
    let still = follower.turn().copy_begins(6, GOES_ON).map(drop);
    assert!(
        matches!(still, Err(FollowError::Journal(_))),
        "it fails for as long as its storage does: {still:?}"
    );
    node.journal().write_all_at(&[0; 600], 8192).unwrap();
    fails.flushes.store(0, Ordering::SeqCst);
    follower.turn().copy_begins(6, GOES_ON).unwrap();
    assert_eq!(follower.trouble(), None);
    let content = node.content();
    for (extent, bytes) in (0..).zip(content.chunks(EXTENT_BYTES as usize)) {
        let hash = *blake3::hash(bytes).as_bytes();
        assert_eq!(follower.turn().compare(&Compare { disk: DISK, extent, hash }).unwrap(), Some(true));
    }
    follower.turn().sealed(Held { pairing: 6, epoch: 1 }).unwrap();
    write(&follower, 9, 5);
    follower.turn().sealed(Held { pairing: 6, epoch: 2 }).unwrap();
    follower.carry_out(GOES_ON).unwrap();
    let sectors = [1, 2, 9].map(|sector| node.sector(sector));
    assert_eq!(sectors, [0, 0, 5], "what the copy made up for does not come back");
}

#[test]
fn a_journal_that_is_damaged_where_it_was_durable_is_said_and_keeps_the_images_from_following() {
    let node = Node::new();
    let (follower, fails) = failing(&node);
    fails.flushes.store(1, Ordering::SeqCst);
    write(&follower, 1, 7);
    seal(&follower, 1);
    await_trouble(&follower, "Input/output error");
    node.journal().write_all_at(&[0; 600], 8192).unwrap();
    await_trouble(&follower, "is damaged: record 0, at byte 8192");
    assert!(matches!(follower.carry_out(GOES_ON), Err(FollowError::Failed(_))));
    assert_eq!(node.sector(1), 0);
}
