//! What the kernel does with a mapping of guest memory beyond mapping it: keeps it out of core dumps, since it is the
//! guest's, and on request keeps it from being swapped out.

use crate::error::MemoryError;
use nix::sys::mman::{MmapAdvise, madvise};
use std::ffi::c_void;
use std::ptr::NonNull;

/// Leaves a mapping out of core dumps.
pub(crate) fn keep_out_of_dumps(base: NonNull<u8>, bytes: usize) -> Result<(), MemoryError> {
    let base: NonNull<c_void> = base.cast();
    // SAFETY: this advice changes no content of the mapping, which is the caller's.
    unsafe { madvise(base, bytes, MmapAdvise::MADV_DONTDUMP) }
        .map_err(|e| MemoryError::Map(format!("leaving guest memory out of core dumps: {e}")))
}

/// Locks a mapping's pages: those that are there now, and every other as soon as it is touched. So a guest's memory
/// does not become resident before the guest uses it. The limit on locked memory counts all of it at once.
pub(crate) fn lock(base: *const u8, bytes: u64) -> Result<(), MemoryError> {
    let length = usize::try_from(bytes).map_err(|e| MemoryError::Map(e.to_string()))?;
    // SAFETY: locking changes no content; the range is a mapping of the caller's.
    let failed = unsafe { libc::mlock2(base.cast(), length, libc::MLOCK_ONFAULT as libc::c_uint) } != 0;
    if failed {
        return Err(MemoryError::Lock { bytes, source: std::io::Error::last_os_error() });
    }
    Ok(())
}
