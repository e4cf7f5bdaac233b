//! The processor's description of itself: exactly the implemented features, as an AMD processor of family 0xf, which is
//! the plainest 64-bit machine that kernels know how to run on (no Meltdown, no microcode, no errata that ask for
//! MSRs).

use crate::cpu::Cpu;
use crate::op::{Op, Step};
use crate::time::TSC_KHZ;

/// Register of a CPUID leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}
use Register::{Eax, Ebx, Ecx, Edx};

/// A feature that is offered, and the bit that says so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Feature {
    pub name: &'static str,
    pub leaf: u32,
    pub register: Register,
    pub bit: u32,
}

const fn feature(name: &'static str, leaf: u32, register: Register, bit: u32) -> Feature {
    Feature { name, leaf, register, bit }
}

const EXTENDED: u32 = 0x8000_0000;
const HYPERVISOR: u32 = 0x4000_0000;

/// Everything that is offered and has a bit. Bits that are not here are zero.
pub(crate) const FEATURES: &[Feature] = &[
    feature("fpu", 1, Edx, 0),
    feature("de", 1, Edx, 2),
    feature("pse", 1, Edx, 3),
    feature("tsc", 1, Edx, 4),
    feature("msr", 1, Edx, 5),
    feature("pae", 1, Edx, 6),
    feature("cx8", 1, Edx, 8),
    feature("apic", 1, Edx, 9),
    feature("mtrr", 1, Edx, 12),
    feature("pge", 1, Edx, 13),
    feature("cmov", 1, Edx, 15),
    feature("pat", 1, Edx, 16),
    feature("clflush", 1, Edx, 19),
    feature("mmx", 1, Edx, 23),
    feature("fxsr", 1, Edx, 24),
    feature("sse", 1, Edx, 25),
    feature("sse2", 1, Edx, 26),
    feature("cx16", 1, Ecx, 13),
    feature("popcnt", 1, Ecx, 23),
    feature("tsc_deadline_timer", 1, Ecx, 24),
    feature("hypervisor", 1, Ecx, 31),
    // The LAPIC's timer does not stop in hlt.
    feature("arat", 6, Eax, 2),
    feature("tsc_adjust", 7, Ebx, 1),
    // A repeated string instruction is the fastest way to move memory here.
    feature("erms", 7, Ebx, 9),
    // AMD repeats leaf 1's.
    feature("fpu", EXTENDED + 1, Edx, 0),
    feature("de", EXTENDED + 1, Edx, 2),
    feature("pse", EXTENDED + 1, Edx, 3),
    feature("tsc", EXTENDED + 1, Edx, 4),
    feature("msr", EXTENDED + 1, Edx, 5),
    feature("pae", EXTENDED + 1, Edx, 6),
    feature("cx8", EXTENDED + 1, Edx, 8),
    feature("apic", EXTENDED + 1, Edx, 9),
    feature("syscall", EXTENDED + 1, Edx, 11),
    feature("mtrr", EXTENDED + 1, Edx, 12),
    feature("pge", EXTENDED + 1, Edx, 13),
    feature("cmov", EXTENDED + 1, Edx, 15),
    feature("pat", EXTENDED + 1, Edx, 16),
    feature("nx", EXTENDED + 1, Edx, 20),
    feature("mmx", EXTENDED + 1, Edx, 23),
    feature("fxsr", EXTENDED + 1, Edx, 24),
    feature("pdpe1gb", EXTENDED + 1, Edx, 26),
    feature("rdtscp", EXTENDED + 1, Edx, 27),
    feature("lm", EXTENDED + 1, Edx, 29),
    feature("lahf_lm", EXTENDED + 1, Ecx, 0),
    // fxsave and fxrstor always move the last x87 instruction's pointers.
    feature("xsaveerptr", EXTENDED + 8, Ebx, 2),
    feature("invariant_tsc", EXTENDED + 7, Edx, 8),
    feature("lfence_serialising", EXTENDED + 0x21, Eax, 2),
    feature("null_selector_clears_base", EXTENDED + 0x21, Eax, 6),
];

const VENDOR: &[u8; 12] = b"AuthenticAMD";
const HYPERVISOR_NAME: &[u8; 12] = b"ftdSoftEngin";
const BRAND: &[u8; 48] = b"ftd deterministic software processor\0\0\0\0\0\0\0\0\0\0\0\0";
/// Family 0xf, model 0x6b, stepping 1.
const SIGNATURE: u32 = 0x0006_0fb1;
const BASIC_MAX: u32 = 0x15;
const EXTENDED_MAX: u32 = EXTENDED + 0x21;

fn word(text: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| text.get(at + i).copied().unwrap_or(0)))
}

/// EAX, EBX, ECX, EDX of a leaf. `apic` is whether the local APIC is enabled in its base register.
pub(crate) fn leaf(leaf: u32, subleaf: u32, apic: bool) -> [u32; 4] {
    let mut out = match leaf {
        0 => [BASIC_MAX, word(VENDOR, 0), word(VENDOR, 8), word(VENDOR, 4)],
        // EBX: 64-byte lines for clflush, one logical processor, APIC identity 0.
        1 => [SIGNATURE, 8 << 8 | 1 << 16, 0, 0],
        // TSC ticks for a crystal's tick, and the crystal's frequency.
        0x15 => [1, 1, TSC_KHZ * 1000, 0],
        HYPERVISOR => {
            [HYPERVISOR, word(HYPERVISOR_NAME, 0), word(HYPERVISOR_NAME, 4), word(HYPERVISOR_NAME, 8)]
        }
        EXTENDED => [EXTENDED_MAX, word(VENDOR, 0), word(VENDOR, 8), word(VENDOR, 4)],
        0x8000_0001 => [SIGNATURE, 0, 0, 0],
        0x8000_0002..=0x8000_0004 => {
            let at = (leaf - 0x8000_0002) as usize * 16;
            [word(BRAND, at), word(BRAND, at + 4), word(BRAND, at + 8), word(BRAND, at + 12)]
        }
        // Caches, which decide how much userland copies at once: 64 KiB each of L1, 2-way, 64-byte lines; 512 KiB of
        // L2, 16-way. TLBs of some size.
        0x8000_0005 => [0x01ff_01ff, 0x01ff_01ff, 0x4002_0140, 0x4002_0140],
        0x8000_0006 => [0, 0x4200_4200, 0x0200_8140, 0],
        0x8000_0008 => [48 << 8 | super::state::PHYSICAL_BITS, 0, 0, 0],
        _ => [0; 4],
    };
    if subleaf == 0 || leaf != 7 {
        for feature in FEATURES.iter().filter(|feature| feature.leaf == leaf) {
            if feature.name == "apic" && !apic {
                continue;
            }
            out[feature.register as usize] |= 1 << feature.bit;
        }
    }
    out
}

pub(super) fn cpuid(cpu: &mut Cpu, _: &Op) -> Step {
    let apic = cpu.bus.apic_base() & 1 << 11 != 0;
    let [eax, ebx, ecx, edx] = leaf(cpu.regs[0] as u32, cpu.regs[1] as u32, apic);
    cpu.regs[0] = eax.into();
    cpu.regs[3] = ebx.into();
    cpu.regs[1] = ecx.into();
    cpu.regs[2] = edx.into();
    Ok(())
}
