//! Reading a recording.

use super::section::{Found, Kind, SectionReader, read_up_to};
use super::{About, End, MAGIC, RecordingError, VERSION, fold};
use crate::page::{Records, ZERO_PAGE};
use ft_ram::{PageIndex, RamView};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::Read;

/// Reads a recording from its beginning: first [`Reader::open`], then [`Reader::start`], then [`Reader::more`] until it
/// says that there is no more.
pub struct Reader<R> {
    sections: SectionReader<R>,
    about: About,
}

/// What follows the start.
#[derive(Debug, PartialEq, Eq)]
pub enum NextSection {
    /// Batches of the log, to be fed to the machine. What is in them has not been looked at.
    Log(Vec<u8>),
    /// The end. Nothing is missing.
    End(End),
    /// The recording ends without an end: its recorder died, or the file was cut.
    CutOff {
        /// Behind the last whole section.
        offset: u64,
    },
}

impl<R: Read> Reader<R> {
    /// Reads what the recording says of itself. Buffer the input.
    pub fn open(mut input: R) -> Result<Self, RecordingError> {
        let mut head = [0; MAGIC.len() + 2];
        let have = read_up_to(&mut input, &mut head)?;
        let magic = &head[..have.min(MAGIC.len())];
        if magic.is_empty() || !MAGIC.starts_with(magic) {
            return Err(RecordingError::Magic);
        }
        if have < head.len() {
            return Err(RecordingError::NoStart { offset: have as u64 });
        }
        let theirs = u16::from_le_bytes([head[MAGIC.len()], head[MAGIC.len() + 1]]);
        if theirs != VERSION {
            return Err(RecordingError::Version { theirs });
        }
        let mut sections = SectionReader::new(input, head.len() as u64);
        let (offset, about) = due(&mut sections, Kind::About, "the description of the machine")?;
        let about = decode(offset, "description", about)?;
        Ok(Self { sections, about })
    }

    /// Whose recording it is.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// How far the file has been read: behind the last section that was given out.
    pub fn offset(&self) -> u64 {
        self.sections.offset
    }

    /// Fills the fresh (zero) memory of the machine with what it held when the recording began, and gives the state
    /// that it had.
    pub fn start(&mut self, ram: &RamView) -> Result<Vec<u8>, RecordingError> {
        let (_, state) = due(&mut self.sections, Kind::State, "the machine's state")?;
        let state = state.to_vec();
        let (mut digest, mut next) = (fold(0, &state), 0);
        loop {
            match self.sections.next()? {
                Found::CutOff { offset } => return Err(RecordingError::NoStart { offset }),
                Found::Section { kind, offset, payload } => match Kind::from_wire(kind) {
                    Some(Kind::Pages) => {
                        digest = fold(digest, payload);
                        next = put_pages(offset, payload, next, ram)?;
                    }
                    Some(Kind::Begin) => {
                        if payload != digest.to_le_bytes() {
                            let why = "its digest is not that of the pages and the state".to_owned();
                            return Err(RecordingError::Malformed { offset, what: "start", why });
                        }
                        return Ok(state);
                    }
                    _ => return Err(RecordingError::Kind { offset, kind, due: "memory or the log's begin" }),
                },
            }
        }
    }

    /// What comes next.
    pub fn more(&mut self) -> Result<NextSection, RecordingError> {
        match self.sections.next()? {
            Found::CutOff { offset } => Ok(NextSection::CutOff { offset }),
            Found::Section { kind, offset, payload } => match Kind::from_wire(kind) {
                Some(Kind::Log) => Ok(NextSection::Log(payload.to_vec())),
                Some(Kind::End) => {
                    let end = decode(offset, "end", payload)?;
                    if !self.sections.at_end()? {
                        return Err(RecordingError::BehindEnd { offset: self.sections.offset });
                    }
                    Ok(NextSection::End(end))
                }
                _ => Err(RecordingError::Kind { offset, kind, due: "the log or the end" }),
            },
        }
    }
}

fn due<'a, R: Read>(
    sections: &'a mut SectionReader<R>,
    due: Kind,
    name: &'static str,
) -> Result<(u64, &'a [u8]), RecordingError> {
    match sections.next()? {
        Found::CutOff { offset } => Err(RecordingError::NoStart { offset }),
        Found::Section { kind, offset, payload } if kind == due as u32 => Ok((offset, payload)),
        Found::Section { kind, offset, .. } => Err(RecordingError::Kind { offset, kind, due: name }),
    }
}

/// Decodes what encodes back to the same bytes.
fn decode<T: Serialize + DeserializeOwned>(
    offset: u64,
    what: &'static str,
    bytes: &[u8],
) -> Result<T, RecordingError> {
    let malformed = |why: String| RecordingError::Malformed { offset, what, why };
    let value: T = postcard::from_bytes(bytes).map_err(|e| malformed(e.to_string()))?;
    let again = postcard::to_stdvec(&value).map_err(|e| malformed(e.to_string()))?;
    if again != bytes { Err(malformed("it has extra bytes".into())) } else { Ok(value) }
}

/// Puts the pages of a section into memory. Pages ascend over all sections: `next` is the lowest that may come, and the
/// lowest that may follow is given back.
fn put_pages(
    offset: u64,
    payload: &[u8],
    mut next: PageIndex,
    ram: &RamView,
) -> Result<PageIndex, RecordingError> {
    let mut page = ZERO_PAGE;
    for record in Records::new(payload) {
        let record = record.map_err(|source| RecordingError::Page { offset, source })?;
        let malformed = |why| RecordingError::Malformed { offset, what: "memory", why };
        if record.page >= ram.pages() {
            return Err(malformed(format!("page {} of a memory of {} pages", record.page, ram.pages())));
        }
        if record.page < next || record.needs_base() {
            return Err(malformed(format!("page {} is out of order or has no base", record.page)));
        }
        record.decode(&mut page).map_err(|source| RecordingError::Page { offset, source })?;
        ram.write_page(record.page, &page);
        next = record.page + 1;
    }
    Ok(next)
}
