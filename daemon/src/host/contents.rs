//! What the files hold that the machine stands on (disk images, kernel, initrd), as hashes, so that two hosts can be
//! compared by content. A thread of low priority reads each file once, whatever else the daemon does meanwhile. Hashes
//! are kept in the state directory for the daemon's next start, each for the very file that it was made of.

use crate::config::Config;
use crate::disks::{self, OverlayLook};
use ft_checkpoint::wire::identity::Fact;
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Bytes that are read and hashed in one go.
const CHUNK_BYTES: usize = 1 << 20;
/// A file that was changed more recently than this is not read yet: a change right after it might have the same time.
const SETTLED: Duration = Duration::from_millis(100);
/// Between two attempts at a file that cannot be read, or that changes while it is read.
const RETRY: Duration = Duration::from_secs(2);
/// In the state directory.
const FILE_NAME: &str = "contents.json";
/// Begins the keys of disks.
const DISK: &str = "disk ";
/// Of the thread that reads.
const NICE: i32 = 10;

/// A file's hash is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    /// It is being read.
    #[error("reading {} ({}), {percent} % done", path.display(), key)]
    Reading {
        /// The key that names it.
        key: String,
        /// The file.
        path: PathBuf,
        /// How much of it.
        percent: u64,
    },
    /// It cannot be read.
    #[error("{} ({key}) cannot be read: {why}", path.display())]
    Failed {
        /// The key that names it.
        key: String,
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// Tells one state of a file from another, without reading it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// How long the file has been as it is.
    fn age(&self) -> Duration {
        let changed =
            Duration::new(self.changed.0.max(0) as u64, self.changed.1.clamp(0, 999_999_999) as u32);
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        now.saturating_sub(changed)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Known {
    stamp: Stamp,
    blake3: String,
}

/// A file to be compared.
struct Part {
    /// The name of its fact.
    key: String,
    path: PathBuf,
}

/// See the module.
pub struct Contents {
    parts: Vec<Part>,
    /// What lies under images that the guest writes to: known since it was read for them.
    bases: Vec<Fact>,
    kept_in: PathBuf,
    found: Mutex<Found>,
    wanted: Condvar,
}

#[derive(Default)]
struct Found {
    known: BTreeMap<PathBuf, Known>,
    failed: BTreeMap<PathBuf, String>,
    /// What is being read: bytes done of it.
    reading: Option<(PathBuf, u64)>,
    is_wanted: bool,
}

impl Contents {
    /// Begins to read the files of this configuration.
    pub fn start(config: &Config) -> io::Result<Arc<Self>> {
        let machine = &config.machine;
        let read_only = machine
            .disks
            .iter()
            .enumerate()
            // What a guest may write to is mirrored, not compared.
            .filter(|(_, disk)| disk.read_only)
            .map(|(at, disk)| Part { key: format!("{DISK}{}", at + 1), path: disk.image.clone() });
        let boots = [("machine.kernel", &machine.kernel), ("machine.initrd", &machine.initrd)];
        let boots = boots
            .into_iter()
            .filter_map(|(key, path)| Some(Part { key: key.to_owned(), path: path.clone()? }));
        let kept_in = config.state_dir.join(FILE_NAME);
        let known = fs::read(&kept_in).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let found = Found { known: known.unwrap_or_default(), is_wanted: true, ..Found::default() };
        let parts: Vec<Part> = boots.chain(read_only).collect();
        let bases = disks::bases(config).map_err(io::Error::other)?.into_iter().map(base).collect();
        let contents =
            Arc::new(Self { parts, bases, kept_in, found: Mutex::new(found), wanted: Condvar::new() });
        if !contents.parts.is_empty() {
            let worker = Arc::clone(&contents);
            std::thread::Builder::new().name("ftd-contents".into()).spawn(move || worker.run())?;
        }
        Ok(contents)
    }

    /// A fact for each file and base, or the first that is not known. Asks no more of the files than their metadata.
    pub fn facts(&self) -> Result<Vec<Fact>, Unread> {
        self.parts.iter().map(|part| self.fact(part)).chain(self.bases.iter().cloned().map(Ok)).collect()
    }

    /// As `facts`, of the disks alone.
    pub fn disks(&self) -> Result<Vec<Fact>, Unread> {
        let parts = self.parts.iter().filter(|part| part.key.starts_with(DISK));
        parts.map(|part| self.fact(part)).chain(self.bases.iter().cloned().map(Ok)).collect()
    }

    fn fact(&self, part: &Part) -> Result<Fact, Unread> {
        let (key, path) = (part.key.clone(), part.path.clone());
        let stamp = match fs::metadata(&path) {
            Ok(metadata) => Stamp::of(&metadata),
            Err(e) => return Err(Unread::Failed { key, path, why: e.to_string() }),
        };
        let mut found = self.found.lock();
        if let Some(known) = found.known.get(&path)
            && known.stamp == stamp
        {
            let short = &known.blake3[..known.blake3.len().min(16)];
            let shown = format!("{} ({} bytes, BLAKE3 {short}...)", path.display(), stamp.bytes);
            let value = format!("{} {}", stamp.bytes, known.blake3);
            return Ok(Fact::equal_shown(key, value, printable(&shown)));
        }
        found.is_wanted = true;
        self.wanted.notify_all();
        if let Some(why) = found.failed.get(&path) {
            return Err(Unread::Failed { key, path, why: why.clone() });
        }
        let done =
            found.reading.as_ref().filter(|(reading, _)| *reading == path).map_or(0, |(_, done)| *done);
        Err(Unread::Reading {
            key,
            path,
            percent: (100 * done).checked_div(stamp.bytes).unwrap_or(0).min(100),
        })
    }

    fn run(&self) {
        // SAFETY: changes a number of the calling thread's in the kernel. If it may not, it reads at normal priority.
        let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
        loop {
            let mut found = self.found.lock();
            while !found.is_wanted {
                self.wanted.wait(&mut found);
            }
            found.is_wanted = false;
            drop(found);
            let failures = self.parts.iter().filter(|part| !self.learn(&part.path)).count();
            if failures > 0 {
                std::thread::sleep(RETRY);
            }
        }
    }

    /// Makes sure that the hash of a file as it is now is known.
    fn learn(&self, path: &Path) -> bool {
        match self.hash(path) {
            Ok(None) => true,
            Ok(Some(known)) => {
                tracing::info!(blake3 = %known.blake3, bytes = known.stamp.bytes, "read {}", path.display());
                let mut found = self.found.lock();
                found.failed.remove(path);
                found.reading = None;
                found.known.insert(path.to_owned(), known);
                self.keep(&found.known);
                true
            }
            Err(e) => {
                let mut found = self.found.lock();
                found.reading = None;
                let why = e.to_string();
                if found.failed.insert(path.to_owned(), why.clone()) != Some(why) {
                    tracing::warn!("cannot compare {} with the peer's: {e}", path.display());
                }
                false
            }
        }
    }

    /// The hash of a file, unless it is known.
    fn hash(&self, path: &Path) -> io::Result<Option<Known>> {
        let mut file = File::open(path)?;
        let stamp = Stamp::of(&file.metadata()?);
        if self.found.lock().known.get(path).is_some_and(|known| known.stamp == stamp) {
            return Ok(None);
        }
        std::thread::sleep(SETTLED.saturating_sub(stamp.age()));
        let mut hasher = blake3::Hasher::new();
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut done = 0;
        loop {
            self.found.lock().reading = Some((path.to_owned(), done));
            let read = match file.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            hasher.update(&chunk[..read]);
            done += read as u64;
        }
        if Stamp::of(&fs::metadata(path)?) != stamp {
            return Err(io::Error::other("it changed while it was read"));
        }
        Ok(Some(Known { stamp, blake3: hasher.finalize().to_hex().to_string() }))
    }

    /// Whoever cannot keep them reads again at the next start.
    fn keep(&self, known: &BTreeMap<PathBuf, Known>) {
        let kept = serde_json::to_vec(known).map_err(io::Error::from).and_then(|json| {
            let new = self.kept_in.with_extension("new");
            fs::write(&new, json)?;
            fs::rename(&new, &self.kept_in)
        });
        if let Err(e) = kept {
            tracing::debug!("cannot keep hashes in {}: {e}", self.kept_in.display());
        }
    }
}

/// What both hosts must have under a disk of this number, from 0. How the file holds it is each host's own affair.
fn base((number, look): (u16, OverlayLook)) -> Fact {
    let OverlayLook { base, facts, present: _ } = look;
    let hash = blake3::Hash::from(facts.hash).to_hex();
    let shown = format!("{} ({} bytes, hash {}...)", base.display(), facts.bytes, &hash[..16]);
    let value = format!("{} {hash}", facts.bytes);
    Fact::equal_shown(format!("{DISK}{}, its base", number + 1), value, printable(&shown))
}

/// A path may have any byte; what the peer is shown may not.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn contents(directory: &Path, image: &Path) -> Arc<Contents> {
        let example = include_str!("../../../scripts/systemd/ftd.example.toml");
        let mut config = Config::parse(example, Path::new("ftd.toml")).unwrap();
        config.state_dir = directory.to_owned();
        (config.machine.kernel, config.machine.initrd) = (None, None);
        config.machine.disks = vec![crate::config::DiskConfig {
            image: image.to_owned(),
            read_only: true,
            base: None,
            io_engine: Default::default(),
            on_io_error: Default::default(),
        }];
        Contents::start(&config).unwrap()
    }

    fn wait(contents: &Contents) -> Fact {
        let began = Instant::now();
        loop {
            match contents.facts() {
                Ok(mut facts) => return facts.remove(0),
                Err(e) => assert!(began.elapsed() < Duration::from_secs(120), "{e}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_file_is_known_by_its_content_and_a_changed_one_anew() {
        let directory = tempfile::tempdir().unwrap();
        let (image, same) = (directory.path().join("a.img"), directory.path().join("b.img"));
        fs::write(&image, vec![7; 3 << 20]).unwrap();
        fs::copy(&image, &same).unwrap();
        let here = contents(directory.path(), &image);
        let fact = wait(&here);
        assert_eq!(fact.name, "disk 1");
        assert_eq!(here.disks(), Ok(vec![fact.clone()]));
        assert!(fact.shown.starts_with(&format!("{} (3145728 bytes, BLAKE3 ", image.display())), "{fact:?}");
        assert_eq!(wait(&contents(&directory.path().join("elsewhere"), &same)).value, fact.value);
        // One byte, and the time of the last change put back.
        let modified = fs::metadata(&image).unwrap().modified().unwrap();
        let mut other = vec![7; 3 << 20];
        other[1 << 20] = 8;
        fs::write(&image, other).unwrap();
        File::options().write(true).open(&image).unwrap().set_modified(modified).unwrap();
        assert!(matches!(here.facts(), Err(Unread::Reading { .. })));
        assert_ne!(wait(&here).value, fact.value);
    }

    #[test]
    fn what_was_read_once_is_known_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("a.img");
        fs::write(&image, [1; 4096]).unwrap();
        let fact = wait(&contents(directory.path(), &image));
        // Not read again: it is known at once.
        let again = contents(directory.path(), &image).facts();
        assert_eq!(again, Ok(vec![fact]));
        fs::write(directory.path().join(FILE_NAME), "no JSON").unwrap();
        wait(&contents(directory.path(), &image));
    }

    #[test]
    fn what_lies_under_a_disk_is_told_by_its_content() {
        let directory = tempfile::tempdir().unwrap();
        let fact = |node: &str, byte: u8| {
            let at = directory.path().join(node);
            fs::create_dir(&at).unwrap();
            let example = include_str!("../../../scripts/systemd/ftd.example.toml");
            let mut config = Config::parse(example, Path::new("ftd.toml")).unwrap();
            config.state_dir = at.clone();
            (config.machine.kernel, config.machine.initrd) = (None, None);
            fs::write(at.join("golden.img"), [byte; 1 << 20]).unwrap();
            config.machine.disks = vec![crate::config::DiskConfig {
                image: at.join("disk.img"),
                base: Some(at.join("golden.img")),
                read_only: false,
                io_engine: Default::default(),
                on_io_error: Default::default(),
            }];
            disks::create_overlay(&config, 1, None, &mut |_, _| ()).unwrap();
            wait(&Contents::start(&config).unwrap())
        };
        let (alpha, beta, other) = (fact("alpha", 7), fact("beta", 7), fact("other", 8));
        assert_eq!(alpha.name, "disk 1, its base");
        assert!(alpha.value == beta.value && alpha.value != other.value);
        assert!(alpha.shown.contains("alpha/golden.img (1048576 bytes, hash "), "{alpha:?}");
    }

    #[test]
    fn a_file_that_is_missing_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let text = contents(directory.path(), Path::new("/nowhere/a.img")).facts().unwrap_err().to_string();
        assert!(text.starts_with("/nowhere/a.img (disk 1) cannot be read: No such file"), "{text}");
    }
}
