//! The arbiter: one test-and-set cell per VM.

/// The cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Incremented by every change.
    pub generation: u64,
    /// The node that may run the VM; none after the VM was shut down.
    pub owner: Option<String>,
    /// The node that may take over.
    pub standby: Option<Standby>,
}

/// Who may take over, and with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standby {
    /// Node.
    pub node: String,
    /// The pairing whose sealed checkpoint it must hold.
    pub pairing: u64,
}

/// The answer to a compare-and-set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The cell is as asked.
    Won(Cell),
    /// The cell had another generation.
    Lost(Option<Cell>),
    /// Certain: nothing changed, nothing is under way.
    NotAttempted(String),
    /// It may have happened.
    Unknown(String),
}
