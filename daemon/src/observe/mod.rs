//! The daemon as seen from outside: its counts and times (`metrics`, `telemetry`), the executor's view (`window`), and
//! the status made of them (`status`, `publish`).

mod metrics;
mod publish;
mod status;
mod telemetry;
mod window;

pub use metrics::{Metrics, Percentiles};
pub use publish::{Publisher, Sources};
pub use status::{ArbiterStatus, CopyStatus, LapseStatus, PeerStatus, ReplayStatus, STATUS_SCHEMA, Status};
pub use telemetry::{CheckpointParts, Divergence, PauseParts, TakeOver, Telemetry};
pub use window::{PeerView, Window};
