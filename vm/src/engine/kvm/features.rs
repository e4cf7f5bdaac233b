//! The features of a processor that a guest is offered, by name of leaf, register and bit. A bit that is not here is
//! off, and so is a register that is neither a set of features nor listed among the values, so that a newer kernel or
//! processor offers nothing that this program does not capture and restore.
//!
//! Left out for their state, which is not captured: nested virtualisation (VMX, SVM), performance counters (PDCM, AMD's
//! extended counters, IBS), CET (shadow stacks and IBT, with supervisor state in XSS), processor trace, SGX, RDT, AMX,
//! MPX, user interrupts, PASID, key locker, XFD. Names and places: Intel SDM vol. 2A (CPUID), AMD APM vol. 3 appendix
//! E, the kernel's Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::kvm_cpuid_entry2;
use serde::{Deserialize, Serialize};

/// A register of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}
use Register::{Eax, Ebx, Ecx, Edx};

impl Register {
    pub(super) fn of(self, entry: &kvm_cpuid_entry2) -> u32 {
        match self {
            Eax => entry.eax,
            Ebx => entry.ebx,
            Ecx => entry.ecx,
            Edx => entry.edx,
        }
    }

    pub(super) fn of_mut(self, entry: &mut kvm_cpuid_entry2) -> &mut u32 {
        match self {
            Eax => &mut entry.eax,
            Ebx => &mut entry.ebx,
            Ecx => &mut entry.ecx,
            Edx => &mut entry.edx,
        }
    }
}

/// A register that is a set of features, and those of them that are offered.
pub(super) struct Word {
    pub leaf: u32,
    pub subleaf: u32,
    pub register: Register,
    pub offered: u32,
}

impl Word {
    /// The names of what it offers; of a bit without one its place.
    pub(super) fn names(&self) -> Vec<String> {
        let &Self { leaf, subleaf, register, offered } = self;
        let name = |bit: &u32| {
            let is_it = |known: &&(u32, u32, Register, u32, &str)| {
                (known.0, known.1, known.2, known.3) == (leaf, subleaf, register, *bit)
            };
            match FEATURE_NAMES.iter().find(is_it) {
                Some((.., name)) => (*name).to_owned(),
                None => format!("CPUID {leaf:#x}.{subleaf}:{register:?} bit {bit}"),
            }
        };
        (0..32).filter(|bit| offered & (1 << bit) != 0).map(|bit| name(&bit)).collect()
    }
}

/// Bits by their numbers.
pub(super) const fn bits<const N: usize>(numbers: [u32; N]) -> u32 {
    let (mut set, mut at) = (0, 0);
    while at < N {
        set |= 1 << numbers[at];
        at += 1;
    }
    set
}

pub(super) const fn word(leaf: u32, subleaf: u32, register: Register, offered: u32) -> Word {
    Word { leaf, subleaf, register, offered }
}

/// Of leaf 1, which AMD repeats: fpu vme de pse tsc msr pae mce cx8 apic, mtrr pge mca cmov pat pse36, mmx fxsr.
const BASIC_EDX: u32 = bits([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 23, 24]);

/// Every register that is a set of features.
#[rustfmt::skip]
pub(super) const WORDS: [Word; 20] = [
    // sse3 pclmulqdq ssse3 fma cx16 pcid sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline aes xsave osxsave avx f16c
    // rdrand hypervisor
    word(1, 0, Ecx, bits([0, 1, 9, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31])),
    // and sep clflush sse sse2 ss htt
    word(1, 0, Edx, BASIC_EDX | bits([11, 19, 25, 26, 27, 28])),
    // arat
    word(6, 0, Eax, bits([2])),
    // fsgsbase tsc_adjust bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm zero_fcs_fds avx512f avx512dq rdseed
    // adx smap avx512ifma clflushopt clwb avx512pf avx512er avx512cd sha_ni avx512bw avx512vl
    word(7, 0, Ebx, bits([
        0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 16, 17, 18, 19, 20, 21, 23, 24, 26, 27, 28, 29, 30, 31,
    ])),
    // avx512vbmi umip pku ospke waitpkg avx512_vbmi2 gfni vaes vpclmulqdq avx512_vnni avx512_bitalg avx512_vpopcntdq
    // la57 rdpid cldemote movdiri movdir64b
    word(7, 0, Ecx, bits([1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 14, 16, 22, 25, 27, 28])),
    // avx512_4vnniw avx512_4fmaps fsrm avx512_vp2intersect md_clear serialize tsxldtrk avx512_fp16 spec_ctrl
    // intel_stibp flush_l1d arch_capabilities ssbd
    word(7, 0, Edx, bits([2, 3, 4, 8, 10, 14, 16, 23, 26, 27, 28, 29, 31])),
    // avx_vnni avx512_bf16 cmpccxadd fzrm fsrs fsrc avx_ifma
    word(7, 1, Eax, bits([4, 5, 7, 10, 11, 12, 23])),
    // avx_vnni_int8 avx_ne_convert prefetchiti
    word(7, 1, Edx, bits([4, 5, 14])),
    // intel_psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no
    word(7, 2, Edx, bits([0, 1, 2, 3, 4, 5])),
    // XCR0: x87 sse avx, three of avx512, pkru
    word(0xd, 0, Eax, bits([0, 1, 2, 5, 6, 7, 9])),
    word(0xd, 0, Edx, 0),
    // xsaveopt xsavec xgetbv1 xsaves
    word(0xd, 1, Eax, bits([0, 1, 2, 3])),
    // XSS: no supervisor state
    word(0xd, 1, Ecx, 0),
    word(0xd, 1, Edx, 0),
    // kvmclock nop_io_delay kvmclock2 async_pf steal_time pv_eoi pv_unhalt pv_tlb_flush async_pf_vmexit pv_send_ipi
    // poll_control pv_sched_yield async_pf_int msi_ext_dest_id clocksource_stable
    word(0x4000_0001, 0, Eax, bits([0, 1, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 24])),
    // lahf_lm cmp_legacy extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw xop fma4 tbm topoext
    word(0x8000_0001, 0, Ecx, bits([0, 1, 3, 4, 5, 6, 7, 8, 9, 11, 16, 21, 22])),
    // and syscall nx mmxext fxsr_opt pdpe1gb rdtscp lm 3dnowext 3dnow
    word(0x8000_0001, 0, Edx, BASIC_EDX | bits([11, 20, 22, 25, 26, 27, 29, 30, 31])),
    // invariant_tsc
    word(0x8000_0007, 0, Edx, bits([8])),
    // clzero xsaveerptr wbnoinvd ibpb ibrs amd_stibp stibp_always_on amd_ssbd virt_ssbd amd_ssb_no psfd
    word(0x8000_0008, 0, Ebx, bits([0, 2, 9, 12, 14, 15, 17, 24, 25, 26, 28])),
    // no_nested_data_bp lfence_serialising null_selector_clears_base autoibrs sbpb ibpb_brtype srso_no
    word(0x8000_0021, 0, Eax, bits([0, 2, 6, 8, 27, 28, 29])),
];

/// Names for the bits that an operator is most likely to meet.
#[rustfmt::skip]
const FEATURE_NAMES: [(u32, u32, Register, u32, &str); 47] = [
    (1, 0, Ecx, 0, "sse3"), (1, 0, Ecx, 1, "pclmulqdq"), (1, 0, Ecx, 9, "ssse3"),
    (1, 0, Ecx, 12, "fma"), (1, 0, Ecx, 13, "cx16"), (1, 0, Ecx, 17, "pcid"),
    (1, 0, Ecx, 19, "sse4_1"), (1, 0, Ecx, 20, "sse4_2"), (1, 0, Ecx, 21, "x2apic"),
    (1, 0, Ecx, 23, "popcnt"), (1, 0, Ecx, 25, "aes"), (1, 0, Ecx, 26, "xsave"),
    (1, 0, Ecx, 28, "avx"), (1, 0, Ecx, 29, "f16c"), (1, 0, Ecx, 30, "rdrand"),
    (7, 0, Ebx, 0, "fsgsbase"), (7, 0, Ebx, 3, "bmi1"), (7, 0, Ebx, 5, "avx2"),
    (7, 0, Ebx, 8, "bmi2"), (7, 0, Ebx, 9, "erms"), (7, 0, Ebx, 10, "invpcid"),
    (7, 0, Ebx, 16, "avx512f"), (7, 0, Ebx, 18, "rdseed"), (7, 0, Ebx, 19, "adx"),
    (7, 0, Ebx, 20, "smap"), (7, 0, Ebx, 29, "sha_ni"), (7, 0, Ecx, 2, "umip"),
    (7, 0, Ecx, 3, "pku"), (7, 0, Ecx, 16, "la57"), (7, 0, Edx, 4, "fsrm"),
    (0xd, 1, Eax, 3, "xsaves"), (0x8000_0001, 0, Ecx, 5, "abm"),
    (0x8000_0001, 0, Edx, 27, "rdtscp"), (1, 0, Ecx, 22, "movbe"), (6, 0, Eax, 2, "arat"),
    (0x8000_0001, 0, Ecx, 0, "lahf_lm"), (0x8000_0001, 0, Edx, 11, "syscall"),
    (0x8000_0001, 0, Edx, 20, "nx"), (0x8000_0001, 0, Edx, 29, "lm"),
    (1, 0, Edx, 11, "sep"), (1, 0, Edx, 25, "sse"), (1, 0, Edx, 26, "sse2"),
    (0x4000_0001, 0, Eax, 0, "kvmclock"), (0x4000_0001, 0, Eax, 3, "kvmclock2"),
    (0x4000_0001, 0, Eax, 6, "kvm_pv_eoi"), (0x4000_0001, 0, Eax, 7, "kvm_pv_unhalt"),
    (0x4000_0001, 0, Eax, 24, "kvmclock_stable"),
];

/// Leaves that are told at all. What is beyond them (SGX, RDT, processor trace, AMX, AMD's encrypted memory, counters
/// and samples) tells of features that are not offered.
const LEAVES: [std::ops::RangeInclusive<u32>; 9] = [
    0..=2,
    4..=7,
    0xb..=0xb,
    0xd..=0xd,
    0x15..=0x16,
    0x1f..=0x1f,
    0x4000_0000..=0x4000_0001,
    0x8000_0000..=0x8000_0008,
    0x8000_0019..=0x8000_0021,
];
/// AMD's instruction based sampling.
const LEAF_IBS: u32 = 0x8000_001b;
/// AMD's encrypted memory.
const LEAF_ENCRYPTED: u32 = 0x8000_001f;
/// AMD's quality of service.
const LEAF_QOS: u32 = 0x8000_0020;
/// Features by their number: its EAX is the last subleaf.
const LEAF_FEATURES: u32 = 7;
/// The last subleaf of it that is told.
const FEATURES_SUBLEAF_MAX: u32 = 2;

/// Registers that are no sets of features and are told as KVM has them: ranges, names, sizes, frequencies, and places
/// in the topology, which are made anew for each vCPU. All others that are in no [`Word`] are zero.
const VALUES: [(std::ops::RangeInclusive<u32>, &[Register]); 16] = [
    (0..=0, &[Eax, Ebx, Ecx, Edx]),
    (1..=1, &[Eax, Ebx]),
    (2..=2, &[Eax, Ebx, Ecx, Edx]),
    (4..=4, &[Eax, Ebx, Ecx, Edx]),
    (LEAF_FEATURES..=LEAF_FEATURES, &[Eax]),
    (0xb..=0xb, &[Eax, Ebx, Ecx, Edx]),
    (LEAF_XSAVE..=LEAF_XSAVE, &[Eax, Ebx, Ecx]),
    (0x15..=0x16, &[Eax, Ebx, Ecx, Edx]),
    (0x1f..=0x1f, &[Eax, Ebx, Ecx, Edx]),
    (0x4000_0000..=0x4000_0000, &[Eax, Ebx, Ecx, Edx]),
    (0x8000_0000..=0x8000_0000, &[Eax, Ebx, Ecx, Edx]),
    (0x8000_0002..=0x8000_0006, &[Eax, Ebx, Ecx, Edx]),
    (0x8000_0008..=0x8000_0008, &[Eax, Ecx]),
    (0x8000_0019..=0x8000_0019, &[Eax, Ebx]),
    (0x8000_001a..=0x8000_001a, &[Eax]),
    (0x8000_001d..=0x8000_001e, &[Eax, Ebx, Ecx, Edx]),
];
/// Of a component's ECX: whether it is a supervisor's, and aligned.
const COMPONENT_ECX: u32 = 0b11;
/// Bytes of the extended state's legacy area and header.
const XSAVE_HEAD_BYTES: u32 = 576;
/// Extended state: one subleaf a component.
const LEAF_XSAVE: u32 = 0xd;

/// Takes out of a processor's description what is not offered.
pub(super) fn restrict(entries: &mut Vec<kvm_cpuid_entry2>) {
    entries.retain(|entry| {
        let leaf = entry.function;
        LEAVES.iter().any(|leaves| leaves.contains(&leaf))
            && leaf != LEAF_IBS
            && leaf != LEAF_ENCRYPTED
            && leaf != LEAF_QOS
            && (leaf != LEAF_FEATURES || entry.index <= FEATURES_SUBLEAF_MAX)
            && (leaf != LEAF_XSAVE || entry.index < 2 || is_offered_component(entry.index))
    });
    for entry in entries.iter_mut() {
        for register in [Eax, Ebx, Ecx, Edx] {
            *register.of_mut(entry) &= told(entry.function, entry.index, register);
        }
        match (entry.function, entry.index) {
            (LEAF_FEATURES, 0) => entry.eax = entry.eax.min(FEATURES_SUBLEAF_MAX),
            (LEAF_XSAVE, 2..) => entry.ecx &= COMPONENT_ECX,
            _ => {}
        }
    }
    size_extended_state(entries);
}

/// The bits of a register that are told.
fn told(leaf: u32, subleaf: u32, register: Register) -> u32 {
    let place = (leaf, subleaf, register);
    let word = WORDS.iter().find(|word| (word.leaf, word.subleaf, word.register) == place);
    // Of a leaf with subleaves only the first has values beside its features, but for extended state.
    let has_values = |leaves: &std::ops::RangeInclusive<u32>| {
        leaves.contains(&leaf) && (leaf != LEAF_FEATURES || subleaf == 0)
    };
    let is_value =
        || VALUES.iter().any(|(leaves, registers)| has_values(leaves) && registers.contains(&register));
    match word {
        Some(word) => word.offered,
        None if is_value() => u32::MAX,
        None => 0,
    }
}

/// The size of the extended state with all components that are offered, in the standard format.
pub(super) fn size_extended_state(entries: &mut [kvm_cpuid_entry2]) {
    let components = entries.iter().filter(|entry| entry.function == LEAF_XSAVE && entry.index > 1);
    let ends = components.map(|entry| entry.ebx.saturating_add(entry.eax));
    let bytes = ends.max().map_or(XSAVE_HEAD_BYTES, |end| end.max(XSAVE_HEAD_BYTES));
    let whole = entries.iter_mut().find(|entry| (entry.function, entry.index) == (LEAF_XSAVE, 0));
    if let Some(entry) = whole.filter(|entry| entry.eax != 0) {
        entry.ecx = bytes;
    }
}

fn is_offered_component(index: u32) -> bool {
    let components =
        WORDS.iter().find(|word| (word.leaf, word.subleaf, word.register) == (LEAF_XSAVE, 0, Eax));
    index < 32 && components.is_some_and(|word| word.offered & 1 << index != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_of_the_future_offers_what_is_known_and_nothing_else() {
        let all = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            eax: !0,
            ebx: !0,
            ecx: !0,
            edx: !0,
            ..Default::default()
        };
        let known = WORDS.iter().map(|word| all(word.leaf, word.subleaf));
        let unknown =
            [0x12, 0x14, 0x1d, 0x23, 0x7fff_ffff, 0x8000_001b, 0x8000_001f, 0x8000_0022, 0xc000_0001];
        let components = (2..70).map(|index| all(0xd, index));
        let mut entries: Vec<_> =
            known.chain(unknown.into_iter().map(|leaf| all(leaf, 0))).chain(components).collect();
        restrict(&mut entries);
        for entry in &entries {
            assert!(!unknown.contains(&entry.function), "{:#x}", entry.function);
            for word in WORDS.iter().filter(|word| (word.leaf, word.subleaf) == (entry.function, entry.index))
            {
                assert_eq!(word.register.of(entry), word.offered, "{:#x}.{}", word.leaf, word.subleaf);
            }
        }
        let no_values = |entry: &kvm_cpuid_entry2, registers: &[Register]| {
            registers.iter().all(|register| register.of(entry) == 0)
        };
        for (leaf, registers) in [(6, &[Ebx, Ecx, Edx][..]), (0x8000_0007, &[Eax, Ebx, Ecx]), (7, &[])] {
            let entry = entries.iter().find(|entry| (entry.function, entry.index) == (leaf, 0)).unwrap();
            assert!(no_values(entry, registers), "{entry:?}");
        }
        let features = entries.iter().find(|entry| (entry.function, entry.index) == (7, 0)).unwrap();
        assert_eq!(features.eax, 2, "no subleaf that is not known");
        assert!(entries.iter().any(|entry| (entry.function, entry.index, entry.ebx) == (7, 1, 0)));
        let components: Vec<_> =
            entries.iter().filter(|e| e.function == 0xd && e.index > 1).map(|e| e.index).collect();
        assert_eq!(components, [2, 5, 6, 7, 9], "AVX, AVX-512 and protection keys; no AMX, MPX or CET");
        let bit = |leaf: u32, register: Register, bit: u32| {
            WORDS.iter().any(|w| {
                (w.leaf, w.subleaf, w.register) == (leaf, 0, register) && w.offered & (1 << bit) != 0
            })
        };
        for (name, leaf, register, number) in [
            ("vmx", 1, Ecx, 5),
            ("pdcm", 1, Ecx, 15),
            ("shadow stacks", 7, Ecx, 7),
            ("IBT", 7, Edx, 20),
            ("AMX", 7, Edx, 24),
            ("processor trace", 7, Ebx, 25),
            ("svm", 0x8000_0001, Ecx, 2),
            ("AMD's counters", 0x8000_0001, Ecx, 23),
        ] {
            assert!(!bit(leaf, register, number), "{name} is offered, and its state not captured");
        }
    }

    #[test]
    fn no_word_is_there_twice() {
        let place = |word: &Word| (word.leaf, word.subleaf, word.register as u8);
        let mut places: Vec<_> = WORDS.iter().map(place).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), WORDS.len());
    }
}
