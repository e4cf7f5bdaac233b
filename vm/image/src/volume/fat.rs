//! vfat, by the crate `fatfs`.

use super::{FileError, Files, NAMES_MAX, VolumeError};
use crate::disk::Part;
use crate::disk::number::u16_le;
use fatfs::{Dir, FileSystem, FsOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};

/// Whether a vfat begins with this sector.
pub(crate) fn is_vfat(first: &[u8; 512]) -> bool {
    let says_so = &first[54..57] == b"FAT" || &first[82..85] == b"FAT";
    let sector = u16_le(first, 11);
    says_so && u16_le(first, 510) == 0xaa55 && (512..=4096).contains(&sector) && first[13].is_power_of_two()
}

/// A part of the disk as a stream. Nothing is written to it.
struct Stream {
    part: Part,
    at: u64,
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = (self.part.bytes().saturating_sub(self.at)).min(into.len() as u64) as usize;
        self.part.read(self.at.min(self.part.bytes()), &mut into[..length])?;
        self.at += length as u64;
        Ok(length)
    }
}

impl Seek for Stream {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.part.bytes().checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

impl Write for Stream {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) struct FatFiles(FileSystem<Stream>);

impl FatFiles {
    pub(super) fn open(part: &Part) -> Result<Self, VolumeError> {
        let stream = Stream { part: part.clone(), at: 0 };
        let opened = FileSystem::new(stream, FsOptions::new());
        Ok(Self(opened.map_err(|why| VolumeError::Broken { kind: "vfat", why: why.to_string() })?))
    }

    fn directory(&self, path: &str) -> io::Result<Dir<'_, Stream>> {
        match path.trim_matches('/') {
            "" => Ok(self.0.root_dir()),
            path => self.0.root_dir().open_dir(path),
        }
    }
}

fn failed(path: &str) -> impl Fn(io::Error) -> FileError {
    let path = path.to_owned();
    move |error| match error.kind() {
        io::ErrorKind::NotFound => FileError::NotFound(path.clone()),
        _ => FileError::Unreadable { path: path.clone(), why: error.to_string() },
    }
}

impl Files for FatFiles {
    fn kind(&self) -> &'static str {
        "vfat"
    }

    fn uuid(&self) -> String {
        let id = self.0.volume_id();
        format!("{:04x}-{:04x}", id >> 16, id & 0xffff)
    }

    fn label(&self) -> String {
        let in_root = self.0.read_volume_label_from_root_dir().ok().flatten();
        in_root.unwrap_or_else(|| self.0.volume_label()).trim_end().to_owned()
    }

    fn read(&self, path: &str, max: u64) -> Result<Vec<u8>, FileError> {
        let failed = failed(path);
        let mut file = self.0.root_dir().open_file(path.trim_matches('/')).map_err(&failed)?;
        let bytes = file.seek(SeekFrom::End(0)).map_err(&failed)?;
        if bytes > max {
            return Err(FileError::TooLarge { path: path.into(), bytes, max });
        }
        file.seek(SeekFrom::Start(0)).map_err(&failed)?;
        let mut content = vec![0; bytes as usize];
        file.read_exact(&mut content).map_err(&failed)?;
        Ok(content)
    }

    fn list(&self, path: &str) -> Result<Vec<String>, FileError> {
        let directory = self.directory(path).map_err(failed(path))?;
        let mut names = Vec::new();
        for entry in directory.iter().take(NAMES_MAX) {
            names.push(entry.map_err(failed(path))?.file_name());
        }
        names.retain(|name| name != "." && name != "..");
        names.sort();
        Ok(names)
    }

    fn has(&self, path: &str) -> bool {
        let inner = path.trim_matches('/');
        self.directory(path).is_ok() || self.0.root_dir().open_file(inner).is_ok()
    }
}
