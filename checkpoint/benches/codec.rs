//! Throughput of the pipeline's stages, in bytes of dirty memory: encode (by kind of page, and mixed), decode
//! (receive), frames, and the copy in the pause. The benches measure the thread's CPU time, so a figure is that of one
//! core even on a busy machine.

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ft_checkpoint::arena::{Capture, PageArena};
use ft_checkpoint::bench_support::{ContentKind, mixed_pages, page_pair};
use ft_checkpoint::copy::FullCopy;
use ft_checkpoint::encoder::{EncodedCheckpoint, Encoder};
use ft_checkpoint::page::Page;
use ft_checkpoint::receiver::{Limits, Receiver};
use ft_checkpoint::wire::frame::NoSink;
use ft_checkpoint::wire::{FrameReader, FrameType, FrameWriter, WireSink};
use ft_ram::{GuestRam, PageIndex, RamView};
use std::hint::black_box;
use std::time::Duration;

/// CPU time of this thread.
struct CpuTime;

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
        Duration::from(now)
    }
    fn end(&self, start: Duration) -> Duration {
        self.start() - start
    }
    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }
    fn zero(&self) -> Duration {
        Duration::ZERO
    }
    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }
    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

const PAGES: usize = 4096;
const PAGE_BYTES: u64 = 4096;

/// An encoder whose backup holds `before`, and two captures that go to and fro between `before` and `now`.
struct Bench {
    encoder: Encoder,
    captures: [Capture; 2],
    epoch: u64,
    copy: Vec<u8>,
}

impl Bench {
    fn new((before, now): Pages) -> Self {
        let view = GuestRam::new((PAGES as u64) * PAGE_BYTES).unwrap().view().unwrap();
        let mut encoder = Encoder::new(view.pages(), PAGES * 4096);
        let pages: Vec<PageIndex> = (0..PAGES as PageIndex).collect();
        let capture = |contents: &[Page]| {
            let mut capture = Capture::new(PAGES);
            for (page, content) in contents.iter().enumerate() {
                view.write_page(page as PageIndex, content);
            }
            capture.pages.clone_from(&pages);
            capture.copy_pages(&view).unwrap();
            capture.state = vec![7; 16 << 10];
            capture
        };
        let captures = [capture(&now), capture(&before)];
        let mut out = FrameWriter::new(Vec::new(), 1, 0);
        let mut copy = FullCopy::begin(&mut encoder, 1, &view, &mut out).unwrap();
        copy.step(&mut encoder, &view, u32::MAX, &mut out).unwrap();
        Self { encoder, captures, epoch: 0, copy: out.into_inner() }
    }

    fn encode(&mut self, reuse: EncodedCheckpoint, out: &mut impl WireSink) -> EncodedCheckpoint {
        let capture = &mut self.captures[(self.epoch % 2) as usize];
        self.epoch += 1;
        capture.epoch = self.epoch;
        self.encoder.encode(capture, reuse, out).unwrap().checkpoint
    }
}

/// Copies last sent, and contents now.
type Pages = (Vec<Page>, Vec<Page>);

fn kinds() -> Vec<(&'static str, Pages)> {
    let of = |kind| (0..PAGES as u64).map(|seed| page_pair(kind, seed)).unzip();
    vec![
        ("mixed", mixed_pages(PAGES, 1)),
        ("zero", of(ContentKind::Zero)),
        ("same", of(ContentKind::Same)),
        ("delta", of(ContentKind::SmallDelta)),
        ("structured", of(ContentKind::Structured)),
        ("random", of(ContentKind::Random)),
    ]
}

/// Only every second epoch goes from the copies to the contents that the kind names; that one is measured.
fn encode(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("encode");
    group.throughput(Throughput::Bytes(PAGES as u64 * PAGE_BYTES));
    group.sample_size(20);
    for (name, pages) in kinds() {
        let mut bench = Bench::new(pages);
        let spare = std::cell::Cell::new(None);
        let bench = std::cell::RefCell::new(&mut bench);
        group.bench_function(name, |b| {
            b.iter_batched(
                || {
                    let mut bench = bench.borrow_mut();
                    let mut reuse: EncodedCheckpoint = spare.take().unwrap_or_default();
                    if bench.epoch % 2 == 1 {
                        reuse = bench.encode(reuse, &mut NoSink);
                    }
                    reuse
                },
                |reuse| spare.set(Some(bench.borrow_mut().encode(reuse, &mut NoSink))),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn receive(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("receive");
    group.throughput(Throughput::Bytes(PAGES as u64 * PAGE_BYTES));
    group.sample_size(20);
    for (name, pages) in kinds() {
        let mut bench = Bench::new(pages);
        let ram = GuestRam::new(PAGES as u64 * PAGE_BYTES).unwrap();
        let mut receiver = Receiver::new(ram.view().unwrap(), Limits::of_memory(PAGES as PageIndex));
        let applier = receiver.applier();
        let take = |receiver: &mut Receiver, bytes: &[u8]| {
            let mut reader = FrameReader::new(bytes);
            while let Ok(frame) = reader.read() {
                receiver.on_frame(&frame).unwrap();
            }
        };
        let copy = std::mem::take(&mut bench.copy);
        take(&mut receiver, &copy);
        let receiver = std::cell::RefCell::new(receiver);
        let next = |bench: &mut Bench| {
            let mut out = FrameWriter::new(Vec::new(), 1, 0);
            bench.encode(EncodedCheckpoint::default(), &mut out);
            out.into_inner()
        };
        group.bench_function(name, |b| {
            b.iter_batched(
                || {
                    while applier.apply_next().is_some() {}
                    if bench.epoch % 2 == 1 {
                        take(&mut receiver.borrow_mut(), &next(&mut bench));
                        applier.apply_next();
                    }
                    next(&mut bench)
                },
                |bytes| take(&mut receiver.borrow_mut(), &bytes),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn frames(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("frames");
    let payload = vec![0x5a; 256 << 10];
    let mut bytes = Vec::new();
    let mut writer = FrameWriter::new(&mut bytes, 1, 1);
    writer.frame(FrameType::Pages, 1, &payload).unwrap();
    writer.flush().unwrap();
    group.throughput(Throughput::Bytes(payload.len() as u64));
    let mut writer = FrameWriter::new(std::io::sink(), 1, 1);
    group.bench_function("write", |b| b.iter(|| writer.frame(FrameType::Pages, 1, &payload).unwrap()));
    group.bench_function("read", |b| {
        b.iter_batched(
            || FrameReader::new(&bytes[..]),
            |mut reader| black_box(reader.read().unwrap().payload.len()),
            BatchSize::SmallInput,
        )
    });
    group.finish();
}

fn arena(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("arena_copy");
    let ram = GuestRam::new(512 << 20).unwrap();
    let view: RamView = ram.view().unwrap();
    for page in 0..view.pages() {
        view.write_page(page, &[page as u8; 4096]);
    }
    for count in [64, 1000, 8192, 32768] {
        let mut arena = PageArena::new(count);
        arena.reserve(count).unwrap();
        group.throughput(Throughput::Bytes(count as u64 * PAGE_BYTES));
        let step = view.pages() / count as PageIndex;
        let sparse: Vec<PageIndex> = (0..count as PageIndex).map(|i| i * step).collect();
        let dense: Vec<PageIndex> = (0..count as PageIndex).collect();
        for (name, pages) in [("sparse", sparse), ("dense", dense)] {
            group.bench_with_input(BenchmarkId::new(name, count), &pages, |b, pages| {
                b.iter(|| {
                    arena.clear();
                    arena.copy_pages(&view, pages).unwrap();
                });
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime);
    targets = encode, receive, frames, arena
}
criterion_main!(benches);
