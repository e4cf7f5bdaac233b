//! The full copy of a running guest: all of its memory once, then what it dirtied meanwhile, until that is little.

use super::{Checkpointer, Mode};
use crate::replica::pairing::Pairing;
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

impl Checkpointer {
    pub(super) fn begin_copy(&mut self, pairing: Arc<Pairing>) -> Result<(), String> {
        let vm = self.vm.as_mut().ok_or("there is no machine to protect")?;
        // Before the first page is read: what changes while it is copied is dirty afterwards.
        vm.machine.start_dirty_log().map_err(|e| e.to_string())?;
        let mut encoder = Encoder::new(vm.ram.pages(), self.setup.shadow_bytes);
        match FullCopy::begin(&mut encoder, pairing.nonce, &vm.view, &mut pairing.copy_sink()) {
            Ok(copy) => {
                let copying = Copying { pairing, encoder, copy, round: 0, dirty: Vec::new() };
                self.mode = Mode::Copying(Box::new(copying));
            }
            // The connection is gone already; whoever closed it has told the core.
            Err(e) => tracing::debug!("full copy not begun: {e}"),
        }
        Ok(())
    }

    pub(super) fn copy_step(&mut self) -> Result<(), String> {
        let (Mode::Copying(copying), Some(vm)) = (&mut self.mode, &mut self.vm) else { return Ok(()) };
        let Copying { pairing, encoder, copy, round, dirty } = &mut **copying;
        let mut sink = pairing.copy_sink();
        let progress = if copy.progress().is_complete() {
            dirty.clear();
            vm.machine.harvest(dirty).map_err(|e| e.to_string())?;
            *round += 1;
            copy.resend(encoder, &vm.view, dirty, &mut sink)
        } else {
            copy.step(encoder, &vm.view, COPY_STEP_PAGES, &mut sink)
        };
        match progress {
            Ok(progress) => {
                self.setup.telemetry.copying(progress);
                if progress.is_complete()
                    && *round > 0
                    && (dirty.len() <= PRECOPY_PAGES_LEFT || *round >= PRECOPY_ROUNDS_MAX)
                {
                    return self.begin_epochs();
                }
            }
            // The connection is gone; the core hears of it from the reader and ends the pairing.
            Err(e) => {
                tracing::debug!("full copy stopped: {e}");
                self.mode = Mode::Quiet;
            }
        }
        Ok(())
    }
}
