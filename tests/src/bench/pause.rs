//! The pause against the number of dirty pages: a real machine, whose guest dirties exactly that number, goes through
//! epochs in the daemon's order (stop, harvest, copy, capture, resume). Then comes the work after the pause: encoding,
//! then sending over a TCP connection until the backup's receiver has sealed it.

use super::Spread;
use anyhow::{Context, ensure};
use ft_checkpoint::arena::Capture;
use ft_checkpoint::copy::FullCopy;
use ft_checkpoint::encoder::{EncodedCheckpoint, Encoder};
use ft_checkpoint::receiver::{Limits, Received, Receiver};
use ft_checkpoint::wire::frame::NoSink;
use ft_checkpoint::wire::{FrameReader, FrameWriter};
use ft_ram::GuestRam;
use ft_vm::spec::EngineKind;
use ft_vm::testing::{boot_code, machine, spec, sweep};
use serde::Serialize;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Enough for 32,768 pages and the guest itself.
pub const RAM_MIB: u64 = 256;
/// Memory for last-sent pages: all of them, as in the daemon.
const SHADOW_BYTES: usize = 256 << 20;
/// The guest runs at least this long, and at least for two whole rounds.
const EPOCH: Duration = Duration::from_millis(5);
/// Epochs that are not counted: buffers grow in them.
const EPOCHS_BEFORE: usize = 3;
const EPOCHS_MIN: usize = 11;
const EPOCHS_MAX: usize = 400;

/// One line of the table; times in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PauseFigures {
    /// The guest's memory. It has touched what it dirties, and its own.
    pub ram_mib: u64,
    /// Pages that the guest was told to dirty.
    pub pages: u64,
    /// Pages in a checkpoint (median): those, and the guest's counter.
    pub dirty_pages: usize,
    /// Epochs measured.
    pub epochs: usize,
    /// Whole pause.
    pub pause_us: Spread,
    /// Until every vCPU stood still.
    pub stop_us: Spread,
    /// Reading and clearing the dirty log.
    pub harvest_us: Spread,
    /// Machine state.
    pub capture_us: Spread,
    /// Copying the pages aside.
    pub copy_us: Spread,
    /// Letting the vCPUs go.
    pub resume_us: Spread,
    /// After the pause: encoding.
    pub encode_us: Spread,
    /// After that: from the first byte sent until the backup has decoded, verified and sealed it and said so.
    pub send_us: Spread,
    /// Bytes sent for an epoch (median).
    pub sent_bytes: usize,
}

/// Measures with `pages` dirty pages an epoch in a guest of `ram_mib`, for about `time`.
pub fn measure(ram_mib: u64, pages: u64, time: Duration) -> anyhow::Result<PauseFigures> {
    let ram_bytes = ram_mib << 20;
    let (mut machine, ram, _) = machine(&spec(EngineKind::Kvm, 1, ram_bytes));
    boot_code(&mut machine, &sweep::code());
    sweep::set_pages(&ram, pages);
    let view = ram.view()?;
    let (mut backup, receiving) = Backup::start(ram_bytes)?;
    let mut encoder = Encoder::new(ram.pages(), SHADOW_BYTES);
    machine.start_dirty_log()?;
    FullCopy::begin(&mut encoder, 1, &view, &mut backup.writer)
        .and_then(|mut copy| copy.step(&mut encoder, &view, u32::MAX, &mut backup.writer))?;
    machine.resume()?;

    let mut capture = Capture::new(ram.pages() as usize);
    let mut reuse = EncodedCheckpoint::default();
    let mut times: [Vec<Duration>; 8] = Default::default();
    let (mut dirty_pages, mut sent_bytes) = (Vec::new(), Vec::new());
    let end = Instant::now() + time;
    let mut epoch = 0;
    while times[0].len() < EPOCHS_MAX && (times[0].len() < EPOCHS_MIN || Instant::now() < end) {
        let before = sweep::rounds(&ram);
        std::thread::sleep(EPOCH);
        // A whole round since the last checkpoint.
        while sweep::rounds(&ram) < before + 2 {
            std::thread::sleep(Duration::from_micros(200));
        }
        epoch += 1;
        capture.reset();
        let started = Instant::now();
        machine.pause()?;
        let stopped = Instant::now();
        machine.harvest(&mut capture.pages)?;
        let harvested = Instant::now();
        capture.copy_pages_with(&view, |work| machine.offer_while_parked(&work))?;
        let copied = Instant::now();
        machine.capture(&mut capture.state)?;
        let captured = Instant::now();
        machine.resume()?;
        let resumed = Instant::now();
        capture.epoch = epoch;
        ensure!(capture.pages.len() as u64 > pages, "the guest dirtied only {} pages", capture.pages.len());

        let encoded = encoder.encode(&capture, reuse, &mut NoSink)?;
        let sending = Instant::now();
        encoded.checkpoint.send(&mut backup.writer)?;
        backup.wait_for_ack()?;
        let parts = [
            resumed - started,
            stopped - started,
            harvested - stopped,
            captured - copied,
            copied - harvested,
            resumed - captured,
            encoded.stats.elapsed,
            sending.elapsed(),
        ];
        reuse = encoded.checkpoint;
        if epoch as usize > EPOCHS_BEFORE {
            times.iter_mut().zip(parts).for_each(|(times, part)| times.push(part));
            dirty_pages.push(capture.pages.len());
            sent_bytes.push(reuse.bytes());
        }
    }
    drop(backup);
    receiving.join().map_err(|_| anyhow::anyhow!("the receiver has crashed"))??;

    let epochs = dirty_pages.len();
    let median = |mut numbers: Vec<usize>| {
        numbers.sort_unstable();
        numbers[epochs / 2]
    };
    let [pause_us, stop_us, harvest_us, capture_us, copy_us, resume_us, encode_us, send_us] =
        times.map(|mut times| Spread::of(&mut times));
    Ok(PauseFigures {
        ram_mib,
        pages,
        dirty_pages: median(dirty_pages),
        epochs,
        pause_us,
        stop_us,
        harvest_us,
        capture_us,
        copy_us,
        resume_us,
        encode_us,
        send_us,
        sent_bytes: median(sent_bytes),
    })
}

/// The primary's end of a connection to a backup in this process, which answers each sealed checkpoint with a byte.
struct Backup {
    writer: FrameWriter<TcpStream>,
}

impl Backup {
    fn start(ram_bytes: u64) -> anyhow::Result<(Self, JoinHandle<anyhow::Result<()>>)> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        stream.set_nodelay(true)?;
        let (theirs, _) = listener.accept()?;
        theirs.set_nodelay(true)?;
        let thread = std::thread::spawn(move || receive(theirs, ram_bytes));
        Ok((Self { writer: FrameWriter::new(stream, 1, 0) }, thread))
    }

    fn wait_for_ack(&mut self) -> anyhow::Result<()> {
        let mut stream = self.writer.get_ref();
        stream.read_exact(&mut [0]).context("the backup answers")
    }
}

fn receive(stream: TcpStream, ram_bytes: u64) -> anyhow::Result<()> {
    let ram = GuestRam::new(ram_bytes)?;
    let mut receiver = Receiver::new(ram.view()?, Limits::of_memory(ram.pages()));
    let applier = receiver.applier();
    let applying = std::thread::spawn(move || applier.run());
    let mut answers = stream.try_clone()?;
    let mut frames = FrameReader::new(stream);
    // Ends with the connection.
    while let Ok(frame) = frames.read() {
        if let Received::Sealed { .. } = receiver.on_frame(&frame)? {
            answers.write_all(&[1])?;
        }
    }
    drop(receiver);
    applying.join().map_err(|_| anyhow::anyhow!("the applier has crashed"))
}
