//! What the daemon and the child that reads a disk say to each other, over one socket. The child asks for bytes of the
//! disk, as often as it needs to, and then answers once. The daemon takes nothing that is longer than it may be.

use ft_image::{BootEntry, BootOrigin};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

/// Bytes of the disk that are asked for at once, at most.
pub(super) const READ_BYTES_MAX: usize = 128 << 10;
/// Unit of places in the disk.
pub(super) const SECTOR_BYTES: u64 = 512;
/// What is said of an entry, or of a failure, in words, at most.
const TEXT_BYTES_MAX: usize = 64 << 10;

pub(super) const READ: u8 = 1;
pub(super) const FOUND: u8 = 2;
const FAILED: u8 = 3;
/// First byte of the answer to `READ`.
const DATA: u8 = 1;
const NO_DATA: u8 = 0;

/// What the child says next.
#[derive(Debug, PartialEq)]
pub enum ChildWord {
    /// It asks for so many bytes from this one on.
    Read {
        /// Of the disk.
        offset: u64,
        /// Whole sectors.
        bytes: usize,
    },
    /// What is to be booted.
    Found(Box<BootEntry>),
    /// There is nothing, and why.
    Failed(String),
}

/// Why what was said is not understood.
#[derive(Debug, thiserror::Error)]
pub enum HearError {
    /// The socket.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The child.
    #[error("{0}")]
    Nonsense(&'static str),
}

/// An entry but for its files.
#[derive(Serialize, Deserialize)]
struct Head {
    cmdline: String,
    origin: BootOrigin,
    has_initrd: bool,
}

fn length(from: &mut impl Read, max: u64) -> Result<usize, HearError> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    match u64::from_le_bytes(bytes) {
        length if length <= max => Ok(length as usize),
        _ => Err(HearError::Nonsense("a length is beyond its limit")),
    }
}

/// As many bytes as it says, read in pieces: memory is taken for what has come.
fn content(from: &mut impl Read, max: u64) -> Result<Vec<u8>, HearError> {
    let length = length(from, max)?;
    let mut content = Vec::new();
    from.by_ref().take(length as u64).read_to_end(&mut content)?;
    match content.len() == length {
        true => Ok(content),
        false => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
    }
}

fn put(to: &mut impl Write, content: &[u8]) -> io::Result<()> {
    to.write_all(&(content.len() as u64).to_le_bytes())?;
    to.write_all(content)
}

/// Daemon: what the child says next. Its files have so many bytes at most, and it may ask for what lies in the disk.
pub fn hear(from: &mut impl Read, disk_bytes: u64, file_bytes_max: u64) -> Result<ChildWord, HearError> {
    let mut kind = [0];
    from.read_exact(&mut kind)?;
    match kind[0] {
        READ => {
            let offset = length(from, disk_bytes)? as u64;
            let bytes = length(from, (disk_bytes - offset).min(READ_BYTES_MAX as u64))?;
            match offset.is_multiple_of(SECTOR_BYTES) && (bytes as u64).is_multiple_of(SECTOR_BYTES) {
                true => Ok(ChildWord::Read { offset, bytes }),
                false => Err(HearError::Nonsense("it asks for a part of a sector")),
            }
        }
        FOUND => {
            let head = content(from, TEXT_BYTES_MAX as u64)?;
            let head = postcard::from_bytes(&head);
            let Head { cmdline, origin, has_initrd } =
                head.map_err(|_| HearError::Nonsense("its entry is none"))?;
            let kernel = content(from, file_bytes_max)?;
            let initrd = content(from, file_bytes_max)?;
            let initrd = has_initrd.then_some(initrd);
            let cmdline = cmdline.replace(char::is_control, " ");
            let origin = BootOrigin {
                title: printable(&origin.title),
                found_in: printable(&origin.found_in),
                kernel: printable(&origin.kernel),
                version: origin.version.as_deref().map(printable),
                initrds: origin.initrds.iter().map(|path| printable(path)).collect(),
            };
            Ok(ChildWord::Found(Box::new(BootEntry { kernel, initrd, cmdline, origin })))
        }
        FAILED => {
            let text = content(from, TEXT_BYTES_MAX as u64)?;
            Ok(ChildWord::Failed(printable(&String::from_utf8_lossy(&text))))
        }
        _ => Err(HearError::Nonsense("a message of an unknown kind")),
    }
}

/// It goes into logs and onto terminals.
fn printable(text: &str) -> String {
    text.replace(char::is_control, "?")
}

/// Daemon: answers what the child asked for.
pub(super) fn answer(to: &mut impl Write, data: io::Result<&[u8]>) -> io::Result<()> {
    match data {
        Ok(data) => {
            to.write_all(&[DATA])?;
            to.write_all(data)
        }
        Err(e) => {
            to.write_all(&[NO_DATA])?;
            let text = e.to_string();
            put(to, &text.as_bytes()[..text.len().min(TEXT_BYTES_MAX)])
        }
    }
}

/// Child: asks for bytes of the disk.
pub(super) fn read(wire: &mut (impl Read + Write), into: &mut [u8], offset: u64) -> io::Result<()> {
    let mut question = vec![READ];
    question.extend(offset.to_le_bytes());
    question.extend((into.len() as u64).to_le_bytes());
    wire.write_all(&question)?;
    let mut kind = [0];
    wire.read_exact(&mut kind)?;
    if kind[0] == DATA {
        return wire.read_exact(into);
    }
    let text = content(wire, TEXT_BYTES_MAX as u64).map_err(io::Error::other)?;
    Err(io::Error::other(String::from_utf8_lossy(&text).into_owned()))
}

/// Child: says what there is.
pub(super) fn say(to: &mut impl Write, found: Result<BootEntry, String>) -> io::Result<()> {
    let encoded = found.and_then(|BootEntry { kernel, initrd, cmdline, origin }| {
        let head = Head { cmdline, origin, has_initrd: initrd.is_some() };
        let head = postcard::to_allocvec(&head).map_err(|e| e.to_string())?;
        match head.len() <= TEXT_BYTES_MAX {
            true => Ok((head, kernel, initrd.unwrap_or_default())),
            false => Err("the entry's command line, or a name in it, is too long".to_owned()),
        }
    });
    match encoded {
        Ok((head, kernel, initrd)) => {
            to.write_all(&[FOUND])?;
            [head, kernel, initrd].iter().try_for_each(|content| put(to, content))
        }
        Err(text) => {
            to.write_all(&[FAILED])?;
            put(to, &text.as_bytes()[..text.len().min(TEXT_BYTES_MAX)])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DISK: u64 = 1 << 20;
    const MAX: u64 = 1000;

    fn entry(kernel: Vec<u8>, initrd: Option<Vec<u8>>, cmdline: String) -> BootEntry {
        let text = |text: &str| text.to_owned();
        let origin = BootOrigin {
            title: text("title"),
            found_in: text("here"),
            kernel: text("/k"),
            version: Some(text("6.1")),
            initrds: vec![text("/i")],
        };
        BootEntry { kernel, initrd, cmdline, origin }
    }

    fn hears(bytes: &[u8]) -> Result<ChildWord, HearError> {
        hear(&mut &*bytes, DISK, MAX)
    }

    proptest! {
        #[test]
        fn what_is_said_is_heard(
            kernel in prop::collection::vec(any::<u8>(), 0..MAX as usize),
            initrd in prop::option::of(prop::collection::vec(any::<u8>(), 0..MAX as usize)),
            cmdline in "[^\\p{Cc}]{0,40}",
            cut in any::<prop::sample::Index>(),
        ) {
            let entry = entry(kernel, initrd, cmdline);
            let mut said = Vec::new();
            say(&mut said, Ok(entry.clone())).unwrap();
            prop_assert_eq!(hears(&said).unwrap(), ChildWord::Found(Box::new(entry)));
            prop_assert!(hears(&said[..cut.index(said.len())]).is_err());
        }

        #[test]
        fn any_bytes_are_heard_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = hears(&bytes);
        }
    }

    #[test]
    fn nothing_is_heard_that_is_beyond_its_limits() {
        let nonsense = |bytes: &[u8], why: &str| match hears(bytes) {
            Err(HearError::Nonsense(text)) => assert!(text.contains(why), "{text}"),
            heard => panic!("{heard:?}"),
        };
        let question =
            |offset: u64, bytes: u64| [&[READ][..], &offset.to_le_bytes(), &bytes.to_le_bytes()].concat();
        assert_eq!(hears(&question(512, 1024)).unwrap(), ChildWord::Read { offset: 512, bytes: 1024 });
        nonsense(&question(DISK + 512, 0), "beyond its limit");
        nonsense(&question(DISK - 512, 1024), "beyond its limit");
        nonsense(&question(0, READ_BYTES_MAX as u64 + 512), "beyond its limit");
        nonsense(&question(1, 512), "part of a sector");
        let mut said = Vec::new();
        say(&mut said, Ok(entry(vec![0; MAX as usize + 1], None, String::new()))).unwrap();
        nonsense(&said, "beyond its limit");
        nonsense(&[9], "unknown kind");
        let mut said = Vec::new();
        say(&mut said, Err("bad\u{1b}[0m".into())).unwrap();
        assert_eq!(hears(&said).unwrap(), ChildWord::Failed("bad?[0m".into()));
    }
}
