//! The memory that a pair holds beside the VM's own, under a guest that writes a lot: measured, against the formula of
//! the README. A process of its own, since it is the process that is measured.

use ft_checkpoint::arena::Capture;
use ft_checkpoint::bench_support::noise_page;
use ft_checkpoint::copy::FullCopy;
use ft_checkpoint::encoder::Encoder;
use ft_checkpoint::owed::Owed;
use ft_checkpoint::receiver::{BACKLOG_BYTES_MAX, Limits, Received, Receiver};
use ft_checkpoint::wire::{FrameReader, FrameWriter, WireSink};
use ft_ram::layout::PAGE_SIZE;
use ft_ram::{GuestRam, PageIndex};

const MIB: u64 = 1 << 20;
const RAM_BYTES: u64 = 1024 * MIB;
const EPOCH_BYTES: u64 = 32 * MIB;
const EPOCHS: u64 = 20;

/// Memory of this process that is no file's: guest memory is one.
fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10
}

fn feed(receiver: &mut Receiver, bytes: &[u8]) -> u64 {
    let mut reader = FrameReader::new(bytes);
    reader.expect(1, 1);
    let (mut sealed, mut most) = (0, 0);
    while let Ok(frame) = reader.read() {
        sealed += u64::from(matches!(receiver.on_frame(&frame).unwrap(), Received::Sealed { .. }));
        most = most.max(anonymous_bytes());
    }
    assert_eq!(sealed, 1);
    most
}

#[test]
fn a_backup_that_applies_nothing_by_itself_holds_no_more_than_is_documented() {
    let (primary, backup) = (GuestRam::new(RAM_BYTES).unwrap(), GuestRam::new(RAM_BYTES).unwrap());
    let view = primary.view().unwrap();
    let mut encoder = Encoder::new(view.pages(), 0);
    let mut receiver = Receiver::new(backup.view().unwrap(), Limits::of_memory(view.pages()));
    receiver.connected(1);
    let mut capture = Capture::new(view.pages() as usize);
    let mut owed = Owed::new(usize::MAX);
    let mut copy = None;
    let (mut before, mut most) = (0, 0);
    for epoch in 1..=EPOCHS {
        let mut writer = FrameWriter::new(Vec::new(), 1, 1);
        if copy.is_none() {
            let begun = copy.insert(FullCopy::begin(&mut encoder, 1, &view, &mut writer).unwrap());
            while !begun.step(&mut encoder, &view, 4096, &mut writer).unwrap().is_complete() {}
        }
        let pages = (EPOCH_BYTES / PAGE_SIZE as u64) as PageIndex;
        capture.reset();
        (capture.epoch, capture.stamp_us) = (epoch, epoch);
        for page in 0..pages {
            // Ever other pages, so that no base of a delta is found, nor the same page again.
            let page = page + (epoch as PageIndex * pages) % (view.pages() - pages);
            view.write_page(page, &noise_page(epoch << 32 | u64::from(page)));
            capture.pages.push(page);
        }
        capture.copy_pages(&view).unwrap();
        owed.begin(epoch).unwrap();
        let spare = owed.spare();
        owed.keep(encoder.encode(&capture, spare, &mut writer).unwrap().checkpoint).unwrap();
        writer.flush().unwrap();
        let bytes = writer.into_inner();
        most = most.max(feed(&mut receiver, &bytes));
        owed.ack(epoch).unwrap();
        if epoch == 1 {
            // The primary's part is there from now on: what is captured, what is encoded, the bytes on their way.
            before = most;
        }
    }
    let (held, epoch) = (most - before, EPOCH_BYTES);
    // What waits, and what is kept for the next ones; the one being received; and a margin for the allocator.
    let bound = 2 * BACKLOG_BYTES_MAX as u64 + epoch + 32 * MIB;
    assert!(held <= bound, "{} MiB, documented are {}", held / MIB, bound / MIB);
    assert!(held >= BACKLOG_BYTES_MAX as u64 / 2, "nothing waited: this shows nothing, {} MiB", held / MIB);
}
