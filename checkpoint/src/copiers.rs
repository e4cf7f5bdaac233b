//! Copying in the pause, by several threads: while the guest stands still, those that ran it have nothing to do. A
//! large dirty set is cut into pieces, which whoever is there takes one after the other. Nobody waits for a helper that
//! comes late: what it would have done is done by then.

use ft_vm::machine::IdleWork;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Fewer pages are copied sooner than a helper is told.
pub(crate) const SHARED_PAGES_MIN: usize = 64;
/// Neighbouring pages of one piece.
pub(crate) const PIECE_PAGES: usize = 16;
/// Pieces that are taken at a time.
const PIECES_AT_ONCE: usize = 4;

/// Bytes to be copied from one place to another.
pub(crate) struct Piece {
    pub(crate) from: *const u8,
    pub(crate) to: *mut u8,
    pub(crate) bytes: usize,
}

// SAFETY: a piece is a task; who made it answers for both places until it is done.
unsafe impl Send for Piece {}
// SAFETY: as above.
unsafe impl Sync for Piece {}

impl Piece {
    /// # Safety
    /// Both places are mapped and do not overlap, and nobody else writes to, or reads, the second one.
    pub(crate) unsafe fn copy(&self) {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(self.from, self.to, self.bytes) };
    }
}

struct Job {
    pieces: Vec<Piece>,
    /// The next piece that nobody has taken.
    next: AtomicUsize,
    done: AtomicUsize,
}

impl Job {
    /// Copies pieces until all are taken.
    ///
    /// # Safety
    /// The pieces' promise holds until all of them are done.
    unsafe fn help(&self) {
        loop {
            let at = self.next.fetch_add(PIECES_AT_ONCE, Ordering::Relaxed);
            let end = self.pieces.len().min(at.saturating_add(PIECES_AT_ONCE));
            if at >= end {
                return;
            }
            for piece in &self.pieces[at..end] {
                // SAFETY: the caller's promise; a piece is taken once.
                unsafe { piece.copy() };
            }
            self.done.fetch_add(end - at, Ordering::Release);
        }
    }

    fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire) >= self.pieces.len()
    }
}

/// Copies all pieces, with those who take the work that is offered.
///
/// # Safety
/// The places of each piece are mapped, and the second one is nobody else's, until this returns. No two overlap.
pub(crate) unsafe fn copy(pieces: Vec<Piece>, offer: impl FnOnce(IdleWork)) {
    let job = Arc::new(Job { pieces, next: AtomicUsize::new(0), done: AtomicUsize::new(0) });
    let helped = Arc::clone(&job);
    // SAFETY: this returns when all pieces are done; afterwards there is none to be taken.
    offer(Arc::new(move || unsafe { helped.help() }));
    // SAFETY: the caller's promise.
    unsafe { job.help() };
    // What a helper has taken is nearly done.
    while !job.is_done() {
        std::thread::yield_now();
    }
}
