//! Writing a saved image.

use super::{END_BYTES, ImageLabel, LABEL_BYTES_MAX, MAGIC, PIECE_BYTES, RECORD_BYTES_MAX, VERSION};
use crate::encoder::STATE_BYTES_MAX;
use crate::page::{PageCodec, ZERO_PAGE, is_zero};
use ft_ram::{PageIndex, RamView};
use std::io::{self, Write};
use std::ops::{ControlFlow, Range};

/// Why an image is not written.
#[derive(Debug, thiserror::Error)]
pub enum Unwritten {
    /// The system does not take it.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The state or the head is longer than any.
    #[error("the machine's {0} is longer than an image can hold")]
    TooLong(&'static str),
    /// Nobody wants it any more.
    #[error("called off")]
    CalledOff,
}

/// What an image of this memory takes at most, and the pages of which that is made.
pub fn bytes_max(state: &[u8], ram: &RamView) -> io::Result<(u64, u64)> {
    let mut pages = 0;
    ram.held(|run| {
        pages += u64::from(run.end - run.start);
        Ok::<_, io::Error>(())
    })?;
    let pieces = 4 * (pages * RECORD_BYTES_MAX as u64 / PIECE_BYTES as u64 + 2);
    let rest = (MAGIC.len() + 16 + LABEL_BYTES_MAX + state.len() + END_BYTES) as u64;
    Ok((pages * RECORD_BYTES_MAX as u64 + pieces + rest, pages))
}

/// Writes all of an image. `looked_at` hears how many of the pages that [`bytes_max`] counted are written, after each
/// piece and after the last page, and may call it off. Nothing of the memory is read after the last page was.
pub fn write<W: Write>(
    out: W,
    label: &ImageLabel,
    state: &[u8],
    ram: &RamView,
    mut looked_at: impl FnMut(u64) -> ControlFlow<()>,
) -> Result<W, Unwritten> {
    let head = postcard::to_stdvec(label).map_err(io::Error::other)?;
    if head.len() > LABEL_BYTES_MAX {
        return Err(Unwritten::TooLong("description"));
    }
    if state.len() > STATE_BYTES_MAX {
        return Err(Unwritten::TooLong("state"));
    }
    let mut out = Hashed { out, hasher: blake3::Hasher::new(), bytes: 0 };
    let mut start = Vec::with_capacity(MAGIC.len() + 12 + head.len());
    start.extend_from_slice(&MAGIC);
    start.extend_from_slice(&VERSION.to_le_bytes());
    start.extend_from_slice(&(head.len() as u32).to_le_bytes());
    start.extend_from_slice(&head);
    let crc = crc32c::crc32c(&start);
    start.extend_from_slice(&crc.to_le_bytes());
    out.put(&start)?;
    out.piece(state)?;

    let (mut codec, mut piece, mut page, mut seen) = (PageCodec::new(), Vec::new(), ZERO_PAGE, 0);
    ram.held(|run: Range<PageIndex>| {
        for index in run {
            ram.read_page(index, &mut page);
            seen += 1;
            if !is_zero(&page) {
                codec.encode(index, &page, None, &mut piece);
            }
            if piece.len() >= PIECE_BYTES {
                out.piece(&piece)?;
                piece.clear();
                go_on(looked_at(seen))?;
            }
        }
        Ok::<_, Unwritten>(())
    })?;
    go_on(looked_at(seen))?;
    if !piece.is_empty() {
        out.piece(&piece)?;
    }
    out.piece(&[])?;
    let bytes = out.bytes + END_BYTES as u64;
    out.put(&bytes.to_le_bytes())?;
    let digest = out.hasher.finalize();
    out.out.write_all(digest.as_bytes())?;
    out.out.flush()?;
    Ok(out.out)
}

fn go_on(flow: ControlFlow<()>) -> Result<(), Unwritten> {
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Unwritten::CalledOff),
    }
}

/// What is written, and its digest so far.
struct Hashed<W> {
    out: W,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl<W: Write> Hashed<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// With its length before it.
    fn piece(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.put(&(bytes.len() as u32).to_le_bytes())?;
        self.put(bytes)
    }
}
