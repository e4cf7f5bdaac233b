//! What is done about a guest that resets, or works no more.

use serde::Deserialize;

/// What a reset by the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnReset {
    /// The VM boots again.
    Restart,
    /// The VM stops.
    Stop,
}

/// What is done about a guest that works no more, and says so or shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFall {
    /// It is reported, and the guest does with itself what it likes.
    Report,
    /// The VM boots again.
    Restart,
    /// The VM stops.
    Stop,
}
