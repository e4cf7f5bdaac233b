//! docs/processor.md says of every part of a vCPU's state where it goes. Here it is held against what the KVM of this
//! host has: a register, a component or an ability that is not in its tables is named.

use ft_ram::GuestRam;
use ft_vm::machine::{Machine, cpu_profile};
use ft_vm::spec::{CpuModel, EngineKind, MachineSpec};
use ft_vm::testing::{Remember, between, boot_code, captured_msrs, is_kvm_emulated, kvm, spec, wiring};
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::Kvm;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use vm_memory::{Bytes, GuestAddress};

const TABLES: &str = include_str!("../../docs/processor.md");
const RAM_BYTES: u64 = 16 << 20;
/// Higher numbers than any kernel has.
const CAPABILITIES: std::ops::Range<u32> = 0..400;

/// A row: what its first cell names, and its last one.
type Row = (Vec<RangeInclusive<u32>>, &'static str);

/// The rows of the table in the section of this title.
fn rows(title: &str) -> Vec<Row> {
    let section = TABLES.split("\n## ").find(|section| section.starts_with(title)).expect("a section");
    let lines = section.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let rows: Vec<Row> = lines
        .filter_map(|line| {
            let (first, last) = (line.split(" | ").next()?, line.rsplit(" | ").next()?);
            let ranges: Option<Vec<_>> = first.split(", ").map(range).collect();
            Some((ranges?, last))
        })
        .collect();
    assert!(rows.len() > 3, "no table in {title}");
    rows
}

fn range(text: &str) -> Option<RangeInclusive<u32>> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    match text.split_once('-') {
        Some((from, to)) => Some(number(from)?..=number(to)?),
        None => number(text).map(|one| one..=one),
    }
}

/// What a table says of this number.
fn said(rows: &[Row], number: u32) -> Option<&'static str> {
    let row = rows.iter().find(|(ranges, _)| ranges.iter().any(|range| range.contains(&number)));
    row.map(|(_, last)| *last)
}

#[test]
fn no_number_is_in_two_rows_and_every_row_says_one_of_the_known_words() {
    for title in ["Model-specific registers", "XSAVE components"] {
        let rows = rows(title);
        let all: Vec<_> = rows.iter().flat_map(|(ranges, _)| ranges).collect();
        for (at, one) in all.iter().enumerate() {
            assert!(!one.is_empty(), "{one:#x?}");
            let twice = all[at + 1..].iter().find(|two| one.start() <= two.end() && two.start() <= one.end());
            assert!(twice.is_none(), "{one:#x?} and {twice:#x?}");
        }
        for (ranges, says) in rows {
            let words = ["always", "with its feature", "elsewhere: ", "constant", "not offered"];
            assert!(words.iter().any(|word| says.starts_with(word)), "{ranges:#x?}: {says}");
        }
    }
}

#[test]
fn every_register_of_kvms_lists_is_in_the_table_and_those_that_are_always_there_are_captured() {
    if !kvm("the table of model-specific registers") {
        return;
    }
    let rows = rows("Model-specific registers");
    let kvm = Kvm::new().unwrap();
    let listed = kvm.get_msr_index_list().unwrap().as_slice().to_vec();
    let features = kvm.get_msr_feature_index_list().unwrap().as_slice().to_vec();
    let captured: BTreeSet<u32> = captured_msrs().into_iter().collect();
    let all: BTreeSet<u32> = listed.iter().chain(&features).chain(&captured).copied().collect();
    let unknown: Vec<_> = all.iter().filter(|msr| said(&rows, **msr).is_none()).collect();
    let (count, held) = (all.len(), captured.len());
    eprintln!("{count} registers in KVM's lists and beside them, {held} of them are captured");
    assert!(unknown.is_empty(), "nobody has said in docs/processor.md what becomes of {unknown:#x?}");
    let forgotten: Vec<_> =
        listed.iter().filter(|msr| said(&rows, **msr) == Some("always") && !captured.contains(msr)).collect();
    assert!(forgotten.is_empty(), "docs/processor.md says that these are captured: {forgotten:#x?}");
    let elsewhere: Vec<_> = captured
        .iter()
        .filter(|msr| said(&rows, **msr).is_some_and(|says| says.starts_with("elsewhere")))
        .collect();
    assert!(elsewhere.is_empty(), "docs/processor.md says that others capture these: {elsewhere:#x?}");
}

#[test]
fn every_component_of_the_extended_state_that_kvm_has_is_in_the_table() {
    if !kvm("the table of XSAVE components") {
        return;
    }
    let rows = rows("XSAVE components");
    let supported = Kvm::new().unwrap().get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
    let leaf = |index| supported.as_slice().iter().find(|e| (e.function, e.index) == (0xd, index));
    let (user, supervisor) = (leaf(0), leaf(1));
    let bits = user.map_or(0, |e| u64::from(e.eax) | u64::from(e.edx) << 32)
        | supervisor.map_or(0, |e| u64::from(e.ecx) | u64::from(e.edx) << 32);
    let components = (0..64).filter(|bit| bits & 1 << bit != 0);
    let unknown: Vec<_> = components.filter(|component| said(&rows, *component).is_none()).collect();
    assert!(
        unknown.is_empty(),
        "nobody has said in docs/processor.md what becomes of components {unknown:?}"
    );
}

#[test]
fn every_ability_of_kvm_is_known_to_have_state_that_is_captured_or_none() {
    if !kvm("the table of KVM's capabilities") {
        return;
    }
    let rows = [rows("All other state"), rows("Capabilities without state")].concat();
    let kvm = Kvm::new().unwrap();
    let present = CAPABILITIES.filter(|cap| kvm.check_extension_raw((*cap).into()) > 0);
    let unknown: Vec<_> = present.filter(|cap| said(&rows, *cap).is_none()).collect();
    assert!(unknown.is_empty(), "nobody has said in docs/processor.md what state these have: {unknown:?}");
}

// What the guest is told goes to 0x700000: leaf 1's EAX and ECX, leaf 7's EBX, one, and leaf 0x80000002.
std::arch::global_asm!(
    ".globl tell_start",
    "tell_start:",
    "  mov edi, 0x700000",
    "  mov eax, 1",
    "  cpuid",
    "  mov [rdi], eax",
    "  mov [rdi + 4], ecx",
    "  mov eax, 7",
    "  xor ecx, ecx",
    "  cpuid",
    "  mov [rdi + 8], ebx",
    "  mov eax, 0x80000002",
    "  cpuid",
    "  mov [rdi + 16], eax",
    "  mov [rdi + 20], ebx",
    "  mov [rdi + 24], ecx",
    "  mov [rdi + 28], edx",
    "  mov dword ptr [rdi + 12], 1",
    "2:",
    "  pause",
    "  jmp 2b",
    ".globl tell_end",
    "tell_end:",
);

unsafe extern "C" {
    static tell_start: u8;
    static tell_end: u8;
}

/// Leaves the machine paused in the midst of its program.
fn sees_what_its_name_says(machine: &mut Machine, ram: &GuestRam, model: CpuModel) {
    // SAFETY: the labels enclose this program's assembly above.
    boot_code(machine, &unsafe { between(&raw const tell_start, &raw const tell_end) });
    machine.resume().unwrap();
    let word = |at: u64| ram.memory().read_obj::<u32>(GuestAddress(0x70_0000 + at)).unwrap();
    while word(12) == 0 {
        std::thread::yield_now();
    }
    machine.pause().unwrap();
    if is_kvm_emulated() {
        eprintln!(
            "SKIPPED what the guest sees of {model}: its program executes CPUID on the host's processor here"
        );
        return;
    }
    let v3 = model == CpuModel::X86_64V3;
    // OSXSAVE is the guest's own doing.
    let ecx = if v3 { 0xb5f8_3201 } else { 0x81b8_2201 };
    assert_eq!(word(4) & !(1 << 27), ecx, "{:#x}", word(4));
    assert_eq!(word(8), if v3 { 0x128 } else { 0 });
    let name: Vec<u8> = [16, 20, 24, 28].into_iter().flat_map(|at| word(at).to_le_bytes()).collect();
    assert_eq!(name, b"ftd virtual proc");
    let signatures = if v3 { [0x306c4, 0x80_0f12] } else { [0x106a3, 0x60_0f20] };
    assert!(signatures.contains(&word(0)), "{:#x}", word(0));
}

#[test]
fn a_named_processor_is_shown_and_moved_or_refused_with_what_the_host_lacks() {
    if !kvm("named processors") {
        return;
    }
    for (model, lacked) in [(CpuModel::X86_64V2, "sse"), (CpuModel::X86_64V3, "avx")] {
        let spec = MachineSpec { cpu: model, ..spec(EngineKind::Kvm, 2, RAM_BYTES) };
        let ram = GuestRam::new(RAM_BYTES).unwrap();
        let made = Machine::new(&spec, &ram, wiring(&Remember::default()));
        match (made, cpu_profile(model)) {
            (Ok(mut machine), Ok(profile)) => {
                eprintln!("{model} is shown: family {}, model {}", profile.family, profile.model);
                assert_eq!(profile.physical_bits, 39);
                sees_what_its_name_says(&mut machine, &ram, model);
                let mut state = Vec::new();
                machine.capture(&mut state).unwrap();
                let scratch = ram.private_copy().unwrap();
                let mut scratch = Machine::new(&spec, &scratch, wiring(&Remember::default())).unwrap();
                scratch.rehearse(&state).unwrap();
                let other = MachineSpec { cpu: CpuModel::Host, ..spec };
                let ram = GuestRam::new(RAM_BYTES).unwrap();
                let mut other = Machine::new(&other, &ram, wiring(&Remember::default())).unwrap();
                let refusal = other.restore(&state).unwrap_err().to_string();
                assert!(refusal.contains("cpu"), "{refusal}");
            }
            (Err(refusal), Err(profile)) => {
                let (refusal, profile) = (refusal.to_string(), profile.to_string());
                eprintln!("{refusal}");
                assert_eq!(refusal, profile, "the machine and the handshake say the same");
                assert!(refusal.starts_with(&format!("cpu = \"{model}\"")), "{refusal}");
                assert!(refusal.contains("it lacks ") || refusal.contains("it is a "), "{refusal}");
                assert!(!refusal.contains("it lacks ") || refusal.contains(lacked), "{refusal}");
            }
            (made, profile) => panic!("{model}: {:?}, {:?}", made.err(), profile),
        }
    }
    let soft = MachineSpec { cpu: CpuModel::X86_64V2, ..spec(EngineKind::Soft, 1, RAM_BYTES) };
    let ram = GuestRam::new(RAM_BYTES).unwrap();
    let refusal = Machine::new(&soft, &ram, wiring(&Remember::default())).err().unwrap().to_string();
    assert!(refusal.contains("the engine \"soft\" has a processor of its own"), "{refusal}");
}
