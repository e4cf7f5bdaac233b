//! Where bytes are kept: a file of a fixed size, or memory that behaves like one in tests.

use std::fs::File;
use std::io::{self, Error, ErrorKind};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

/// Storage of a fixed size. What was written is there for the next read; only what was flushed survives a loss of
/// power. A write that was not flushed may survive in part, sector by sector.
pub trait Medium {
    /// Its size in bytes.
    fn bytes(&self) -> io::Result<u64>;
    /// Fills `into` from `offset` on.
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
    /// Writes all of `from` at `offset`.
    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()>;
    /// Makes durable what was written before.
    fn sync(&self) -> io::Result<()>;
}

/// The file's size does not change; it was allocated when it was made.
impl Medium for File {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(into, offset)
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.write_all_at(from, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

impl<M: Medium + ?Sized> Medium for &M {
    fn bytes(&self) -> io::Result<u64> {
        (**self).bytes()
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        (**self).read(offset, into)
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        (**self).write(offset, from)
    }

    fn sync(&self) -> io::Result<()> {
        (**self).sync()
    }
}

impl<M: Medium + ?Sized> Medium for Arc<M> {
    fn bytes(&self) -> io::Result<u64> {
        (**self).bytes()
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        (**self).read(offset, into)
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        (**self).write(offset, from)
    }

    fn sync(&self) -> io::Result<()> {
        (**self).sync()
    }
}

/// Memory, for examples and tests. Nothing is lost in it.
#[derive(Debug)]
pub struct MemoryMedium(Mutex<Vec<u8>>);

impl MemoryMedium {
    /// So many zeroed bytes.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self(Mutex::new(vec![0; bytes]))
    }

    fn with<T>(&self, offset: u64, bytes: usize, on: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
        let mut all = self.0.lock().map_err(|_| Error::other("a thread panicked over it"))?;
        let from = usize::try_from(offset).map_err(|_| ErrorKind::UnexpectedEof)?;
        let range = from.checked_add(bytes).and_then(|end| all.get_mut(from..end));
        Ok(on(range.ok_or(ErrorKind::UnexpectedEof)?))
    }
}

impl Medium for MemoryMedium {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.lock().map_err(|_| Error::other("a thread panicked over it"))?.len() as u64)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.with(offset, into.len(), |bytes| into.copy_from_slice(bytes))
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.with(offset, from.len(), |bytes| bytes.copy_from_slice(from))
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
