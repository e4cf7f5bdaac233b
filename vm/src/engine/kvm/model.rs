//! Processors with a name: a level of the x86-64 psABI, its features and no others, so that two unlike hosts show a
//! guest the same. The maker is the host's: Intel's and AMD's processors differ in what no feature tells (SYSENTER and
//! SYSCALL outside of 64-bit mode, segment registers that are loaded with null, machine checks, model-specific
//! registers), and a guest chooses its ways around faults by the maker.
//!
//! Family, model and stepping are those of the first processors of a level, as QEMU's Nehalem, Haswell, Opteron_G5 and
//! EPYC have them, with which kernels have been run on other processors for years. Sources: x86-64 psABI §3.1.1
//! (levels), Intel SDM vol. 2A and AMD APM vol. 3 (CPUID).

use super::features::{Register, Word, bits, word};
use crate::spec::CpuModel;
use Register::{Eax, Ebx, Ecx, Edx};
use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Bits of a physical address: what Intel's small processors have, too, and room for [`MODEL_RAM_BYTES_MAX`].
///
/// [`MODEL_RAM_BYTES_MAX`]: crate::spec::MODEL_RAM_BYTES_MAX
pub(super) const PHYSICAL_BITS: u8 = 39;
const VIRTUAL_BITS: u32 = 48;
/// Last leaf of each range.
const BASIC_MAX: u32 = 0xd;
const KVM_MAX: u32 = 0x4000_0001;
const EXTENDED_MAX: u32 = 0x8000_0008;
/// Eight times the bytes that CLFLUSH writes back, in its place.
const CLFLUSH: u32 = 8 << 8;
/// Of leaf 2: one round, and "see leaf 4".
const SEE_LEAF_4: (u32, u32) = (1, 0xff);
/// Extended state: x87, SSE, AVX; where the last one is, and its bytes, as in every processor that has it.
const COMPONENTS: u32 = 0b111;
const AVX_AT: u32 = 576;
const AVX_BYTES: u32 = 256;

/// Registers of features whose initial value is the host's, and zero without those features: what the processor is not
/// vulnerable to, and its performance counters.
pub(super) const ZERO_MSRS: [u32; 2] = [0x10a, 0x345];

/// Whose processors are named.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Maker {
    Intel,
    Amd,
}

/// Of leaf 1, without virtual-8086 mode's: fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush
/// mmx fxsr sse sse2.
#[rustfmt::skip]
const BASIC: u32 = bits([0, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26]);
/// What AMD repeats of it.
const REPEATED: u32 = BASIC & !bits([11, 19, 25, 26]);

/// The features of a level, by register. What a machine is made of (time stamp counter, APIC) is in both.
#[rustfmt::skip]
fn features(model: CpuModel, maker: Maker) -> [Word; 7] {
    let level_3 = |numbers: u32| if model == CpuModel::X86_64V3 { numbers } else { 0 };
    let amd = |numbers: u32| if maker == Maker::Amd { numbers } else { 0 };
    [
        // sse3 ssse3 cx16 sse4_1 sse4_2 x2apic popcnt tsc_deadline hypervisor; fma movbe xsave avx f16c
        word(1, 0, Ecx, bits([0, 9, 13, 19, 20, 21, 23, 24, 31]) | level_3(bits([12, 22, 26, 28, 29]))),
        word(1, 0, Edx, BASIC),
        // arat
        word(6, 0, Eax, bits([2])),
        // bmi1 avx2 bmi2
        word(7, 0, Ebx, level_3(bits([3, 5, 8]))),
        // kvmclock nop_io_delay kvmclock2 pv_eoi pv_unhalt clocksource_stable
        word(0x4000_0001, 0, Eax, bits([0, 1, 3, 6, 7, 24])),
        // lahf_lm; abm
        word(0x8000_0001, 0, Ecx, bits([0]) | level_3(bits([5]))),
        // syscall nx lm
        word(0x8000_0001, 0, Edx, bits([11, 20, 29]) | amd(REPEATED)),
    ]
}

/// Why a host cannot show a processor with a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuLack {
    /// Its processor's maker makes none of the levels.
    #[error("it is a {0}; named models are for GenuineIntel and AuthenticAMD")]
    Maker(String),
    /// Features.
    #[error("it lacks {}", .0.join(", "))]
    Features(Vec<String>),
    /// Bits of a physical address (MAXPHYADDR); it has so many.
    #[error("its physical addresses have {0} bits (MAXPHYADDR), the model's {PHYSICAL_BITS}")]
    PhysicalBits(u8),
}

/// The processor of this name, from what the host can offer, which has been restricted. Its topology is that of one
/// vCPU.
pub(super) fn named(model: CpuModel, host: &[kvm_cpuid_entry2]) -> Result<Vec<kvm_cpuid_entry2>, CpuLack> {
    let leaf = |function| host.iter().find(|entry| (entry.function, entry.index) == (function, 0)).copied();
    let maker_entry = leaf(0).unwrap_or_default();
    let name: Vec<u8> =
        [maker_entry.ebx, maker_entry.edx, maker_entry.ecx].into_iter().flat_map(u32::to_le_bytes).collect();
    let maker = match name.as_slice() {
        b"GenuineIntel" => Maker::Intel,
        b"AuthenticAMD" => Maker::Amd,
        other => return Err(CpuLack::Maker(String::from_utf8_lossy(other).into_owned())),
    };
    let features = features(model, maker);
    let missing: Vec<String> = features
        .iter()
        .flat_map(|wanted| {
            let here = leaf(wanted.leaf).map_or(0, |entry| wanted.register.of(&entry));
            // These two are KVM's doing, whatever the processor has.
            let here = here | if (wanted.leaf, wanted.register) == (1, Ecx) { bits([24, 31]) } else { 0 };
            Word { offered: wanted.offered & !here, ..*wanted }.names()
        })
        .collect();
    if !missing.is_empty() {
        return Err(CpuLack::Features(missing));
    }
    // Processors that do not tell have 36.
    let physical_bits = leaf(EXTENDED_MAX).map_or(36, |entry| entry.eax as u8);
    if physical_bits < PHYSICAL_BITS {
        return Err(CpuLack::PhysicalBits(physical_bits));
    }
    let mut entries = identity(model, maker, &maker_entry);
    for wanted in &features {
        let place = entries.iter_mut().find(|entry| (entry.function, entry.index) == (wanted.leaf, 0));
        if let Some(entry) = place {
            *wanted.register.of_mut(entry) |= wanted.offered;
        }
    }
    Ok(entries)
}

/// All that a processor tells beside its features.
fn identity(model: CpuModel, maker: Maker, maker_entry: &kvm_cpuid_entry2) -> Vec<kvm_cpuid_entry2> {
    let plain = |function, [eax, ebx, ecx, edx]: [u32; 4]| kvm_cpuid_entry2 {
        function,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    };
    let one_of_several = |function, index, [eax, ebx, ecx, edx]: [u32; 4]| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    };
    let kvm_cpuid_entry2 { ebx, ecx, edx, .. } = *maker_entry;
    let brand = brand(model);
    let words = |from: usize| -> [u32; 4] {
        std::array::from_fn(|word| {
            let at = from + word * 4;
            u32::from_le_bytes([brand[at], brand[at + 1], brand[at + 2], brand[at + 3]])
        })
    };
    let mut entries =
        vec![plain(0, [BASIC_MAX, ebx, ecx, edx]), plain(1, [signature(model, maker), CLFLUSH, 0, 0])];
    if maker == Maker::Intel {
        entries.push(plain(2, [SEE_LEAF_4.0, 0, 0, SEE_LEAF_4.1]));
        entries.extend((0..).zip(CACHES).map(|(index, cache)| one_of_several(4, index, cache.as_leaf_4())));
        entries.push(one_of_several(4, CACHES.len() as u32, [0; 4]));
    }
    entries.push(plain(6, [0; 4]));
    entries.push(one_of_several(7, 0, [0; 4]));
    entries.extend([0, 1].map(|index| one_of_several(0xb, index, [0; 4])));
    if model == CpuModel::X86_64V3 {
        let bytes = AVX_AT + AVX_BYTES;
        entries.push(one_of_several(0xd, 0, [COMPONENTS, bytes, bytes, 0]));
        entries.push(one_of_several(0xd, 1, [0; 4]));
        entries.push(one_of_several(0xd, 2, [AVX_BYTES, AVX_AT, 0, 0]));
    }
    let kvm = [b"KVMK", b"VMKV", b"M\0\0\0"].map(|part| u32::from_le_bytes(*part));
    entries.push(plain(0x4000_0000, [KVM_MAX, kvm[0], kvm[1], kvm[2]]));
    entries.push(plain(KVM_MAX, [0; 4]));
    let [l1d, l1i, l2, l3] = CACHES;
    // Intel's processors do not repeat their maker there.
    let repeated = if maker == Maker::Amd { [EXTENDED_MAX, ebx, ecx, edx] } else { [EXTENDED_MAX, 0, 0, 0] };
    entries.extend([
        plain(0x8000_0000, repeated),
        plain(0x8000_0001, [if maker == Maker::Amd { signature(model, maker) } else { 0 }, 0, 0, 0]),
        plain(0x8000_0002, words(0)),
        plain(0x8000_0003, words(16)),
        plain(0x8000_0004, words(32)),
    ]);
    if maker == Maker::Amd {
        entries.push(plain(0x8000_0005, [0, 0, l1d.as_leaf_5(), l1i.as_leaf_5()]));
    }
    let (l2, l3) = (l2.as_leaf_6_l2(), if maker == Maker::Amd { l3.as_leaf_6_l3() } else { 0 });
    entries.push(plain(0x8000_0006, [0, 0, l2, l3]));
    entries.push(plain(0x8000_0007, [0; 4]));
    entries.push(plain(EXTENDED_MAX, [u32::from(PHYSICAL_BITS) | VIRTUAL_BITS << 8, 0, 0, 0]));
    entries
}

/// Leaf 1's EAX: family, model, stepping.
fn signature(model: CpuModel, maker: Maker) -> u32 {
    let (family, number, stepping) = match (maker, model) {
        (Maker::Intel, CpuModel::X86_64V3) => (6, 60, 4),
        (Maker::Intel, _) => (6, 26, 3),
        (Maker::Amd, CpuModel::X86_64V3) => (23, 1, 2),
        (Maker::Amd, _) => (21, 2, 0),
    };
    let (family, beyond) = if family > 0xf { (0xf, family - 0xf) } else { (family, 0) };
    stepping | (number & 0xf) << 4 | family << 8 | (number >> 4) << 16 | beyond << 20
}

/// The name that people see, padded with zeroes.
fn brand(model: CpuModel) -> [u8; 48] {
    let name = format!("ftd virtual processor, {model}");
    let mut brand = [0; 48];
    for (to, from) in brand.iter_mut().take(47).zip(name.bytes()) {
        *to = from;
    }
    brand
}

/// A cache with lines of 64 bytes.
#[derive(Clone, Copy)]
struct Cache {
    level: u32,
    /// 1 data, 2 instructions, 3 both.
    kind: u32,
    kib: u32,
    ways: u32,
}

/// Those of each core, and the last, which all share.
const CACHES: [Cache; 4] = [
    Cache { level: 1, kind: 1, kib: 32, ways: 8 },
    Cache { level: 1, kind: 2, kib: 32, ways: 8 },
    Cache { level: 2, kind: 3, kib: 512, ways: 8 },
    Cache { level: 3, kind: 3, kib: 16 << 10, ways: 16 },
];

impl Cache {
    const LINE: u32 = 64;

    fn as_leaf_4(self) -> [u32; 4] {
        let Self { level, kind, kib, ways } = self;
        // Bit 8: it initialises itself.
        [
            kind | level << 5 | 1 << 8,
            (Self::LINE - 1) | (ways - 1) << 22,
            (kib << 10) / (ways * Self::LINE) - 1,
            0,
        ]
    }

    fn as_leaf_5(self) -> u32 {
        self.kib << 24 | self.ways << 16 | 1 << 8 | Self::LINE
    }

    fn as_leaf_6_l2(self) -> u32 {
        self.kib << 16 | Self::ways_code(self.ways) << 12 | 1 << 8 | Self::LINE
    }

    /// The size in units of 512 KiB.
    fn as_leaf_6_l3(self) -> u32 {
        (self.kib / 512) << 18 | Self::ways_code(self.ways) << 12 | 1 << 8 | Self::LINE
    }

    fn ways_code(ways: u32) -> u32 {
        if ways == 8 { 6 } else { 8 }
    }
}

#[cfg(test)]
mod tests {
    use super::super::features::{WORDS, restrict};
    use super::*;

    /// A processor that has everything, of this maker.
    fn host(maker: &[u8; 12]) -> Vec<kvm_cpuid_entry2> {
        let part = |from: usize| {
            u32::from_le_bytes([maker[from], maker[from + 1], maker[from + 2], maker[from + 3]])
        };
        let mut entries: Vec<kvm_cpuid_entry2> = Vec::new();
        for word in &WORDS {
            let place = (word.leaf, word.subleaf);
            let at = match entries.iter().position(|entry| (entry.function, entry.index) == place) {
                Some(at) => at,
                None => {
                    let (function, index) = place;
                    entries.push(kvm_cpuid_entry2 { function, index, ..Default::default() });
                    entries.len() - 1
                }
            };
            *word.register.of_mut(&mut entries[at]) = u32::MAX;
        }
        let (ebx, edx, ecx) = (part(0), part(4), part(8));
        entries.push(kvm_cpuid_entry2 { eax: 0x20, ebx, edx, ecx, ..Default::default() });
        let addresses = entries.iter_mut().find(|entry| entry.function == EXTENDED_MAX).unwrap();
        addresses.eax = 0x3039;
        entries.push(kvm_cpuid_entry2 { function: 0x15, eax: 2, ebx: 200, ..Default::default() });
        restrict(&mut entries);
        entries
    }

    fn without(
        mut entries: Vec<kvm_cpuid_entry2>,
        leaf: u32,
        register: Register,
        bit: u32,
    ) -> Vec<kvm_cpuid_entry2> {
        let entry = entries.iter_mut().find(|e| (e.function, e.index) == (leaf, 0)).unwrap();
        *register.of_mut(entry) &= !(1 << bit);
        entries
    }

    const MODELS: [CpuModel; 2] = [CpuModel::X86_64V2, CpuModel::X86_64V3];

    #[test]
    fn a_named_processor_is_the_same_on_every_host_of_its_maker_that_has_the_level() {
        for maker in [b"GenuineIntel", b"AuthenticAMD"] {
            for model in MODELS {
                let rich = host(maker);
                // Without AVX-512, invariant TSC, SHA; with fewer address bits; and with caches and a name of its own.
                let mut poor = without(host(maker), 7, Ebx, 16);
                poor = without(without(poor, 0x8000_0007, Edx, 8), 7, Ebx, 29);
                poor.iter_mut().find(|e| e.function == EXTENDED_MAX).unwrap().eax = 0x3027;
                poor.push(kvm_cpuid_entry2 { function: 4, eax: 0x121, ..Default::default() });
                poor.push(kvm_cpuid_entry2 { function: 0x8000_0002, eax: 7, ..Default::default() });
                assert_eq!(named(model, &rich), named(model, &poor), "{model}");
                assert!(named(model, &rich).is_ok());
            }
        }
        assert_ne!(named(MODELS[0], &host(b"GenuineIntel")), named(MODELS[0], &host(b"AuthenticAMD")));
        assert_ne!(named(MODELS[0], &host(b"GenuineIntel")), named(MODELS[1], &host(b"GenuineIntel")));
    }

    #[test]
    fn a_level_has_its_own_features_and_none_above() {
        let has = |entries: &[kvm_cpuid_entry2], leaf, register: Register, bit: u32| {
            entries.iter().any(|e| (e.function, e.index) == (leaf, 0) && register.of(e) & 1 << bit != 0)
        };
        #[rustfmt::skip]
        let level_2 = [(1, Ecx, 0), (1, Ecx, 9), (1, Ecx, 13), (1, Ecx, 19), (1, Ecx, 20), (1, Ecx, 23),
            (0x8000_0001, Ecx, 0)];
        #[rustfmt::skip]
        let level_3 = [(1, Ecx, 12), (1, Ecx, 22), (1, Ecx, 26), (1, Ecx, 28), (1, Ecx, 29), (7, Ebx, 3),
            (7, Ebx, 5), (7, Ebx, 8), (0x8000_0001, Ecx, 5), (0xd, Eax, 2)];
        // aes, rdrand, smep, avx512f, pku, spec_ctrl, rdtscp, topoext, ibpb
        #[rustfmt::skip]
        let above = [(1, Ecx, 25), (1, Ecx, 30), (7, Ebx, 7), (7, Ebx, 16), (7, Ecx, 3), (7, Edx, 26),
            (0x8000_0001, Edx, 27), (0x8000_0001, Ecx, 22), (EXTENDED_MAX, Ebx, 12), (0xd, Eax, 9)];
        for maker in [b"GenuineIntel", b"AuthenticAMD"] {
            let [v2, v3] = MODELS.map(|model| named(model, &host(maker)).unwrap());
            for (leaf, register, bit) in level_2 {
                assert!(
                    has(&v2, leaf, register, bit) && has(&v3, leaf, register, bit),
                    "{leaf:#x} {register:?} {bit}"
                );
            }
            for (leaf, register, bit) in level_3 {
                let found = (has(&v2, leaf, register, bit), has(&v3, leaf, register, bit));
                assert_eq!(found, (false, true), "{leaf:#x} {register:?} {bit}");
            }
            for (leaf, register, bit) in above {
                assert!(
                    !has(&v2, leaf, register, bit) && !has(&v3, leaf, register, bit),
                    "{leaf:#x} {register:?} {bit}"
                );
            }
            let offered = |word: &Word| (word.leaf, word.subleaf, word.register);
            for wanted in MODELS.iter().flat_map(|model| features(*model, Maker::Amd)) {
                let word = WORDS.iter().find(|word| offered(word) == offered(&wanted)).unwrap();
                assert_eq!(
                    wanted.offered & !word.offered,
                    0,
                    "a level has what is offered at all: {:#x}",
                    word.leaf
                );
            }
        }
    }

    #[test]
    fn family_model_stepping_name_and_caches_are_those_of_the_name() {
        let leaf = |entries: &[kvm_cpuid_entry2], function, index| {
            *entries.iter().find(|e| (e.function, e.index) == (function, index)).unwrap()
        };
        let intel = named(CpuModel::X86_64V3, &host(b"GenuineIntel")).unwrap();
        assert_eq!(leaf(&intel, 1, 0).eax, 0x000306c4);
        let amd = named(CpuModel::X86_64V3, &host(b"AuthenticAMD")).unwrap();
        assert_eq!(leaf(&amd, 1, 0).eax, 0x00800f12);
        let name: Vec<u8> = (0x8000_0002..=0x8000_0004)
            .map(|function| leaf(&amd, function, 0))
            .flat_map(|e| [e.eax, e.ebx, e.ecx, e.edx])
            .flat_map(u32::to_le_bytes)
            .take_while(|&byte| byte != 0)
            .collect();
        assert_eq!(name, b"ftd virtual processor, x86-64-v3");
        // Bytes of a cache: ways, partitions, bytes of a line, sets, each less one.
        let bytes = |index| {
            let e = leaf(&intel, 4, index);
            ((e.ebx >> 22) + 1) * (((e.ebx >> 12) & 0x3ff) + 1) * ((e.ebx & 0xfff) + 1) * (e.ecx + 1)
        };
        assert_eq!([0, 1, 2, 3].map(bytes), [32 << 10, 32 << 10, 512 << 10, 16 << 20]);
        assert_eq!(leaf(&amd, 0x8000_0006, 0).ecx >> 16, 512);
        assert_eq!(leaf(&amd, 0x8000_0006, 0).edx >> 18, 32);
    }

    #[test]
    fn a_host_without_the_level_the_maker_or_the_addresses_is_told_so() {
        let lack = named(CpuModel::X86_64V3, &without(host(b"GenuineIntel"), 7, Ebx, 5)).unwrap_err();
        assert_eq!(lack, CpuLack::Features(vec!["avx2".into()]));
        assert!(named(CpuModel::X86_64V2, &without(host(b"GenuineIntel"), 7, Ebx, 5)).is_ok());
        let lack = named(CpuModel::X86_64V2, &host(b"CentaurHauls")).unwrap_err();
        assert_eq!(lack, CpuLack::Maker("CentaurHauls".into()));
        let mut narrow = host(b"GenuineIntel");
        narrow.iter_mut().find(|e| e.function == EXTENDED_MAX).unwrap().eax = 36;
        assert_eq!(named(CpuModel::X86_64V2, &narrow).unwrap_err(), CpuLack::PhysicalBits(36));
    }
}
