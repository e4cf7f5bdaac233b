//! Who a node is and what it brings: the content of hello and welcome.
//!
//! The head of an identity never changes. Everything that resuming depends on is a [`Fact`]: a name in the operator's
//! words, a value, and the rule that judges it. A version of ftd that knows more adds facts. A version that does not
//! know a fact, or its rule, skips it if the sender marked it as optional, and refuses the sender otherwise. So two
//! unequal versions can meet, and nothing that matters is passed over.

use serde::{Deserialize, Serialize};

/// Most facts in an identity: more than any machine has devices.
pub const FACTS_MAX: usize = 128;
/// Longest text in an identity.
pub const TEXT_BYTES_MAX: usize = 4096;
/// The fact that says in which versions a node reads and writes the machine's state.
pub const STATE_FORMAT: &str = "format of the machine's state";

/// Who a node is and what it brings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The versions of the messages' meaning that it speaks, above the frame's own version.
    pub protocol: Versions,
    /// The VM's name.
    pub vm: String,
    /// The node's name.
    pub node: String,
    /// The name of the node that it takes for its peer.
    pub peer: String,
    /// Drawn by every process: tells a node that began anew from another node of the same name.
    pub process: u64,
    /// The newest generation it knows of.
    pub generation: u64,
    /// What resuming depends on, each name once.
    pub facts: Vec<Fact>,
}

/// A range of versions, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The oldest that is understood.
    pub oldest: u16,
    /// The newest.
    pub newest: u16,
}

impl Versions {
    /// Only this one.
    pub const fn only(version: u16) -> Self {
        Self { oldest: version, newest: version }
    }

    /// The newest that both understand.
    pub fn agreed(self, other: Self) -> Option<u16> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

impl std::fmt::Display for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.oldest, self.newest) {
            (oldest, newest) if oldest == newest => write!(f, "version {newest}"),
            (oldest, newest) => write!(f, "versions {oldest} to {newest}"),
        }
    }
}

/// One thing that resuming depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// What it is, in the operator's words: a configuration key, where there is one.
    pub name: String,
    /// A [`Comparison`], by its number.
    pub rule: u8,
    /// What a peer does that does not know it.
    pub weight: Weight,
    /// What is judged.
    pub value: Vec<u8>,
    /// The value for people; where it comes from, too. Not judged.
    pub shown: String,
}

/// What a peer makes of a fact that it does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Weight {
    /// It refuses the sender.
    Required,
    /// It skips the fact.
    Optional,
}

/// How two values of a fact are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// They are equal.
    Equal = 0,
    /// They are ranges of versions (oldest u16, newest u16) that overlap.
    Overlap = 1,
    /// They are processors (opaque here), and the backup's can go on with what the primary's ran.
    Processor = 2,
}

impl Comparison {
    /// By its number.
    pub fn of(number: u8) -> Option<Self> {
        [Self::Equal, Self::Overlap, Self::Processor].into_iter().find(|rule| *rule as u8 == number)
    }
}

impl Fact {
    /// Both nodes must have the same; people see what is compared.
    pub fn equal(name: impl Into<String>, value: impl ToString) -> Self {
        let value = value.to_string();
        Self::equal_shown(name, value.clone(), value)
    }

    /// Both nodes must have the same value; people see another text.
    pub fn equal_shown(name: impl Into<String>, value: impl Into<Vec<u8>>, shown: impl Into<String>) -> Self {
        let (name, value, shown) = (name.into(), value.into(), shown.into());
        Self { name, rule: Comparison::Equal as u8, weight: Weight::Required, value, shown }
    }

    /// Both nodes must have a version of a format in common.
    pub fn versions(format: impl Into<String>, versions: Versions) -> Self {
        let value = [versions.oldest.to_le_bytes(), versions.newest.to_le_bytes()].concat();
        let (name, shown) = (format.into(), versions.to_string());
        Self { name, rule: Comparison::Overlap as u8, weight: Weight::Required, value, shown }
    }

    /// The processor that the guest sees.
    pub fn processor(profile: Vec<u8>) -> Self {
        let name = "processor".to_owned();
        let shown = "the host's, by KVM".to_owned();
        Self { name, rule: Comparison::Processor as u8, weight: Weight::Required, value: profile, shown }
    }

    /// The range that [`Self::versions`] wrote.
    pub fn as_versions(&self) -> Option<Versions> {
        let [o0, o1, n0, n1] = <[u8; 4]>::try_from(&*self.value).ok()?;
        Some(Versions { oldest: u16::from_le_bytes([o0, o1]), newest: u16::from_le_bytes([n0, n1]) })
    }
}

/// Why an identity is not looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// More facts than any node has.
    #[error("it has {0} facts, at most {FACTS_MAX} are looked at")]
    Facts(usize),
    /// Two facts of one name.
    #[error("it says two things of {0:?}")]
    Twice(String),
    /// A text that no node has.
    #[error("it has a text of {0} bytes, at most {TEXT_BYTES_MAX} are looked at")]
    Text(usize),
    /// A text that would garble what people read.
    #[error("it has a text with control characters")]
    Control,
}

impl Identity {
    /// The fact of this name.
    pub fn fact(&self, name: &str) -> Option<&Fact> {
        self.facts.iter().find(|fact| fact.name == name)
    }

    /// Whether its texts may be shown to people: an identity comes from whoever connects.
    pub fn check(&self) -> Result<(), IdentityError> {
        let Self { protocol: _, vm, node, peer, process: _, generation: _, facts } = self;
        if facts.len() > FACTS_MAX {
            return Err(IdentityError::Facts(facts.len()));
        }
        let of_facts = facts.iter().flat_map(|fact| [&fact.name, &fact.shown]);
        for text in [vm, node, peer].into_iter().chain(of_facts) {
            if text.len() > TEXT_BYTES_MAX {
                return Err(IdentityError::Text(text.len()));
            }
            if text.chars().any(char::is_control) {
                return Err(IdentityError::Control);
            }
        }
        let mut names: Vec<&str> = facts.iter().map(|fact| &*fact.name).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(twice) => Err(IdentityError::Twice(twice[0].to_owned())),
            None => Ok(()),
        }
    }
}
