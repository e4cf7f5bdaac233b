//! News of connections to the peer.

use super::error::{HandshakeError, LinkEnd};
use super::intake::Ticket;
use super::pulse::Beat;
use super::stream::Fitting;
use crate::role::{ConnId, Micros};
use ft_checkpoint::wire::message::{
    Compared, DiskMap, Diverged, Hello, Network, PageHashes, Position, Settled, Standing, Welcome,
};

/// What happens on connections, for the executor.
pub enum PeerNews {
    /// A peer has shaken hands and asks to be our backup.
    Accepted {
        /// The connection.
        fitting: Box<Fitting>,
        /// What it says.
        hello: Hello,
    },
    /// The primary has welcomed us.
    Dialled {
        /// The connection.
        fitting: Box<Fitting>,
        /// What it says.
        welcome: Welcome,
    },
    /// A dial came to nothing; the dialler goes on.
    DialFailed(HandshakeError),
    /// A node asked to be our backup and does not fit, or said that it cannot be: why.
    TurnedAway(String),
    /// A backup says something.
    FromBackup {
        /// The connection.
        conn: ConnId,
        /// What it says.
        said: FromBackup,
        /// To be dropped when it has been handled.
        ticket: Ticket,
    },
    /// A heartbeat of the primary, or the backup's answer to one.
    Pulse {
        /// The connection.
        conn: ConnId,
        /// Which.
        beat: Beat,
        /// To be dropped when it has been handled.
        ticket: Ticket,
    },
    /// A connection has ended.
    Gone {
        /// Which.
        conn: ConnId,
        /// How.
        why: LinkEnd,
    },
}

/// What a backup says to its primary.
pub enum FromBackup {
    /// It has sealed `epoch`.
    Ack {
        /// The epoch.
        epoch: u64,
        /// Our clock when we sent what it answers.
        stamp: Micros,
    },
    /// It says what its arbiter says.
    Standing(Standing),
    /// It runs the VM now.
    TookOver {
        /// Its generation.
        generation: u64,
    },
    /// It will not take over, and has changed nothing.
    Declined {
        /// Why.
        why: String,
    },
    /// Replay mode: how far it has come.
    Position(Position),
    /// How the VM's network is on its host.
    Network(Network),
    /// How the disks are there.
    OfDisks(OfDisks),
    /// In a copy: what it still has of the VM's memory.
    Kept(PageHashes),
    /// Replay mode: it did not execute what we executed.
    Diverged(Diverged),
    /// The next version: its build.
    #[cfg(feature = "next-version")]
    Build(String),
}

/// What a backup says of its disks.
pub enum OfDisks {
    /// In a copy: a part of its map of one.
    Map(DiskMap),
    /// In a copy: it has compared an extent of one.
    Compared(Compared),
    /// How far they are.
    Settled(Settled),
}
