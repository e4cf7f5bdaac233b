//! The host's side of the daemon: TAP, console and disk images of the machine (`wiring`, `console`, `pump`), the TAP's
//! way to the network (`network`), the checks at start (`check`), the service (`service`) and its messages (`log`), and
//! this node's record of the cell (`record`, `init`), its image of a VM that it could not resume (`image`), the tools
//! for its disks (`disk`), and how its connections are made (`trust`).

mod check;
mod confinement;
mod console;
mod contents;
mod disk;
mod identity;
mod image;
mod init;
mod log;
mod memory;
mod network;
mod processors;
mod pump;
mod record;
mod service;
mod trust;
mod wiring;

pub use check::{ArbiterAnswer, HostError, RunningHere};
pub use console::ConsoleHub;
pub use contents::{Contents, Unread};
pub use disk::{DiskStatus, DiskToolError, adopt, create_overlay};
pub use identity::{DescribeError, identity, processor};
pub use image::{ImageError, ImageFile};
pub use init::{Earlier, InitError, initialise};
pub use log::{LOG_FILTER_VARIABLE, Log, LogDrain};
pub use memory::{Need, Shortage};
pub use network::{Cable, LookError, NetworkFault, NetworkTrouble, look, watch};
pub use processors::Crowded;
pub use pump::{Socket, start as start_pump};
pub use record::{RecordError, RecordFile};
pub use service::{InstanceLock, LockError, Notifier, Watchdog, extend_stop};
pub use trust::Trust;
pub(crate) use wiring::set_offloads;
pub use wiring::{Attach, Host, MakeWiring, ScratchWiring, WiringError, prepare_host};
