//! A machine that is captured at many random points and goes on in a fresh machine of another process ends with the
//! output and the memory of one that ran undisturbed.

use ft_ram::{GuestRam, PageIndex};
use ft_vm::machine::{Machine, MachineEvent};
use ft_vm::spec::{EngineKind, MachineSpec};
use ft_vm::testing::{Remember, between, boot_code, content, engines, event, machine, spec, wiring};
use rand::{Rng, SeedableRng};
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

// Mixes integers, SSE and memory (2 MiB for each vCPU), with port-free device accesses in between: the number of vCPUs
// is read by MMIO and flows into the result, and a character goes to the console. Each vCPU counts its turns at
// `TURNS_AT`. At the end the registers go to memory, and the first vCPU powers off when the others are done.
std::arch::global_asm!(
    ".globl mix_start",
    "mix_start:",
    "  mov r14, 0xd0100000", // the platform device
    "  lea r12, [rdi + 4]",
    "  shl r12, 21", // this vCPU's memory: 8 MiB + index * 2 MiB
    "  movabs rbx, 0x9e3779b97f4a7c15",
    "  add rbx, rdi",
    "  lea r15, [0x701000 + rdi * 8]", // this vCPU's count of turns
    "  mov r13d, 10000000",
    "  mov eax, 3",
    "  cvtsi2sd xmm3, eax",
    "  movq xmm5, rbx",
    "  pxor xmm1, xmm1",
    "  pxor xmm4, xmm4",
    "2:",
    "  mov rax, rbx",
    "  shl rax, 13",
    "  xor rbx, rax",
    "  mov rax, rbx",
    "  shr rax, 7",
    "  xor rbx, rax",
    "  mov rax, rbx",
    "  shl rax, 17",
    "  xor rbx, rax",
    "  mov rcx, rbx",
    "  and rcx, 0x1ffff0",
    "  add [r12 + rcx], rbx",
    "  cvtsi2sd xmm0, ebx",
    "  divsd xmm0, xmm3",
    "  addsd xmm1, xmm0",
    "  paddq xmm4, xmm5",
    "  pshufd xmm5, xmm5, 0x93",
    "  movq rdx, xmm1",
    "  xor [r12 + rcx + 8], rdx",
    "  test r13d, 0xfff",
    "  jnz 3f",
    "  add rbx, [r14 + 0x28]", // read: number of vCPUs
    "  test r13d, 0x3ffff",
    "  jnz 3f",
    "  mov al, bl",
    "  and al, 15",
    "  add al, 'a'",
    "  mov [r14 + 0x20], al", // write: a character
    "3:",
    "  inc qword ptr [r15]",
    "  dec r13d",
    "  jnz 2b",
    "  mov [r12], rbx",
    "  movdqu [r12 + 16], xmm1",
    "  movdqu [r12 + 32], xmm4",
    "  movdqu [r12 + 48], xmm5",
    "  lock inc qword ptr [0x700000]",
    "  test rdi, rdi",
    "  jnz 5f",
    "  mov rcx, [r14 + 0x28]",
    "4:",
    "  pause",
    "  cmp [0x700000], rcx",
    "  jb 4b",
    "  mov [r14 + 0x10], rax", // power off
    "5:",
    "  mov eax, 1000",
    "  mov [r14 + 0x08], rax", // idle
    "  jmp 5b",
    ".globl mix_end",
    "mix_end:",
);

unsafe extern "C" {
    static mix_start: u8;
    static mix_end: u8;
}

const RAM_BYTES: u64 = 16 << 20;
/// Where the vCPUs count their turns, eight bytes each.
const TURNS_AT: u64 = 0x70_1000;
/// Turns of each vCPU on KVM and on the software engine, which would take minutes for as many in a debug build.
const TURNS_KVM: u32 = 10_000_000;
const TURNS_SOFT: u32 = 600_000;
const LEGS_MIN: usize = 40;
/// A journey's legs if each ended at once where it was to end.
const GOALS: u64 = 60;
/// No machine is so slow that a guest that gets on needs so long for a leg.
const LEG_MAX: Duration = Duration::from_secs(300);
/// Set for the process that takes the machine one leg further: where the files are.
const LEG: &str = "FTD_TEST_LEG";

/// Turns of each vCPU.
fn turns(engine: EngineKind) -> u32 {
    match engine {
        EngineKind::Kvm => TURNS_KVM,
        EngineKind::Soft => TURNS_SOFT,
    }
}

/// The program, with as many turns as the engine makes.
fn mix(engine: EngineKind) -> Vec<u8> {
    // SAFETY: the labels enclose this program's assembly above.
    let mut code = unsafe { between(&raw const mix_start, &raw const mix_end) };
    let at = code.windows(4).position(|bytes| bytes == TURNS_KVM.to_le_bytes()).expect("mov r13d, turns");
    code[at..at + 4].copy_from_slice(&turns(engine).to_le_bytes());
    code
}

/// Turns that all vCPUs have made together.
fn turns_made(spec: &MachineSpec, ram: &GuestRam) -> u64 {
    let counts = (0..spec.vcpus).map(|vcpu| GuestAddress(TURNS_AT + u64::from(vcpu) * 8));
    counts.map(|at| ram.memory().read_obj::<u64>(at).unwrap()).sum()
}

fn save(dir: &Path, spec: &MachineSpec, ram: &GuestRam, state: &[u8]) {
    let mut file = std::io::BufWriter::new(std::fs::File::create(dir.join("memory")).unwrap());
    for (index, page) in content(ram) {
        file.write_all(&index.to_le_bytes()).unwrap();
        file.write_all(&page[..]).unwrap();
    }
    file.flush().unwrap();
    std::fs::write(dir.join("state"), state).unwrap();
    std::fs::write(dir.join("shape"), [spec.vcpus, u8::from(spec.engine == EngineKind::Soft)]).unwrap();
}

fn load(dir: &Path, ram: &GuestRam) {
    let view = ram.view().unwrap();
    let mut file = std::io::BufReader::new(std::fs::File::open(dir.join("memory")).unwrap());
    let mut index = [0; 4];
    let mut page = [0; 4096];
    while file.read_exact(&mut index).is_ok() {
        file.read_exact(&mut page).unwrap();
        view.write_page(PageIndex::from_le_bytes(index), &page);
    }
}

/// Lets the guest run for about so many turns, or to its end; whether it has ended.
///
/// A leg is measured in turns and not in time: where first touches are dear, a few milliseconds hold nothing else.
fn run_turns(machine: &mut Machine, spec: &MachineSpec, ram: &GuestRam, turns: u64) -> bool {
    let goal = turns_made(spec, ram) + turns;
    let begin = Instant::now();
    let ended = |event| match event {
        MachineEvent::PoweredOff => true,
        other => panic!("{other:?}"),
    };
    machine.resume().unwrap();
    while turns_made(spec, ram) < goal {
        if let Ok(event) = machine.events().recv_timeout(Duration::from_micros(100)) {
            machine.pause().unwrap();
            return ended(event);
        }
        assert!(begin.elapsed() < LEG_MAX, "the guest does not get on");
    }
    machine.pause().unwrap();
    // It may have ended in between.
    machine.events().try_recv().is_ok_and(ended)
}

/// Not a test of its own: what the other process does. Goes on from the files for a leg, and leaves new ones.
#[test]
fn leg() {
    let Some(dir) = std::env::var_os(LEG).map(std::path::PathBuf::from) else { return };
    let shape = std::fs::read(dir.join("shape")).unwrap();
    let engine = if shape[1] == 1 { EngineKind::Soft } else { EngineKind::Kvm };
    let spec = spec(engine, shape[0], RAM_BYTES);
    let ram = GuestRam::new(RAM_BYTES).unwrap();
    let console = Remember::default();
    let mut machine = Machine::new(&spec, &ram, wiring(&console)).unwrap();
    load(&dir, &ram);
    machine.restore(&std::fs::read(dir.join("state")).unwrap()).unwrap();
    // The guest runs on until it is seen to have reached its goal, so a journey has fewer legs than goals.
    let mean = u64::from(turns(engine)) * u64::from(spec.vcpus) / GOALS;
    let some = rand::rngs::StdRng::from_os_rng().random_range(0..2 * mean);
    if run_turns(&mut machine, &spec, &ram, some) {
        std::fs::write(dir.join("done"), []).unwrap();
    }
    let mut state = Vec::new();
    machine.capture(&mut state).unwrap();
    save(&dir, &spec, &ram, &state);
    let mut output = std::fs::OpenOptions::new().append(true).create(true).open(dir.join("output")).unwrap();
    output.write_all(console.text().as_bytes()).unwrap();
}

fn ends_as_if_undisturbed(test: &str, engine: EngineKind, vcpus: u8) {
    let spec = spec(engine, vcpus, RAM_BYTES);
    let (mut undisturbed, expected_ram, expected_output) = machine(&spec);
    boot_code(&mut undisturbed, &mix(engine));
    undisturbed.resume().unwrap();
    assert_eq!(event(&undisturbed), MachineEvent::PoweredOff);
    undisturbed.pause().unwrap();

    // How far a guest overruns its goals depends on how busy the host is: it travels until there are enough legs.
    let (mut legs, mut journeys) = (0, 0);
    while legs < LEGS_MIN {
        legs += journey(&spec, &expected_output.text(), &content(&expected_ram));
        journeys += 1;
    }
    eprintln!("{test}: {legs} legs in as many processes, {journeys} journeys");
}

/// From the start to the end of the program, each leg in a process of its own; the number of legs.
fn journey(spec: &MachineSpec, expected_output: &str, expected: &[(PageIndex, Box<[u8; 4096]>)]) -> usize {
    let dir = tempfile::tempdir().unwrap();
    {
        let (mut first, ram, _) = machine(spec);
        boot_code(&mut first, &mix(spec.engine));
        let mut state = Vec::new();
        first.capture(&mut state).unwrap();
        save(dir.path(), spec, &ram, &state);
    }
    let mut legs = 0;
    while !dir.path().join("done").exists() {
        let leg = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "leg", "--nocapture"])
            .env(LEG, dir.path())
            .output()
            .unwrap();
        assert!(leg.status.success(), "leg {legs}: {}", String::from_utf8_lossy(&leg.stderr));
        legs += 1;
    }
    let ram = GuestRam::new(RAM_BYTES).unwrap();
    load(dir.path(), &ram);
    let output = std::fs::read_to_string(dir.path().join("output")).unwrap();
    // The vCPUs' characters come in the order in which they were written, which is not the same in every run.
    let sorted = |text: &str| {
        let mut chars: Vec<_> = text.chars().collect();
        chars.sort_unstable();
        chars
    };
    assert_eq!(sorted(&output), sorted(expected_output));
    if spec.vcpus == 1 {
        assert_eq!(output, expected_output);
    }
    let pages = content(&ram);
    let indices = |pages: &[(PageIndex, _)]| pages.iter().map(|(index, _)| *index).collect::<Vec<_>>();
    assert_eq!(indices(&pages), indices(expected));
    for ((index, page), (_, expected)) in pages.iter().zip(expected) {
        assert!(page == expected, "page {index} differs");
    }
    legs
}

#[test]
fn one_vcpu_captured_at_random_points_and_resumed_in_other_processes_ends_as_if_undisturbed() {
    for engine in engines("one vCPU resumed elsewhere") {
        ends_as_if_undisturbed(&format!("one vCPU resumed elsewhere, {engine}"), engine, 1);
    }
}

#[test]
fn two_vcpus_captured_at_random_points_and_resumed_in_other_processes_end_as_if_undisturbed() {
    if ft_vm::testing::kvm("two vCPUs resumed elsewhere") {
        ends_as_if_undisturbed("two vCPUs resumed elsewhere", EngineKind::Kvm, 2);
    }
}
