//! Reading a saved image.

use super::{END_BYTES, ImageLabel, LABEL_BYTES_MAX, MAGIC, PIECE_BYTES_MAX, SavedError, VERSION};
use crate::encoder::STATE_BYTES_MAX;
use crate::page::{Records, ZERO_PAGE};
use ft_ram::{PageIndex, RamView};
use ft_vm::spec::MachineSpec;
use std::io::{self, Read};

/// Reads an image from its beginning: first what it says of itself, then the rest.
pub struct ImageReader<R> {
    input: Hashed<R>,
    label: ImageLabel,
}

impl<R: Read> ImageReader<R> {
    /// Reads whose state it is. Buffer the input.
    pub fn open(input: R) -> Result<Self, SavedError> {
        let mut input = Hashed { input, hasher: blake3::Hasher::new(), bytes: 0 };
        let mut start = vec![0; MAGIC.len()];
        match input.fill(&mut start, "head") {
            Ok(()) if start == MAGIC => {}
            Ok(()) | Err(SavedError::CutOff { .. }) => return Err(SavedError::Magic),
            Err(e) => return Err(e),
        }
        let theirs = input.word("head")?;
        if theirs != VERSION {
            return Err(SavedError::Version { theirs });
        }
        let head = input.piece("head", LABEL_BYTES_MAX)?;
        start.extend_from_slice(&theirs.to_le_bytes());
        start.extend_from_slice(&(head.len() as u32).to_le_bytes());
        start.extend_from_slice(&head);
        if input.word("head")? != crc32c::crc32c(&start) {
            return Err(SavedError::Damaged { what: "head" });
        }
        let malformed = |e: postcard::Error| SavedError::Malformed(e.to_string());
        let label: ImageLabel = postcard::from_bytes(&head).map_err(malformed)?;
        if postcard::to_stdvec(&label).map_err(malformed)? != head {
            return Err(SavedError::Malformed("it has extra bytes".into()));
        }
        Ok(Self { input, label })
    }

    /// Whose state it is.
    pub fn label(&self) -> &ImageLabel {
        &self.label
    }

    /// Fills the fresh (zero) memory of a machine of this kind, and gives the state that belongs to it. Memory is
    /// filled before the digest is known to be right: after an error it is of no use.
    pub fn take(mut self, ours: &MachineSpec, ram: &RamView) -> Result<Vec<u8>, SavedError> {
        if self.label.spec != *ours || u64::from(ram.pages()) * 4096 != ours.ram_bytes {
            let (theirs, ours) = (Box::new(self.label.spec), Box::new(ours.clone()));
            return Err(SavedError::Machine { theirs, ours });
        }
        let state = self.input.piece("state", STATE_BYTES_MAX)?;
        let mut next = 0;
        loop {
            let records = self.input.piece("memory", PIECE_BYTES_MAX)?;
            if records.is_empty() {
                break;
            }
            next = put_pages(&records, next, ram)?;
        }
        let found = self.input.bytes + END_BYTES as u64;
        let mut length = [0; 8];
        self.input.fill(&mut length, "end")?;
        let digest = self.input.hasher.finalize();
        let mut stated = [0; blake3::OUT_LEN];
        self.input.fill(&mut stated, "end")?;
        if digest != blake3::Hash::from_bytes(stated) {
            return Err(SavedError::Damaged { what: "content" });
        }
        let stated = u64::from_le_bytes(length);
        if stated != found {
            return Err(SavedError::Length { stated, found });
        }
        match self.input.fill(&mut [0], "end") {
            Err(SavedError::CutOff { .. }) => Ok(state),
            Ok(()) => Err(SavedError::BehindEnd),
            Err(e) => Err(e),
        }
    }
}

/// Puts a piece's pages into memory. Pages ascend over all pieces: `next` is the lowest that may come, and the lowest
/// that may follow is given back.
fn put_pages(records: &[u8], mut next: PageIndex, ram: &RamView) -> Result<PageIndex, SavedError> {
    let mut page = ZERO_PAGE;
    for record in Records::new(records) {
        let record = record?;
        if record.page < next || record.page >= ram.pages() || record.needs_base() {
            return Err(SavedError::Page { page: record.page, pages: ram.pages() });
        }
        record.decode(&mut page)?;
        ram.write_page(record.page, &page);
        next = record.page + 1;
    }
    Ok(next)
}

/// What is read, and its digest so far.
struct Hashed<R> {
    input: R,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl<R: Read> Hashed<R> {
    fn fill(&mut self, into: &mut [u8], what: &'static str) -> Result<(), SavedError> {
        self.input.read_exact(into).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => SavedError::CutOff { what },
            _ => SavedError::Io(e),
        })?;
        self.hasher.update(into);
        self.bytes += into.len() as u64;
        Ok(())
    }

    fn word(&mut self, what: &'static str) -> Result<u32, SavedError> {
        let mut word = [0; 4];
        self.fill(&mut word, what)?;
        Ok(u32::from_le_bytes(word))
    }

    /// A piece with its length before it, which is bounded before it is believed.
    fn piece(&mut self, what: &'static str, most: usize) -> Result<Vec<u8>, SavedError> {
        let length = self.word(what)?;
        if length as usize > most {
            return Err(SavedError::TooLong { what, length: length.into(), most: most as u64 });
        }
        let mut piece = vec![0; length as usize];
        self.fill(&mut piece, what)?;
        Ok(piece)
    }
}
