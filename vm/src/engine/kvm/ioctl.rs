//! The KVM ioctls that kvm-ioctls has no wrapper for, or wraps in a way that allocates on every checkpoint.

use kvm_bindings::{
    KVMIO, kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_device_attr, kvm_dirty_log,
    kvm_dirty_log__bindgen_ty_1, kvm_reinject_control, kvm_sregs2, kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};
use std::io;
use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr};

ioctl_io_nr!(KVM_REINJECT_CONTROL, KVMIO, 0x71);
ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
ioctl_ior_nr!(KVM_GET_XSAVE, KVMIO, 0xa4, [u8; 4096]);
ioctl_iow_nr!(KVM_SET_XSAVE, KVMIO, 0xa5, [u8; 4096]);
ioctl_ior_nr!(KVM_GET_XSAVE2, KVMIO, 0xcf, [u8; 4096]);
ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xcc, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xcd, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
ioctl_iow_nr!(KVM_HAS_DEVICE_ATTR, KVMIO, 0xe3, kvm_device_attr);

// The XSAVE ioctls' numbers carry the size of the structure without what follows it.
const _: () = assert!(size_of::<kvm_xsave>() == 4096);

fn check(returned: i32) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has the timer chip drop ticks that the guest did not take in time, and not give them again later.
pub(super) fn drop_missed_ticks(vm: &VmFd) -> io::Result<()> {
    let control = kvm_reinject_control { pit_reinject: 0, ..Default::default() };
    // SAFETY: the kernel reads one structure of exactly this layout.
    check(unsafe { ioctl_with_ref(vm, KVM_REINJECT_CONTROL(), &control) })
}

/// Reads a slot's dirty bitmap into `bitmap`, one bit a page. Without manual protection it is cleared by this.
pub(super) fn get_dirty_log(vm: &VmFd, slot: u32, pages: u64, bitmap: &mut [u64]) -> io::Result<()> {
    assert!(
        bitmap.len() as u64 >= pages.div_ceil(64),
        "a bitmap of {} words for {pages} pages",
        bitmap.len()
    );
    let request = kvm_dirty_log {
        slot,
        padding1: 0,
        __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 { dirty_bitmap: bitmap.as_mut_ptr().cast() },
    };
    // SAFETY: the kernel writes one bit for each page of the slot, rounded up to words: by the assertion it fits.
    check(unsafe { ioctl_with_ref(vm, KVM_GET_DIRTY_LOG(), &request) })
}

/// Clears (and write-protects again) those pages of a slot that are set in `bitmap`, whose first bit is `first_page`.
pub(super) fn clear_dirty_log(vm: &VmFd, slot: u32, first_page: u64, bitmap: &[u64]) -> io::Result<()> {
    let mut request = kvm_clear_dirty_log {
        slot,
        num_pages: u32::try_from(bitmap.len() * 64).map_err(io::Error::other)?,
        first_page,
        // The kernel only reads it.
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: bitmap.as_ptr().cast_mut().cast(),
        },
    };
    // SAFETY: the kernel reads `num_pages` bits from the bitmap, which is as long.
    check(unsafe { ioctl_with_mut_ref(vm, KVM_CLEAR_DIRTY_LOG(), &mut request) })
}

/// Reads the extended state into `area`, whose length is the size that KVM_CAP_XSAVE2 told, or 4096 without it.
pub(super) fn get_xsave(vcpu: &VcpuFd, area: &mut [u8]) -> io::Result<()> {
    assert!(area.len() >= 4096, "an extended state of {} bytes", area.len());
    let call = if area.len() > 4096 { KVM_GET_XSAVE2() } else { KVM_GET_XSAVE() };
    // SAFETY: the kernel writes 4096 bytes, or with KVM_GET_XSAVE2 what the capability told, which is the area's size.
    check(unsafe { ioctl_with_mut_ptr(vcpu, call, area.as_mut_ptr()) })
}

/// Sets the extended state from `area`, which has the size that KVM_CAP_XSAVE2 told, or 4096 without it.
pub(super) fn set_xsave(vcpu: &VcpuFd, area: &[u8]) -> io::Result<()> {
    assert!(area.len() >= 4096, "an extended state of {} bytes", area.len());
    // SAFETY: the kernel reads 4096 bytes, or what the capability told, which is the area's size.
    check(unsafe { ioctl_with_ptr(vcpu, KVM_SET_XSAVE(), area.as_ptr()) })
}

pub(super) fn get_sregs2(vcpu: &VcpuFd) -> io::Result<kvm_sregs2> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY: the kernel writes one structure of exactly this layout.
    check(unsafe { ioctl_with_mut_ref(vcpu, KVM_GET_SREGS2(), &mut sregs) })?;
    Ok(sregs)
}

pub(super) fn set_sregs2(vcpu: &VcpuFd, sregs: &kvm_sregs2) -> io::Result<()> {
    // SAFETY: the kernel reads one structure of exactly this layout.
    check(unsafe { ioctl_with_ref(vcpu, KVM_SET_SREGS2(), sregs) })
}

pub(super) fn has_attribute(vcpu: &VcpuFd, attribute: &kvm_device_attr) -> bool {
    // SAFETY: the kernel reads one structure of exactly this layout, and does not follow the address in it.
    check(unsafe { ioctl_with_ref(vcpu, KVM_HAS_DEVICE_ATTR(), attribute) }).is_ok()
}

/// # Safety
/// The attribute's address is that of a value of the attribute's type, which the kernel writes.
pub(super) unsafe fn get_attribute(vcpu: &VcpuFd, attribute: &kvm_device_attr) -> io::Result<()> {
    // SAFETY: the kernel reads one structure of exactly this layout; the caller vouches for the address in it.
    check(unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), attribute) })
}

/// # Safety
/// The attribute's address is that of a value of the attribute's type, which the kernel reads.
pub(super) unsafe fn set_attribute(vcpu: &VcpuFd, attribute: &kvm_device_attr) -> io::Result<()> {
    // SAFETY: the kernel reads one structure of exactly this layout; the caller vouches for the address in it.
    check(unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), attribute) })
}
