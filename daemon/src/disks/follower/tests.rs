//! The images are those of the last seal, whenever the connection or the process ends; and what makes them equal ends
//! only when they are.

mod executed;
mod storage;
mod verify;

use super::*;
use crate::disks::{Clearance, Equalized, Equalizer, Intent, TappedDisk, Told, WriteTap};
use ft_checkpoint::wire::disk::EXTENT_BYTES;
use ft_checkpoint::wire::message::Compared;
use ft_checkpoint::wire::{Frame, Message};
use ft_disk::{Access, RawImage};
use ft_mirror::{Extent, IntentMap, Journal, Medium, MemoryMedium, Space};
use ft_vm::devices::{DiskAnswer, DiskChange};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;

const DISK: u16 = 1;
const DISK_BYTES: u64 = (3 << 20) + 4096;
const JOURNAL_BYTES: u64 = 1 << 20;
const GOES_ON: &dyn Fn() -> bool = &|| false;

struct Node {
    directory: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let node = Self { directory: tempfile::tempdir().unwrap() };
        let image = File::create(node.path("image")).unwrap();
        image.set_len(DISK_BYTES).unwrap();
        let journal =
            File::options().read(true).write(true).create_new(true).open(node.path("journal")).unwrap();
        journal.set_len(JOURNAL_BYTES).unwrap();
        Journal::create(journal, 1).unwrap();
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn image(&self) -> NumberedImage {
        (DISK, Arc::new(RawImage::open(&self.path("image"), Access::Writable).unwrap()))
    }

    /// As a process begins.
    fn follower(&self) -> Follower {
        self.follower_with(intents())
    }

    fn follower_with(&self, intents: Arc<Intents>) -> Follower {
        self.follower_on(Arc::new(self.journal()), intents, Durability::Commit)
    }

    fn journal(&self) -> File {
        File::options().read(true).write(true).open(self.path("journal")).unwrap()
    }

    fn follower_on(
        &self,
        medium: Arc<dyn Medium + Send + Sync>,
        intents: Arc<Intents>,
        durability: Durability,
    ) -> Follower {
        let journal = Arc::new(Mutex::new(Journal::open(medium).unwrap()));
        Follower::start(journal, None, intents, &[self.image()], ImageWriter::Journal(durability)).unwrap()
    }

    fn sector(&self, sector: u64) -> u8 {
        let mut bytes = [0; 512];
        File::open(self.path("image")).unwrap().read_exact_at(&mut bytes, 512 * sector).unwrap();
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "sector {sector} is torn");
        bytes[0]
    }

    fn content(&self) -> Vec<u8> {
        std::fs::read(self.path("image")).unwrap()
    }
}

/// Those of one disk, with nothing set and no base.
fn intents() -> Arc<Intents> {
    let bytes = IntentMap::<MemoryMedium>::bytes_for(DISK_BYTES, EXTENT_BYTES).unwrap() as usize;
    let map = IntentMap::create(MemoryMedium::new(bytes), DISK_BYTES, EXTENT_BYTES, 7).unwrap();
    let intent = Intent { disk: DISK, map, flush: Box::new(|| Ok(())) };
    Arc::new(Intents::start(vec![intent]).unwrap())
}

fn write(follower: &Follower, sector: u64, byte: u8) {
    follower.turn().take(&Change::write(DISK, 512 * sector, &[byte; 512]), GOES_ON).unwrap();
}

fn seal(follower: &Follower, epoch: u64) {
    follower.turn().sealed(Held { pairing: 5, epoch }).unwrap();
}

#[test]
fn only_what_is_sealed_reaches_the_image() {
    let node = Node::new();
    let follower = node.follower();
    write(&follower, 1, 7);
    write(&follower, 2, 8);
    assert_eq!((node.sector(1), node.sector(2)), (0, 0));
    seal(&follower, 1);
    write(&follower, 1, 9);
    follower.carry_out(GOES_ON).unwrap();
    assert_eq!((node.sector(1), node.sector(2)), (7, 8), "the open epoch's are its own");

    // The connection is lost: the epoch comes again, and is another one.
    follower.turn().connected();
    write(&follower, 2, 3);
    seal(&follower, 2);
    follower.carry_out(GOES_ON).unwrap();
    assert_eq!((node.sector(1), node.sector(2)), (7, 3));
}

#[test]
fn a_process_that_ends_anywhere_leaves_the_last_seal_to_the_next() {
    let node = Node::new();
    for epoch in 1..20 {
        let follower = node.follower();
        for sector in 0..40 {
            write(&follower, sector, epoch as u8);
        }
        seal(&follower, epoch);
        write(&follower, 41, 99);
        drop(follower);
    }
    let follower = node.follower();
    follower.carry_out(GOES_ON).unwrap();
    assert_eq!((node.sector(0), node.sector(39), node.sector(41)), (19, 19, 0));
}

#[test]
fn a_full_journal_waits_for_room_and_gives_up_when_it_is_told_to() {
    let node = Node::new();
    let follower = node.follower();
    // Far more than the journal holds, in epochs that each fit.
    for epoch in 1..60 {
        for at in 0..10 {
            let data = [epoch as u8; 8192];
            follower.turn().take(&Change::write(DISK, 8192 * at, &data), GOES_ON).unwrap();
        }
        seal(&follower, epoch);
    }
    follower.carry_out(GOES_ON).unwrap();
    assert_eq!(node.sector(159), 59);
    let data = [1; 65536];
    let change = Change::write(DISK, 0, &data);
    let stops = AtomicBool::new(false);
    let looks = || stops.swap(true, Ordering::SeqCst);
    let refused = (0..100).find_map(|_| follower.turn().take(&change, &looks).err());
    assert!(matches!(refused, Some(FollowError::GivenUp)), "{refused:?}");
}

#[test]
fn in_a_copy_changes_are_made_at_once_and_it_ends_when_all_is_the_same() {
    let node = Node::new();
    let follower = node.follower();
    write(&follower, 1, 7);
    seal(&follower, 1);
    follower.turn().copy_begins(6, GOES_ON).unwrap();
    assert_eq!(node.sector(1), 7, "what was sealed was carried out first");
    write(&follower, 9, 4);
    let zeroes = Change::Zeroes { extent: Extent { disk: DISK, bytes: 512..1024 }, space: Space::May };
    follower.turn().take(&zeroes, GOES_ON).unwrap();
    assert_eq!((node.sector(9), node.sector(1)), (4, 0));
    let nowhere = follower.turn().take(&Change::write(7, 0, &[4; 512]), GOES_ON).unwrap_err();
    assert_eq!(
        nowhere.to_string(),
        "disk 8: is none of this VM's writable disks",
        "disks are counted from 1"
    );

    let content = node.content();
    let of = |extent: u32| {
        let start = extent as usize * EXTENT_BYTES as usize;
        let bytes = &content[start..content.len().min(start + EXTENT_BYTES as usize)];
        Compare { disk: DISK, extent, hash: *blake3::hash(bytes).as_bytes() }
    };
    for extent in 0..4 {
        assert_eq!(follower.turn().compare(&of(extent)).unwrap(), Some(true));
    }
    assert_eq!(follower.turn().compare(&Compare { hash: [0; 32], ..of(2) }).unwrap(), Some(false));
    let early = follower.turn().sealed(Held { pairing: 6, epoch: 1 });
    assert!(matches!(early, Err(FollowError::Unequal(1))), "{early:?}");
    assert_eq!(follower.turn().compare(&of(2)).unwrap(), Some(true));
    follower.turn().sealed(Held { pairing: 6, epoch: 1 }).unwrap();
    write(&follower, 9, 5);
    assert_eq!(node.sector(9), 4, "from the first seal on the journal is before the image");
    drop(follower);
    assert_eq!(node.follower().shared.journal.lock().sealed(), Some(SealedEpoch { pairing: 6, epoch: 1 }));
}

/// A disk whose changes are made late.
struct LateDisk(Arc<Mutex<Option<Range<u64>>>>);

impl TappedDisk for LateDisk {
    fn try_again(&self) {}

    fn is_changing(&self, bytes: &Range<u64>) -> bool {
        self.0.lock().as_ref().is_some_and(|late| late.start < bytes.end && bytes.start < late.end)
    }
}

/// A primary's disk.
struct Guest {
    node: Node,
    intents: Arc<Intents>,
    tap: Arc<WriteTap>,
    image: File,
    late: Arc<Mutex<Option<Range<u64>>>>,
}

impl Guest {
    fn new() -> Self {
        let (node, intents) = (Node::new(), intents());
        let image = File::options().write(true).open(node.path("image")).unwrap();
        let tap = WriteTap::new(100_000, Some(Arc::clone(&intents)));
        let late = Arc::new(Mutex::new(None));
        tap.plug(vec![(DISK, Box::new(LateDisk(Arc::clone(&late))) as Box<dyn TappedDisk>)]);
        Self { node, intents, tap, image, late }
    }

    fn write(&self, sector: u64, byte: u8) {
        let (offset, data) = (512 * sector, [byte; 512]);
        let owner = self.tap.owner(DISK);
        *self.late.lock() = Some(offset..offset + 512);
        while owner.change(&DiskChange::Write { offset, data: &data }) == DiskAnswer::Full {
            *self.late.lock() = None;
            std::thread::sleep(Duration::from_micros(200));
            *self.late.lock() = Some(offset..offset + 512);
        }
        self.image.write_all_at(&data, offset).unwrap();
        *self.late.lock() = None;
    }

    /// A backup's image becomes the same, at the latest when the guest has written all that it wants to.
    fn copy_to(&self, follower: &Follower, pairing: u64, has_written: impl Fn() -> bool) -> Equalized {
        let parts = follower.turn().copy_begins(pairing, GOES_ON).unwrap();
        self.intents.begin_pairing();
        let (sender, stream) = channel();
        let tapped = self.tap.begin(Box::new(move |told| sender.send(told).is_ok()));
        let equalizer = Equalizer::start(&self.tap, &self.intents, &[self.node.image()]).unwrap();
        parts.iter().for_each(|part| equalizer.mapped(part));
        let take = |told: &Told| {
            let (vm, generation, epoch, sequence) = (0, 0, 0, 0);
            let frame = Frame { kind: told.kind, vm, generation, epoch, sequence, payload: &told.payload };
            match Message::decode(&frame).unwrap() {
                Message::Disk(change) => follower.turn().take(&change, GOES_ON).unwrap(),
                Message::DiskMap(part) => follower.turn().mapped(&part),
                Message::Compare(compare) => {
                    let same = follower.turn().compare(&compare).unwrap().unwrap();
                    let Compare { disk, extent, .. } = compare;
                    equalizer.answered(Compared { disk, extent, same });
                }
                other => panic!("{other:?}"),
            }
            self.tap.left(told);
        };
        while !(has_written() && equalizer.is_done().unwrap()) {
            if let Ok(told) = stream.recv_timeout(Duration::from_millis(10)) {
                take(&told);
            }
        }
        stream.try_iter().for_each(|told| take(&told));
        let held = Held { pairing, epoch: 1 };
        follower.turn().sealed(held).unwrap();
        let settled = follower.turn().settled(held).unwrap();
        assert_eq!(settled, Settled { pairing, epoch: 1 }, "what ends a copy is durable");
        self.intents.settled(pairing, 1);
        drop(tapped);
        equalizer.progress()
    }
}

fn await_base(intents: &Intents, pairing: u64) {
    while intents.map(DISK).0 != Some(pairing) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn two_images_become_one_disk_while_the_guest_writes() {
    let (guest, backup) = (Guest::new(), Node::new());
    guest.image.write_all_at(&[6; 70_000], 2 << 20).unwrap();
    let other = File::options().write(true).open(backup.path("image")).unwrap();
    other.write_all_at(&[8; 4096], 3 << 20).unwrap();
    let follower = backup.follower();
    let done = std::thread::scope(|scope| {
        let writes = || (0..3000).for_each(|n| guest.write(n * 7919 % (DISK_BYTES / 512), n as u8));
        let writer = scope.spawn(writes);
        guest.copy_to(&follower, 6, || writer.is_finished())
    });
    assert_eq!(done.extents, Some(4), "nothing is known of two images that never met");
    assert!(done.sent >= 2);
    assert!(guest.node.content() == backup.content());
}

#[test]
fn a_host_that_comes_back_is_compared_only_where_either_was_changed() {
    let (guest, backup, of_backup) = (Guest::new(), Node::new(), intents());
    let follower = backup.follower_with(Arc::clone(&of_backup));
    guest.write(1, 5);
    guest.copy_to(&follower, 6, || true);
    await_base(&guest.intents, 6);
    await_base(&of_backup, 6);
    // Extent 0 was changed lately, and stays set. The backup had the VM for a while, too.
    guest.write(2, 6);
    while of_backup.may_change(DISK, &(3 << 20..(3 << 20) + 512), u64::MAX) == Clearance::Later {
        std::thread::sleep(Duration::from_millis(1));
    }
    let other = File::options().write(true).open(backup.path("image")).unwrap();
    other.write_all_at(&[8; 512], 3 << 20).unwrap();
    let done = guest.copy_to(&follower, 7, || true);
    assert_eq!((done.extents, done.same), (Some(2), 2));
    assert_eq!((done.compared, done.differing, done.sent, done.sent_bytes), (2, 2, 2, 16 << 10));
    assert!(guest.node.content() == backup.content());

    // Another host has been the backup since: what this one knows says nothing.
    await_base(&guest.intents, 7);
    let stranger = Node::new();
    guest.copy_to(&stranger.follower(), 8, || true);
    await_base(&guest.intents, 8);
    assert!(guest.node.content() == stranger.content());
    other.write_all_at(&[9; 512], 1 << 20).unwrap();
    let done = guest.copy_to(&follower, 9, || true);
    assert_eq!((done.extents, done.sent), (Some(4), 1));
    assert!(guest.node.content() == backup.content());
}

#[test]
fn a_copy_keeps_to_its_limit_and_says_how_far_it_is() {
    let (guest, backup) = (Guest::new(), Node::new());
    guest.image.write_all_at(&[6; 2 << 20], 0).unwrap();
    guest.tap.limit_copy(8 << 20);
    let began = Instant::now();
    let done = guest.copy_to(&backup.follower(), 6, || true);
    // Two extents are compared, sent and so compared again; the last of it need not be waited for.
    assert_eq!((done.compared, done.differing, done.sent_bytes), (4, 2, 2 * EXTENT_BYTES));
    assert!(began.elapsed() >= Duration::from_millis(3 * 1000 / 8), "{:?}", began.elapsed());
    assert!(guest.node.content() == backup.content());
}

#[test]
fn the_primary_is_told_of_what_the_images_have_durably_and_of_nothing_more() {
    let node = Node::new();
    let follower = node.follower();
    let settled = |epoch| follower.turn().settled(Held { pairing: 5, epoch });
    assert_eq!(settled(3), None, "there is no copy of this pairing");
    Guest::new().copy_to(&follower, 5, || true);
    // Nothing carries out while the journal is ours.
    let journal = Arc::clone(&follower.shared.journal);
    {
        write(&follower, 1, 7);
        seal(&follower, 2);
        let _journal = journal.lock();
        if !follower.shared.carried.lock().is_all {
            std::thread::sleep(2 * SETTLED_INTERVAL);
            assert_eq!(settled(2), None, "epoch 2 is not in the images");
            assert!(follower.waiting() > 0);
        }
    }
    follower.carry_out(GOES_ON).unwrap();
    std::thread::sleep(2 * SETTLED_INTERVAL);
    assert_eq!(settled(9), Some(Settled { pairing: 5, epoch: 9 }), "nothing was changed after 2");
}
