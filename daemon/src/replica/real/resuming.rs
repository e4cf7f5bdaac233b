//! A take-over between its steps.

use ft_checkpoint::lazy::LazyApply;
use ft_checkpoint::receiver::SealedImage;
use ft_ram::GuestRam;
use std::sync::Arc;
use std::time::Instant;

/// A take-over under way.
pub(super) struct Resuming {
    pub(super) began: Instant,
    /// Epoch that the VM goes on from.
    pub(super) epoch: u64,
    /// What is still to be done for it: pages to apply, or epochs of log to execute.
    pub(super) pending: u64,
    /// How often a machine was to go on from it.
    pub(super) attempts: u32,
    /// Checkpoint mode: what was sealed. In replay mode the machine has all of it.
    pub(super) sealed: Option<(GuestRam, Arc<SealedImage>)>,
}

/// The end of a take-over: the guest runs, and what the checkpoint still had pending is being applied. What was sealed
/// is kept until then, and let go when nobody waits.
pub(super) struct Settling {
    lazy: LazyApply,
    _sealed: Arc<SealedImage>,
}

impl Settling {
    /// Pages are still pending.
    pub(super) fn new(lazy: LazyApply, sealed: Arc<SealedImage>) -> Self {
        Self { lazy, _sealed: sealed }
    }

    /// Waits until all is applied.
    pub(super) fn finish(self) {
        self.lazy.finish();
    }
}
