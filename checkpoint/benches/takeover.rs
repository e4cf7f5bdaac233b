//! The time from a take-over until the guest may run, against the size of the backlog: once when all of it is applied
//! first, once when it is served lazily. The two cross at `EAGER_PAGES_MAX`.

use ft_checkpoint::arena::Capture;
use ft_checkpoint::bench_support::noise_page;
use ft_checkpoint::copy::FullCopy;
use ft_checkpoint::encoder::{EncodedCheckpoint, Encoder};
use ft_checkpoint::lazy::LazyApply;
use ft_checkpoint::receiver::{Limits, Receiver, SealedImage};
use ft_checkpoint::wire::{FrameReader, FrameWriter, WireSink};
use ft_ram::{GuestRam, PageIndex};
use std::time::{Duration, Instant};

const RAM_BYTES: u64 = 256 << 20;
const ROUNDS: usize = 9;

/// A backup with one unapplied checkpoint of `pages` pages spread over the memory.
fn backlog(pages: PageIndex) -> (GuestRam, SealedImage) {
    let primary = GuestRam::new(RAM_BYTES).unwrap().view().unwrap();
    for page in 0..primary.pages() {
        primary.write_page(page, &[1; 4096]);
    }
    let backup = GuestRam::new(RAM_BYTES).unwrap();
    let mut receiver = Receiver::new(backup.view().unwrap(), Limits::of_memory(primary.pages()));
    let mut encoder = Encoder::new(primary.pages(), 0);
    let mut out = FrameWriter::new(Vec::new(), 1, 0);
    FullCopy::begin(&mut encoder, 1, &primary, &mut out)
        .and_then(|mut copy| copy.step(&mut encoder, &primary, u32::MAX, &mut out))
        .unwrap();
    let mut capture = Capture::new(pages as usize);
    capture.epoch = 1;
    capture.pages = (0..pages).map(|i| i * (primary.pages() / pages)).collect();
    for &page in &capture.pages {
        primary.write_page(page, &noise_page(page.into()));
    }
    capture.copy_pages(&primary).unwrap();
    encoder.encode(&capture, EncodedCheckpoint::default(), &mut out).unwrap().sent.unwrap();
    out.flush().unwrap();
    let bytes = out.into_inner();
    let mut reader = FrameReader::new(&bytes[..]);
    while let Ok(frame) = reader.read() {
        receiver.on_frame(&frame).unwrap();
    }
    (backup, receiver.into_sealed().ok().unwrap())
}

fn median(mut times: Vec<Duration>) -> u128 {
    times.sort_unstable();
    times[times.len() / 2].as_micros()
}

fn main() {
    println!("{:>8} {:>12} {:>14} {:>14}", "pages", "all at once", "start() until", "lazy finished");
    println!("{:>8} {:>12} {:>14} {:>14}", "", "us", "guest runs, us", "us");
    for pages in [16, 128, 256, 512, 513, 1024, 2048, 4096, 16384, 32768] {
        let (mut eager, mut start, mut whole) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let (_ram, mut sealed) = backlog(pages);
            let began = Instant::now();
            sealed.apply_all();
            eager.push(began.elapsed());

            let (ram, sealed) = backlog(pages);
            let began = Instant::now();
            let lazy = LazyApply::start(&ram, &sealed);
            start.push(began.elapsed());
            lazy.finish();
            whole.push(began.elapsed());
        }
        println!("{pages:>8} {:>12} {:>14} {:>14}", median(eager), median(start), median(whole));
    }
}
