//! The directory of the cell on the shared storage: its visible content, the content that would survive a crash of the
//! storage, and an operator's actions on it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use ft_arbiter::file::{Answer, Call, FileCell, Folder, Next, Reply, generation_of};
use ft_arbiter::{Cell, CellId};
use ftd::role::Micros;
use nix::errno::Errno;

use crate::mutant::Mutant;

#[derive(Clone, Debug)]
struct File {
    bytes: Vec<u8>,
    /// Its content survives a crash of the storage.
    flushed: bool,
    written: Micros,
}

/// Names, each of a file; none: there is no such directory.
type Names = Option<BTreeMap<String, usize>>;

/// The shared directory. What holds it is always there.
#[derive(Clone, Debug, Default)]
pub struct SharedDirectory {
    files: Vec<File>,
    visible: Names,
    durable: Names,
    /// The true names, while something else is in their place.
    hidden: Option<(Names, Names)>,
}

impl SharedDirectory {
    /// Carries a call out.
    pub fn perform(&mut self, call: &Call, now: Micros, mutant: Option<Mutant>) -> Answer {
        match call {
            Call::Look(Folder::Parent) => Ok(Reply::Done),
            Call::Look(Folder::Cell) => self.names().map(|_| Reply::Done),
            Call::Make => match self.visible {
                Some(_) => Err(Errno::EEXIST),
                None => {
                    self.visible = Some(BTreeMap::new());
                    Ok(Reply::Done)
                }
            },
            Call::List => Ok(Reply::Names(self.names()?.keys().cloned().collect())),
            Call::Read(name) => Ok(Reply::Bytes(self.files[self.find(name)?].bytes.clone())),
            Call::Write(Folder::Cell, name, bytes) => {
                let file = self.files.len();
                self.name(name, file, false)?;
                let flushed = mutant != Some(Mutant::WriteUnflushed);
                self.files.push(File { bytes: bytes.clone(), flushed, written: now });
                Ok(Reply::Done)
            }
            Call::Link { folder: Folder::Cell, from, to } => {
                let file = self.find(from)?;
                self.name(to, file, mutant == Some(Mutant::LinkOverwrites))?;
                Ok(Reply::Done)
            }
            Call::Compare(one, other) => Ok(Reply::Same(self.find(one)? == self.find(other)?)),
            Call::Sync(folder) => {
                if mutant != Some(Mutant::SyncSkipped) {
                    self.sync(*folder)?;
                }
                Ok(Reply::Done)
            }
            Call::Remove(Folder::Cell, name) => {
                self.find(name)?;
                self.visible.as_mut().and_then(|names| names.remove(name));
                Ok(Reply::Done)
            }
            Call::Age(name) => {
                let age = now - self.files[self.find(name)?].written;
                Ok(Reply::Age(Duration::from_micros(age)))
            }
            Call::Write(Folder::Parent, ..)
            | Call::Link { folder: Folder::Parent, .. }
            | Call::Remove(Folder::Parent, _) => Err(Errno::EACCES),
        }
    }

    fn names(&self) -> Result<&BTreeMap<String, usize>, Errno> {
        self.visible.as_ref().ok_or(Errno::ENOENT)
    }

    fn find(&self, name: &str) -> Result<usize, Errno> {
        self.names()?.get(name).copied().ok_or(Errno::ENOENT)
    }

    fn name(&mut self, name: &str, file: usize, over: bool) -> Result<(), Errno> {
        let names = self.visible.as_mut().ok_or(Errno::ENOENT)?;
        if names.contains_key(name) && !over {
            return Err(Errno::EEXIST);
        }
        names.insert(name.to_owned(), file);
        Ok(())
    }

    fn sync(&mut self, folder: Folder) -> Result<(), Errno> {
        match folder {
            // The directory's own name: what is in it, it says nothing about.
            Folder::Parent => {
                let made = self.visible.is_some();
                self.durable = made.then(|| self.durable.take().unwrap_or_default());
            }
            Folder::Cell => {
                let names = self.names()?.clone();
                if self.durable.is_some() {
                    self.durable = Some(names);
                }
            }
        }
        Ok(())
    }

    /// The storage crashes and comes back with what it had made durable: the highest generation that is left, and
    /// whether its content is whole.
    pub fn crash(&mut self) -> (Option<u64>, bool) {
        self.visible = self.durable.clone();
        for file in self.files.iter_mut().filter(|file| !file.flushed) {
            file.bytes.clear();
        }
        let newest =
            self.visible.iter().flatten().filter_map(|(name, file)| Some((generation_of(name)?, file)));
        match newest.max() {
            Some((generation, file)) => (Some(generation), self.files[*file].flushed),
            None => (None, true),
        }
    }

    /// Another directory, with another VM's history of so many generations, or with none.
    pub fn of_somebody_else(generations: u64) -> Self {
        let mut directory = Self::default();
        for generation in 1..=generations {
            let cell = Cell { id: CellId(0xbad), generation, owner: None, standby: None };
            let before = generation.checked_sub(1).filter(|before| *before > 0);
            let file = FileCell::new(Path::new("/elsewhere/vm.cell"), "vm");
            let mut attempt = file.compare_and_set(before, cell, &generation.to_string());
            let mut next = attempt.begin();
            while let Next::Call(call) = next {
                next = attempt.resume(directory.perform(&call, 0, None));
            }
        }
        directory
    }

    /// Whether something else is in the place of the true directory.
    pub fn is_hidden(&self) -> bool {
        self.hidden.is_some()
    }

    /// Puts an older copy in the place of the directory, which ends with the generation `last`, or nothing.
    pub fn hide(&mut self, last: Option<u64>) {
        let copy = last.and_then(|last| {
            let names = self.visible.as_ref()?;
            let old = names.iter().filter(|(name, _)| generation_of(name).is_some_and(|g| g <= last));
            Some(old.map(|(name, file)| (name.clone(), *file)).collect())
        });
        let visible = std::mem::replace(&mut self.visible, copy.clone());
        let durable = std::mem::replace(&mut self.durable, copy);
        self.hidden = Some((visible, durable));
    }

    /// Puts the true files back, and leaves what came after them.
    pub fn unhide(&mut self) {
        let merge = |names: &mut Names, back: Names| match (names, back) {
            (Some(names), Some(back)) => names.extend(back),
            (names, back) => *names = names.take().or(back),
        };
        if let Some((visible, durable)) = self.hidden.take() {
            merge(&mut self.visible, visible);
            merge(&mut self.durable, durable);
        }
    }
}
