//! System instructions and deliveries, run by the processor from machine code.

use super::cpuid::{FEATURES, leaf, offers};
use super::msr;
use super::state::{CR0_ET, CR0_PG, CS, DS, EFER_LMA, ES, FS, GS, InvalidSystem, SS, Segment, System};
use crate::engine::soft::bus::{Bus, BusEvent};
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::exec;
use crate::engine::soft::flags::{IF, RF, TF};
use crate::engine::soft::interrupt::vector;
use crate::engine::soft::op::{Handler, Op};
use crate::engine::soft::run::Exit;
use crate::engine::soft::testing::{CODE, STACK, machine_on, run_to};
use crate::memory::GuestRam;
use iced_x86::{CpuidFeature, Decoder, DecoderOptions, Mnemonic};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use vm_memory::{Bytes, GuestAddress};

/// The bytes of some instructions, from this program's own assembler.
macro_rules! assemble {
    ($($line:literal),* $(,)?) => {{
        let (start, end): (*const u8, *const u8);
        // SAFETY: the instructions are jumped over and only read, from `start` to `end` of this program's code.
        unsafe {
            std::arch::asm!(
                "lea {start}, [rip + 88f]", "lea {end}, [rip + 89f]", "jmp 89f",
                "88:", $($line,)* "89:",
                start = out(reg) start, end = out(reg) end, options(nomem, nostack)
            );
            std::slice::from_raw_parts(start, end.offset_from(start) as usize).to_vec()
        }
    }};
}

const GDT: u64 = 0x3_0000;
const IDT: u64 = 0x3_1000;
const TSS: u64 = 0x3_2000;
/// A handler is `hlt` at this address plus its vector.
const HANDLERS: u64 = 0x3_4000;
const RSP0: u64 = 0x5_0000;
const IST1: u64 = 0x5_8000;
const DATA: u64 = 0x6_0000;
/// Nothing is mapped there.
const UNMAPPED: u64 = 0x200_0000;

const KERNEL_CODE: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;
const USER_CODE32: u16 = 0x1b;
const USER_DATA: u16 = 0x23;
const USER_CODE: u16 = 0x2b;
const TSS_SELECTOR: u16 = 0x30;
const KERNEL_CODE32: u16 = 0x40;
const ABSENT: u16 = 0x48;
const BYTE_LIMIT: u16 = 0x50;

/// Ports read as ones; what is written is kept. One interrupt may be pending.
#[derive(Default)]
struct Wires {
    pending: Option<u8>,
    written: Vec<(u16, Vec<u8>)>,
    deadline: u64,
}

#[derive(Default, Clone)]
struct TestBus(Arc<Mutex<Wires>>);

impl Bus for TestBus {
    fn mmio_read(&mut self, _: u64, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&mut self, _: u64, _: u64, _: &[u8]) -> Option<BusEvent> {
        None
    }
    fn pio_read(&mut self, _: u64, port: u16, data: &mut [u8]) {
        data.fill(port as u8);
    }
    fn pio_write(&mut self, _: u64, port: u16, data: &[u8]) -> Option<BusEvent> {
        self.0.lock().unwrap().written.push((port, data.to_vec()));
        None
    }
    fn interrupt_pending(&mut self, _: u64) -> bool {
        self.0.lock().unwrap().pending.is_some()
    }
    fn acknowledge_interrupt(&mut self, _: u64) -> Option<u8> {
        self.0.lock().unwrap().pending.take()
    }
    fn next_timer_ns(&mut self) -> Option<u64> {
        None
    }
    fn run_timers(&mut self, _: u64) {}
    fn cr8(&self) -> u8 {
        0
    }
    fn set_cr8(&mut self, _: u8) {}
    fn apic_base(&self) -> u64 {
        0xfee0_0900
    }
    fn set_apic_base(&mut self, _: u64) {}
    fn tsc_deadline(&self) -> u64 {
        self.0.lock().unwrap().deadline
    }
    fn set_tsc_deadline(&mut self, _: u64, value: u64) {
        self.0.lock().unwrap().deadline = value;
    }
}

struct Guest {
    cpu: Box<Cpu>,
    ram: GuestRam,
    bus: TestBus,
}

impl Guest {
    /// In 64-bit mode at CPL 0, with tables, and a handler that halts for each vector.
    fn new(code: &[u8]) -> Self {
        let bus = TestBus::default();
        let (cpu, ram) = machine_on(Box::new(bus.clone()), code);
        let mut guest = Self { cpu: Box::new(cpu), ram, bus };
        let gdt: [u64; 12] = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_fb00_0000_ffff,
            // Not accessed yet.
            0x00cf_f200_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x0000_8900_0000_0067 | (TSS & 0xff_ffff) << 16,
            0,
            0x00cf_9b00_0000_ffff,
            0x00cf_1300_0000_ffff,
            // As Linux tells a program its processor's number.
            0x0040_f500_0000_0123,
            0,
        ];
        for (index, descriptor) in gdt.into_iter().enumerate() {
            guest.put(GDT + index as u64 * 8, descriptor);
        }
        for vector in 0..=255 {
            guest.gate(vector, 0, 0xe, 0);
            guest.ram.memory().write_obj(0xf4u8, GuestAddress(HANDLERS + u64::from(vector))).unwrap();
        }
        guest.put(TSS + 4, RSP0);
        guest.put(TSS + 0x24, IST1);
        guest.ram.memory().write_obj(0x68u16, GuestAddress(TSS + 0x66)).unwrap();
        let sys = &mut guest.cpu.sys;
        sys.cr0 |= CR0_ET;
        sys.gdtr = (GDT, size_of_val(&gdt) as u16 - 1);
        sys.idtr = (IDT, 0xfff);
        sys.tr = Segment { selector: TSS_SELECTOR, base: TSS, limit: 0x67, attributes: 0x8b };
        sys.star = u64::from(KERNEL_CODE) << 32 | u64::from(USER_CODE32) << 48;
        sys.lstar = HANDLERS + 0x80;
        guest
    }

    fn put(&self, address: u64, value: u64) {
        self.ram.memory().write_obj(value, GuestAddress(address)).unwrap();
    }

    fn get(&self, address: u64) -> u64 {
        self.ram.memory().read_obj(GuestAddress(address)).unwrap()
    }

    fn gate(&self, vector: u8, dpl: u64, kind: u64, stack: u64) {
        let offset = HANDLERS + u64::from(vector);
        let low = offset & 0xffff
            | u64::from(KERNEL_CODE) << 16
            | stack << 32
            | kind << 40
            | dpl << 45
            | 1 << 47
            | (offset >> 16) << 48;
        self.put(IDT + u64::from(vector) * 16, low);
    }

    fn absent_gate(&self, vector: u8) {
        let address = IDT + u64::from(vector) * 16;
        self.put(address, self.get(address) & !(1 << 47));
    }

    /// Continues at CPL 3.
    fn user(mut self) -> Self {
        self.cpu.sys.segs[CS] = Segment::flat_code(USER_CODE, 3, true);
        self.cpu.sys.segs[SS] = Segment::flat_data(USER_DATA, 3);
        self.cpu.cpl = 3;
        self
    }

    fn flags(mut self, flags: u64) -> Self {
        self.cpu.set_rflags(flags);
        self
    }

    #[track_caller]
    fn run(mut self) -> Self {
        let exit = run_to(&mut self.cpu, 1000);
        assert_eq!(exit, Exit::Halted, "at {:#x}, {:?}", self.cpu.rip, self.cpu.fault);
        self
    }

    /// Runs into the handler of `vector`.
    #[track_caller]
    fn expect(self, vector: u8) -> Self {
        let guest = self.run();
        assert_eq!(guest.cpu.rip, HANDLERS + u64::from(vector) + 1, "{:?}", guest.cpu.fault);
        guest
    }

    /// The same, with an error code on the stack.
    #[track_caller]
    fn expect_error(self, vector: u8, error: u64) -> Self {
        let guest = self.expect(vector);
        assert_eq!(guest.get(guest.cpu.regs[4]), error, "error code");
        guest
    }

    /// RIP, CS, RFLAGS, RSP, SS, from `offset` above the stack pointer.
    fn frame(&self, offset: u64) -> [u64; 5] {
        std::array::from_fn(|i| self.get(self.cpu.regs[4] + offset + i as u64 * 8))
    }
}

#[test]
fn a_fault_at_cpl_0_pushes_its_frame_on_the_running_stack() {
    let code = assemble!("nop", "mov rax, [rcx]", "hlt");
    let mut guest = Guest::new(&code).flags(IF);
    guest.cpu.regs[1] = 1 << 63;
    guest.cpu.regs[4] = STACK - 3;
    let guest = guest.expect_error(vector::GP, 0);
    assert_eq!(guest.cpu.regs[4], STACK - 16 - 48, "aligned to 16 bytes");
    let [rip, cs, flags, rsp, ss] = guest.frame(8);
    assert_eq!((rip, cs, rsp, ss), (CODE + 1, 8, STACK - 3, 0x10));
    assert_eq!(flags, IF | RF | 2);
    assert_eq!(guest.cpu.rflags() & IF, 0, "an interrupt gate");
}

#[test]
fn a_trap_gate_leaves_interrupts_on() {
    let guest = Guest::new(&assemble!("ud2")).flags(IF);
    guest.gate(vector::UD, 0, 0xf, 0);
    let guest = guest.expect(vector::UD);
    assert_eq!(guest.cpu.rflags() & IF, IF);
    assert_eq!(guest.frame(0)[0], CODE);
}

#[test]
fn a_fault_at_cpl_3_switches_to_the_kernels_stack() {
    let code = assemble!("mov [rcx], rax");
    let mut guest = Guest::new(&code).user();
    guest.cpu.regs[1] = UNMAPPED;
    let guest = guest.expect_error(vector::PF, 6);
    assert_eq!((guest.cpu.cpl, guest.cpu.sys.cr2, guest.cpu.regs[4]), (0, UNMAPPED, RSP0 - 48));
    assert_eq!(guest.cpu.sys.segs[SS], Segment::default());
    let [rip, cs, _, rsp, ss] = guest.frame(8);
    assert_eq!((rip, cs, rsp, ss), (CODE, USER_CODE.into(), STACK, USER_DATA.into()));
}

#[test]
fn an_interrupt_stack_is_used_at_every_level() {
    for user in [false, true] {
        let guest = Guest::new(&assemble!("ud2"));
        guest.gate(vector::UD, 0, 0xe, 1);
        let guest = if user { guest.user() } else { guest }.expect(vector::UD);
        assert_eq!(guest.cpu.regs[4], IST1 - 40);
        assert_eq!(guest.frame(0)[3], STACK);
    }
}

#[test]
fn software_interrupts_need_the_gates_leave_and_return_behind_themselves() {
    let guest = Guest::new(&assemble!("int 0x80")).user().expect_error(vector::GP, 0x80 * 8 + 2);
    assert_eq!(guest.frame(8)[0], CODE);
    let guest = Guest::new(&assemble!("int 0x80")).user();
    guest.gate(0x80, 3, 0xe, 0);
    let guest = guest.expect(0x80);
    assert_eq!(guest.frame(0)[0], CODE + 2);
    assert_eq!(guest.frame(0)[2] & RF, 0);
    let guest = Guest::new(&assemble!("int3")).expect(vector::BP);
    assert_eq!(guest.frame(0)[0], CODE + 1);
    // The debug trap asks nobody.
    Guest::new(&[0xf1]).user().expect(vector::DB);
}

#[test]
fn faults_of_a_delivery_combine_to_a_double_fault_and_a_shutdown() {
    // #UD is benign: what follows stands alone.
    let guest = Guest::new(&assemble!("ud2"));
    guest.absent_gate(vector::UD);
    guest.expect_error(vector::NP, 6 * 8 + 3);
    // #GP, then #NP: double fault.
    let code = assemble!("mov rax, [rcx]");
    let mut guest = Guest::new(&code);
    guest.cpu.regs[1] = 1 << 63;
    guest.absent_gate(vector::GP);
    guest.expect_error(vector::DF, 0);
    // #PF with a stack that is not there: double fault on its own stack.
    let mut guest = Guest::new(&code);
    guest.cpu.regs[1] = UNMAPPED;
    guest.cpu.regs[4] = UNMAPPED + 0x2000;
    guest.gate(vector::DF, 0, 0xe, 1);
    let guest = guest.expect_error(vector::DF, 0);
    assert_eq!(guest.cpu.sys.cr2, UNMAPPED + 0x2000 - 8, "of the second page fault");
    // The double fault's gate is missing, too.
    let mut guest = Guest::new(&code);
    guest.cpu.regs[1] = UNMAPPED;
    guest.cpu.sys.idtr.1 = 0;
    assert_eq!(run_to(&mut guest.cpu, 100), Exit::TripleFault);
}

#[test]
fn a_missing_kernel_stack_is_an_invalid_tss() {
    let mut guest = Guest::new(&assemble!("ud2")).user();
    guest.cpu.sys.tr.limit = 3;
    guest.gate(vector::TS, 0, 0xe, 0);
    // #TS needs a stack, too, and ends as a triple fault.
    assert_eq!(run_to(&mut guest.cpu, 100), Exit::TripleFault);
    assert_eq!((guest.cpu.fault.vector, guest.cpu.fault.error), (vector::TS, Some(0x31)));
}

#[test]
fn an_external_interrupt_waits_for_the_instruction_after_sti() {
    let guest = Guest::new(&assemble!("sti", "nop", "nop", "hlt"));
    guest.bus.0.lock().unwrap().pending = Some(0x41);
    let guest = guest.expect(0x41);
    assert_eq!(guest.frame(0)[0], CODE + 2);
    assert_eq!(guest.frame(0)[2], IF | 2);
    // And for the one after a load of SS.
    let guest = Guest::new(&assemble!("mov ss, eax", "nop", "nop", "hlt")).flags(0);
    let mut guest = Guest { ..guest };
    guest.cpu.regs[0] = KERNEL_DATA.into();
    run_to(&mut guest.cpu, 0);
    guest.cpu.set_rflags(IF);
    assert_eq!(run_to(&mut guest.cpu, 1), Exit::Limit);
    guest.bus.0.lock().unwrap().pending = Some(0x42);
    let guest = guest.expect(0x42);
    assert_eq!(guest.frame(0)[0], CODE + 3);
}

#[test]
fn an_interrupt_ends_a_halt() {
    let code = assemble!("sti", "hlt", "inc rax", "cli", "hlt");
    let guest = Guest::new(&code).run();
    assert_eq!(guest.cpu.rip, CODE + 2);
    guest.bus.0.lock().unwrap().pending = Some(0x41);
    let guest = guest.expect(0x41);
    assert!(guest.cpu.halted);
    assert_eq!(guest.frame(0)[0], CODE + 2);
}

#[test]
fn iretq_goes_to_user_code_and_leaves_it_no_kernel_segments() {
    let code = assemble!(
        "push 0x23",
        "push 0x150000",
        "push 0x202",
        "push 0x2b",
        "lea rax, [rip + 77f]",
        "push rax",
        "iretq",
        "77:",
        "hlt"
    );
    let mut guest = Guest::new(&code);
    guest.cpu.sys.segs[FS] = Segment { base: 0x1234, ..Segment::default() };
    guest.cpu.sys.segs[GS].base = 0x5678;
    let guest = guest.expect_error(vector::GP, 0);
    let [_, cs, flags, rsp, ss] = guest.frame(8);
    assert_eq!((cs, rsp, ss), (USER_CODE.into(), 0x15_0000, USER_DATA.into()));
    assert_eq!(flags, 0x202 | RF);
    assert_eq!(guest.cpu.sys.segs[FS].base, 0x1234, "a null selector keeps its base");
    assert_eq!(guest.cpu.sys.segs[GS], Segment::default(), "a kernel segment is taken away");
    assert_eq!(guest.cpu.sys.segs[DS], Segment::default());
}

#[test]
fn iretq_refuses_frames_that_are_not_for_it() {
    // SS, RSP, RFLAGS, CS, RIP and the error code of the #GP.
    let text = 0x10_0100;
    for (ss, cs, rip, error) in [
        (0x23, 0, text, 0),
        (0x23, 0x10, text, 0x10),
        (0x23, 0x2b, 1 << 63, 0),
        (0x10, 0x2b, text, 0x10),
        (0, 0x2b, text, 0),
        (0x23, 0x29, text, 0x28),
        (0x23, 0x73, text, 0x70),
    ] {
        let mut guest = Guest::new(&assemble!("iretq"));
        guest.cpu.regs[4] = DATA;
        for (index, value) in [rip, cs, 2, STACK, ss].into_iter().enumerate() {
            guest.put(DATA + index as u64 * 8, value);
        }
        let guest = guest.expect_error(vector::GP, error);
        assert_eq!(guest.frame(8)[3], DATA, "nothing was popped");
    }
}

#[test]
fn syscall_and_sysret_make_a_round_trip() {
    // Kernel: sysretq to user code; user: syscall; kernel: hlt at LSTAR.
    let code = assemble!(
        "lea rcx, [rip + 77f]",
        "mov r11d, 0x302",
        "mov r11d, 0x242",
        "sysretq",
        "77:",
        "inc eax",
        "syscall",
        "nop"
    );
    let mut guest = Guest::new(&code);
    guest.cpu.sys.fmask = IF | 0x40;
    let guest = guest.run();
    let cpu = &guest.cpu;
    assert_eq!((cpu.rip, cpu.cpl, cpu.regs[0]), (HANDLERS + 0x81, 0, 1));
    assert_eq!(cpu.regs[1], CODE + code.len() as u64 - 1, "RCX returns behind the syscall");
    assert_eq!(cpu.regs[11] & 0x202, 0x202);
    assert_eq!(cpu.rflags() & (IF | 0x40), 0, "masked");
    assert_eq!(cpu.sys.segs[CS], Segment::flat_code(KERNEL_CODE, 0, true));
    assert_eq!(cpu.sys.segs[SS], Segment::flat_data(KERNEL_DATA, 0));
}

#[test]
fn sysret_loads_the_segments_that_star_names() {
    let mut guest = Guest::new(&assemble!("sysretq"));
    guest.cpu.regs[1] = CODE + 0x100;
    guest.cpu.regs[11] = u64::MAX;
    assert_eq!(run_to(&mut guest.cpu, 1), Exit::Limit);
    assert_eq!(guest.cpu.sys.segs[CS], Segment::flat_code(USER_CODE, 3, true));
    assert_eq!(guest.cpu.sys.segs[SS], Segment::flat_data(USER_DATA, 3));
    assert_eq!((guest.cpu.cpl, guest.cpu.rip), (3, CODE + 0x100));
    assert_eq!(guest.cpu.rflags(), 0x3c_7fd7 & !RF);
    // To 32-bit code, which makes its system calls through CSTAR.
    let mut guest = Guest::new(&[0x0f, 0x07]);
    guest.put(CODE + 0x100, 0x050f);
    guest.cpu.regs[1] = (CODE + 0x100) | 7 << 32;
    guest.cpu.sys.cstar = HANDLERS + 0x90;
    assert_eq!(run_to(&mut guest.cpu, 1), Exit::Limit);
    assert_eq!(guest.cpu.sys.segs[CS], Segment::flat_code(USER_CODE32, 3, false));
    assert!(!guest.cpu.long);
    let guest = guest.expect(0x90);
    assert!(guest.cpu.long);
    assert_eq!(guest.cpu.regs[1], CODE + 0x102);
    // Not before the kernel enabled it, not in user code.
    let mut guest = Guest::new(&assemble!("syscall"));
    guest.cpu.sys.efer &= !1;
    guest.expect(vector::UD);
    Guest::new(&assemble!("sysretq")).user().expect_error(vector::GP, 0);
    Guest::new(&assemble!("sysenter")).user().expect(vector::UD);
}

#[test]
fn swapgs_exchanges_the_bases() {
    let mut guest = Guest::new(&assemble!("swapgs", "hlt"));
    (guest.cpu.sys.segs[GS].base, guest.cpu.sys.kernel_gs_base) = (1, 2);
    let guest = guest.run();
    assert_eq!((guest.cpu.sys.segs[GS].base, guest.cpu.sys.kernel_gs_base), (2, 1));
    Guest::new(&assemble!("swapgs")).user().expect_error(vector::GP, 0);
}

#[test]
fn msrs_take_what_they_can_hold_and_nothing_else() {
    let mut guest = Guest::new(&[]);
    let cpu = &mut guest.cpu;
    for index in [msr::STAR, msr::LSTAR, msr::CSTAR, msr::KERNEL_GS_BASE, msr::FS_BASE, msr::TSC_ADJUST] {
        assert!(cpu.write_msr(index, 0x1234_5678_9abc), "{index:#x}");
        assert_eq!(cpu.read_msr(index), Some(0x1234_5678_9abc), "{index:#x}");
    }
    let bad = [
        (msr::LSTAR, 1 << 63),
        (msr::KERNEL_GS_BASE, 1 << 50),
        (msr::EFER, 0xd01 | 1 << 12),
        // Long mode is on: LME cannot go.
        (msr::EFER, 0),
        (msr::PAT, 2),
        (msr::MTRR_DEF_TYPE, 0xc02),
        (msr::TSC_AUX, 1 << 32),
        (msr::APIC_BASE, 0xfee0_0d00),
        (0x200, 0xff00_0000_0000_0006),
        (0x250, 3),
        (0x1234, 0),
    ];
    for (index, value) in bad {
        assert!(!cpu.write_msr(index, value), "{index:#x}");
    }
    assert_eq!(cpu.read_msr(0x1234), None);
    assert!(cpu.write_msr(0x20f, 0xff_c000_0800) && cpu.write_msr(msr::MTRR_DEF_TYPE, 0xc06));
    assert_eq!(cpu.read_msr(0x20f), Some(0xff_c000_0800));
    cpu.sys.validate(0).unwrap();

    let before = msr::unknown_accesses();
    Guest::new(&assemble!("mov ecx, 0x1234", "rdmsr")).expect_error(vector::GP, 0);
    assert!(msr::unknown_accesses() > before);
    Guest::new(&assemble!("mov ecx, 0x10", "rdmsr")).user().expect_error(vector::GP, 0);
}

#[test]
fn the_time_stamp_counter_is_virtual_time_and_can_be_set() {
    let guest = Guest::new(&assemble!("nop", "nop", "rdtsc", "hlt")).run();
    assert_eq!(guest.cpu.regs[0], guest.cpu.clock.ns(2));
    let code = assemble!("mov ecx, 0x10", "mov eax, 1000000", "xor edx, edx", "wrmsr", "rdtscp", "hlt");
    let mut guest = Guest::new(&code);
    guest.cpu.sys.tsc_aux = 7;
    let guest = guest.run();
    assert_eq!(guest.cpu.regs[0], 1_000_000 + guest.cpu.clock.ns(1));
    assert_eq!(guest.cpu.regs[1], 7);
}

#[test]
fn a_deadline_in_ticks_is_one_in_virtual_time_for_the_bus() {
    let mut guest = Guest::new(&[]);
    assert!(guest.cpu.write_msr(msr::TSC_DEADLINE, 5000));
    assert!(guest.cpu.write_msr(msr::TSC_ADJUST, 1000));
    assert_eq!(guest.bus.0.lock().unwrap().deadline, 4000, "an armed deadline stays at its tick");
    assert_eq!(guest.cpu.read_msr(msr::TSC_DEADLINE), Some(5000));
    assert!(guest.cpu.write_msr(msr::TSC_DEADLINE, 10));
    assert_eq!(guest.bus.0.lock().unwrap().deadline, 1, "long over is due, not off and not never");
    assert!(guest.cpu.write_msr(msr::TSC_DEADLINE, 0));
    assert_eq!(guest.bus.0.lock().unwrap().deadline, 0);
}

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
        let same = |f: &&super::cpuid::Feature| {
            (f.leaf, f.register, f.bit) == (feature.leaf, feature.register, feature.bit)
        };
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

#[test]
fn segments_are_loaded_with_their_checks() {
    let load = |selector: u16| {
        let mut guest = Guest::new(&assemble!("mov es, eax", "hlt"));
        guest.cpu.regs[0] = selector.into();
        guest
    };
    let guest = load(USER_DATA).run();
    assert_eq!(guest.cpu.sys.segs[ES], Segment::flat_data(USER_DATA, 3));
    assert_eq!(guest.get(GDT + 0x20) >> 40 & 1, 1, "the accessed bit");
    assert_eq!(load(3).run().cpu.sys.segs[ES], Segment { selector: 3, ..Segment::default() });
    load(ABSENT).expect_error(vector::NP, ABSENT.into());
    load(TSS_SELECTOR).expect_error(vector::GP, TSS_SELECTOR.into());
    load(0x60).expect_error(vector::GP, 0x60);
    load(0x24).expect_error(vector::GP, 0x24);
    load(KERNEL_DATA).user().expect_error(vector::GP, KERNEL_DATA.into());
    // A code segment that is only executable does not exist here; SS wants data of its own level.
    for (selector, vector, error) in
        [(USER_DATA, vector::GP, 0x20), (KERNEL_CODE, vector::GP, 8), (ABSENT, vector::SS, ABSENT)]
    {
        let mut guest = Guest::new(&assemble!("mov ss, eax", "hlt"));
        guest.cpu.regs[0] = selector.into();
        guest.expect_error(vector, error.into());
    }
    Guest::new(&assemble!("xor eax, eax", "mov ss, eax", "hlt")).run();
    Guest::new(&[0x8e, 0xc8]).expect(vector::UD);
}

#[test]
fn segments_are_pushed_popped_and_read() {
    let code = assemble!("push fs", "pop gs", "mov eax, gs", "mov [rcx], gs", "hlt");
    let mut guest = Guest::new(&code);
    guest.cpu.sys.segs[FS] = Segment { selector: USER_DATA, ..Segment::default() };
    guest.cpu.regs[0] = u64::MAX;
    guest.cpu.regs[1] = DATA;
    let guest = guest.run();
    assert_eq!(guest.cpu.regs[0], u64::from(USER_DATA));
    assert_eq!(guest.cpu.regs[4], STACK);
    assert_eq!(guest.get(DATA), u64::from(USER_DATA));
}

#[test]
fn a_program_may_ask_for_a_segments_rights_and_limit() {
    let code = assemble!(
        "mov eax, 0x53",
        "lsl ecx, eax",
        "lar edx, eax",
        "setz bl",
        "mov eax, 0x10",
        "lsl r8d, eax",
        "setz bh",
        "verw ax",
        "hlt"
    );
    let guest = Guest::new(&code).user().expect_error(vector::GP, 0);
    assert_eq!((guest.cpu.regs[1], guest.cpu.regs[2]), (0x123, 0x40_f500));
    assert_eq!(guest.cpu.regs[3] & 0xffff, 1, "the kernel's segment is not to be seen");
    assert_eq!(BYTE_LIMIT, 0x50);
}

#[test]
fn tables_are_loaded_and_stored() {
    let code = assemble!("lgdt [rcx]", "sgdt [rdx]", "mov eax, 0x30", "ltr ax", "str rbx", "sldt esi", "hlt");
    let mut guest = Guest::new(&code);
    guest.put(DATA, 0x67 | GDT << 16);
    guest.put(DATA + 8, 0);
    (guest.cpu.regs[1], guest.cpu.regs[2]) = (DATA, DATA + 0x100);
    let guest = guest.run();
    assert_eq!(guest.cpu.sys.gdtr, (GDT, 0x67));
    assert_eq!(guest.get(DATA + 0x100), 0x67 | GDT << 16);
    assert_eq!((guest.cpu.sys.tr.base, guest.cpu.regs[3]), (TSS, 0x30));
    assert_eq!(guest.get(GDT + 0x30) >> 40 & 0xf, 0xb, "busy");
    // A busy TSS is not loaded again.
    Guest::new(&assemble!("mov eax, 0x30", "ltr ax", "ltr ax")).expect_error(vector::GP, 0x30);
    Guest::new(&assemble!("lidt [rcx]")).user().expect_error(vector::GP, 0);
}

#[test]
fn control_registers_refuse_what_cannot_be() {
    let try_to = |code: &[u8], value: u64| {
        let mut guest = Guest::new(code);
        guest.cpu.regs[0] = value;
        guest
    };
    let cr0 = assemble!("mov cr0, rax", "hlt");
    let cr4 = assemble!("mov cr4, rax", "hlt");
    for (code, value) in [
        (&cr0, 0x8005_0032),
        (&cr0, 0x0005_0033),
        (&cr0, 0xa005_0033),
        (&cr0, 0x1_8005_0033),
        (&cr4, 0x600),
        (&cr4, 0x6a0 | 1 << 20),
        (&cr4, 0x6a0 | 1 << 12),
        (&assemble!("mov cr3, rax", "hlt"), 1 << 52),
        (&assemble!("mov cr8, rax", "hlt"), 16),
        (&assemble!("mov dr7, rax", "hlt"), 1 << 32),
    ] {
        try_to(code, value).expect_error(vector::GP, 0);
        try_to(code, value).user().expect_error(vector::GP, 0);
    }
    assert_eq!(try_to(&cr0, 0x8005_003b).run().cpu.sys.cr0, 0x8005_003b);
    let code =
        assemble!("mov cr0, rax", "clts", "mov rbx, cr0", "smsw ecx", "mov dr6, rbx", "mov rdx, dr6", "hlt");
    let guest = try_to(&code, 0x8005_003b).run();
    assert_eq!((guest.cpu.regs[3], guest.cpu.regs[1]), (0x8005_0033, 0x8005_0033));
    assert_eq!(guest.cpu.regs[2], 0xffff_0ff3);
    try_to(&assemble!("mov rax, cr1"), 0).expect(vector::UD);
}

/// What the kernel's loader does to choose the number of page table levels.
#[test]
fn paging_goes_off_and_on_through_32_bit_code() {
    let code = assemble!("push 0x40", "lea rax, [rip + 77f]", "push rax", "retfq", "77:");
    let code32 = [
        0x0f, 0x20, 0xc0, // mov eax, cr0
        0x0f, 0xba, 0xf0, 0x1f, // btr eax, 31
        0x0f, 0x22, 0xc0, // mov cr0, eax
        0x0f, 0x20, 0xc3, // mov ebx, cr0
        0x0d, 0, 0, 0, 0x80, // or eax, 1 << 31
        0x0f, 0x22, 0xc0, // mov cr0, eax
        0x6a, 0x08, // push 8
        0x68, 0, 1, 0x10, 0,    // push CODE + 0x100
        0xcb, // retf
    ];
    let mut guest = Guest::new(&[&code[..], &code32].concat());
    guest.put(CODE + 0x100, 0xf4);
    let mut modes = Vec::new();
    while run_to(&mut guest.cpu, modes.len() as u64 + 1) == Exit::Limit {
        let sys = &guest.cpu.sys;
        modes.push((guest.cpu.long, sys.efer & EFER_LMA != 0, sys.cr0 & CR0_PG != 0));
        assert!(modes.len() < 30, "{modes:?}");
    }
    modes.dedup();
    let expected = [
        (true, true, true),
        (false, true, true),
        (false, false, false),
        (false, true, true),
        (true, true, true),
    ];
    assert_eq!(modes, expected, "{:?} at {:#x}", guest.cpu.fault, guest.cpu.rip);
    assert_eq!(guest.cpu.rip, CODE + 0x101);
    assert_eq!(guest.cpu.sys.segs[CS].selector, KERNEL_CODE);
    assert_eq!(KERNEL_CODE32, 0x40);
}

#[test]
fn far_calls_return_where_they_came_from() {
    let code = assemble!("call fword ptr [rcx]", "hlt");
    let mut guest = Guest::new(&code);
    guest.cpu.regs[1] = DATA;
    guest.put(DATA, (CODE + 0x100) | u64::from(KERNEL_CODE) << 32);
    guest.put(CODE + 0x100, 0xcb);
    // Two 32-bit values were pushed, and are popped by the 32-bit form.
    let guest = guest.run();
    assert_eq!((guest.cpu.rip, guest.cpu.regs[4]), (CODE + code.len() as u64, STACK));
    // A TSS is no place to go to.
    let mut guest = Guest::new(&code);
    guest.cpu.regs[1] = DATA;
    guest.put(DATA, u64::from(TSS_SELECTOR) << 32);
    guest.expect_error(vector::GP, TSS_SELECTOR.into());
}

#[test]
fn ports_are_for_the_kernel_and_for_whom_it_lets() {
    let guest = Guest::new(&assemble!("mov eax, -1", "in al, 0x42", "out 0x43, ax", "hlt")).run();
    assert_eq!(guest.cpu.regs[0], 0xffff_ff42);
    assert_eq!(guest.bus.0.lock().unwrap().written, [(0x43, vec![0x42, 0xff])]);
    let user = |limit: u32, bits: u64| {
        let mut guest = Guest::new(&assemble!("in al, 0x42", "ud2")).user();
        guest.cpu.sys.tr.limit = limit;
        guest.put(TSS + 0x68 + 8, bits);
        guest
    };
    user(0x67, 0).expect_error(vector::GP, 0);
    user(0x90, 0).expect(vector::UD);
    user(0x90, 1 << 2).expect_error(vector::GP, 0);
    user(0x67, 0).flags(3 << 12).expect(vector::UD);
    Guest::new(&assemble!("cli")).user().expect_error(vector::GP, 0);
    Guest::new(&assemble!("hlt")).user().expect_error(vector::GP, 0);
}

#[test]
fn strings_go_through_ports_element_by_element() {
    let code = assemble!("rep outsb", "mov edi, 0x60100", "mov ecx, 2", "rep insw", "hlt");
    let mut guest = Guest::new(&code);
    guest.put(DATA, u64::from_le_bytes(*b"abcdefgh"));
    (guest.cpu.regs[6], guest.cpu.regs[1], guest.cpu.regs[2]) = (DATA, 3, 0x77);
    let guest = guest.run();
    let written: Vec<u8> =
        guest.bus.0.lock().unwrap().written.iter().flat_map(|(_, data)| data.clone()).collect();
    assert_eq!(written, b"abc");
    assert_eq!((guest.cpu.regs[1], guest.cpu.regs[6], guest.cpu.regs[7]), (0, DATA + 3, DATA + 0x104));
    assert_eq!(guest.get(DATA + 0x100), 0x7777_7777);
    assert_eq!(guest.cpu.count, 3 + 2 + 2 + 1, "each element is an instruction");
    // A page that is not there faults before the port is read, with the rest still to do.
    let mut guest = Guest::new(&assemble!("rep insb"));
    (guest.cpu.regs[7], guest.cpu.regs[1]) = (UNMAPPED, 5);
    let guest = guest.expect_error(vector::PF, 2);
    assert_eq!(guest.cpu.regs[1], 5);
}

#[test]
fn a_single_step_traps_after_one_instruction() {
    let guest = Guest::new(&assemble!("nop", "nop", "hlt")).flags(TF).expect(vector::DB);
    assert_eq!(guest.frame(0)[0], CODE + 1);
    assert_eq!(guest.cpu.sys.dr[6], 0xffff_4ff0);
    assert_eq!(guest.cpu.rflags() & TF, 0);
}

#[test]
fn a_state_that_no_guest_can_reach_is_refused_by_the_registers_name() {
    System::default().validate(0).unwrap();
    let good = Guest::new(&[]).cpu.sys;
    good.validate(0).unwrap();
    let refused = |change: &dyn Fn(&mut System)| {
        let mut sys = good.clone();
        change(&mut sys);
        let InvalidSystem { register, .. } = sys.validate(0).unwrap_err();
        register
    };
    assert_eq!(refused(&|s| s.cr0 &= !1), "CR0");
    assert_eq!(refused(&|s| s.cr4 |= 1 << 21), "CR4");
    assert_eq!(refused(&|s| s.efer &= !EFER_LMA), "EFER");
    assert_eq!(refused(&|s| s.cr3 = 1 << 41), "CR3");
    assert_eq!(refused(&|s| s.segs[FS].base = 1 << 63), "a segment's base");
    assert_eq!(refused(&|s| s.segs[CS].attributes |= 1 << 14), "CS's attributes");
    assert_eq!(refused(&|s| s.lstar = 1 << 63), "LSTAR");
    assert_eq!(refused(&|s| s.mtrrs.fixed[3] = 2), "an MTRR");
    assert!(good.validate(4).is_err());
}

#[test]
fn the_state_survives_its_encoding() {
    let sys = Guest::new(&[]).cpu.sys;
    let bytes = postcard::to_stdvec(&sys).unwrap();
    assert_eq!(postcard::from_bytes::<System>(&bytes).unwrap(), sys);
}

/// What the whole engine takes is of instruction sets that CPUID offers, or raises #UD: by all opcodes of all maps, with
/// each prefix that selects among instructions and each form of operand.
#[test]
fn nothing_is_accepted_that_cpuid_does_not_offer() {
    let prefixes: [&[u8]; 4] = [&[], &[0x66], &[0xf3], &[0xf2]];
    let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    let rex: [&[u8]; 2] = [&[], &[0x48]];
    let refused: Handler = super::undefined;
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
                let handler = exec::lower(&instruction, &mut Op::new(0));
                let accepted = handler.is_some_and(|handler| !std::ptr::fn_addr_eq(handler, refused));
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

/// The beginnings of system instructions; what follows them is random.
const OPCODES: &[&[u8]] = &[
    &[0x0f, 0x00],
    &[0x0f, 0x01],
    &[0x0f, 0x02],
    &[0x0f, 0x03],
    &[0x0f, 0x05],
    &[0x48, 0x0f, 0x07],
    &[0x0f, 0x20],
    &[0x0f, 0x22],
    &[0x0f, 0x21],
    &[0x0f, 0x23],
    &[0x0f, 0x30],
    &[0x0f, 0x32],
    &[0x0f, 0xa2],
    &[0x8e],
    &[0x8c],
    &[0x48, 0xcf],
    &[0xcf],
    &[0x66, 0xcf],
    &[0xcb],
    &[0x48, 0xcb],
    &[0xca],
    &[0xcd],
    &[0xff],
    &[0x0f, 0xa1],
    &[0x0f, 0xa9],
    &[0x0f, 0xb2],
    &[0x0f, 0xb4],
    &[0xf3, 0x6c],
    &[0x6e],
    &[0xec],
    &[0xef],
    &[0xfb],
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever a guest does with system instructions, at either level: an exit, no panic, and a valid state.
    #[test]
    fn no_system_instruction_leads_out_of_the_valid_states(
        opcodes in proptest::collection::vec((prop::sample::select(OPCODES), any::<[u8; 3]>()), 1..12),
        registers in any::<[u64; 16]>(),
        selectors in any::<[prop::sample::Index; 16]>(),
        user in any::<bool>(),
    ) {
        let mut code = Vec::new();
        for (opcode, operands) in opcodes {
            code.extend_from_slice(opcode);
            code.extend_from_slice(&operands);
        }
        let guest = Guest::new(&code);
        let mut guest = if user { guest.user() } else { guest };
        // Plausible values, random ones, and plausible addresses.
        let plausible = [
            u64::from(USER_DATA), u64::from(USER_CODE), u64::from(KERNEL_CODE), 0x8005_0033, 0x6a0, 0xd01, DATA, GDT,
            0xc000_0080, 0xc000_0081, 0x10, 0x6e0, 0, CODE, registers[0], registers[1],
        ];
        for (register, selector) in guest.cpu.regs.iter_mut().zip(&selectors) {
            *register = *selector.get(&plausible);
        }
        for index in 0..64 {
            guest.put(DATA + index * 8, plausible[(index as usize * 7 + 3) % 16]);
        }
        for _ in 0..8 {
            let limit = guest.cpu.count + 8;
            run_to(&mut guest.cpu, limit);
            guest.cpu.sys.validate(guest.cpu.cpl).unwrap();
        }
    }
}
