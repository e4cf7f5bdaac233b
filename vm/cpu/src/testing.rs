//! For tests and the benchmark: a processor in 64-bit mode with identity-mapped memory, and a bus on which nothing is.

use super::bus::{Bus, BusEvent};
use super::cpu::Cpu;
use super::exec::system::{SegmentRegister, System};
use super::run::CpuExit;
use super::walk::{CR0_PG, CR0_WP, EFER_LMA, EFER_NXE};
use ft_ram::GuestRam;
use std::sync::atomic::AtomicBool;
use vm_memory::{Bytes, GuestAddress};

/// The bytes of some instructions, from this program's own assembler.
#[doc(hidden)]
#[macro_export]
macro_rules! assemble {
    ($($line:expr),* $(,)?) => {{
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
pub use crate::assemble;

/// Reads as ones; writes are kept for the test to look at.
#[derive(Default)]
pub struct EmptyBus {
    /// Address or port, and the bytes.
    pub written: Vec<(u64, Vec<u8>)>,
    cr8: u8,
}

impl Bus for EmptyBus {
    fn mmio_read(&mut self, _: u64, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&mut self, _: u64, addr: u64, data: &[u8]) -> Option<BusEvent> {
        self.written.push((addr, data.to_vec()));
        None
    }
    fn pio_read(&mut self, _: u64, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn pio_write(&mut self, _: u64, port: u16, data: &[u8]) -> Option<BusEvent> {
        self.written.push((u64::from(port), data.to_vec()));
        None
    }
    fn interrupt_pending(&mut self, _: u64) -> bool {
        false
    }
    fn acknowledge_interrupt(&mut self, _: u64) -> Option<u8> {
        None
    }
    fn take_nmi(&mut self) -> bool {
        false
    }
    fn next_timer_ns(&mut self) -> Option<u64> {
        None
    }
    fn run_timers(&mut self, _: u64) -> Option<BusEvent> {
        None
    }
    fn cr8(&self) -> u8 {
        self.cr8
    }
    fn set_cr8(&mut self, value: u8) {
        self.cr8 = value;
    }
    fn apic_base(&self) -> u64 {
        0xfee0_0900
    }
    fn set_apic_base(&mut self, _: u64) {}
    fn tsc_deadline(&self) -> u64 {
        0
    }
    fn set_tsc_deadline(&mut self, _: u64, _: u64) {}
}

/// Where [`machine`] puts code.
pub const CODE: u64 = 0x10_0000;
/// Where [`machine`]'s stack begins.
pub const STACK: u64 = 0x20_0000;
/// Its page tables: PML4, one PDPT, one page directory, then a page table for each of the 8 directory entries.
pub const TABLES: u64 = 0x1000;

/// Page tables that map the first 16 MiB each page to itself, writable, executable and accessible to user code.
pub fn put_tables(ram: &GuestRam) {
    let put = |addr: u64, value: u64| ram.memory().write_obj(value, GuestAddress(addr)).unwrap();
    put(TABLES, (TABLES + 0x1000) | 7);
    put(TABLES + 0x1000, (TABLES + 0x2000) | 7);
    for directory in 0..8 {
        let table = TABLES + 0x3000 + directory * 0x1000;
        put(TABLES + 0x2000 + directory * 8, table | 7);
        for entry in 0..512 {
            put(table + entry * 8, (directory << 21) | (entry << 12) | 7);
        }
    }
}

/// 64-bit mode with those tables, flat segments, CPL 0.
pub fn enter_long_mode(sys: &mut System) {
    let data = SegmentRegister { selector: 0x10, base: 0, limit: u32::MAX, attributes: 0xc093 };
    sys.segs = [data; 6];
    sys.segs[1] = SegmentRegister { selector: 0x8, attributes: 0xa09b, ..data };
    sys.cr0 = CR0_PG | CR0_WP | 1 << 5 | 1 << 4 | 1 << 1 | 1;
    sys.cr3 = TABLES;
    // PAE, PGE, OSFXSR, OSXMMEXCPT.
    sys.cr4 = 1 << 5 | 1 << 7 | 1 << 9 | 1 << 10;
    sys.efer = EFER_LMA | EFER_NXE | 1 << 8 | 1;
}

/// 16 MiB of RAM with the tables, and the code; the processor is in 64-bit mode.
pub fn machine_on(bus: Box<dyn Bus>, code: &[u8]) -> (Cpu, GuestRam) {
    let ram = GuestRam::new(16 << 20).unwrap();
    put_tables(&ram);
    ram.memory().write_slice(code, GuestAddress(CODE)).unwrap();
    ram.take_vmm_dirty(|_| ());

    let mut cpu = Cpu::new(&ram, bus);
    enter_long_mode(&mut cpu.sys);
    cpu.set_rflags(0);
    cpu.rip = CODE;
    cpu.regs[4] = STACK;
    cpu.paging_changed();
    (cpu, ram)
}

/// [`machine_on`] an empty bus.
pub fn machine(code: &[u8]) -> (Cpu, GuestRam) {
    machine_on(Box::new(EmptyBus::default()), code)
}

/// Runs up to a count.
pub fn run_to(cpu: &mut Cpu, limit: u64) -> CpuExit {
    cpu.run(limit, &AtomicBool::new(false))
}

/// Runs the code until it halts; the registers are then in the answer.
pub fn run_to_hlt(code: &[u8]) -> Cpu {
    let (mut cpu, _ram) = machine(code);
    let exit = run_to(&mut cpu, 1_000_000);
    assert_eq!(exit, CpuExit::Halted, "at {:#x}, {:?}", cpu.rip, cpu.fault);
    cpu
}
