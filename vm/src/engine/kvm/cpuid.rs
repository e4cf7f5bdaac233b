//! The processor that the guest sees, and the check whether another host can continue it.

use super::error::KvmError;
use super::features::{Register, WORDS, Word, restrict};
use super::host::{Host, XSAVE_BYTES_MIN};
use super::model;
use super::state::tsc_close;
use crate::error::MachineError;
use crate::spec::CpuModel;
use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use serde::{Deserialize, Serialize};

const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
const CMP_LEGACY: u32 = 1 << 1;
/// MAXPHYADDR is the low byte of EAX there.
const LEAF_ADDRESS_WIDTHS: u32 = 0x8000_0008;

/// What a guest of this host is told of its processor: what KVM supports of the host's without what is not offered
/// ([`features`](super::features)), or the processor of this name ([`model`](super::model)). Its place in the topology
/// is still to be filled in.
pub(super) fn offered(
    model: CpuModel,
    supported: &[kvm_cpuid_entry2],
) -> Result<Vec<kvm_cpuid_entry2>, MachineError> {
    let mut entries = supported.to_vec();
    restrict(&mut entries);
    match model {
        CpuModel::Host => add_topology_levels(&mut entries),
        CpuModel::X86_64V2 | CpuModel::X86_64V3 => {
            entries = model::named(model, &entries).map_err(|lack| MachineError::Cpu { model, lack })?;
        }
    }
    Ok(entries)
}

/// The CPUID of vCPU `index` of `count`: what is [`offered`], with this vCPU's place in the topology (one package, one
/// thread a core).
pub(super) fn placed(offered: &[kvm_cpuid_entry2], index: usize, count: usize) -> Vec<kvm_cpuid_entry2> {
    let apic_id = index as u32;
    let count = count as u32;
    // Bits of an APIC ID that number the cores.
    let core_bits = count.next_power_of_two().trailing_zeros();
    let mut entries = offered.to_vec();
    let is_intel = vendor(&entries) == "GenuineIntel";
    for entry in &mut entries {
        match (entry.function, entry.index) {
            (1, _) => {
                entry.ebx = (entry.ebx & 0xffff) | (count.min(255) << 16) | (apic_id << 24);
                entry.ecx |= TSC_DEADLINE | HYPERVISOR;
                entry.edx = (entry.edx & !(1 << 28)) | (u32::from(count > 1) << 28);
            }
            // Intel's caches: cores in the package, threads that share the cache (levels 1 and 2: one).
            (4, _) if entry.eax & 0x1f != 0 => {
                let level = (entry.eax >> 5) & 7;
                let sharing = if level >= 3 { count.next_power_of_two() - 1 } else { 0 };
                let cores = (count.next_power_of_two() - 1).min(63);
                entry.eax = (entry.eax & 0x3fff) | (sharing.min(4095) << 14) | (cores << 26);
            }
            // Topology: a level of threads (one in a core), a level of cores.
            (0xb | 0x1f, level) => {
                (entry.eax, entry.ebx, entry.ecx) = match level {
                    0 => (0, 1, 1 << 8),
                    1 => (core_bits, count, 1 | (2 << 8)),
                    level => (0, 0, level & 0xff),
                };
                entry.edx = apic_id;
            }
            // AMD: whether there are several cores, how many in the package, and the width of their number. Reserved on
            // Intel's.
            (0x8000_0001 | 0x8000_0008, _) if is_intel => {}
            (0x8000_0001, _) => entry.ecx = (entry.ecx & !CMP_LEGACY) | (u32::from(count > 1) << 1),
            (0x8000_0008, _) => entry.ecx = (entry.ecx & !0xf0ff) | (core_bits << 12) | (count - 1),
            // AMD's caches: as above.
            (0x8000_001d, _) if entry.eax & 0x1f != 0 => {
                let level = (entry.eax >> 5) & 7;
                let sharing = if level >= 3 { count - 1 } else { 0 };
                entry.eax = (entry.eax & 0x3fff) | (sharing << 14);
            }
            // AMD's topology: this core.
            (0x8000_001e, _) => (entry.eax, entry.ebx, entry.ecx) = (apic_id, apic_id & 0xff, 0),
            _ => {}
        }
    }
    entries
}

/// Where KVM tells of topology leaves it may leave out the level of cores, which a guest with several vCPUs needs.
fn add_topology_levels(entries: &mut Vec<kvm_cpuid_entry2>) {
    for function in [0xb, 0x1f] {
        let of_leaf = |entry: &kvm_cpuid_entry2| entry.function == function;
        let Some(last) = entries.iter().rposition(of_leaf) else { continue };
        if !entries.iter().any(|entry| of_leaf(entry) && entry.index == 1) {
            let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
            entries.insert(last + 1, kvm_cpuid_entry2 { function, index: 1, flags, ..Default::default() });
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FeatureWord {
    leaf: u32,
    subleaf: u32,
    register: Register,
    bits: u32,
}

/// What a guest that was captured on a host may rely on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuProfile {
    /// As CPUID spells it.
    pub vendor: String,
    /// Display family.
    pub family: u32,
    /// Display model.
    pub model: u32,
    features: Vec<FeatureWord>,
    /// MAXPHYADDR: bits of a physical address.
    pub physical_bits: u8,
    /// Numbers of the model-specific registers that captured state has, in order.
    msrs: Vec<u32>,
    /// Bytes of the extended state.
    pub xsave_bytes: u64,
    /// Frequency of the time stamp counter.
    pub tsc_khz: u32,
    /// Whether KVM can give a guest another frequency than the host's.
    pub tsc_scaling: bool,
    /// Whether captured state has the page directory pointers of 32-bit PAE guests (KVM_CAP_SREGS2).
    pub sregs2: bool,
    /// Whether captured events have exception payloads (KVM_CAP_EXCEPTION_PAYLOAD).
    pub exception_payload: bool,
    /// Whether captured events have a pending shutdown (KVM_CAP_X86_TRIPLE_FAULT_EVENT).
    pub triple_fault_event: bool,
}

/// Why a host cannot go on with a guest of another one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuMismatch {
    /// The makers differ.
    #[error("the guest's processor is a {theirs}, this host's a {ours}")]
    Vendor {
        /// Where the guest comes from.
        theirs: String,
        /// Here.
        ours: String,
    },
    /// The guest may use features that are not here.
    #[error("this host's processor (or its KVM) lacks what the guest may use: {}", .0.join(", "))]
    Features(Vec<String>),
    /// The guest may use addresses that are none here.
    #[error("the guest's physical addresses have {theirs} bits (MAXPHYADDR), this host's {ours}")]
    PhysicalBits {
        /// Where the guest comes from.
        theirs: u8,
        /// Here.
        ours: u8,
    },
    /// Registers that the guest may have written and this host does not know. Where the guest has not, nothing is lost.
    #[error(
        "this host's KVM lacks model-specific registers: {}; a guest that uses one cannot go on here",
        .0.iter().map(|index| format!("{index:#x}")).collect::<Vec<_>>().join(", ")
    )]
    Msrs(Vec<u32>),
    /// The guest's registers do not fit.
    #[error("the guest's extended state has {theirs} bytes, this host takes {ours}")]
    Xsave {
        /// Where the guest comes from.
        theirs: u64,
        /// Here.
        ours: u64,
    },
    /// The guest's time would run at another speed.
    #[error(
        "the guest's time stamp counter has {theirs} kHz, this host's {ours} kHz, and its KVM cannot scale"
    )]
    Tsc {
        /// Where the guest comes from.
        theirs: u32,
        /// Here.
        ours: u32,
    },
    /// The state holds something that this kernel cannot take.
    #[error("this host's kernel lacks {0}, which the guest's state relies on")]
    Capability(&'static str),
}

/// What this host offers to a guest that is to see this processor.
pub fn cpu_profile(model: CpuModel) -> Result<CpuProfile, MachineError> {
    let host = Host::open()?;
    let cpuid = placed(&offered(model, &host.supported_cpuid)?, 0, 1);
    let vm = host.create_vm()?;
    let vcpu = vm.create_vcpu(0).map_err(KvmError::of("KVM_CREATE_VCPU"))?;
    let tsc_khz = vcpu.get_tsc_khz().map_err(KvmError::of("KVM_GET_TSC_KHZ"))?;
    Ok(profile(&host, model, &cpuid, tsc_khz))
}

/// The maker, as CPUID spells it.
fn vendor(cpuid: &[kvm_cpuid_entry2]) -> String {
    cpuid.iter().find(|entry| entry.function == 0).map_or_else(String::new, |e| {
        [e.ebx, e.edx, e.ecx].iter().flat_map(|r| r.to_le_bytes()).map(char::from).collect()
    })
}

fn profile(host: &Host, model: CpuModel, cpuid: &[kvm_cpuid_entry2], tsc_khz: u32) -> CpuProfile {
    let leaf = |function, index| cpuid.iter().find(|e| e.function == function && e.index == index);
    let version = leaf(1, 0).map_or(0, |e| e.eax);
    let (family, number) = ((version >> 8) & 0xf, (version >> 4) & 0xf);
    let features = WORDS.iter().map(|word| FeatureWord {
        leaf: word.leaf,
        subleaf: word.subleaf,
        register: word.register,
        bits: leaf(word.leaf, word.subleaf).map_or(0, |entry| word.register.of(entry)),
    });
    CpuProfile {
        vendor: vendor(cpuid),
        family: family + if family == 0xf { (version >> 20) & 0xff } else { 0 },
        model: number + if matches!(family, 6 | 0xf) { ((version >> 16) & 0xf) << 4 } else { 0 },
        features: features.collect(),
        // Processors that do not tell have 36.
        physical_bits: leaf(LEAF_ADDRESS_WIDTHS, 0).map_or(36, |entry| entry.eax as u8),
        msrs: host.msr_indices.clone(),
        // Beyond the area that all hosts have lies nothing of a named processor.
        xsave_bytes: if model == CpuModel::Host { host.xsave_bytes as u64 } else { XSAVE_BYTES_MIN as u64 },
        tsc_khz,
        tsc_scaling: host.tsc_control,
        sregs2: host.sregs2,
        exception_payload: host.exception_payload,
        triple_fault_event: host.triple_fault_event,
    }
}

impl CpuProfile {
    /// Whether this host can go on with a guest that was captured on `other`. Another family or model of the same
    /// maker will do, as long as it has the features: the guest keeps the CPUID that it was started with.
    pub fn can_resume_from(&self, other: &CpuProfile) -> Result<(), CpuMismatch> {
        match self.differences(other).into_iter().find(CpuMismatch::is_fatal) {
            Some(mismatch) => Err(mismatch),
            None => Ok(()),
        }
    }

    /// All that this host lacks of what a guest that was captured on `other` may rely on.
    pub fn differences(&self, other: &CpuProfile) -> Vec<CpuMismatch> {
        let CpuProfile {
            vendor,
            family: _,
            model: _,
            features,
            physical_bits,
            msrs,
            xsave_bytes,
            tsc_khz,
            tsc_scaling: _,
            sregs2,
            exception_payload,
            triple_fault_event,
        } = other;
        let mut found = Vec::new();
        if *vendor != self.vendor {
            found.push(CpuMismatch::Vendor { theirs: vendor.clone(), ours: self.vendor.clone() });
        }
        let missing: Vec<String> =
            features.iter().flat_map(|word| word.missing_from(&self.features)).collect();
        if !missing.is_empty() {
            found.push(CpuMismatch::Features(missing));
        }
        if *physical_bits > self.physical_bits {
            found.push(CpuMismatch::PhysicalBits { theirs: *physical_bits, ours: self.physical_bits });
        }
        if *xsave_bytes > self.xsave_bytes {
            found.push(CpuMismatch::Xsave { theirs: *xsave_bytes, ours: self.xsave_bytes });
        }
        if !self.tsc_scaling && !tsc_close(*tsc_khz, self.tsc_khz) {
            found.push(CpuMismatch::Tsc { theirs: *tsc_khz, ours: self.tsc_khz });
        }
        for (theirs, ours, name) in [
            (*sregs2, self.sregs2, "KVM_CAP_SREGS2"),
            (*exception_payload, self.exception_payload, "KVM_CAP_EXCEPTION_PAYLOAD"),
            (*triple_fault_event, self.triple_fault_event, "KVM_CAP_X86_TRIPLE_FAULT_EVENT"),
        ] {
            if theirs && !ours {
                found.push(CpuMismatch::Capability(name));
            }
        }
        let unknown: Vec<u32> =
            msrs.iter().copied().filter(|index| self.msrs.binary_search(index).is_err()).collect();
        if !unknown.is_empty() {
            found.push(CpuMismatch::Msrs(unknown));
        }
        found
    }
}

impl CpuMismatch {
    /// Whether a guest cannot go on whatever it has done so far.
    pub fn is_fatal(&self) -> bool {
        !matches!(self, Self::Msrs(_))
    }
}

impl FeatureWord {
    fn missing_from(&self, here: &[FeatureWord]) -> Vec<String> {
        let &FeatureWord { leaf, subleaf, register, bits } = self;
        let same =
            |word: &&FeatureWord| (word.leaf, word.subleaf, word.register) == (leaf, subleaf, register);
        let missing = bits & !here.iter().find(same).map_or(0, |word| word.bits);
        Word { leaf, subleaf, register, offered: missing }.names()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_profile() -> CpuProfile {
        let word = FeatureWord { leaf: 7, subleaf: 0, register: Register::Ebx, bits: 1 << 5 };
        CpuProfile {
            vendor: "AuthenticAMD".into(),
            family: 25,
            model: 17,
            features: vec![word],
            physical_bits: 48,
            msrs: vec![0x10, 0x174],
            xsave_bytes: 4096,
            tsc_khz: 2_600_000,
            tsc_scaling: false,
            sregs2: true,
            exception_payload: false,
            triple_fault_event: false,
        }
    }

    #[test]
    fn a_host_with_more_can_resume_and_one_with_less_names_what_it_lacks() {
        let ours = some_profile();
        let mut more = ours.clone();
        more.features[0].bits |= 1 << 16;
        assert_eq!(more.can_resume_from(&ours), Ok(()));
        assert_eq!(ours.can_resume_from(&more), Err(CpuMismatch::Features(vec!["avx512f".into()])));
        more.features[0].bits |= 1 << 31;
        let text = ours.can_resume_from(&more).unwrap_err().to_string();
        assert!(text.ends_with("avx512f, CPUID 0x7.0:Ebx bit 31"), "{text}");
    }

    #[test]
    fn another_vendor_clock_kernel_or_register_file_is_refused() {
        let ours = some_profile();
        let intel = CpuProfile { vendor: "GenuineIntel".into(), ..ours.clone() };
        assert!(matches!(ours.can_resume_from(&intel), Err(CpuMismatch::Vendor { .. })));
        let faster = CpuProfile { tsc_khz: 2_700_000, ..ours.clone() };
        assert!(matches!(ours.can_resume_from(&faster), Err(CpuMismatch::Tsc { .. })));
        let scales = CpuProfile { tsc_scaling: true, ..ours.clone() };
        assert_eq!(scales.can_resume_from(&faster), Ok(()));
        let slewed = CpuProfile { tsc_khz: 2_600_100, ..ours.clone() };
        assert_eq!(ours.can_resume_from(&slewed), Ok(()));
        let large = CpuProfile { xsave_bytes: 11_008, ..ours.clone() };
        assert!(matches!(ours.can_resume_from(&large), Err(CpuMismatch::Xsave { .. })));
        let wide = CpuProfile { physical_bits: 52, ..ours.clone() };
        assert!(matches!(
            ours.can_resume_from(&wide),
            Err(CpuMismatch::PhysicalBits { theirs: 52, ours: 48 })
        ));
        assert_eq!(wide.can_resume_from(&ours), Ok(()));
        let newer = CpuProfile { exception_payload: true, ..ours.clone() };
        assert!(matches!(ours.can_resume_from(&newer), Err(CpuMismatch::Capability(_))));
    }

    #[test]
    fn registers_that_only_the_other_host_has_are_told_and_refuse_nothing_by_themselves() {
        let ours = some_profile();
        let more = CpuProfile { msrs: vec![0x10, 0x174, 0xda0], physical_bits: 52, ..ours.clone() };
        let told: Vec<_> = ours.differences(&more).iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].contains("52 bits (MAXPHYADDR), this host's 48"), "{told:?}");
        assert!(told[1].contains("lacks model-specific registers: 0xda0;"), "{told:?}");
        let only_msrs = CpuProfile { msrs: more.msrs, ..ours.clone() };
        assert_eq!(ours.can_resume_from(&only_msrs), Ok(()));
        assert_eq!(only_msrs.differences(&ours), []);
    }

    #[test]
    fn every_vcpu_knows_its_place_and_no_nested_virtualisation() {
        let entry = |function, index| kvm_cpuid_entry2 { function, index, ecx: !0, ..Default::default() };
        let supported = [entry(1, 0), entry(0xb, 0), entry(0xb, 1), entry(0x8000_0001, 0)];
        let cpuid = placed(&offered(CpuModel::Host, &supported).unwrap(), 5, 6);
        assert_eq!(cpuid[0].ebx, (5 << 24) | (6 << 16));
        assert_eq!(cpuid[0].ecx & (1 << 5 | 1 << 15), 0, "no VMX, no performance counters");
        assert_eq!((cpuid[1].edx, cpuid[2].edx), (5, 5));
        assert_eq!((cpuid[2].eax, cpuid[2].ebx), (3, 6));
        assert_eq!(cpuid[3].ecx & 1 << 2, 0, "no SVM");
    }

    #[test]
    fn a_topology_leaf_without_its_level_of_cores_gets_one_and_a_processor_without_the_leaf_does_not() {
        let entry = |function, index| kvm_cpuid_entry2 { function, index, ..Default::default() };
        let supported = [entry(1, 0), entry(0xb, 0), entry(0x1f, 0), entry(0x8000_0000, 0)];
        let cpuid = placed(&offered(CpuModel::Host, &supported).unwrap(), 2, 3);
        let cores = |function| cpuid.iter().find(|e| (e.function, e.index) == (function, 1));
        for leaf in [0xb, 0x1f] {
            let cores = cores(leaf).expect("a level of cores");
            let found = (cores.eax, cores.ebx, cores.ecx, cores.edx, cores.flags);
            assert_eq!(found, (2, 3, 0x201, 2, KVM_CPUID_FLAG_SIGNIFCANT_INDEX), "{leaf:#x}");
        }
        assert_eq!(placed(&offered(CpuModel::Host, &[entry(1, 0)]).unwrap(), 2, 3).len(), 1);
    }
}
