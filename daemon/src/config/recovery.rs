//! `[recovery]`: the way back after an ending, where no command of the operator is waited for.

use crate::role::{OnFenced, OnLostMemory};
use serde::Deserialize;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RecoveryConfig {
    /// What this node does when it has lost the arbitration.
    pub on_fenced: OnFenced,
    /// What this node does when it owns the VM and its memory is lost.
    pub on_lost_memory: OnLostMemory,
    /// How long it waits for a node that has the state, before it boots the VM anew.
    pub boot_delay_s: u64,
}

impl Default for RecoveryConfig {
    fn default() -> Self {
        Self { on_fenced: OnFenced::Rejoin, on_lost_memory: OnLostMemory::Wait, boot_delay_s: 60 }
    }
}

impl RecoveryConfig {
    /// When a VM whose memory is lost is booted anew, if it is.
    pub(crate) fn boot_lost_after_s(&self) -> Option<u64> {
        match self.on_lost_memory {
            OnLostMemory::Wait => None,
            OnLostMemory::Boot => Some(self.boot_delay_s),
        }
    }
}
