//! One order on its way: which system call is next, and what its result means. Both engines carry out what it says, so
//! that short transfers and fallbacks are here alone.

use crate::SECTOR_BYTES;
use crate::buffer::Buffer;
use crate::io::{Io, IoDone, IoFault, IoOrder, Persist, Unmap};
use std::io;

/// Zeroes are written in pieces of so many bytes where the file system cannot make them.
const ZEROES_BYTES: u64 = 1 << 20;
/// Failures of one call that mean "again", in a row.
const AGAIN_MAX: u32 = 1000;

/// A system call on the image. The pointers are into the task's buffers, which stay where they are until it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Read { into: *mut u8, bytes: u32, offset: u64 },
    Write { from: *const u8, bytes: u32, offset: u64 },
    Allocate { mode: i32, offset: u64, bytes: u64 },
    Sync,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Bytes are read or written.
    Transfer,
    /// The file system is asked for it.
    Allocate,
    /// Zeroes are written, since the file system cannot make them.
    Zeroes,
    /// What was done is made durable.
    Sync,
}

pub(super) struct Task {
    tag: u64,
    io: Io,
    step: Step,
    /// Bytes of it that are done.
    done: u64,
    again: u32,
    zeroes: Option<Buffer>,
}

impl Task {
    pub(super) fn new(order: IoOrder) -> Self {
        let IoOrder { tag, io } = order;
        let step = match &io {
            Io::Read { .. } | Io::Write { .. } => Step::Transfer,
            Io::Flush => Step::Sync,
            Io::WriteZeroes { .. } => Step::Allocate,
        };
        Self { tag, io, step, done: 0, again: 0, zeroes: None }
    }

    /// Offset and length.
    fn range(&self) -> (u64, u64) {
        match &self.io {
            Io::Read { offset, into: buffer } | Io::Write { offset, from: buffer, .. } => {
                (*offset, buffer.len() as u64)
            }
            Io::WriteZeroes { offset, bytes, .. } => (*offset, *bytes),
            Io::Flush => (0, 0),
        }
    }

    /// The next call; none when it is done.
    pub(super) fn call(&mut self) -> Option<Call> {
        let (offset, bytes) = self.range();
        let done = self.done;
        let (at, left) = (offset + done, bytes - done);
        match self.step {
            Step::Sync => return Some(Call::Sync),
            _ if left == 0 => return None,
            Step::Allocate => {
                let mode = match &self.io {
                    Io::WriteZeroes { unmap: Unmap::Keep, .. } => libc::FALLOC_FL_ZERO_RANGE,
                    _ => libc::FALLOC_FL_PUNCH_HOLE,
                };
                return Some(Call::Allocate {
                    mode: mode | libc::FALLOC_FL_KEEP_SIZE,
                    offset: at,
                    bytes: left,
                });
            }
            Step::Zeroes => {
                let now = left.min(ZEROES_BYTES) as u32;
                let zeroes = self.zeroes.get_or_insert_with(|| Buffer::zeroed(now as usize));
                return Some(Call::Write { from: zeroes.at(0), bytes: now, offset: at });
            }
            Step::Transfer => {}
        }
        // The kernel transfers less than 2 GiB at once.
        let now = left.min(1 << 30) as u32;
        match &mut self.io {
            Io::Read { into, .. } => {
                Some(Call::Read { into: into.at(done as usize), bytes: now, offset: at })
            }
            Io::Write { from, .. } => {
                Some(Call::Write { from: from.at(done as usize), bytes: now, offset: at })
            }
            _ => None,
        }
    }

    /// Takes the result of the last call: bytes, or a negative error number. None when there is more to call.
    pub(super) fn advance(&mut self, result: i64) -> Option<Result<(), IoFault>> {
        if result < 0 {
            return self.failed((-result) as i32);
        }
        self.again = 0;
        match self.step {
            Step::Sync => return Some(Ok(())),
            Step::Allocate => self.done = self.range().1,
            Step::Transfer | Step::Zeroes => {
                // O_DIRECT goes on at a whole sector.
                let whole = result as u64 / SECTOR_BYTES * SECTOR_BYTES;
                if whole == 0 {
                    return Some(Err(self.nothing()));
                }
                self.done += whole;
            }
        }
        let (_, bytes) = self.range();
        if self.done < bytes {
            return None;
        }
        if let Io::Write { persist: Persist::Now, .. } = self.io {
            self.step = Step::Sync;
            return None;
        }
        Some(Ok(()))
    }

    fn failed(&mut self, errno: i32) -> Option<Result<(), IoFault>> {
        match (errno, self.step) {
            (libc::EINTR | libc::EAGAIN, _) if self.again < AGAIN_MAX => {
                self.again += 1;
                None
            }
            // Some file systems cannot zero in place, some devices not at all.
            (libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS, Step::Allocate) => {
                self.step = Step::Zeroes;
                None
            }
            _ => Some(Err(self.fault(io::Error::from_raw_os_error(errno)))),
        }
    }

    /// A call that transferred less than a sector.
    fn nothing(&self) -> IoFault {
        let (kind, why) = match self.io {
            Io::Read { .. } => (io::ErrorKind::UnexpectedEof, "the image ends there: it was made shorter"),
            _ => (io::ErrorKind::WriteZero, "nothing was written"),
        };
        self.fault(io::Error::new(kind, why))
    }

    fn fault(&self, source: io::Error) -> IoFault {
        let what = match (&self.io, self.step) {
            (Io::Flush, _) | (_, Step::Sync) => "flush a disk's image",
            (Io::Read { .. }, _) => "read a disk's image",
            (Io::Write { .. }, _) => "write a disk's image",
            (Io::WriteZeroes { .. }, _) => "zero a part of a disk's image",
        };
        IoFault { what, offset: self.range().0 + self.done, source }
    }

    /// What is told of it. No call is under way.
    pub(super) fn done(self, result: Result<(), IoFault>) -> IoDone {
        IoDone { tag: self.tag, io: self.io, result }
    }
}
