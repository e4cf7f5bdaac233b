//! The abilities of this host's KVM. They are asked once; a missing one that a machine needs is refused by name.

use super::error::KvmError;
use crate::error::MachineError;
use kvm_bindings::{
    KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_SREGS2,
    KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use std::os::raw::c_ulong;

/// Without these there is no machine.
const NEEDED: [(Cap, &str); 20] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::DestroyMemoryRegionWorks, "KVM_CAP_DESTROY_MEMORY_REGION_WORKS"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::PitState2, "KVM_CAP_PIT_STATE2"),
    (Cap::ReinjectControl, "KVM_CAP_REINJECT_CONTROL"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::Clocksource, "KVM_CAP_CLOCKSOURCE"),
    (Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER"),
];

/// The API version that has been the only one since 2007.
const API_VERSION: i32 = 12;

/// Registers that are state and that KVM does not list because it always has them: MTRRs and machine check banks.
/// (Those of KVM's list and these are tried out on a vCPU before they are relied on.)
fn unlisted_msrs(mce_banks: u32) -> impl Iterator<Item = u32> {
    let mtrr_variable = 0x200..0x210;
    let mtrr_fixed = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f, 0x2ff];
    let banks = 0x400..0x400 + 4 * mce_banks.min(32);
    mtrr_variable.chain(mtrr_fixed).chain(banks)
}

/// Bytes of the extended state that KVM_GET_XSAVE gives, and the least that KVM_GET_XSAVE2 does.
pub(super) const XSAVE_BYTES_MIN: usize = 4096;

/// This host's KVM.
pub(crate) struct Host {
    pub kvm: Kvm,
    pub supported_cpuid: Vec<kvm_cpuid_entry2>,
    pub msr_indices: Vec<u32>,
    pub xsave_bytes: usize,
    pub sregs2: bool,
    pub tsc_control: bool,
    pub exception_payload: bool,
    pub triple_fault_event: bool,
    /// Flags of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.
    pub manual_protect: u32,
}

impl Host {
    /// Opens /dev/kvm and looks.
    pub(crate) fn open() -> Result<Self, MachineError> {
        let kvm = Kvm::new().map_err(|e| MachineError::open(e.into()))?;
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(MachineError::ApiVersion { theirs: version, ours: API_VERSION });
        }
        if let Some((_, name)) = NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(MachineError::Capability(name));
        }
        let has = |cap: u32| kvm.check_extension_raw(c_ulong::from(cap)) > 0;
        let supported_cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::of("KVM_GET_SUPPORTED_CPUID"))?
            .as_slice()
            .to_vec();
        let mut msr_indices =
            kvm.get_msr_index_list().map_err(KvmError::of("KVM_GET_MSR_INDEX_LIST"))?.as_slice().to_vec();
        let mce_banks = u32::try_from(kvm.check_extension_int(Cap::Mce)).unwrap_or(0);
        msr_indices.extend(unlisted_msrs(mce_banks));
        msr_indices.sort_unstable();
        msr_indices.dedup();
        Ok(Self {
            xsave_bytes: usize::try_from(kvm.check_extension_int(Cap::Xsave2))
                .unwrap_or(0)
                .max(XSAVE_BYTES_MIN),
            sregs2: has(KVM_CAP_SREGS2),
            tsc_control: kvm.check_extension(Cap::TscControl),
            exception_payload: has(KVM_CAP_EXCEPTION_PAYLOAD),
            triple_fault_event: has(KVM_CAP_X86_TRIPLE_FAULT_EVENT),
            manual_protect: u32::try_from(
                kvm.check_extension_raw(c_ulong::from(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)),
            )
            .unwrap_or(0),
            supported_cpuid,
            msr_indices,
            kvm,
        })
    }

    /// A virtual machine without anything. KVM gives up with EINTR while anything is pending for the calling thread: a
    /// signal that is blocked by nobody, or work that io_uring has for it, which is done on the way back from the call.
    pub(super) fn create_vm(&self) -> Result<VmFd, KvmError> {
        loop {
            match self.kvm.create_vm() {
                Err(e) if e.errno() == libc::EINTR => {}
                created => return created.map_err(KvmError::of("KVM_CREATE_VM")),
            }
        }
    }
}
