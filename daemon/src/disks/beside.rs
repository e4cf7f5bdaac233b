//! The files beside the images of a VM's writable disks, in the directory `disks` of its state directory: one
//! `journal`, and for each disk, by its number in the configuration from 1, `N.intent` and `N.stamp`. All room is taken
//! when they are made: nothing of this fills a file system later.

use super::error::BesideError;
use super::files;
use super::intents::{Intent, Intents};
use super::overlay::look_at_overlay;
use super::stamps::{StampOf, Stamps, whose};
use crate::config::{Config, DiskConfig};
use crate::nonce::random_nonce;
use ft_checkpoint::wire::message::Mode;
use ft_mirror::{History, IntentError, IntentMap, Journal, JournalError, Medium, SealedEpoch, Stamp};
use parking_lot::Mutex;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const DIRECTORY: &str = "disks";
/// Bytes that one bit of an intent map stands for.
const EXTENT_BYTES: u64 = 1 << 20;

/// Replay mode writes nothing into the journal: it is there for what checkpoint mode has left in one.
const UNUSED_JOURNAL_BYTES: u64 = 1 << 20;

/// The journal, whose storage is flushed by whoever does not hold it.
pub type DiskJournal = Journal<Arc<dyn Medium + Send + Sync>>;

fn medium(file: File) -> Arc<dyn Medium + Send + Sync> {
    Arc::new(file)
}

/// See the module.
pub struct Beside {
    journal: Arc<Mutex<DiskJournal>>,
    intents: Arc<Intents>,
    stamps: Arc<Stamps>,
}

/// A writable disk.
pub(super) struct Writable<'a> {
    /// In the configuration, from 0.
    pub(super) number: u16,
    pub(super) config: &'a DiskConfig,
    pub(super) bytes: u64,
}

impl Writable<'_> {
    /// A file beside its image.
    pub(super) fn file(&self, directory: &Path, kind: &str) -> PathBuf {
        directory.join(format!("{}.{kind}", self.number + 1))
    }
}

/// Where the files are.
pub(super) fn directory(config: &Config) -> PathBuf {
    config.state_dir.join(DIRECTORY)
}

impl Beside {
    /// Opens what an earlier process left, and makes what is missing. None: the VM has no writable disk.
    pub fn open(config: &Config) -> Result<Option<Self>, BesideError> {
        let disks = writable(config)?;
        if disks.is_empty() {
            return Ok(None);
        }
        let directory = directory(config);
        files::directory(&directory)?;
        let mut stamps = Vec::new();
        for disk in &disks {
            let of = whose(config.vm.as_str(), &disk.config.image, disk.bytes);
            let path = disk.file(&directory, "stamp");
            stamps.push(StampOf::open(path, disk.config.image.clone(), of)?);
        }
        let known: Vec<bool> =
            stamps.iter().map(|one| one.stamp().is_some_and(|stamp| stamp.of == one.of)).collect();
        let mut intents = Vec::new();
        for (disk, is_known) in disks.iter().zip(known) {
            let path = disk.file(&directory, "intent");
            let may_differ = look_at_overlay(config, disk)?.map(|overlay| overlay.present);
            let map = open_intents(&path, disk.bytes, is_known, may_differ)?;
            let image = File::open(&disk.config.image).map_err(files::failed(&disk.config.image))?;
            let flush = Box::new(move || image.sync_data());
            intents.push(Intent { disk: disk.number, map, flush });
        }
        let intents = Intents::start(intents).map_err(BesideError::Thread)?;
        let stamps = Stamps::new(stamps);
        let path = directory.join("journal");
        let mode = config.replication.mode;
        let journal_bytes = match mode {
            Mode::Checkpoint => config.replication.journal_mib << 20,
            Mode::Replay => UNUSED_JOURNAL_BYTES,
        };
        let journal = match files::open(&path)? {
            Some(file) => match (open_journal(&path, file, journal_bytes, mode), all_follow(&stamps.say())) {
                (Ok(journal), follow) if follow || journal.sealed().is_none() => journal,
                (Err(why), true) => return Err(why),
                (Err(why), false) => {
                    tracing::warn!("{why}; nothing here needs what it held: it is begun anew");
                    make_journal(&path, journal_bytes, None)?
                }
                (Ok(_), _) => make_journal(&path, journal_bytes, None)?,
            },
            None => {
                not_without_journal(&stamps)?;
                make_journal(&path, journal_bytes, None)?
            }
        };
        Ok(Some(Self {
            journal: Arc::new(Mutex::new(journal)),
            intents: Arc::new(intents),
            stamps: Arc::new(stamps),
        }))
    }

    /// The journal of this node as a backup.
    #[must_use]
    pub fn journal(&self) -> &Arc<Mutex<DiskJournal>> {
        &self.journal
    }

    /// The stamps of its images.
    #[must_use]
    pub fn stamps(&self) -> &Arc<Stamps> {
        &self.stamps
    }

    /// The maps of its images.
    #[must_use]
    pub fn intents(&self) -> &Arc<Intents> {
        &self.intents
    }
}

/// The disks that the guest may write to.
pub(super) fn writable(config: &Config) -> Result<Vec<Writable<'_>>, BesideError> {
    let numbered = (0..).zip(&config.machine.disks).filter(|(_, disk)| !disk.read_only);
    numbered
        .map(|(number, config)| Ok(Writable { number, config, bytes: ft_disk::image_bytes(&config.image)? }))
        .collect()
}

/// A map that says nothing less than the truth: of an image that is not the map's, everything may differ. Of an overlay
/// that is `present`: the parts that it has; the others are its base's.
fn open_intents(
    path: &Path,
    disk_bytes: u64,
    is_known: bool,
    present: Option<Vec<Range<u64>>>,
) -> Result<IntentMap<File>, BesideError> {
    let failed = |source| BesideError::Intents { path: path.to_owned(), source };
    let why = match files::open(path)?.filter(|_| is_known).map(|file| IntentMap::open(file, disk_bytes)) {
        Some(Ok((map, damage))) => {
            if damage.blocks > 0 {
                tracing::warn!("{}: {} blocks are damaged: more is compared", path.display(), damage.blocks);
            }
            return Ok(map);
        }
        Some(Err(IntentError::Io(source))) => return Err(failed(source.into())),
        Some(Err(why)) => why.to_string(),
        None => "there is none of this image".to_owned(),
    };
    let all = match present {
        Some(_) => "all that the overlay has",
        None => "the whole disk",
    };
    tracing::info!("{}: {why}: {all} is compared when a pairing begins", path.display());
    let whole = std::iter::once(0..disk_bytes).collect();
    let bytes = IntentMap::<File>::bytes_for(disk_bytes, EXTENT_BYTES).map_err(failed)?;
    files::make(path, bytes, |file| {
        let mut map = IntentMap::create(file, disk_bytes, EXTENT_BYTES, random_nonce()).map_err(failed)?;
        present.unwrap_or(whole).iter().for_each(|bytes| map.mark(bytes));
        map.commit().map_err(failed)?;
        Ok(map)
    })
}

/// Whether what the journal holds is of these images. They may have been run from since, or been made equal anew, and
/// to carry it out would put old bytes over newer ones.
pub(super) fn all_follow(stamps: &[Option<Stamp>]) -> bool {
    stamps.iter().all(|stamp| matches!(stamp, Some(Stamp { history: History::Follows { .. }, .. })))
}

/// Without its journal an image that follows may be in the middle of a change.
fn not_without_journal(stamps: &Stamps) -> Result<(), BesideError> {
    for Stamp { cell, history, .. } in stamps.say().into_iter().flatten() {
        if let History::Follows { pairing, .. } = history {
            tracing::warn!(
                "the journal of this node's disks is missing: they are made equal to the peer's anew"
            );
            stamps.write(ft_arbiter::CellId(cell), History::Mixed { pairing })?;
        }
    }
    Ok(())
}

fn make_journal(path: &Path, bytes: u64, applied: Option<SealedEpoch>) -> Result<DiskJournal, BesideError> {
    let failed = |source| BesideError::Journal { path: path.to_owned(), source };
    files::make(path, bytes, |file| {
        let mut journal = Journal::create(medium(file), random_nonce()).map_err(failed)?;
        if let Some(sealed) = applied {
            carry_over(&mut journal, sealed).map_err(failed)?;
        }
        Ok(journal)
    })
}

/// The image of the new journal is that of the old one.
fn carry_over(journal: &mut DiskJournal, sealed: SealedEpoch) -> Result<(), JournalError> {
    journal.seal(sealed)?;
    journal.sync()?;
    journal.apply(u64::MAX, |_| Ok::<(), std::convert::Infallible>(())).map_err(|e| match e {
        ft_mirror::ApplyError::Journal(why) => why,
        ft_mirror::ApplyError::Image(never) => match never {},
    })?;
    journal.release()
}

fn open_journal(path: &Path, file: File, bytes: u64, mode: Mode) -> Result<DiskJournal, BesideError> {
    let path_of = || PathBuf::from(path);
    let has = file.metadata().map_err(files::failed(path))?.len();
    let journal =
        Journal::open(medium(file)).map_err(|source| BesideError::Journal { path: path_of(), source })?;
    if has == bytes {
        return Ok(journal);
    }
    let (has_mib, wanted_mib) = (has >> 20, bytes >> 20);
    match journal.waiting() {
        0 => {
            tracing::info!("{}: {wanted_mib} MiB in place of {has_mib}", path.display());
            make_journal(path, bytes, journal.sealed())
        }
        // What it holds is carried out first, whatever comes then.
        _ if mode == Mode::Replay => Ok(journal),
        waiting => Err(BesideError::JournalSize { path: path_of(), has_mib, wanted_mib, waiting }),
    }
}

#[cfg(test)]
mod tests;
