//! Whose image is right: from what the cell said when this node read it, and from the stamp.
//!
//! A cell's generation counts every change of it. So between an image that ran in a generation and a cell that says
//! that this node owns the next one, nobody else had the VM: this node's process ended between setting the cell and
//! stamping. In the same way, a node that owns the generation after the one that named it as the standby has won with
//! that pairing.

use super::{History, ImageOf, Stamp};
use std::fmt;

/// What the cell says, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellView {
    /// Which cell it is.
    pub cell: u64,
    /// Its generation.
    pub generation: u64,
    /// Who has the VM.
    pub holder: Holder,
}

/// Who has the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nobody: it has ended, or never was.
    Nobody,
    /// Another node.
    Other,
    /// This node.
    This,
}

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The VM may run from it.
    Right,
    /// The VM may run from it when the journal is carried out.
    RightOnceCarriedOut {
        /// The pairing that it was won with.
        pairing: u64,
    },
    /// There was no VM before, and the image was never used by ftd: the VM begins with it.
    New,
    /// The VM went on, or ended, elsewhere since: the operator decides.
    Stale(History),
    /// Partly old, partly the peer's: the operator decides.
    Nobodys {
        /// The pairing in which it became so.
        pairing: u64,
    },
    /// Another node has the VM: it is made equal before it counts.
    Behind,
    /// It is not known what it holds: the operator decides.
    Foreign(Foreign),
}

impl Judgement {
    /// Whether the VM may begin to run from it now.
    #[must_use]
    pub fn may_run(self) -> bool {
        matches!(self, Self::Right | Self::New)
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Right => f.write_str("it is right: the VM ran from it last"),
            Self::RightOnceCarriedOut { pairing } => {
                write!(f, "it is right once the journal of pairing {pairing:016x} is carried out")
            }
            Self::New => f.write_str("it is new: the VM begins with it"),
            Self::Stale(history) => {
                write!(f, "it is stale: {history}, and the VM went on or ended elsewhere since")
            }
            Self::Nobodys { pairing } => {
                let mixed = History::Mixed { pairing: *pairing };
                write!(f, "it is nobody's: {mixed}")
            }
            Self::Behind => {
                f.write_str("it is behind: another node has the VM, and makes it equal when they pair")
            }
            Self::Foreign(why) => write!(f, "it is not used: {why}"),
        }
    }
}

/// Why nothing is known of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Foreign {
    /// It has no stamp.
    #[error("it has no stamp: ftd never ran the VM from it on this host, or its stamp was removed")]
    Unstamped,
    /// It was used in another cell.
    #[error("it was used in cell {0:016x}, which is not the VM's")]
    Cell(u64),
    /// Of another VM.
    #[error("its stamp is of another VM")]
    Vm,
    /// The configuration named another image then.
    #[error("its stamp is of an image at another place: the configuration names another one now")]
    Image,
    /// It had another size.
    #[error("it had {stamped} bytes when it was stamped, and has {now} now")]
    Size {
        /// Then.
        stamped: u64,
        /// Now.
        now: u64,
    },
}

/// The generation of a cell that was founded before any node had the VM.
const FOUNDED: u64 = 1;

/// Judges the image `of`, by the cell as it was before this node asked for it; none: there was none.
#[must_use]
pub fn judge(view: Option<CellView>, of: ImageOf, stamp: Option<&Stamp>) -> Judgement {
    let is_first = match view {
        None => true,
        Some(CellView { holder: Holder::Other, .. }) => return Judgement::Behind,
        Some(CellView { holder, generation, .. }) => holder == Holder::Nobody && generation <= FOUNDED,
    };
    let (view, stamp) = match (view, stamp) {
        (_, None) if is_first => return Judgement::New,
        (_, None) => return Judgement::Foreign(Foreign::Unstamped),
        (None, Some(stamp)) => return Judgement::Foreign(Foreign::Cell(stamp.cell)),
        (Some(view), Some(stamp)) => (view, stamp),
    };
    if let Some(why) = foreign(view.cell, of, stamp) {
        return Judgement::Foreign(why);
    }
    let is_next = |last: u64| last.checked_add(1) == Some(view.generation);
    match stamp.history {
        History::Ran { generation: last } if last == view.generation || is_next(last) => Judgement::Right,
        History::Follows { pairing, named_in: Some(named_in) }
            if is_next(named_in) && view.holder == Holder::This =>
        {
            Judgement::RightOnceCarriedOut { pairing }
        }
        History::Ran { .. } | History::Follows { .. } => Judgement::Stale(stamp.history),
        History::Mixed { pairing } => Judgement::Nobodys { pairing },
    }
}

fn foreign(cell: u64, of: ImageOf, stamp: &Stamp) -> Option<Foreign> {
    let ImageOf { vm, image, disk_bytes } = stamp.of;
    if vm != of.vm {
        return Some(Foreign::Vm);
    }
    if cell != stamp.cell {
        return Some(Foreign::Cell(stamp.cell));
    }
    if image != of.image {
        return Some(Foreign::Image);
    }
    (disk_bytes != of.disk_bytes).then_some(Foreign::Size { stamped: disk_bytes, now: of.disk_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF: ImageOf = ImageOf { vm: 1, image: 2, disk_bytes: 1 << 20 };
    const CELL: u64 = 9;
    const PAIRING: u64 = 5;
    const GENERATION: u64 = 7;

    fn view(holder: Holder, generation: u64) -> Option<CellView> {
        Some(CellView { cell: CELL, generation, holder })
    }

    fn judged(holder: Holder, history: History) -> Judgement {
        let stamp = Stamp { of: OF, cell: CELL, history };
        judge(view(holder, GENERATION), OF, Some(&stamp))
    }

    fn owned(history: History) -> Judgement {
        judged(Holder::This, history)
    }

    fn ran(generation: u64) -> History {
        History::Ran { generation }
    }

    fn follows(named_in: Option<u64>) -> History {
        History::Follows { pairing: PAIRING, named_in }
    }

    const MIXED: History = History::Mixed { pairing: PAIRING };

    #[test]
    fn the_owners_image_that_ran_in_its_generation_is_right() {
        assert_eq!(owned(ran(GENERATION)), Judgement::Right);
        assert_eq!(owned(ran(GENERATION - 1)), Judgement::Right, "the stamp was not written any more");
    }

    #[test]
    fn the_image_that_the_cell_was_won_with_is_right_once_the_journal_is_carried_out() {
        let verdict = owned(follows(Some(GENERATION - 1)));
        assert_eq!(verdict, Judgement::RightOnceCarriedOut { pairing: PAIRING });
    }

    #[test]
    fn an_older_one_of_the_owners_is_stale() {
        for history in [
            ran(GENERATION - 2),
            ran(GENERATION + 1),
            ran(u64::MAX),
            follows(None),
            follows(Some(GENERATION - 2)),
            follows(Some(GENERATION)),
        ] {
            assert_eq!(owned(history), Judgement::Stale(history));
        }
    }

    #[test]
    fn a_mixed_one_of_the_owners_is_nobodys() {
        assert_eq!(owned(MIXED), Judgement::Nobodys { pairing: PAIRING });
    }

    #[test]
    fn where_another_owns_the_vm_the_image_is_behind_whatever_its_stamp() {
        for history in [ran(GENERATION), follows(Some(GENERATION - 1)), MIXED] {
            assert_eq!(judged(Holder::Other, history), Judgement::Behind);
        }
        assert_eq!(
            judge(view(Holder::Other, GENERATION), OF, None),
            Judgement::Behind,
            "a new backup has none"
        );
    }

    #[test]
    fn a_vm_that_never_was_begins_with_an_image_that_was_never_used() {
        for none_before in [None, view(Holder::Nobody, 1)] {
            assert_eq!(judge(none_before, OF, None), Judgement::New);
        }
        for history in [ran(1), follows(Some(1)), MIXED] {
            let stamp = Stamp { of: OF, cell: CELL, history };
            assert_eq!(judge(None, OF, Some(&stamp)), Judgement::Foreign(Foreign::Cell(CELL)));
        }
        let ended = judge(view(Holder::Nobody, GENERATION), OF, None);
        assert_eq!(ended, Judgement::Foreign(Foreign::Unstamped), "there was one, and it ran elsewhere");
    }

    #[test]
    fn a_vm_that_has_ended_goes_on_from_the_image_that_it_ran_from_last() {
        let judged = |history| judged(Holder::Nobody, history);
        assert_eq!(judged(ran(GENERATION - 1)), Judgement::Right);
        assert_eq!(judged(ran(GENERATION)), Judgement::Right, "an operator said so");
        for history in [ran(GENERATION - 2), follows(Some(GENERATION - 1)), follows(None)] {
            assert_eq!(judged(history), Judgement::Stale(history));
        }
        assert_eq!(judged(MIXED), Judgement::Nobodys { pairing: PAIRING });
    }

    #[test]
    fn an_image_that_is_not_the_stamps_is_not_used() {
        let stamp = Stamp { of: OF, cell: CELL, history: ran(GENERATION) };
        let verdict = |cell, of, stamp: Option<Stamp>| {
            judge(Some(CellView { cell, generation: GENERATION, holder: Holder::This }), of, stamp.as_ref())
        };
        let cases = [
            (CELL, OF, None, Foreign::Unstamped),
            (CELL + 1, OF, Some(stamp), Foreign::Cell(CELL)),
            (CELL, ImageOf { vm: 0, ..OF }, Some(stamp), Foreign::Vm),
            (CELL, ImageOf { image: 0, ..OF }, Some(stamp), Foreign::Image),
            (
                CELL,
                ImageOf { disk_bytes: 512, ..OF },
                Some(stamp),
                Foreign::Size { stamped: 1 << 20, now: 512 },
            ),
        ];
        for (cell, of, stamp, why) in cases {
            assert_eq!(verdict(cell, of, stamp), Judgement::Foreign(why));
        }
    }
}
