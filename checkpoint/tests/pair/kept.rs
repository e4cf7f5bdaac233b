//! A backup that still has the guest's memory of an earlier time: a full copy sends what has changed of it, and comes
//! to the same as one that sends everything.

use crate::support::{Backup, GENERATION, Primary, RAM_BYTES, VM, assert_same_memory};
use ft_checkpoint::bench_support::noise_page;
use ft_checkpoint::compare::{CompareError, KeptPages};
use ft_checkpoint::copy::{CopyProgress, FullCopy};
use ft_checkpoint::page::{PageError, ZERO_PAGE};
use ft_checkpoint::receiver::{Limits, ReceiveError, Received, Receiver};
use ft_checkpoint::wire::handshake::PROTOCOL;
use ft_checkpoint::wire::message::{CopyBegin, HashRun, PageHashes};
use ft_checkpoint::wire::{FrameReader, FrameWriter, Message, WireSink};
use ft_ram::{GuestRam, PageIndex, PageRun, RamView};
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::rc::Rc;
use std::sync::Arc;

/// Pages that hold something incompressible, from 0 on; the rest is a hole.
const USED: PageIndex = 2000;

/// One direction of a connection. What has not come yet is a time-out.
#[derive(Clone, Default)]
struct Pipe(Rc<RefCell<VecDeque<u8>>>);

impl Read for Pipe {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.0.borrow_mut().read(into)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            n => Ok(n),
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection between the two, and the copy that goes over it.
struct Link {
    pairing: u64,
    out: FrameWriter<Pipe>,
    reader: FrameReader<Pipe>,
    kept: Arc<KeptPages>,
    /// Bytes that the backup has said.
    said: usize,
    sealed: Vec<u64>,
}

impl Link {
    fn new(pairing: u64, backup: &mut Backup) -> Self {
        let pipe = Pipe::default();
        let mut reader = FrameReader::new(pipe.clone());
        reader.expect(VM, GENERATION);
        backup.receiver.connected(GENERATION);
        let (out, kept) = (FrameWriter::new(pipe, VM, GENERATION), Arc::new(KeptPages::of_pairing(pairing)));
        Self { pairing, out, reader, kept, said: 0, sealed: Vec::new() }
    }

    /// The backup takes what has come, and answers.
    fn deliver(&mut self, backup: &mut Backup) -> Result<(), ReceiveError> {
        loop {
            let frame = match self.reader.read() {
                Err(error) if error.is_timeout() => return Ok(()),
                frame => frame.unwrap(),
            };
            if let Received::Sealed { epoch, .. } = backup.receiver.on_frame(&frame)? {
                self.sealed.push(epoch);
            }
            for said in backup.receiver.page_hashes() {
                let mut answer = FrameWriter::new(Vec::new(), VM, GENERATION);
                answer.speak(PROTOCOL.newest);
                Message::PageHashes(said.clone()).send(0, &mut answer).unwrap();
                self.said += answer.into_inner().len();
                self.kept.tell(&said).unwrap();
            }
        }
    }

    /// Steps of a copy, with something that the guest does in between, up to its end or so many.
    fn copy(
        &mut self,
        primary: &mut Primary,
        backup: &mut Backup,
        steps: usize,
        mut meanwhile: impl FnMut(&mut Primary, PageIndex),
    ) -> Result<CopyProgress, ReceiveError> {
        primary.owed.reset();
        let copy = FullCopy::begin(&mut primary.encoder, self.pairing, &primary.view, &mut self.out).unwrap();
        let mut copy = copy.comparing(Arc::clone(&self.kept));
        for _ in 0..steps {
            self.out.flush().unwrap();
            self.deliver(backup)?;
            let progress = copy.step(&mut primary.encoder, &primary.view, 64, &mut self.out).unwrap();
            assert!(!progress.waits, "the backup has told too little: {progress:?}");
            if progress.is_complete() {
                break;
            }
            meanwhile(primary, progress.sent_pages);
        }
        if copy.progress().is_complete() {
            let dirty: Vec<_> = std::mem::take(&mut primary.dirty).into_iter().collect();
            copy.resend(&mut primary.encoder, &primary.view, &dirty, &mut self.out).unwrap();
        }
        self.deliver(backup)?;
        Ok(copy.progress())
    }

    /// Epochs with deltas against what was sent last.
    fn epochs(&mut self, primary: &mut Primary, backup: &mut Backup) -> Result<(), ReceiveError> {
        for _ in 0..20 {
            primary.run(50, USED as usize);
            primary.checkpoint(&mut self.out).unwrap();
            self.out.flush().unwrap();
            self.deliver(backup)?;
        }
        Ok(())
    }

    fn sent(&self) -> u64 {
        self.out.bytes()
    }
}

fn primary() -> Primary {
    let mut primary = Primary::new(1, 1 << 20);
    (0..USED).for_each(|page| primary.write(page, &noise_page(page.into())));
    primary.dirty.clear();
    primary
}

/// A backup that begins to receive into this memory, whatever is in it.
fn over(ram: GuestRam) -> Backup {
    let mut receiver = Receiver::new(ram.view().unwrap(), Limits::of_memory(ram.pages()));
    receiver.compare_copies(true);
    Backup { ram, receiver, log: Vec::new() }
}

/// A backup that was in step with this primary, and begins anew with the memory that it has of that.
fn returned(primary: &mut Primary) -> Backup {
    let mut backup = over(GuestRam::new(RAM_BYTES).unwrap());
    let mut link = Link::new(1, &mut backup);
    let progress = link.copy(primary, &mut backup, usize::MAX, |_, _| ()).unwrap();
    assert_eq!(progress.same_pages, 0, "there was nothing before");
    primary.checkpoint(&mut link.out).unwrap();
    link.out.flush().unwrap();
    link.deliver(&mut backup).unwrap();
    over(sealed(backup))
}

/// The memory as of what is sealed.
fn sealed(backup: Backup) -> GuestRam {
    let mut sealed = backup.receiver.into_sealed().unwrap_or_else(|_| panic!("nothing is sealed"));
    sealed.apply_all();
    backup.ram
}

fn held(view: &RamView, page: PageIndex) -> bool {
    matches!(view.run_from(page).unwrap(), PageRun::Held(_))
}

fn must_be_the_same(primary: &Primary, backup: Backup, when: &str) {
    assert_same_memory(&primary.view, &sealed(backup).view().unwrap(), when);
}

#[test]
fn a_page_that_has_not_changed_is_not_sent_and_counts_as_sent() {
    let mut primary = primary();
    let mut backup = returned(&mut primary);
    let changed: Vec<PageIndex> = (100..USED).step_by(97).collect();
    changed.iter().for_each(|&page| primary.view.write_page(page, &noise_page(9_000_000 + u64::from(page))));
    let mut link = Link::new(2, &mut backup);
    let progress = link.copy(&mut primary, &mut backup, usize::MAX, |_, _| ()).unwrap();
    let (sent, said) = (link.sent(), link.said);
    eprintln!("{} of {USED} pages sent in {sent} bytes, after {said} bytes of hashes", changed.len());
    assert_eq!(progress.read_pages - progress.same_pages, changed.len() as PageIndex);
    let most = 4200 * changed.len() + 10 * USED as usize + 1000;
    assert!(sent < most as u64, "{sent} bytes were sent, {most} at most were due");
    assert!(said < 20 * USED as usize, "{said} bytes of hashes");
    link.epochs(&mut primary, &mut backup).unwrap();
    assert_eq!(link.sealed.len(), 20);
    must_be_the_same(&primary, backup, "after a copy that compared");
}

#[test]
fn what_has_become_zero_is_given_back_and_a_hole_that_was_filled_is_sent() {
    let mut primary = primary();
    let mut backup = returned(&mut primary);
    // The primary is another machine now: it has never touched the last hundred pages, and has used a hole.
    let mut fresh = Primary::new(2, 1 << 20);
    let mut content = ZERO_PAGE;
    for page in 0..USED - 100 {
        primary.view.read_page(page, &mut content);
        fresh.view.write_page(page, &content);
    }
    fresh.view.write_page(50, &ZERO_PAGE);
    fresh.view.write_page(3000, &noise_page(1));
    let mut link = Link::new(2, &mut backup);
    link.copy(&mut fresh, &mut backup, usize::MAX, |_, _| ()).unwrap();
    assert!(link.sent() < 3 * 4200 + 10 * u64::from(USED), "{} bytes were sent", link.sent());
    let view = backup.ram.view().unwrap();
    assert!(held(&view, 100) && !held(&view, USED - 1), "the memory of what is a hole now is given back");
    link.epochs(&mut fresh, &mut backup).unwrap();
    must_be_the_same(&fresh, backup, "with holes at other places");
}

#[test]
fn a_page_that_is_written_while_it_is_compared_is_sent() {
    let mut primary = primary();
    let mut backup = returned(&mut primary);
    let mut link = Link::new(2, &mut backup);
    let mut writes = 0;
    // Behind the copy, in front of it, and where it is.
    let write = |primary: &mut Primary, at: PageIndex| {
        for page in [at / 2, at, at + 1, at + 500].into_iter().filter(|page| *page < USED) {
            writes += 1;
            primary.write(page, &noise_page(7_000_000 + writes));
        }
    };
    link.copy(&mut primary, &mut backup, usize::MAX, write).unwrap();
    link.epochs(&mut primary, &mut backup).unwrap();
    must_be_the_same(&primary, backup, "after writes during the copy");
}

#[test]
fn a_copy_that_broke_off_is_nothing_to_go_on_from_and_the_next_one_sends_what_it_lacked() {
    let mut primary = primary();
    let mut backup = returned(&mut primary);
    (0..USED).for_each(|page| primary.view.write_page(page, &noise_page(5_000_000 + u64::from(page))));
    let mut link = Link::new(2, &mut backup);
    let progress = link.copy(&mut primary, &mut backup, 20, |_, _| ()).unwrap();
    assert!(!progress.is_complete() && progress.same_pages == 0, "{progress:?}");
    let came = progress.sent_pages;
    // The connection is gone, and with it all that says what the memory is.
    backup.receiver.drop_partial();
    assert_eq!(backup.receiver.held(), None);
    let Err(receiver) = backup.receiver.into_sealed() else { panic!("half a copy was taken for a state") };
    drop(receiver);
    let mut backup = over(backup.ram);

    let mut link = Link::new(3, &mut backup);
    let progress = link.copy(&mut primary, &mut backup, usize::MAX, |_, _| ()).unwrap();
    assert_eq!(progress.same_pages, came, "what came the first time is not sent again");
    link.epochs(&mut primary, &mut backup).unwrap();
    must_be_the_same(&primary, backup, "after a copy in two parts");
}

#[test]
fn a_hash_that_is_not_that_of_the_page_seals_nothing() {
    let mut primary = primary();
    let mut backup = returned(&mut primary);
    let mut link = Link::new(2, &mut backup);
    // It is told of as it was, and is another one when the primary says that it is the same.
    let memory = backup.ram.view().unwrap();
    let damage = |_: &mut Primary, at: PageIndex| {
        if at < 128 {
            memory.write_page(1900, &noise_page(1));
        }
    };
    link.copy(&mut primary, &mut backup, usize::MAX, damage).unwrap();
    let refused = link.epochs(&mut primary, &mut backup);
    assert!(matches!(refused, Err(ReceiveError::Digest { .. })), "{refused:?}");
    assert_eq!((backup.receiver.held(), link.sealed.len()), (None, 0));
}

#[test]
fn a_page_of_which_nothing_was_told_cannot_be_the_same() {
    let mut backup = Backup::unlimited();
    for compares in [false, true] {
        backup.receiver.compare_copies(compares);
        backup.ram.view().unwrap().write_page(7, &noise_page(7));
        let mut link = Link::new(1, &mut backup);
        Message::CopyBegin(CopyBegin { pairing: 1, total_pages: 4096 }).write(0, &mut link.out).unwrap();
        let same = [&7_u32.to_le_bytes()[..], &(1_u16 << 13).to_le_bytes()].concat();
        Message::CopyPages(&same).send(0, &mut link.out).unwrap();
        let refused = loop {
            let frame = link.reader.read().unwrap();
            if let Err(refused) = backup.receiver.on_frame(&frame) {
                break refused;
            }
        };
        let no_base = matches!(refused, ReceiveError::Page { source: PageError::NoBase { page: 7, .. }, .. });
        assert!(no_base, "{refused}");
    }
}

#[test]
fn a_primary_that_does_not_compare_gets_a_backup_without_memory() {
    let mut primary = primary();
    let mut backup = returned(&mut primary);
    backup.receiver.compare_copies(false);
    backup.ram.view().unwrap().write_page(4000, &noise_page(3));
    backup.feed_all(&primary.protect(2));
    assert!(backup.receiver.page_hashes().is_empty());
    assert!(!held(&backup.ram.view().unwrap(), 4000));
    must_be_the_same(&primary, backup, "without comparing");
}

proptest! {
    #[test]
    fn whatever_a_backup_tells_is_bounded_and_makes_no_page_the_same_by_mistake(
        told in prop::collection::vec((0..5000_u32, 0..3000_u32, 0..2000_usize), 0..20)
    ) {
        let kept = KeptPages::of_pairing(1);
        let mut due = 0;
        for (first, holes, hashes) in told {
            // Half of the time it is in order.
            let first = if first % 2 == 0 { due } else { first };
            let said = PageHashes { first, runs: vec![HashRun { holes, hashes: vec![[7; 16]; hashes] }] };
            match kept.tell(&said) {
                Ok(()) => due = said.end(),
                Err(CompareError::OutOfOrder { .. }) => prop_assert_ne!(first, due),
                Err(CompareError::TooMany { waiting }) => prop_assert!(waiting > 8192),
            }
            prop_assert_eq!(kept.come_to(0), due);
            prop_assert!(!kept.has(due / 2, &noise_page(1)));
        }
    }
}
