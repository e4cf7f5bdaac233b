//! Replay mode: after the copy the machine here changes the images, and they are nobody's; what is durable of them is
//! said behind that.

use super::*;
use crate::disks::stamps::{StampOf, whose};
use crate::disks::{Executed, Stamps};
use ft_mirror::Stamp;

struct Backup {
    node: Node,
    follower: Follower,
    executed: Arc<Executed>,
    tap: Arc<WriteTap>,
    stamps: Arc<Stamps>,
    images: [NumberedImage; 1],
}

impl Backup {
    fn new() -> Self {
        let node = Node::new();
        let (intents, images) = (intents(), [node.image()]);
        let tap = WriteTap::new(1 << 20, Some(Arc::clone(&intents)));
        let executed = Arc::new(Executed::start(&tap, &intents, &images).unwrap());
        let of = whose("web", &node.path("image"), DISK_BYTES);
        let stamp = StampOf::open(node.path("stamp"), node.path("image"), of).unwrap();
        let stamps = Arc::new(Stamps::new(vec![stamp]));
        let medium: Arc<dyn Medium + Send + Sync> = Arc::new(node.journal());
        let journal = Arc::new(Mutex::new(Journal::open(medium).unwrap()));
        let writer = ImageWriter::Machine(Arc::clone(&executed));
        let follower = Follower::start(journal, Some(Arc::clone(&stamps)), intents, &images, writer).unwrap();
        follower.know_cell(CellId(9));
        Self { node, follower, executed, tap, stamps, images }
    }

    fn history(&self) -> Option<History> {
        self.stamps.say()[0].map(|Stamp { history, .. }| history)
    }

    fn settle(&self) {
        let begun = Instant::now();
        while !self.executed.is_settled() {
            assert!(begun.elapsed() < Duration::from_secs(60), "it is not durable");
            std::thread::yield_now();
        }
    }

    /// A copy, in which every extent is found the same.
    fn copied(&self) {
        let mut turn = self.follower.turn();
        turn.copy_begins(5, GOES_ON).unwrap();
        turn.take(&Change::write(DISK, 512, &[7; 512]), GOES_ON).unwrap();
        assert_eq!(self.node.sector(1), 7, "at once");
        let mut images = MirroredImages::new(&self.images).unwrap();
        for extent in 0..extents(DISK_BYTES) {
            let place = extent_at(DISK, extent, DISK_BYTES);
            let hash = hash(&place, images.read(&place).unwrap().as_ref());
            assert_eq!(turn.compare(&Compare { disk: DISK, extent, hash }).unwrap(), Some(true));
        }
        turn.sealed(Held { pairing: 5, epoch: 1 }).unwrap();
    }
}

#[test]
fn a_copy_leaves_the_images_to_the_machine_and_they_are_nobodys_from_then_on() {
    let backup = Backup::new();
    assert_eq!(backup.history(), None);
    backup.copied();
    let mixed = Some(History::Mixed { pairing: 5 });
    assert_eq!(backup.history(), mixed);
    backup.follower.turn().named(5, 8).unwrap();
    assert_eq!(backup.history(), mixed, "the cell names the node, and its machine changes them");
    let refused = backup.follower.turn().take(&Change::write(DISK, 0, &[7; 512]), GOES_ON);
    assert!(matches!(refused, Err(FollowError::Told)), "{refused:?}");
    assert_eq!(backup.follower.waiting(), 0);
}

#[test]
fn a_disk_that_fails_for_long_keeps_the_backup_from_following_and_loses_nothing() {
    let backup = Backup::new();
    backup.copied();
    backup.tap.nurse(BTreeSet::new()).unwrap();
    let _tapped = backup.tap.execute(2);
    let fault =
        || ft_disk::IoFault { what: "write it", offset: 0, source: std::io::Error::other("it is gone") };
    let begun = Instant::now();
    let refused = loop {
        // The device tries again.
        backup.tap.owner(DISK).stopped(&fault());
        if let Err(why) = backup.follower.turn().sealed_log() {
            break why;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "it follows");
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(begun.elapsed() >= Duration::from_secs(1), "a moment is borne");
    assert!(matches!(&refused, FollowError::Executing(why) if why.contains("it is gone")), "{refused:?}");
    // It goes on, and follows.
    while let Err(why) = backup.follower.turn().sealed_log() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{why}");
        std::thread::sleep(Duration::from_millis(10));
    }
    backup.executed.through(4);
    backup.settle();
}

#[test]
fn the_primary_is_told_what_is_durable_behind_the_machine() {
    let backup = Backup::new();
    backup.copied();
    let settled = |epoch| Some(Settled { pairing: 5, epoch });
    let tell = |epoch| backup.follower.turn().settled(Held { pairing: 5, epoch });
    assert_eq!(tell(1), settled(1), "the copy was flushed");
    let _tapped = backup.tap.execute(2);
    backup.executed.through(4);
    backup.settle();
    let begun = Instant::now();
    let told = loop {
        assert!(begun.elapsed() < Duration::from_secs(60), "it is not told");
        if let Some(told) = tell(9) {
            break told;
        }
        std::thread::yield_now();
    };
    assert_eq!(Some(told), settled(4), "the log is here through 9, and executed through 4");
    assert_eq!(backup.follower.turn().settled(Held { pairing: 6, epoch: 9 }), None, "of another pairing");
}
