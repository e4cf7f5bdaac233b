//! `[replay]`: what replay mode adds.

use serde::Deserialize;

/// Replay mode.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplayConfig {
    /// How often the log is shipped when no output waits for it, in microseconds.
    pub batch_us: u64,
    /// How far the backup may be behind before the VM is slowed.
    pub lag_ms_max: u64,
}

impl Default for ReplayConfig {
    fn default() -> Self {
        Self { batch_us: 5000, lag_ms_max: 100 }
    }
}
