//! The full copy of a running guest: all of its memory once, then the pages that it dirtied meanwhile, until few are
//! left.

use super::error::KeepError;
use super::pairing::Pairing;
use super::setup::Setup;
use super::vm::Vm;
use ft_checkpoint::copy::FullCopy;
use ft_checkpoint::encoder::Encoder;
use ft_ram::PageIndex;
use std::sync::Arc;

/// A pre-copy round that leaves at most this many pages is the last: they make a first pause of a few milliseconds.
pub(super) const PRECOPY_PAGES_LEFT: usize = 2048;
/// A guest that dirties faster than it is copied gets a longer first pause rather than an endless copy.
const PRECOPY_ROUNDS_MAX: u32 = 8;
/// Pages of the full copy between two looks at the orders.
const COPY_STEP_PAGES: u32 = 256;

/// A copy under way.
pub(super) struct Copying {
    pub(super) pairing: Arc<Pairing>,
    pub(super) encoder: Encoder,
    copy: FullCopy,
    round: u32,
    dirty: Vec<PageIndex>,
}

/// How a copy stands after a step.
pub(super) enum CopyStep {
    /// There is more to do.
    Going,
    /// What is left makes a short pause.
    Converged,
    /// The connection is gone; the core hears of it from the reader and ends the pairing.
    Broken,
}

impl Copying {
    /// Begins a copy; none when the connection is already gone, which its closer has told the core.
    pub(super) fn begin(
        vm: &mut Vm,
        setup: &Setup,
        pairing: Arc<Pairing>,
    ) -> Result<Option<Self>, KeepError> {
        // Before the first page is read: what changes while it is copied is dirty afterwards.
        vm.machine.start_dirty_log()?;
        let mut encoder = Encoder::new(vm.ram.pages(), setup.shadow_bytes);
        Ok(FullCopy::begin(&mut encoder, pairing.nonce, &vm.view, &mut pairing.copy_sink())
            .inspect_err(|e| tracing::debug!("full copy not begun: {e}"))
            .ok()
            .map(|copy| Self { pairing, encoder, copy, round: 0, dirty: Vec::new() }))
    }

    /// Copies some pages, or begins another round over what the guest dirtied meanwhile.
    pub(super) fn step(&mut self, vm: &mut Vm, setup: &Setup) -> Result<CopyStep, KeepError> {
        let Self { pairing, encoder, copy, round, dirty } = self;
        let mut sink = pairing.copy_sink();
        let progress = if copy.progress().is_complete() {
            dirty.clear();
            vm.machine.harvest(dirty)?;
            *round += 1;
            copy.resend(encoder, &vm.view, dirty, &mut sink)
        } else {
            copy.step(encoder, &vm.view, COPY_STEP_PAGES, &mut sink)
        };
        let progress = match progress {
            Ok(progress) => progress,
            Err(e) => {
                tracing::debug!("full copy stopped: {e}");
                return Ok(CopyStep::Broken);
            }
        };
        setup.telemetry.copying(progress);
        let is_little = dirty.len() <= PRECOPY_PAGES_LEFT || *round >= PRECOPY_ROUNDS_MAX;
        Ok(if progress.is_complete() && *round > 0 && is_little {
            CopyStep::Converged
        } else {
            CopyStep::Going
        })
    }
}
