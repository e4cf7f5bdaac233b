//! The engine's complete state as plain data. Left out are caches (translations, decoded code), the host's part (inputs
//! that wait in the inbox), memory and the devices' state.

use super::outbox::WAITING_BYTES_MAX;
use crate::boot::entry::{Entry, EntrySegment, VcpuEntry};
use crate::state::error::StateError;
use ft_cpu::{Chips, Clock, CpuState, Fpu, SegmentRegister, System, flags};
use ft_ram::layout::LAPIC_BASE;
use serde::{Deserialize, Serialize};

/// Counts and times beyond this (146 years) are those of no machine, and let sums be made without care.
pub(crate) const TIME_MAX_NS: u64 = 1 << 62;
/// Frames of one notification: a full queue of 256.
const OUTBOX_FRAMES_MAX: usize = 256;

/// See the module. Untrusted when it comes back: [`SoftState::validate`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SoftState {
    pub cpu: CpuState,
    pub system: System,
    pub fpu: Fpu,
    pub chips: Chips,
    pub clock: Clock,
    pub idle: IdleState,
    /// Frames that the guest has sent and the sink has not taken, each behind its header.
    pub outbox: Vec<SentFrame>,
}

/// A frame that the guest has sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SentFrame {
    /// The number of the card that it left by.
    pub card: u8,
    /// The frame behind its header.
    pub packet: Vec<u8>,
}

/// The platform device's idle register, where the engine waits in the guest's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdleState {
    /// A virtio device has signalled since the guest idled last.
    pub signalled: bool,
    /// The guest idles until this virtual time.
    pub until_ns: Option<u64>,
}

impl SoftState {
    /// After power-on, at this time of day.
    pub(crate) fn power_on(boot_unix_s: u64) -> Self {
        Self {
            cpu: CpuState {
                regs: [0; 16],
                rip: 0xfff0,
                rflags: 2,
                count: 0,
                cpl: 0,
                shadow: false,
                halted: false,
            },
            system: System::default(),
            fpu: Fpu::default(),
            chips: Chips::new(boot_unix_s),
            clock: Clock::default(),
            // As on a thread that never idled before: there may have been anything.
            idle: IdleState { signalled: true, until_ns: None },
            outbox: Vec::new(),
        }
    }

    /// Sets a guest's entry on top of the power-on state.
    pub(crate) fn enter(&mut self, entry: &Entry) {
        if let Some(firmware) = &entry.firmware {
            self.system.mtrrs.def_type = firmware.mtrr_def_type;
            for (offset, mode) in [0x350, 0x360].into_iter().zip(firmware.lint_modes) {
                let mut register = [0; 4];
                self.chips.mmio_read(0, LAPIC_BASE + offset, &mut register);
                let value = u32::from_le_bytes(register) & !0x700 | mode;
                self.chips.mmio_write(0, LAPIC_BASE + offset, &value.to_le_bytes());
            }
        }
        if let Some(vcpu) = entry.vcpus.first() {
            self.enter_vcpu(vcpu);
        }
    }

    fn enter_vcpu(&mut self, entry: &VcpuEntry) {
        let &VcpuEntry { rip, rsp, rbp, rdi, rsi, rdx, code, data, task, gdt, cr0, cr3, cr4, efer } = entry;
        let cpu = &mut self.cpu;
        cpu.rip = rip;
        let [.., at_rdx, _, at_rsp, at_rbp, at_rsi, at_rdi] = &mut cpu.regs[..8] else {
            unreachable!("eight of sixteen registers")
        };
        (*at_rdx, *at_rsp, *at_rbp, *at_rsi, *at_rdi) = (rdx, rsp, rbp, rsi, rdi);
        cpu.cpl = code.dpl;
        let system = &mut self.system;
        let data = segment(&data);
        system.segs = [data, segment(&code), data, data, data, data];
        if let Some(task) = task {
            system.tr = segment(&task);
        }
        (system.gdtr, system.idtr) = (gdt, (0, 0));
        (system.cr0, system.cr3, system.cr4, system.efer) = (cr0, cr3, cr4, efer);
    }

    /// Refuses what no machine can be in, as far as anything relies on it.
    pub(crate) fn validate(&self) -> Result<(), StateError> {
        let Self { cpu, system, fpu, chips, clock, idle, outbox } = self;
        let refuse = |why: String| Err(StateError::Soft(why));
        let CpuState { regs: _, rip: _, rflags, count, cpl, shadow: _, halted: _ } = cpu;
        if rflags & !flags::ALL != 2 {
            return refuse(format!("RFLAGS {rflags:#x}"));
        }
        if !clock.is_valid(*count, TIME_MAX_NS) {
            return refuse(format!("{clock:?} at {count} instructions"));
        }
        if idle.until_ns.is_some_and(|ns| ns > 2 * TIME_MAX_NS) {
            return refuse("idle for ever".into());
        }
        if outbox.len() > OUTBOX_FRAMES_MAX {
            return refuse(format!("{} frames that wait to be sent", outbox.len()));
        }
        let waiting: usize = outbox.iter().map(|frame| frame.packet.len()).sum();
        if waiting > WAITING_BYTES_MAX {
            return refuse(format!("{waiting} bytes of frames that wait to be sent"));
        }
        system.validate(*cpl).map_err(|e| StateError::Soft(e.to_string()))?;
        fpu.validate().map_err(|e| StateError::Soft(e.to_string()))?;
        chips.validate().map_err(|e| StateError::Soft(e.to_string()))
    }
}

fn segment(segment: &EntrySegment) -> SegmentRegister {
    SegmentRegister {
        selector: segment.selector,
        base: 0,
        limit: segment.limit,
        attributes: segment.attributes(),
    }
}
