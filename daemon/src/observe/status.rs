//! The status of one VM on one node. `ftctl --json status` prints its JSON form.

use super::metrics::Percentiles;
use super::service::ServiceStatus;
use super::telemetry::{CheckpointParts, Divergence, TakeOver};
use crate::clock;
use crate::role::{RehearsalView, Role, State};
use ft_arbiter::majority::MemberStanding;
use ft_checkpoint::wire::message::Mode;
use ft_vm::spec::{CpuModel, EngineKind};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Version of [`Status`]: raised when a field changes its meaning or goes; new fields do not raise it.
pub const STATUS_SCHEMA: u32 = 1;

/// An executor that has not shown its state for so long is stuck. It is told within two seconds.
pub const STUCK_MS: u64 = 1500;

/// Everything about one VM on one node. Rates and percentiles are those of the last seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`STATUS_SCHEMA`].
    pub schema: u32,
    /// Version of the daemon.
    pub version: String,
    /// The VM.
    pub vm: String,
    /// This node.
    pub node: String,
    /// This node's role for the VM.
    pub role: Role,
    /// The state of the pair; [`State::Stuck`] if the executor does not show it any more.
    pub state: State,
    /// The reason for the state, in words.
    pub detail: String,
    /// The arbiter's generation that this node acts in.
    pub generation: u64,
    /// Last epoch captured (primary) or received (backup).
    pub epoch: u64,
    /// Last epoch acked.
    pub acked_epoch: u64,
    /// Checkpoints committed a second.
    pub checkpoints_per_s: f64,
    /// Pages in the last checkpoint.
    pub dirty_pages: u64,
    /// Pause of the VM for a checkpoint, in microseconds.
    pub pause_us: Percentiles,
    /// Time that output was held, in microseconds.
    pub hold_us: Percentiles,
    /// The declared service.
    #[serde(default)]
    pub service: ServiceStatus,
    /// Bytes sent to the peer since the start.
    pub bytes_sent: u64,
    /// Bytes captured for each byte sent.
    pub compression_ratio: f64,
    /// The parts of pauses and checkpoints.
    pub parts: CheckpointParts,
    /// "checkpoint" or "replay".
    #[serde(default)]
    pub mode: Mode,
    /// "kvm" or "soft".
    #[serde(default)]
    pub engine: EngineKind,
    /// The processor that the guest sees.
    #[serde(default)]
    pub cpu: CpuModel,
    /// Instructions that the engine lacks and the guest executed here.
    #[serde(default)]
    pub unknown_instructions: u64,
    /// Times the guest's kernel panicked here since the daemon started.
    #[serde(default)]
    pub guest_panics: u64,
    /// Times the guest did not feed its watchdog any more, here, since the daemon started.
    #[serde(default)]
    pub watchdog_firings: u64,
    /// What the guest booted here last, out of its own disk (`machine.guest = "image"`).
    #[serde(default)]
    pub booted: Option<BootStatus>,
    /// Replay mode's own figures: keys of the status itself.
    #[serde(flatten)]
    pub replay: Option<ReplayStatus>,
    /// The full copy under way.
    pub copy: Option<CopyStatus>,
    /// The VM's writable disks, if it has any.
    #[serde(default)]
    pub disks: Option<DisksStatus>,
    /// The last take-over by this daemon.
    pub take_over: Option<TakeOver>,
    /// The VM's network on this host, if it has a card.
    #[serde(default)]
    pub network: Option<NetworkStatus>,
    /// Milliseconds since the executor last showed its state. An executor that lives does so many times a second.
    #[serde(default)]
    pub view_age_ms: u64,
    /// Whether the VM could go on from what this node holds as the backup.
    #[serde(default)]
    pub rehearsal: Option<RehearsalStatus>,
    /// The other node.
    pub peer: PeerStatus,
    /// The arbiter.
    pub arbiter: ArbiterStatus,
    /// How connections to other hosts are protected.
    #[serde(default)]
    pub security: SecurityStatus,
    /// What is amiss with the proof of protection, or with this node's arbiter.
    #[serde(default)]
    pub lapses: Vec<LapseStatus>,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
}

/// What a guest booted out of its own disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootStatus {
    /// The kernel's path, and the partition.
    pub kernel: String,
    /// What the kernel says of its version, if it does.
    pub version: Option<String>,
    /// The title of its entry in the boot menu.
    pub entry: String,
    /// The partition and the file that has the entry.
    pub found_in: String,
    /// Seconds since then.
    pub for_s: u64,
}

/// Replay mode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplayStatus {
    /// Instructions executed at the last cut of the log (primary), or by now (backup).
    pub count: u64,
    /// Bytes of log cut in a second.
    pub log_bytes_per_s: f64,
    /// How far the backup is behind, in microseconds.
    pub lag_us: u64,
    /// Milliseconds since the backup last told, or found, where it is; null: never.
    #[serde(default)]
    pub position_age_ms: Option<u64>,
    /// Percent of its time that the VM stands still to let the backup catch up.
    pub throttle_pct: f64,
    /// Times a backup diverged since this daemon started.
    pub divergences: u64,
    /// The last one.
    pub last_divergence: Option<Divergence>,
}

impl Status {
    /// Whether what it says of the role is old news: the executor is stuck.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.view_age_ms >= STUCK_MS
    }

    /// Whether a backup can take over, and the VM would be reached there, as far as this node knows.
    #[must_use]
    pub fn is_well_protected(&self) -> bool {
        let is_well = |network: &NetworkStatus| network.trouble.is_none() && network.peer_trouble.is_none();
        self.state == State::Protected && self.network.as_ref().is_none_or(is_well) && !self.is_stale()
    }
}

/// A full copy under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyStatus {
    /// Guest memory covered.
    pub done_bytes: u64,
    /// Guest memory to cover.
    pub total_bytes: u64,
    /// Of the memory covered: what the backup had already. It is not sent.
    #[serde(default)]
    pub same_bytes: u64,
    /// Milliseconds since it last moved.
    #[serde(default)]
    pub age_ms: u64,
}

/// The VM's writable disks, all together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisksStatus {
    /// Bytes of the extents in which this node's images and the peer's may differ, as this node's maps have it: what is
    /// compared when the peer comes back, beside what its own maps have.
    pub differing_bytes: u64,
    /// Primary: bytes of changes that the backup has not acked.
    pub unacked_bytes: u64,
    /// Primary: a disk of the guest waits for the backup, or for its map.
    pub waits: bool,
    /// Backup: bytes of the journal that are not in the images yet.
    pub journal_bytes: u64,
    /// Primary: the images are being made the same.
    pub copy: Option<DisksCopyStatus>,
    /// Primary: how far that came the last time, when it ended.
    #[serde(default)]
    pub last_copy: Option<DisksCopyStatus>,
    /// Primary: the last comparison with the backup's images under protection.
    #[serde(default)]
    pub verify: Option<DisksVerifyStatus>,
    /// Extents that such comparisons found to differ since the daemon started.
    #[serde(default)]
    pub mismatches: u64,
    /// Why this node's disks, or what is kept beside them, cannot be written.
    pub trouble: Option<String>,
}

/// How far two hosts' images are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisksCopyStatus {
    /// Bytes that are to be compared; null: the backup has not told its maps yet.
    pub total_bytes: Option<u64>,
    /// Bytes that were found the same, or are by now.
    pub same_bytes: u64,
    /// Bytes of those that were compared, in whole extents...
    #[serde(default)]
    pub compared_bytes: u64,
    /// ...and were found to differ.
    #[serde(default)]
    pub differing_bytes: u64,
    /// Bytes that were sent of what differed: zeroes are none.
    pub sent_bytes: u64,
    /// Bytes found the same in a second, over the last seconds.
    #[serde(default)]
    pub bytes_per_s: u64,
    /// How long it will take, in seconds, if it goes on as fast; null: that is not known.
    #[serde(default)]
    pub left_s: Option<u64>,
    /// How long it has taken, in milliseconds.
    #[serde(default)]
    pub took_ms: u64,
}

/// How a comparison under protection is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerifyState {
    /// It is under way.
    #[default]
    Running,
    /// All was compared.
    Done,
    /// It ended before that.
    BrokenOff,
}

/// The backup's images, compared with this host's under protection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisksVerifyStatus {
    /// How it is.
    pub state: VerifyState,
    /// Why it was broken off.
    pub why: Option<String>,
    /// Bytes to compare, in whole extents.
    pub total_bytes: u64,
    /// Bytes that were.
    pub compared_bytes: u64,
    /// Bytes of these that differ.
    pub differing_bytes: u64,
    /// Where; the first of them.
    pub differing: Vec<DifferingStatus>,
    /// Bytes of what differs that were sent anew, and are the same now.
    pub repaired_bytes: u64,
    /// Bytes that the guest changed whenever they were compared.
    pub unsettled_bytes: u64,
    /// Bytes compared in a second, over the last seconds.
    pub bytes_per_s: u64,
    /// How long it will take, in seconds, if it goes on as fast; null: that is not known.
    pub left_s: Option<u64>,
    /// How long it has taken, in milliseconds.
    pub took_ms: u64,
}

/// Bytes of a disk that are not the same on both hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DifferingStatus {
    /// The disk's number in the configuration, from 1.
    pub disk: u16,
    /// The first byte.
    pub from: u64,
    /// The last byte.
    pub to: u64,
}

/// The VM's network on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// The TAP.
    pub tap: String,
    /// What is wrong with the way from there to the network.
    pub trouble: Option<String>,
    /// Seconds for which it has been so.
    pub for_s: u64,
    /// What is wrong with it on the peer's host, as the peer said last.
    #[serde(default)]
    pub peer_trouble: Option<String>,
    /// Seconds for which it has said so.
    #[serde(default)]
    pub peer_for_s: u64,
}

/// Whether the VM could go on from what a backup holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RehearsalStatus {
    /// How long ago that was last shown, in microseconds; null: never of this state.
    pub age_us: Option<u64>,
    /// Why the last attempt failed, if it did.
    pub trouble: Option<String>,
}

impl RehearsalStatus {
    pub(super) fn now(view: RehearsalView) -> Self {
        let age_us = view.proven_at.map(|at| clock::now_us().saturating_sub(at));
        Self { age_us, trouble: view.trouble }
    }
}

/// The other node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name.
    pub node: String,
    /// Where it is.
    pub address: String,
    /// Whether it is connected.
    pub connected: bool,
    /// Where the other end of the connection really is.
    #[serde(default)]
    pub from: Option<SocketAddr>,
    /// Seconds for which it has been connected, or not.
    #[serde(default)]
    pub for_s: u64,
    /// The error of the last attempt to connect, or the end of the last connection.
    pub trouble: Option<String>,
}

/// The arbiter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArbiterStatus {
    /// Its kind and place.
    pub place: String,
    /// Whether the last request was answered, and that not long ago.
    pub reachable: bool,
    /// Calls on it that were left behind, and have not returned.
    #[serde(default)]
    pub hanging_calls: u64,
    /// Seconds since this node's arbiter answered last.
    #[serde(default)]
    pub age_s: Option<u64>,
    /// Seconds since the peer's did.
    #[serde(default)]
    pub peer_age_s: Option<u64>,
    /// Where several services keep the cell: how each of them answers this node.
    #[serde(default)]
    pub members: Vec<MemberStatus>,
}

/// One of several services that keep the cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Where it listens.
    pub address: SocketAddr,
    /// Why it gave no answer when it was asked last; null: it gave one.
    pub trouble: Option<String>,
    /// Seconds for which it has answered, or has not.
    pub for_s: u64,
}

impl From<MemberStanding> for MemberStatus {
    fn from(MemberStanding { address, trouble, since }: MemberStanding) -> Self {
        let trouble = trouble.map(|trouble| trouble.to_string());
        Self { address, trouble, for_s: since.elapsed().as_secs() }
    }
}

/// How connections to other hosts are protected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityStatus {
    /// Whether the link to the peer is in TLS.
    pub link_in_tls: bool,
    /// Until when this host's certificate is valid, in seconds since 1970, where it has one.
    pub certificate_expires_unix_s: Option<u64>,
    /// What the operator should know, a line each.
    pub warnings: Vec<String>,
}

/// A condition of "protected" that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LapseStatus {
    /// One word: which condition.
    pub kind: String,
    /// What is amiss, for people.
    pub what: String,
    /// Seconds since it does not hold any more.
    pub since_s: u64,
}
