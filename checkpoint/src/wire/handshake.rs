//! Checks whether two nodes fit each other: a pure comparison that names everything that differs, in the operator's
//! words, so that both hosts can say it. Two builds that follow each other meet at the newest versions that both know.

use super::identity::{Comparison, Fact, Identity, STATE_FORMAT, Versions, Weight};
use super::message::Refuse;

/// Versions of the messages' meaning that are spoken here: this build's, and that of the build before it.
pub const PROTOCOL: Versions = Versions { oldest: 4, newest: 5 + cfg!(feature = "next-version") as u16 };

/// What two nodes that fit say and write to each other: the newest versions that both know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Of the messages.
    pub protocol: u16,
    /// Of the machine's state.
    pub state: u16,
}

/// Which part of the handshake a node plays. The CPU and the generation are judged differently from the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// This node runs the VM.
    Primary,
    /// This node stands by.
    Backup,
}

/// Why two nodes cannot pair.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Frames of another version: nothing in them can be read.
    #[error(
        "the peer's frames have version {theirs}, this node's {ours}: install the same version of ftd on both"
    )]
    Frames {
        /// The peer's.
        theirs: u16,
        /// Ours.
        ours: u16,
    },
    /// No version of the messages in common.
    #[error(
        "the peer speaks {theirs} of the protocol, this node {ours}: install versions of ftd that follow each other"
    )]
    Protocol {
        /// The peer's.
        theirs: Versions,
        /// Ours.
        ours: Versions,
    },
    /// The peer protects another VM.
    #[error("the peer protects VM {theirs:?}, this node {ours:?}")]
    Vm {
        /// The peer's.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// It is this very process.
    #[error("peer.address is this node's own: node {0} reached itself")]
    Itself(String),
    /// Two nodes have one name.
    #[error("two nodes call themselves {0}: `node` must differ on the two hosts")]
    SameNode(String),
    /// It is not the node that is expected.
    #[error("node {theirs} asked to pair with node {ours}, whose peer.node is {expected}")]
    Stranger {
        /// The peer.
        theirs: String,
        /// This node.
        ours: String,
        /// The peer that it expects.
        expected: String,
    },
    /// It expects another node than this one.
    #[error("node {theirs} expects its peer to be node {expected} (its peer.node), but this is node {ours}")]
    NotExpected {
        /// The peer.
        theirs: String,
        /// The peer that it expects.
        expected: String,
        /// This node.
        ours: String,
    },
    /// What resuming depends on differs.
    #[error("{}", lines(.0))]
    Differences(Vec<Difference>),
    /// The primary's ownership is from an older generation than the backup knows of: it has been replaced.
    #[error(
        "the primary's generation is {primary}, but its backup has seen {backup}: another node has replaced it"
    )]
    StalePrimary {
        /// The primary's.
        primary: u64,
        /// The backup's.
        backup: u64,
    },
    /// Neither says in which versions it knows a format that both need.
    #[error("{0}: neither node has one, or one runs a version of ftd that does not know it")]
    Unsaid(&'static str),
    /// A host lacks what a backup needs.
    #[error("node {node} cannot be the backup now: {what}; it tries again by itself")]
    Lacks {
        /// Which.
        node: String,
        /// What it lacks.
        what: String,
    },
    /// A node does not know yet what it has.
    #[error("node {node} cannot compare its files with its peer's yet: {why}")]
    NotReady {
        /// Which.
        node: String,
        /// What it is doing.
        why: String,
    },
}

/// One thing that differs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// Two values that should be equal, or should overlap.
    #[error("{name}: {} has {}, {} has {}", .theirs.node, .theirs.value, .ours.node, .ours.value)]
    Values {
        /// What differs.
        name: String,
        /// The peer's.
        theirs: Shown,
        /// Ours.
        ours: Shown,
    },
    /// Only one of the two says something of it.
    #[error(
        "{name}: {} has {}, {silent} has none, or runs a version of ftd that does not know it",
        .said.node, .said.value
    )]
    OneSided {
        /// What it is.
        name: String,
        /// Who has it.
        said: Shown,
        /// Who does not.
        silent: String,
    },
    /// The backup's processor cannot go on with what ran on the primary's.
    #[error("processor: node {backup}, as the backup, could not go on with a guest of node {primary}: {why}")]
    Processor {
        /// Who would go on.
        backup: String,
        /// Who runs the VM.
        primary: String,
        /// Why not.
        why: String,
    },
    /// A rule of a later version.
    #[error(
        "{name}: node {node} judges it by a rule that its peer's version of ftd does not know: upgrade the other"
    )]
    Rule {
        /// What it is.
        name: String,
        /// Whose rule.
        node: String,
    },
}

/// A node's value of a fact, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The node.
    pub node: String,
    /// The value.
    pub value: String,
}

/// Most differences that are told.
const TOLD_MAX: usize = 20;

fn lines(differences: &[Difference]) -> String {
    let mut lines: Vec<String> = differences.iter().take(TOLD_MAX).map(Difference::to_string).collect();
    if differences.len() > TOLD_MAX {
        lines.push(format!("and {} more", differences.len() - TOLD_MAX));
    }
    lines.join("\n")
}

impl Refusal {
    /// The number that travels in a [`Refuse`].
    pub fn code(&self) -> u16 {
        match self {
            Self::Frames { .. } | Self::Protocol { .. } => 1,
            Self::Vm { .. } => 2,
            Self::Itself(_) | Self::SameNode(_) | Self::Stranger { .. } | Self::NotExpected { .. } => 3,
            Self::Differences(_) | Self::Unsaid(_) => 4,
            Self::StalePrimary { .. } => 5,
            Self::NotReady { .. } => 6,
            Self::Lacks { .. } => 7,
        }
    }

    /// The message that tells the peer.
    pub fn to_message(&self) -> Refuse {
        Refuse { code: self.code(), text: self.to_string() }
    }
}

/// Whether the refusal of this number stays until somebody changes a node: versions or configurations do not fit.
pub fn is_permanent(code: u16) -> bool {
    matches!(code, 1..=4)
}

/// Whether a node with this refusal still reads its files, to compare them.
pub fn is_reading(code: u16) -> bool {
    code == 6
}

/// Compares the peer's identity with ours, and says what the two agree on. `processor_fits(theirs, ours)` says why a
/// machine could not move between the processors.
pub fn check<E: std::fmt::Display>(
    theirs: &Identity,
    ours: &Identity,
    our_side: Side,
    processor_fits: impl Fn(&[u8], &[u8]) -> Result<(), E>,
) -> Result<Agreed, Refusal> {
    let protocol = theirs.protocol.agreed(ours.protocol);
    let protocol = protocol.ok_or(Refusal::Protocol { theirs: theirs.protocol, ours: ours.protocol })?;
    if theirs.vm != ours.vm {
        return Err(Refusal::Vm { theirs: theirs.vm.clone(), ours: ours.vm.clone() });
    }
    check_names(theirs, ours)?;
    let mut differences = Vec::new();
    for fact in &ours.facts {
        let Some(their_fact) = theirs.fact(&fact.name) else { continue };
        let difference = match Comparison::of(fact.rule).filter(|_| fact.rule == their_fact.rule) {
            Some(Comparison::Equal) if fact.value == their_fact.value => None,
            Some(Comparison::Overlap) if agreed(their_fact, fact).is_some() => None,
            Some(Comparison::Equal | Comparison::Overlap) => Some(Difference::Values {
                name: fact.name.clone(),
                theirs: shown(theirs, their_fact),
                ours: shown(ours, fact),
            }),
            Some(Comparison::Processor) => processor_fits(&their_fact.value, &fact.value).err().map(|why| {
                let (backup, primary) = match our_side {
                    Side::Primary => (theirs.node.clone(), ours.node.clone()),
                    Side::Backup => (ours.node.clone(), theirs.node.clone()),
                };
                Difference::Processor { backup, primary, why: why.to_string() }
            }),
            None => Some(Difference::Rule { name: fact.name.clone(), node: theirs.node.clone() }),
        };
        differences.extend(difference);
    }
    // Last: a mode or an engine that differs brings facts of its own.
    differences.extend(one_sided(theirs, ours));
    if !differences.is_empty() {
        return Err(Refusal::Differences(differences));
    }
    let (primary, backup) = match our_side {
        Side::Primary => (ours.generation, theirs.generation),
        Side::Backup => (theirs.generation, ours.generation),
    };
    if primary < backup {
        return Err(Refusal::StalePrimary { primary, backup });
    }
    let state = theirs.fact(STATE_FORMAT).zip(ours.fact(STATE_FORMAT));
    let state = state.and_then(|(theirs, ours)| agreed(theirs, ours)).ok_or(Refusal::Unsaid(STATE_FORMAT))?;
    Ok(Agreed { protocol, state })
}

/// Each is the other's peer, and they are two.
fn check_names(theirs: &Identity, ours: &Identity) -> Result<(), Refusal> {
    if theirs.node == ours.node {
        let node = ours.node.clone();
        let itself = theirs.process == ours.process;
        return Err(if itself { Refusal::Itself(node) } else { Refusal::SameNode(node) });
    }
    if theirs.node != ours.peer {
        return Err(Refusal::Stranger {
            theirs: theirs.node.clone(),
            ours: ours.node.clone(),
            expected: ours.peer.clone(),
        });
    }
    if theirs.peer != ours.node {
        return Err(Refusal::NotExpected {
            theirs: theirs.node.clone(),
            expected: theirs.peer.clone(),
            ours: ours.node.clone(),
        });
    }
    Ok(())
}

/// What only one of the two says, and may not be skipped.
fn one_sided(theirs: &Identity, ours: &Identity) -> Vec<Difference> {
    let lacking = |from: &Identity, to: &Identity| {
        let required = from.facts.iter().filter(|fact| fact.weight == Weight::Required);
        let missing = required.filter(|fact| to.fact(&fact.name).is_none());
        missing
            .map(|fact| Difference::OneSided {
                name: fact.name.clone(),
                said: shown(from, fact),
                silent: to.node.clone(),
            })
            .collect::<Vec<_>>()
    };
    [lacking(theirs, ours), lacking(ours, theirs)].concat()
}

/// The newest version of a format that both know.
fn agreed(theirs: &Fact, ours: &Fact) -> Option<u16> {
    theirs.as_versions()?.agreed(ours.as_versions()?)
}

fn shown(identity: &Identity, fact: &Fact) -> Shown {
    Shown { node: identity.node.clone(), value: fact.shown.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(node: &str, peer: &str) -> Identity {
        Identity {
            protocol: PROTOCOL,
            vm: "web".into(),
            node: node.into(),
            peer: peer.into(),
            process: node.len() as u64,
            generation: 5,
            facts: vec![
                Fact::equal("machine.memory_mib", 64),
                Fact::equal_shown("disk 1", "hash of a", "/srv/a.img (64 KiB)"),
                Fact::versions(STATE_FORMAT, Versions { oldest: 3, newest: 4 }),
                Fact::processor(vec![1]),
            ],
        }
    }

    const AGREED: Agreed = Agreed { protocol: PROTOCOL.newest, state: 4 };

    fn checked(change: impl FnOnce(&mut Identity), side: Side) -> Result<Agreed, Refusal> {
        let mut theirs = identity("beta", "alpha");
        change(&mut theirs);
        check(&theirs, &identity("alpha", "beta"), side, |theirs, ours| {
            if theirs == ours { Ok(()) } else { Err("another family") }
        })
    }

    fn refusal(change: impl FnOnce(&mut Identity)) -> Refusal {
        checked(change, Side::Primary).unwrap_err()
    }

    #[test]
    fn equal_nodes_pair_from_both_sides() {
        assert_eq!(checked(|_| (), Side::Primary), Ok(AGREED));
        assert_eq!(checked(|_| (), Side::Backup), Ok(AGREED));
    }

    #[test]
    fn builds_that_follow_each_other_agree_on_the_newest_that_both_know() {
        let next = |versions: Versions| Versions { oldest: versions.newest, newest: versions.newest + 1 };
        for side in [Side::Primary, Side::Backup] {
            let change = |i: &mut Identity| {
                i.protocol = next(PROTOCOL);
                i.facts[2] = Fact::versions(STATE_FORMAT, Versions { oldest: 4, newest: 5 });
            };
            assert_eq!(checked(change, side), Ok(AGREED));
            let before = |i: &mut Identity| i.facts[2] = Fact::versions(STATE_FORMAT, Versions::only(3));
            assert_eq!(checked(before, side), Ok(Agreed { state: 3, ..AGREED }));
        }
        let mut ours = identity("alpha", "beta");
        let mut theirs = identity("beta", "alpha");
        for identity in [&mut ours, &mut theirs] {
            identity.facts.remove(2);
        }
        let refused = check(&theirs, &ours, Side::Primary, |_, _| Ok::<_, String>(())).unwrap_err();
        assert_eq!((refused.code(), refused), (4, Refusal::Unsaid(STATE_FORMAT)));
    }

    #[test]
    fn another_vm_or_protocol_is_refused() {
        let theirs = Versions::only(PROTOCOL.newest + 1);
        assert_eq!(refusal(|i| i.protocol = theirs), Refusal::Protocol { theirs, ours: PROTOCOL });
        assert_eq!(refusal(|i| i.vm = "db".into()).code(), 2);
    }

    #[test]
    fn only_the_two_nodes_that_name_each_other_pair() {
        assert_eq!(refusal(|i| i.node = "alpha".into()), Refusal::SameNode("alpha".into()));
        let itself = refusal(|i| (i.node, i.process) = ("alpha".into(), 5));
        assert_eq!(itself, Refusal::Itself("alpha".into()));
        let text = refusal(|i| i.node = "gamma".into()).to_string();
        assert_eq!(text, "node gamma asked to pair with node alpha, whose peer.node is beta");
        let text = refusal(|i| i.peer = "gamma".into()).to_string();
        assert!(text.starts_with("node beta expects its peer to be node gamma"), "{text}");
    }

    #[test]
    fn everything_that_differs_is_told_one_line_each_and_by_both_alike() {
        let change = |i: &mut Identity| {
            i.facts[0] = Fact::equal("machine.memory_mib", 128);
            i.facts[1] = Fact::equal_shown("disk 1", "hash of b", "/var/a.img (64 KiB)");
            i.facts[2] = Fact::versions(STATE_FORMAT, Versions::only(5));
            i.facts[3] = Fact::processor(vec![2]);
        };
        let refusal = refusal(change);
        assert_eq!(refusal.code(), 4);
        assert_eq!(
            refusal.to_string(),
            "machine.memory_mib: beta has 128, alpha has 64\n\
             disk 1: beta has /var/a.img (64 KiB), alpha has /srv/a.img (64 KiB)\n\
             format of the machine's state: beta has version 5, alpha has versions 3 to 4\n\
             processor: node beta, as the backup, could not go on with a guest of node alpha: another family"
        );
        let other = checked(change, Side::Backup).unwrap_err().to_string();
        assert!(
            other.contains("node alpha, as the backup, could not go on with a guest of node beta"),
            "{other}"
        );
    }

    #[test]
    fn what_only_one_knows_is_skipped_if_it_may_be_and_named_otherwise() {
        let optional = |name: &str| Fact { weight: Weight::Optional, rule: 99, ..Fact::equal(name, 1) };
        assert_eq!(checked(|i| i.facts.push(optional("later")), Side::Primary), Ok(AGREED));
        let text = refusal(|i| i.facts.push(Fact::equal("later", 1))).to_string();
        assert!(text.starts_with("later: beta has 1, alpha has none"), "{text}");
        let text = refusal(|i| drop(i.facts.remove(0))).to_string();
        assert!(text.starts_with("machine.memory_mib: alpha has 64, beta has none"), "{text}");
        let text = refusal(|i| i.facts[0].rule = 99).to_string();
        assert!(text.starts_with("machine.memory_mib: node beta judges it by a rule"), "{text}");
        assert!(matches!(refusal(|i| i.facts[2].value = vec![1]), Refusal::Differences(_)));
    }

    #[test]
    fn only_the_primary_may_not_be_behind() {
        assert_eq!(checked(|i| i.generation = 4, Side::Primary), Ok(AGREED), "a returning backup is behind");
        let stale = |primary, backup| Err(Refusal::StalePrimary { primary, backup });
        assert_eq!(checked(|i| i.generation = 6, Side::Primary), stale(5, 6));
        assert_eq!(checked(|i| i.generation = 4, Side::Backup), stale(4, 5));
    }

    #[test]
    fn versions_meet_at_the_newest_that_both_know() {
        let range = |oldest, newest| Versions { oldest, newest };
        assert_eq!(range(3, 4).agreed(range(4, 5)), Some(4));
        assert_eq!(range(3, 4).agreed(Versions::only(3)), Some(3));
        assert_eq!(range(3, 4).agreed(range(5, 6)), None);
    }
}
