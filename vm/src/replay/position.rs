//! How far a replay has come.

/// Counts of a replaying machine: what it has executed, and what it has the log for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayPosition {
    /// Executed up to here (published every millisecond or so while it runs).
    pub count: u64,
    /// Cut of the last batch that was fed: the machine never goes beyond.
    pub fed: u64,
}
