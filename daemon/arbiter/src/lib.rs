//! ft-arbiter: one test-and-set cell per VM, which says which replica may go on alone.
//!
//! [`Arbiter::compare_and_set`] is the only operation that changes the cell: it sets the whole cell from generation g
//! to g+1, first come first served, and is durable before it answers. [`FileArbiter`] is the back end for storage that
//! both nodes share, [`ServiceArbiter`] the one for a small service on a third machine, [`MajorityArbiter`] the one
//! for several such services, [`EtcdArbiter`] the one for an etcd cluster. Another back end is a module beside
//! [`mod@file`], a variant of [`Place`], and a line in the conformance suite (`daemon/arbiter/tests/conformance`).
//!
//! Two nodes have lost each other, and both ask to go on alone. One wins; the other learns the cell as it is:
//!
//! ```
//! use ft_arbiter::{Arbiter, Cell, CellId, FileArbiter, Outcome, Standby};
//!
//! let shared = tempfile::tempdir()?;
//! let path = shared.path().join("web.cell");
//! let (mut alpha, mut beta) = (FileArbiter::new(&path, "web"), FileArbiter::new(&path, "web"));
//!
//! let id = CellId(0xce11);
//! let standby = Some(Standby { node: "beta".into(), pairing: 0x17 });
//! let founded = Cell { id, generation: 1, owner: Some("alpha".into()), standby };
//! assert_eq!(alpha.compare_and_set(None, founded.clone()), Outcome::Won(founded.clone()));
//! assert_eq!(beta.read()?, Some(founded));
//!
//! let alone = |node: &str| Cell { id, generation: 2, owner: Some(node.into()), standby: None };
//! assert_eq!(beta.compare_and_set(Some(1), alone("beta")), Outcome::Won(alone("beta")));
//! assert_eq!(alpha.compare_and_set(Some(1), alone("alpha")), Outcome::Lost(Some(alone("beta"))));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cell;
mod clock;
mod error;
pub mod etcd;
pub mod file;
pub mod lines;
pub mod majority;
pub mod service;

pub use cell::{Cell, CellId, GENERATION_MAX, NotAnIdentity, Standby};
pub use error::{ArbiterError, MemberTrouble, Place, Trouble};
pub use etcd::EtcdArbiter;
pub use file::FileArbiter;
pub use majority::MajorityArbiter;
pub use service::ServiceArbiter;

/// The answer to a compare-and-set.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// The cell is, or was at one moment, as asked for.
    Won(Cell),
    /// The cell has another generation than expected, or is another cell: this is what it holds. If that equals what
    /// was asked for, an earlier attempt of this node, whose answer was lost, has won.
    Lost(Option<Cell>),
    /// Certain: nothing was changed and nothing is under way. It may be tried again.
    NotAttempted(ArbiterError),
    /// It may have happened, or may yet. Read the cell before concluding anything.
    Unknown(ArbiterError),
}

/// A back end. Calls block for as long as the storage or the network hangs: the caller makes them on a thread of their
/// own.
pub trait Arbiter: Send {
    /// Returns what the cell holds; `None` if it was never set.
    fn read(&mut self) -> Result<Option<Cell>, ArbiterError>;

    /// Sets the cell to `new` if it has `new.id` and the generation `expected` (`None`: if it was never set).
    /// `new.generation` must be the next one.
    fn compare_and_set(&mut self, expected: Option<u64>, new: Cell) -> Outcome;

    /// Proves that the arbiter would answer now, and returns what the cell holds: reads it and durably writes beside
    /// it, with everything that a compare-and-set needs, but leaves the cell as it is. Cheap enough for once every few
    /// seconds.
    fn probe(&mut self) -> Result<Option<Cell>, ArbiterError>;

    /// Where the cell is.
    fn place(&self) -> Place;
}
