//! Compares the backup's images with this host's while the VM is protected, extent by extent, at a rate that leaves the
//! disks to the guest. What a question is about does not change until it is answered, for a moment at most: a guest
//! that writes just there waits for so long. So both hosts hash what stands at the same place of the stream.

use super::equalize::{extent_at, extents, hash};
use super::images::{ImagesError, MirroredImages, NumberedImage};
use super::intents::Intents;
use super::pace::Pace;
use super::tap::{Session, WriteTap};
use crate::observe::{DifferingStatus, DisksVerifyStatus, Rate, VerifyState};
use ft_checkpoint::wire::FrameType;
use ft_checkpoint::wire::disk::EXTENT_BYTES;
use ft_checkpoint::wire::message::{Compare, Compared};
use ft_mirror::Extent;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A guest's write waits no longer than this for what is compared.
const HOLD_MAX: Duration = Duration::from_millis(300);
/// A backup that has not answered for so long will not.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Who waits looks so often whether it still should.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Until what still changes an extent is looked at again.
const QUIET_INTERVAL: Duration = Duration::from_millis(1);
/// How often an extent is compared, at most, that changes before it is known.
const ATTEMPTS_MAX: u32 = 8;
/// A difference is believed when it was found so often.
const CONFIRMED: u32 = 2;
/// Differences that are told one by one.
const TOLD_MAX: usize = 64;

/// What becomes of an extent that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDifference {
    /// It is told, and made the same when the next pairing begins.
    Tell,
    /// So it is, and this host's content is sent.
    Send,
}

/// Why it is not begun.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It was.
    #[error("the disks are being compared already: ftctl status shows how far that is")]
    UnderWay,
    /// There is no backup to compare with, or its copy is under way.
    #[error("the disks have no backup to be compared with now: ftctl wait --for protected waits for one")]
    Alone,
    /// The images have no common moment in a stream of changes.
    #[error(
        "in mode = \"replay\" the disks are not compared while the VM is protected: the log's digests find what the \
         guest has read, and a restart of ftd on the backup compares what its maps have"
    )]
    Executed,
    /// An image.
    #[error(transparent)]
    Image(#[from] ImagesError),
    /// No thread.
    #[error("cannot start a thread to compare disks: {0}")]
    Thread(std::io::Error),
}

/// The last comparison, and how many differences there were since the daemon started.
#[derive(Default)]
pub struct Verifier {
    current: Mutex<Option<Arc<Shared>>>,
    mismatches: Arc<AtomicU64>,
}

struct Shared {
    work: Mutex<Work>,
    changed: Condvar,
    began: Instant,
    rate: Mutex<Rate>,
}

struct Work {
    question: Option<Question>,
    done: DisksVerifyStatus,
}

/// The question that is open.
struct Question {
    disk: u16,
    extent: u32,
    answer: Option<Answer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Same,
    Differs,
    /// The connection was lost, and the answer with it.
    Lost,
}

/// What is known of an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    Same,
    Differs,
    /// The guest changed it each time.
    Unsettled,
}

/// Why no more is compared.
enum End {
    /// The pairing is over.
    Over,
    /// The backup does not answer.
    Silent,
    Image(ImagesError),
}

impl Verifier {
    /// Begins to compare these images with those of the backup that the tap tells its changes to.
    pub fn start(
        &self,
        tap: &Arc<WriteTap>,
        intents: &Arc<Intents>,
        images: &[NumberedImage],
        bytes_per_s: u64,
        on_difference: OnDifference,
    ) -> Result<(), VerifyError> {
        let mut current = self.current.lock();
        if current.as_ref().is_some_and(|shared| shared.work.lock().done.state == VerifyState::Running) {
            return Err(VerifyError::UnderWay);
        }
        let session = tap.session();
        if !tap.is_open(session) {
            return Err(VerifyError::Alone);
        }
        let sizes: Vec<(u16, u64)> = images.iter().map(|(disk, image)| (*disk, image.bytes())).collect();
        let total: u64 = sizes.iter().map(|(_, bytes)| u64::from(extents(*bytes))).sum();
        let done = DisksVerifyStatus { total_bytes: total * EXTENT_BYTES, ..DisksVerifyStatus::default() };
        let began = Instant::now();
        let shared = Arc::new(Shared {
            work: Mutex::new(Work { question: None, done }),
            changed: Condvar::new(),
            began,
            rate: Mutex::default(),
        });
        let worker = Worker {
            shared: Arc::clone(&shared),
            mismatches: Arc::clone(&self.mismatches),
            tap: Arc::clone(tap),
            session,
            intents: Arc::clone(intents),
            images: MirroredImages::new(images)?,
            sizes,
            pace: Pace::new(began),
            bytes_per_s,
            on_difference,
        };
        let spawned = std::thread::Builder::new().name("ftd-verify".into()).spawn(move || worker.run());
        spawned.map_err(VerifyError::Thread)?;
        *current = Some(shared);
        Ok(())
    }

    /// The backup's answer. One to what was not asked is ignored.
    pub fn answered(&self, compared: Compared) {
        let answer = if compared.same { Answer::Same } else { Answer::Differs };
        self.answer(answer, |question| (question.disk, question.extent) == (compared.disk, compared.extent));
    }

    /// The pairing goes on over another connection: what was asked over the last one is not answered any more.
    pub fn reconnected(&self) {
        self.answer(Answer::Lost, |_| true);
    }

    fn answer(&self, answer: Answer, is_to: impl Fn(&Question) -> bool) {
        let Some(shared) = self.current.lock().clone() else { return };
        let mut work = shared.work.lock();
        if let Some(question) = work.question.as_mut().filter(|question| is_to(question)) {
            question.answer.get_or_insert(answer);
            shared.changed.notify_all();
        }
    }

    /// Extents that were found to differ since the daemon started.
    pub fn mismatches(&self) -> u64 {
        self.mismatches.load(Ordering::Relaxed)
    }

    /// How far the last comparison is, or has come.
    pub fn status(&self) -> Option<DisksVerifyStatus> {
        let shared = self.current.lock().clone()?;
        let mut status = shared.work.lock().done.clone();
        if status.state == VerifyState::Running {
            let now = Instant::now();
            let per_s = shared.rate.lock().of(status.compared_bytes, now);
            let left = status.total_bytes - status.compared_bytes;
            status.bytes_per_s = per_s as u64;
            status.left_s = (per_s >= 1.0).then(|| (left as f64 / per_s).ceil() as u64);
            status.took_ms = now.saturating_duration_since(shared.began).as_millis() as u64;
        }
        Some(status)
    }
}

struct Worker {
    shared: Arc<Shared>,
    mismatches: Arc<AtomicU64>,
    tap: Arc<WriteTap>,
    session: Session,
    intents: Arc<Intents>,
    images: MirroredImages,
    sizes: Vec<(u16, u64)>,
    pace: Pace,
    bytes_per_s: u64,
    on_difference: OnDifference,
}

/// A comparison that has ended says so, also when its thread panicked.
struct Ends(Arc<Shared>);

impl Drop for Ends {
    fn drop(&mut self) {
        let mut work = self.0.work.lock();
        work.done.took_ms = self.0.began.elapsed().as_millis() as u64;
        if work.done.state == VerifyState::Running {
            work.done.state = VerifyState::BrokenOff;
            work.done.why.get_or_insert_with(|| "the thread that compares disks panicked".into());
        }
    }
}

impl Worker {
    fn run(mut self) {
        let ends = Ends(Arc::clone(&self.shared));
        let why = match self.compare_all() {
            Ok(()) => None,
            Err(End::Over) => Some("the backup was lost before all was compared".to_owned()),
            Err(End::Silent) => Some("the backup does not answer: see its log".to_owned()),
            Err(End::Image(why)) => Some(format!("an image cannot be read here: {why}")),
        };
        let mut work = self.shared.work.lock();
        let DisksVerifyStatus { compared_bytes, differing_bytes, unsettled_bytes, .. } = work.done;
        match why {
            None => {
                work.done.state = VerifyState::Done;
                tracing::info!(
                    "the disks were compared with the backup's: {compared_bytes} bytes, {differing_bytes} differ, \
                     {unsettled_bytes} changed too often to be compared"
                );
            }
            Some(why) => {
                tracing::warn!("the disks are not compared with the backup's to the end: {why}");
                work.done.why = Some(why);
            }
        }
        drop(work);
        drop(ends);
    }

    fn compare_all(&mut self) -> Result<(), End> {
        for (disk, bytes) in self.sizes.clone() {
            for extent in 0..extents(bytes) {
                self.keep_pace()?;
                let place = extent_at(disk, extent, bytes);
                let finding = self.find_out(extent, &place)?;
                if finding == Finding::Differs {
                    self.tell(&place);
                    if self.on_difference == OnDifference::Send {
                        self.send(extent, &place)?;
                    }
                }
                let mut work = self.shared.work.lock();
                work.done.compared_bytes += EXTENT_BYTES;
                work.done.unsettled_bytes += EXTENT_BYTES * u64::from(finding == Finding::Unsettled);
            }
        }
        Ok(())
    }

    fn keep_pace(&mut self) -> Result<(), End> {
        loop {
            let wait = self.pace.wait(self.bytes_per_s, Instant::now());
            if !self.tap.is_open(self.session) {
                return Err(End::Over);
            }
            if wait.is_zero() {
                return Ok(());
            }
            std::thread::sleep(wait.min(5 * LOOK_INTERVAL));
        }
    }

    fn find_out(&mut self, extent: u32, place: &Extent) -> Result<Finding, End> {
        let mut differed = 0;
        for _ in 0..ATTEMPTS_MAX {
            match self.ask(extent, place)? {
                Some(Answer::Same) => return Ok(Finding::Same),
                Some(Answer::Differs) => differed += 1,
                Some(Answer::Lost) | None => {}
            }
            if differed == CONFIRMED {
                return Ok(Finding::Differs);
            }
        }
        Ok(Finding::Unsettled)
    }

    /// Asks whether the backup has the same. None: it has not, but the guest may have changed it meanwhile.
    fn ask(&mut self, extent: u32, place: &Extent) -> Result<Option<Answer>, End> {
        let held = self.hold(place)?;
        let content = self.images.read(place).map_err(End::Image)?;
        self.pace.took(content.as_ref().map_or(0, |content| content.len() as u64));
        let compare = Compare { disk: place.disk, extent, hash: hash(place, content.as_ref()) };
        drop(content);
        self.shared.work.lock().question = Some(Question { disk: place.disk, extent, answer: None });
        if !self.tap.put(self.session, FrameType::Compare, postcard::to_stdvec(&compare).unwrap_or_default())
        {
            return Err(End::Over);
        }
        if let Some(answer) = self.await_answer(HOLD_MAX)? {
            return Ok(Some(answer));
        }
        drop(held);
        match self.await_answer(ANSWER_MAX)? {
            None => Err(End::Silent),
            Some(answer) => Ok(Some(answer).filter(|answer| *answer != Answer::Differs)),
        }
    }

    fn await_answer(&self, at_most: Duration) -> Result<Option<Answer>, End> {
        let until = Instant::now() + at_most;
        let mut work = self.shared.work.lock();
        loop {
            if let Some(answer) = work.question.as_ref().and_then(|question| question.answer) {
                work.question = None;
                return Ok(Some(answer));
            }
            if Instant::now() >= until {
                return Ok(None);
            }
            if !self.tap.is_open(self.session) {
                return Err(End::Over);
            }
            self.shared.changed.wait_for(&mut work, LOOK_INTERVAL);
        }
    }

    /// Nothing of it changes until what this returns is dropped, and what was told before is made.
    fn hold(&self, place: &Extent) -> Result<Held, End> {
        if !self.tap.hold(self.session, place.clone()) {
            return Err(End::Over);
        }
        let held = Held { tap: Arc::clone(&self.tap), session: self.session };
        while !self.tap.is_quiet(place) {
            if !self.tap.is_open(self.session) {
                return Err(End::Over);
            }
            std::thread::sleep(QUIET_INTERVAL);
        }
        Ok(held)
    }

    /// An extent that differs is an alarm. It is compared again when the next pairing begins.
    fn tell(&self, place: &Extent) {
        let Extent { disk, bytes } = place;
        self.intents.differ(*disk, bytes);
        self.mismatches.fetch_add(1, Ordering::Relaxed);
        let mut work = self.shared.work.lock();
        work.done.differing_bytes += bytes.end - bytes.start;
        if work.done.differing.len() >= TOLD_MAX {
            return;
        }
        tracing::error!(
            "disk {}: bytes {} to {} of the backup's image are not those of this host's: one of the two hosts' storage \
             has lost or changed what was written. This host's image is what the VM reads. If it is right, ftctl disk \
             verify --repair sends it; if the backup's is, move the VM there (ftctl switchover): this host's is then \
             made the same",
            disk + 1,
            bytes.start,
            bytes.end - 1
        );
        work.done.differing.push(DifferingStatus { disk: disk + 1, from: bytes.start, to: bytes.end - 1 });
    }

    /// Sends what this host has, among the guest's changes, and looks whether it has arrived.
    fn send(&mut self, extent: u32, place: &Extent) -> Result<(), End> {
        {
            let _held = self.hold(place)?;
            let content = self.images.read(place).map_err(End::Image)?;
            let changes = self.images.as_changes(place, content.as_ref());
            if !changes.iter().all(|change| self.tap.put_change(self.session, change)) {
                return Err(End::Over);
            }
        }
        if self.find_out(extent, place)? == Finding::Same {
            self.shared.work.lock().done.repaired_bytes += place.bytes.end - place.bytes.start;
        }
        Ok(())
    }
}

/// An extent that does not change.
struct Held {
    tap: Arc<WriteTap>,
    session: Session,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.tap.release(self.session);
    }
}
