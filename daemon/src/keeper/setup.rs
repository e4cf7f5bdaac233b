//! The keeper's surroundings. Only what the operator declares may change while the daemon runs.

use super::flow::Service;
use super::news::KeeperNews;
use super::progress::Replay;
use crate::boot::Booted;
use crate::config::{OnFall, OnOverload};
use crate::disks::Disks;
use crate::host::{Attach, MakeWiring, Watchdog};
use crate::observe::Telemetry;
use crate::outlet::Outlet;
use ft_netbuf::OutputBuffer;
use ft_ram::Backing;
use ft_vm::spec::MachineSpec;
use std::sync::Arc;
use std::time::Duration;

/// Time that a frame waits for others to share its epoch.
pub(super) const GROUP: Duration = Duration::from_micros(150);

/// See the module.
pub struct Setup {
    /// The machine.
    pub spec: MachineSpec,
    /// What it boots.
    pub boot: Booted,
    /// What a panic of the guest's kernel does.
    pub on_panic: OnFall,
    /// What is done when the guest does not feed its watchdog any more.
    pub on_watchdog: OnFall,
    /// Run interval.
    pub epoch: Duration,
    /// What is declared of output and speed.
    pub service: Service,
    /// What happens where that cannot be kept.
    pub on_overload: OnOverload,
    /// Replay mode.
    pub replay: Replay,
    /// Bytes of last-sent pages to remember for deltas.
    pub shadow_bytes: usize,
    /// How this host holds guest memory.
    pub backing: Backing,
    /// Makes the host side of the devices.
    pub wiring: MakeWiring,
    /// Told about every machine that comes and goes.
    pub attach: Attach,
    /// The machine's writable disks, if it has any.
    pub disks: Option<Arc<Disks>>,
    /// Output commit.
    pub output: OutputBuffer,
    /// Where news goes.
    pub news: Outlet<KeeperNews>,
    /// Figures.
    pub telemetry: Arc<Telemetry>,
    /// Shown that this loop lives.
    pub watchdog: Arc<Watchdog>,
}

impl Setup {
    /// Tells news. When nobody listens any more the daemon is ending, and there is nothing left to be done about it.
    pub(super) fn tell(&self, news: KeeperNews) {
        if self.news.tell(news).is_err() {
            tracing::debug!("news of the machine came after the executor's end");
        }
    }
}
