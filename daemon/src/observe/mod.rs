//! The daemon as seen from outside: its counts and times (`metrics`, `labelled`, `telemetry`), the executor's view
//! (`window`), the declared service (`service`), and the status made of them (`status`, `publish`).

mod carried;
mod labelled;
mod metrics;
mod publish;
mod refusals;
mod service;
mod status;
mod telemetry;
mod window;

pub use carried::{Bottleneck, Carried, Meter};
pub use metrics::{Metrics, Percentiles, Rate};
pub use publish::{Publisher, Sources};
pub use service::{Declared, ServiceStatus};
pub use status::{
    ArbiterStatus, BootStatus, CopyStatus, DifferingStatus, DisksCopyStatus, DisksStatus, DisksVerifyStatus,
    LapseStatus, MemberStatus, NetworkStatus, PeerStatus, ReplayStatus, STATUS_SCHEMA, STUCK_MS,
    SecurityStatus, Status, VerifyState,
};
pub use telemetry::{CheckpointParts, Divergence, PauseParts, RefusingService, TakeOver, Telemetry};
pub use window::{Aged, PeerView, Window};
