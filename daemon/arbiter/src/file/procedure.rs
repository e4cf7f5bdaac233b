//! The procedure of the file arbiter: its calls on the storage, in order, and the conclusion drawn from each answer.

use super::attempt::{Attempt, Desk};
use super::directory::{Answer, Call, Folder, Reply};
use super::record::{self, FORMAT_VERSION, Record, file_name, generation_of};
use crate::{ArbiterError, Cell, Outcome, Place, Trouble};
use nix::errno::Errno;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

/// Files of past generations that stay.
pub const GENERATIONS_KEPT: u64 = 64;
/// Age at which a temporary file must have been left behind by a crash.
const LEFTOVER_AGE: Duration = Duration::from_secs(3600);

/// The cell of one VM in one directory: makes the operations on it.
#[derive(Clone, Debug)]
pub struct FileCell {
    path: PathBuf,
    vm: String,
}

impl FileCell {
    /// The cell of `vm` in the directory `path`.
    #[must_use]
    pub fn new(path: &Path, vm: &str) -> Self {
        Self { path: path.to_owned(), vm: vm.to_owned() }
    }

    /// Where the cell is.
    #[must_use]
    pub fn place(&self) -> Place {
        Place::File(self.path.clone())
    }

    /// Reads the cell: see [`Arbiter::read`](crate::Arbiter::read).
    #[must_use]
    pub fn read(&self) -> Attempt<Result<Option<Cell>, ArbiterError>> {
        self.attempt(async |steps| steps.read().await)
    }

    /// Sets the cell: see [`Arbiter::compare_and_set`](crate::Arbiter::compare_and_set). `unique` names the temporary
    /// file; no other attempt, of whichever node, may ever use it.
    #[must_use]
    pub fn compare_and_set(&self, expected: Option<u64>, new: Cell, unique: &str) -> Attempt<Outcome> {
        let temporary = record::temporary_name(unique);
        self.attempt(async move |steps| steps.compare_and_set(expected, new, &temporary).await)
    }

    /// Proves that the cell could be read and set: see [`Arbiter::probe`](crate::Arbiter::probe).
    #[must_use]
    pub fn probe(&self, unique: &str) -> Attempt<Result<Option<Cell>, ArbiterError>> {
        let temporary = record::temporary_name(unique);
        self.attempt(async move |steps| steps.probe(&temporary).await)
    }

    fn attempt<T: 'static>(&self, run: impl AsyncFnOnce(Steps) -> T + 'static) -> Attempt<T> {
        let cell = self.clone();
        Attempt::new(move |desk| async move { run(Steps { cell, desk }).await })
    }
}

/// The steps of one operation.
struct Steps {
    cell: FileCell,
    desk: Rc<Desk>,
}

type Certain<T> = Result<T, ArbiterError>;

/// What is asked for.
struct Claim {
    expected: Option<u64>,
    new: Cell,
}

impl Claim {
    /// Whether this cell shows that the claim came too late, also when its link may have been carried out: it is the
    /// same cell, and as far. Who founds has no cell yet.
    fn is_overtaken_by(&self, found: &Cell) -> bool {
        found.generation >= self.new.generation && (self.expected.is_none() || found.id == self.new.id)
    }

    /// Whether it is the next step from this cell.
    fn follows(&self, current: Option<&Cell>) -> bool {
        current.map(|cell| cell.generation) == self.expected
            && current.is_none_or(|cell| cell.id == self.new.id)
    }
}

impl Steps {
    fn error(&self, trouble: Trouble) -> ArbiterError {
        ArbiterError { place: self.cell.place(), trouble }
    }

    fn failed(&self, at: &'static str) -> impl Fn(Errno) -> ArbiterError {
        move |errno| self.error(Trouble::Storage { at, errno })
    }

    async fn perform(&self, call: Call) -> Answer {
        self.desk.perform(call).await
    }

    async fn sync(&self, folder: Folder) -> Certain<()> {
        self.perform(Call::Sync(folder)).await.map(drop).map_err(self.failed("flushing its directory"))
    }

    async fn names(&self) -> Result<Vec<String>, Errno> {
        match self.perform(Call::List).await? {
            Reply::Names(names) => Ok(names),
            other => panic!("{other:?} answers no listing"),
        }
    }

    /// The generations that have a file, in no order.
    async fn generations(&self) -> Certain<Vec<u64>> {
        match self.names().await {
            Ok(names) => Ok(names.iter().filter_map(|name| generation_of(name)).collect()),
            Err(Errno::ENOENT) => {
                // Never set, if the place where it would be is there.
                let look = self.perform(Call::Look(Folder::Parent)).await;
                look.map(|_| Vec::new()).map_err(self.failed("looking for its directory"))
            }
            Err(errno) => Err(self.failed("listing")(errno)),
        }
    }

    /// The cell of this generation; none if its file is gone.
    async fn load(&self, generation: u64) -> Certain<Option<Cell>> {
        let file = file_name(generation);
        let bytes = match self.perform(Call::Read(file.clone())).await {
            Ok(Reply::Bytes(bytes)) => bytes,
            Ok(other) => panic!("{other:?} answers no reading"),
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(self.failed("reading")(errno)),
        };
        let damaged = |reason| self.error(Trouble::Damaged { file, reason });
        let record = match record::decode(&bytes) {
            Ok(record) => record,
            Err(error) => return Err(damaged(error.to_string())),
        };
        if record.vm != self.cell.vm {
            return Err(self.error(Trouble::OtherVm { found: record.vm, vm: self.cell.vm.clone() }));
        }
        if record.cell.generation != generation {
            return Err(damaged(format!(
                "it holds generation {} under another's name",
                record.cell.generation
            )));
        }
        Ok(Some(record.cell))
    }

    /// What the cell holds now, though perhaps not durably.
    async fn glance(&self) -> Certain<Option<Cell>> {
        let mut gone = None;
        loop {
            let Some(highest) = self.generations().await?.into_iter().max() else { return Ok(None) };
            if gone == Some(highest) {
                let reason = "it is listed, and yet it cannot be found: it may be a dangling link".into();
                return Err(self.error(Trouble::Damaged { file: file_name(highest), reason }));
            }
            if let Some(cell) = self.load(highest).await? {
                return Ok(Some(cell));
            }
            // The cell was overtaken that far between the two steps. Then another name is the highest now.
            gone = Some(highest);
        }
    }

    /// Whether this cell, which was there, is there for good: it is still there after a flush.
    async fn is_durable(&self, cell: &Cell) -> Certain<bool> {
        self.sync(Folder::Cell).await?;
        Ok(self.load(cell.generation).await?.as_ref() == Some(cell))
    }

    /// What the cell holds. What is told must be durable, or a crash of the storage could take it back.
    async fn read(&self) -> Certain<Option<Cell>> {
        loop {
            match self.glance().await? {
                Some(cell) if !self.is_durable(&cell).await? => {}
                cell => return Ok(cell),
            }
        }
    }

    /// Before the link: the cell is not as expected. Nothing was changed.
    async fn lost(&self, claim: &Claim) -> Outcome {
        match self.read().await {
            Ok(cell) if claim.follows(cell.as_ref()) => {
                Outcome::NotAttempted(self.error(Trouble::TakenBack { generation: claim.new.generation }))
            }
            Ok(cell) => Outcome::Lost(cell),
            Err(error) => Outcome::NotAttempted(error),
        }
    }

    /// After the link: the generation is somebody else's, or not there any more. Only the same cell, as far or further,
    /// makes that certain.
    async fn overtaken(&self, claim: &Claim) -> Outcome {
        match self.read().await {
            Ok(Some(cell)) if claim.is_overtaken_by(&cell) => Outcome::Lost(Some(cell)),
            Ok(_) => Outcome::Unknown(self.error(Trouble::TakenBack { generation: claim.new.generation })),
            Err(error) => Outcome::Unknown(error),
        }
    }

    async fn compare_and_set(&self, expected: Option<u64>, new: Cell, temporary: &str) -> Outcome {
        if expected.unwrap_or(0).checked_add(1) != Some(new.generation) {
            return Outcome::NotAttempted(self.error(Trouble::Generation { expected, new: new.generation }));
        }
        let claim = Claim { expected, new };
        match self.glance().await {
            Ok(current) if claim.follows(current.as_ref()) => {}
            Ok(_) => return self.lost(&claim).await,
            Err(error) => return Outcome::NotAttempted(error),
        }
        if expected.is_none()
            && let Err(error) = self.make_directory().await
        {
            return Outcome::NotAttempted(error);
        }
        self.carry_out(claim, temporary).await
    }

    async fn make_directory(&self) -> Certain<()> {
        match self.perform(Call::Make).await {
            Ok(_) | Err(Errno::EEXIST) => self.sync(Folder::Parent).await,
            Err(errno) => Err(self.failed("making its directory")(errno)),
        }
    }

    /// Claims the generation, which was found to be the next one.
    async fn carry_out(&self, claim: Claim, temporary: &str) -> Outcome {
        let generation = claim.new.generation;
        let record = Record { version: FORMAT_VERSION, vm: self.cell.vm.clone(), cell: claim.new.clone() };
        let content = record::encode(&record);
        if let Err(errno) = self.perform(Call::Write(Folder::Cell, temporary.into(), content)).await {
            self.discard(Folder::Cell, temporary).await;
            return Outcome::NotAttempted(self.failed("writing")(errno));
        }
        let linked = self.link(&claim, temporary).await;
        let settled = match linked {
            Ok(true) => match self.is_durable(&claim.new).await {
                Ok(true) => Ok(()),
                Ok(false) => Err(self.overtaken(&claim).await),
                Err(error) => Err(Outcome::Unknown(error)),
            },
            Ok(false) => Err(self.overtaken(&claim).await),
            Err(outcome) => Err(outcome),
        };
        self.discard(Folder::Cell, temporary).await;
        if let Err(outcome) = settled {
            return outcome;
        }
        let names = match self.names().await {
            Ok(names) => names,
            Err(errno) => return Outcome::Unknown(self.failed("listing")(errno)),
        };
        let highest = names.iter().filter_map(|name| generation_of(name)).max().unwrap_or(0);
        if highest.saturating_sub(generation) >= GENERATIONS_KEPT / 2 {
            return self.overtaken(&claim).await;
        }
        self.tidy(names, highest).await;
        Outcome::Won(claim.new)
    }

    /// Gives the temporary file the generation's name. False: somebody else has it.
    async fn link(&self, claim: &Claim, temporary: &str) -> Result<bool, Outcome> {
        let (from, to) = (temporary.to_owned(), file_name(claim.new.generation));
        let failed = self.failed("linking the new generation");
        match self.perform(Call::Link { folder: Folder::Cell, from: from.clone(), to: to.clone() }).await {
            Ok(_) => Ok(true),
            // Over NFS a repeated request can report the name as taken by its own first try.
            Err(Errno::EEXIST) => match self.perform(Call::Compare(from, to)).await {
                Ok(Reply::Same(same)) => Ok(same),
                Ok(other) => panic!("{other:?} answers no comparison"),
                // One of the two is gone: the cell has moved on so far that the generation is history.
                Err(Errno::ENOENT) => Err(self.overtaken(claim).await),
                Err(errno) => Err(Outcome::Unknown(failed(errno))),
            },
            // Whatever it says: a network file system may have carried an earlier try out.
            Err(errno) => Err(Outcome::Unknown(failed(errno))),
        }
    }

    /// Removes a temporary file. A leftover is harmless, and removed later.
    async fn discard(&self, folder: Folder, temporary: &str) {
        let _ = self.perform(Call::Remove(folder, temporary.to_owned())).await;
    }

    /// Removes files that nobody needs any more. A file that cannot be removed now will be another time.
    async fn tidy(&self, names: Vec<String>, highest: u64) {
        let mut old: Vec<u64> = names.iter().filter_map(|name| generation_of(name)).collect();
        old.retain(|generation| highest - generation >= GENERATIONS_KEPT);
        // Oldest first: while a number is free, all below it are.
        old.sort_unstable();
        for generation in old {
            if self.perform(Call::Remove(Folder::Cell, file_name(generation))).await.is_err() {
                return;
            }
        }
        for name in names.into_iter().filter(|name| record::is_temporary(name)) {
            if let Ok(Reply::Age(age)) = self.perform(Call::Age(name.clone())).await
                && age > LEFTOVER_AGE
            {
                self.discard(Folder::Cell, &name).await;
            }
        }
    }

    async fn probe(&self, temporary: &str) -> Certain<Option<Cell>> {
        let cell = self.read().await?;
        let folder = match self.perform(Call::Look(Folder::Cell)).await {
            Ok(_) => Folder::Cell,
            Err(Errno::ENOENT) => Folder::Parent,
            Err(errno) => return Err(self.failed("looking for its directory")(errno)),
        };
        let write = Call::Write(folder, temporary.to_owned(), b"probe".to_vec());
        let written = self.perform(write).await.map_err(self.failed("writing beside the cell"));
        let linked = match written {
            Ok(_) => self.try_link(folder, temporary).await,
            Err(error) => Err(error),
        };
        self.discard(folder, temporary).await;
        linked?;
        self.sync(folder).await?;
        Ok(cell)
    }

    /// Makes and removes a hard link: what a claim needs beyond writing.
    async fn try_link(&self, folder: Folder, temporary: &str) -> Certain<()> {
        let linked = format!("{temporary}.link");
        let link = Call::Link { folder, from: temporary.to_owned(), to: linked.clone() };
        self.perform(link).await.map_err(self.failed("making a hard link"))?;
        let removed = self.perform(Call::Remove(folder, linked)).await;
        removed.map(drop).map_err(self.failed("removing a hard link"))
    }
}
