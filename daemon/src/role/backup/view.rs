//! The backup as the operator sees it.

use super::{Backup, Hold, Stage};
use crate::role::attempts::in_seconds;
use crate::role::core::Core;
use crate::role::proof::{Lapsed, Verdict, only_images_differ};
use crate::role::standing::in_words;
use crate::role::view::State;

impl Backup {
    pub(in crate::role) fn state(&self, core: &Core) -> State {
        match (self.hold, self.stage) {
            (_, Stage::Orphaned { .. } | Stage::Contesting(_) | Stage::Leaving { .. }) => State::Waiting,
            (Hold::Sealed(_), _) => match self.verdict(core) {
                Some(Verdict::Proven) => State::Protected,
                Some(Verdict::Lapsed(_)) => State::Degraded,
                Some(Verdict::Pending) | None => State::Resyncing,
            },
            (Hold::Nothing, _) => State::Waiting,
            _ => State::Resyncing,
        }
    }

    /// None: the pair is not in step.
    fn verdict(&self, core: &Core) -> Option<Verdict> {
        match (self.hold, self.stage, self.paired) {
            (Hold::Sealed(held), Stage::Following | Stage::Offered { .. }, Some(generation)) => {
                Some(core.verdict_of_backup(held.pairing, generation))
            }
            _ => None,
        }
    }

    pub(in crate::role) fn lapses(&self, core: &Core) -> Vec<Lapsed> {
        match self.verdict(core) {
            Some(Verdict::Lapsed(lapses)) => lapses,
            Some(Verdict::Proven | Verdict::Pending) => Vec::new(),
            None => core.own_lapses(),
        }
    }

    pub(in crate::role) fn detail(&self, core: &Core) -> String {
        match self.stage {
            Stage::Following => match self.verdict(core) {
                Some(Verdict::Lapsed(lapses)) if only_images_differ(&lapses) => {
                    format!("in step, but {}", in_words(&lapses))
                }
                Some(Verdict::Lapsed(lapses)) => {
                    format!("in step, but this node could not take over now: {}", in_words(&lapses))
                }
                _ => match (self.ended_in, self.dial_at) {
                    (Some(generation), _) => format!(
                        "the VM has ended in generation {generation}; ftctl start boots it, on either host ({})",
                        self.why
                    ),
                    (None, Some(at)) => {
                        let wait = in_seconds(at.saturating_sub(core.now));
                        format!("{}; dials the primary again in {wait}", self.why)
                    }
                    (None, None) => self.why.clone(),
                },
            },
            Stage::Offered { .. } => {
                "switchover: checking whether the VM can go on from the state held here".into()
            }
            Stage::Leaving { .. } => {
                format!("{}; keeping the VM's state until the primary goes on without this node", self.why)
            }
            Stage::Orphaned { verified: false, .. } => {
                format!(
                    "without the primary; checking whether the VM can go on from the state held here ({})",
                    self.why
                )
            }
            Stage::Orphaned { .. } => {
                format!(
                    "without the primary; this node holds a sealed checkpoint and asks the arbiter ({})",
                    self.why
                )
            }
            Stage::Contesting(_) => format!("asking the arbiter for the VM ({})", self.why),
        }
    }
}
