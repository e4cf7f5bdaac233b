//! CPUID, and the refusal of all that it does not offer.

use super::*;
use crate::exec;
use crate::exec::system::cpuid::{FEATURES, Feature, leaf};
use crate::kind::Kind;
use crate::op::Op;
use iced_x86::{CpuidFeature, Decoder, DecoderOptions, Mnemonic};
use std::collections::BTreeSet;

#[test]
fn cpuid_promises_what_is_offered_and_no_more() {
    assert_eq!(leaf(0, 0, true)[1].to_le_bytes(), *b"Auth");
    for (index, feature) in FEATURES.iter().enumerate() {
        assert_ne!(
            leaf(feature.leaf, 0, true)[feature.register as usize] >> feature.bit & 1,
            0,
            "{}",
            feature.name
        );
        let same =
            |f: &&Feature| (f.leaf, f.register, f.bit) == (feature.leaf, feature.register, feature.bit);
        assert_eq!(FEATURES.iter().filter(same).count(), 1, "{index}");
    }
    // What iced-x86 calls a bit of leaf 1 and the decoder is to accept, and the other way round.
    use CpuidFeature as F;
    let has = |name: &str| FEATURES.iter().any(|feature| feature.name == name);
    for (feature, name) in [
        (F::FPU, "fpu"),
        (F::MSR, "msr"),
        (F::TSC, "tsc"),
        (F::CX8, "cx8"),
        (F::CMOV, "cmov"),
        (F::CLFSH, "clflush"),
        (F::MMX, "mmx"),
        (F::FXSR, "fxsr"),
        (F::SSE, "sse"),
        (F::SSE2, "sse2"),
        (F::CMPXCHG16B, "cx16"),
        (F::POPCNT, "popcnt"),
        (F::SYSCALL, "syscall"),
        (F::RDTSCP, "rdtscp"),
        (F::X64, "lm"),
        (F::SSE3, "sse3"),
        (F::SSSE3, "ssse3"),
        (F::SSE4_1, "sse4_1"),
        (F::SSE4_2, "sse4_2"),
        (F::AVX, "avx"),
        (F::XSAVE, "xsave"),
        (F::MONITOR, "monitor"),
        (F::RDRAND, "rdrand"),
        (F::RDSEED, "rdseed"),
        (F::FSGSBASE, "fsgsbase"),
        (F::SMAP, "smap"),
        (F::INVPCID, "invpcid"),
        (F::BMI1, "bmi1"),
        (F::LZCNT, "lzcnt"),
        (F::MOVBE, "movbe"),
        (F::SEP, "sep"),
        (F::D3NOW, "3dnow"),
    ] {
        assert_eq!(offers(feature), has(name), "{name}");
    }
    assert_eq!(leaf(1, 0, false)[3] >> 9 & 1, 0, "no local APIC when it is disabled");
    assert_eq!(leaf(7, 1, true), [0; 4]);
    assert_eq!(leaf(0x1234, 0, true), [0; 4]);
    let guest = Guest::new(&assemble!("mov eax, 0x80000008", "cpuid", "hlt")).user();
    let guest = guest.expect_error(vector::GP, 0);
    assert_eq!(guest.cpu.regs[0], 0x3028);
}

/// What the whole engine takes is of instruction sets that CPUID offers, or raises #UD: by all opcodes of all maps,
/// with each prefix that selects among instructions and each form of operand.
#[test]
fn nothing_is_accepted_that_cpuid_does_not_offer() {
    let prefixes: [&[u8]; 4] = [&[], &[0x66], &[0xf3], &[0xf2]];
    let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    let rex: [&[u8]; 2] = [&[], &[0x48]];
    let mut wrong = BTreeSet::new();
    for (prefix, rex, map) in combinations(prefixes, rex, maps) {
        for opcode in 0..=255 {
            // Registers in all places, and memory at [rax] for each of the eight middle fields.
            for modrm in (0xc0..=0xff).chain((0..8).map(|reg| reg << 3)) {
                let bytes = [prefix, rex, map, &[opcode, modrm, 0, 0, 0, 0, 0, 0, 0, 0][..]].concat();
                let instruction = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
                let features = instruction.cpuid_features();
                if instruction.is_invalid() || features.iter().all(|&feature| offers(feature)) {
                    continue;
                }
                let mut op = Op::of(Kind::Undefined, 0);
                let accepted = exec::lower(&instruction, &mut op) && op.kind != Kind::Undefined;
                if accepted && !OLDER_MEANING.contains(&instruction.mnemonic()) {
                    wrong.insert(format!("{:?} needs {features:?}", instruction.code()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Encodings that do something else on processors without the feature, and so they do here: tzcnt and lzcnt are bsf and
/// bsr, the others do nothing.
const OLDER_MEANING: &[Mnemonic] = &[
    Mnemonic::Tzcnt,
    Mnemonic::Lzcnt,
    Mnemonic::Rdsspd,
    Mnemonic::Rdsspq,
    Mnemonic::Cldemote,
    Mnemonic::Prefetchit0,
    Mnemonic::Prefetchit1,
    Mnemonic::Prefetchwt1,
];

/// Every combination of the three.
fn combinations<'a>(
    first: [&'a [u8]; 4],
    second: [&'a [u8]; 2],
    third: [&'a [u8]; 4],
) -> impl Iterator<Item = (&'a [u8], &'a [u8], &'a [u8])> {
    (0..32).map(move |index| (first[index & 3], second[index >> 2 & 1], third[index >> 3]))
}

/// Whether the instruction set that iced-x86 names so is offered: nothing else is to be executed.
fn offers(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::INTEL8086
            | F::INTEL8086_ONLY
            | F::INTEL186
            | F::INTEL286
            | F::INTEL286_ONLY
            | F::INTEL386
            | F::INTEL386_ONLY
            | F::INTEL486
            | F::X64
            | F::CPUID
            | F::MULTIBYTENOP
            | F::PAUSE
            | F::CLFSH
            | F::CMOV
            | F::CX8
            | F::CMPXCHG16B
            | F::FPU
            | F::FPU287
            | F::FPU387
            | F::FXSR
            | F::MMX
            | F::MSR
            | F::POPCNT
            | F::RDTSCP
            | F::RDPMC
            | F::SSE
            | F::SSE2
            | F::SYSCALL
            | F::TSC
            // No-operations on every processor that does not know them.
            | F::CET_IBT
            | F::PREFETCHW
    )
}
