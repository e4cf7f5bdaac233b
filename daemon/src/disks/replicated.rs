//! The writable disks of this node's VM: their images, opened once for as long as the daemon runs, and all that has a
//! part in them.

use super::beside::Beside;
use super::equalize::{EqualizeError, Equalizer};
use super::error::BesideError;
use super::executed::Executed;
use super::follower::{FollowError, Follower, ImageWriter};
use super::images::NumberedImage;
use super::intents::Intents;
use super::nurse::TellStands;
use super::overlay::open_image;
use super::stamps::Stamps;
use super::tap::{OnTheWay, Take, Tapped, TappedDisk, WriteTap};
use super::verify::{OnDifference, TellCompared, Verifier, VerifyError};
use crate::config::{Config, DiskConfig, OnDiskError};
use crate::observe::{DisksCopyStatus, DisksStatus};
use ft_checkpoint::wire::message::{Compared, DiskMap, Mode, Settled};
use ft_disk::{
    Completion, DiskImageError, ImageStore, IoDone, IoOrder, IoQueue, RawImage, Store, StoreError,
};
use ft_vm::devices::Disk;
use ft_vm::machine::Machine;
use parking_lot::Mutex;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Of the backup's journal, which is as large as this node's, and of what may be in flight, the part that changes of
/// disks may take on their way. The rest is for what is acked and not carried out, and for pages.
const ON_THE_WAY: u64 = 4;

/// Why the disks cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DisksError {
    /// An image, or what lies under or beside it.
    #[error(transparent)]
    Beside(#[from] BesideError),
    /// No thread.
    #[error("cannot start a thread for disks that stand still: {0}")]
    Thread(std::io::Error),
    /// They cannot follow a primary's.
    #[error(transparent)]
    Follow(#[from] FollowError),
}

/// See the module.
pub struct Disks {
    images: Vec<(NumberedImage, DiskConfig)>,
    /// The machine's own share of each image.
    lent: Mutex<Vec<(u16, Weak<RawImage>)>>,
    intents: Arc<Intents>,
    stamps: Arc<Stamps>,
    tap: Arc<WriteTap>,
    follower: Follower,
    /// Replay mode.
    executed: Option<Arc<Executed>>,
    /// Primary: what makes the backup's equal, while a copy is under way.
    equalizer: Mutex<Option<Arc<Equalizer>>>,
    /// How far the last one came.
    last_copy: Mutex<Option<DisksCopyStatus>>,
    /// Primary: what compares the backup's with these, when it is asked to.
    verifier: Verifier,
}

impl Disks {
    /// Opens the images, and what lies beside them. None: the VM has no writable disk.
    pub fn open(config: &Config) -> Result<Option<Arc<Self>>, DisksError> {
        let mut images = Vec::new();
        for (number, disk) in (0..).zip(&config.machine.disks).filter(|(_, disk)| !disk.read_only) {
            let image = open_image(config, number, disk)?;
            images.push(((number, Arc::new(image)), disk.clone()));
        }
        let Some(beside) = Beside::open(config)? else { return Ok(None) };
        let numbered: Vec<NumberedImage> = images.iter().map(|(image, _)| image.clone()).collect();
        let intents = Arc::clone(beside.intents());
        let r = &config.replication;
        let on_the_way = (r.journal_mib.min(r.inflight_mib) << 20) / ON_THE_WAY;
        let tap = WriteTap::new(on_the_way, Some(Arc::clone(&intents)));
        tap.limit_copy(r.disk_copy_mib_s << 20);
        let moving = images.iter().filter(|(_, config)| config.on_io_error == Some(OnDiskError::Switchover));
        tap.nurse(moving.map(|((number, _), _)| *number).collect()).map_err(DisksError::Thread)?;
        let again = Arc::downgrade(&tap);
        intents.on_ready(Some(Arc::new(move || {
            if let Some(tap) = again.upgrade() {
                tap.try_again();
            }
        })));
        let (journal, stamps) = (Arc::clone(beside.journal()), Arc::clone(beside.stamps()));
        let of_follower = Some(Arc::clone(&stamps));
        let executed = match r.mode {
            Mode::Replay => Some(Arc::new(Executed::start(&tap, &intents, &numbered)?)),
            Mode::Checkpoint => None,
        };
        let by_journal = ImageWriter::Journal(r.durability);
        let writer =
            executed.as_ref().map_or(by_journal, |executed| ImageWriter::Machine(Arc::clone(executed)));
        let follower = Follower::start(journal, of_follower, Arc::clone(&intents), &numbered, writer)?;
        Ok(Some(Arc::new(Self {
            images,
            lent: Mutex::default(),
            intents,
            stamps,
            tap,
            follower,
            executed,
            equalizer: Mutex::default(),
            last_copy: Mutex::default(),
            verifier: Verifier::default(),
        })))
    }

    /// What a machine's disk of this number stands on, if it is writable. Refused while the kernel has in hand what an
    /// earlier machine asked for: that would be done late, over what comes then.
    pub fn disk(&self, number: u16) -> Result<Option<Disk>, DiskImageError> {
        let Some(((_, image), config)) = self.images.iter().find(|((of, _), _)| *of == number) else {
            return Ok(None);
        };
        let mut lent = self.lent.lock();
        lent.retain(|(_, share)| share.strong_count() != 0);
        let path = || config.image.clone();
        if lent.iter().any(|(of, _)| *of == number) {
            return Err(DiskImageError::Late { path: path() });
        }
        let share = image.share().map_err(|source| DiskImageError::Open { path: path(), source })?;
        let share = Arc::new(share);
        lent.push((number, Arc::downgrade(&share)));
        let store = Box::new(ImageStore::new(share, config.io_engine));
        let mut disk = Disk::new(self.intents.watch(number, store));
        disk.owner = Some(self.tap.owner(number));
        disk.on_io_error = config.on_io_error();
        Ok(Some(disk))
    }

    /// The open image of this number, if it is that of a writable disk.
    pub fn image(&self, number: u16) -> Option<Arc<RawImage>> {
        let of_it = self.images.iter().find(|((of, _), _)| *of == number);
        of_it.map(|((_, image), _)| Arc::clone(image))
    }

    /// Bytes of each disk of the machine up to the last that is writable; 0 for those that are not.
    pub fn sizes(&self) -> Vec<u64> {
        let mut sizes = Vec::new();
        for ((number, image), _) in &self.images {
            sizes.resize(usize::from(*number), 0);
            sizes.push(image.bytes());
        }
        sizes
    }

    /// Their numbers.
    pub fn numbers(&self) -> impl Iterator<Item = u16> {
        self.images.iter().map(|((number, _), _)| *number)
    }

    /// What says whose image is right.
    pub fn stamps(&self) -> &Arc<Stamps> {
        &self.stamps
    }

    /// Who is told while a disk stands still for which the operator wishes that the VM moves.
    pub fn on_stand(&self, tell: TellStands) {
        self.tap.on_stand(tell);
    }

    /// Primary: who is told what a comparison of the images has shown.
    pub fn on_compared(&self, tell: TellCompared) {
        self.verifier.on_compared(tell);
    }

    /// Primary: where their changes go.
    pub fn tap(&self) -> &Arc<WriteTap> {
        &self.tap
    }

    /// Backup: where the primary's changes go.
    pub fn follower(&self) -> &Follower {
        &self.follower
    }

    /// Replay mode's backup: what its machine changes by itself.
    pub fn executed(&self) -> Option<&Arc<Executed>> {
        self.executed.as_ref()
    }

    /// The machine whose disks these are now.
    pub fn plug(&self, machine: Option<&Machine>) {
        let port = |number: u16| {
            let port = machine?.disk(usize::from(number))?;
            Some((number, Box::new(port) as Box<dyn TappedDisk>))
        };
        self.tap.plug(self.numbers().filter_map(port).collect());
    }

    /// A copy begins: the changes are told from now on, and what may differ is compared.
    pub fn equalize(&self, take: Take) -> Result<(Tapped, Arc<Equalizer>), EqualizeError> {
        self.intents.begin_pairing();
        let tapped = self.tap.begin(take);
        let equalizer = Arc::new(Equalizer::start(&self.tap, &self.intents, &self.numbered())?);
        *self.equalizer.lock() = Some(Arc::clone(&equalizer));
        Ok((tapped, equalizer))
    }

    fn numbered(&self) -> Vec<NumberedImage> {
        self.images.iter().map(|(image, _)| image.clone()).collect()
    }

    /// Primary: begins to compare the backup's images with these, at so many bytes a second.
    pub fn verify(&self, bytes_per_s: u64, on_difference: OnDifference) -> Result<(), VerifyError> {
        if self.executed.is_some() {
            return Err(VerifyError::Executed);
        }
        if self.equalizer.lock().is_some() {
            return Err(VerifyError::Alone);
        }
        self.verifier.start(&self.tap, &self.intents, &self.numbered(), bytes_per_s, on_difference)
    }

    /// Primary: the pairing goes on over another connection.
    pub fn reconnected(&self) {
        self.verifier.reconnected();
    }

    /// The backup has told a part of its map.
    pub fn mapped(&self, part: &DiskMap) {
        let equalizer = self.equalizer.lock().clone();
        if let Some(equalizer) = equalizer {
            equalizer.mapped(part);
        }
    }

    /// The backup's images are durable so far.
    pub fn settled(&self, Settled { pairing, epoch }: Settled) {
        self.intents.settled(pairing, epoch);
    }

    /// How they are. It waits for no disk.
    pub fn status(&self) -> DisksStatus {
        let equalizer = self.equalizer.lock().clone();
        let OnTheWay { bytes, waits } = self.tap.on_the_way();
        DisksStatus {
            differing_bytes: self.intents.set_bytes(),
            unacked_bytes: bytes,
            waits,
            journal_bytes: self.follower.waiting(),
            copy: equalizer.map(|equalizer| equalizer.status()),
            last_copy: *self.last_copy.lock(),
            verify: self.verifier.status(),
            mismatches: self.verifier.mismatches(),
            trouble: self
                .tap
                .trouble(Duration::ZERO)
                .or_else(|| self.follower.trouble())
                .or_else(|| self.executed.as_ref().and_then(|executed| executed.trouble()))
                .or_else(|| self.intents.trouble()),
        }
    }

    /// The copy is over.
    pub fn equalized(&self) {
        let equalizer = self.equalizer.lock().take();
        *self.last_copy.lock() = equalizer.as_ref().map(|equalizer| equalizer.status());
        // Not under the lock: it may wait for its thread.
        drop(equalizer);
    }

    /// The backup has compared an extent.
    pub fn compared(&self, compared: Compared) {
        let equalizer = self.equalizer.lock().clone();
        match equalizer {
            Some(equalizer) => equalizer.answered(compared),
            None => self.verifier.answered(compared),
        }
    }
}

/// The disk of a machine that never asks for anything: it only takes a state over.
pub struct NoStore {
    /// Its size.
    pub bytes: u64,
}

impl Store for NoStore {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn start(self: Box<Self>, _: &str, _: Completion) -> Result<Box<dyn IoQueue>, StoreError> {
        Ok(Box::new(Nothing))
    }
}

struct Nothing;

impl IoQueue for Nothing {
    fn submit(&mut self, _: IoOrder) -> Option<IoDone> {
        None
    }

    fn nudge(&self) -> bool {
        false
    }
}
