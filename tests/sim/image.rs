//! The image on disk of a node that cannot resume what it owns: it outlives the process. Nothing may leave a VM while
//! somebody could still go on from such an image of it.

use ft_arbiter::CellId;
use ftd::role::{Event, ImageTrouble, OnDisk, Saved};
use rand::Rng;

use crate::model::{Image, NAMES};
use crate::mutant::Mutant;
use crate::schedule::Act;
use crate::stats::Count;
use crate::trace;
use crate::world::World;

/// An image on disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shelf {
    pub saved: Saved,
    pub image: Image,
    /// The operator had it taken for what a host has shown that is gone for good.
    pub released: bool,
}

/// What a node's thread for images does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Job {
    Write(Shelf),
    Read,
    Find,
}

impl World {
    /// Node `n` is to write what it has sealed off.
    pub fn save_image(&mut self, n: usize, saved: Saved) {
        let image = self.nodes[n].exec.sealed_off.filter(|_| !self.knobs.replay);
        let Some(image) = image else {
            let why = "it is in a machine".into();
            return self.tell(n, Event::ImageUnsaved { generation: saved.generation, why });
        };
        let shelf = Shelf { saved, image, released: self.nodes[n].fresh || self.nodes[n].exec.released };
        self.nodes[n].exec.saving = Some(saved.generation);
        self.begin_job(n, Job::Write(shelf));
    }

    /// Node `n` is to read what it has on disk.
    pub fn read_image(&mut self, n: usize) {
        self.nodes[n].exec.reading = true;
        self.begin_job(n, Job::Read);
    }

    /// Node `n` is to look what it has on disk.
    pub fn find_image(&mut self, n: usize) {
        self.begin_job(n, Job::Find);
    }

    fn begin_job(&mut self, n: usize, job: Job) {
        let inc = self.nodes[n].inc;
        let delay = self.rng.random_range(0..100_000);
        self.later(delay, Act::Imaged { n, inc, job });
    }

    pub fn end_job(&mut self, n: usize, job: Job) {
        let full = !self.healed && self.rng.random_bool(0.2);
        match job {
            Job::Write(Shelf { saved, .. }) if self.nodes[n].exec.saving != Some(saved.generation) => {
                let (generation, why) = (saved.generation, "called off".into());
                self.tell(n, Event::ImageUnsaved { generation, why });
            }
            Job::Write(Shelf { saved, .. }) if full => {
                let (generation, why) = (saved.generation, "the disk is full".into());
                self.tell(n, Event::ImageUnsaved { generation, why });
            }
            Job::Write(shelf) => {
                trace!(self, "{} has {shelf:?} on disk", NAMES[n]);
                self.stats.add(Count::ImagesSaved);
                self.nodes[n].disk = Some(shelf);
                self.tell(n, Event::ImageSaved { generation: shelf.saved.generation });
            }
            Job::Find => {
                let found = self.image_found(n);
                self.tell(n, Event::ImageFound(found));
            }
            Job::Read if !std::mem::take(&mut self.nodes[n].exec.reading) => {}
            Job::Read => {
                let node = &mut self.nodes[n];
                let Some(shelf) = node.disk.filter(|_| !full) else {
                    return self.tell(n, Event::ImageUnread(ImageTrouble::ForNow("no memory".into())));
                };
                if self.mutant == Some(Mutant::CallsImagesDamaged) {
                    return self.tell(n, Event::ImageUnread(ImageTrouble::ForGood("is damaged".into())));
                }
                let node = &mut self.nodes[n];
                node.exec.sealed_off = Some(shelf.image);
                node.exec.from_disk = true;
                node.exec.released = shelf.released;
                self.stats.add(Count::ImagesRead);
                self.tell(n, Event::ImageRead);
            }
        }
    }

    /// The machine runs, or what was sealed is given up: what is under way comes to nothing.
    pub fn call_image_off(&mut self, n: usize) {
        let exec = &mut self.nodes[n].exec;
        exec.saving = None;
        exec.reading = false;
        exec.from_disk = false;
    }

    pub fn drop_image(&mut self, n: usize, cell: CellId, below: u64) {
        self.nodes[n].exec.saving = None;
        if self.mutant != Some(Mutant::BelievesOldImage) {
            let passed = |shelf: &Shelf| shelf.saved.cell == cell && shelf.saved.generation < below;
            self.nodes[n].disk = self.nodes[n].disk.filter(|shelf| !passed(shelf));
            let powers_off = self.nodes[n].powered_off;
            self.check_copies("the image on disk was removed", powers_off);
        }
    }

    /// What a process of this node finds as it starts or looks again.
    pub fn image_found(&mut self, n: usize) -> OnDisk {
        let unseen = self.nodes[n].disk.is_some() && !self.healed && self.rng.random_bool(0.2);
        if unseen && self.mutant == Some(Mutant::UnseenIsNothing) {
            return OnDisk::Nothing;
        }
        if unseen {
            self.stats.add(Count::ImagesUnseen);
            return OnDisk::Unknown("it cannot be read".into());
        }
        let node = &self.nodes[n];
        match (node.disk, node.ledger.record) {
            (None, _) => OnDisk::Nothing,
            (Some(Shelf { saved, .. }), Some(record)) if self.mutant == Some(Mutant::BelievesOldImage) => {
                OnDisk::Image(Saved { generation: record.generation, ..saved })
            }
            (Some(shelf), _) => OnDisk::Image(shelf.saved),
        }
    }

    /// Whether this node may go on from what it has on disk, by the cell as it is.
    pub fn image_fits(&self, n: usize) -> bool {
        let (Some(Shelf { saved, image, .. }), Some(cell)) = (self.nodes[n].disk, &self.arbiter.cell) else {
            return false;
        };
        let fits = (saved.cell, saved.generation) == (cell.id, cell.generation);
        fits && image.complete && cell.owner.as_deref() == Some(NAMES[n])
    }

    /// Whether this node owns the VM, and has what it read from disk in memory.
    pub fn holds_image_read(&self, n: usize) -> bool {
        let (node, owner) = (&self.nodes[n], self.owner());
        node.up && node.exec.from_disk && node.exec.sealed_off.is_some() && owner == Some(n)
    }

    /// What this node could have gone on from, had it not asked for the generation that the cell is in.
    pub fn image_given_up(&self, n: usize) -> Option<Shelf> {
        let generation = self.arbiter.cell.as_ref()?.generation;
        let before = self.arbiter.log.get(&(generation - 1))?;
        let owned = before.cell.owner.as_deref() == Some(NAMES[n]);
        let of =
            |shelf: &Shelf| (shelf.saved.cell, shelf.saved.generation) == (before.cell.id, generation - 1);
        self.nodes[n].disk.filter(|shelf| owned && shelf.image.complete && of(shelf))
    }

    /// Node `n` is about to resume the VM from what it has read from disk.
    pub fn check_from_disk(&mut self, n: usize, image: Image) {
        let (name, shown) = (NAMES[n], self.truth.shown);
        if !image.complete {
            self.fail(format!("I3: {name} takes over from {image:?}, which was on disk"));
        }
        if self.owner() == Some(n) {
            if image.counter < shown && !self.nodes[n].exec.released {
                let counter = image.counter;
                self.fail(format!("I1: {name} resumes from counter {counter}, the world has seen {shown}"));
            }
            self.truth.lost = None;
        }
    }
}
