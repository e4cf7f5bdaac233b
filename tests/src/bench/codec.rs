//! The codec's throughput in bytes of dirty memory a second of one core: by kind of page, and for the mix. It is
//! measured in the thread's CPU time, so that other work on the machine takes nothing from the figure.

use super::Spread;
use ft_checkpoint::arena::Capture;
use ft_checkpoint::bench_support::{ContentKind, mixed_pages, page_pair};
use ft_checkpoint::copy::FullCopy;
use ft_checkpoint::encoder::{EncodedCheckpoint, Encoder};
use ft_checkpoint::page::Page;
use ft_checkpoint::receiver::{Limits, Receiver};
use ft_checkpoint::wire::{FrameReader, FrameWriter};
use ft_ram::layout::PAGE_SIZE;
use ft_ram::{GuestRam, PageIndex};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use std::time::{Duration, Instant};

const PAGES: usize = 4096;
const BYTES: usize = PAGES * PAGE_SIZE;

/// Contents last sent, and contents now.
type Pages = (Vec<Page>, Vec<Page>);

/// One line of the table.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CodecFigures {
    /// ContentKind of page.
    pub kind: &'static str,
    /// Primary: pages to frames.
    pub encode_gb_per_s: f64,
    /// Backup: frames to a sealed checkpoint.
    pub decode_gb_per_s: f64,
    /// Bytes in for each byte out.
    pub ratio: f64,
}

/// Each kind of page, the mix first, for about `time` each.
pub fn measure(time: Duration) -> anyhow::Result<Vec<CodecFigures>> {
    let of = |kind| (0..PAGES as u64).map(|seed| page_pair(kind, seed)).unzip();
    let kinds: [(&str, Pages); 6] = [
        ("mixed", mixed_pages(PAGES, 1)),
        ("zero", of(ContentKind::Zero)),
        ("same", of(ContentKind::Same)),
        ("small change", of(ContentKind::SmallDelta)),
        ("new, structured", of(ContentKind::Structured)),
        ("new, random", of(ContentKind::Random)),
    ];
    kinds.into_iter().map(|(kind, (before, now))| measure_kind(kind, &before, &now, time)).collect()
}

/// Epochs go to and fro between the contents; those that lead from `before` to `now` are measured.
fn measure_kind(
    kind: &'static str,
    before: &[Page],
    now: &[Page],
    time: Duration,
) -> anyhow::Result<CodecFigures> {
    let ram = GuestRam::new(BYTES as u64)?;
    let view = ram.view()?;
    let backup_ram = GuestRam::new(BYTES as u64)?;
    let mut receiver = Receiver::new(backup_ram.view()?, Limits::of_memory(PAGES as PageIndex));
    let applier = receiver.applier();
    let mut encoder = Encoder::new(view.pages(), BYTES);

    let mut capture = Capture::new(PAGES);
    capture.pages = (0..PAGES as PageIndex).collect();
    capture.state = vec![7; 16 << 10];
    let fill =
        |contents: &[Page]| (0..).zip(contents).for_each(|(page, content)| view.write_page(page, content));
    fill(before);
    let mut wire = FrameWriter::new(Vec::new(), 1, 0);
    FullCopy::begin(&mut encoder, 1, &view, &mut wire)
        .and_then(|mut copy| copy.step(&mut encoder, &view, u32::MAX, &mut wire))?;
    let mut bytes = wire.into_inner();

    let (mut encode, mut decode, mut sent) = (Vec::new(), Vec::new(), 0);
    let mut reuse = EncodedCheckpoint::default();
    let end = Instant::now() + time;
    while capture.epoch < 8 || Instant::now() < end {
        let mut reader = FrameReader::new(&bytes[..]);
        let started = cpu_time()?;
        while let Ok(frame) = reader.read() {
            receiver.on_frame(&frame)?;
        }
        let decoded = cpu_time()? - started;
        while applier.apply_next().is_some() {}
        // The first is the full copy; the next fill the buffers.
        if capture.epoch > 2 && capture.epoch % 2 == 1 {
            decode.push(decoded);
        }

        capture.epoch += 1;
        let forth = capture.epoch % 2 == 1;
        fill(if forth { now } else { before });
        capture.copy_pages(&view)?;
        bytes.clear();
        let mut wire = FrameWriter::new(std::mem::take(&mut bytes), 1, 0);
        let started = cpu_time()?;
        let encoded = encoder.encode(&capture, reuse, &mut wire)?;
        if capture.epoch > 2 && forth {
            encode.push(cpu_time()? - started);
            sent = encoded.checkpoint.bytes();
        }
        encoded.sent?;
        reuse = encoded.checkpoint;
        bytes = wire.into_inner();
    }
    let gb_per_s = |times: &mut [Duration]| BYTES as f64 / 1e3 / Spread::of(times).p50;
    Ok(CodecFigures {
        kind,
        encode_gb_per_s: gb_per_s(&mut encode),
        decode_gb_per_s: gb_per_s(&mut decode),
        ratio: (BYTES + capture.state.len()) as f64 / sent as f64,
    })
}

fn cpu_time() -> anyhow::Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?))
}
