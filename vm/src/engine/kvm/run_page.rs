//! A second mapping of a vCPU's `kvm_run` page. The vCPU's thread has the first one, inside its `VcpuFd`; this one lets
//! other threads set `immediate_exit` whatever that thread does, with a lifetime of its own.

use kvm_bindings::kvm_run;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::mem::offset_of;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

pub(super) struct RunPage {
    base: NonNull<u8>,
}

// SAFETY: the mapping belongs to no thread, and is only touched by atomic accesses.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

const BYTES: NonZeroUsize = NonZeroUsize::new(ft_ram::layout::PAGE_SIZE).expect("a page is not empty");

impl RunPage {
    pub(super) fn map(vcpu: &kvm_ioctls::VcpuFd) -> std::io::Result<Self> {
        // SAFETY: the descriptor is open as long as `vcpu` is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        // SAFETY: a fresh shared mapping at an address of the kernel's choice aliases no Rust object.
        let base = unsafe {
            mmap(None, BYTES, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, fd, 0)
        }?;
        Ok(Self { base: base.cast() })
    }

    fn byte(&self, offset: usize) -> &AtomicU8 {
        debug_assert!(offset < BYTES.get());
        // SAFETY: within the mapped page; bytes have no alignment; shared memory is accessed atomically.
        unsafe { AtomicU8::from_ptr(self.base.as_ptr().add(offset)) }
    }

    /// While set, KVM_RUN completes what is pending and returns EINTR without entering the guest.
    pub(super) fn set_immediate_exit(&self, on: bool) {
        self.byte(offset_of!(kvm_run, immediate_exit)).store(u8::from(on), Ordering::SeqCst);
    }

    /// After a port I/O exit: bytes of one item (a string instruction moves several).
    pub(super) fn port_io_size(&self) -> usize {
        // `io` begins with direction (u8) and size (u8).
        usize::from(self.byte(offset_of!(kvm_run, __bindgen_anon_1) + 1).load(Ordering::SeqCst)).max(1)
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and references into it do not outlive `self`.
        let _ = unsafe { munmap(self.base.cast(), BYTES.get()) };
    }
}
