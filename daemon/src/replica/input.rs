//! Input of the executor: the news of all rooms. The rooms know nothing of the core's events.

use super::arbiter_thread::CellNews;
use super::record_thread::RecordNews;
use crate::control::Wish;
use crate::disks::TapSession;
use crate::host::NetworkTrouble;
use crate::keeper::KeeperNews;
use crate::peer::PeerNews;

/// The news of every room, in one queue.
pub enum Input {
    /// Of the connections.
    Peer(PeerNews),
    /// Of the machine.
    Keeper(KeeperNews),
    /// Of the arbiter.
    Arbiter(CellNews),
    /// Of this node's record.
    Record(RecordNews),
    /// Of the VM's way to the network.
    Network(NetworkTrouble),
    /// Of the VM's disks: one stands still, or none, for which the VM shall move.
    Disk {
        /// One does.
        stands: bool,
    },
    /// Of the comparison of the backup's images with this node's.
    Compared {
        /// With which backup.
        session: TapSession,
        /// How they differ, if they do.
        differ: Option<String>,
    },
    /// Of the operator.
    Control(Wish),
}
