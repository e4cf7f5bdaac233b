//! Runs programs in the engine, as a kernel would run a user process: page tables that map the programs' addresses and
//! nothing else to user mode, and an IDT whose handlers halt. The frame that the exception's delivery pushed tells how
//! the program ended.

use super::{
    CODE, CODE_BYTES, GS_BASE, Memory, Outcome, Runner, SCRATCH, SCRATCH_BYTES, State, WINDOW, WINDOW_BYTES,
    WRITABLE_BYTES, native,
};
use crate::cpu::Cpu;
use crate::exec::fpu::Fpu;
use crate::exec::system::SegmentRegister;
use crate::run::CpuExit;
use crate::testing::EmptyBus;
use ft_ram::GuestRam;
use std::sync::atomic::AtomicBool;
use vm_memory::{Bytes, GuestAddress};

// Guest-physical places.
const PML4: u64 = 0x1000;
const CODE_PAGES: u64 = 0x10_0000;
const WINDOW_PAGES: u64 = 0x11_0000;
const SCRATCH_PAGE: u64 = 0x12_0000;
const KERNEL_PAGES: u64 = 0x13_0000;

// The kernel's addresses: its IDT, descriptors and TSS, handlers, and stack, a page each. They lie where the host's
// kernel lies: a program that strays there faults here as there.
const IDT: u64 = 0xffff_ffff_8000_0000;
const GDT: u64 = IDT + 0x1000;
const TSS: u64 = GDT + 0x800;
const HANDLERS: u64 = IDT + 0x2000;
const STACK: u64 = IDT + 0x3000;
const STACK_TOP: u64 = STACK + 0x1000;

/// Bytes between handlers.
const HANDLER_BYTES: u64 = 16;
/// Selectors as Linux has them: programs can read them.
const KERNEL_CS: u16 = 0x10;
const USER_CS: u16 = 0x33;
const USER_SS: u16 = 0x2b;
/// No program executes so many instructions.
const LIMIT: u64 = 100_000;

// Page table entries.
const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const NO_EXECUTE: u64 = 1 << 63;

pub(super) struct Engine {
    cpu: Cpu,
    ram: GuestRam,
}

impl Engine {
    pub(super) fn new() -> Self {
        let ram = GuestRam::new(16 << 20).expect("memory");
        let put = |at: u64, value: u64| ram.memory().write_obj(value, GuestAddress(at)).expect("in RAM");
        let get = |at: u64| ram.memory().read_obj::<u64>(GuestAddress(at)).expect("in RAM");
        let mut tables = PML4 + 0x1000;
        for (address, physical, bytes, writable_bytes, flags) in [
            (CODE, CODE_PAGES, CODE_BYTES, 0, USER),
            (WINDOW, WINDOW_PAGES, WINDOW_BYTES, WRITABLE_BYTES, USER | NO_EXECUTE),
            (SCRATCH, SCRATCH_PAGE, SCRATCH_BYTES, SCRATCH_BYTES, USER | NO_EXECUTE),
            (IDT, KERNEL_PAGES, 0x4000, 0x4000, 0),
        ] {
            let mut entries = PML4;
            for level in [39, 30, 21] {
                let slot = entries + (address >> level & 0x1ff) * 8;
                if get(slot) == 0 {
                    put(slot, tables | PRESENT | WRITABLE | USER);
                    tables += 0x1000;
                }
                entries = get(slot) & !0xfff;
            }
            for offset in (0..bytes).step_by(0x1000) {
                let writable = if offset < writable_bytes { WRITABLE } else { 0 };
                let entry = entries + ((address + offset) >> 12 & 0x1ff) * 8;
                put(entry, (physical + offset) | PRESENT | writable | flags);
            }
        }
        let kernel = |address: u64| KERNEL_PAGES + address - IDT;
        for vector in 0..256 {
            let handler = HANDLERS + vector * HANDLER_BYTES;
            // Interrupt gates; those of int3 and into are open to user mode.
            let access = if matches!(vector, 3 | 4) { 0xee00 } else { 0x8e00 };
            let low =
                handler & 0xffff | u64::from(KERNEL_CS) << 16 | access << 32 | (handler >> 16 & 0xffff) << 48;
            put(kernel(IDT) + vector * 16, low);
            put(kernel(IDT) + vector * 16 + 8, handler >> 32);
            // hlt
            put(kernel(handler), 0xf4);
        }
        for (selector, descriptor) in [
            (KERNEL_CS, 0x00af_9b00_0000_ffff),
            (0x18, 0x00cf_9300_0000_ffff),
            (USER_SS, 0x00cf_f300_0000_ffff),
            (USER_CS, 0x00af_fb00_0000_ffff),
        ] {
            put(kernel(GDT) + u64::from(selector & !7), descriptor);
        }
        // RSP0; and no I/O permission bitmap within the limit.
        ram.memory().write_obj(0xffffu16, GuestAddress(kernel(TSS) + 0x66)).expect("in RAM");
        ram.memory().write_obj(STACK_TOP, GuestAddress(kernel(TSS) + 4)).expect("in RAM");

        let mut cpu = Cpu::new(&ram, Box::new(EmptyBus::default()));
        // PG, AM, WP, NE, ET, MP, PE.
        cpu.sys.cr0 = 0x8005_0033;
        // PAE, PGE, OSFXSR, OSXMMEXCPT.
        cpu.sys.cr4 = 0x6a0;
        cpu.sys.cr3 = PML4;
        // NXE, LMA, LME, SCE.
        cpu.sys.efer = 0xd01;
        cpu.sys.idtr = (IDT, 0xfff);
        cpu.sys.gdtr = (GDT, 0x7f);
        cpu.sys.tr = SegmentRegister { selector: 0x40, base: TSS, limit: 0x67, attributes: 0x008b };
        Self { cpu, ram }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.ram.memory().write_slice(bytes, GuestAddress(at)).expect("in RAM");
    }

    /// Enters user mode as an `iretq` would leave it.
    fn enter(&mut self, entry: u64, state: &State) {
        let cpu = &mut self.cpu;
        let null = SegmentRegister { selector: 0, base: 0, limit: 0, attributes: 0 };
        cpu.sys.segs = [null; 6];
        cpu.sys.segs[1] = SegmentRegister { selector: USER_CS, base: 0, limit: u32::MAX, attributes: 0xa0fb };
        cpu.sys.segs[2] = SegmentRegister { selector: USER_SS, base: 0, limit: u32::MAX, attributes: 0xc0f3 };
        cpu.sys.segs[5].base = GS_BASE;
        cpu.cpl = 3;
        cpu.halted = false;
        cpu.regs = state.regs;
        cpu.rip = entry;
        cpu.set_rflags(state.rflags);
        cpu.fpu = Fpu::from_fxsave(&state.fx).expect("a valid image");
        cpu.mode_changed();
        cpu.paging_changed();
    }
}

impl Runner for Engine {
    fn run(&mut self, code: &[u8], entry: u64, state: &State) -> Outcome {
        self.write(CODE_PAGES + entry - CODE, code);
        let (window, scratch) = state.memory.split_at(WINDOW_BYTES as usize);
        self.write(WINDOW_PAGES, window);
        self.write(SCRATCH_PAGE, scratch);
        for at in (CODE_PAGES..CODE_PAGES + CODE_BYTES).step_by(0x1000) {
            self.cpu.invalidate_code_page((at >> 12) as u32);
        }
        self.enter(entry, state);
        let exit = self.cpu.run(self.cpu.count + LIMIT, &AtomicBool::new(false));
        assert_eq!(exit, CpuExit::Halted, "at {:#x}: {:?}", self.cpu.rip, self.cpu.fault);

        let vector = ((self.cpu.rip - HANDLERS) / HANDLER_BYTES) as u8;
        let frame = self.cpu.regs[4];
        let pushed = |slot: u64| -> u64 {
            let at = GuestAddress(KERNEL_PAGES + frame + slot * 8 - IDT);
            self.ram.memory().read_obj(at).expect("on the kernel's stack")
        };
        let error_slots = u64::from(native::has_error_code(vector));
        let mut regs = self.cpu.regs;
        regs[4] = pushed(error_slots + 3);
        let mut memory = Box::new([0; size_of::<Memory>()]);
        let (w, s) = memory.split_at_mut(WINDOW_BYTES as usize);
        self.ram.memory().read_slice(w, GuestAddress(WINDOW_PAGES)).expect("in RAM");
        self.ram.memory().read_slice(s, GuestAddress(SCRATCH_PAGE)).expect("in RAM");
        Outcome {
            vector,
            error: if error_slots == 1 { pushed(0) as u32 } else { 0 },
            cr2: (vector == 14).then_some(self.cpu.sys.cr2),
            rip: pushed(error_slots),
            regs,
            rflags: pushed(error_slots + 2),
            fx: self.cpu.fpu.to_fxsave(),
            memory,
        }
    }
}
