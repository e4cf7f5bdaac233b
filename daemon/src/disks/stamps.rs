//! The stamps of this node's images. All images of a VM have the same history, so they are written together.

use super::error::BesideError;
use super::files;
use ft_arbiter::CellId;
use ft_checkpoint::wire::vm_id;
use ft_mirror::{CellView, History, ImageOf, Judgement, Stamp, StampFile, judge};
use parking_lot::Mutex;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// An image, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The image.
    pub image: PathBuf,
    /// What it is.
    pub verdict: Judgement,
}

/// See the module.
pub struct Stamps {
    all: Mutex<Vec<StampOf>>,
    /// The VM runs from the images here: their stamps follow the cell.
    runs: AtomicBool,
}

pub(super) struct StampOf {
    pub(super) path: PathBuf,
    pub(super) image: PathBuf,
    pub(super) of: ImageOf,
    pub(super) file: Option<StampFile<File>>,
}

/// Whose an image is, as its stamp says it.
pub(super) fn whose(vm: &str, image: &Path, disk_bytes: u64) -> ImageOf {
    let mut place = [0; 8];
    place.copy_from_slice(&blake3::hash(image.as_os_str().as_bytes()).as_bytes()[..8]);
    ImageOf { vm: vm_id(vm), image: u64::from_le_bytes(place), disk_bytes }
}

impl StampOf {
    /// The stamp beside this image, if it has one.
    pub(super) fn open(path: PathBuf, image: PathBuf, of: ImageOf) -> Result<Self, BesideError> {
        let opened = files::open(&path)?.map(StampFile::open).transpose();
        let file = opened.map_err(|source| BesideError::Stamp { path: path.clone(), source })?;
        Ok(Self { path, image, of, file })
    }

    pub(super) fn stamp(&self) -> Option<Stamp> {
        self.file.as_ref().map(StampFile::stamp)
    }

    fn write(&mut self, stamp: Stamp) -> Result<(), BesideError> {
        let failed = |source| BesideError::Stamp { path: self.path.clone(), source };
        match &mut self.file {
            Some(file) => file.write(stamp).map_err(failed),
            None => {
                let begin = |file| StampFile::create(file, stamp).map_err(failed);
                self.file = Some(files::make(&self.path, StampFile::<File>::BYTES, begin)?);
                Ok(())
            }
        }
    }
}

impl Stamps {
    pub(super) fn new(all: Vec<StampOf>) -> Self {
        Self { all: Mutex::new(all), runs: false.into() }
    }

    /// What each image is, by the cell as it was before this node asked for it.
    #[must_use]
    pub fn judge(&self, view: Option<CellView>) -> Vec<Judged> {
        let judged = |one: &StampOf| Judged {
            image: one.image.clone(),
            verdict: judge(view, one.of, one.stamp().as_ref()),
        };
        self.all.lock().iter().map(judged).collect()
    }

    /// What each image's stamp says; none: it has none.
    #[must_use]
    pub fn say(&self) -> Vec<Option<Stamp>> {
        self.all.lock().iter().map(StampOf::stamp).collect()
    }

    /// From here on all images have this history, durably. Whoever changes them is told first.
    pub fn write(&self, cell: CellId, history: History) -> Result<(), BesideError> {
        let mut all = self.all.lock();
        self.runs.store(matches!(history, History::Ran { .. }), Ordering::Release);
        write(&mut all, cell, history)
    }

    /// The VM runs from them no more.
    pub fn rest(&self) {
        self.runs.store(false, Ordering::Release);
    }

    /// Whether the VM runs from them.
    #[must_use]
    pub fn run(&self) -> bool {
        self.runs.load(Ordering::Acquire)
    }

    /// The cell says that this node owns the VM in this generation. That is stamped if the VM runs here.
    pub fn owned(&self, cell: CellId, generation: u64) -> Result<(), BesideError> {
        let mut all = self.all.lock();
        if !self.run() {
            return Ok(());
        }
        write(&mut all, cell, History::Ran { generation })
    }
}

fn write(all: &mut [StampOf], cell: CellId, history: History) -> Result<(), BesideError> {
    all.iter_mut().try_for_each(|one| one.write(Stamp { of: one.of, cell: cell.0, history }))
}
