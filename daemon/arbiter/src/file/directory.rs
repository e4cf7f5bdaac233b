//! The directory of a cell: the few calls that the file arbiter makes on it, and the real directory that serves them.

use super::record::CELL_BYTES_MAX;
use nix::errno::Errno;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Which directory a call concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Folder {
    /// The cell's own.
    Cell,
    /// The directory that holds the cell's. It must be there, so that storage that is not mounted is an error and not
    /// an empty cell.
    Parent,
}

/// A call on the storage. It takes effect as a whole or not at all, but for a crash of the storage itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// Looks whether the directory exists.
    Look(Folder),
    /// Makes the cell's directory.
    Make,
    /// Lists the names in the cell's directory: [`Reply::Names`].
    List,
    /// Reads a file of the cell's directory, at most a byte more than a cell may have: [`Reply::Bytes`].
    Read(String),
    /// Creates a file that was not there, writes its content and flushes it.
    Write(Folder, String, Vec<u8>),
    /// Gives a file a second name, which must not exist: link(2).
    Link {
        /// In which directory.
        folder: Folder,
        /// The name that it has.
        from: String,
        /// The name that it gets.
        to: String,
    },
    /// Compares two names of the cell's directory, whether they are of one file: [`Reply::Same`].
    Compare(String, String),
    /// Flushes the directory: names made or removed before are durable afterwards.
    Sync(Folder),
    /// Removes a name.
    Remove(Folder, String),
    /// Asks how long ago a file of the cell's directory was written: [`Reply::Age`].
    Age(String),
}

/// What a call brings back when it succeeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing but its success.
    Done,
    /// Names, in no order.
    Names(Vec<String>),
    /// Content.
    Bytes(Vec<u8>),
    /// Whether two names are of one file.
    Same(bool),
    /// The time since it was written.
    Age(Duration),
}

/// The answer to a call.
pub type Answer = Result<Reply, Errno>;

/// Storage that holds the directory of a cell.
pub trait Directory {
    /// Carries a call out.
    fn perform(&mut self, call: &Call) -> Answer;
}

/// A directory of a file system that this host has mounted.
#[derive(Debug)]
pub struct MountedDirectory {
    path: PathBuf,
}

impl MountedDirectory {
    /// The cell's directory at `path`, which is absolute.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    fn folder(&self, folder: Folder) -> &Path {
        match folder {
            Folder::Cell => &self.path,
            Folder::Parent => self.path.parent().unwrap_or(Path::new("/")),
        }
    }

    fn try_perform(&self, call: &Call) -> io::Result<Reply> {
        let done = |()| Reply::Done;
        match call {
            Call::Look(folder) => fs::metadata(self.folder(*folder)).map(|_| Reply::Done),
            Call::Make => fs::create_dir(&self.path).map(done),
            Call::List => fs::read_dir(&self.path)?
                // A name that is not UTF-8 is none of ours.
                .filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose())
                .collect::<io::Result<_>>()
                .map(Reply::Names),
            Call::Read(name) => {
                let mut bytes = Vec::new();
                File::open(self.path.join(name))?.take(CELL_BYTES_MAX + 1).read_to_end(&mut bytes)?;
                Ok(Reply::Bytes(bytes))
            }
            Call::Write(folder, name, bytes) => {
                let path = self.folder(*folder).join(name);
                let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
                file.write_all(bytes)?;
                file.sync_all().map(done)
            }
            Call::Link { folder, from, to } => {
                let folder = self.folder(*folder);
                fs::hard_link(folder.join(from), folder.join(to)).map(done)
            }
            Call::Compare(one, other) => {
                let one = fs::symlink_metadata(self.path.join(one))?;
                let other = fs::symlink_metadata(self.path.join(other))?;
                Ok(Reply::Same((one.ino(), one.dev()) == (other.ino(), other.dev())))
            }
            Call::Sync(folder) => File::open(self.folder(*folder))?.sync_all().map(done),
            Call::Remove(folder, name) => fs::remove_file(self.folder(*folder).join(name)).map(done),
            Call::Age(name) => {
                let written = fs::symlink_metadata(self.path.join(name))?.modified()?;
                // A file of the future, by another host's clock, is new.
                Ok(Reply::Age(SystemTime::now().duration_since(written).unwrap_or_default()))
            }
        }
    }
}

impl Directory for MountedDirectory {
    fn perform(&mut self, call: &Call) -> Answer {
        self.try_perform(call).map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }
}
