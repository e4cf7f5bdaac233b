//! A whole machine without its thread, one instruction boundary at a time: the guest is a little kernel with
//! interrupts, and the test decides when each event happens.

mod frames;
mod life;
mod nmi;
mod resets;
mod splits;
mod time;

use super::Worker;
use crate::devices::{
    ConsoleSink, Devices, DevicesState, Disk, FrameSink, Offloads, Transmit, Wiring, plain_packet,
};
use crate::engine::soft::engine::parts;
use crate::engine::soft::state::SoftState;
use crate::error::MachineEvent;
use crate::replay::log::LogInput;
use crate::spec::{BusKind, CpuModel, DiskSpec, EngineKind, MachineSpec, NetSpec};
use ft_cpu::CpuExit;
use ft_cpu::testing::{CODE, STACK, TABLES, assemble, enter_long_mode, put_tables};
use ft_ram::GuestRam;
use ft_ram::layout::{COM1_PORT, IOAPIC_BASE, LAPIC_BASE, VIRTIO_MMIO_BASE};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use vm_memory::{Bytes, GuestAddress};

const RAM_BYTES: u64 = 16 << 20;
/// Memory that a guest here uses: what is compared.
const USED_BYTES: usize = 0x2a_0000;
/// Virtual addresses of what is memory-mapped: 2 MiB pages right after RAM.
const LAPIC: u64 = 0x100_0000;
const VIRTIO: u64 = 0x120_0000;
const GDT: u64 = 0x3_0000;
const IDT: u64 = 0x3_1000;
/// What the guest writes.
const DATA: u64 = 0x6_0000;
/// Handlers: of NMIs, of faults, of debug traps, and of all interrupts.
const NMI_HANDLER: u64 = 0x11_0000;
const FAULT_HANDLER: u64 = 0x11_1000;
const DEBUG_HANDLER: u64 = 0x11_2000;
const HANDLER: u64 = 0x11_3000;
/// The network card's receive ring, of so many buffers of this size.
const RING: u64 = 0x20_8000;
const BUFFERS: u64 = 0x22_0000;
const BUFFER_BYTES: u64 = 2048;
const RING_SIZE: u16 = 256;

struct Nowhere;

impl FrameSink for Nowhere {
    fn transmit(&self, _: u8, _: &[u8]) -> Transmit {
        Transmit::Taken
    }

    fn set_offloads(&self, _: u8, _: Offloads) {}
}

impl ConsoleSink for Nowhere {
    fn write(&mut self, _: &[u8]) {}
}

struct Rig {
    worker: Worker,
    ram: GuestRam,
    devices: Arc<Devices>,
    events: Receiver<MachineEvent>,
}

/// All that two machines can differ in.
#[derive(PartialEq)]
struct Whole {
    state: SoftState,
    devices: DevicesState,
    memory: Vec<u8>,
}

impl Rig {
    /// A machine in which nothing was loaded.
    fn empty() -> Self {
        Self::with_disk(None)
    }

    fn with_disk(disk: Option<Disk>) -> Self {
        let disk_spec = |disk: &Disk| DiskSpec { bytes: disk.store.bytes(), read_only: false };
        let spec = MachineSpec {
            engine: EngineKind::Soft,
            vcpus: 1,
            ram_bytes: RAM_BYTES,
            nets: vec![NetSpec { mac: [2, 0, 0, 0, 0, 1], mtu: 1500 }],
            disks: disk.iter().map(disk_spec).collect(),
            rng: false,
            bus: BusKind::Mmio,
            cpu: CpuModel::Host,
        };
        let ram = GuestRam::new(RAM_BYTES).unwrap();
        let disks = disk.into_iter().collect();
        let wiring = Wiring { frames: Some(Arc::new(Nowhere)), console: Box::new(Nowhere), disks };
        let (sender, events) = channel();
        let (parts, devices) = parts(&spec, &ram, wiring, sender).unwrap();
        devices.resume();
        Self { worker: Worker::new(parts), ram, devices, events }
    }

    /// At CPL 0 in 64-bit mode with interrupts off; LAPIC on and IOAPIC and PIC masked, an IDT that leads to the
    /// handlers, and R12 to R15 at data, network card and LAPIC.
    fn new(code: &[u8], nmi_handler: &[u8], prepare: impl FnOnce(&mut SoftState)) -> Self {
        Self::on(Self::empty(), code, nmi_handler, prepare)
    }

    /// The same on an empty machine.
    fn on(mut rig: Self, code: &[u8], nmi_handler: &[u8], prepare: impl FnOnce(&mut SoftState)) -> Self {
        put_tables(&rig.ram);
        for (page, physical) in [(LAPIC, LAPIC_BASE), (VIRTIO, VIRTIO_MMIO_BASE)] {
            rig.put(TABLES + 0x2000 + (page >> 21) * 8, physical | 0x83);
        }
        rig.put(GDT + 0x8, 0x00af_9b00_0000_ffff);
        rig.put(GDT + 0x10, 0x00cf_9300_0000_ffff);
        let interrupt = assemble!(
            "push rax",
            "push rcx",
            "push rdx",
            // Where and when it was interrupted goes into what is compared.
            "rdtsc",
            "xor rax, [rsp + 24]",
            "rol qword ptr [r12 + 0x800], 7",
            "xor [r12 + 0x800], rax",
            "inc qword ptr [r12 + 0x808]",
            "2:",
            "mov edx, 0x3fd",
            "in al, dx",
            "test al, 1",
            "jz 3f",
            "mov edx, 0x3f8",
            "in al, dx",
            "rol qword ptr [r12 + 0x810], 8",
            "xor byte ptr [r12 + 0x810], al",
            "jmp 2b",
            "3:",
            "mov eax, [r13 + 0x60]",
            "mov [r13 + 0x64], eax",
            "add [r12 + 0x818], rax",
            "mov dword ptr [r15 + 0xb0], 0",
            "pop rdx",
            "pop rcx",
            "pop rax",
            "iretq"
        );
        let debug = assemble!(
            "push rax",
            "inc qword ptr [r12 + 0x838]",
            "mov rax, dr6",
            "add rax, [rsp + 8]",
            "rol qword ptr [r12 + 0x840], 3",
            "xor [r12 + 0x840], rax",
            "pop rax",
            "iretq"
        );
        let fault = assemble!("inc qword ptr [r12 + 0x820]", "hlt");
        for (at, code) in [
            (CODE, code),
            (NMI_HANDLER, nmi_handler),
            (FAULT_HANDLER, &fault[..]),
            (DEBUG_HANDLER, &debug[..]),
            (HANDLER, &interrupt[..]),
        ] {
            rig.ram.memory().write_slice(code, GuestAddress(at)).unwrap();
        }
        for vector in 0..=255 {
            let handler = match vector {
                1 => DEBUG_HANDLER,
                2 => NMI_HANDLER,
                ..32 => FAULT_HANDLER,
                _ => HANDLER,
            };
            let low = handler & 0xffff | 0x8 << 16 | 0x8e << 40 | (handler >> 16) << 48;
            rig.put(IDT + vector * 16, low);
        }
        let mut state = SoftState::power_on(1_714_571_998);
        enter_long_mode(&mut state.system);
        (state.system.gdtr, state.system.idtr) = ((GDT, 0x17), (IDT, 0xfff));
        (state.cpu.rip, state.cpu.regs[4]) = (CODE, STACK);
        (state.cpu.regs[12], state.cpu.regs[13], state.cpu.regs[15]) = (DATA, VIRTIO, LAPIC);
        for port in [0x21, 0xa1] {
            state.chips.pio_write(0, port, &[0xff]);
        }
        apic(&mut state, 0xf0, 0x1ff);
        prepare(&mut state);
        rig.ram.take_vmm_dirty(|_| ());
        rig.worker.load(&state).unwrap();
        rig
    }

    fn put(&self, address: u64, value: u64) {
        self.ram.memory().write_obj(value, GuestAddress(address)).unwrap();
    }

    fn get(&self, address: u64) -> u64 {
        self.ram.memory().read_obj(GuestAddress(address)).unwrap()
    }

    /// COM1's and the card's interrupts on, and the card with a ring full of buffers. Its driver takes frames without
    /// checksum, TCP over IPv4 that is not cut, and frames over several buffers.
    fn start_devices(&mut self) {
        self.devices.pio_write(COM1_PORT + 1, &[1]);
        for index in 0..u64::from(RING_SIZE) {
            self.put(RING + index * 16, BUFFERS + index * BUFFER_BYTES);
            self.put(RING + index * 16 + 8, BUFFER_BYTES | 2 << 32);
        }
        let (avail, used) = (RING + 0x1000, RING + 0x2000);
        let available: Vec<u8> =
            [0, RING_SIZE].into_iter().chain(0..RING_SIZE).flat_map(u16::to_le_bytes).collect();
        self.ram.memory().write_slice(&available, GuestAddress(avail)).unwrap();
        for (register, value) in [
            (0x70, 1),
            (0x70, 3),
            (0x24, 0),
            (0x20, 1 << 1 | 1 << 7 | 1 << 15),
            (0x24, 1),
            (0x20, 1),
            (0x70, 11),
            (0x30, 0),
            (0x38, RING_SIZE.into()),
            (0x80, RING),
            (0x90, avail),
            (0xa0, used),
            (0x44, 1),
            (0x70, 15),
        ] {
            self.devices.mmio_write(VIRTIO_MMIO_BASE + register, &(value as u32).to_le_bytes());
        }
        let mut status = [0; 4];
        self.devices.mmio_read(VIRTIO_MMIO_BASE + 0x70, &mut status);
        assert_eq!(status, [15, 0, 0, 0], "the card is ready");
    }

    /// Executes up to a count. A guest that halts sleeps until the next timer.
    #[track_caller]
    fn run_to(&mut self, limit: u64) {
        while self.worker.cpu.count < limit {
            match self.worker.run(limit) {
                CpuExit::Limit => {}
                CpuExit::Attention => drop(self.worker.reach.bell.take()),
                CpuExit::Halted => self.sleep(),
                exit => panic!("{exit:?} at {:#x}", self.worker.cpu.rip),
            }
            self.worker.take_journal();
        }
    }

    #[track_caller]
    fn sleep(&mut self) {
        let now_ns = self.worker.virtual_ns();
        let due_ns = self.worker.cpu.bus.next_timer_ns().expect("something wakes it");
        self.worker.input(&LogInput::Advance { ns: due_ns.saturating_sub(now_ns).max(1) });
    }

    /// Everything.
    fn whole(&mut self) -> Whole {
        let state = self.worker.capture().unwrap();
        let mut memory = vec![0; USED_BYTES];
        self.ram.memory().read_slice(&mut memory, GuestAddress(0)).unwrap();
        Whole { state, devices: self.devices.capture(), memory }
    }

    /// Another machine that goes on from it.
    fn elsewhere(whole: &Whole) -> Self {
        let mut rig = Self::empty();
        for (page, content) in whole.memory.chunks(4096).enumerate() {
            if content.iter().any(|&byte| byte != 0) {
                rig.ram.memory().write_slice(content, GuestAddress(page as u64 * 4096)).unwrap();
            }
        }
        rig.take_over(&whole.state, &whole.devices);
        rig
    }

    /// The same machine goes on from what is captured of it.
    fn reload(&mut self) {
        let state = self.worker.capture().unwrap();
        let devices = self.devices.capture();
        self.take_over(&state, &devices);
    }

    /// The state passes through its encoding.
    fn take_over(&mut self, state: &SoftState, devices: &DevicesState) {
        let state: SoftState = postcard::from_bytes(&postcard::to_stdvec(state).unwrap()).unwrap();
        self.worker.load(&state).unwrap();
        self.devices.restore(devices).unwrap();
    }
}

/// Writes a register of the LAPIC.
fn apic(state: &mut SoftState, register: u64, value: u32) {
    state.chips.mmio_write(0, LAPIC_BASE + register, &value.to_le_bytes());
}

/// Writes a redirection entry of the IOAPIC.
fn pin(state: &mut SoftState, pin: u32, low: u32) {
    for (register, value) in [(0x11 + 2 * pin, 0), (0x10 + 2 * pin, low)] {
        state.chips.mmio_write(0, IOAPIC_BASE, &register.to_le_bytes());
        state.chips.mmio_write(0, IOAPIC_BASE + 0x10, &u32::to_le_bytes(value));
    }
}

#[track_caller]
fn assert_same(found: &Whole, expected: &Whole) {
    assert_eq!(found.state, expected.state);
    assert_eq!(found.devices, expected.devices);
    let at = found.memory.iter().zip(&expected.memory).position(|(a, b)| a != b);
    assert_eq!(at, None, "memory differs there");
}
