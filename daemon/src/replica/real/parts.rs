//! The parts that a replica is made of.

use super::kept::TellLackBeside;
use crate::config::{OnFall, OnOverload};
use crate::host::{Host, ImageFile, RecordFile, Watchdog};
use crate::keeper::{Replay, Service};
use crate::observe::{Telemetry, Window};
use crate::peer::{self, PeerPlace, Port};
use crate::replica::Input;
use crate::replica::arbiter_thread::MakeArbiter;
use ft_checkpoint::wire::message::Identity;
use ft_ram::Backing;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

/// See the module.
pub struct Parts {
    /// The machine's host side.
    pub host: Host,
    /// Checkpoints in flight at most.
    pub pipeline_depth: u64,
    /// Bytes in flight, about.
    pub inflight_bytes: usize,
    /// What is declared of output and speed.
    pub service: Service,
    /// What happens where that cannot be kept.
    pub on_overload: OnOverload,
    /// What a panic of the guest's kernel does.
    pub on_panic: OnFall,
    /// What is done when the guest does not feed its watchdog any more.
    pub on_watchdog: OnFall,
    /// Run interval.
    pub epoch: Duration,
    /// Replay mode.
    pub replay: Replay,
    /// Bytes of last-sent pages to remember.
    pub shadow_bytes: usize,
    /// Whether guest memory is locked.
    pub backing: Backing,
    /// Who the peer is and where.
    pub peer: Arc<PeerPlace>,
    /// Where we wait for it.
    pub port: Port,
    /// What we say of ourselves in a handshake.
    pub identity: Identity,
    /// What the machine's files hold.
    pub contents: peer::TellContents,
    /// What its disks hold.
    pub disks: peer::TellContents,
    /// What this host lacks to be the backup.
    pub lacks: TellLackBeside,
    /// The arbiter, once for each thread that asks it.
    pub arbiter: MakeArbiter,
    /// Where this node's record of its cell is kept.
    pub record_file: RecordFile,
    /// Where an image of the VM is kept that this node could not resume.
    pub image_file: ImageFile,
    /// Inputs; the sender's clones are everywhere.
    pub inputs: (Sender<Input>, Receiver<Input>),
    /// For other threads to look through.
    pub window: Arc<Window>,
    /// Figures.
    pub telemetry: Arc<Telemetry>,
    /// systemd's.
    pub watchdog: Arc<Watchdog>,
}
