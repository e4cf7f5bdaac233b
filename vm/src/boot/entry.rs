//! The start of a booted guest, in terms of the architecture: the state that an engine sets on top of its power-on
//! state. All other state is as after power-on.

/// The processors' state at the guest's first instruction.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The first vCPUs, in order. Those that the list does not reach wait for their start.
    pub vcpus: Vec<VcpuEntry>,
    /// What firmware would have set on every processor; none for a guest that looks at none of it.
    pub firmware: Option<Firmware>,
}

/// What firmware leaves behind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Firmware {
    /// MTRR default type register (MSR 0x2ff).
    pub mtrr_def_type: u64,
    /// Delivery modes of the LAPIC's LINT0 and LINT1, as they stand in the registers (bits 8 to 10).
    pub lint_modes: [u32; 2],
}

/// One vCPU in 64-bit mode. The interrupt descriptor table is empty, general registers that are not named are zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VcpuEntry {
    pub rip: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub code: EntrySegment,
    /// DS, ES, FS, GS and SS.
    pub data: EntrySegment,
    /// The task register, where it is not the power-on one.
    pub task: Option<EntrySegment>,
    /// Base and limit.
    pub gdt: (u64, u16),
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
}

/// A segment at base 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntrySegment {
    pub selector: u16,
    /// In bytes, granularity applied.
    pub limit: u32,
    pub kind: u8,
    pub code_or_data: bool,
    pub dpl: u8,
    pub long: bool,
    pub big: bool,
    /// Limit in pages.
    pub granular: bool,
}

impl EntrySegment {
    /// A flat 64-bit code segment.
    pub fn code(selector: u16, dpl: u8) -> Self {
        let (kind, code_or_data) = (0xb, true);
        Self { selector, limit: !0, kind, code_or_data, dpl, long: true, big: false, granular: true }
    }

    /// A flat data segment.
    pub fn data(selector: u16, dpl: u8) -> Self {
        let (kind, code_or_data) = (0x3, true);
        Self { selector, limit: !0, kind, code_or_data, dpl, long: false, big: true, granular: true }
    }

    /// A busy 64-bit task state segment.
    pub fn task(selector: u16, limit: u16) -> Self {
        let (kind, code_or_data, limit) = (0xb, false, u32::from(limit));
        Self { selector, limit, kind, code_or_data, dpl: 0, long: false, big: false, granular: false }
    }

    /// Bits 40 to 55 of the descriptor, without the limit's (Intel SDM volume 3, 3.4.5).
    pub fn attributes(&self) -> u16 {
        u16::from(self.kind)
            | u16::from(self.code_or_data) << 4
            | u16::from(self.dpl) << 5
            | 1 << 7
            | u16::from(self.long) << 13
            | u16::from(self.big) << 14
            | u16::from(self.granular) << 15
    }

    /// As a descriptor table has it.
    pub fn descriptor(&self) -> u64 {
        let limit = u64::from(if self.granular { self.limit >> 12 } else { self.limit });
        (limit & 0xffff) | u64::from(self.attributes()) << 40 | (limit & 0xf_0000) << 32
    }
}
