//! A machine's behaviour and refusals: stopping in any situation, crashes, power-off and reset, wrong states and
//! guests.

use ft_ram::GuestRam;
use ft_vm::boot::BootError;
use ft_vm::machine::{Machine, MachineError, MachineEvent, cpu_profile};
use ft_vm::spec::EngineKind::{self, Kvm, Soft};
use ft_vm::spec::{Boot, CpuModel, FreestandingImage};
use ft_vm::state::StateError;
use ft_vm::testing::{
    Remember, between, boot_code, content, engines, event, kvm, machine, spec, timeless, wiring,
};
use std::io::Write;

// What the program does is in the page at 0x700000 (written before it runs): 0 spins, 1 idles, 2 faults, 3 powers off,
// 4 resets, 5 reads and writes device registers as fast as it can, counts the turns in RBX by what it reads, and keeps
// the count at 0x701000 and beside it the count by a register of its own; stops with a fault if they differ.
std::arch::global_asm!(
    ".globl acts_start",
    "acts_start:",
    "  mov r14, 0xd0100000",
    "  mov rax, [0x700000]",
    "  cmp rax, 1",
    "  je 3f",
    "  cmp rax, 2",
    "  je 4f",
    "  cmp rax, 3",
    "  je 5f",
    "  cmp rax, 4",
    "  je 6f",
    "  cmp rax, 5",
    "  je 7f",
    "2:",
    "  inc rbx",
    "  jmp 2b",
    "3:",
    "  mov rax, -1",
    "  mov [r14 + 0x08], rax",
    "  inc rbx",
    "  jmp 3b",
    "4:",
    "  ud2",
    "5:",
    "  mov [r14 + 0x10], rax",
    "  mov qword ptr [0x701000], 1",
    "  jmp 2b",
    "6:",
    "  mov [r14 + 0x18], rax",
    "  jmp 2b",
    "7:",
    "  mov r13, [r14 + 0x28]", // the number of vCPUs
    "8:",
    "  mov rcx, [r14 + 0x28]",
    "  add rbx, rcx",
    "  mov [r14 + 0x100], rbx", // nobody there
    "  add r15, r13",
    "  mov [0x701000], rbx",
    "  cmp rbx, r15",
    "  je 8b",
    "  ud2",
    ".globl acts_end",
    "acts_end:",
);

unsafe extern "C" {
    static acts_start: u8;
    static acts_end: u8;
}

const SPIN: u64 = 0;
const IDLE: u64 = 1;
const FAULT: u64 = 2;
const POWER_OFF: u64 = 3;
const RESET: u64 = 4;
const REGISTERS: u64 = 5;

const RAM_BYTES: u64 = 16 << 20;

fn acting(engine: EngineKind, act: u64, vcpus: u8) -> (Machine, GuestRam) {
    let (mut machine, ram, _) = machine(&spec(engine, vcpus, RAM_BYTES));
    act_in(&mut machine, &ram, act);
    (machine, ram)
}

fn act_in(machine: &mut Machine, ram: &GuestRam, act: u64) {
    // SAFETY: the labels enclose this program's assembly above.
    boot_code(machine, &unsafe { between(&raw const acts_start, &raw const acts_end) });
    ram.view().unwrap().write_in_page(0x700, 0, &act.to_le_bytes());
}

fn capture(machine: &mut Machine) -> Vec<u8> {
    let mut state = Vec::new();
    machine.capture(&mut state).unwrap();
    state
}

#[test]
fn a_machine_stops_whatever_its_vcpus_do() {
    for engine in engines("stopping") {
        for act in [SPIN, IDLE, REGISTERS] {
            for vcpus in if engine == Kvm { 1..=3 } else { 1..=1 } {
                let (mut machine, _ram) = acting(engine, act, vcpus);
                for _ in 0..200 {
                    machine.resume().unwrap();
                    assert!(matches!(machine.capture(&mut Vec::new()), Err(MachineError::Running)));
                    machine.pause().unwrap();
                }
                assert_eq!(capture(&mut machine).len(), capture(&mut machine).len());
            }
        }
    }
}

#[test]
fn a_running_machine_can_be_dropped() {
    for engine in engines("dropping") {
        for act in [SPIN, IDLE, FAULT] {
            let (mut machine, _ram) = acting(engine, act, if engine == Kvm { 2 } else { 1 });
            machine.resume().unwrap();
            drop(machine);
        }
    }
}

#[test]
fn registers_are_those_after_the_access_that_was_pending() {
    for engine in engines("pending accesses") {
        // Two machines over the same memory take turns. RBX counts accesses, and goes to memory each time: an access
        // that is lost, doubled or cut off between the two would make the count jump or go back.
        let (mut machine, ram) = acting(engine, REGISTERS, 1);
        let mut other =
            Machine::new(&spec(engine, 1, RAM_BYTES), &ram, wiring(&Remember::default())).unwrap();
        let view = ram.view().unwrap();
        let counted = || {
            let mut page = [0; 4096];
            view.read_page(0x701, &mut page);
            u64::from_le_bytes(page[..8].try_into().unwrap())
        };
        for _ in 0..1000 {
            machine.resume().unwrap();
            machine.pause().unwrap();
            let before = counted();
            other.restore(&capture(&mut machine)).unwrap();
            other.resume().unwrap();
            other.pause().unwrap();
            assert!(machine.events().try_recv().is_err() && other.events().try_recv().is_err());
            assert!(counted() >= before, "the count went back from {before} to {}", counted());
            std::mem::swap(&mut machine, &mut other);
        }
        assert!(counted() > 0);
    }
}

#[test]
fn a_fault_is_reported_with_its_place_and_the_state_is_not_captured() {
    for engine in engines("crash") {
        let (mut machine, ram) = acting(engine, FAULT, if engine == Kvm { 2 } else { 1 });
        machine.resume().unwrap();
        let MachineEvent::Crashed { why, .. } = event(&machine) else { panic!("no crash") };
        // AMD's processors do not keep the place.
        let placed = why.contains("rip 0x2000") || engine == Kvm && why.contains("registers are lost");
        assert!(why.contains("triple fault") && placed, "{why}");
        machine.pause().unwrap();
        assert!(matches!(machine.capture(&mut Vec::new()), Err(MachineError::Crashed { .. })));
        // Running on changes nothing: what has crashed stays where it is.
        for _ in 0..20 {
            machine.resume().unwrap();
            machine.pause().unwrap();
            assert!(matches!(machine.capture(&mut Vec::new()), Err(MachineError::Crashed { .. })));
        }
        // A reset makes it a good machine again.
        act_in(&mut machine, &ram, SPIN);
        machine.resume().unwrap();
        machine.pause().unwrap();
        capture(&mut machine);
    }
}

#[test]
fn a_guest_that_needs_what_the_processor_in_software_lacks_is_told_so_and_it_is_counted() {
    let (mut machine, _ram, _) = machine(&spec(Soft, 1, RAM_BYTES));
    // vaddps xmm0, xmm0, xmm0: AVX, which CPUID does not promise. Nobody handles the #UD.
    boot_code(&mut machine, &[0xc5, 0xf8, 0x58, 0xc0]);
    machine.resume().unwrap();
    let MachineEvent::Crashed { why, .. } = event(&machine) else { panic!("no crash") };
    assert!(why.contains("triple fault") && why.contains("rip 0x200000"), "{why}");
    machine.pause().unwrap();
    assert_eq!(machine.unknown_instructions(), 1);
}

#[test]
fn power_off_and_reset_are_reported_and_the_vcpu_stands_behind_them() {
    for engine in engines("power") {
        for (act, said) in [(POWER_OFF, MachineEvent::PoweredOff), (RESET, MachineEvent::Reset)] {
            let (mut machine, ram) = acting(engine, act, 1);
            machine.resume().unwrap();
            assert_eq!(event(&machine), said);
            machine.pause().unwrap();
            assert!(content(&ram).iter().all(|(index, _)| *index != 0x701), "it went on");
            capture(&mut machine);
        }
    }
}

#[test]
fn a_reset_machine_has_the_memory_and_the_state_of_a_fresh_one() {
    for engine in engines("reset") {
        let (mut machine, ram) = acting(engine, REGISTERS, 1);
        machine.resume().unwrap();
        while content(&ram).iter().all(|(index, _)| *index != 0x701) {
            std::thread::yield_now();
        }
        machine.pause().unwrap();
        machine.start_dirty_log().unwrap();
        act_in(&mut machine, &ram, SPIN);
        let mut dirty = Vec::new();
        machine.harvest(&mut dirty).unwrap();
        assert!(dirty.contains(&0x701), "the clearing is in the dirty log");
        let (_fresh, fresh_ram) = acting(engine, SPIN, 1);
        assert!(content(&ram) == content(&fresh_ram));
    }
}

#[test]
fn a_state_is_refused_by_a_machine_of_another_shape_and_does_no_harm() {
    if !kvm("wrong state") {
        return;
    }
    let (mut two, _ram) = acting(Kvm, SPIN, 2);
    let state = capture(&mut two);
    let (mut one, _one_ram) = acting(Kvm, SPIN, 1);
    assert!(matches!(one.restore(&state), Err(StateError::Spec { field: "vcpus", .. })));
    assert!(matches!(one.restore(b"nonsense"), Err(StateError::TooShort(8))));
    one.resume().unwrap();
    assert!(matches!(one.restore(&state), Err(StateError::Running)));
    one.pause().unwrap();
    capture(&mut one);
}

#[test]
fn an_unchanged_machine_has_an_unchanged_state_but_for_time() {
    for engine in engines("restored state") {
        let vcpus = if engine == Kvm { 2 } else { 1 };
        let (mut machine, _ram) = acting(engine, SPIN, vcpus);
        machine.resume().unwrap();
        machine.pause().unwrap();
        let before = capture(&mut machine);
        let (mut other, _other_ram, _) = ft_vm::testing::machine(&spec(engine, vcpus, RAM_BYTES));
        other.restore(&before).unwrap();
        let after = capture(&mut other);
        assert!(engine == Kvm || before == after, "virtual time stands still, too");
        let [before, after] = [before, after].map(|state| timeless(&state));
        assert_eq!(before.len(), after.len());
        let differing = before.iter().zip(&after).filter(|(a, b)| a != b).count();
        assert!(differing < 40, "{differing} bytes differ: more than checksum, clocks and counters");
    }
}

#[test]
fn a_state_of_the_other_engine_is_refused_by_name() {
    let (mut soft, _ram) = acting(Soft, SPIN, 1);
    let state = capture(&mut soft);
    if kvm("the other engine's state") {
        let (mut hardware, _ram) = acting(Kvm, SPIN, 1);
        assert!(matches!(hardware.restore(&state), Err(StateError::Spec { field: "engine", .. })));
        let state = capture(&mut hardware);
        assert!(matches!(soft.restore(&state), Err(StateError::Spec { field: "engine", .. })));
        assert!(matches!(hardware.start_recording(), Err(MachineError::Engine { engine: Kvm, .. })));
    }
}

#[test]
fn machines_that_cannot_be_are_refused_by_name() {
    let ram = GuestRam::new(RAM_BYTES).unwrap();
    let new = |spec| Machine::new(&spec, &ram, wiring(&Remember::default())).err().unwrap().to_string();
    assert!(new(spec(Soft, 2, RAM_BYTES)).contains("2 vCPUs: the engine \"soft\" has exactly one"));
    assert!(new(spec(Soft, 0, RAM_BYTES)).starts_with("0 vCPUs"));
    assert!(new(spec(Soft, 1, 2 * RAM_BYTES)).contains("33554432 bytes of RAM"));
    if kvm("refusals") {
        assert!(new(spec(Kvm, 0, RAM_BYTES)).starts_with("0 vCPUs"));
        assert!(new(spec(Kvm, 65, RAM_BYTES)).starts_with("65 vCPUs"));
        assert!(new(spec(Kvm, 1, 2 * RAM_BYTES)).contains("33554432 bytes of RAM"));
    }
}

#[test]
fn a_machine_without_a_guest_is_not_resumed() {
    for engine in engines("nothing to run") {
        let (mut machine, _ram, _) = ft_vm::testing::machine(&spec(engine, 1, RAM_BYTES));
        assert!(matches!(machine.resume(), Err(MachineError::Incomplete)));
    }
}

#[test]
fn guests_that_cannot_be_booted_are_refused_by_name() {
    for engine in engines("wrong guests") {
        let (mut machine, _ram, _) = ft_vm::testing::machine(&spec(engine, 1, RAM_BYTES));
        let file = |content: &[u8]| {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(content).unwrap();
            file
        };
        let mut linux = |kernel: &std::path::Path, initrd: Option<&std::path::Path>, cmdline: &str| {
            let (kernel, initrd) = (kernel.to_owned(), initrd.map(Into::into));
            machine.boot(&Boot::Linux { kernel, initrd, cmdline: cmdline.into() }).unwrap_err()
        };
        let missing = std::path::Path::new("/nonexistent/kernel");
        assert!(linux(missing, None, "").to_string().contains("cannot read the kernel /nonexistent/kernel"));
        for content in [&b""[..], b"abc", &[7; 5000], b"\x7fELF", &[0x7f; 64]] {
            let error = linux(file(content).path(), None, "");
            assert!(matches!(error, BootError::NotAKernel { .. }), "{error}");
        }
        assert!(matches!(linux(missing, None, &"x".repeat(5000)), BootError::CmdlineTooLong(_)));
        assert!(matches!(linux(missing, None, "a\0b"), BootError::CmdlineNul));
        let kernel = file(&ft_vm::testing::elf(&[0x90; 100]));
        assert!(matches!(linux(kernel.path(), Some(missing), ""), BootError::Read { what: "initramfs", .. }));
        let large = file(&[]);
        large.as_file().set_len(RAM_BYTES).unwrap();
        assert!(matches!(
            linux(kernel.path(), Some(large.path()), ""),
            BootError::TooLarge { what: "initramfs", .. }
        ));
        let mut huge = ft_vm::testing::elf(&[0x90; 100]);
        huge[64 + 40..64 + 48].copy_from_slice(&(64u64 << 20).to_le_bytes());
        assert!(matches!(linux(file(&huge).path(), None, ""), BootError::TooLarge { what: "kernel", .. }));

        let mut program = |content: &[u8]| {
            let file = file(content);
            let image = FreestandingImage::File(file.path().to_owned());
            machine.boot(&Boot::Freestanding { image, cmdline: String::new() }).unwrap_err()
        };
        assert!(matches!(program(b"#!/bin/sh"), BootError::NotAProgram { .. }));
        assert!(matches!(program(&huge), BootError::TooLarge { what: "program", .. }));
        let mut low = ft_vm::testing::elf(&[0x90; 100]);
        low[64 + 16..64 + 24].copy_from_slice(&0u64.to_le_bytes());
        low[24..32].copy_from_slice(&0u64.to_le_bytes());
        assert!(program(&low).to_string().contains("below 0x106000"));
    }
}

#[test]
fn a_host_can_resume_from_itself() {
    if !kvm("CPU profile") {
        return;
    }
    let host = cpu_profile(CpuModel::Host).unwrap();
    eprintln!("{host:?}");
    host.can_resume_from(&cpu_profile(CpuModel::Host).unwrap()).unwrap();
}
