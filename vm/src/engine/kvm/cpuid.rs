//! The processor that the guest sees, and the check whether another host can continue it.

use super::error::KvmError;
use super::host::Host;
use super::state::tsc_close;
use crate::error::MachineError;
use kvm_bindings::kvm_cpuid_entry2;
use serde::{Deserialize, Serialize};

const VMX: u32 = 1 << 5;
const PDCM: u32 = 1 << 15;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
const SVM: u32 = 1 << 2;

/// The CPUID of vCPU `index` of `count`: what KVM supports, with this vCPU's place in the topology (one package, one
/// thread a core), and without what has state that is not captured: nested virtualisation and the performance
/// counters.
pub(super) fn guest_cpuid(
    supported: &[kvm_cpuid_entry2],
    index: usize,
    count: usize,
) -> Vec<kvm_cpuid_entry2> {
    let apic_id = index as u32;
    let count = count as u32;
    // Bits of an APIC ID that number the cores.
    let core_bits = count.next_power_of_two().trailing_zeros();
    let mut entries = supported.to_vec();
    for entry in &mut entries {
        match (entry.function, entry.index) {
            (1, _) => {
                entry.ebx = (entry.ebx & 0xffff) | (count.min(255) << 16) | (apic_id << 24);
                entry.ecx = (entry.ecx & !(VMX | PDCM)) | TSC_DEADLINE | HYPERVISOR;
                entry.edx = (entry.edx & !(1 << 28)) | (u32::from(count > 1) << 28);
            }
            // Intel's caches: cores in the package, threads that share the cache (levels 1 and 2: one).
            (4, _) if entry.eax & 0x1f != 0 => {
                let level = (entry.eax >> 5) & 7;
                let sharing = if level >= 3 { count.next_power_of_two() - 1 } else { 0 };
                let cores = (count.next_power_of_two() - 1).min(63);
                entry.eax = (entry.eax & 0x3fff) | (sharing.min(4095) << 14) | (cores << 26);
            }
            // Performance counters.
            (0xa, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            // Topology: a level of threads (one in a core), a level of cores.
            (0xb | 0x1f, level) => {
                (entry.eax, entry.ebx, entry.ecx) = match level {
                    0 => (0, 1, 1 << 8),
                    1 => (core_bits, count, 1 | (2 << 8)),
                    level => (0, 0, level & 0xff),
                };
                entry.edx = apic_id;
            }
            (0x8000_0001, _) => entry.ecx &= !SVM,
            // AMD: cores in the package, and the width of their number.
            (0x8000_0008, _) => entry.ecx = (entry.ecx & !0xf0ff) | (core_bits << 12) | (count - 1),
            // AMD's nested virtualisation.
            (0x8000_000a, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
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

/// A register of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// The registers that are sets of features: a guest that saw a bit may use it ever after.
const FEATURE_WORDS: [(u32, u32, Register); 17] = [
    (1, 0, Register::Ecx),
    (1, 0, Register::Edx),
    (7, 0, Register::Ebx),
    (7, 0, Register::Ecx),
    (7, 0, Register::Edx),
    (7, 1, Register::Eax),
    (7, 1, Register::Edx),
    (7, 2, Register::Edx),
    (0xd, 0, Register::Eax),
    (0xd, 0, Register::Edx),
    (0xd, 1, Register::Eax),
    (0x4000_0001, 0, Register::Eax),
    (0x8000_0001, 0, Register::Ecx),
    (0x8000_0001, 0, Register::Edx),
    (0x8000_0007, 0, Register::Edx),
    (0x8000_0008, 0, Register::Ebx),
    (0x8000_0021, 0, Register::Eax),
];

/// Names for the bits that an operator is most likely to meet.
#[rustfmt::skip]
const FEATURE_NAMES: [(u32, u32, Register, u32, &str); 33] = [
    (1, 0, Register::Ecx, 0, "sse3"), (1, 0, Register::Ecx, 1, "pclmulqdq"), (1, 0, Register::Ecx, 9, "ssse3"),
    (1, 0, Register::Ecx, 12, "fma"), (1, 0, Register::Ecx, 13, "cx16"), (1, 0, Register::Ecx, 17, "pcid"),
    (1, 0, Register::Ecx, 19, "sse4_1"), (1, 0, Register::Ecx, 20, "sse4_2"), (1, 0, Register::Ecx, 21, "x2apic"),
    (1, 0, Register::Ecx, 23, "popcnt"), (1, 0, Register::Ecx, 25, "aes"), (1, 0, Register::Ecx, 26, "xsave"),
    (1, 0, Register::Ecx, 28, "avx"), (1, 0, Register::Ecx, 29, "f16c"), (1, 0, Register::Ecx, 30, "rdrand"),
    (7, 0, Register::Ebx, 0, "fsgsbase"), (7, 0, Register::Ebx, 3, "bmi1"), (7, 0, Register::Ebx, 5, "avx2"),
    (7, 0, Register::Ebx, 8, "bmi2"), (7, 0, Register::Ebx, 9, "erms"), (7, 0, Register::Ebx, 10, "invpcid"),
    (7, 0, Register::Ebx, 16, "avx512f"), (7, 0, Register::Ebx, 18, "rdseed"), (7, 0, Register::Ebx, 19, "adx"),
    (7, 0, Register::Ebx, 20, "smap"), (7, 0, Register::Ebx, 29, "sha_ni"), (7, 0, Register::Ecx, 2, "umip"),
    (7, 0, Register::Ecx, 3, "pku"), (7, 0, Register::Ecx, 16, "la57"), (7, 0, Register::Edx, 4, "fsrm"),
    (0xd, 1, Register::Eax, 3, "xsaves"), (0x8000_0001, 0, Register::Ecx, 5, "abm"),
    (0x8000_0001, 0, Register::Edx, 27, "rdtscp"),
];

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

/// What this host offers.
pub fn host_cpu_profile() -> Result<CpuProfile, MachineError> {
    let host = Host::open()?;
    let vm = host.kvm.create_vm().map_err(KvmError::of("KVM_CREATE_VM"))?;
    let vcpu = vm.create_vcpu(0).map_err(KvmError::of("KVM_CREATE_VCPU"))?;
    let tsc_khz = vcpu.get_tsc_khz().map_err(KvmError::of("KVM_GET_TSC_KHZ"))?;
    Ok(profile(&host, &guest_cpuid(&host.supported_cpuid, 0, 1), tsc_khz))
}

fn profile(host: &Host, cpuid: &[kvm_cpuid_entry2], tsc_khz: u32) -> CpuProfile {
    let leaf = |function, index| cpuid.iter().find(|e| e.function == function && e.index == index);
    let vendor = leaf(0, 0).map_or_else(String::new, |e| {
        [e.ebx, e.edx, e.ecx].iter().flat_map(|r| r.to_le_bytes()).map(char::from).collect()
    });
    let version = leaf(1, 0).map_or(0, |e| e.eax);
    let (family, model) = ((version >> 8) & 0xf, (version >> 4) & 0xf);
    let features = FEATURE_WORDS.iter().map(|&(function, subleaf, register)| {
        let bits = leaf(function, subleaf).map_or(0, |e| match register {
            Register::Eax => e.eax,
            Register::Ebx => e.ebx,
            Register::Ecx => e.ecx,
            Register::Edx => e.edx,
        });
        FeatureWord { leaf: function, subleaf, register, bits }
    });
    CpuProfile {
        vendor,
        family: family + if family == 0xf { (version >> 20) & 0xff } else { 0 },
        model: model + if matches!(family, 6 | 0xf) { ((version >> 16) & 0xf) << 4 } else { 0 },
        features: features.collect(),
        xsave_bytes: host.xsave_bytes as u64,
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
        let CpuProfile {
            vendor,
            family: _,
            model: _,
            features,
            xsave_bytes,
            tsc_khz,
            tsc_scaling: _,
            sregs2,
            exception_payload,
            triple_fault_event,
        } = other;
        if *vendor != self.vendor {
            return Err(CpuMismatch::Vendor { theirs: vendor.clone(), ours: self.vendor.clone() });
        }
        let missing: Vec<String> =
            features.iter().flat_map(|word| word.missing_from(&self.features)).collect();
        if !missing.is_empty() {
            return Err(CpuMismatch::Features(missing));
        }
        if *xsave_bytes > self.xsave_bytes {
            return Err(CpuMismatch::Xsave { theirs: *xsave_bytes, ours: self.xsave_bytes });
        }
        if !self.tsc_scaling && !tsc_close(*tsc_khz, self.tsc_khz) {
            return Err(CpuMismatch::Tsc { theirs: *tsc_khz, ours: self.tsc_khz });
        }
        for (theirs, ours, name) in [
            (*sregs2, self.sregs2, "KVM_CAP_SREGS2"),
            (*exception_payload, self.exception_payload, "KVM_CAP_EXCEPTION_PAYLOAD"),
            (*triple_fault_event, self.triple_fault_event, "KVM_CAP_X86_TRIPLE_FAULT_EVENT"),
        ] {
            if theirs && !ours {
                return Err(CpuMismatch::Capability(name));
            }
        }
        Ok(())
    }
}

impl FeatureWord {
    fn missing_from(&self, here: &[FeatureWord]) -> Vec<String> {
        let &FeatureWord { leaf, subleaf, register, bits } = self;
        let same =
            |word: &&FeatureWord| (word.leaf, word.subleaf, word.register) == (leaf, subleaf, register);
        let missing = bits & !here.iter().find(same).map_or(0, |word| word.bits);
        (0..32)
            .filter(|bit| missing & (1 << bit) != 0)
            .map(|bit| {
                let known = FEATURE_NAMES
                    .iter()
                    .find(|known| (known.0, known.1, known.2, known.3) == (leaf, subleaf, register, bit));
                match known {
                    Some((.., name)) => (*name).to_owned(),
                    None => format!("CPUID {leaf:#x}.{subleaf}:{register:?} bit {bit}"),
                }
            })
            .collect()
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
        let newer = CpuProfile { exception_payload: true, ..ours.clone() };
        assert!(matches!(ours.can_resume_from(&newer), Err(CpuMismatch::Capability(_))));
    }

    #[test]
    fn every_vcpu_knows_its_place_and_no_nested_virtualisation() {
        let entry = |function, index| kvm_cpuid_entry2 { function, index, ecx: !0, ..Default::default() };
        let supported = [entry(1, 0), entry(0xb, 0), entry(0xb, 1), entry(0x8000_0001, 0)];
        let cpuid = guest_cpuid(&supported, 5, 6);
        assert_eq!(cpuid[0].ebx, (5 << 24) | (6 << 16));
        assert_eq!(cpuid[0].ecx & (VMX | PDCM), 0);
        assert_eq!((cpuid[1].edx, cpuid[2].edx), (5, 5));
        assert_eq!((cpuid[2].eax, cpuid[2].ebx), (3, 6));
        assert_eq!(cpuid[3].ecx & SVM, 0);
    }
}
