//! The thread that writes the sealed state of a VM to disk, reads it, and removes it. It takes one job after the other,
//! so a removal finds what was written before it. A VM that goes on while its image is being written calls the image
//! off before its guest runs: an image is of one instant, or is none.

use super::news::KeeperNews;
use crate::host::{ImageError, ImageFile, Unread};
use crate::outlet::Outlet;
use crate::peer::TellContents;
use crate::role::{Held, ImageTrouble, Saved};
use ft_arbiter::CellId;
use ft_checkpoint::image::Image;
use ft_checkpoint::receiver::SealedImage;
use ft_ram::{GuestRam, MemoryError};
use ft_vm::spec::MachineSpec;
use parking_lot::{Condvar, Mutex};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Per cent between two pieces of news.
const NEWS_PERCENT: u8 = 5;

/// Why no image is written, or none is held.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The file.
    #[error(transparent)]
    File(#[from] ImageError),
    /// What the disks hold is not known.
    #[error("whether its disks are as they were is not known yet: {0}")]
    Contents(#[from] Unread),
    /// The memory cannot be mapped.
    #[error("guest memory: {0}")]
    Memory(#[from] MemoryError),
    /// There is no machine, or no memory for it.
    #[error("no machine for it: {0}")]
    Unprepared(String),
    /// There is nothing to write.
    #[error("no state is held")]
    NothingHeld,
    /// Replay mode.
    #[error(
        "in replay mode the state is in the machine that executed the log, and is not written to disk; this daemon \
         must not end"
    )]
    Replay,
    /// The VM went on.
    #[error("the VM went on before it was written")]
    CalledOff,
}

impl SaveError {
    /// What this is to a node that reads an image.
    #[must_use]
    pub fn trouble(&self) -> ImageTrouble {
        let why = self.to_string();
        match self {
            Self::File(error) if error.may_pass() => ImageTrouble::ForNow(why),
            Self::File(error) if error.is_unfit() => ImageTrouble::Unfit(why),
            Self::Contents(_) | Self::Memory(_) | Self::Unprepared(_) => ImageTrouble::ForNow(why),
            Self::File(_) | Self::NothingHeld | Self::Replay | Self::CalledOff => ImageTrouble::ForGood(why),
        }
    }
}

enum Job {
    Write { saved: Saved, ram: GuestRam, sealed: Arc<SealedImage>, leave: Arc<Leave> },
    Read { saved: Saved, ram: GuestRam },
    Find(CellId),
    RemoveBelow(CellId, u64),
}

/// The thread, and the write that it was last given.
pub struct Images {
    jobs: Sender<Job>,
    leave: Option<Arc<Leave>>,
    /// Somebody waits for what is being read.
    wanted: bool,
}

impl Images {
    /// Starts the thread, for a machine with these disks.
    pub fn start(
        file: ImageFile,
        spec: MachineSpec,
        disks: TellContents,
        news: Outlet<KeeperNews>,
    ) -> std::io::Result<Self> {
        let (jobs, received) = channel();
        let worker = Worker { file, spec, disks, news };
        std::thread::Builder::new().name("ftd-image".into()).spawn(move || worker.run(&received))?;
        Ok(Self { jobs, leave: None, wanted: false })
    }

    /// Writes what was sealed, in which nothing is pending any more. `ImageSaved` or `ImageUnsaved` follows.
    pub fn write(&mut self, saved: Saved, ram: GuestRam, sealed: Arc<SealedImage>) {
        self.call_off();
        let leave = Arc::new(Leave::default());
        self.leave = Some(Arc::clone(&leave));
        self.give(Job::Write { saved, ram, sealed, leave });
    }

    /// What is read next is waited for.
    pub fn want(&mut self) {
        self.wanted = true;
    }

    /// Whether what has been read was still waited for.
    pub fn was_wanted(&mut self) -> bool {
        std::mem::take(&mut self.wanted)
    }

    /// Reads the image into this fresh memory. `ImageRead` follows.
    pub fn read(&self, saved: Saved, ram: GuestRam) {
        self.give(Job::Read { saved, ram });
    }

    /// Looks what is there. `ImageFound` follows.
    pub fn find(&self, cell: CellId) {
        self.give(Job::Find(cell));
    }

    /// No image of this cell below this generation is there any more.
    pub fn remove_below(&mut self, cell: CellId, generation: u64) {
        self.call_off();
        self.give(Job::RemoveBelow(cell, generation));
    }

    /// A machine tries to go on with the VM: what is being written gets no name until it is known whether it does.
    pub fn pause(&self) {
        self.set(Going::Undecided);
    }

    /// It did not.
    pub fn go_on(&self) {
        self.set(Going::On);
    }

    /// It does, or what is being written is of no use any more.
    pub fn call_off(&mut self) {
        self.set(Going::Off);
        self.leave = None;
        self.wanted = false;
    }

    fn set(&self, going: Going) {
        if let Some(leave) = &self.leave {
            leave.set(going);
        }
    }

    fn give(&self, job: Job) {
        // The thread lives as long as we hold its sender, unless it panicked; then its message is in the log.
        let _ = self.jobs.send(job);
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Going {
    /// The VM stands still.
    #[default]
    On,
    /// It may be about to run.
    Undecided,
    /// It runs.
    Off,
}

/// Whether a write may go on, and what it wrote be given a name.
#[derive(Default)]
struct Leave {
    going: Mutex<Going>,
    changed: Condvar,
}

impl Leave {
    fn set(&self, going: Going) {
        *self.going.lock() = going;
        self.changed.notify_all();
    }

    fn is_off(&self) -> bool {
        *self.going.lock() == Going::Off
    }

    /// Waits until it is decided; false if it is off.
    fn decided(&self) -> bool {
        let mut going = self.going.lock();
        while *going == Going::Undecided {
            self.changed.wait(&mut going);
        }
        *going == Going::On
    }
}

struct Worker {
    file: ImageFile,
    spec: MachineSpec,
    disks: TellContents,
    news: Outlet<KeeperNews>,
}

impl Worker {
    fn run(&self, jobs: &Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            let told = match job {
                Job::Write { saved, ram, sealed, leave } => {
                    let outcome = self.write(saved, &ram, &sealed, &leave);
                    self.news.tell(KeeperNews::ImageWritten { generation: saved.generation, outcome })
                }
                Job::Read { saved, ram } => {
                    let outcome = self.read(saved, &ram).map(|sealed| (ram, sealed));
                    self.news.tell(KeeperNews::ImageRead(outcome))
                }
                Job::Find(cell) => self.news.tell(KeeperNews::ImageFound(self.file.look(Some(cell)))),
                Job::RemoveBelow(cell, generation) => {
                    match self.file.remove_below(cell, generation) {
                        Ok(()) => tracing::info!("the VM has gone on: its image on disk is removed"),
                        // It is stale, and removed at the next start.
                        Err(e) => tracing::warn!("a stale image of the VM cannot be removed: {e}"),
                    }
                    Ok(())
                }
            };
            if told.is_err() {
                return;
            }
        }
    }

    fn write(
        &self,
        saved: Saved,
        ram: &GuestRam,
        sealed: &SealedImage,
        leave: &Leave,
    ) -> Result<(), SaveError> {
        let mut said = 0;
        let looked_at = |percent: u8| {
            if percent >= said + NEWS_PERCENT {
                said = percent;
                let generation = saved.generation;
                if self.news.tell(KeeperNews::ImageProgress { generation, percent }).is_err() {
                    return ControlFlow::Break(());
                }
            }
            if leave.is_off() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        // A state in need is written, whatever the disks do.
        let disks = (self.disks)().unwrap_or_else(|why| {
            tracing::warn!("the image on disk will fit any content of the VM's disks: {why}");
            Vec::new()
        });
        let machine = (&self.spec, &disks[..]);
        let aside = match self.file.write(saved, machine, &sealed.state, &ram.view()?, looked_at) {
            Err(_) if leave.is_off() => return Err(SaveError::CalledOff),
            written => written?,
        };
        if !leave.decided() {
            return Err(SaveError::CalledOff);
        }
        let path = aside.publish()?;
        let (generation, epoch) = (saved.generation, sealed.epoch);
        tracing::warn!(generation, epoch, "the VM's state is on disk: {}", path.display());
        Ok(())
    }

    fn read(&self, saved: Saved, ram: &GuestRam) -> Result<Arc<SealedImage>, SaveError> {
        let view = ram.view()?;
        let state = self.file.read(saved, (&self.spec, &(self.disks)()?), &view)?;
        let Saved { generation, held: Held { pairing, epoch }, .. } = saved;
        tracing::info!(generation, epoch, "the VM's state is read from disk");
        let image = Arc::new(Image::new(view));
        Ok(Arc::new(SealedImage { pairing, epoch, state, pending: Vec::new(), image }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::role::{Held, OnDisk};
    use ft_arbiter::CellId;
    use ft_vm::spec::EngineKind;
    use std::path::Path;

    const SAVED: Saved = Saved { cell: CellId(9), generation: 3, held: Held { pairing: 5, epoch: 44 } };

    fn spec() -> MachineSpec {
        let engine = EngineKind::Soft;
        let (nets, disks, bus, cpu) = (vec![], Vec::new(), ft_vm::spec::BusKind::Mmio, Default::default());
        MachineSpec { engine, vcpus: 1, ram_bytes: 16 << 20, nets, disks, rng: false, bus, cpu }
    }

    fn memory() -> GuestRam {
        GuestRam::new(16 << 20).unwrap()
    }

    fn sealed(ram: &GuestRam) -> Arc<SealedImage> {
        let view = ram.view().unwrap();
        view.write_page(300, &[7; 4096]);
        let (state, image) = (b"registers".to_vec(), Arc::new(Image::new(view)));
        Arc::new(SealedImage { pairing: 5, epoch: 44, state, pending: Vec::new(), image })
    }

    fn images(directory: &Path) -> (Images, Receiver<KeeperNews>, ImageFile) {
        let (queue, news) = channel();
        let file = ImageFile::new(directory, "web", "beta");
        let told = Outlet::into_queue(&queue, |news| news);
        let images = Images::start(file.clone(), spec(), Box::new(|| Ok(Vec::new())), told).unwrap();
        (images, news, file)
    }

    /// A write that begins while a machine tries to go on.
    fn write_paused(images: &mut Images, ram: &GuestRam) {
        let leave = Arc::new(Leave::default());
        images.leave = Some(Arc::clone(&leave));
        images.pause();
        images.give(Job::Write { saved: SAVED, ram: ram.clone(), sealed: sealed(ram), leave });
    }

    /// Whether the image came to be, once that is certain.
    fn written(news: &Receiver<KeeperNews>) -> Result<(), SaveError> {
        loop {
            if let KeeperNews::ImageWritten { generation: 3, outcome } = news.recv().unwrap() {
                return outcome;
            }
        }
    }

    #[test]
    fn an_image_gets_its_name_only_when_it_is_certain_that_the_vm_stands_still() {
        let directory = tempfile::tempdir().unwrap();
        let (mut images, news, file) = images(directory.path());
        let ram = memory();
        write_paused(&mut images, &ram);
        images.call_off();
        assert!(matches!(written(&news), Err(SaveError::CalledOff)));
        assert_eq!(file.look(None), OnDisk::Nothing);
        write_paused(&mut images, &ram);
        images.go_on();
        written(&news).unwrap();
        assert_eq!(file.look(None), OnDisk::Image(SAVED));
    }

    #[test]
    fn what_was_written_is_held_again_and_a_removal_comes_after_it() {
        let directory = tempfile::tempdir().unwrap();
        let (mut images, news, file) = images(directory.path());
        let ram = memory();
        images.write(SAVED, ram.clone(), sealed(&ram));
        written(&news).unwrap();
        images.want();
        images.read(SAVED, memory());
        let Ok(KeeperNews::ImageRead(Ok((ram, sealed)))) = news.recv() else { panic!("it is not read") };
        assert!(images.was_wanted() && !images.was_wanted());
        assert_eq!((sealed.pairing, sealed.epoch, &sealed.state[..]), (5, 44, &b"registers"[..]));
        let mut page = [0; 4096];
        ram.view().unwrap().read_page(300, &mut page);
        assert_eq!(page, [7; 4096]);
        images.remove_below(SAVED.cell, SAVED.generation);
        images.find(SAVED.cell);
        assert!(matches!(news.recv(), Ok(KeeperNews::ImageFound(OnDisk::Image(SAVED)))), "the cell is there");
        images.remove_below(SAVED.cell, SAVED.generation + 1);
        images.read(SAVED, memory());
        let Ok(KeeperNews::ImageRead(Err(why))) = news.recv() else { panic!("it is still there") };
        assert!(matches!(why.trouble(), ImageTrouble::ForGood(_)), "{why}");
        assert_eq!(file.look(None), OnDisk::Nothing);
    }
}
