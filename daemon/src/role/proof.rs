//! "Protected" as a proof (I9): both nodes' words about their arbiters, each with its time, the backup's about its
//! rehearsals, and the verdict on them. One function of the facts decides, on both nodes alike: proven, or a list of
//! lapses, each with since when.
//!
//! The facts are each node's own. A node asks its arbiter every few seconds while it has no other question, and tells
//! the peer what came of it ([`Standing`]). Silence needs no message: a word that is not repeated grows old. It is as
//! old as the question that it answers: how long it was on its way makes nothing fresh.

use super::event::Micros;
use ft_arbiter::{Cell, CellId, Place};
use ft_checkpoint::wire::message::Standing;
use std::fmt;

/// When the arbiter was asked, if nothing was known of the receiver's clock then. Such an answer proves nothing, and
/// what it denies counts.
const UNDATED: Micros = 0;

/// What is known of one node's arbiter, and of a backup's rehearsals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Witness {
    /// Where its cell is.
    pub(super) place: String,
    /// When the last request was made whose answer was believed: what it said was true since then, and not before. By
    /// this node's clock.
    pub(super) at: Option<Micros>,
    /// There was such an answer, if only at a time that is not known.
    pub(super) has_read: bool,
    /// The cell as it was then.
    pub(super) cell: Option<(CellId, u64)>,
    /// The pairing with which the cell named the backup.
    pub(super) named: Option<u64>,
    /// Why there was no answer since.
    pub(super) trouble: Option<String>,
    /// A backup: why the VM could not go on from what it holds when that was last tried, and since when. A primary: how
    /// the backup's disk images were found to differ from its own.
    pub(super) unfit: Option<(String, Micros)>,
}

impl Witness {
    /// The arbiter has answered, and the answer is believed.
    pub(super) fn saw(&mut self, asked_at: Micros, cell: Option<&Cell>) {
        (self.at, self.has_read) = (Some(asked_at), true);
        self.trouble = None;
        self.cell = cell.map(|cell| (cell.id, cell.generation));
        self.named = cell.and_then(|cell| cell.standby.as_ref()).map(|standby| standby.pairing);
    }

    /// This, as the peer is told it. `asked`: when the arbiter was asked, by the peer's clock, if that is known.
    pub(super) fn to_message(&self, now: Micros, asked: Option<Micros>, asks: bool) -> Standing {
        Standing {
            place: self.place.clone(),
            cell: self.cell.map(|(id, generation)| (id.0, generation)),
            named: self.named,
            asked_us: self.has_read.then(|| asked.unwrap_or(UNDATED)),
            trouble: self.trouble.clone(),
            unfit: self.unfit.clone().map(|(why, since)| (why, now.saturating_sub(since))),
            asks,
            stamp_us: now,
        }
    }

    /// What the peer has just told, after what it had told `before`.
    pub(super) fn of_message(now: Micros, said: Standing, before: Option<&Self>) -> Self {
        // It goes on being so: since when is not measured anew each time.
        let known = before.and_then(|before| before.unfit.as_ref()).map(|(_, since)| *since);
        let unfit = said.unfit.map(|(why, age)| (why, known.unwrap_or(now.saturating_sub(age))));
        Self {
            unfit,
            place: said.place,
            // By this node's clock; what it does not know yet, nobody does.
            at: said.asked_us.filter(|at| *at != UNDATED).map(|at| at.min(now)),
            has_read: said.asked_us.is_some(),
            cell: said.cell.map(|(id, generation)| (CellId(id), generation)),
            named: said.named,
            trouble: said.trouble,
        }
    }
}

/// A condition of "protected" that does not hold. Its text says what it is and what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lapse {
    /// A node's arbiter does not answer.
    Silent {
        /// The node.
        node: String,
        /// Where its cell is.
        place: String,
        /// The last error, if it says any.
        trouble: Option<String>,
    },
    /// The backup has another cell than the primary, or none.
    OtherCell {
        /// The backup.
        backup: String,
        /// Where its cell is.
        there: String,
        /// What it finds there.
        found: Option<CellId>,
        /// The primary.
        primary: String,
        /// Where its cell is.
        here: String,
        /// The primary's.
        cell: CellId,
    },
    /// The backup's cell is the right one, and does not name what it holds.
    NotNamed {
        /// The backup.
        backup: String,
        /// Where its cell is.
        there: String,
        /// The cell's generation.
        generation: u64,
    },
    /// The backup has not said yet that it has read the cell.
    Unread {
        /// The backup.
        backup: String,
    },
    /// When it was last tried, the VM could not go on from what the backup holds.
    Unfit {
        /// The backup.
        backup: String,
        /// Why.
        why: String,
    },
    /// The disk images of both hosts were compared, and the backup's are not as the primary's.
    ImagesDiffer {
        /// The backup.
        backup: String,
        /// How much.
        what: String,
    },
    /// What this node knows of the cell is not recorded durably.
    Unrecorded {
        /// Why.
        why: String,
    },
    /// The primary may not let the VM's output out, and has some.
    NoPermit {
        /// Who could permit it, besides the arbiter.
        backup: String,
    },
}

impl Lapse {
    /// Which condition it is: one word for those who count.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Silent { .. } => "arbiter_silent",
            Self::OtherCell { .. } => "other_cell",
            Self::NotNamed { .. } => "not_named",
            Self::Unread { .. } => "unread",
            Self::Unfit { .. } => "unfit",
            Self::ImagesDiffer { .. } => "images_differ",
            Self::Unrecorded { .. } => "unrecorded",
            Self::NoPermit { .. } => "no_permit",
        }
    }
}

impl fmt::Display for Lapse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent { node, place, trouble } => {
                write!(f, "the arbiter of {node} at {place} does not answer")?;
                match trouble {
                    Some(trouble) => write!(f, ": {trouble}"),
                    None => Ok(()),
                }
            }
            Self::OtherCell { backup, there, found, primary, here, cell } => {
                write!(
                    f,
                    "the nodes have different arbiters: {primary} has cell {cell} at {here}, {backup} has "
                )?;
                match found {
                    Some(found) => write!(f, "cell {found} at {there}")?,
                    None => write!(f, "no cell at {there}")?,
                }
                write!(
                    f,
                    "; {backup} cannot take over: both must have the same storage, or name the same services"
                )
            }
            Self::NotNamed { backup, there, generation } => write!(
                f,
                "the cell at {there} does not name what {backup} holds (generation {generation}): it cannot take over"
            ),
            Self::Unread { backup } => write!(f, "{backup} has not read the cell yet"),
            Self::Unfit { backup, why } => write!(
                f,
                "the VM could not go on on {backup} when last tried; it is tried again every few seconds: {why}"
            ),
            Self::ImagesDiffer { backup, what } => write!(
                f,
                "the disks of {backup} are not what they should be: {what}; ftctl disk verify --repair makes them so"
            ),
            Self::Unrecorded { why } => write!(f, "this node has not recorded the cell's generation: {why}"),
            Self::NoPermit { backup } => write!(
                f,
                "the VM's output is held: neither {backup} nor the arbiter has permitted this node to let it out"
            ),
        }
    }
}

/// A lapse, and since when: by this node's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lapsed {
    /// What.
    pub lapse: Lapse,
    /// Since when.
    pub since: Micros,
}

/// The verdict on a pair that is in step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Proven,
    /// Nothing is wrong, but the backup's word is still on its way.
    Pending,
    Lapsed(Vec<Lapsed>),
}

/// Nothing is wrong but that the images differ: whose are right, only the operator knows.
pub(super) fn only_images_differ(lapses: &[Lapsed]) -> bool {
    lapses.iter().all(|lapsed| matches!(lapsed.lapse, Lapse::ImagesDiffer { .. }))
}

/// A pair that is in step: what has to be proven of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case<'a> {
    pub(super) primary: (&'a str, &'a Witness),
    /// None: it has said nothing yet.
    pub(super) backup: (&'a str, Option<&'a Witness>),
    pub(super) pairing: u64,
    /// The generation in which the primary's cell names the backup.
    pub(super) generation: u64,
    /// Since when it is in step.
    pub(super) since: Micros,
}

impl Case<'_> {
    /// Judges. A word is good for `limit` microseconds.
    pub(super) fn judge(&self, now: Micros, limit: Micros) -> Verdict {
        let mut lapses: Vec<Lapsed> = silence(self.primary, self.since, now, limit).into_iter().collect();
        let (backup, said) = self.backup;
        let overdue = now.saturating_sub(self.since) > limit;
        let mut pending = false;
        match said {
            Some(said) if said.has_read => {
                lapses.extend(silence((backup, said), self.since, now, limit));
                match self.contradiction(said) {
                    Some(lapse) => lapses.push(Lapsed { lapse, since: self.since }),
                    None => {
                        let is_old = |(_, generation)| generation < self.generation;
                        pending = said.at.is_none() || said.cell.is_none_or(is_old);
                    }
                }
            }
            Some(said) => {
                pending = true;
                lapses.extend(silence((backup, said), self.since, now, limit));
            }
            None => pending = true,
        }
        if let Some((why, since)) = said.and_then(|said| said.unfit.clone()) {
            lapses.push(Lapsed { lapse: Lapse::Unfit { backup: backup.into(), why }, since });
        }
        if let Some((what, since)) = self.primary.1.unfit.clone() {
            lapses.push(Lapsed { lapse: Lapse::ImagesDiffer { backup: backup.into(), what }, since });
        }
        if pending && overdue && lapses.is_empty() {
            let lapse = Lapse::Unread { backup: backup.into() };
            lapses.push(Lapsed { lapse, since: self.since });
        }
        match (lapses.is_empty(), pending) {
            (false, _) => Verdict::Lapsed(lapses),
            (true, true) => Verdict::Pending,
            (true, false) => Verdict::Proven,
        }
    }

    /// What the backup has read, and that is not what the primary's cell says.
    fn contradiction(&self, said: &Witness) -> Option<Lapse> {
        let (primary, mine) = self.primary;
        let backup = self.backup.0;
        let cell = mine.cell?.0;
        match said.cell {
            Some((found, generation))
                if found == cell && !Place::are_unlike_sets(&said.place, &mine.place) =>
            {
                let names_it = said.named == Some(self.pairing) || generation < self.generation;
                (!names_it).then(|| Lapse::NotNamed {
                    backup: backup.into(),
                    there: said.place.clone(),
                    generation,
                })
            }
            found => Some(Lapse::OtherCell {
                backup: backup.into(),
                there: said.place.clone(),
                found: found.map(|(found, _)| found),
                primary: primary.into(),
                here: mine.place.clone(),
                cell,
            }),
        }
    }
}

/// Whether a node's arbiter has been silent for too long.
pub(super) fn silence(
    (node, witness): (&str, &Witness),
    born: Micros,
    now: Micros,
    limit: Micros,
) -> Option<Lapsed> {
    let since = witness.at.unwrap_or(born);
    (now.saturating_sub(since) > limit).then(|| Lapsed {
        lapse: Lapse::Silent {
            node: node.into(),
            place: witness.place.clone(),
            trouble: witness.trouble.clone(),
        },
        since,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Micros = 1_000;
    const CELL: CellId = CellId(0xa);

    fn witness(place: &str, at: Micros, cell: Option<(CellId, u64)>, named: Option<u64>) -> Witness {
        Witness { place: place.into(), at: Some(at), has_read: true, cell, named, ..Witness::default() }
    }

    fn judged(
        primary: &Witness,
        backup: Option<&Witness>,
        now: Micros,
    ) -> Result<bool, Vec<(&'static str, Micros)>> {
        let case = Case {
            primary: ("alpha", primary),
            backup: ("beta", backup),
            pairing: 7,
            generation: 2,
            since: 100,
        };
        match case.judge(now, LIMIT) {
            Verdict::Proven => Ok(true),
            Verdict::Pending => Ok(false),
            Verdict::Lapsed(lapses) => Err(lapses.iter().map(|l| (l.lapse.kind(), l.since)).collect()),
        }
    }

    #[test]
    fn protected_is_what_both_nodes_have_seen_lately() {
        let primary = witness("/a", 100, Some((CELL, 2)), Some(7));
        let good = witness("/b", 150, Some((CELL, 2)), Some(7));
        let table = [
            ("proven", Some(good.clone()), 200, Ok(true)),
            ("nothing said", None, 200, Ok(false)),
            ("nothing said for too long", None, 1_101, Err(vec![("arbiter_silent", 100)])),
            ("read too early", Some(witness("/b", 90, Some((CELL, 1)), None)), 200, Ok(false)),
            (
                "another cell",
                Some(witness("/b", 150, Some((CellId(1), 9)), None)),
                200,
                Err(vec![("other_cell", 100)]),
            ),
            ("no cell", Some(witness("/b", 150, None, None)), 200, Err(vec![("other_cell", 100)])),
            (
                "not named",
                Some(witness("/b", 150, Some((CELL, 2)), Some(6))),
                200,
                Err(vec![("not_named", 100)]),
            ),
            (
                "a rehearsal failed",
                Some(Witness { unfit: Some(("KVM_SET_LAPIC".into(), 160)), ..good.clone() }),
                200,
                Err(vec![("unfit", 160)]),
            ),
            ("both silent", Some(good), 1_200, Err(vec![("arbiter_silent", 100), ("arbiter_silent", 150)])),
        ];
        for (name, backup, now, expected) in table {
            assert_eq!(judged(&primary, backup.as_ref(), now), expected, "{name}");
        }
        let fresh = witness("/a", 1_100, Some((CELL, 2)), Some(7));
        assert_eq!(judged(&fresh, None, 1_101), Err(vec![("unread", 100)]));
    }

    #[test]
    fn a_failed_rehearsal_lasts_from_its_first_word_to_the_word_that_it_went_well() {
        let since = |witness: &Witness| witness.unfit.as_ref().map(|(_, since)| *since);
        let mine = Witness { unfit: Some(("why".into(), 300)), ..Witness::default() };
        let first = Witness::of_message(9_000, mine.to_message(400, None, false), None);
        assert_eq!(since(&first), Some(8_900), "by this node's clock");
        let later = Witness::of_message(9_977, mine.to_message(1_400, None, false), Some(&first));
        assert_eq!(since(&later), Some(8_900), "however long the word was on its way");
        let well =
            Witness::of_message(9_990, Witness::default().to_message(1_500, None, false), Some(&later));
        assert_eq!(since(&well), None);
    }

    #[test]
    fn a_word_is_as_old_as_its_question_and_never_from_the_future() {
        let mine = Witness { has_read: true, ..Witness::default() };
        let heard = |of: &Witness, asked| Witness::of_message(900, of.to_message(5, asked, false), None);
        for (asked, at) in [(None, None), (Some(70), Some(70)), (Some(Micros::MAX), Some(900))] {
            assert_eq!(heard(&mine, asked), Witness { at, ..mine.clone() });
        }
        assert_eq!(heard(&Witness::default(), Some(70)), Witness::default(), "it never answered");
    }

    #[test]
    fn a_word_without_a_date_proves_nothing_and_what_it_denies_counts() {
        let primary = witness("/a", 150, Some((CELL, 2)), Some(7));
        let undated = |cell, named| Witness { at: None, ..witness("/b", 0, cell, named) };
        assert_eq!(judged(&primary, Some(&undated(Some((CELL, 2)), Some(7))), 200), Ok(false));
        assert_eq!(judged(&primary, Some(&undated(None, None)), 200), Err(vec![("other_cell", 100)]));
        let other = undated(Some((CellId(0xb), 9)), Some(7));
        assert_eq!(judged(&primary, Some(&other), 200), Err(vec![("other_cell", 100)]));
    }

    /// A cell that was copied from one set of services to another has gone on as two.
    #[test]
    fn unlike_sets_of_services_are_unlike_arbiters_whatever_the_cell_says() {
        let judge = |there: &str| {
            let primary = witness("services 10.0.0.1:1 10.0.0.2:1 10.0.0.3:1", 100, Some((CELL, 2)), Some(7));
            let backup = witness(there, 150, Some((CELL, 2)), Some(7));
            judged(&primary, Some(&backup), 200)
        };
        assert_eq!(judge("services 10.0.0.1:1 10.0.0.2:1 10.0.0.3:1"), Ok(true));
        assert_eq!(judge("services 10.0.0.1:1 10.0.0.2:1 10.0.0.4:1"), Err(vec![("other_cell", 100)]));
        // A path, or the name that a service has on another way to it, may differ.
        assert_eq!(judge("file /other/web.cell"), Ok(true));
    }

    #[test]
    fn a_difference_names_both_places() {
        let primary = witness("file /a", 100, Some((CELL, 2)), Some(7));
        let backup = witness("file /b", 150, None, None);
        let case = Case {
            primary: ("alpha", &primary),
            backup: ("beta", Some(&backup)),
            pairing: 7,
            generation: 2,
            since: 100,
        };
        let Verdict::Lapsed(lapses) = case.judge(200, LIMIT) else { panic!() };
        let text = lapses[0].lapse.to_string();
        assert!(text.contains("file /a") && text.contains("no cell at file /b"), "{text}");
    }
}
