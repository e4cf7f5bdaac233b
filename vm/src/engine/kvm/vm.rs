//! The virtual machine's descriptor: memory slots, interrupt chips, timer.

use super::error::KvmError;
use super::host::Host;
use super::ioctl;
use crate::devices::IrqChip;
use ft_ram::GuestRam;
use ft_ram::layout::{KVM_IDENTITY_MAP_BASE, KVM_TSS_BASE};
use kvm_bindings::{
    KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap,
    kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Creates a virtual machine with `ram`, interrupt chips and timer, and no vCPUs.
pub(crate) fn create(host: &Host, ram: &GuestRam) -> Result<VmFd, KvmError> {
    let vm = host.kvm.create_vm().map_err(KvmError::of("KVM_CREATE_VM"))?;
    // With these, an exception or a shutdown that is raised but not delivered is told apart in the vCPU's events.
    for (present, cap) in [
        (host.exception_payload, KVM_CAP_EXCEPTION_PAYLOAD),
        (host.triple_fault_event, KVM_CAP_X86_TRIPLE_FAULT_EVENT),
    ] {
        if present {
            let on = kvm_enable_cap { cap, args: [1, 0, 0, 0], ..Default::default() };
            vm.enable_cap(&on).map_err(KvmError::of("KVM_ENABLE_CAP"))?;
        }
    }
    vm.set_identity_map_address(KVM_IDENTITY_MAP_BASE).map_err(KvmError::of("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(KVM_TSS_BASE as usize).map_err(KvmError::of("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip().map_err(KvmError::of("KVM_CREATE_IRQCHIP"))?;
    // The speaker's port is answered in the kernel, next to the timer it belongs to.
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(KvmError::of("KVM_CREATE_PIT2"))?;
    // Ticks owed to the guest are no part of the state that KVM tells: there must be none.
    ioctl::drop_missed_ticks(&vm).map_err(KvmError::io("KVM_REINJECT_CONTROL"))?;
    set_slots(&vm, ram, 0)?;
    Ok(vm)
}

/// Creates the slots, or changes the flags of those that are there.
pub(super) fn set_slots(vm: &VmFd, ram: &GuestRam, flags: u32) -> Result<(), KvmError> {
    for (slot, part) in (0..).zip(ram.slots()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: part.guest_base,
            memory_size: part.bytes,
            userspace_addr: part.host as u64,
        };
        // SAFETY: the region is guest memory, mapped as long as `ram` or a clone of it lives; the machine keeps one
        // beyond the end of its vCPUs.
        unsafe { vm.set_user_memory_region(region) }.map_err(KvmError::of("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

/// The in-kernel interrupt chips' lines.
pub(crate) struct Lines {
    vm: Arc<VmFd>,
    failed: AtomicBool,
}

impl Lines {
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, failed: AtomicBool::new(false) }
    }
}

impl IrqChip for Lines {
    fn set_level(&self, gsi: u32, high: bool) {
        if let Err(e) = self.vm.set_irq_line(gsi, high)
            && !self.failed.swap(true, Ordering::Relaxed)
        {
            tracing::error!(gsi, high, "KVM_IRQ_LINE failed: {e} (said once)");
        }
    }
}
