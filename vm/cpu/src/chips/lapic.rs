//! The local APIC of the one processor, in xAPIC mode: a priority queue of 256 vectors, six local sources, and the
//! timer.
//!
//! Reference: Intel SDM volume 3, chapter "Advanced Programmable Interrupt Controller". Where the manual leaves a
//! choice, this APIC does the same as KVM's, so that a guest finds the same machine on both engines. The timer's bus
//! clock is 1 GHz and the TSC is virtual time in nanoseconds: a tick before division is a nanosecond in every timer
//! mode.

use super::ChipError;
use ft_ram::layout::LAPIC_BASE;
use serde::{Deserialize, Serialize};

const ID: u64 = 0x20;
const VERSION: u64 = 0x30;
const TPR: u64 = 0x80;
const APR: u64 = 0x90;
const PPR: u64 = 0xa0;
const EOI: u64 = 0xb0;
const LDR: u64 = 0xd0;
const DFR: u64 = 0xe0;
const SVR: u64 = 0xf0;
const ISR: u64 = 0x100;
const TMR: u64 = 0x180;
const IRR: u64 = 0x200;
const ESR: u64 = 0x280;
const ICR_LOW: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const LVT: u64 = 0x320;
const LVT_LAST: u64 = 0x370;
const INITIAL_COUNT: u64 = 0x380;
const CURRENT_COUNT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;

/// An integrated APIC with six local vector table entries (the field is their number less one).
const VERSION_VALUE: u32 = 5 << 16 | 0x14;

const BASE_BSP: u64 = 1 << 8;
const BASE_ENABLE: u64 = 1 << 11;
const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const SVR_ENABLE: u32 = 1 << 8;
const SVR_BITS: u32 = 0x3ff;
const DFR_FIXED: u32 = 0x0fff_ffff;
const LDR_BITS: u32 = 0xff00_0000;
const DIVIDE_BITS: u32 = 0b1011;
const ICR_LOW_BITS: u32 = 0x000c_cfff;

const LVT_MASKED: u32 = 1 << 16;
const TIMER_PERIODIC: u32 = 1 << 17;
const TIMER_DEADLINE: u32 = 1 << 18;
/// Local sources, in the order of their registers.
const LVT_TIMER: usize = 0;
const LVT_LINT0: usize = 3;
const LVT_LINT1: usize = 4;
const LVT_ERROR: usize = 5;
/// What can be written: timer, thermal sensor, performance counters, LINT0, LINT1, error.
const LVT_BITS: [u32; 6] = [0x700ff, 0x107ff, 0x107ff, 0x1a7ff, 0x1a7ff, 0x100ff];

const ERROR_SEND_VECTOR: u32 = 1 << 5;
const ERROR_RECEIVE_VECTOR: u32 = 1 << 6;
const ERROR_REGISTER: u32 = 1 << 7;
const ERROR_BITS: u32 = ERROR_SEND_VECTOR | ERROR_RECEIVE_VECTOR | ERROR_REGISTER;

/// The processor's APIC identity. As on current processors it cannot be changed.
const APIC_ID: u8 = 0;
const BROADCAST: u8 = 0xff;

/// How an interrupt message or a local source is to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delivery {
    Fixed,
    Nmi,
    ExtInt,
    /// SMI, INIT, start-up: they reach no processor of this machine (there is no SMM and no second processor).
    Other,
}

impl Delivery {
    fn of(bits: u32) -> Delivery {
        match bits >> 8 & 7 {
            // Lowest priority: among one.
            0 | 1 => Delivery::Fixed,
            4 => Delivery::Nmi,
            7 => Delivery::ExtInt,
            _ => Delivery::Other,
        }
    }
}

/// An interrupt message on the bus between APICs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message {
    pub destination: u8,
    pub logical: bool,
    /// Vector and delivery mode as bits 10:0 of the ICR and of a redirection entry have them.
    pub bits: u32,
    pub level: bool,
}

/// A set of vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Vectors([u64; 4]);

impl Vectors {
    fn put(&mut self, vector: u8, set: bool) {
        let (word, bit) = (usize::from(vector >> 6), 1 << (vector & 63));
        if set { self.0[word] |= bit } else { self.0[word] &= !bit }
    }

    fn has(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 6)] >> (vector & 63) & 1 != 0
    }

    fn highest(&self) -> Option<u8> {
        let word = (0..4).rev().find(|&word| self.0[word] != 0)?;
        Some((word as u32 * 64 + 63 - self.0[word].leading_zeros()) as u8)
    }

    /// The register at `offset` from the first of the eight that show the set.
    fn register(&self, offset: u64) -> u32 {
        let index = (offset >> 4 & 7) as usize;
        (self.0[index / 2] >> (index % 2 * 32)) as u32
    }
}

/// The local APIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lapic {
    base: u64,
    tpr: u8,
    ldr: u32,
    dfr: u32,
    svr: u32,
    isr: Vectors,
    tmr: Vectors,
    irr: Vectors,
    /// What a read of the ESR shows, and what the next write to it will let it show.
    esr: u32,
    errors: u32,
    icr: [u32; 2],
    lvt: [u32; 6],
    initial_count: u32,
    divide: u32,
    /// When the timer fires next, in any of its modes. In deadline mode never zero.
    deadline_ns: Option<u64>,
    /// An NMI that the processor has not taken.
    nmi: bool,
}

impl Lapic {
    /// As firmware leaves it: LINT0 is the PIC's line and LINT1 the NMI's, the rest as after reset.
    pub(super) fn new() -> Lapic {
        let mut lvt = [LVT_MASKED; 6];
        lvt[LVT_LINT0] = 0x700;
        lvt[LVT_LINT1] = 0x400;
        Lapic { base: LAPIC_BASE | BASE_BSP | BASE_ENABLE, lvt, ..Lapic::reset() }
    }

    fn reset() -> Lapic {
        Lapic {
            base: 0,
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xff,
            isr: Vectors::default(),
            tmr: Vectors::default(),
            irr: Vectors::default(),
            esr: 0,
            errors: 0,
            icr: [0; 2],
            lvt: [LVT_MASKED; 6],
            initial_count: 0,
            divide: 0,
            deadline_ns: None,
            nmi: false,
        }
    }

    pub(super) fn validate(&self) -> Result<(), ChipError> {
        let lvt_extra = self.lvt.iter().zip(LVT_BITS).fold(0, |extra, (lvt, bits)| extra | lvt & !bits);
        ChipError::none_of("LAPIC", "base", self.base, !(BASE_ADDRESS | BASE_BSP | BASE_ENABLE))?;
        ChipError::none_of("LAPIC", "SVR", self.svr.into(), !u64::from(SVR_BITS))?;
        ChipError::none_of("LAPIC", "LDR", self.ldr.into(), !u64::from(LDR_BITS))?;
        ChipError::none_of("LAPIC", "DFR", (self.dfr ^ DFR_FIXED).into(), DFR_FIXED.into())?;
        ChipError::none_of("LAPIC", "ISR", self.isr.0[0], 0xffff)?;
        ChipError::none_of("LAPIC", "IRR", self.irr.0[0], 0xffff)?;
        ChipError::none_of("LAPIC", "errors", (self.esr | self.errors).into(), !u64::from(ERROR_BITS))?;
        ChipError::none_of("LAPIC", "ICR", self.icr[0].into(), !u64::from(ICR_LOW_BITS))?;
        ChipError::none_of("LAPIC", "ICR destination", self.icr[1].into(), !u64::from(LDR_BITS))?;
        ChipError::none_of("LAPIC", "LVT", lvt_extra.into(), u64::MAX)?;
        ChipError::none_of("LAPIC", "divide", self.divide.into(), !u64::from(DIVIDE_BITS))
    }

    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// Writes the base register. Disabling resets the APIC, as a processor's comes back from that with its reset
    /// values.
    pub(super) fn set_base(&mut self, value: u64) {
        let base = value & (BASE_ADDRESS | BASE_ENABLE) | BASE_BSP;
        if base & BASE_ENABLE == 0 {
            *self = Lapic::reset();
        }
        self.base = base;
    }

    fn enabled(&self) -> bool {
        self.base & BASE_ENABLE != 0
    }

    /// The offset of an address in its window, if it has one there.
    pub(super) fn offset(&self, addr: u64) -> Option<u64> {
        (self.enabled() && addr & !0xfff == self.base & BASE_ADDRESS).then_some(addr & 0xfff)
    }

    pub(super) fn tpr(&self) -> u8 {
        self.tpr
    }

    pub(super) fn set_tpr(&mut self, value: u8) {
        self.tpr = value;
    }

    fn ppr(&self) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0) & 0xf0;
        if self.tpr & 0xf0 >= in_service { self.tpr } else { in_service }
    }

    /// The vector that the processor would be given now. Software-disabling keeps what was accepted before.
    pub(super) fn pending(&self) -> Option<u8> {
        self.irr.highest().filter(|vector| vector & 0xf0 > self.ppr() & 0xf0)
    }

    pub(super) fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.irr.put(vector, false);
        self.isr.put(vector, true);
        Some(vector)
    }

    /// Whether the PIC's output reaches the processor as an external interrupt: by LINT0, or past a disabled APIC.
    pub(super) fn passes_pic(&self) -> bool {
        let lvt = self.lvt[LVT_LINT0];
        !self.enabled() || (lvt & LVT_MASKED == 0 && Delivery::of(lvt) == Delivery::ExtInt)
    }

    /// The PIC's output went high: an interrupt if LINT0 is programmed for one of its own.
    pub(super) fn raise_lint0(&mut self) {
        self.raise(LVT_LINT0);
    }

    /// Takes the NMI that waits, if one does.
    pub(super) fn take_nmi(&mut self) -> bool {
        std::mem::take(&mut self.nmi)
    }

    /// A message from the bus; says whether this APIC accepted it.
    pub(super) fn receive(&mut self, message: Message) -> bool {
        if !self.enabled() || !self.addressed(message.destination, message.logical) {
            return false;
        }
        match Delivery::of(message.bits) {
            Delivery::Fixed => self.accept(message.bits as u8, message.level),
            Delivery::Nmi => {
                self.nmi = true;
                true
            }
            Delivery::ExtInt | Delivery::Other => false,
        }
    }

    fn addressed(&self, destination: u8, logical: bool) -> bool {
        let own = (self.ldr >> 24) as u8;
        match (logical, self.dfr >> 28) {
            _ if destination == BROADCAST => true,
            (false, _) => destination == APIC_ID,
            // The flat model.
            (true, 0xf) => destination & own != 0,
            // The cluster model: a cluster's number and members in it.
            (true, _) => {
                (destination >> 4 == own >> 4 || destination >> 4 == 0xf) && destination & own & 0xf != 0
            }
        }
    }

    fn accept(&mut self, vector: u8, level: bool) -> bool {
        if self.svr & SVR_ENABLE == 0 {
            return false;
        }
        if vector < 16 {
            self.error(ERROR_RECEIVE_VECTOR);
            return false;
        }
        self.irr.put(vector, true);
        self.tmr.put(vector, level);
        true
    }

    /// A local source's interrupt.
    fn raise(&mut self, source: usize) {
        let lvt = self.lvt[source];
        if !self.enabled() || lvt & LVT_MASKED != 0 {
            return;
        }
        // The timer's and the error's entries have no delivery mode; the bits are clear there.
        match Delivery::of(lvt & 0x7ff) {
            Delivery::Fixed => {
                self.accept(lvt as u8, false);
            }
            Delivery::Nmi => self.nmi = true,
            Delivery::ExtInt | Delivery::Other => {}
        }
    }

    fn error(&mut self, bit: u32) {
        // An error entry with an illegal vector errs once, not for ever.
        let new = self.errors & bit == 0;
        self.errors |= bit;
        if new {
            self.raise(LVT_ERROR);
        }
    }

    /// Ends the interrupt in service; the vector if the IOAPIC must hear of it.
    fn end(&mut self) -> Option<u8> {
        let vector = self.isr.highest()?;
        self.isr.put(vector, false);
        self.tmr.has(vector).then_some(vector)
    }

    fn send(&mut self) {
        let [bits, high] = self.icr;
        if Delivery::of(bits) == Delivery::Fixed && bits & 0xff < 16 {
            return self.error(ERROR_SEND_VECTOR);
        }
        let (destination, logical) = match bits >> 18 & 3 {
            0 => ((high >> 24) as u8, bits & 1 << 11 != 0),
            1 => (APIC_ID, false),
            2 => (BROADCAST, false),
            // All but itself: nobody.
            _ => return,
        };
        self.receive(Message { destination, logical, bits, level: false });
    }

    pub(super) fn read(&mut self, now_ns: u64, offset: u64) -> u32 {
        match offset {
            ID => u32::from(APIC_ID) << 24,
            VERSION => VERSION_VALUE,
            TPR => self.tpr.into(),
            PPR => self.ppr().into(),
            // Write-only, or of older processors' arbitration.
            EOI | APR => 0,
            LDR => self.ldr,
            DFR => self.dfr,
            SVR => self.svr,
            ISR..TMR => self.isr.register(offset),
            TMR..IRR => self.tmr.register(offset),
            IRR..ESR => self.irr.register(offset),
            ESR => self.esr,
            ICR_LOW => self.icr[0],
            ICR_HIGH => self.icr[1],
            LVT..=LVT_LAST => self.lvt[((offset - LVT) >> 4) as usize],
            INITIAL_COUNT => self.initial_count,
            CURRENT_COUNT => self.count(now_ns),
            DIVIDE => self.divide,
            _ => {
                self.error(ERROR_REGISTER);
                0
            }
        }
    }

    /// Writes a register. Returns the vector of a level triggered interrupt that ended with it.
    pub(super) fn write(&mut self, now_ns: u64, offset: u64, value: u32) -> Option<u8> {
        match offset {
            TPR => self.tpr = value as u8,
            EOI => return self.end(),
            LDR => self.ldr = value & LDR_BITS,
            DFR => self.dfr = value | DFR_FIXED,
            SVR => {
                self.svr = value & SVR_BITS;
                if self.svr & SVR_ENABLE == 0 {
                    self.lvt.iter_mut().for_each(|lvt| *lvt |= LVT_MASKED);
                }
            }
            ESR => self.esr = std::mem::take(&mut self.errors),
            ICR_LOW => {
                self.icr[0] = value & ICR_LOW_BITS & !(1 << 12);
                self.send();
            }
            ICR_HIGH => self.icr[1] = value & LDR_BITS,
            LVT..=LVT_LAST => self.set_lvt(((offset - LVT) >> 4) as usize, value),
            INITIAL_COUNT if !self.by_deadline() => {
                self.initial_count = value;
                self.deadline_ns = (value != 0).then(|| now_ns.saturating_add(self.period_ns()));
            }
            DIVIDE => {
                let left = self.count(now_ns);
                self.divide = value & DIVIDE_BITS;
                // What is left to count goes on at the new rate.
                if !self.by_deadline() && self.deadline_ns.is_some() {
                    self.deadline_ns = Some(now_ns.saturating_add(u64::from(left) << self.divide_shift()));
                }
            }
            ID | VERSION | APR | PPR | INITIAL_COUNT | CURRENT_COUNT | ISR..ESR => {}
            _ => self.error(ERROR_REGISTER),
        }
        None
    }

    fn set_lvt(&mut self, source: usize, value: u32) {
        let by_deadline = self.by_deadline();
        self.lvt[source] = value & LVT_BITS[source];
        if self.svr & SVR_ENABLE == 0 {
            self.lvt[source] |= LVT_MASKED;
        }
        if by_deadline != self.by_deadline() {
            self.initial_count = 0;
            self.deadline_ns = None;
        }
    }

    /// TSC-deadline mode; the reserved fourth mode is taken for it.
    fn by_deadline(&self) -> bool {
        self.lvt[LVT_TIMER] & TIMER_DEADLINE != 0
    }

    fn divide_shift(&self) -> u32 {
        let bits = self.divide >> 1 & 4 | self.divide & 3;
        (bits + 1) & 7
    }

    fn period_ns(&self) -> u64 {
        u64::from(self.initial_count) << self.divide_shift()
    }

    fn count(&self, now_ns: u64) -> u32 {
        let left = match self.deadline_ns {
            Some(deadline) if !self.by_deadline() => deadline.saturating_sub(now_ns),
            _ => 0,
        };
        left.div_ceil(1 << self.divide_shift()).min(self.initial_count.into()) as u32
    }

    /// IA32_TSC_DEADLINE; zero when disarmed or in another mode.
    pub(super) fn tsc_deadline(&self) -> u64 {
        self.deadline_ns.filter(|_| self.by_deadline()).unwrap_or(0)
    }

    /// Arms the timer in deadline mode; no effect in others. A deadline that is over fires with the next run.
    pub(super) fn set_tsc_deadline(&mut self, value: u64) {
        if self.by_deadline() {
            self.deadline_ns = (value != 0).then_some(value);
        }
    }

    /// When the timer next does something that can be seen without reading it.
    pub(super) fn next_timer_ns(&self) -> Option<u64> {
        self.deadline_ns.filter(|_| self.lvt[LVT_TIMER] & LVT_MASKED == 0)
    }

    /// Lets the timer fire. However many periods are over, it fires once and goes on in phase.
    pub(super) fn run_timer(&mut self, now_ns: u64) {
        let Some(deadline) = self.deadline_ns.filter(|deadline| *deadline <= now_ns) else { return };
        let period = self.period_ns();
        let periodic = !self.by_deadline() && self.lvt[LVT_TIMER] & TIMER_PERIODIC != 0 && period != 0;
        self.deadline_ns = periodic.then(|| {
            let missed = (now_ns - deadline) / period + 1;
            deadline.saturating_add(missed.saturating_mul(period))
        });
        self.raise(LVT_TIMER);
    }
}
