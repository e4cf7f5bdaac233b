//! `[recovery]`: how the pair comes back after an ending, without the operator or by his command.

use crate::role::OnFenced;
use serde::Deserialize;

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RecoveryConfig {
    /// What this node does when it has lost the arbitration.
    pub on_fenced: OnFenced,
}
