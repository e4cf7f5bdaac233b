//! A qcow2 file, read only, as the disk that it holds. The file stands alone: nothing that it names is opened. What it
//! says of itself is judged before any of it is believed (`header`, `audit`); then imago finds and unpacks the
//! clusters. Of a file with snapshots it is the disk's newest state.

mod audit;
mod header;

use header::Header;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Mapping};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};

/// Why a qcow2 file is not read.
#[derive(Debug, thiserror::Error)]
pub enum Qcow2Error {
    /// The host.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Of a version that ftd does not know.
    #[error("it is qcow2 of version {0}, and ftd reads 2 and 3: qemu-img convert -O raw makes a raw file")]
    Version(u32),
    /// It is a part of a disk.
    #[error(
        "it is a part of a disk, over the backing file {name:?}; ftd opens no file because another one names it: if \
         you trust it, qemu-img convert -O raw makes one file of both"
    )]
    Backing {
        /// What it says.
        name: String,
    },
    /// It holds no data.
    #[error(
        "its data is in another file, and ftd opens none because this one names it: if you trust it, qemu-img convert \
         -O raw makes one file of both"
    )]
    ExternalData,
    /// Nobody reads it without a key.
    #[error("it is encrypted ({0}): qemu-img convert -O raw, with its key, makes a raw file")]
    Encrypted(&'static str),
    /// It needs more than ftd knows.
    #[error("it has features that ftd does not know ({0:#x}): qemu-img convert -O raw makes a raw file")]
    Features(u64),
    /// Whoever wrote it did not finish, or says that it is damaged.
    #[error("it was not closed, or is marked as damaged: qemu-img check -r all may mend it")]
    Unclean,
    /// Of a size that no disk has.
    #[error("its disk of {0} bytes is none: a positive multiple of 512")]
    Size(u64),
    /// It says what cannot be.
    #[error("it is damaged: {0}; qemu-img check says more")]
    Damaged(String),
}

/// See the module.
pub struct Qcow2 {
    disk: FormatAccess<imago::file::File>,
    bytes: u64,
}

impl Qcow2 {
    /// Judges an open file, all of its tables. The file stays open, and locked, as long as this is there.
    pub fn open(mut file: File) -> Result<Self, Qcow2Error> {
        let file_bytes = file.seek(SeekFrom::End(0))?;
        let header = Header::read(&file, file_bytes)?;
        audit::audit(&file, file_bytes, &header)?;
        let file = imago::file::File::try_from(file)?;
        let qcow2 = imago::qcow2::Qcow2::<imago::file::File>::builder(file)
            .open(DenyImplicitOpenGate::default())
            .map_err(of_imago)?;
        Ok(Self { disk: FormatAccess::new(qcow2), bytes: header.disk_bytes })
    }

    /// Bytes of the disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where data begins, from this byte on, looking at so many bytes: all before it are zeroes.
    pub fn next_data(&self, offset: u64, look_at: u64) -> Result<u64, Qcow2Error> {
        let end = offset.saturating_add(look_at);
        let mut at = offset;
        while at < end {
            match self.disk.get_mapping(at, end - at).map_err(of_imago)? {
                (Mapping::Zero { .. }, bytes) => at += bytes,
                (Mapping::Eof { .. }, _) => return Ok(end),
                _ => return Ok(at),
            }
        }
        Ok(end)
    }

    /// Fills `into` with what the disk has from this byte on.
    pub fn read(&self, into: &mut [u8], offset: u64) -> Result<(), Qcow2Error> {
        self.disk.read(into, offset).map_err(of_imago)
    }
}

/// What is no answer of the host's is said of the file.
fn of_imago(error: io::Error) -> Qcow2Error {
    match error.raw_os_error() {
        Some(_) => Qcow2Error::Io(error),
        None => Qcow2Error::Damaged(error.to_string()),
    }
}

#[cfg(test)]
pub(super) mod tests;
