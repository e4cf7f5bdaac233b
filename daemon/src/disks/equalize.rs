//! Makes the backup's disks equal while a copy is under way. Both hosts tell which extents may differ by their maps.
//! Each of these is hashed here and compared there, in the stream among the changes, so that both hashes are of the
//! same moment of it; what differs is sent, and compared again. While an extent is read nothing changes it: its changes
//! are held back, and those under way are waited for. The operator may limit how fast that goes.

use super::agreement::Agreement;
use super::images::{ImagesError, MirroredImages, NumberedImage};
use super::intents::Intents;
use super::pace::Pace;
use super::tap::{Session, WriteTap};
use crate::observe::{DisksCopyStatus, Rate};
use ft_checkpoint::wire::FrameType;
use ft_checkpoint::wire::disk::EXTENT_BYTES;
use ft_checkpoint::wire::message::{Compare, Compared, DiskMap};
use ft_disk::Buffer;
use ft_mirror::{Change, Extent};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Extents whose comparison is under way at most.
const UNANSWERED_MAX: usize = 64;
/// Until an extent that changes is looked at again.
const QUIET_INTERVAL: Duration = Duration::from_millis(1);
/// Until a limit that may have been changed is looked at again.
const LIMIT_INTERVAL: Duration = Duration::from_millis(100);

/// Why the disks are not made equal.
#[derive(Debug, thiserror::Error)]
pub enum EqualizeError {
    /// An image.
    #[error(transparent)]
    Image(#[from] ImagesError),
    /// No thread for it.
    #[error("cannot start a thread to compare disks: {0}")]
    Thread(std::io::Error),
    /// A fault of ftd's own; the log has it.
    #[error("the thread that compares disks panicked")]
    Panicked,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Equalized {
    /// Extents of all disks that may differ; none: the backup has not told yet.
    pub extents: Option<u64>,
    /// Those that are the same on both hosts.
    pub same: u64,
    /// Those that were compared at least once...
    pub compared: u64,
    /// ...and were found to differ then.
    pub differing: u64,
    /// How often one was sent.
    pub sent: u64,
    /// What was sent of them, in bytes: zeroes are none.
    pub sent_bytes: u64,
}

/// An extent: the disk's number and its own.
type Place = (u16, u32);

/// What is to be done with an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    /// It is compared.
    Compare,
    /// It differs: it is sent, and compared again.
    Send,
}

struct Work {
    /// What the maps say, until the backup has told its own.
    maps: Vec<Agreement>,
    /// Not offered yet, by disk.
    rest: VecDeque<(u16, Range<u32>)>,
    differing: VecDeque<Place>,
    unanswered: Vec<(Place, Task)>,
    done: Equalized,
    failed: Option<EqualizeError>,
    is_over: bool,
}

impl Work {
    fn next(&mut self) -> Option<(Place, Task)> {
        if let Some(place) = self.differing.pop_front() {
            self.unanswered.push((place, Task::Send));
            return Some((place, Task::Send));
        }
        if self.unanswered.len() >= UNANSWERED_MAX {
            return None;
        }
        let (disk, run) = self.rest.front_mut()?;
        let place = (*disk, run.next()?);
        if run.start == run.end {
            self.rest.pop_front();
        }
        self.unanswered.push((place, Task::Compare));
        Some((place, Task::Compare))
    }

    fn is_done(&self) -> bool {
        self.done.extents == Some(self.done.same)
    }
}

struct Shared {
    work: Mutex<Work>,
    changed: Condvar,
    began: Instant,
    rate: Mutex<Rate>,
}

/// See the module.
pub struct Equalizer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Equalizer {
    /// Begins to compare these images where they may differ. What is to be sent goes into the tap, which has begun.
    pub fn start(
        tap: &Arc<WriteTap>,
        intents: &Intents,
        images: &[NumberedImage],
    ) -> Result<Self, EqualizeError> {
        let sizes: Vec<(u16, u64)> = images.iter().map(|(disk, image)| (*disk, image.bytes())).collect();
        let maps: Vec<Agreement> =
            images.iter().map(|image| Agreement::of_this_host(intents, image)).collect();
        let parts = maps.iter().flat_map(Agreement::parts).collect();
        let work = Work {
            maps,
            rest: VecDeque::new(),
            differing: VecDeque::new(),
            unanswered: Vec::new(),
            done: Equalized::default(),
            failed: None,
            is_over: false,
        };
        let (changed, began, rate) = (Condvar::new(), Instant::now(), Mutex::default());
        let shared = Arc::new(Shared { work: Mutex::new(work), changed, began, rate });
        let worker = Worker {
            shared: Arc::clone(&shared),
            tap: Arc::clone(tap),
            session: tap.session(),
            images: MirroredImages::new(images)?,
            pace: Pace::new(began),
            parts,
            sizes,
        };
        let spawned = std::thread::Builder::new().name("ftd-equalize".into()).spawn(move || worker.run());
        Ok(Self { shared, thread: Some(spawned.map_err(EqualizeError::Thread)?) })
    }

    /// The backup has told a part of its map of a disk.
    pub fn mapped(&self, part: &DiskMap) {
        let mut work = self.shared.work.lock();
        if work.done.extents.is_some() {
            return;
        }
        work.maps.iter_mut().filter(|map| map.disk == part.disk).for_each(|map| map.take(part));
        if work.maps.iter().all(Agreement::is_whole) {
            for map in std::mem::take(&mut work.maps) {
                work.rest.extend(map.differing().into_iter().map(|run| (map.disk, run)));
            }
            work.done.extents = Some(work.rest.iter().map(|(_, run)| run.len() as u64).sum());
            self.shared.changed.notify_all();
        }
    }

    /// The backup's answer. Those to what was not asked are ignored.
    pub fn answered(&self, Compared { disk, extent, same }: Compared) {
        let mut work = self.shared.work.lock();
        let asked = |(place, _): &(Place, Task)| *place == (disk, extent);
        let Some(at) = work.unanswered.iter().position(asked) else { return };
        if work.unanswered.swap_remove(at).1 == Task::Compare {
            work.done.compared += 1;
            work.done.differing += u64::from(!same);
        }
        match same {
            true => work.done.same += 1,
            false => work.differing.push_back((disk, extent)),
        }
        self.shared.changed.notify_all();
    }

    /// How far it is.
    pub fn progress(&self) -> Equalized {
        self.shared.work.lock().done
    }

    /// How far it is, how fast it goes, and how long it will take.
    pub fn status(&self) -> DisksCopyStatus {
        let Equalized { extents, same, compared, differing, sent: _, sent_bytes } = self.progress();
        let bytes = |extents: u64| extents * EXTENT_BYTES;
        let now = Instant::now();
        let per_s = self.shared.rate.lock().of(bytes(same), now);
        let left = extents.map(|extents| bytes(extents - same));
        DisksCopyStatus {
            total_bytes: extents.map(bytes),
            same_bytes: bytes(same),
            compared_bytes: bytes(compared),
            differing_bytes: bytes(differing),
            sent_bytes,
            bytes_per_s: per_s as u64,
            left_s: left.filter(|_| per_s >= 1.0).map(|left| (left as f64 / per_s).ceil() as u64),
            took_ms: now.saturating_duration_since(self.shared.began).as_millis() as u64,
        }
    }

    /// Whether every extent is the same, or why that will not be.
    pub fn is_done(&self) -> Result<bool, EqualizeError> {
        let mut work = self.shared.work.lock();
        match work.failed.take() {
            Some(why) => Err(why),
            None => Ok(work.is_done()),
        }
    }
}

impl Drop for Equalizer {
    /// The tap has ended, or nothing is left to be done: it waits for nobody.
    fn drop(&mut self) {
        self.shared.work.lock().is_over = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    shared: Arc<Shared>,
    tap: Arc<WriteTap>,
    session: Session,
    images: MirroredImages,
    pace: Pace,
    /// What this host's maps say.
    parts: Vec<DiskMap>,
    sizes: Vec<(u16, u64)>,
}

/// Notes a panic of the thread.
struct NotesPanic(Arc<Shared>);

impl Drop for NotesPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.work.lock().failed = Some(EqualizeError::Panicked);
        }
    }
}

impl Worker {
    fn run(mut self) {
        let _notes = NotesPanic(Arc::clone(&self.shared));
        if !self.tell_maps() {
            return;
        }
        while let Some((place, task)) = self.await_task() {
            let told = self.tell(place, task);
            self.tap.release(self.session);
            match told {
                Ok(true) => {}
                // The pairing is over.
                Ok(false) => return,
                Err(why) => return self.shared.work.lock().failed = Some(why),
            }
        }
    }

    /// False: the pairing is over.
    fn tell_maps(&self) -> bool {
        let mut encoded = self.parts.iter().map(|part| postcard::to_stdvec(part).unwrap_or_default());
        encoded.all(|part| self.tap.put(self.session, FrameType::DiskMap, part))
    }

    /// The next task; none when all is done or nobody needs it any more.
    fn await_task(&mut self) -> Option<(Place, Task)> {
        let mut work = self.shared.work.lock();
        loop {
            if work.is_over || work.is_done() {
                return None;
            }
            let wait = self.pace.wait(self.tap.copy_limit(), Instant::now());
            if !wait.is_zero() {
                self.shared.changed.wait_for(&mut work, wait.min(LIMIT_INTERVAL));
                continue;
            }
            if let Some(next) = work.next() {
                work.done.sent += u64::from(next.1 == Task::Send);
                return Some(next);
            }
            self.shared.changed.wait(&mut work);
        }
    }

    /// False: the pairing is over.
    fn tell(&mut self, (number, extent): Place, task: Task) -> Result<bool, EqualizeError> {
        let bytes = self.sizes.iter().find(|(of, _)| *of == number).map_or(0, |(_, bytes)| *bytes);
        let place = extent_at(number, extent, bytes);
        if !self.tap.hold(self.session, place.clone()) || !self.await_quiet(&place) {
            return Ok(false);
        }
        let content = self.images.read(&place)?;
        let content_bytes = content.as_ref().map_or(0, |content| content.len() as u64);
        self.pace.took(content_bytes);
        if task == Task::Send {
            for change in self.images.as_changes(&place, content.as_ref()) {
                if !self.tap.put_change(self.session, &change) {
                    return Ok(false);
                }
                if let Change::Write { data, .. } = &change {
                    self.shared.work.lock().done.sent_bytes += data.len() as u64;
                }
            }
        }
        let hash = hash(&place, content.as_ref());
        let compare = Compare { disk: number, extent, hash };
        let payload = postcard::to_stdvec(&compare).unwrap_or_default();
        Ok(self.tap.put(self.session, FrameType::Compare, payload))
    }

    /// Waits until what was told before is made. False: nobody needs it any more.
    fn await_quiet(&self, place: &Extent) -> bool {
        while !self.tap.is_quiet(place) {
            if self.shared.work.lock().is_over {
                return false;
            }
            std::thread::sleep(QUIET_INTERVAL);
        }
        true
    }
}

/// Extents of a disk of so many bytes.
pub(super) fn extents(disk_bytes: u64) -> u32 {
    disk_bytes.div_ceil(EXTENT_BYTES) as u32
}

/// An extent of a disk of so many bytes.
pub(super) fn extent_at(disk: u16, extent: u32, disk_bytes: u64) -> Extent {
    let start = u64::from(extent) * EXTENT_BYTES;
    Extent { disk, bytes: start.min(disk_bytes)..(start + EXTENT_BYTES).min(disk_bytes) }
}

/// The hash of an extent's bytes: what was never written is zeros.
pub(super) fn hash(place: &Extent, content: Option<&Buffer>) -> [u8; 32] {
    match content {
        Some(content) => *blake3::hash(content).as_bytes(),
        None => zeroes_hash((place.bytes.end - place.bytes.start) as usize),
    }
}

fn zeroes_hash(bytes: usize) -> [u8; 32] {
    static WHOLE: std::sync::OnceLock<[u8; 32]> = std::sync::OnceLock::new();
    let of = |bytes: usize| *blake3::hash(&vec![0; bytes]).as_bytes();
    match bytes as u64 {
        EXTENT_BYTES => *WHOLE.get_or_init(|| of(bytes)),
        _ => of(bytes),
    }
}
