//! The images are compared while the guest writes: what is the same is found so, whatever is on its way, and what
//! storage has changed is found, told, and sent.

use super::*;
use crate::disks::{OnDifference, Verifier, VerifyError};
use crate::observe::{DisksVerifyStatus, VerifyState};
use ft_checkpoint::wire::FrameType;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::Receiver;

const PAIRING: u64 = 6;

/// A protected pair: what the guest's disk tells is carried to the backup, epoch by epoch.
struct Protected {
    guest: Guest,
    backup: Node,
    follower: Follower,
    verifier: Verifier,
    /// The next one.
    epochs: AtomicU64,
}

impl Protected {
    fn new() -> Self {
        let (guest, backup) = (Guest::new(), Node::new());
        guest.image.write_all_at(&[6; 2 << 20], 0).unwrap();
        let follower = backup.follower();
        guest.copy_to(&follower, PAIRING, || true);
        Self { guest, backup, follower, verifier: Verifier::default(), epochs: 2.into() }
    }

    /// Compares all, while `writes` is done by the guest; again where this machine was too slow to come to an end.
    fn verify(&self, on_difference: OnDifference, writes: impl Fn(u64) + Sync) -> DisksVerifyStatus {
        for _ in 0..20 {
            let found = self.verify_once(on_difference, &writes);
            if found.unsettled_bytes == 0 {
                return found;
            }
        }
        panic!("what the guest changed was never compared");
    }

    fn verify_once(&self, on_difference: OnDifference, writes: &(impl Fn(u64) + Sync)) -> DisksVerifyStatus {
        let (sender, stream) = channel();
        let tapped = self.guest.tap.begin(Box::new(move |told| sender.send(told).is_ok()));
        let images = [self.guest.node.image()];
        self.verifier.start(&self.guest.tap, &self.guest.intents, &images, 0, on_difference).unwrap();
        let again = self.verifier.start(&self.guest.tap, &self.guest.intents, &images, 0, on_difference);
        assert!(matches!(again, Err(VerifyError::UnderWay)));
        let is_running = || self.verifier.status().unwrap().state == VerifyState::Running;
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| (0..).take_while(|_| is_running()).for_each(writes));
            while !writer.is_finished() {
                std::thread::sleep(Duration::from_millis(2));
                self.end_epoch(&stream);
            }
            self.end_epoch(&stream);
        });
        drop(tapped);
        self.follower.carry_out(GOES_ON).unwrap();
        self.verifier.status().unwrap()
    }

    fn end_epoch(&self, stream: &Receiver<Told>) {
        let epoch = self.epochs.fetch_add(1, Ordering::SeqCst);
        self.guest.tap.captured(epoch);
        stream.try_iter().for_each(|told| self.take(&told));
        self.follower.turn().sealed(Held { pairing: PAIRING, epoch }).unwrap();
        let answers = self.follower.turn().answers();
        answers.into_iter().for_each(|answer| self.verifier.answered(answer));
        self.guest.tap.acked(epoch, u64::MAX);
    }

    fn take(&self, told: &Told) {
        let (vm, generation, epoch, sequence) = (0, 0, told.epoch, 0);
        let frame = Frame { kind: told.kind, vm, generation, epoch, sequence, payload: &told.payload };
        match Message::decode(&frame).unwrap() {
            Message::Disk(change) => self.follower.turn().take(&change, GOES_ON).unwrap(),
            Message::Compare(compare) => {
                assert_eq!(
                    self.follower.turn().compare(&compare).unwrap(),
                    None,
                    "not before it is carried out"
                );
            }
            other => panic!("{other:?}"),
        }
    }

    /// The backup's storage changes something.
    fn turn_round(&self, offset: u64) {
        let image = File::options().write(true).open(self.backup.path("image")).unwrap();
        image.write_all_at(&[0xee], offset).unwrap();
    }

    fn is_same(&self) -> bool {
        self.guest.node.content() == self.backup.content()
    }
}

#[test]
fn images_that_are_the_same_are_found_so_whatever_is_on_its_way() {
    let pair = Protected::new();
    // All over the disk, and again and again at one place.
    let busy = |n: u64| {
        pair.guest.write(n * 7919 % (DISK_BYTES / 512), n as u8);
        pair.guest.write(3, n as u8);
    };
    for _ in 0..5 {
        let found = pair.verify(OnDifference::Tell, busy);
        assert_eq!((found.state, found.differing_bytes), (VerifyState::Done, 0), "{found:?}");
        assert_eq!(found.compared_bytes, 4 * EXTENT_BYTES);
        assert!(pair.is_same());
    }
    assert_eq!(pair.verifier.mismatches(), 0);
}

#[test]
fn what_storage_has_changed_is_found_and_compared_at_the_next_return() {
    let pair = Protected::new();
    pair.turn_round((3 << 20) + 5);
    let found = pair.verify(OnDifference::Tell, |n| pair.guest.write(n % 4096, n as u8));
    // The last extent has 4096 bytes.
    assert_eq!((found.differing_bytes, found.repaired_bytes), (4096, 0), "{found:?}");
    let place = found.differing[0];
    assert_eq!((place.disk, place.from, place.to), (DISK + 1, 3 << 20, (3 << 20) + 4095));
    assert_eq!(pair.verifier.mismatches(), 1);
    await_base(&pair.guest.intents, PAIRING);
    while !pair.guest.intents.set(DISK).contains(&3) {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(!pair.is_same());
}

#[test]
fn what_differs_is_sent_among_the_changes_when_that_is_asked_for() {
    let pair = Protected::new();
    pair.turn_round(5);
    pair.turn_round((2 << 20) + 5);
    let found = pair.verify(OnDifference::Send, |n| pair.guest.write(2048 + n % 2048, n as u8));
    assert_eq!(found.differing_bytes, 2 * EXTENT_BYTES, "{found:?}");
    assert_eq!(found.repaired_bytes, 2 * EXTENT_BYTES, "{found:?}");
    assert!(pair.is_same());
}

#[test]
fn a_comparison_ends_with_its_pairing_and_says_so() {
    let pair = Protected::new();
    let images = [pair.guest.node.image()];
    let start = || pair.verifier.start(&pair.guest.tap, &pair.guest.intents, &images, 0, OnDifference::Tell);
    assert!(matches!(start(), Err(VerifyError::Alone)));
    let (sender, stream) = channel();
    let tapped = pair.guest.tap.begin(Box::new(move |told| sender.send(told).is_ok()));
    start().unwrap();
    assert_eq!(stream.recv().unwrap().kind, FrameType::Compare);
    drop(tapped);
    while pair.verifier.status().unwrap().state == VerifyState::Running {
        std::thread::sleep(Duration::from_millis(1));
    }
    let found = pair.verifier.status().unwrap();
    assert_eq!((found.state, found.compared_bytes), (VerifyState::BrokenOff, 0));
    assert!(found.why.unwrap().contains("the backup was lost"));
}
