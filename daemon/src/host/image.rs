//! The file of an image: the sealed state of a VM that this node owns and could not resume, in the state directory. It
//! is written aside, flushed and renamed; there is one for a VM at most. It holds all of the guest's memory, so nobody
//! but the daemon's user may read it.

use crate::role::{Held, OnDisk, Saved};
use ft_arbiter::CellId;
use ft_checkpoint::saved::{self, ImageLabel, ImageReader, SavedError, Unwritten};
use ft_checkpoint::wire::identity::Fact;
use ft_ram::RamView;
use ft_vm::spec::MachineSpec;
use nix::sys::statvfs::statvfs;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Between name and generation, and behind it.
const SUFFIX: &str = ".image";
const ASIDE: &str = ".image.new";
/// The owner's alone.
const MODE: u32 = 0o600;
const BUFFER_BYTES: usize = 1 << 20;
/// What stays free on the file system: the node's record must still find room.
const SPARE_BYTES: u64 = 16 << 20;

/// Why there is no image, or none that can be gone on from.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The system refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file, or its directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The disk is too full.
    #[error(
        "{} has {} MiB left, the image may take {} MiB: make room there",
        path.display(), left >> 20, need.div_ceil(1 << 20)
    )]
    NoRoom {
        /// The directory.
        path: PathBuf,
        /// What is left.
        left: u64,
        /// What it takes at most.
        need: u64,
    },
    /// It is not written.
    #[error("{}: {source}", path.display())]
    Unwritten {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Unwritten,
    },
    /// It is not taken.
    #[error("{} {source}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SavedError,
    },
    /// It is of another VM or node, or says another generation than its name.
    #[error(
        "{} is not of this VM and node: it says VM {}, node {}, generation {}",
        path.display(), label.vm, label.node, label.generation
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it says.
        label: Box<ImageLabel>,
    },
    /// The state in it is of a machine whose disk held something else.
    #[error(
        "{} does not fit {name}: {shown} has changed since it was written; bring the old file back",
        path.display()
    )]
    Disk {
        /// The file.
        path: PathBuf,
        /// Which disk.
        name: String,
        /// Its file.
        shown: String,
    },
    /// There is none any more.
    #[error("{}: no image is there any more", .0.display())]
    Gone(PathBuf),
}

impl ImageError {
    /// Whether another attempt may go better.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Io { .. } | Self::NoRoom { .. } | Self::Unwritten { .. } => true,
            Self::Unusable { source, .. } => source.may_pass(),
            Self::Foreign { .. } | Self::Disk { .. } | Self::Gone(_) => false,
        }
    }

    /// The cell that it is of, as far as that can be told.
    fn cell(&self) -> Option<CellId> {
        match self {
            Self::Foreign { label, .. } => Some(CellId(label.cell)),
            _ => None,
        }
    }

    /// Whether it may be whole, and of use to a node that is configured otherwise or to another version of ftd.
    #[must_use]
    pub fn is_unfit(&self) -> bool {
        match self {
            Self::Unusable { source, .. } => source.is_unfit(),
            Self::Foreign { .. } | Self::Disk { .. } => true,
            Self::Io { .. } | Self::NoRoom { .. } | Self::Unwritten { .. } | Self::Gone(_) => false,
        }
    }
}

/// What an image says of itself.
type Head = Result<Saved, ImageError>;

/// See the module.
#[derive(Clone, Debug)]
pub struct ImageFile {
    directory: PathBuf,
    vm: String,
    node: String,
}

impl ImageFile {
    /// The image of `vm` on this node, in its state directory.
    #[must_use]
    pub fn new(state_dir: &Path, vm: &str, node: &str) -> Self {
        Self { directory: state_dir.to_owned(), vm: vm.to_owned(), node: node.to_owned() }
    }

    fn path(&self, generation: u64) -> PathBuf {
        self.directory.join(format!("{}-{generation}{SUFFIX}", self.vm))
    }

    fn failed(&self, path: &Path) -> impl Fn(io::Error) -> ImageError + use<> {
        let path = path.to_owned();
        move |source| ImageError::Io { path: path.clone(), source }
    }

    /// What there is for a node in this cell. What an earlier process has left half-written goes.
    #[must_use]
    pub fn look(&self, cell: Option<CellId>) -> OnDisk {
        match self.find(cell) {
            Ok(None) => OnDisk::Nothing,
            Ok(Some((generation, Ok(saved)))) => {
                let epoch = saved.held.epoch;
                tracing::warn!(generation, epoch, "an image on disk keeps a state of the VM");
                OnDisk::Image(saved)
            }
            Ok(Some((generation, Err(why)))) if !why.may_pass() => {
                tracing::error!(generation, "an image on disk cannot be gone on from: {why}");
                match why.is_unfit() {
                    true => OnDisk::Unfit { cell: why.cell(), generation, why: why.to_string() },
                    false => OnDisk::Unusable(why.to_string()),
                }
            }
            Ok(Some((_, Err(why)))) | Err(why) => OnDisk::Unknown(why.to_string()),
        }
    }

    /// Of the images, the newest counts that is of this cell, or may be. There are several where a process died as it
    /// published one. An older one says nothing of the cell that the newest is of: where that cannot be read, nothing
    /// is known.
    fn find(&self, cell: Option<CellId>) -> Result<Option<(u64, Head)>, ImageError> {
        let mut found = Vec::new();
        for (path, generation) in self.files()? {
            match generation {
                Some(generation) => found.push((generation, self.head(&path, generation))),
                None => {
                    remove(&path).unwrap_or_else(|e| tracing::debug!("{} stays: {e}", path.display()));
                }
            }
        }
        Ok(found.into_iter().max_by_key(|(generation, head)| {
            let of = match head {
                Ok(saved) => Some(saved.cell),
                Err(why) => why.cell(),
            };
            (cell.is_none() || of.is_none() || of == cell, *generation)
        }))
    }

    /// What the image at this place says of itself.
    fn head(&self, path: &Path, generation: u64) -> Result<Saved, ImageError> {
        self.own(path, generation, self.open(path)?.label())
    }

    fn own(&self, path: &Path, named: u64, label: &ImageLabel) -> Result<Saved, ImageError> {
        let ImageLabel { vm, node, cell, generation, pairing, epoch, spec: _, disks: _ } = label;
        if (vm, node, *generation) != (&self.vm, &self.node, named) {
            return Err(ImageError::Foreign { path: path.to_owned(), label: Box::new(label.clone()) });
        }
        let held = Held { pairing: *pairing, epoch: *epoch };
        Ok(Saved { cell: CellId(*cell), generation: named, held })
    }

    fn open(&self, path: &Path) -> Result<ImageReader<BufReader<File>>, ImageError> {
        let file = File::open(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ImageError::Gone(path.to_owned()),
            _ => self.failed(path)(source),
        })?;
        ImageReader::open(BufReader::with_capacity(BUFFER_BYTES, file))
            .map_err(|source| ImageError::Unusable { path: path.to_owned(), source })
    }

    /// Fills fresh memory from this image, and gives the state that belongs to it. The machine's disks hold what they
    /// did.
    pub fn read(
        &self,
        saved: Saved,
        (spec, disks): (&MachineSpec, &[Fact]),
        ram: &RamView,
    ) -> Result<Vec<u8>, ImageError> {
        let path = self.path(saved.generation);
        let reader = self.open(&path)?;
        if self.own(&path, saved.generation, reader.label())? != saved {
            return Err(ImageError::Foreign { label: Box::new(reader.label().clone()), path });
        }
        for (name, value) in &reader.label().disks {
            if let Some(disk) = disks.iter().find(|disk| disk.name == *name && disk.value != *value) {
                return Err(ImageError::Disk { path, name: name.clone(), shown: disk.shown.clone() });
            }
        }
        reader.take(spec, ram).map_err(|source| ImageError::Unusable { path, source })
    }

    /// Writes an image aside, durably. `looked_at` hears how many per cent are written, and may call it off.
    pub fn write(
        &self,
        saved: Saved,
        (spec, disks): (&MachineSpec, &[Fact]),
        state: &[u8],
        ram: &RamView,
        mut looked_at: impl FnMut(u8) -> ControlFlow<()>,
    ) -> Result<Aside, ImageError> {
        let Saved { cell, generation, held: Held { pairing, epoch } } = saved;
        let label = ImageLabel {
            vm: self.vm.clone(),
            node: self.node.clone(),
            cell: cell.0,
            generation,
            pairing,
            epoch,
            spec: spec.clone(),
            disks: disks.iter().map(|disk| (disk.name.clone(), disk.value.clone())).collect(),
        };
        let (need, pages) = saved::bytes_max(state, ram).map_err(self.failed(&self.directory))?;
        self.check_room(need)?;
        let aside = self.directory.join(format!("{}-{generation}{ASIDE}", self.vm));
        let file = remove(&aside)
            .and_then(|()| OpenOptions::new().write(true).create_new(true).mode(MODE).open(&aside))
            .map_err(self.failed(&aside))?;
        let aside = Aside { path: aside, of: self.clone(), cell, generation };
        let out = BufWriter::with_capacity(BUFFER_BYTES, file);
        let looked_at = |done: u64| looked_at((100 * done / pages.max(1)).min(100) as u8);
        let written = saved::write(out, &label, state, ram, looked_at)
            .and_then(|out| out.into_inner().map_err(|e| e.into_error().into()))
            .and_then(|file| Ok(file.sync_all()?));
        written.map_err(|source| ImageError::Unwritten { path: aside.path.clone(), source })?;
        Ok(aside)
    }

    fn check_room(&self, need: u64) -> Result<(), ImageError> {
        let path = &self.directory;
        let space = statvfs(path).map_err(|e| self.failed(path)(e.into()))?;
        let left = space.blocks_available() as u64 * space.fragment_size() as u64;
        if left < need + SPARE_BYTES {
            return Err(ImageError::NoRoom { path: path.clone(), left, need: need + SPARE_BYTES });
        }
        Ok(())
    }

    /// No image of this cell is left below this generation. One of another cell stays, and so does one that cannot be
    /// read now: it may be of another.
    pub fn remove_below(&self, cell: CellId, below: u64) -> Result<(), ImageError> {
        let mut removed = false;
        let mut kept = None;
        for (path, generation) in self.files()? {
            let goes = match generation {
                None => true,
                Some(generation) if generation >= below => false,
                Some(generation) => match self.head(&path, generation) {
                    Ok(saved) => saved.cell == cell,
                    Err(why) if why.may_pass() => {
                        kept = Some(why);
                        false
                    }
                    Err(why) => why.cell().is_none_or(|of| of == cell),
                },
            };
            if goes {
                remove(&path).map_err(self.failed(&path))?;
                removed = true;
            }
        }
        if removed {
            self.flush().map_err(self.failed(&self.directory))?;
        }
        kept.map_or(Ok(()), Err)
    }

    fn flush(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }

    /// The files of images, each with its generation; none: it was written aside, and came to nothing.
    fn files(&self) -> Result<Vec<(PathBuf, Option<u64>)>, ImageError> {
        let failed = self.failed(&self.directory);
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(&failed)? {
            let path = entry.map_err(&failed)?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(rest) = name.and_then(|name| name.strip_prefix(&self.vm)?.strip_prefix('-')) else {
                continue;
            };
            let number = |digits: &str| digits.parse::<u64>().ok();
            if rest.strip_suffix(ASIDE).and_then(number).is_some() {
                files.push((path, None));
            } else if let Some(generation) = rest.strip_suffix(SUFFIX).and_then(number) {
                files.push((path, Some(generation)));
            }
        }
        Ok(files)
    }
}

/// An image that is whole and durable, and has no name yet. Dropped, it is gone.
#[derive(Debug)]
pub struct Aside {
    path: PathBuf,
    of: ImageFile,
    cell: CellId,
    generation: u64,
}

impl Aside {
    /// It is the VM's image from now on, in the place of any before of its cell.
    pub fn publish(self) -> Result<PathBuf, ImageError> {
        let path = self.of.path(self.generation);
        fs::rename(&self.path, &path).and_then(|()| self.of.flush()).map_err(self.of.failed(&path))?;
        // The newest counts, whatever else stays.
        if let Err(e) = self.of.remove_below(self.cell, self.generation) {
            tracing::warn!("a stale image of the VM cannot be removed: {e}");
        }
        Ok(path)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // Published, it has another name. What stays is removed at the next start.
        let _ = remove(&self.path);
    }
}

/// A file that is not there is removed.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ft_ram::GuestRam;
    use ft_vm::spec::EngineKind;
    use std::os::unix::fs::PermissionsExt;

    const STATE: &[u8] = b"registers";

    fn spec() -> MachineSpec {
        let engine = EngineKind::Soft;
        let (nets, disks, bus, cpu) = (vec![], Vec::new(), ft_vm::spec::BusKind::Mmio, Default::default());
        MachineSpec { engine, vcpus: 1, ram_bytes: 16 << 20, nets, disks, rng: false, bus, cpu }
    }

    fn saved(generation: u64) -> Saved {
        Saved { cell: CellId(9), generation, held: Held { pairing: 5, epoch: 44 } }
    }

    fn memory() -> RamView {
        let ram = GuestRam::new(16 << 20).unwrap().view().unwrap();
        ram.write_page(300, &[7; 4096]);
        ram
    }

    fn write(file: &ImageFile, generation: u64) -> Aside {
        file.write(saved(generation), (&spec(), &[]), STATE, &memory(), |_| ControlFlow::Continue(()))
            .unwrap()
    }

    fn names(directory: &Path) -> Vec<String> {
        let names = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn an_image_is_there_when_it_is_published_is_alone_and_is_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let file = ImageFile::new(directory.path(), "web", "beta");
        assert_eq!(file.look(None), OnDisk::Nothing);
        drop(write(&file, 3));
        assert_eq!(names(directory.path()), [] as [&str; 0], "called off, it is gone");
        for generation in [3, 4] {
            let path = write(&file, generation).publish().unwrap();
            assert_eq!(names(directory.path()), [format!("web-{generation}.image")]);
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, MODE);
            assert_eq!(file.look(None), OnDisk::Image(saved(generation)));
        }
        let ram = GuestRam::new(16 << 20).unwrap().view().unwrap();
        assert_eq!(file.read(saved(4), (&spec(), &[]), &ram).unwrap(), STATE);
        let mut page = [0; 4096];
        ram.read_page(300, &mut page);
        assert_eq!(page, [7; 4096]);
        file.remove_below(CellId(9), 4).unwrap();
        assert_eq!(file.look(None), OnDisk::Image(saved(4)), "the cell is there");
        file.remove_below(CellId(9), 5).unwrap();
        file.remove_below(CellId(9), 5).unwrap();
        assert_eq!(file.look(None), OnDisk::Nothing);
    }

    #[test]
    fn what_is_left_half_written_or_of_another_vm_is_no_image() {
        let directory = tempfile::tempdir().unwrap();
        let file = ImageFile::new(directory.path(), "web", "beta");
        fs::write(directory.path().join("web-7.image.new"), b"half").unwrap();
        fs::write(directory.path().join("web-x.image"), b"no number").unwrap();
        write(&ImageFile::new(directory.path(), "db", "beta"), 8).publish().unwrap();
        assert_eq!(file.look(None), OnDisk::Nothing);
        assert!(!names(directory.path()).contains(&"web-7.image.new".into()));
        assert_eq!(names(directory.path()).len(), 2, "what is not this VM's stays");
    }

    #[test]
    fn a_damaged_image_and_one_of_another_node_are_of_no_use_and_stay() {
        let directory = tempfile::tempdir().unwrap();
        let file = ImageFile::new(directory.path(), "web", "beta");
        let path = write(&file, 3).publish().unwrap();
        let of_alpha = ImageFile::new(directory.path(), "web", "alpha").look(None);
        let waits = |found: &OnDisk, what| match found {
            OnDisk::Unfit { cell, generation: 3, why } => why.contains(what).then_some(*cell),
            _ => None,
        };
        assert_eq!(waits(&of_alpha, "node beta"), Some(Some(CellId(9))), "{of_alpha:?}");
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(file.look(None), OnDisk::Image(saved(3)), "its head is whole");
        let ram = GuestRam::new(16 << 20).unwrap().view().unwrap();
        let error = file.read(saved(3), (&spec(), &[]), &ram).unwrap_err();
        assert!(!error.may_pass() && error.to_string().contains("damaged"), "{error}");
        let mut newer = bytes.clone();
        newer[8] = 9;
        fs::write(&path, &newer).unwrap();
        let found = file.look(None);
        assert_eq!(waits(&found, "format version 9"), Some(None), "{found:?}");
        fs::write(&path, b"letters").unwrap();
        assert!(matches!(file.look(None), OnDisk::Unusable(_)));
        assert!(path.exists());
    }

    #[test]
    fn a_disk_that_has_changed_since_the_image_was_written_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = ImageFile::new(directory.path(), "web", "beta");
        let disk = |hash: &str| Fact::equal_shown("disk 1", format!("4096 {hash}"), "/img/root.img");
        let none = |_| ControlFlow::Continue(());
        let spec = spec();
        file.write(saved(3), (&spec, &[disk("ab")]), STATE, &memory(), none).unwrap().publish().unwrap();
        let ram = GuestRam::new(16 << 20).unwrap().view().unwrap();
        let error = file.read(saved(3), (&spec, &[disk("cd")]), &ram).unwrap_err();
        assert!(error.is_unfit() && !error.may_pass(), "{error}");
        assert!(error.to_string().contains("disk 1: /img/root.img has changed"), "{error}");
        assert_eq!(file.read(saved(3), (&spec, &[disk("ab")]), &ram).unwrap(), STATE);
    }

    #[test]
    fn of_several_images_the_newest_of_the_nodes_cell_counts() {
        let directory = tempfile::tempdir().unwrap();
        let file = ImageFile::new(directory.path(), "web", "beta");
        let other = Saved { cell: CellId(1), ..saved(57) };
        let of_other = file.write(other, (&spec(), &[]), STATE, &memory(), |_| ControlFlow::Continue(()));
        of_other.unwrap().publish().unwrap();
        let aside = write(&file, 3);
        // As a process leaves it that dies between the two steps of publishing.
        fs::rename(&aside.path, file.path(3)).unwrap();
        assert_eq!(file.look(Some(CellId(9))), OnDisk::Image(saved(3)));
        assert_eq!(file.look(Some(CellId(1))), OnDisk::Image(other));
        drop(aside);
        write(&file, 4).publish().unwrap();
        assert_eq!(names(directory.path()), ["web-4.image", "web-57.image"], "another cell's stays");
    }

    #[test]
    fn a_newest_image_that_cannot_be_read_now_is_not_hidden_by_an_older_one_nor_removed_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = ImageFile::new(directory.path(), "web", "beta");
        write(&file, 3).publish().unwrap();
        // Reading a directory fails as a bad sector does.
        let newest = file.path(7);
        fs::create_dir(&newest).unwrap();
        assert!(matches!(file.look(Some(CellId(9))), OnDisk::Unknown(_)));
        file.remove_below(CellId(9), 7).unwrap();
        assert_eq!(names(directory.path()), ["web-7.image"]);
        assert!(file.remove_below(CellId(9), 8).is_err(), "it may be of another cell");
        assert!(newest.exists());
        fs::remove_dir(&newest).unwrap();
        write(&file, 7).publish().unwrap();
        assert_eq!(file.look(Some(CellId(9))), OnDisk::Image(saved(7)));
    }

    #[test]
    fn a_full_disk_is_said_before_it_is_filled() {
        let directory = tempfile::tempdir().unwrap();
        let file = ImageFile::new(directory.path(), "web", "beta");
        let error = file.check_room(u64::MAX / 2).unwrap_err();
        assert!(matches!(error, ImageError::NoRoom { .. }) && error.may_pass(), "{error}");
        assert!(error.to_string().contains("make room there"), "{error}");
    }
}
