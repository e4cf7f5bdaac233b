//! The one arbiter request that may be under way, and the worth of its answer: certain, or none yet.

use super::command::Command;
use super::core::Core;
use super::event::Micros;
use super::record;
use ft_arbiter::{Cell, Outcome};

/// The one arbiter request that may be under way, and when the next may be.
#[derive(Clone, Debug, Default)]
pub(super) struct Arbitration {
    pub(super) asked: Option<Asked>,
    /// When the newest request was made. What its answer says was true at some moment since then.
    pub(super) asked_at: Micros,
    /// The same by the peer's clock, at the earliest. None: nothing of that clock was known.
    pub(super) asked_at_theirs: Option<Micros>,
    pub(super) retry_at: Micros,
    /// When the one under way was last given up.
    left_at: Micros,
}

#[derive(Clone, Debug)]
pub(super) enum Asked {
    /// `void`: asked in a situation that is over; the answer concerns nobody.
    Read { void: bool },
    /// `in_doubt`: an earlier attempt at this very request may have been carried out. `resend_at`: its answer was
    /// lost, ask again then.
    Set { expected: Option<u64>, new: Cell, in_doubt: bool, resend_at: Option<Micros> },
}

/// A certain answer to a compare-and-set.
pub(super) enum Settled {
    Won(Cell),
    Lost(Option<Cell>),
    /// Nothing changed and nothing is under way.
    NotAttempted(String),
}

impl Arbitration {
    /// Whether a new request may be made now.
    pub(super) fn is_free(&self, now: Micros) -> bool {
        self.asked.is_none() && now >= self.retry_at
    }

    /// Whether a request has been under way since then, and was not given up since.
    fn is_overdue(&self, then: Micros) -> bool {
        let is_under_way = match &self.asked {
            Some(Asked::Read { .. } | Asked::Set { resend_at: None, .. }) => true,
            Some(Asked::Set { resend_at: Some(_), .. }) | None => false,
        };
        is_under_way && self.asked_at.max(self.left_at) <= then
    }

    /// Whether the cell may be changing by our own request right now.
    pub(super) fn is_setting(&self) -> bool {
        matches!(self.asked, Some(Asked::Set { .. }))
    }

    /// The answer to a read under way is not to be used: the situation that it was asked in is over.
    pub(super) fn void_read(&mut self) {
        if let Some(Asked::Read { void }) = &mut self.asked {
            *void = true;
        }
    }

    /// Allows the next request no sooner than then.
    pub(super) fn wait_until(&mut self, at: Micros) {
        self.retry_at = self.retry_at.max(at);
    }

    /// Allows the next request at once.
    pub(super) fn hurry(&mut self) {
        self.retry_at = 0;
    }
}

impl Core {
    /// A request is made.
    pub(super) fn begin_asking(&mut self, asked: Asked) {
        self.arbiter.asked = Some(asked);
        self.note_asking();
    }

    /// It is made now.
    pub(super) fn note_asking(&mut self) {
        self.arbiter.asked_at = self.now;
        self.arbiter.asked_at_theirs = self.words.their_clock(self.now);
    }

    pub(super) fn ask_read(&mut self) {
        self.begin_asking(Asked::Read { void: false });
        self.out.push(Command::ReadCell);
    }

    pub(super) fn ask_set(&mut self, expected: Option<u64>, new: Cell) {
        self.out.push(Command::CompareAndSet { expected, new: new.clone() });
        self.begin_asking(Asked::Set { expected, new, in_doubt: false, resend_at: None });
    }

    /// A call on storage that hangs, or was replaced, may never return: another one is made in its place.
    pub(super) fn leave_if_overdue(&mut self) {
        let is_overdue = |then| self.arbiter.is_overdue(then);
        if self.now.checked_sub(self.policy.patience_us).is_some_and(is_overdue) {
            self.arbiter.left_at = self.now;
            self.out.push(Command::LeaveArbiter);
        }
    }

    /// A cell never goes back. One that does not follow from what this node knows is trouble with the arbiter: nothing
    /// follows from it.
    pub(super) fn believe(&mut self, cell: Option<Cell>) -> Result<Option<Cell>, String> {
        record::judge(self.record, self.generation(), cell.as_ref())
            .map_err(|distrust| distrust.to_string())?;
        if let (Some(cell), Some(_)) = (&cell, self.record) {
            self.act_on(cell.id, cell.generation);
        }
        Ok(cell)
    }

    /// Turns an answer into a certain one, or arranges for the request to be repeated.
    pub(super) fn settle(&mut self, outcome: Outcome) -> Option<Settled> {
        let retry_at = self.now + self.policy.arbiter_retry_us;
        let answer = match outcome {
            Outcome::Won(cell) => Ok(Settled::Won(cell)),
            Outcome::Lost(cell) => Ok(self.believe(cell).map_or_else(Settled::NotAttempted, Settled::Lost)),
            Outcome::NotAttempted(error) => Ok(Settled::NotAttempted(error.to_string())),
            Outcome::Unknown(error) => Err(error.to_string()),
        };
        match &answer {
            Ok(Settled::Won(cell)) => self.note_answer(Ok(Some(cell))),
            Ok(Settled::Lost(cell)) => self.note_answer(Ok(cell.as_ref())),
            Ok(Settled::NotAttempted(why)) | Err(why) => self.note_answer(Err(why)),
        }
        let Some(Asked::Set { new, in_doubt, resend_at, .. }) = &mut self.arbiter.asked else {
            return None;
        };
        let settled = match answer {
            // Nobody else writes a cell that is equal to what we asked for: an earlier attempt was carried out.
            Ok(Settled::Lost(Some(cell))) if cell == *new => Settled::Won(cell),
            Ok(settled) if !*in_doubt || !matches!(settled, Settled::NotAttempted(_)) => settled,
            _ => {
                *in_doubt = true;
                *resend_at = Some(retry_at);
                return None;
            }
        };
        self.arbiter.asked = None;
        if matches!(settled, Settled::NotAttempted(_)) {
            self.arbiter.retry_at = retry_at;
        }
        if let Settled::Won(cell) = &settled {
            self.learn_generation(cell.generation);
            self.act_on(cell.id, cell.generation);
        }
        Some(settled)
    }
}
