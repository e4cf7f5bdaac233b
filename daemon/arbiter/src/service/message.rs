//! What frames carry.

use super::frame::{PAYLOAD_BYTES_MAX, ServiceFrame};
use crate::Cell;
use crate::majority::{MemberAnswer, MemberAsk, MemberSet, Register};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// No name of a VM or a node is longer.
pub const NAME_BYTES_MAX: usize = 64;
/// So many cells come in one answer.
pub(super) const LISTED_MAX: usize = 64;
/// And so many registers.
pub(super) const REGISTERS_MAX: usize = 32;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub(super) enum Question {
    Read {
        vm: String,
    },
    Probe {
        vm: String,
    },
    Set {
        vm: String,
        expected: Option<u64>,
        new: Cell,
    },
    /// The cells of the VMs whose names come after this one.
    List {
        after: String,
    },
    History {
        vm: String,
    },
    /// As one member of several, who are these.
    Member {
        vm: String,
        set: MemberSet,
        ask: MemberAsk,
    },
    /// What a member keeps of the VMs whose names come after this one.
    Registers {
        after: String,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub(super) enum Reply {
    /// The greeting.
    Welcome,
    /// To a read and a probe.
    Cell(Option<Cell>),
    Won,
    Lost(Option<Cell>),
    Listed(Vec<Listed>),
    Changes(Vec<CellChange>),
    Member(MemberAnswer),
    Registers {
        /// None: it keeps cells alone, and no registers.
        set: Option<MemberSet>,
        some: Vec<ListedRegister>,
    },
    /// Nothing was changed, and nothing is under way.
    Refused(Refusal),
    /// It may be found done after the store was opened anew.
    InDoubt {
        reason: String,
    },
}

/// Why the service did nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub(super) enum Refusal {
    /// It has no connection to spare.
    Busy { reason: String },
    /// The question makes no sense.
    Question { reason: String },
    /// The record of this VM's cell is damaged.
    Damaged { reason: String },
    /// The store cannot be used now.
    Store { reason: String },
    /// The store has as many cells as it may.
    Full,
    /// It is a member of this set, and not of the one that the question names.
    OtherSet { set: MemberSet },
    /// It keeps cells alone.
    Alone,
    /// It keeps cells with others only.
    Together { set: MemberSet },
}

/// One VM's cell, as operators see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// The VM.
    pub vm: String,
    /// What its cell holds.
    pub cell: Option<Cell>,
    /// Why it cannot be read.
    pub damage: Option<String>,
}

/// What a member keeps of one VM's cell, as operators see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListedRegister {
    /// The VM.
    pub vm: String,
    /// What it has promised and accepted.
    pub register: Option<Register>,
    /// Why it cannot be read.
    pub damage: Option<String>,
}

/// One change of a cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellChange {
    /// When, by the service's clock: milliseconds since 1970.
    pub at_unix_ms: u64,
    /// What the cell became.
    pub cell: Cell,
}

/// Whether it is a name that the service keeps.
pub(super) fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// A message in its frame.
pub(super) fn enclose(id: u64, message: &impl Serialize) -> ServiceFrame {
    let payload =
        serde_json::to_vec(message).expect("strings and numbers in structs always have a JSON form");
    assert!(payload.len() <= PAYLOAD_BYTES_MAX, "lists, names and reasons are bounded");
    ServiceFrame { id, payload }
}

/// The message in a frame.
pub(super) fn open<T: DeserializeOwned>(frame: &ServiceFrame) -> Result<T, String> {
    serde_json::from_slice(&frame.payload).map_err(|error| error.to_string())
}

/// A reason short enough for an answer.
pub(super) fn short(reason: impl ToString) -> String {
    reason.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::majority::{AcceptedCell, Ballot, SetCell};
    use crate::service::CHANGES_KEPT;
    use crate::{CellId, GENERATION_MAX, Standby};

    /// The longest answers that a store can give.
    #[test]
    fn the_longest_lists_fit_into_a_frame() {
        let name = || "n".repeat(NAME_BYTES_MAX);
        let standby = Some(Standby { node: name(), pairing: u64::MAX });
        let cell = Cell { id: CellId(u64::MAX), generation: GENERATION_MAX, owner: Some(name()), standby };
        let damage = Some(short("\u{1f980}\u{1}".repeat(200)));
        let listed = Listed { vm: name(), cell: Some(cell.clone()), damage: None };
        let damaged = Listed { vm: name(), cell: None, damage };
        let change = CellChange { at_unix_ms: u64::MAX, cell: cell.clone() };
        let ballot = Ballot { round: u64::MAX / 2, proposer: u64::MAX };
        let value = Some(SetCell { cell, origin: ballot, trail: vec![ballot; 8] });
        let register = Register { promised: Some(ballot), accepted: Some(AcceptedCell { ballot, value }) };
        let register = ListedRegister { vm: name(), register: Some(register), damage: None };
        let addresses =
            [1, 2, 3, 4, 5, 6, 7].map(|n| format!("[2001:db8::ffff:ffff:ffff:{n}]:7390").parse().unwrap());
        let set = Some(MemberSet::new(&addresses).unwrap());
        for reply in [
            Reply::Registers { set, some: vec![register; REGISTERS_MAX] },
            Reply::Listed(vec![listed; LISTED_MAX]),
            Reply::Listed(vec![damaged; LISTED_MAX]),
            Reply::Changes(vec![change; CHANGES_KEPT]),
        ] {
            assert_eq!(open(&enclose(1, &reply)), Ok(reply));
        }
    }
}
