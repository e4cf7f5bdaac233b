//! A guest's code on the software engine, with real interrupt chips. An input is settings, registers, and code, which
//! runs up to a count; run in two parts it must come to the same. An exception that no handler takes ends it early.

use crate::input::FuzzInput;
use ft_cpu::testing::{CODE, STACK, machine_on, run_to};
use ft_cpu::{Bus, BusEvent, Chips, Cpu, CpuExit, CpuState};
use ft_ram::GuestRam;
use ft_vm::replay::log::page_hash;

/// Instructions.
const COUNT_MAX: u64 = 4000;
const TABLE: u64 = 0x30_0000;
const DATA: u64 = 0x40_0000;

const USER: u8 = 1;
const INTERRUPTS: u8 = 2;
const SINGLE_STEP: u8 = 4;
const HANDLERS: u8 = 8;

/// Interrupt chips, and nothing else.
struct ChipBus(Chips);

impl Bus for ChipBus {
    fn mmio_read(&mut self, now_ns: u64, addr: u64, data: &mut [u8]) {
        if !self.0.mmio_read(now_ns, addr, data) {
            data.fill(0xff);
        }
    }

    fn mmio_write(&mut self, now_ns: u64, addr: u64, data: &[u8]) -> Option<BusEvent> {
        self.0.mmio_write(now_ns, addr, data);
        None
    }

    fn pio_read(&mut self, now_ns: u64, port: u16, data: &mut [u8]) {
        if !self.0.pio_read(now_ns, port, data) {
            data.fill(0xff);
        }
    }

    fn pio_write(&mut self, now_ns: u64, port: u16, data: &[u8]) -> Option<BusEvent> {
        self.0.pio_write(now_ns, port, data);
        None
    }

    fn interrupt_pending(&mut self, now_ns: u64) -> bool {
        self.0.interrupt_pending(now_ns)
    }

    fn acknowledge_interrupt(&mut self, now_ns: u64) -> Option<u8> {
        self.0.acknowledge_interrupt(now_ns)
    }

    fn take_nmi(&mut self) -> bool {
        self.0.take_nmi()
    }

    fn next_timer_ns(&mut self) -> Option<u64> {
        self.0.next_timer_ns()
    }

    fn run_timers(&mut self, now_ns: u64) -> Option<BusEvent> {
        self.0.run_timers(now_ns);
        None
    }

    fn cr8(&self) -> u8 {
        self.0.cr8()
    }

    fn set_cr8(&mut self, value: u8) {
        self.0.set_cr8(value);
    }

    fn apic_base(&self) -> u64 {
        self.0.apic_base()
    }

    fn set_apic_base(&mut self, value: u64) {
        self.0.set_apic_base(value);
    }

    fn tsc_deadline(&self) -> u64 {
        self.0.tsc_deadline()
    }

    fn set_tsc_deadline(&mut self, now_ns: u64, value: u64) {
        self.0.set_tsc_deadline(now_ns, value);
    }
}

/// The processor before the first instruction.
fn machine(input: &[u8]) -> (Cpu, GuestRam) {
    let mut input = FuzzInput::new(input);
    let settings = input.u8();
    let registers: [u64; 4] = std::array::from_fn(|_| input.u16().into());
    let (mut cpu, ram) = machine_on(Box::new(ChipBus(Chips::new(1_000_000_000))), input.rest());
    for (register, value) in [0, 1, 3, 8].into_iter().zip(registers) {
        cpu.regs[register] = value;
    }
    (cpu.regs[6], cpu.regs[7]) = (DATA, DATA + 0x1000);
    if settings & HANDLERS != 0 {
        // Every exception and interrupt goes on behind the code's first kilobyte.
        let mut view = Vec::new();
        for _ in 0..256 {
            let at = CODE + 0x400;
            let low = at & 0xffff | 0x8 << 16 | (at & 0xffff_0000) << 32 | 0x8e00 << 32;
            view.extend_from_slice(&low.to_le_bytes());
            view.extend_from_slice(&(at >> 32).to_le_bytes());
        }
        let memory = ram.view().expect("it can be mapped");
        memory.write_in_page((TABLE >> 12) as u32, 0, &view);
        // The descriptor of the handlers' code.
        memory.write_in_page((TABLE >> 12) as u32 + 1, 8, &0x00af_9b00_0000_ffff_u64.to_le_bytes());
        (cpu.sys.idtr, cpu.sys.gdtr) = ((TABLE, 0xfff), (TABLE + 0x1000, 0x1f));
    }
    if settings & USER != 0 {
        cpu.cpl = 3;
    }
    let flag = |setting, flag| if settings & setting != 0 { flag } else { 0 };
    cpu.set_rflags(flag(INTERRUPTS, 1 << 9) | flag(SINGLE_STEP, 1 << 8));
    cpu.paging_changed();
    assert_eq!((cpu.rip, cpu.regs[4]), (CODE, STACK));
    (cpu, ram)
}

/// What a machine has come to: its processor, and its memory page by page.
fn outcome(cpu: &Cpu, ram: &GuestRam) -> (CpuState, String, Vec<u32>) {
    let view = ram.view().expect("it can be mapped");
    let mut page = [0; 4096];
    let mut hashes = Vec::new();
    // Where the code and what it reaches by its registers lie.
    for index in (0..0x20).chain(0xff..0x110).chain(0x1f8..0x201).chain(0x300..0x302).chain(0x3f0..0x412) {
        view.read_page(index, &mut page);
        hashes.push(page_hash(&page));
    }
    (CpuState::of(cpu), format!("{:?}", cpu.sys), hashes)
}

/// Runs on over what stops a processor for its owner only.
fn run_through(cpu: &mut Cpu, limit: u64) -> CpuExit {
    loop {
        match run_to(cpu, limit) {
            CpuExit::Event(_) => {}
            exit => return exit,
        }
    }
}

/// See the module.
pub(crate) fn run(input: &[u8]) {
    let (mut whole, ram) = machine(input);
    let end = run_through(&mut whole, COUNT_MAX);
    assert!(whole.count <= COUNT_MAX);
    let split = (input.len() as u64).wrapping_mul(37) % whole.count.max(1);
    let (mut parts, parts_ram) = machine(input);
    run_through(&mut parts, split);
    assert_eq!(run_through(&mut parts, COUNT_MAX), end);
    assert_eq!(outcome(&parts, &parts_ram), outcome(&whole, &ram));
}

/// See the module.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let loops: &[u8] = &[
        // mov ecx, 20; 1: add eax, ecx; imul eax, eax, 7; loop 1b; hlt
        0xb9, 20, 0, 0, 0, 0x01, 0xc8, 0x6b, 0xc0, 7, 0xe2, 0xf9, 0xf4,
    ];
    let strings: &[u8] = &[
        // mov ecx, 64; rep stosq; mov rsi, rdi; mov ecx, 9; rep movsb; repne scasb; std; lodsw; cmpsd
        0xb9, 64, 0, 0, 0, 0xf3, 0x48, 0xab, 0x48, 0x89, 0xfe, 0xb9, 9, 0, 0, 0, 0xf3, 0xa4, 0xf2, 0xae, 0xfd,
        0x66, 0xad, 0xa7,
    ];
    let floats: &[u8] = &[
        // fild qword [rsi]; fsqrt; fsin; fstp tbyte [rdi]; cvtsi2sd xmm0, rax; divsd; pshufd; fxsave [rdi]; fxrstor
        0xdf, 0x2e, 0xd9, 0xfa, 0xd9, 0xfe, 0xdb, 0x3f, 0xf2, 0x48, 0x0f, 0x2a, 0xc0, 0xf2, 0x0f, 0x5e, 0xc1,
        0x66, 0x0f, 0x70, 0xc0, 0x1b, 0x0f, 0xae, 0x07, 0x0f, 0xae, 0x0f,
    ];
    let system: &[u8] = &[
        // mov rax, cr0; mov cr3, rax; rdmsr; wrmsr; cpuid; lidt [rsi]; sgdt [rdi]; iretq; syscall; int3; in; out
        0x0f, 0x20, 0xc0, 0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, 0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, 0x0f, 0x30,
        0x0f, 0xa2, 0x0f, 0x01, 0x07, 0xe4, 0x40, 0xe6, 0x43, 0x0f, 0x01, 0x1e, 0xcc, 0x0f, 0x05, 0x48, 0xcf,
    ];
    let chips: &[u8] = &[
        // mov ebx, 0xfee00000; the LAPIC's spurious vector, its timer, periodic; sti; 1: pause; jmp 1b
        0xbb, 0, 0, 0xe0, 0xfe, 0xc7, 0x83, 0xf0, 0, 0, 0, 0xff, 1, 0, 0, 0xc7, 0x83, 0x20, 3, 0, 0, 0x40, 0,
        2, 0, 0xc7, 0x83, 0x80, 3, 0, 0, 0, 2, 0, 0, 0xfb, 0xf3, 0x90, 0xeb, 0xfc,
    ];
    let seed = |settings: u8, code: &[u8]| [&[settings, 3, 0, 5, 0, 7, 0, 9, 0], code].concat();
    let mut seeds = Vec::new();
    for settings in [USER | HANDLERS, INTERRUPTS | HANDLERS | SINGLE_STEP] {
        seeds.extend([loops, strings, floats, system, chips].map(|code| seed(settings, code)));
    }
    seeds
}
