//! The parts that a replica is made of.

use crate::host::{Host, RecordFile, Watchdog};
use crate::keeper::Replay;
use crate::observe::{Telemetry, Window};
use crate::peer;
use crate::replica::Input;
use ft_arbiter::Arbiter;
use ft_checkpoint::wire::message::Identity;
use std::net::TcpListener;
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
    /// Run interval.
    pub epoch: Duration,
    /// Replay mode.
    pub replay: Replay,
    /// Bytes of last-sent pages to remember.
    pub shadow_bytes: usize,
    /// `ip:port` of the peer.
    pub peer_address: String,
    /// Where we listen.
    pub listener: TcpListener,
    /// What we say of ourselves in a handshake.
    pub identity: Identity,
    /// What the machine's files hold.
    pub contents: peer::TellContents,
    /// The arbiter.
    pub arbiter: Box<dyn Arbiter>,
    /// Where this node's record of its cell is kept.
    pub record_file: RecordFile,
    /// Inputs; the sender's clones are everywhere.
    pub inputs: (Sender<Input>, Receiver<Input>),
    /// For other threads to look through.
    pub window: Arc<Window>,
    /// Figures.
    pub telemetry: Arc<Telemetry>,
    /// systemd's.
    pub watchdog: Arc<Watchdog>,
}
