//! Orders on an image over a base: before a write what it touches is copied up, a read takes from each what it has.

use super::threads::carry_out_on_image;
use super::{Asynchronous, IoQueue};
use crate::buffer::Buffer;
use crate::image::RawImage;
use crate::io::{Io, IoDone, IoFault, IoOrder};
use crate::overlay::{Fill, Overlay};
use std::ops::Range;
use std::sync::Arc;

/// Two engines: one for what the image alone can do, one that knows the base.
pub(super) struct Layered {
    pub(super) image: Arc<RawImage>,
    pub(super) plain: Asynchronous,
    pub(super) with_base: Asynchronous,
}

impl IoQueue for Layered {
    fn submit(&mut self, order: IoOrder) -> Option<IoDone> {
        let is_plain = match (self.image.overlay(), range(&order.io)) {
            (Some(overlay), Some(bytes)) => overlay.covers(&bytes),
            _ => true,
        };
        let engine = if is_plain { &mut self.plain } else { &mut self.with_base };
        engine.submit(order)
    }

    fn nudge(&self) -> bool {
        self.plain.nudge()
    }
}

/// What it reads or changes, in bytes of the disk.
fn range(io: &Io) -> Option<Range<u64>> {
    let (offset, bytes) = match io {
        Io::Read { offset, into: buffer } | Io::Write { offset, from: buffer, .. } => {
            (*offset, buffer.len() as u64)
        }
        Io::WriteZeroes { offset, bytes, .. } => (*offset, *bytes),
        Io::Flush => return None,
    };
    Some(offset..offset + bytes)
}

/// On this thread.
pub(super) fn carry_out(image: &RawImage, overlay: &Overlay, order: IoOrder) -> IoDone {
    let IoOrder { tag, mut io } = order;
    let bytes = range(&io).unwrap_or_default();
    let done = match &mut io {
        Io::Flush => Ok(()),
        Io::Read { .. } if overlay.covers(&bytes) => Ok(()),
        Io::Read { into, .. } => {
            let result = read(image, overlay, &bytes, into);
            return IoDone { tag, io, result };
        }
        Io::Write { .. } => overlay.copy_up(&bytes, Fill::Base),
        Io::WriteZeroes { .. } => overlay.copy_up(&bytes, Fill::Zeroes),
    };
    match done {
        Ok(()) => carry_out_on_image(image, IoOrder { tag, io }),
        Err(source) => {
            let what = "copy a part of a disk's base up";
            IoDone { tag, io, result: Err(IoFault { what, offset: bytes.start, source }) }
        }
    }
}

/// From each what it has.
fn read(image: &RawImage, overlay: &Overlay, bytes: &Range<u64>, into: &mut Buffer) -> Result<(), IoFault> {
    for (piece, is_present) in overlay.pieces(bytes) {
        let content = &mut into[(piece.start - bytes.start) as usize..(piece.end - bytes.start) as usize];
        let offset = piece.start;
        if !is_present {
            let fault = |source| IoFault { what: "read a disk's base", offset, source };
            overlay.read_base(content, offset).map_err(fault)?;
            continue;
        }
        // A buffer of its own is aligned as the image wants it.
        let io = Io::Read { offset, into: Buffer::zeroed(content.len()) };
        let IoDone { io, result, .. } = carry_out_on_image(image, IoOrder { tag: 0, io });
        result?;
        if let Io::Read { into, .. } = io {
            content.copy_from_slice(&into);
        }
    }
    Ok(())
}
