//! A ledger of names: each entry makes, renames, links, truncates and removes files and directories, and is kept once
//! all directories that it changed are synced. Entry n belongs to place n modulo 48, and replaces the one that was
//! there:
//!
//! 1. `tmp/N` is made with the entry's bytes, truncated to the length that it shall have, and synced.
//! 2. It is renamed to `a/P`, over the older entry.
//! 3. `b/P`, the second link to the older entry, is removed and made anew for this one.
//! 4. The directory `c/P-N` is made with a directory in it; that of the older entry is removed.
//!
//! P and N are the place and the number. A file has the number in its first 8 bytes.

use super::content::{Draw, last_in};
use super::durable::sync_directory;
use super::trouble::Trouble;
use std::fs;
use std::io::{ErrorKind, Result as IoResult};
use std::path::{Path, PathBuf};

/// Places for entries.
pub const PLACES: u64 = 48;
const BYTES_MAX: usize = 24 << 10;
const INNER: &str = "inner";

/// The directory with the ledger in it.
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// Makes what is not there yet.
    pub fn open(directory: &Path) -> Result<Self, Trouble> {
        let root = directory.join("tree");
        for name in ["tmp", "a", "b", "c"] {
            let path = root.join(name);
            fs::create_dir_all(&path).map_err(Trouble::system("make", &path))?;
        }
        sync_directory(&root)?;
        sync_directory(directory)?;
        Ok(Self { root })
    }

    /// Carries out an entry for good. One that was begun is completed.
    pub fn commit(&mut self, number: u64) -> Result<(), Trouble> {
        let place = number % PLACES;
        let fresh = self.root.join(format!("tmp/{number}"));
        self.make(number, &fresh).map_err(Trouble::system("make", &fresh))?;
        let (first, second) = (self.root.join(format!("a/{place}")), self.root.join(format!("b/{place}")));
        fs::rename(&fresh, &first).map_err(Trouble::system("rename over", &first))?;
        unless_missing(fs::remove_file(&second)).map_err(Trouble::system("remove", &second))?;
        fs::hard_link(&first, &second).map_err(Trouble::system("link", &second))?;
        let directory = self.root.join(directory_name(number));
        fs::create_dir_all(directory.join(INNER)).map_err(Trouble::system("make", &directory))?;
        if number > PLACES {
            let older = self.root.join(directory_name(number - PLACES));
            unless_missing(fs::remove_dir_all(&older)).map_err(Trouble::system("remove", &older))?;
        }
        sync_directory(&directory)?;
        ["tmp", "a", "b", "c"].iter().try_for_each(|name| sync_directory(&self.root.join(name)))
    }

    fn make(&self, number: u64, path: &Path) -> IoResult<()> {
        let mut draw = Draw::of(number);
        let bytes = draw.between(0, BYTES_MAX);
        fs::write(path, [&number.to_le_bytes()[..], &draw.bytes(bytes)].concat())?;
        let file = fs::OpenOptions::new().write(true).open(path)?;
        file.set_len(file_of(number).len() as u64)?;
        file.sync_all()
    }
}

fn directory_name(number: u64) -> String {
    format!("c/{}-{number}", number % PLACES)
}

fn unless_missing(result: IoResult<()>) -> IoResult<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The content of an entry's file in the end.
fn file_of(number: u64) -> Vec<u8> {
    let mut draw = Draw::of(number);
    let bytes = draw.between(0, BYTES_MAX);
    let body = draw.bytes(bytes);
    let kept = draw.between(0, bytes + 1);
    [&number.to_le_bytes()[..], &body[..kept]].concat()
}

/// Reads all, and says which entry is the last that shows. Whatever belongs to older ones is whole; the last one may be
/// half done, as may the one after it, unless it was acknowledged.
pub fn verify(directory: &Path, acknowledged: u64) -> Result<u64, Trouble> {
    let root = directory.join("tree");
    if !root.exists() {
        return Ok(0);
    }
    let first =
        (0..PLACES).map(|place| entry_at(&root.join(format!("a/{place}")))).collect::<Result<Vec<_>, _>>()?;
    let last = first.iter().flatten().copied().max().unwrap_or(0);
    let names = names_in(&root.join("c"))?;
    for (place, found) in (0..PLACES).zip(first) {
        let right = last_in(place, PLACES, last);
        let begun = [last, last + 1].into_iter().find(|n| *n > acknowledged && n % PLACES == place);
        // Of one that was begun, what it replaces may still be there.
        let older = begun.and_then(|number| number.checked_sub(PLACES)).filter(|number| *number > 0);
        let second = entry_at(&root.join(format!("b/{place}")))?;
        let of_place: Vec<_> = names.iter().filter(|name| name.0 == place).map(|name| name.1).collect();
        let good = match begun {
            None => found == right && second == right && of_place.iter().eq(right.iter()),
            Some(number) => {
                let either = |entry: &u64| *entry == number || Some(*entry) == older;
                found == right
                    && second.iter().all(either)
                    && of_place.iter().all(either)
                    && (older.is_none() || !of_place.is_empty())
            }
        };
        if !good {
            return Trouble::damage(format!(
                "place {place}: a has {found:?}, b {second:?}, c {of_place:?}, not {right:?}; the last is entry \
                 {last}, {acknowledged} was acknowledged"
            ));
        }
    }
    Ok(last)
}

/// The entry whose file it is.
fn entry_at(path: &Path) -> Result<Option<u64>, Trouble> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Trouble::system("read", path)(error)),
    };
    let number = bytes.get(..8).and_then(|head| head.try_into().ok()).map(u64::from_le_bytes);
    match number {
        Some(number) if bytes == file_of(number) => Ok(Some(number)),
        _ => Trouble::damage(format!("{} is no entry's file: {} bytes", path.display(), bytes.len())),
    }
}

/// The directories of `c`: place and number.
fn names_in(path: &Path) -> Result<Vec<(u64, u64)>, Trouble> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(Trouble::system("list", path))? {
        let name = entry.map_err(Trouble::system("list", path))?.file_name();
        let parts = name.to_str().and_then(|name| name.split_once('-'));
        let Some((Ok(place), Ok(number))) = parts.map(|(place, number)| (place.parse(), number.parse()))
        else {
            return Trouble::damage(format!(
                "{} has a directory of no entry: {}",
                path.display(),
                name.display()
            ));
        };
        names.push((place, number));
    }
    Ok(names)
}
