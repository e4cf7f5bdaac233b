//! vCPUs that are captured in whatever they are at, several at a time: running with accesses to memory-mapped and port
//! registers under way, halted, waiting for INIT, and waiting for SIPI after an INIT. They go on in another machine,
//! and each is woken there by what it waits for, exactly as often as that is sent.

use ft_ram::GuestRam;
use ft_vm::machine::Machine;
use ft_vm::spec::{Boot, EngineKind};
use ft_vm::testing::{Remember, between, content, elf, kvm, spec, wiring};
use std::io::Write;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

// The first vCPU, in 64-bit mode at CPL 0. It starts the second (which halts) and the fourth (which accesses ports) in
// real mode, sends INIT alone to the fifth, and nothing to the third. Then it reads the number of vCPUs from the
// platform device again and again; and for each order at 0x6000, wakes the second by an NMI. With the first order it
// starts the third by INIT and SIPI, and the fifth by SIPI alone.
std::arch::global_asm!(
    ".globl first_start",
    "first_start:",
    "  mov r14, 0xd0100000",
    "  mov r15d, 0xfee00000",
    "  mov rbx, [r14 + 0x28]",
    "  mov edi, 1",
    "  mov ebp, 0x4610", // SIPI, at 0x10000
    "  call 7f",
    "  mov edi, 3",
    "  mov ebp, 0x4611", // SIPI, at 0x11000
    "  call 7f",
    "  mov edi, 4",
    "  mov esi, 0x4500", // INIT
    "  call 8f",
    "2:",
    "  inc qword ptr [0x6010]",
    "  mov rax, [r14 + 0x28]",
    "  cmp rax, rbx",
    "  je 3f",
    "  inc qword ptr [0x6018]",
    "3:",
    "  mov rax, [0x6000]",
    "  cmp rax, [0x6008]",
    "  je 2b",
    "  cmp qword ptr [0x6008], 0",
    "  mov [0x6008], rax",
    "  jne 4f",
    "  mov edi, 2",
    "  mov ebp, 0x4612", // SIPI, at 0x12000
    "  call 7f",
    "  mov edi, 4",
    "  mov esi, 0x4613", // SIPI, at 0x13000
    "  call 8f",
    "4:",
    "  mov edi, 1",
    "  mov esi, 0x4400", // NMI
    "  call 8f",
    "  jmp 2b",
    // INIT, and ebp, to the vCPU edi.
    "7:",
    "  mov esi, 0x4500",
    "  call 8f",
    "  mov esi, ebp",
    // esi to the vCPU edi.
    "8:",
    "  mov eax, edi",
    "  shl eax, 24",
    "  mov [r15 + 0x310], eax",
    "  mov [r15 + 0x300], esi",
    "9:",
    "  test dword ptr [r15 + 0x300], 0x1000",
    "  jnz 9b",
    "  ret",
    ".globl first_end",
    "first_end:",
);

// In real mode, with data at 0. Halts; is woken by an NMI; counts at 0x6020 how often it is about to halt.
std::arch::global_asm!(
    ".code16",
    ".globl halts_start",
    "halts_start:",
    "  xor ax, ax",
    "  mov ds, ax",
    "  mov ss, ax",
    "  mov sp, 0x5f00",
    "2:",
    "  inc word ptr [0x6020]",
    "  hlt",
    "  jmp 2b",
    ".globl halts_end",
    "halts_end:",
    // Writes to the serial port's scratch register and reads it back; counts at 0x6028, and what differs at 0x6030.
    ".globl ports_start",
    "ports_start:",
    "  xor ax, ax",
    "  mov ds, ax",
    "  mov dx, 0x3ff",
    "2:",
    "  mov al, [0x6028]",
    "  out dx, al",
    "  in al, dx",
    "  cmp al, [0x6028]",
    "  je 3f",
    "  inc word ptr [0x6030]",
    "3:",
    "  inc word ptr [0x6028]",
    "  jmp 2b",
    ".globl ports_end",
    "ports_end:",
    // Counts at 0x6038 that it was started, and halts for good.
    ".globl third_start",
    "third_start:",
    "  xor ax, ax",
    "  mov ds, ax",
    "  inc word ptr [0x6038]",
    "2:",
    "  hlt",
    "  jmp 2b",
    ".globl third_end",
    "third_end:",
    ".globl fifth_start",
    "fifth_start:",
    "  xor ax, ax",
    "  mov ds, ax",
    "  inc word ptr [0x6040]",
    "2:",
    "  hlt",
    "  jmp 2b",
    ".globl fifth_end",
    "fifth_end:",
    // The NMI's.
    ".globl nmi_start",
    "nmi_start:",
    "  iret",
    ".globl nmi_end",
    "nmi_end:",
    ".code64",
);

unsafe extern "C" {
    static first_start: u8;
    static first_end: u8;
    static halts_start: u8;
    static halts_end: u8;
    static ports_start: u8;
    static ports_end: u8;
    static third_start: u8;
    static third_end: u8;
    static fifth_start: u8;
    static fifth_end: u8;
    static nmi_start: u8;
    static nmi_end: u8;
}

const RAM_BYTES: u64 = 16 << 20;
const VCPUS: u8 = 5;
const ORDERED: u64 = 0x6000;
const TAKEN: u64 = 0x6008;
/// Turns of the first vCPU, and those in which its device read something else.
const TURNS: [u64; 2] = [0x6010, 0x6018];
const HALTS: u64 = 0x6020;
/// Turns of the fourth vCPU, and those in which its port read something else.
const PORTS: [u64; 2] = [0x6028, 0x6030];
const STARTS: [u64; 2] = [0x6038, 0x6040];
/// Of real mode's interrupt table: the NMI's place.
const NMI_VECTOR: u64 = 2 * 4;
const NMI_AT: u64 = 0x1_4000;
const MOVES: u64 = 30;
const PATIENCE: Duration = Duration::from_secs(120);

struct Guest {
    machine: Machine,
    ram: GuestRam,
}

impl Guest {
    fn boot() -> Self {
        let spec = spec(EngineKind::Kvm, VCPUS, RAM_BYTES);
        let (mut machine, ram, _) = ft_vm::testing::machine(&spec);
        // SAFETY: the labels enclose this program's assembly above.
        let code = unsafe { between(&raw const first_start, &raw const first_end) };
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&elf(&code)).unwrap();
        let (kernel, initrd, cmdline) = (file.path().to_owned(), None, String::new());
        machine.boot(&Boot::Linux { kernel, initrd, cmdline }).unwrap();
        // SAFETY: the labels enclose this program's assembly above.
        let parts = unsafe {
            [
                (0x1_0000, between(&raw const halts_start, &raw const halts_end)),
                (0x1_1000, between(&raw const ports_start, &raw const ports_end)),
                (0x1_2000, between(&raw const third_start, &raw const third_end)),
                (0x1_3000, between(&raw const fifth_start, &raw const fifth_end)),
                (NMI_AT, between(&raw const nmi_start, &raw const nmi_end)),
            ]
        };
        for (at, code) in parts {
            ram.memory().write_slice(&code, GuestAddress(at)).unwrap();
        }
        // Offset, and the segment in the upper half.
        ram.memory().write_obj((NMI_AT as u32 >> 4) << 16, GuestAddress(NMI_VECTOR)).unwrap();
        machine.resume().unwrap();
        Self { machine, ram }
    }

    fn word(&self, at: u64) -> u64 {
        self.ram.memory().read_obj(GuestAddress(at)).unwrap()
    }

    /// Waits until this holds of the guest's words.
    fn wait(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            if let Ok(event) = self.machine.events().try_recv() {
                panic!("{what}: {event:?}");
            }
            assert!(begun.elapsed() < PATIENCE, "{what}: {}", self.told());
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn told(&self) -> String {
        let words: Vec<_> = (0..9).map(|word| self.word(ORDERED + 8 * word)).collect();
        format!("{words:?}")
    }

    fn order(&self, number: u64) {
        self.ram.memory().write_obj(number, GuestAddress(ORDERED)).unwrap();
    }

    /// In another machine, with what this one has.
    fn moved(mut self) -> Self {
        self.machine.pause().unwrap();
        let mut state = Vec::new();
        self.machine.capture(&mut state).unwrap();
        let ram = GuestRam::new(RAM_BYTES).unwrap();
        let view = ram.view().unwrap();
        content(&self.ram).iter().for_each(|(index, page)| view.write_page(*index, page));
        let mut machine = Machine::new(self.machine.spec(), &ram, wiring(&Remember::default())).unwrap();
        machine.restore(&state).unwrap();
        machine.resume().unwrap();
        Self { machine, ram }
    }

    /// Lets those that run make some turns.
    fn get_on(&self) {
        let (turns, ports) = (self.word(TURNS[0]), self.word(PORTS[0]) & 0xffff);
        self.wait("the running vCPUs get on", |guest| {
            guest.word(TURNS[0]) > turns + 100 && guest.word(PORTS[0]) & 0xffff != ports
        });
    }
}

#[test]
fn vcpus_go_on_in_another_machine_whether_they_run_halt_or_wait_for_their_start() {
    if !kvm("vCPUs in each state") {
        return;
    }
    let mut guest = Guest::boot();
    guest.wait("the second vCPU halts", |guest| guest.word(HALTS) == 1);
    guest.get_on();
    for number in 1..=MOVES {
        // Halted, and nothing has been sent: it must not be woken by the move.
        guest = guest.moved();
        guest.get_on();
        assert_eq!(guest.word(HALTS), number, "the second vCPU left its halt by itself: {}", guest.told());
        guest.order(number);
        // Half of the moves fall into the wake-up itself.
        if number % 2 == 0 {
            guest.wait("the order is taken", |guest| guest.word(TAKEN) == number);
            guest = guest.moved();
        }
        guest.wait("the second vCPU is woken", |guest| guest.word(HALTS) == number + 1);
        guest.wait("the other two are started", |guest| STARTS.map(|at| guest.word(at)) == [1, 1]);
    }
    guest.machine.pause().unwrap();
    let wrong = [guest.word(TURNS[1]), guest.word(PORTS[1])];
    eprintln!("{}", guest.told());
    assert_eq!(wrong, [0, 0], "accesses that read something else: {}", guest.told());
}
