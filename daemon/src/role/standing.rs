//! How the two nodes keep each other's word about their arbiters, and about the backup's rehearsals: when this node
//! asks its own arbiter, and what it tells the peer. The verdict on the words is `proof`'s.

use super::arbitration::Asked;
use super::command::Command;
use super::core::Core;
use super::event::{ConnId, Micros};
use super::proof::{Case, Lapse, Lapsed, Verdict, Witness, silence};
use super::record::NodeRecord;
use super::surroundings::{Reach, Whose};
use ft_arbiter::{Cell, CellId};
use ft_checkpoint::wire::message::Standing;

/// Both nodes' words, and this node's duties towards them.
#[derive(Clone, Debug, Default)]
pub(super) struct Words {
    /// This node's own.
    pub(super) mine: Witness,
    /// The peer's, over the present connection.
    pub(super) theirs: Option<Witness>,
    /// The peer's clock when it sent its newest word over that connection, and this node's when it came.
    heard: Option<(Micros, Micros)>,
    /// When the arbiter was asked for `mine`, by the peer's clock.
    asked_at_theirs: Option<Micros>,
    /// When this process began.
    born: Micros,
    /// Since when the pair is in step.
    in_step_since: Micros,
    /// When the arbiter is asked again, if nothing else is.
    probe_at: Micros,
    /// Somebody wants to know what it says as of now: an answer to an earlier request is not enough.
    wanted_at: Micros,
    /// Why the record is not durable, and since when.
    unrecorded: Option<(String, Micros)>,
}

impl Words {
    pub(super) fn new(place: String, now: Micros) -> Self {
        let mine = Witness { place, ..Witness::default() };
        Self { mine, born: now, ..Self::default() }
    }

    /// The peer's clock, at the earliest: its newest word may have been on its way for any time.
    pub(super) fn their_clock(&self, now: Micros) -> Option<Micros> {
        let (stamp, at) = self.heard?;
        Some(stamp.saturating_add(now.saturating_sub(at)))
    }

    /// Whether both nodes' arbiters have answered since then.
    pub(super) fn both_since(&self, then: Micros) -> bool {
        let answered = |witness: &Witness| witness.at.is_some_and(|at| at >= then);
        answered(&self.mine) && self.theirs.as_ref().is_some_and(answered)
    }
}

impl Core {
    /// The arbiter has answered with this cell, or has not.
    pub(super) fn note_answer(&mut self, answer: Result<Option<&Cell>, &str>) {
        match answer {
            Ok(cell) => {
                let asked_at = self.arbiter.asked_at;
                self.words.mine.saw(asked_at, cell);
                self.words.asked_at_theirs = self.arbiter.asked_at_theirs;
                let is_enough = asked_at >= self.words.wanted_at;
                self.words.probe_at = if is_enough { asked_at + self.policy.probe_us } else { self.now };
            }
            Err(why) => {
                self.words.mine.trouble = Some(why.into());
                self.words.probe_at = self.now;
            }
        }
    }

    /// Asks the arbiter what it says, if it is time and nothing else is asked.
    pub(super) fn probe_if_due(&mut self) {
        if self.arbiter.is_free(self.now) && self.now >= self.words.probe_at {
            self.words.probe_at = self.now + self.policy.probe_us;
            self.begin_asking(Asked::Read { void: false });
            self.out.push(Command::ProbeCell);
        }
    }

    /// Asks it as soon as it can be asked.
    pub(super) fn probe_soon(&mut self) {
        self.words.probe_at = self.now;
        self.words.wanted_at = self.now;
        self.arbiter.hurry();
    }

    /// Tells the peer what this node's arbiter says.
    pub(super) fn tell_standing(&mut self, conn: ConnId, asks: bool) {
        let standing = self.words.mine.to_message(self.now, self.words.asked_at_theirs, asks);
        self.out.push(Command::SendStanding { conn, standing });
    }

    /// The peer tells the same.
    pub(super) fn on_standing(&mut self, said: Standing) {
        // An answer to what was asked before its first word could not be dated for it.
        let is_first = self.words.heard.replace((said.stamp_us, self.now)).is_none();
        if said.asks || is_first {
            self.probe_soon();
        }
        self.words.theirs = Some(Witness::of_message(self.now, said, self.words.theirs.as_ref()));
    }

    /// What the last rehearsal has shown of the state that is held here, or the last look at the images of a primary's
    /// backup, and to whom it is told.
    pub(super) fn note_unfit(&mut self, unfit: Option<(String, Micros)>, conn: Option<ConnId>) {
        if self.words.mine.unfit != unfit {
            self.words.mine.unfit = unfit;
            conn.into_iter().for_each(|conn| self.tell_standing(conn, false));
        }
    }

    /// A connection begins or ends: what the peer said before is history.
    pub(super) fn forget_their_word(&mut self) {
        (self.words.theirs, self.words.heard) = (None, None);
        (self.words.asked_at_theirs, self.arbiter.asked_at_theirs) = (None, None);
        self.surroundings.set(Whose::Peers, Reach::Unknown);
    }

    /// The pair is in step from now on; what that is worth has to be shown.
    pub(super) fn begin_proof(&mut self) {
        self.words.in_step_since = self.now;
    }

    /// The peer's cell, as it said.
    pub(super) fn their_cell(&self) -> Option<CellId> {
        Some(self.words.theirs.as_ref()?.cell?.0)
    }

    /// This node acts on this generation of this cell: it never forgets that.
    pub(super) fn act_on(&mut self, cell: CellId, generation: u64) {
        self.learn_generation(generation);
        let before = self.record.filter(|record| record.cell == cell).map_or(0, |record| record.generation);
        if generation > before {
            let record = NodeRecord { cell, generation };
            self.record = Some(record);
            self.out.push(Command::Record(record));
        }
    }

    /// This was made durable, or is not yet. What a newer record has replaced concerns nobody.
    pub(super) fn on_recorded(&mut self, record: NodeRecord, trouble: Option<String>) {
        if self.record != Some(record) {
            return;
        }
        let since = self.words.unrecorded.take().map_or(self.now, |(_, since)| since);
        self.words.unrecorded = trouble.map(|why| (why, since));
    }

    /// The verdict on a pair that is in step, as the primary of `pairing` sees it.
    pub(super) fn verdict_of_primary(&self, pairing: u64, generation: u64) -> Verdict {
        let Words { mine, theirs, .. } = &self.words;
        self.judge((&self.policy.node, mine), (&self.policy.peer, theirs.as_ref()), pairing, generation)
    }

    /// The same, as its backup sees it.
    pub(super) fn verdict_of_backup(&self, pairing: u64, generation: u64) -> Verdict {
        let Words { mine, theirs, .. } = &self.words;
        match theirs {
            Some(theirs) => {
                self.judge((&self.policy.peer, theirs), (&self.policy.node, Some(mine)), pairing, generation)
            }
            None => Verdict::Pending,
        }
    }

    fn judge(
        &self,
        primary: (&str, &Witness),
        backup: (&str, Option<&Witness>),
        pairing: u64,
        generation: u64,
    ) -> Verdict {
        let case = Case { primary, backup, pairing, generation, since: self.words.in_step_since };
        match (case.judge(self.now, self.policy.proof_us), self.unrecorded()) {
            (Verdict::Lapsed(mut lapses), unrecorded) => {
                lapses.extend(unrecorded);
                Verdict::Lapsed(lapses)
            }
            (_, Some(unrecorded)) => Verdict::Lapsed(vec![unrecorded]),
            (verdict, None) => verdict,
        }
    }

    /// What lapses on this node alone, whatever it is.
    pub(super) fn own_lapses(&self) -> Vec<Lapsed> {
        let Words { mine, born, .. } = &self.words;
        let silent = silence((&self.policy.node, mine), *born, self.now, self.policy.proof_us);
        silent.into_iter().chain(self.unrecorded()).collect()
    }

    fn unrecorded(&self) -> Option<Lapsed> {
        let (why, since) = self.words.unrecorded.clone()?;
        Some(Lapsed { lapse: Lapse::Unrecorded { why }, since })
    }
}

/// Lapses in one line for the operator.
pub(super) fn in_words(lapses: &[Lapsed]) -> String {
    lapses.iter().map(|lapsed| lapsed.lapse.to_string()).collect::<Vec<_>>().join("; ")
}
