//! Orders to the keeper. An order with a reply is answered when it is carried out.

use super::error::{GoLiveError, PrepareError, RestoreError, StartGuestError};
use super::flow::Service;
use super::pairing::Pairing;
use super::standby::Feed;
use crate::config::OnOverload;
use crate::role::GuestEnd;
use ft_checkpoint::backlog::Applier;
use ft_checkpoint::wire::message::Held;
use ft_ram::GuestRam;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

/// See the module.
pub enum Order {
    /// A parked machine, ready for its RAM to be filled by a full copy: this RAM, or fresh one.
    Prepare(Option<GuestRam>, OrderReply<Result<GuestRam, PrepareError>>),
    /// Fresh RAM and machine, booted and running.
    Boot(OrderReply<Result<(), StartGuestError>>),
    /// A fresh machine over RAM that holds a guest.
    Renew(GuestRam, OrderReply<Result<(), PrepareError>>),
    /// Backup: the prepared machine takes the state that is held, once all its pages are applied, but does not run.
    Load {
        /// The epoch that must be held.
        epoch: u64,
        /// Who holds it.
        feed: Feed,
    },
    /// The prepared machine takes this state, if it has not loaded it, and runs. What is in its RAM is the caller's
    /// business.
    Restore {
        /// Whose state it is.
        epoch: u64,
        /// The state.
        state: Vec<u8>,
        /// Its answer.
        reply: OrderReply<Result<(), RestoreError>>,
    },
    /// Full copy, then epochs, for this pairing.
    BeginPairing(Arc<Pairing>),
    /// No more checkpoints.
    EndPairing(OrderReply<()>),
    /// One last checkpoint of the running pairing, after which the guest stays paused.
    Freeze,
    /// The guest runs again, checkpoints go on.
    Thaw,
    /// What is declared of output and speed, and what happens where that cannot be kept, is this from now on.
    Declare(Service, OnOverload),
    /// There may be room for the next checkpoint.
    Room,
    /// A frame waits for the epoch to end.
    Output,
    /// Backup in replay mode: the prepared machine takes this state, once all is applied, and executes the log.
    Follow {
        /// Whose state it is.
        held: Held,
        /// The state.
        state: Vec<u8>,
        /// Who applies the pages.
        applier: Applier,
    },
    /// Backup in replay mode: the log of one more epoch, which was sealed at this time.
    Feed {
        /// The epoch.
        epoch: u64,
        /// Its log.
        log: Vec<u8>,
        /// When.
        at: Instant,
    },
    /// Backup in replay mode: say so when all the log there is has been executed, which is that up to this epoch.
    Verify {
        /// The epoch that is held.
        epoch: u64,
    },
    /// Backup in replay mode: say so when the machine has executed what is fed to it by now, as the primary did.
    Rehearse {
        /// The pairing that is held.
        pairing: u64,
    },
    /// Backup in replay mode: the machine has executed all the log there is, and the images of its disks have that,
    /// durably.
    Settle(OrderReply<Result<(), GoLiveError>>),
    /// Backup in replay mode: the machine, which has executed all the log there is, runs on by itself.
    GoLive(OrderReply<Result<GoneLive, GoLiveError>>),
    /// The guest's power button is pressed.
    PressPowerButton,
    /// The VM runs here now: its cards tell of their links, and the guest is asked to announce its addresses.
    Announce,
    /// The links of the VM's cards on this host, from now on.
    ShowLinks(Vec<bool>),
    /// Stops and drops the machine. What is left is its RAM.
    Stop(OrderReply<Option<GuestRam>>),
}

/// Where an order's answer goes.
pub type OrderReply<T> = SyncSender<T>;

/// What a take-over found.
pub struct GoneLive {
    /// Epochs of log that were still to be executed when the primary was lost.
    pub pending: u64,
    /// The guest had come to its end.
    pub ended: Option<GuestEnd>,
}
