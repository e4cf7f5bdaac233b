//! The state that only system code sees: segments, control and debug registers, model-specific registers. Plain data
//! with the values that a processor has after reset, and a check for states that come from elsewhere.
//!
//! Memory types (PAT, MTRRs) are kept for the guest and change nothing.

use serde::{Deserialize, Serialize};

/// Indices into [`System::segs`].
pub(crate) const ES: usize = 0;
pub(crate) const CS: usize = 1;
pub(crate) const SS: usize = 2;
pub(crate) const DS: usize = 3;
pub(crate) const FS: usize = 4;
pub(crate) const GS: usize = 5;

pub(crate) const CR0_PE: u64 = 1 << 0;
pub(crate) const CR0_MP: u64 = 1 << 1;
pub(crate) const CR0_EM: u64 = 1 << 2;
pub(crate) const CR0_TS: u64 = 1 << 3;
pub(crate) const CR0_ET: u64 = 1 << 4;
pub(crate) const CR0_NE: u64 = 1 << 5;
pub(crate) const CR0_WP: u64 = 1 << 16;
pub(crate) const CR0_AM: u64 = 1 << 18;
pub(crate) const CR0_NW: u64 = 1 << 29;
pub(crate) const CR0_CD: u64 = 1 << 30;
pub(crate) const CR0_PG: u64 = 1 << 31;
/// The others read as zero and ignore writes.
pub(crate) const CR0_MASK: u64 =
    CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG;

pub(crate) const CR4_TSD: u64 = 1 << 2;
pub(crate) const CR4_DE: u64 = 1 << 3;
pub(crate) const CR4_PSE: u64 = 1 << 4;
pub(crate) const CR4_PAE: u64 = 1 << 5;
pub(crate) const CR4_PGE: u64 = 1 << 7;
pub(crate) const CR4_PCE: u64 = 1 << 8;
pub(crate) const CR4_OSFXSR: u64 = 1 << 9;
pub(crate) const CR4_OSXMMEXCPT: u64 = 1 << 10;
/// Writing any other bit is #GP: CPUID offers nothing that they would enable.
pub(crate) const CR4_MASK: u64 =
    CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCE | CR4_OSFXSR | CR4_OSXMMEXCPT;

pub(crate) const EFER_SCE: u64 = 1 << 0;
pub(crate) const EFER_LME: u64 = 1 << 8;
pub(crate) const EFER_LMA: u64 = 1 << 10;
pub(crate) const EFER_NXE: u64 = 1 << 11;
pub(crate) const EFER_MASK: u64 = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;

/// Physical address bits, as CPUID says.
pub(crate) const PHYSICAL_BITS: u32 = 40;
pub(crate) const PHYSICAL_MASK: u64 = (1 << PHYSICAL_BITS) - 1;

/// DR6's bits that are always one, and those that hold something.
pub(crate) const DR6_FIXED: u64 = 0xffff_0ff0;
pub(crate) const DR6_MASK: u64 = 0xe00f;
pub(crate) const DR7_FIXED: u64 = 0x400;
/// General detect (bit 13) is not kept: accesses to the debug registers are never trapped.
pub(crate) const DR7_MASK: u64 = 0xffff_0bff;

/// Variable-range MTRRs.
pub(crate) const MTRR_VARIABLE: usize = 8;
/// Fixed-range MTRRs: one of 64 KiB, two of 16 KiB, eight of 4 KiB units.
pub(crate) const MTRR_FIXED: usize = 11;

/// Whether bits 63 to 48 repeat bit 47.
pub(crate) fn is_canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRegister {
    /// What the guest loaded.
    pub selector: u16,
    /// First linear address.
    pub base: u64,
    /// In bytes.
    pub limit: u32,
    /// Descriptor bits 40 to 55 as they stand in the descriptor (type, S, DPL, P at 0 to 7; AVL, L, DB, G at 12 to 15).
    /// Zero (not present) is what a null selector leaves.
    pub attributes: u16,
}

/// Type bits of code and data segments.
pub(crate) const TYPE_ACCESSED: u16 = 1;
const TYPE_WRITABLE_OR_READABLE: u16 = 1 << 1;
const TYPE_CONFORMING: u16 = 1 << 2;
const TYPE_CODE: u16 = 1 << 3;
/// System descriptors' types that are used.
pub(crate) const SYSTEM_LDT: u16 = 0x2;
pub(crate) const SYSTEM_TSS: u16 = 0x9;
pub(crate) const SYSTEM_TSS_BUSY: u16 = 0xb;

impl SegmentRegister {
    /// From the descriptor's eight bytes (of a system descriptor in long mode: its low eight).
    pub(crate) fn from_descriptor(selector: u16, descriptor: u64) -> Self {
        let limit = (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32;
        let granular = descriptor >> 55 & 1 != 0;
        Self {
            selector,
            base: descriptor >> 16 & 0xff_ffff | descriptor >> 32 & 0xff00_0000,
            limit: if granular { limit << 12 | 0xfff } else { limit },
            attributes: (descriptor >> 40) as u16 & 0xf0ff,
        }
    }

    pub(crate) fn kind(&self) -> u16 {
        self.attributes & 0xf
    }

    pub(crate) fn dpl(&self) -> u8 {
        (self.attributes >> 5 & 3) as u8
    }

    pub(crate) fn is_present(&self) -> bool {
        self.attributes & 1 << 7 != 0
    }

    /// Code or data, not a system descriptor.
    pub(crate) fn is_memory(&self) -> bool {
        self.attributes & 1 << 4 != 0
    }

    pub(crate) fn is_code(&self) -> bool {
        self.is_memory() && self.attributes & TYPE_CODE != 0
    }

    pub(crate) fn is_conforming(&self) -> bool {
        self.is_code() && self.attributes & TYPE_CONFORMING != 0
    }

    pub(crate) fn is_readable(&self) -> bool {
        self.is_memory() && (!self.is_code() || self.attributes & TYPE_WRITABLE_OR_READABLE != 0)
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.is_memory() && !self.is_code() && self.attributes & TYPE_WRITABLE_OR_READABLE != 0
    }

    /// L: 64-bit code.
    pub(crate) fn is_long(&self) -> bool {
        self.attributes & 1 << 13 != 0
    }

    /// D/B: 32-bit code or stack.
    pub(crate) fn is_big(&self) -> bool {
        self.attributes & 1 << 14 != 0
    }

    /// Code as syscall and sysret load it.
    pub(crate) fn flat_code(selector: u16, dpl: u8, long: bool) -> Self {
        let size = if long { 0xa000 } else { 0xc000 };
        Self { selector, base: 0, limit: u32::MAX, attributes: size | 0x9b | u16::from(dpl) << 5 }
    }

    /// Data as syscall and sysret load it.
    pub(crate) fn flat_data(selector: u16, dpl: u8) -> Self {
        Self { selector, base: 0, limit: u32::MAX, attributes: 0xc093 | u16::from(dpl) << 5 }
    }
}

/// What the memory type range registers hold; inert.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mtrrs {
    /// MTRRdefType.
    pub def_type: u64,
    /// In the order of their addresses: 0x250, 0x258, 0x259, 0x268 to 0x26f.
    pub fixed: [u64; MTRR_FIXED],
    /// Base and mask.
    pub variable: [[u64; 2]; MTRR_VARIABLE],
}

/// What only system code sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// ES, CS, SS, DS, FS, GS.
    pub segs: [SegmentRegister; 6],
    /// LDTR.
    pub ldtr: SegmentRegister,
    /// The task register.
    pub tr: SegmentRegister,
    /// Base and limit.
    pub gdtr: (u64, u16),
    /// Base and limit.
    pub idtr: (u64, u16),
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// DR0 to DR7; 4 and 5 stay zero.
    pub dr: [u64; 8],
    /// STAR: selectors of syscall and sysret.
    pub star: u64,
    /// LSTAR: where syscall goes from 64-bit code.
    pub lstar: u64,
    /// CSTAR: where it goes from compatibility mode.
    pub cstar: u64,
    /// SFMASK: flags that syscall clears.
    pub fmask: u64,
    /// KERNEL_GS_BASE: swapgs' other base.
    pub kernel_gs_base: u64,
    /// SYSENTER_CS.
    pub sysenter_cs: u64,
    /// SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// TSC_AUX, which rdtscp reads.
    pub tsc_aux: u64,
    /// What the time stamp counter is ahead of virtual time.
    pub tsc_adjust: u64,
    /// PAT.
    pub pat: u64,
    /// The memory type range registers.
    pub mtrrs: Mtrrs,
    /// An NMI was taken, and no iret was executed since: the next one waits.
    pub nmi_blocked: bool,
}

/// A captured state that no guest can have brought about.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{register} cannot be {value:#x}: {why}")]
pub struct InvalidSystem {
    /// Which register.
    pub register: &'static str,
    /// Its value.
    pub value: u64,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Default for System {
    /// After reset (AMD APM volume 2, table 14-1), in 16-bit mode: the loader sets the mode that a guest starts in.
    fn default() -> Self {
        let data = SegmentRegister { selector: 0, base: 0, limit: 0xffff, attributes: 0x93 };
        let code = SegmentRegister { selector: 0xf000, base: 0xffff_0000, limit: 0xffff, attributes: 0x9b };
        Self {
            segs: [data, code, data, data, data, data],
            ldtr: SegmentRegister { attributes: 0x82, limit: 0xffff, ..SegmentRegister::default() },
            tr: SegmentRegister { attributes: 0x8b, limit: 0xffff, ..SegmentRegister::default() },
            gdtr: (0, 0xffff),
            idtr: (0, 0xffff),
            cr0: CR0_CD | CR0_NW | CR0_ET,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            dr: [0, 0, 0, 0, 0, 0, DR6_FIXED, DR7_FIXED],
            star: 0,
            lstar: 0,
            cstar: 0,
            fmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            tsc_aux: 0,
            tsc_adjust: 0,
            pat: 0x0007_0406_0007_0406,
            mtrrs: Mtrrs { def_type: 0, fixed: [0; MTRR_FIXED], variable: [[0; 2]; MTRR_VARIABLE] },
            nmi_blocked: false,
        }
    }
}

impl System {
    /// EFER.LMA: 64-bit or compatibility mode.
    #[inline]
    pub(crate) fn is_long_mode(&self) -> bool {
        self.efer & EFER_LMA != 0
    }

    /// 64-bit mode.
    #[inline]
    pub(crate) fn is_64bit(&self) -> bool {
        self.is_long_mode() && self.segs[CS].is_long()
    }

    /// Refuses a state that the processor cannot be in, as far as anything here relies on it. Segments, whose content
    /// the guest chooses, are only checked for what a load of a descriptor leaves.
    pub fn validate(&self, cpl: u8) -> Result<(), InvalidSystem> {
        let Self {
            segs,
            ldtr,
            tr,
            gdtr,
            idtr,
            cr0,
            cr2: _,
            cr3,
            cr4,
            efer,
            dr,
            star: _,
            lstar,
            cstar,
            fmask,
            kernel_gs_base,
            sysenter_cs,
            sysenter_esp,
            sysenter_eip,
            tsc_aux,
            tsc_adjust: _,
            pat,
            mtrrs,
            nmi_blocked: _,
        } = self;
        let check = |register: &'static str, value: u64, good: bool, why: &'static str| {
            if good { Ok(()) } else { Err(InvalidSystem { register, value, why }) }
        };
        check("the privilege level", cpl.into(), cpl <= 3, "there are four")?;
        let paging = cr0 & CR0_PG != 0;
        check("CR0", *cr0, cr0 & !CR0_MASK == 0 && cr0 & CR0_ET != 0, "reserved bits")?;
        check("CR0", *cr0, !paging || cr0 & CR0_PE != 0, "paging without protection")?;
        check("CR0", *cr0, cr0 & (CR0_NW | CR0_CD) != CR0_NW, "NW without CD")?;
        check("CR3", *cr3, cr3 & !PHYSICAL_MASK == 0, "beyond physical memory")?;
        check("CR4", *cr4, cr4 & !CR4_MASK == 0, "features that are not offered")?;
        check("EFER", *efer, efer & !EFER_MASK == 0, "features that are not offered")?;
        let long = efer & EFER_LMA != 0;
        check("EFER", *efer, long == paging, "paging is on in long mode and only there")?;
        check("EFER", *efer, !long || efer & EFER_LME != 0, "LMA without LME")?;
        check("CR4", *cr4, !long || cr4 & CR4_PAE != 0, "long mode without PAE")?;
        for segment in segs.iter().chain([ldtr, tr]) {
            let SegmentRegister { selector: _, base, limit: _, attributes } = *segment;
            check("a segment's base", base, is_canonical(base), "not canonical")?;
            check("a segment's attributes", attributes.into(), attributes & !0xf0ff == 0, "reserved bits")?;
        }
        let code = &segs[CS];
        let good = !(long && code.is_long() && code.is_big());
        check("CS's attributes", code.attributes.into(), good, "64-bit and 32-bit")?;
        for (name, value) in [
            ("the GDT's base", gdtr.0),
            ("the IDT's base", idtr.0),
            ("LSTAR", *lstar),
            ("CSTAR", *cstar),
            ("KERNEL_GS_BASE", *kernel_gs_base),
            ("SYSENTER_ESP", *sysenter_esp),
            ("SYSENTER_EIP", *sysenter_eip),
        ] {
            check(name, value, is_canonical(value), "not canonical")?;
        }
        for (name, value) in [("SFMASK", *fmask), ("SYSENTER_CS", *sysenter_cs), ("TSC_AUX", *tsc_aux)] {
            check(name, value, value >> 32 == 0, "more than 32 bits")?;
        }
        check("DR4", dr[4], dr[4] == 0, "it is DR6's second name")?;
        check("DR5", dr[5], dr[5] == 0, "it is DR7's second name")?;
        check("DR6", dr[6], dr[6] & !DR6_MASK == DR6_FIXED, "reserved bits")?;
        check("DR7", dr[7], dr[7] & !DR7_MASK == DR7_FIXED, "reserved bits")?;
        check("PAT", *pat, super::msr::is_pat(*pat), "undefined memory types")?;
        check(
            "an MTRR",
            mtrrs.def_type,
            super::msr::are_mtrrs(mtrrs),
            "undefined memory types or reserved bits",
        )
    }
}
