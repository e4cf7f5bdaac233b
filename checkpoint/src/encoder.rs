//! The encoder turns captures into frames. It remembers the last sent copy of each page, and keeps the encoded payloads
//! so that they can be sent again. One encoder serves one VM on its primary; a pairing begins with a full copy (see
//! [`crate::copy`]).
//!
//! The stream of a pairing is one chain: each delta is against the copy that was *sent* last, acked or not. That is
//! right because the backup takes epochs in order and without gaps, or not at all.

use crate::arena::Capture;
use crate::digest::{Chain, Changes};
use crate::page::{Encoding, Page, PageCodec, RECORD_MAX, ZERO_PAGE, same, zero_run};
use crate::scrub::Sample;
use crate::shadow::Shadow;
use crate::wire::frame::NoSink;
use crate::wire::message::{CopyBegin, EpochBegin, EpochEnd, LogEnd};
use crate::wire::{FrameError, FrameType, Message, SharedPayload, WireSink};
use ft_ram::PageIndex;
use ft_ram::layout::PAGE_SIZE;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Batches of records are sent when another record might take them beyond this.
pub const BATCH_BYTES: usize = 256 << 10;
/// A message's payload is too small to be worth keeping for another piece.
const SPARE_BYTES_MIN: usize = 4096;
/// Most bytes of log in an epoch.
pub const LOG_BYTES_MAX: usize = 64 << 20;
/// Most bytes of machine state in a checkpoint.
pub const STATE_BYTES_MAX: usize = 16 << 20;

/// Why a capture cannot be encoded. The encoder is as before.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// No full copy was begun.
    #[error("no pairing: a full copy has to come first")]
    NoPairing,
    /// The epochs of a pairing have no gaps.
    #[error("epoch {epoch} does not follow epoch {last}")]
    Epoch {
        /// The capture's.
        epoch: u64,
        /// The one encoded before.
        last: u64,
    },
    /// The dirty set is not a set in order, or not one of this memory.
    #[error("dirty page {page} at place {at} is out of order or outside the memory of {pages} pages")]
    Pages {
        /// The page.
        page: PageIndex,
        /// Its place in the capture.
        at: usize,
        /// The memory's size.
        pages: PageIndex,
    },
    /// The arena does not hold the pages.
    #[error("the capture lists {listed} pages, but holds {held}")]
    Count {
        /// Page numbers.
        listed: usize,
        /// Page copies.
        held: usize,
    },
    /// More state than any machine has.
    #[error("the machine state has {0} bytes, at most {STATE_BYTES_MAX} are allowed")]
    State(usize),
    /// More log than an epoch takes.
    #[error("the epoch's log has {0} bytes, at most {LOG_BYTES_MAX} are allowed")]
    Log(usize),
}

/// What an epoch, or a piece of a copy, came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeStats {
    /// Pages by encoding, in the order of [`Encoding::ALL`].
    pub pages: [u64; Encoding::COUNT],
    /// Bytes of pages and state before encoding.
    pub bytes_in: u64,
    /// Bytes of payload after encoding.
    pub bytes_out: u64,
    /// Time spent, including waiting for the sink.
    pub elapsed: Duration,
}

impl EncodeStats {
    /// Pages in all.
    pub fn total_pages(&self) -> u64 {
        self.pages.iter().sum()
    }
}

/// A checkpoint as it is sent: payloads that are framed at the moment of sending. Each is a piece of its own, so that a
/// connection's queue and this can hold the same bytes.
#[derive(Debug, Default)]
pub struct EncodedCheckpoint {
    epoch: u64,
    bytes: usize,
    frames: Vec<(FrameType, SharedPayload)>,
    /// Changes of disks that were sent ahead of the next one.
    ahead: Vec<SharedPayload>,
    /// Bytes of those that were sent ahead of this one.
    ahead_bytes: usize,
    /// Pieces of the checkpoint that was here before, for those of the next.
    spares: Vec<Vec<u8>>,
}

impl EncodedCheckpoint {
    /// Its epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Bytes of payload.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of it that were sent ahead, as changes of disks.
    pub fn ahead_bytes(&self) -> usize {
        self.ahead_bytes
    }

    /// These changes of disks belong to the next checkpoint that is encoded into this, and were sent ahead of it.
    pub fn ahead(&mut self, changes: Vec<SharedPayload>) {
        self.ahead = changes;
    }

    /// Sends it (again) and flushes.
    pub fn send(&self, out: &mut impl WireSink) -> Result<(), FrameError> {
        for (kind, payload) in &self.frames {
            out.shared(*kind, self.epoch, payload)?;
        }
        out.flush()
    }

    fn restart(&mut self, epoch: u64) {
        (self.epoch, self.bytes) = (epoch, 0);
        self.ahead_bytes = self.ahead.iter().map(|change| change.len()).sum();
        let mut frames = std::mem::take(&mut self.frames);
        // A piece that a connection has yet to send is that connection's.
        for piece in frames.drain(..).filter_map(|(_, payload)| Arc::into_inner(payload)) {
            self.keep_spare(piece);
        }
        for change in std::mem::take(&mut self.ahead) {
            self.bytes += change.len();
            frames.push((FrameType::Disk, change));
        }
        self.frames = frames;
    }

    fn spare(&mut self) -> Vec<u8> {
        self.spares.pop().unwrap_or_default()
    }

    fn keep_spare(&mut self, mut piece: Vec<u8>) {
        if piece.capacity() >= SPARE_BYTES_MIN {
            piece.clear();
            self.spares.push(piece);
        }
    }
}

/// An encoded epoch.
#[derive(Debug)]
pub struct Encoded {
    /// To be kept until it is acked.
    pub checkpoint: EncodedCheckpoint,
    /// What it came to.
    pub stats: EncodeStats,
    /// Whether it went out. After a failure it was encoded all the same: it is owed, and goes out after a reconnect.
    pub sent: Result<(), FrameError>,
}

/// A piece of a full copy.
pub(crate) enum CopyPiece<'p> {
    /// A page and its content.
    Page(PageIndex, &'p Page),
    /// A page that the backup has already, with this content.
    Kept(PageIndex, &'p Page),
    /// Zero pages, none of them sent before.
    Zeroes(Range<PageIndex>),
}

/// See the module.
pub struct Encoder {
    shadow: Shadow,
    codec: PageCodec,
    last_state: Vec<u8>,
    ram_pages: PageIndex,
    chain: Option<EpochChain>,
}

struct EpochChain {
    nonce: u64,
    last_epoch: Option<u64>,
    chain: Chain,
    changes: Changes,
}

impl Encoder {
    /// An encoder for a memory of `ram_pages`, remembering at most `shadow_bytes` of last-sent pages.
    pub fn new(ram_pages: PageIndex, shadow_bytes: usize) -> Self {
        Self {
            shadow: Shadow::new(ram_pages, shadow_bytes),
            codec: PageCodec::new(),
            last_state: Vec::new(),
            ram_pages,
            chain: None,
        }
    }

    /// The pairing being sent.
    pub fn pairing(&self) -> Option<u64> {
        self.chain.as_ref().map(|pairing| pairing.nonce)
    }

    /// Bytes of last-sent pages remembered.
    pub fn shadow_bytes(&self) -> usize {
        self.shadow.bytes()
    }

    /// Starts a pairing: nothing is known to be held by the backup any more.
    pub(crate) fn begin_copy(&mut self, pairing: u64, out: &mut impl WireSink) -> Result<(), FrameError> {
        self.shadow.clear();
        self.last_state.clear();
        self.chain = Some(EpochChain {
            nonce: pairing,
            last_epoch: None,
            chain: Chain::new(pairing),
            changes: Changes::default(),
        });
        Message::CopyBegin(CopyBegin { pairing, total_pages: self.ram_pages }).write(0, out)
    }

    /// Sends pieces of a copy. After an error the pairing is of no more use: part of it may never have gone out.
    pub(crate) fn copy_pieces<'p>(
        &mut self,
        pieces: impl Iterator<Item = CopyPiece<'p>>,
        out: &mut impl WireSink,
        stats: &mut EncodeStats,
    ) -> Result<(), CopyError> {
        let started = Instant::now();
        let mut batch = Vec::with_capacity(BATCH_BYTES);
        for piece in pieces {
            if batch.len() + RECORD_MAX > BATCH_BYTES {
                stats.bytes_out += batch.len() as u64;
                let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH_BYTES));
                out.shared(FrameType::CopyPages, 0, &Arc::new(full))?;
            }
            match piece {
                CopyPiece::Page(index, page) => self.page(index, page, &mut batch, stats),
                CopyPiece::Kept(index, page) => self.kept(index, page, &mut batch, stats),
                CopyPiece::Zeroes(run) => self.zero_run(run, &mut batch, stats),
            }
        }
        if !batch.is_empty() {
            stats.bytes_out += batch.len() as u64;
            out.shared(FrameType::CopyPages, 0, &Arc::new(batch))?;
        }
        stats.elapsed += started.elapsed();
        Ok(())
    }

    /// A change of a disk is sent, in this payload (see [`crate::wire::disk`]). It belongs to the epoch that is encoded
    /// next, whose checkpoint keeps it ([`EncodedCheckpoint::ahead`]).
    pub fn change(&mut self, payload: &[u8]) {
        if let Some(pairing) = &mut self.chain {
            pairing.changes.add(payload);
        }
    }

    /// Encodes an epoch into `reuse` (see [`crate::owed::Owed::spare`]), sending each piece as soon as it is complete.
    /// An error means that nothing was sent and nothing has changed.
    pub fn encode(
        &mut self,
        capture: &Capture,
        reuse: EncodedCheckpoint,
        out: &mut impl WireSink,
    ) -> Result<Encoded, EncodeError> {
        let started = Instant::now();
        self.check(capture)?;
        let pairing = self.chain.as_mut().ok_or(EncodeError::NoPairing)?;
        pairing.last_epoch = Some(capture.epoch);
        let pairing = pairing.nonce;

        let mut pieces = Pieces::new(reuse, capture.epoch, out);
        let mut stats = EncodeStats { bytes_in: capture.state.len() as u64, ..EncodeStats::default() };
        pieces.message(&Message::EpochBegin(EpochBegin {
            pairing,
            pages: capture.pages.len() as u32,
            state_bytes: capture.state.len() as u32,
        }));
        for (slot, &index) in capture.pages.iter().enumerate() {
            pieces.make_room(FrameType::Pages);
            self.page(index, capture.arena.page(slot), &mut pieces.open, &mut stats);
        }
        pieces.cut(FrameType::Pages);
        self.state(&capture.state, &mut pieces);
        pieces.cut(FrameType::State);

        let digest = self.chain.as_mut().map_or(0, |pairing| {
            pairing.chain.changes(std::mem::take(&mut pairing.changes));
            pairing.chain.epoch(capture.epoch, &capture.state);
            pairing.chain.value()
        });
        let sample = |sample: &Sample| sample.as_captured(|page| capture.content(page));
        let samples = capture.samples.iter().map(sample).collect();
        pieces.message(&Message::EpochEnd(EpochEnd { digest, stamp_us: capture.stamp_us, samples }));
        let (checkpoint, sent) = pieces.finish();
        stats.bytes_out = checkpoint.bytes as u64;
        stats.elapsed = started.elapsed();
        Ok(Encoded { checkpoint, stats, sent })
    }

    /// Encodes an epoch of the log into `reuse`. It is sent as a whole, once it is kept. An error means that nothing
    /// has changed.
    pub fn encode_log(
        &mut self,
        epoch: u64,
        log: &[u8],
        stamp_us: u64,
        reuse: EncodedCheckpoint,
    ) -> Result<EncodedCheckpoint, EncodeError> {
        self.check_epoch(epoch)?;
        if log.len() > LOG_BYTES_MAX {
            return Err(EncodeError::Log(log.len()));
        }
        let pairing = self.chain.as_mut().ok_or(EncodeError::NoPairing)?;
        pairing.last_epoch = Some(epoch);
        pairing.chain.log(epoch, log);
        if self.shadow.bytes() > 0 {
            // No page follows a log.
            self.shadow = Shadow::new(self.ram_pages, 0);
        }
        let mut nowhere = NoSink;
        let mut pieces = Pieces::new(reuse, epoch, &mut nowhere);
        let mut parts = log.chunks(BATCH_BYTES).peekable();
        while let Some(part) = parts.next_if(|part| part.len() == BATCH_BYTES) {
            pieces.message(&Message::Log(part));
        }
        let end = LogEnd { digest: pairing.chain.value(), stamp_us };
        pieces.message(&Message::LogEnd(end, parts.next().unwrap_or_default()));
        Ok(pieces.finish().0)
    }

    fn check_epoch(&self, epoch: u64) -> Result<(), EncodeError> {
        let pairing = self.chain.as_ref().ok_or(EncodeError::NoPairing)?;
        let last = pairing.last_epoch.unwrap_or(epoch.saturating_sub(1));
        if epoch == 0 || last.checked_add(1) != Some(epoch) {
            return Err(EncodeError::Epoch { epoch, last });
        }
        Ok(())
    }

    fn check(&self, capture: &Capture) -> Result<(), EncodeError> {
        self.check_epoch(capture.epoch)?;
        let (listed, held) = (capture.pages.len(), capture.arena.len());
        if listed != held {
            return Err(EncodeError::Count { listed, held });
        }
        if capture.state.len() > STATE_BYTES_MAX {
            return Err(EncodeError::State(capture.state.len()));
        }
        let mut at_least = 0;
        for (at, &page) in capture.pages.iter().enumerate() {
            if page < at_least || page >= self.ram_pages {
                return Err(EncodeError::Pages { page, at, pages: self.ram_pages });
            }
            at_least = page + 1;
        }
        Ok(())
    }

    fn page(&mut self, index: PageIndex, page: &Page, out: &mut Vec<u8>, stats: &mut EncodeStats) {
        let base = self.shadow.get(index);
        let known = base.is_some();
        let encoding = self.codec.encode(index, page, base, out);
        if !known && encoding != Encoding::Zero {
            self.shadow.insert(index, page);
        }
        if let Some(pairing) = &mut self.chain {
            pairing.chain.page(index, page);
        }
        stats.pages[encoding as usize] += 1;
        stats.bytes_in += PAGE_SIZE as u64;
    }

    /// A page that the backup has already, which was never sent before: from now on it counts as sent.
    fn kept(&mut self, index: PageIndex, page: &Page, out: &mut Vec<u8>, stats: &mut EncodeStats) {
        same(out, index);
        self.shadow.insert(index, page);
        if let Some(pairing) = &mut self.chain {
            pairing.chain.page(index, page);
        }
        stats.pages[Encoding::Same as usize] += 1;
        stats.bytes_in += PAGE_SIZE as u64;
    }

    /// Zero pages that were never sent before: nothing is remembered of them.
    fn zero_run(&mut self, run: Range<PageIndex>, out: &mut Vec<u8>, stats: &mut EncodeStats) {
        let pages = run.end - run.start;
        zero_run(out, run.start, pages);
        if let Some(pairing) = &mut self.chain {
            match pages {
                1 => pairing.chain.page(run.start, &ZERO_PAGE),
                _ => pairing.chain.zero_run(run.start, pages),
            }
        }
        stats.pages[Encoding::Zero as usize] += u64::from(pages);
        stats.bytes_in += u64::from(pages) * PAGE_SIZE as u64;
    }

    /// The state goes in blocks of a page, through the same encodings, against the state sent before.
    fn state(&mut self, state: &[u8], pieces: &mut Pieces<'_, impl WireSink>) {
        let known = self.last_state.len();
        self.last_state.resize(state.len().next_multiple_of(PAGE_SIZE), 0);
        for (index, chunk) in state.chunks(PAGE_SIZE).enumerate() {
            pieces.make_room(FrameType::State);
            let mut block = ZERO_PAGE;
            block[..chunk.len()].copy_from_slice(chunk);
            let last = &mut self.last_state.as_chunks_mut::<PAGE_SIZE>().0[index];
            let base = if index * PAGE_SIZE < known { Some(&mut *last) } else { None };
            let fresh = base.is_none();
            self.codec.encode(index as PageIndex, &block, base, &mut pieces.open);
            if fresh {
                last.copy_from_slice(&block);
            }
        }
    }
}

/// Why a piece of a copy failed. The pairing has to be begun again.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// It could not be sent.
    #[error(transparent)]
    Send(#[from] FrameError),
    /// A page outside the memory was asked for.
    #[error("page {page} is outside the memory of {pages} pages")]
    Page {
        /// The page.
        page: PageIndex,
        /// The memory's size.
        pages: PageIndex,
    },
}

/// A checkpoint under construction: each finished piece is offered to the sink at once. After the sink's first failure
/// it is only built.
struct Pieces<'s, S> {
    checkpoint: EncodedCheckpoint,
    /// The piece that grows.
    open: Vec<u8>,
    out: &'s mut S,
    sent: Result<(), FrameError>,
}

impl<'s, S: WireSink> Pieces<'s, S> {
    fn new(mut checkpoint: EncodedCheckpoint, epoch: u64, out: &'s mut S) -> Self {
        checkpoint.restart(epoch);
        let open = checkpoint.spare();
        Self { checkpoint, open, out, sent: Ok(()) }
    }

    /// Ends the piece if another record might make it too long.
    fn make_room(&mut self, kind: FrameType) {
        if self.open.len() + RECORD_MAX > BATCH_BYTES {
            self.cut(kind);
        }
    }

    /// Ends the piece, if it is not empty.
    fn cut(&mut self, kind: FrameType) {
        if self.open.is_empty() {
            return;
        }
        let piece = std::mem::replace(&mut self.open, self.checkpoint.spare());
        self.add(kind, piece);
    }

    /// Adds a piece of its own; the one that grows has ended.
    fn message(&mut self, message: &Message<'_>) {
        let mut piece = Vec::new();
        match message.write(self.checkpoint.epoch, &mut Collect(&mut piece)) {
            Ok(()) => self.add(message.kind(), piece),
            Err(e) => self.sent = Err(e),
        }
    }

    fn add(&mut self, kind: FrameType, piece: Vec<u8>) {
        self.checkpoint.bytes += piece.len();
        let piece = Arc::new(piece);
        if self.sent.is_ok() {
            self.sent = self.out.shared(kind, self.checkpoint.epoch, &piece);
        }
        self.checkpoint.frames.push((kind, piece));
    }

    fn finish(mut self) -> (EncodedCheckpoint, Result<(), FrameError>) {
        if self.sent.is_ok() {
            self.sent = self.out.flush();
        }
        self.checkpoint.keep_spare(self.open);
        (self.checkpoint, self.sent)
    }
}

/// Collects a message's payload.
struct Collect<'b>(&'b mut Vec<u8>);

impl WireSink for Collect<'_> {
    fn frame(&mut self, _: FrameType, _: u64, payload: &[u8]) -> Result<(), FrameError> {
        self.0.extend_from_slice(payload);
        Ok(())
    }
    fn flush(&mut self) -> Result<(), FrameError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::FullCopy;
    use ft_ram::GuestRam;

    /// A connection's queue.
    #[derive(Default)]
    struct Queue(Vec<SharedPayload>);

    impl WireSink for Queue {
        fn frame(&mut self, kind: FrameType, _: u64, _: &[u8]) -> Result<(), FrameError> {
            panic!("{kind:?} would be copied into the queue");
        }
        fn shared(&mut self, _: FrameType, _: u64, payload: &SharedPayload) -> Result<(), FrameError> {
            self.0.push(Arc::clone(payload));
            Ok(())
        }
        fn flush(&mut self) -> Result<(), FrameError> {
            Ok(())
        }
    }

    /// Bytes that no encoding makes shorter.
    fn random(bytes: usize) -> Vec<u8> {
        let mut x = 1u64;
        let next = std::iter::repeat_with(move || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 56) as u8
        });
        next.take(bytes).collect()
    }

    #[test]
    fn what_is_owed_and_what_is_queued_are_the_same_bytes_and_are_used_again() {
        let view = GuestRam::new(16 << 20).unwrap().view().unwrap();
        let mut encoder = Encoder::new(view.pages(), 0);
        FullCopy::begin(&mut encoder, 1, &view, &mut NoSink).unwrap();
        let mut capture = Capture::new(1);
        (capture.epoch, capture.state) = (1, random(3 * PAGE_SIZE));

        let (mut queue, mut again) = (Queue::default(), Queue::default());
        let encoded = encoder.encode(&capture, EncodedCheckpoint::default(), &mut queue).unwrap();
        encoded.sent.unwrap();
        let mut checkpoint = encoded.checkpoint;
        checkpoint.send(&mut again).unwrap();
        assert_eq!(queue.0.len(), 3, "begin, state, end");
        assert!(queue.0.iter().zip(&again.0).all(|(one, other)| Arc::ptr_eq(one, other)));
        assert_eq!(checkpoint.bytes(), queue.0.iter().map(|piece| piece.len()).sum::<usize>());

        drop((queue, again));
        checkpoint.restart(2);
        assert!(checkpoint.spares.iter().any(|piece| piece.capacity() >= 3 * PAGE_SIZE), "the state's piece");
    }
}
