//! Whose image is right: from what the cell said when this node read it, and from the stamp.
//!
//! A cell's generation counts every change of it. So between an image that ran in a generation and a cell that says that
//! this node owns the next one, nobody else had the VM: this node's process ended between setting the cell and stamping.
//! In the same way, a node that owns the generation after the one that named it as the standby has won with that pairing.

use super::{History, Stamp, Whose};

/// What the cell says, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellView {
    /// Which cell it is; none: there is none yet.
    pub cell: Option<u64>,
    /// Who has the VM.
    pub holder: Holder,
}

/// Who has the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nobody ever had.
    Nobody,
    /// Another node.
    Other,
    /// This node, in this generation.
    This {
        /// The cell's.
        generation: u64,
    },
}

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The VM may run from it.
    Right,
    /// The VM may run from it when the journal is carried out.
    RightOnceCarriedOut {
        /// The pairing that it was won with.
        pairing: u64,
    },
    /// It was never used by ftd, and nobody has the VM: the VM begins with it.
    New,
    /// Nobody has the VM, and the image was one of a pair: the operator decides.
    Left(History),
    /// The VM went on elsewhere since: the operator decides.
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

/// Judges the image `of`, by the cell as it was before this node asked for it.
#[must_use]
pub fn judge(view: CellView, of: Whose, stamp: Option<&Stamp>) -> Verdict {
    let generation = match (view.holder, stamp) {
        (Holder::Other, _) => return Verdict::Behind,
        (Holder::Nobody, None) => return Verdict::New,
        (Holder::Nobody, Some(stamp)) => return Verdict::Left(stamp.history),
        (Holder::This { generation }, _) => generation,
    };
    let Some(stamp) = stamp else { return Verdict::Foreign(Foreign::Unstamped) };
    if let Some(why) = foreign(view.cell, of, stamp) {
        return Verdict::Foreign(why);
    }
    let is_next = |last: u64| last.checked_add(1) == Some(generation);
    match stamp.history {
        History::Ran { generation: last } if last == generation || is_next(last) => Verdict::Right,
        History::Follows { pairing, named_in: Some(named_in) } if is_next(named_in) => {
            Verdict::RightOnceCarriedOut { pairing }
        }
        History::Ran { .. } | History::Follows { .. } => Verdict::Stale(stamp.history),
        History::Mixed { pairing } => Verdict::Nobodys { pairing },
    }
}

fn foreign(cell: Option<u64>, of: Whose, stamp: &Stamp) -> Option<Foreign> {
    let Whose { vm, image, disk_bytes } = stamp.of;
    if vm != of.vm {
        return Some(Foreign::Vm);
    }
    if cell != Some(stamp.cell) {
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

    const OF: Whose = Whose { vm: 1, image: 2, disk_bytes: 1 << 20 };
    const CELL: u64 = 9;
    const PAIRING: u64 = 5;
    const GENERATION: u64 = 7;

    fn judged(holder: Holder, history: History) -> Verdict {
        let stamp = Stamp { of: OF, cell: CELL, history };
        judge(CellView { cell: Some(CELL), holder }, OF, Some(&stamp))
    }

    fn owned(history: History) -> Verdict {
        judged(Holder::This { generation: GENERATION }, history)
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
        assert_eq!(owned(ran(GENERATION)), Verdict::Right);
        assert_eq!(owned(ran(GENERATION - 1)), Verdict::Right, "the stamp was not written any more");
    }

    #[test]
    fn the_image_that_the_cell_was_won_with_is_right_once_the_journal_is_carried_out() {
        let verdict = owned(follows(Some(GENERATION - 1)));
        assert_eq!(verdict, Verdict::RightOnceCarriedOut { pairing: PAIRING });
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
            assert_eq!(owned(history), Verdict::Stale(history));
        }
    }

    #[test]
    fn a_mixed_one_of_the_owners_is_nobodys() {
        assert_eq!(owned(MIXED), Verdict::Nobodys { pairing: PAIRING });
    }

    #[test]
    fn where_another_owns_the_vm_the_image_is_behind_whatever_its_stamp() {
        for history in [ran(GENERATION), follows(Some(GENERATION - 1)), MIXED] {
            assert_eq!(judged(Holder::Other, history), Verdict::Behind);
        }
        let view = CellView { cell: Some(CELL), holder: Holder::Other };
        assert_eq!(judge(view, OF, None), Verdict::Behind, "a new backup has none");
    }

    #[test]
    fn where_nobody_owns_the_vm_it_begins_with_an_image_that_was_never_one_of_a_pair() {
        for cell in [None, Some(CELL)] {
            assert_eq!(judge(CellView { cell, holder: Holder::Nobody }, OF, None), Verdict::New);
        }
        for history in [ran(GENERATION), follows(Some(GENERATION - 1)), MIXED] {
            assert_eq!(judged(Holder::Nobody, history), Verdict::Left(history));
        }
    }

    #[test]
    fn an_image_that_is_not_the_stamps_is_not_used() {
        let stamp = Stamp { of: OF, cell: CELL, history: ran(GENERATION) };
        let verdict = |cell, of, stamp: Option<Stamp>| {
            judge(CellView { cell, holder: Holder::This { generation: GENERATION } }, of, stamp.as_ref())
        };
        let cases = [
            (Some(CELL), OF, None, Foreign::Unstamped),
            (Some(CELL + 1), OF, Some(stamp), Foreign::Cell(CELL)),
            (None, OF, Some(stamp), Foreign::Cell(CELL)),
            (Some(CELL), Whose { vm: 0, ..OF }, Some(stamp), Foreign::Vm),
            (Some(CELL), Whose { image: 0, ..OF }, Some(stamp), Foreign::Image),
            (
                Some(CELL),
                Whose { disk_bytes: 512, ..OF },
                Some(stamp),
                Foreign::Size { stamped: 1 << 20, now: 512 },
            ),
        ];
        for (cell, of, stamp, why) in cases {
            assert_eq!(verdict(cell, of, stamp), Verdict::Foreign(why));
        }
    }
}
