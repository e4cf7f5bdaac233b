//! System instructions and deliveries, run by the processor from machine code.

use super::state::{CS, DS, ES, FS, GS, SS, SegmentRegister};
use crate::bus::{Bus, BusEvent};
use crate::cpu::Cpu;
use crate::flags::{IF, RF, TF};
use crate::interrupt::vector;
use crate::run::CpuExit;
use crate::testing::{CODE, STACK, assemble, machine_on, run_to};
use ft_ram::GuestRam;
use std::sync::{Arc, Mutex};
use vm_memory::{Bytes, GuestAddress};

mod any;
mod breakpoints;
mod delivery;
mod offered;
mod ports;
mod registers;
mod segments;
mod transfer;

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
        sys.gdtr = (GDT, size_of_val(&gdt) as u16 - 1);
        sys.idtr = (IDT, 0xfff);
        sys.tr = SegmentRegister { selector: TSS_SELECTOR, base: TSS, limit: 0x67, attributes: 0x8b };
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
        self.cpu.sys.segs[CS] = SegmentRegister::flat_code(USER_CODE, 3, true);
        self.cpu.sys.segs[SS] = SegmentRegister::flat_data(USER_DATA, 3);
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
        assert_eq!(exit, CpuExit::Halted, "at {:#x}, {:?}", self.cpu.rip, self.cpu.fault);
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
