//! The virtual machine's descriptor: memory slots, interrupt chips, timer.

use super::error::KvmError;
use super::host::Host;
use super::ioctl;
use crate::devices::{IrqChip, Msi};
use ft_ram::GuestRam;
use ft_ram::layout::{KVM_IDENTITY_MAP_BASE, KVM_TSS_BASE};
use kvm_bindings::{
    KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap,
    kvm_msi, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Creates a virtual machine with `ram`, interrupt chips and timer, and no vCPUs.
pub(crate) fn create(host: &Host, ram: &GuestRam) -> Result<VmFd, KvmError> {
    let vm = host.create_vm()?;
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

/// The in-kernel interrupt chips' lines, and the way of messages to them.
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

    /// KVM says so when no processor takes the message, which is the guest's doing.
    fn signal(&self, message: Msi) {
        let Msi { address, data } = message;
        let msi = kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        if let Err(e) = self.vm.signal_msi(msi)
            && !self.failed.swap(true, Ordering::Relaxed)
        {
            tracing::error!(?message, "KVM_SIGNAL_MSI failed: {e} (said once)");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requested interrupts with vectors 64 to 95.
    const IRR_2: usize = 0x220;
    const SVR: usize = 0xf0;

    #[test]
    fn a_message_is_in_the_local_apic_when_it_has_been_sent() {
        if !crate::testing::kvm("a message to the local APIC") {
            return;
        }
        let ram = GuestRam::new(16 << 20).unwrap();
        let host = Host::open().unwrap();
        let vm = Arc::new(create(&host, &ram).unwrap());
        let vcpu = vm.create_vcpu(0).unwrap();
        let mut lapic = vcpu.get_lapic().unwrap();
        lapic.regs[SVR..SVR + 2].copy_from_slice(&[-1, 1]);
        vcpu.set_lapic(&lapic).unwrap();
        let lines = Lines::new(Arc::clone(&vm));
        // Vector 0x51 to processor 0; then one to a processor that is not there.
        lines.signal(Msi { address: 0xfee0_0000, data: 0x51 });
        lines.signal(Msi { address: 0xfee0_7000, data: 0x52 });
        let lapic = vcpu.get_lapic().unwrap();
        assert_eq!(lapic.regs[IRR_2..IRR_2 + 4], [0, 0, 1 << 1, 0]);
    }
}
