//! A large memory of which little is used: its holes cost neither memory nor bytes, on either side.

use crate::support::{GENERATION, VM, stream, writer};
use ft_checkpoint::arena::Capture;
use ft_checkpoint::bench_support::noise_page;
use ft_checkpoint::copy::FullCopy;
use ft_checkpoint::encoder::{EncodedCheckpoint, Encoder};
use ft_checkpoint::page::ZERO_PAGE;
use ft_checkpoint::receiver::{Limits, ReceiveError, Received, Receiver};
use ft_checkpoint::scrub::{SAMPLES, Scrubber};
use ft_checkpoint::wire::message::CopyBegin;
use ft_checkpoint::wire::{FrameReader, Message, WireSink};
use ft_ram::{GuestRam, PageIndex, RamView};

const RAM_BYTES: u64 = 4 << 30;
/// The kernel may hold memory in pieces of this many pages.
const HUGE: usize = 512;
const EPOCHS: u64 = 2000;

/// The pages that the kernel holds memory for.
fn held(view: &RamView) -> Vec<PageIndex> {
    let mut held = Vec::new();
    view.held(|run| {
        held.extend(run);
        Ok::<_, std::io::Error>(())
    })
    .unwrap();
    held
}

fn assert_same(a: &RamView, b: &RamView, pages: &[PageIndex]) {
    let (mut left, mut right) = (ZERO_PAGE, ZERO_PAGE);
    for &page in pages {
        a.read_page(page, &mut left);
        b.read_page(page, &mut right);
        assert!(left == right, "page {page} differs");
    }
}

/// Takes all of it, and says what was sealed.
fn feed(receiver: &mut Receiver, bytes: &[u8]) -> Result<Option<u64>, ReceiveError> {
    let mut reader = FrameReader::new(bytes);
    reader.expect(VM, GENERATION);
    receiver.connected(GENERATION);
    let mut sealed = None;
    while let Ok(frame) = reader.read() {
        if let Received::Sealed { epoch, .. } = receiver.on_frame(&frame)? {
            sealed = Some(epoch);
        }
    }
    Ok(sealed)
}

#[test]
fn a_large_sparse_memory_is_copied_and_scrubbed_without_being_held_anywhere() {
    let (primary, backup) = (GuestRam::new(RAM_BYTES).unwrap(), GuestRam::new(RAM_BYTES).unwrap());
    let view = primary.view().unwrap();
    let pages = view.pages();
    // The first and the last page, runs, single ones, and what was written with zeros.
    let used: Vec<PageIndex> = (0..100).chain((5000..900_000).step_by(30_011)).chain([pages - 1]).collect();
    used.iter().for_each(|&page| view.write_page(page, &noise_page(page.into())));
    (200..300).for_each(|page| view.write_page(page, &ZERO_PAGE));
    let before = held(&view);

    let mut encoder = Encoder::new(pages, 1 << 20);
    let mut out = writer();
    let mut copy = FullCopy::begin(&mut encoder, 1, &view, &mut out).unwrap();
    let mut steps = 0;
    while !copy.step(&mut encoder, &view, 64, &mut out).unwrap().is_complete() {
        steps += 1;
    }
    assert!(steps < before.len(), "a step for each hole at most");
    assert_eq!(copy.progress().read_pages as usize, before.len());
    assert_eq!(copy.stats().total_pages(), u64::from(pages));
    // The guest has written into a hole that was sent, and has cleared a page that was not zero.
    let mut dirty: Vec<PageIndex> = vec![1, 700_001];
    view.write_page(1, &ZERO_PAGE);
    view.write_page(700_001, &noise_page(1));
    copy.resend(&mut encoder, &view, &dirty, &mut out).unwrap();
    // And into another one before the first checkpoint.
    let (mut scrubber, mut capture) = (Scrubber::new(pages), Capture::new(pages as usize));
    dirty = vec![800_001];
    view.write_page(800_001, &noise_page(2));
    let before = held(&view);
    for epoch in 1..=EPOCHS {
        capture.reset();
        (capture.epoch, capture.stamp_us) = (epoch, epoch);
        capture.pages.append(&mut dirty);
        scrubber.sample(&view, &mut capture.samples);
        capture.copy_pages(&view).unwrap();
        encoder.encode(&capture, EncodedCheckpoint::default(), &mut out).unwrap().sent.unwrap();
    }
    out.flush().unwrap();
    let bytes = out.into_inner();

    let mut receiver = Receiver::new(backup.view().unwrap(), Limits::of_memory(pages));
    assert_eq!(feed(&mut receiver, &bytes).unwrap(), Some(EPOCHS));
    assert_eq!(receiver.scrubbed(), EPOCHS * SAMPLES as u64);
    let mut sealed = receiver.into_sealed().unwrap_or_else(|_| panic!("nothing is sealed"));
    sealed.apply_all();
    assert_eq!(held(&view), before, "copying or scrubbing has made the primary hold holes");
    let theirs = backup.view().unwrap();
    let at_backup = held(&theirs);
    let most = HUGE * (used.len() + 2);
    assert!(at_backup.len() <= most, "the backup holds {} pages", at_backup.len());
    // An epoch without pages has some three hundred bytes of frames and samples.
    let carried = used.len() * 4200 + EPOCHS as usize * 300 + 100_000;
    assert!(bytes.len() < carried, "{} bytes", bytes.len());
    assert_same(&view, &theirs, &before);
    assert_same(&view, &theirs, &at_backup);
}

#[test]
fn a_page_is_in_one_run_of_zero_pages_at_most_and_none_is_outside_the_memory() {
    /// A run's record, by the format.
    fn run(first: u32, pages: u32) -> Vec<u8> {
        [&first.to_le_bytes()[..], &4_u16.to_le_bytes(), &pages.to_le_bytes()].concat()
    }
    let send = |batch: &[u8]| {
        let view = GuestRam::new(16 << 20).unwrap().view().unwrap();
        let mut receiver = Receiver::new(view, Limits::of_memory(4096));
        let bytes = stream(|out| {
            Message::CopyBegin(CopyBegin { pairing: 1, total_pages: 4096 }).write(0, out).unwrap();
            Message::CopyPages(batch).write(0, out).unwrap();
        });
        feed(&mut receiver, &bytes)
    };
    assert!(send(&run(0, 4096)).is_ok());
    assert!(send(&[run(0, 4000), run(4000, 96)].concat()).is_ok());
    for (batch, at) in [
        (run(0, 4097), 0),
        (run(1, u32::MAX), 1),
        (run(4096, 1), 4096),
        ([run(0, 100), run(50, 100)].concat(), 50),
        ([run(10, 100), run(0, 11)].concat(), 10),
    ] {
        match send(&batch) {
            Err(ReceiveError::PageIndex { epoch: 0, page, pages: 4096 }) => assert_eq!(page, at),
            other => panic!("{other:?}"),
        }
    }
}
