//! Memory of an order: aligned for O_DIRECT on any device, and never the guest's.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// What every device's and file system's O_DIRECT is content with, where it takes sectors of 512 bytes at all.
const ALIGN: usize = 4096;

/// Bytes, at an aligned address that stays the same when the buffer moves.
pub struct Buffer {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it owns its memory, as a Box<[u8]> does.
unsafe impl Send for Buffer {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// A buffer of zeros.
    pub fn zeroed(bytes: usize) -> Self {
        let Some(layout) = Self::layout(bytes) else {
            return Self { start: NonNull::dangling(), bytes: 0 };
        };
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, bytes }
    }

    /// None where there is nothing to allocate.
    fn layout(bytes: usize) -> Option<Layout> {
        Layout::from_size_align(bytes, ALIGN).ok().filter(|layout| layout.size() != 0)
    }

    /// Where the bytes from `at` on are, for the kernel to read or to fill.
    pub(crate) fn at(&mut self, at: usize) -> *mut u8 {
        self[at..].as_mut_ptr()
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `bytes` initialised bytes from `start` on are ours; none for a dangling start.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.bytes) {
            // SAFETY: allocated with this layout, which depends on `bytes` alone.
            unsafe { dealloc(self.start.as_ptr(), layout) }
        }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_zeroed_and_as_long_as_asked() {
        for bytes in [0, 1, 512, 4097, 1 << 20] {
            let mut buffer = Buffer::zeroed(bytes);
            assert_eq!(buffer.len(), bytes);
            assert!(buffer.iter().all(|&byte| byte == 0));
            assert!(bytes == 0 || (buffer.as_ptr() as usize).is_multiple_of(ALIGN));
            buffer.fill(7);
            assert!(buffer.iter().all(|&byte| byte == 7));
        }
    }
}
