//! The file of this node's record of the cell, in the state directory: which cell, and the highest generation that this
//! node has acted on. It is written aside, flushed and renamed, so that a crash leaves the old one or the new one.

use crate::role::NodeRecord;
use ft_arbiter::{CellId, lines};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const FORMAT_VERSION: u32 = 1;
/// No record is longer.
const RECORD_BYTES_MAX: usize = 1024;
const NAME: &str = "cell-record";

/// What the file holds, as JSON on its first line; the second line is `crc32c` of the first.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    vm: String,
    cell: CellId,
    generation: u64,
}

/// Why there is no record to go by.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is damaged. It is never taken for a missing one.
    #[error(
        "{}: this node's record of the arbiter's cell is damaged: {reason}; make sure that the peer has the VM or that \
         it is over, then remove that file",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// The file.
#[derive(Clone, Debug)]
pub struct RecordFile {
    directory: PathBuf,
    vm: String,
}

impl RecordFile {
    /// The record of `vm` in its state directory.
    #[must_use]
    pub fn new(state_dir: &Path, vm: &str) -> Self {
        Self { directory: state_dir.to_owned(), vm: vm.to_owned() }
    }

    fn path(&self) -> PathBuf {
        self.directory.join(NAME)
    }

    fn failed(&self) -> impl Fn(io::Error) -> RecordError {
        |source| RecordError::Io { path: self.path(), source }
    }

    /// What is recorded; none if nothing ever was.
    pub fn load(&self) -> Result<Option<NodeRecord>, RecordError> {
        let bytes = match fs::read(self.path()) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed()(error)),
        };
        let damaged = |reason| RecordError::Damaged { path: self.path(), reason };
        let content = decode(&bytes).map_err(damaged)?;
        if content.vm != self.vm {
            return Err(damaged(format!("it is of VM '{}', not of '{}'", content.vm, self.vm)));
        }
        Ok(Some(NodeRecord { cell: content.cell, generation: content.generation }))
    }

    /// Makes this the record, durably.
    pub fn save(&self, record: NodeRecord) -> Result<(), RecordError> {
        let NodeRecord { cell, generation } = record;
        let content = Content { version: FORMAT_VERSION, vm: self.vm.clone(), cell, generation };
        let aside = self.directory.join(format!("{NAME}.new"));
        File::create(&aside)
            .and_then(|mut file| file.write_all(&encode(&content)).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&aside, self.path()))
            .and_then(|()| File::open(&self.directory)?.sync_all())
            .map_err(self.failed())
    }

    /// Forgets what is recorded: the next cell is taken as it is.
    pub fn forget(&self) -> Result<(), RecordError> {
        match fs::remove_file(self.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => File::open(&self.directory).and_then(|directory| directory.sync_all()),
        }
        .map_err(self.failed())
    }
}

fn encode(content: &Content) -> Vec<u8> {
    lines::write(content)
}

fn decode(bytes: &[u8]) -> Result<Content, String> {
    let (version, json) = lines::read(bytes, RECORD_BYTES_MAX).map_err(|error| error.to_string())?;
    if version != FORMAT_VERSION {
        return Err(format!("it has format version {version}, this ftd knows {FORMAT_VERSION}"));
    }
    serde_json::from_str(json).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn content(cell: u64, generation: u64) -> Content {
        Content { version: FORMAT_VERSION, vm: "web".into(), cell: CellId(cell), generation }
    }

    #[test]
    fn what_was_saved_last_is_loaded_until_it_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let file = RecordFile::new(directory.path(), "web");
        assert_eq!(file.load().unwrap(), None);
        for generation in [3, 4] {
            let record = NodeRecord { cell: CellId(7), generation };
            file.save(record).unwrap();
            assert_eq!(file.load().unwrap(), Some(record));
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left aside");
        let other = RecordFile::new(directory.path(), "db").load().unwrap_err();
        assert!(other.to_string().contains("of VM 'web', not of 'db'"), "{other}");
        file.forget().unwrap();
        file.forget().unwrap();
        assert_eq!(file.load().unwrap(), None);
    }

    #[test]
    fn a_torn_record_is_no_missing_one() {
        let directory = tempfile::tempdir().unwrap();
        let file = RecordFile::new(directory.path(), "web");
        let whole = encode(&content(7, 4));
        for bytes in 0..whole.len() {
            fs::write(file.path(), &whole[..bytes]).unwrap();
            assert!(matches!(file.load(), Err(RecordError::Damaged { .. })), "{bytes}");
        }
    }

    proptest! {
        #[test]
        fn any_flipped_byte_is_noticed(at in any::<prop::sample::Index>(), flip in 1..=255u8) {
            let mut bytes = encode(&content(7, 4));
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn what_is_written_is_read(cell in any::<u64>(), generation in any::<u64>()) {
            let read = decode(&encode(&content(cell, generation))).unwrap();
            prop_assert_eq!((read.cell, read.generation), (CellId(cell), generation));
        }
    }
}
