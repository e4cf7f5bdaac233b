//! A primary and a backup in one process, joined by byte vectors.

use ft_checkpoint::arena::Capture;
use ft_checkpoint::bench_support::{Noise, noise_page, structured_page};
use ft_checkpoint::copy::FullCopy;
use ft_checkpoint::encoder::{EncodedCheckpoint, Encoder};
use ft_checkpoint::owed::Owed;
use ft_checkpoint::page::{Page, ZERO_PAGE};
use ft_checkpoint::receiver::{Limits, ReceiveError, Received, Receiver};
use ft_checkpoint::scrub::{Sample, Scrubber};
use ft_checkpoint::wire::message::Mode;
use ft_checkpoint::wire::{FrameError, FrameReader, FrameType, FrameWriter, WireSink};
use ft_ram::{GuestRam, PageIndex, RamView};
use std::collections::BTreeSet;

pub const RAM_BYTES: u64 = 16 << 20;
pub const VM: u64 = 77;
pub const GENERATION: u64 = 3;

pub struct Primary {
    pub view: RamView,
    pub encoder: Encoder,
    pub owed: Owed,
    pub capture: Capture,
    pub epoch: u64,
    pub dirty: BTreeSet<PageIndex>,
    pub state: Vec<u8>,
    pub noise: Noise,
    pub scrubber: Scrubber,
    pub samples: Vec<Sample>,
}

impl Primary {
    pub fn new(seed: u64, shadow_bytes: usize) -> Self {
        let view = GuestRam::new(RAM_BYTES).unwrap().view().unwrap();
        Self {
            encoder: Encoder::new(view.pages(), shadow_bytes),
            owed: Owed::new(usize::MAX),
            capture: Capture::new(view.pages() as usize),
            epoch: 0,
            dirty: BTreeSet::new(),
            state: vec![1; 9000],
            noise: Noise::new(seed),
            scrubber: Scrubber::new(view.pages()),
            samples: Vec::new(),
            view,
        }
    }

    pub fn write(&mut self, page: PageIndex, content: &Page) {
        self.view.write_page(page, content);
        self.dirty.insert(page);
    }

    /// The guest does something: pages of every kind, out of a working set.
    pub fn run(&mut self, writes: usize, working_set: usize) {
        // As the daemon does: early in an epoch, so that the guest may write the page afterwards.
        self.scrubber.sample(&self.view, &mut self.samples);
        for _ in 0..writes {
            let page = (self.noise.below(working_set) * 7 % 4096) as PageIndex;
            let mut content = ZERO_PAGE;
            self.view.read_page(page, &mut content);
            let seed = self.noise.next_u64();
            match self.noise.below(8) {
                0 => content = ZERO_PAGE,
                1 => content = noise_page(seed),
                2 => content = structured_page(seed),
                3 => {}
                _ => (0..1 + self.noise.below(20)).for_each(|_| {
                    content[self.noise.below(4096)] = self.noise.next_u64() as u8;
                }),
            }
            self.write(page, &content);
        }
        match self.noise.below(6) {
            0 => self.state.resize(1 + self.noise.below(20_000), 7),
            1 => self.state.clear(),
            _ => {}
        }
        for _ in 0..10 {
            let at = self.noise.below(self.state.len() + 1);
            if let Some(byte) = self.state.get_mut(at) {
                *byte = self.noise.next_u64() as u8;
            }
        }
    }

    /// The whole RAM and the first checkpoint, as one connection's bytes.
    pub fn protect(&mut self, pairing: u64) -> Vec<u8> {
        stream(|out| {
            self.copy(pairing, out);
            self.checkpoint(out).unwrap();
        })
    }

    fn copy(&mut self, pairing: u64, out: &mut impl WireSink) {
        self.owed.reset();
        let mut copy = FullCopy::begin(&mut self.encoder, pairing, &self.view, out).unwrap();
        while !copy.step(&mut self.encoder, &self.view, 1000, out).unwrap().is_complete() {}
        self.run(20, 4096);
        let dirty: Vec<_> = std::mem::take(&mut self.dirty).into_iter().collect();
        copy.resend(&mut self.encoder, &self.view, &dirty, out).unwrap();
        // What was dirty is not dirty any more: only an epoch's own samples count.
        self.samples.clear();
    }

    /// Pauses, captures, encodes, keeps.
    pub fn checkpoint(&mut self, out: &mut impl WireSink) -> Result<(), FrameError> {
        let spare = self.owed.spare();
        self.checkpoint_into(spare, out)
    }

    /// As [`Self::checkpoint`], into what may have changes of disks ahead of it.
    pub fn checkpoint_into(
        &mut self,
        reuse: EncodedCheckpoint,
        out: &mut impl WireSink,
    ) -> Result<(), FrameError> {
        self.epoch += 1;
        self.capture.reset();
        self.capture.epoch = self.epoch;
        self.capture.stamp_us = self.epoch * 1000;
        self.capture.pages.extend(std::mem::take(&mut self.dirty));
        self.capture.state.extend(&self.state);
        self.capture.copy_pages(&self.view).unwrap();
        std::mem::swap(&mut self.capture.samples, &mut self.samples);
        self.owed.begin(self.epoch).unwrap();
        let encoded = self.encoder.encode(&self.capture, reuse, out).unwrap();
        self.owed.keep(encoded.checkpoint).unwrap();
        encoded.sent
    }
}

impl Primary {
    /// Encodes an epoch of the log, keeps it, sends it.
    pub fn log(&mut self, log: &[u8], out: &mut impl WireSink) {
        self.epoch += 1;
        self.owed.begin(self.epoch).unwrap();
        let spare = self.owed.spare();
        let encoded = self.encoder.encode_log(self.epoch, log, self.epoch * 1000, spare).unwrap();
        encoded.send(out).unwrap();
        self.owed.keep(encoded).unwrap();
    }
}

pub fn writer() -> FrameWriter<Vec<u8>> {
    FrameWriter::new(Vec::new(), VM, GENERATION)
}

/// The bytes of one connection on which `send` is sent.
pub fn stream(send: impl FnOnce(&mut FrameWriter<Vec<u8>>)) -> Vec<u8> {
    let mut writer = writer();
    send(&mut writer);
    writer.flush().unwrap();
    writer.into_inner()
}

#[derive(Debug)]
pub enum FeedError {
    Frame(FrameError),
    Receive(ReceiveError),
}

pub struct Backup {
    pub ram: GuestRam,
    pub receiver: Receiver,
    /// The epochs' logs, one after the other.
    pub log: Vec<u8>,
}

impl Backup {
    pub fn new(limits: Limits) -> Self {
        Self::of_mode(limits, Mode::Checkpoint)
    }

    pub fn of_mode(limits: Limits, mode: Mode) -> Self {
        let ram = GuestRam::new(RAM_BYTES).unwrap();
        let receiver = Receiver::of_mode(ram.view().unwrap(), limits, mode);
        Self { ram, receiver, log: Vec::new() }
    }

    pub fn unlimited() -> Self {
        Self::new(Limits::of_memory(4096))
    }

    pub fn held_epoch(&self) -> Option<u64> {
        self.receiver.held().map(|held| held.epoch)
    }

    /// Takes a connection's bytes until they end or are refused; returns what was sealed and how it ended.
    pub fn feed(&mut self, bytes: &[u8]) -> (Vec<u64>, FeedError) {
        let mut reader = FrameReader::new(bytes);
        reader.expect(VM, GENERATION);
        self.receiver.connected(GENERATION);
        let mut sealed = Vec::new();
        loop {
            let frame = match reader.read() {
                Ok(frame) => frame,
                Err(error) => {
                    self.receiver.drop_partial();
                    return (sealed, FeedError::Frame(error));
                }
            };
            match self.receiver.on_frame(&frame) {
                Ok(Received::Sealed { epoch, stamp_us, .. }) => {
                    assert_eq!(stamp_us, epoch * 1000);
                    sealed.push(epoch);
                }
                Ok(Received::SealedLog { epoch, stamp_us, log, .. }) => {
                    assert_eq!(stamp_us, epoch * 1000);
                    sealed.push(epoch);
                    self.log.extend(log);
                }
                Ok(_) => {}
                Err(error) => return (sealed, FeedError::Receive(error)),
            }
        }
    }

    /// As [`Self::feed`], where nothing may go wrong.
    pub fn feed_all(&mut self, bytes: &[u8]) -> Vec<u64> {
        let (sealed, end) = self.feed(bytes);
        assert!(matches!(end, FeedError::Frame(FrameError::Closed)), "{end:?}");
        sealed
    }
}

pub fn assert_same_memory(a: &RamView, b: &RamView, when: &str) {
    let (mut left, mut right) = (ZERO_PAGE, ZERO_PAGE);
    for page in 0..a.pages() {
        a.read_page(page, &mut left);
        b.read_page(page, &mut right);
        assert!(left == right, "page {page} differs {when}");
    }
}

/// Its type, its epoch, and what is in it.
pub type SentFrame = (FrameType, u64, Vec<u8>);

/// A stream's frames, each with its payload, to be meddled with.
pub fn frames(bytes: &[u8]) -> Vec<SentFrame> {
    let mut reader = FrameReader::new(bytes);
    let mut frames = Vec::new();
    while let Ok(frame) = reader.read() {
        frames.push((frame.kind, frame.epoch, frame.payload.to_vec()));
    }
    frames
}
