//! The stamps of this node's images. All images of a VM have the same history, so they are written together.

use super::error::BesideError;
use super::files;
use ft_arbiter::CellId;
use ft_checkpoint::wire::vm_id;
use ft_mirror::{CellView, History, Stamp, StampFile, Verdict, Whose, judge};
use parking_lot::Mutex;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// An image, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The image.
    pub image: PathBuf,
    /// What it is.
    pub verdict: Verdict,
}

/// See the module.
pub struct Stamps(Mutex<Vec<StampOf>>);

pub(super) struct StampOf {
    pub(super) path: PathBuf,
    pub(super) image: PathBuf,
    pub(super) of: Whose,
    pub(super) file: Option<StampFile<File>>,
}

/// Whose an image is, as its stamp says it.
pub(super) fn whose(vm: &str, image: &Path, disk_bytes: u64) -> Whose {
    let mut place = [0; 8];
    place.copy_from_slice(&blake3::hash(image.as_os_str().as_bytes()).as_bytes()[..8]);
    Whose { vm: vm_id(vm), image: u64::from_le_bytes(place), disk_bytes }
}

impl StampOf {
    /// The stamp beside this image, if it has one.
    pub(super) fn open(path: PathBuf, image: PathBuf, of: Whose) -> Result<Self, BesideError> {
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
            Some(file) if file.stamp() == stamp => Ok(()),
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
        Self(Mutex::new(all))
    }

    /// What each image is, by the cell as it was before this node asked for it.
    #[must_use]
    pub fn judge(&self, view: CellView) -> Vec<Judged> {
        let judged = |one: &StampOf| Judged {
            image: one.image.clone(),
            verdict: judge(view, one.of, one.stamp().as_ref()),
        };
        self.0.lock().iter().map(judged).collect()
    }

    /// What each image's stamp says; none: it has none.
    #[must_use]
    pub fn say(&self) -> Vec<Option<Stamp>> {
        self.0.lock().iter().map(StampOf::stamp).collect()
    }

    /// From here on all images have this history, durably.
    pub fn write(&self, cell: CellId, history: History) -> Result<(), BesideError> {
        let mut all = self.0.lock();
        all.iter_mut().try_for_each(|one| one.write(Stamp { of: one.of, cell: cell.0, history }))
    }
}
