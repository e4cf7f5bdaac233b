//! A backup takes epochs in, carries them out, and dies, loses power or meets a storage that fails, at any moment. Its
//! image then comes to be that of a checkpoint that was sealed, and never of one before the last that was made durable.

use crate::lossy::{FAILURE, Lossy, Luck};
use ft_mirror::{
    ApplyError, Change, Extent, Journal, JournalError, JournalFlush, Medium, MemoryMedium, Portion,
    SealedEpoch, Space,
};
use proptest::prelude::*;
use std::borrow::Cow;
use std::io;

const IMAGE_BYTES: u64 = 16 << 10;
const JOURNAL_BYTES: usize = (8 << 10) + (64 << 10);
const PAIRING: u64 = 7;

#[derive(Clone, Debug)]
enum Step {
    Change(Change<'static>),
    Seal,
    Sync,
    Apply {
        budget: u64,
    },
    FlushAndRelease,
    /// Another thread's flush is begun, done, or told; what comes between is others'.
    FlushOnTheSide,
    /// The image is flushed, and what moves the head is left to flushes on the side.
    BeginRelease,
    /// Another thread takes a part to be carried out, or has carried it out.
    ApplyOnTheSide {
        budget: u64,
    },
    LoseLink,
    Die,
    LosePower {
        luck: u64,
    },
    /// In the midst of something.
    LosePowerSoon {
        calls: u32,
    },
    /// The journal's storage fails once.
    FailSoon {
        calls: u32,
        luck: u64,
    },
    /// The image's does.
    FailImageSoon {
        calls: u32,
        luck: u64,
    },
}

fn changes() -> impl Strategy<Value = Change<'static>> {
    let extent = (0..IMAGE_BYTES - 4096, 1..4096_u64)
        .prop_map(|(start, bytes)| Extent { disk: 0, bytes: start..start + bytes });
    prop_oneof![
        4 => (0..IMAGE_BYTES - 4096, 1..4096_usize, any::<u8>()).prop_map(|(offset, bytes, fill)| {
            let data = (0..bytes).map(|i| fill.wrapping_add((i / 512) as u8)).collect();
            Change::Write { disk: 0, offset, data: Cow::Owned(data) }
        }),
        1 => extent.prop_map(|extent| Change::Zeroes { extent, space: Space::May }),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => changes().prop_map(Step::Change),
        6 => Just(Step::Seal),
        3 => Just(Step::Sync),
        4 => (0..20_000_u64).prop_map(|budget| Step::Apply { budget }),
        2 => Just(Step::FlushAndRelease),
        12 => Just(Step::FlushOnTheSide),
        4 => Just(Step::BeginRelease),
        4 => (0..20_000_u64).prop_map(|budget| Step::ApplyOnTheSide { budget }),
        1 => Just(Step::LoseLink),
        1 => Just(Step::Die),
        2 => any::<u64>().prop_map(|luck| Step::LosePower { luck }),
        2 => (0..6_u32).prop_map(|calls| Step::LosePowerSoon { calls }),
        3 => (0..6_u32, any::<u64>()).prop_map(|(calls, luck)| Step::FailSoon { calls, luck }),
        1 => (0..6_u32, any::<u64>()).prop_map(|(calls, luck)| Step::FailImageSoon { calls, luck }),
    ];
    prop::collection::vec(step, 1..160)
}

fn carry_out(image: &impl Medium, change: &Change<'_>) -> io::Result<()> {
    match change {
        Change::Write { offset, data, .. } => image.write(*offset, data),
        Change::Zeroes { extent, .. } => {
            image.write(extent.bytes.start, &vec![0; (extent.bytes.end - extent.bytes.start) as usize])
        }
        Change::Discard { .. } => Ok(()),
    }
}

/// What should be: the image of each checkpoint that was sealed, and of the epoch that comes in.
struct Model {
    sealed: Vec<Vec<u8>>,
    coming: Vec<u8>,
    durable: usize,
}

/// A flush that another thread has begun.
struct Side {
    flush: JournalFlush,
    /// The last checkpoint that it makes durable.
    reaches: usize,
    result: Option<io::Result<()>>,
}

struct Backup<'a> {
    store: &'a Lossy,
    image: &'a Lossy,
    journal: Journal<&'a Lossy>,
    side: Option<Side>,
    portion: Option<Portion>,
    model: Model,
}

impl<'a> Backup<'a> {
    fn new(store: &'a Lossy, image: &'a Lossy) -> Self {
        let empty = vec![0; IMAGE_BYTES as usize];
        let mut journal = Journal::create(store, 3).unwrap();
        journal.seal(SealedEpoch { pairing: PAIRING, epoch: 0 }).unwrap();
        journal.sync().unwrap();
        Self {
            store,
            image,
            journal,
            side: None,
            portion: None,
            model: Model { sealed: vec![empty.clone()], coming: empty, durable: 0 },
        }
    }

    fn change(&mut self, change: &Change<'_>) -> Result<(), JournalError> {
        match self.journal.append(change) {
            Err(JournalError::Full { .. }) => {
                // The guest waits meanwhile. What fills it may be the epoch itself, which then ends.
                self.seal()?;
                self.sync()?;
                self.image.fail_never();
                self.apply(u64::MAX)?;
                self.flush_and_release()?;
                self.journal.append(change)?;
            }
            appended => appended?,
        }
        let Change::Write { offset, data, .. } = change else {
            let bytes = change.extent().bytes;
            self.model.coming[bytes.start as usize..bytes.end as usize].fill(0);
            return Ok(());
        };
        let at = *offset as usize;
        self.model.coming[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn seal(&mut self) -> Result<(), JournalError> {
        let epoch = self.model.sealed.len() as u64;
        // It may take effect although it fails.
        self.model.sealed.push(self.model.coming.clone());
        self.journal.seal(SealedEpoch { pairing: PAIRING, epoch })
    }

    fn flush_on_the_side(&mut self) -> Result<(), JournalError> {
        match self.side.take() {
            None => {
                let reaches = self.model.sealed.len() - 1;
                let flush = self.journal.begin_flush()?.expect("nobody else flushes");
                assert!(matches!(self.journal.begin_flush(), Ok(None)), "one at a time");
                self.side = Some(Side { flush, reaches, result: None });
            }
            Some(Side { result: None, flush, reaches }) => {
                self.side = Some(Side { flush, reaches, result: Some(self.store.sync()) });
            }
            Some(Side { result: Some(result), flush, reaches }) => {
                self.journal.flushed(flush, result)?;
                self.model.durable = self.model.durable.max(reaches);
            }
        }
        Ok(())
    }

    /// Who wants to flush waits for others who do.
    fn wait_for_flush(&mut self) -> Result<(), JournalError> {
        while self.side.is_some() {
            self.flush_on_the_side()?;
        }
        Ok(())
    }

    fn apply_on_the_side(&mut self, budget: u64) -> Result<(), JournalError> {
        let Some(mut portion) = self.portion.take() else {
            self.portion = self.journal.portion(budget);
            return Ok(());
        };
        let image = self.image;
        let done = portion.carry_out(&self.store, |change| carry_out(&image, change));
        self.journal.carried_out(portion);
        self.carried(done)
    }

    fn carried(&mut self, done: Result<(), ApplyError<io::Error>>) -> Result<(), JournalError> {
        match done {
            Ok(()) => Ok(()),
            Err(ApplyError::Journal(error)) => Err(error),
            Err(ApplyError::Image(_)) => {
                self.again();
                Ok(())
            }
        }
    }

    /// An image that failed may lack what it was not heard to have.
    fn again(&mut self) {
        self.portion = None;
        self.journal.again();
    }

    fn begin_release(&mut self) -> Result<(), JournalError> {
        match self.image.sync() {
            Ok(()) => self.journal.begin_release(),
            Err(_) => {
                self.again();
                Ok(())
            }
        }
    }

    fn sync(&mut self) -> Result<(), JournalError> {
        self.wait_for_flush()?;
        self.journal.sync()?;
        self.model.durable = self.model.sealed.len() - 1;
        Ok(())
    }

    fn apply(&mut self, budget: u64) -> Result<(), JournalError> {
        if self.portion.is_some() {
            self.apply_on_the_side(0)?;
        }
        let image = self.image;
        let done = self.journal.apply(budget, |change| carry_out(&image, change));
        self.carried(done.map(drop))
    }

    fn flush_and_release(&mut self) -> Result<(), JournalError> {
        // One that was begun before does not move the head as far.
        while self.side.is_some() || self.journal.is_releasing() {
            self.flush_on_the_side()?;
        }
        self.begin_release()?;
        while self.journal.is_releasing() {
            self.flush_on_the_side()?;
        }
        Ok(())
    }

    fn lose_link(&mut self) -> Result<(), JournalError> {
        self.wait_for_flush()?;
        self.journal.drop_unsealed()?;
        self.model.coming.clone_from(self.model.sealed.last().unwrap());
        self.model.durable = self.model.sealed.len() - 1;
        Ok(())
    }

    /// Another process goes on; it finds this checkpoint.
    fn start_again(&mut self) -> usize {
        (self.side, self.portion) = (None, None);
        self.image.fail_never();
        self.journal = Journal::open(self.store).unwrap();
        let SealedEpoch { pairing, epoch } = self.journal.sealed().unwrap();
        assert_eq!(pairing, PAIRING);
        let epoch = epoch as usize;
        self.apply(u64::MAX).unwrap();
        assert_eq!(self.journal.waiting(), 0);
        assert_eq!(self.journal.applied(), self.journal.sealed());
        assert!(self.image.content() == self.model.sealed[epoch], "the image is not that of epoch {epoch}");
        self.model.sealed.truncate(epoch + 1);
        self.model.coming.clone_from(&self.model.sealed[epoch]);
        let durable = std::mem::replace(&mut self.model.durable, epoch);
        assert!(epoch >= durable, "epoch {durable} was durable, {epoch} is found");
        epoch
    }

    fn lose_power(&mut self, luck: u64) {
        let mut luck = Luck(luck);
        self.store.lose_power(&mut luck);
        self.image.lose_power(&mut luck);
        // And again, while what it left is opened.
        self.store.lose_power_after((luck.next() % 8) as u32);
        drop(Journal::open(self.store));
        self.store.lose_power(&mut luck);
        self.start_again();
    }

    /// The journal's storage failed. The process goes on, or dies of it.
    fn meet_failure(&mut self, step: &Step) -> Result<(), JournalError> {
        if self.model.sealed.len().is_multiple_of(3) {
            self.store.fail_never();
            self.start_again();
            return Ok(());
        }
        while self.side.is_some() {
            let _ = self.flush_on_the_side();
        }
        assert!(!self.journal.is_sound());
        self.journal.mend()?;
        // A seal that failed is none, and the connection that it came over is lost.
        self.model.sealed.truncate(self.journal.sealed().unwrap().epoch as usize + 1);
        self.model.durable = self.model.sealed.len() - 1;
        match step {
            Step::Change(_) | Step::Seal | Step::LoseLink => self.lose_link(),
            _ => Ok(()),
        }
    }

    fn step(&mut self, step: &Step) {
        let done = match step {
            Step::Change(change) => self.change(change),
            Step::Seal => self.seal(),
            Step::Sync => self.sync(),
            Step::Apply { budget } => self.apply(*budget),
            Step::FlushAndRelease => self.flush_and_release(),
            Step::FlushOnTheSide => self.flush_on_the_side(),
            Step::BeginRelease => self.begin_release(),
            Step::ApplyOnTheSide { budget } => self.apply_on_the_side(*budget),
            Step::LoseLink => self.lose_link(),
            Step::Die => {
                let last = self.model.sealed.len() - 1;
                self.store.fail_never();
                assert_eq!(self.start_again(), last, "a process that dies loses nothing that is sealed");
                Ok(())
            }
            Step::LosePower { luck } => {
                self.lose_power(*luck);
                Ok(())
            }
            Step::LosePowerSoon { calls } => {
                self.store.lose_power_after(*calls);
                Ok(())
            }
            Step::FailSoon { calls, luck } => {
                self.store.fail_after(*calls, Luck(*luck));
                Ok(())
            }
            Step::FailImageSoon { calls, luck } => {
                self.image.fail_after(*calls, Luck(*luck));
                Ok(())
            }
        };
        let done = match done {
            Err(JournalError::Io(error)) if error.raw_os_error() == Some(FAILURE) => self.meet_failure(step),
            done => done,
        };
        match done {
            Ok(()) => {}
            Err(JournalError::Io(_)) => self.lose_power(self.model.sealed.len() as u64),
            Err(error) => panic!("{error}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_image_is_always_that_of_a_sealed_checkpoint_or_becomes_it(steps in steps()) {
        let (store, image) = (Lossy::new(JOURNAL_BYTES), Lossy::new(IMAGE_BYTES as usize));
        let mut backup = Backup::new(&store, &image);
        for step in &steps {
            backup.step(step);
        }
        backup.step(&Step::Die);
    }

    #[test]
    fn a_bit_that_changed_is_found_or_was_of_nothing_that_counts(
        steps in steps(),
        at in prop_oneof![1 => 0..100_usize, 1 => 4096..4196_usize, 4 => 8192..JOURNAL_BYTES],
        bit in 0..8_u8,
    ) {
        let (store, image) = (Lossy::new(JOURNAL_BYTES), Lossy::new(IMAGE_BYTES as usize));
        let mut backup = Backup::new(&store, &image);
        for step in &steps {
            backup.step(step);
        }
        let (durable, last) = (backup.model.durable, backup.journal.sealed().unwrap().epoch as usize);
        store.fail_never();
        image.fail_never();
        store.flip(at, bit);
        match Journal::open(&store) {
            Ok(mut found) => {
                let epoch = found.sealed().unwrap().epoch as usize;
                prop_assert!((durable..=last).contains(&epoch), "{} of {}..={}", epoch, durable, last);
                found.apply(u64::MAX, |change| carry_out(&image, change)).unwrap();
                prop_assert!(image.content() == backup.model.sealed[epoch]);
            }
            Err(JournalError::Damaged { .. }) => {}
            Err(error) => prop_assert!(false, "{}", error),
        }
    }
}

#[test]
fn what_is_no_journal_is_said() {
    let store = Lossy::new(JOURNAL_BYTES);
    assert!(matches!(Journal::open(&store), Err(JournalError::NoJournal)));
    assert!(matches!(Journal::create(Lossy::new(10_000), 1), Err(JournalError::Small { .. })));
    Journal::create(&store, 1).unwrap();
    let short = Lossy::new(JOURNAL_BYTES - 8);
    short.write(0, &store.content()[..JOURNAL_BYTES - 8]).unwrap();
    assert!(matches!(Journal::open(&short), Err(JournalError::Cut { .. })));
}

#[test]
fn a_full_journal_takes_the_seal_and_nothing_else() {
    let store = Lossy::new(JOURNAL_BYTES);
    let mut journal = Journal::create(&store, 1).unwrap();
    let data = [7; 4000];
    let error = loop {
        if let Err(error) = journal.append(&Change::write(0, 0, &data)) {
            break error;
        }
    };
    assert!(matches!(error, JournalError::Full { .. }), "{error}");
    let sealed = SealedEpoch { pairing: 1, epoch: 1 };
    journal.seal(sealed).unwrap();
    journal.sync().unwrap();
    let mut again = Journal::open(&store).unwrap();
    assert_eq!(again.sealed(), Some(sealed));
    let glance = Journal::look(&&store).unwrap();
    assert_eq!((glance.sealed, glance.applied, glance.waiting), (Some(sealed), None, again.waiting()));
    again.apply(u64::MAX, |_| -> io::Result<()> { Ok(()) }).unwrap();
    again.release().unwrap();
    again.append(&Change::write(0, 0, &data)).unwrap();
}

#[test]
fn a_journal_that_was_cut_anywhere_is_said() {
    let store = Lossy::new(JOURNAL_BYTES);
    let mut journal = Journal::create(&store, 1).unwrap();
    journal.append(&Change::write(0, 0, &[7; 4000])).unwrap();
    journal.seal(SealedEpoch { pairing: 1, epoch: 1 }).unwrap();
    journal.sync().unwrap();
    let whole = store.content();
    for left in (0..JOURNAL_BYTES).step_by(7).chain([JOURNAL_BYTES - 1]) {
        let cut = MemoryMedium::new(left);
        cut.write(0, &whole[..left]).unwrap();
        match Journal::open(&cut) {
            Err(JournalError::Cut { .. } | JournalError::NoJournal | JournalError::Io(_)) => {}
            Err(error) => panic!("{left} bytes are left: {error}"),
            Ok(_) => panic!("{left} bytes are left, and it is opened"),
        }
        assert_eq!(cut_content(&cut, left), whole[..left], "it is left as it is");
    }
}

fn cut_content(medium: &MemoryMedium, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    medium.read(0, &mut content).unwrap();
    content
}
