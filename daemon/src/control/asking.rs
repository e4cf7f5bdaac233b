//! Counts the clients that wait for an answer, so that an ending daemon ends after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// See the module. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Asking(Arc<AtomicUsize>);

/// One that waits.
pub(super) struct Asked(Asking);

impl Asking {
    pub(super) fn begin(&self) -> Asked {
        self.0.fetch_add(1, Ordering::SeqCst);
        Asked(self.clone())
    }

    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}
