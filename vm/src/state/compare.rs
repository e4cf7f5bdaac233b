//! Compares a state that a machine was given with the state that it reads back without having executed anything. Left
//! out is what differs although the guest sees no difference: what time alone changes (counters, running timers, and
//! interrupts that these raise), and what processors and KVM leave undefined or normalise.

use super::{EngineState, KvmState, MachineState, VcpuState, VmState};
use crate::devices::DevicesState;
use kvm_bindings::{kvm_cpuid_entry2, kvm_irqchip, kvm_pit_state2, kvm_segment, kvm_sregs};
use std::os::raw::c_char;

/// How far a clock may seem to go back between being set and being read: KVM computes it in two ways.
const CLOCK_SLACK_NS: u64 = 1_000_000_000;

/// The first part that differs, in words.
pub(crate) fn difference(given: &MachineState, read: &MachineState) -> Option<String> {
    let MachineState {
        spec: _,
        engine,
        devices,
        #[cfg(feature = "next-version")]
        mark,
    } = given;
    #[cfg(feature = "next-version")]
    if *mark != read.mark {
        return Some("the mark".to_owned());
    }
    let engines = match (engine, &read.engine) {
        (EngineState::Kvm(given), EngineState::Kvm(read)) => kvm(given, read),
        (EngineState::Soft(given), EngineState::Soft(read)) => {
            let same = postcard::to_stdvec(given).ok() == postcard::to_stdvec(read).ok();
            (!same).then(|| "the processor".to_owned())
        }
        _ => Some("the engine".to_owned()),
    };
    engines.or_else(|| of_devices(devices, &read.devices).map(str::to_owned))
}

fn of_devices(given: &DevicesState, read: &DevicesState) -> Option<&'static str> {
    let DevicesState { com1, power, platform, virtio, pci, watchdog, rtc, wall_clock } = given;
    let parts = [
        (*com1 == read.com1, "the serial port"),
        (*power == read.power, "the power registers"),
        (platform.guest_time_ns <= read.platform.guest_time_ns, "guest time, which goes backwards,"),
        (*virtio == read.virtio, "the virtio devices"),
        (*pci == read.pci, "the PCI bus"),
        (*watchdog == read.watchdog, "the watchdog"),
        // Version 4 has none: the machine's is a fresh one then.
        (rtc.is_none() || *rtc == read.rtc, "the RTC"),
        (*wall_clock == read.wall_clock, "the time of day"),
    ];
    parts.iter().find(|(same, _)| !same).map(|(_, what)| *what)
}

fn kvm(given: &KvmState, read: &KvmState) -> Option<String> {
    if given.vcpus.len() != read.vcpus.len() {
        return Some("the number of vCPUs".to_owned());
    }
    let mut vcpus = given.vcpus.iter().zip(&read.vcpus).enumerate();
    vcpus
        .find_map(|(index, (given, read))| Some(format!("{} of vCPU {index}", vcpu(given, read)?)))
        .or_else(|| shared(&given.vm, &read.vm).map(str::to_owned))
}

fn vcpu(given: &VcpuState, read: &VcpuState) -> Option<String> {
    let VcpuState {
        cpuid,
        tsc_khz,
        // The counter goes on, and so apart from another host's.
        tsc_offset: _,
        mp_state,
        regs,
        sregs,
        xcrs,
        xsave,
        debug_regs,
        lapic,
        msrs,
        events,
    } = given;
    let parts = [
        (*cpuid == read.cpuid, "CPUID"),
        (*tsc_khz == read.tsc_khz, "the time stamp counter's frequency"),
        (*mp_state == read.mp_state, "MP state"),
        (*regs == read.regs, "the registers"),
        (same_sregs(&sregs.base, &read.sregs.base), "the system registers"),
        (sregs.pdptrs == read.sregs.pdptrs, "the page directory pointers"),
        (*xcrs == read.xcrs, "the extended control registers"),
        (same_xsave(xsave, &read.xsave), "the extended state"),
        (*debug_regs == read.debug_regs, "the debug registers"),
        (same_bytes(&lapic.regs, &read.lapic.regs, lapic_mask), "the local APIC"),
        (*events == read.events, "the pending events"),
    ];
    if let Some((_, what)) = parts.iter().find(|(same, _)| !same) {
        return Some((*what).to_owned());
    }
    let lasting = msrs.iter().filter(|msr| !goes_on(msr.index));
    lasting.into_iter().find_map(|given| {
        // One that this host has not is judged where states are taken over.
        let read = read.msrs.iter().find(|msr| msr.index == given.index)?;
        ((given.data ^ read.data) & msr_mask(given.index, cpuid) != 0)
            .then(|| format!("MSR {:#x} ({:#x}, read back as {:#x})", given.index, given.data, read.data))
    })
}

/// The stack and the entry of SYSENTER, which on other processors than Intel's is an instruction of 32-bit modes alone:
/// for their guests KVM keeps the lower halves that it is given. (Linux sets all 64 bits.)
fn msr_mask(msr: u32, cpuid: &[kvm_cpuid_entry2]) -> u64 {
    let is_intel = cpuid.iter().any(|leaf| {
        leaf.function == 0 && [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
    });
    if matches!(msr, 0x175 | 0x176) && !is_intel { u32::MAX.into() } else { u64::MAX }
}

/// MSRs that go on while the guest stands still: time stamp counter, SMI count, performance clocks, TSC deadline, and
/// Hyper-V's times and timers.
fn goes_on(msr: u32) -> bool {
    matches!(msr, 0x10 | 0x34 | 0xe7 | 0xe8 | 0x6e0 | 0x4000_0010 | 0x4000_0020 | 0x4000_00b0..=0x4000_00b7)
}

fn same_sregs(given: &kvm_sregs, read: &kvm_sregs) -> bool {
    #[rustfmt::skip]
    let kvm_sregs {
        cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, cr0, cr2, cr3, cr4, cr8, efer, apic_base, interrupt_bitmap: _,
    } = given;
    let segments = [
        (cs, &read.cs),
        (ds, &read.ds),
        (es, &read.es),
        (fs, &read.fs),
        (gs, &read.gs),
        (ss, &read.ss),
        (tr, &read.tr),
        (ldt, &read.ldt),
    ];
    let tables = [(gdt, &read.gdt), (idt, &read.idt)];
    segments.iter().all(|(given, read)| same_segment(given, read))
        && tables.iter().all(|(given, read)| (given.base, given.limit) == (read.base, read.limit))
        && [cr0, cr2, cr3, cr4, cr8, efer, apic_base]
            == [&read.cr0, &read.cr2, &read.cr3, &read.cr4, &read.cr8, &read.efer, &read.apic_base]
}

/// A segment that cannot be used has no limit and no attributes that anybody could rely on. A usable one counts as
/// accessed, which processors note when it is loaded.
fn same_segment(given: &kvm_segment, read: &kvm_segment) -> bool {
    let usable = |segment: &kvm_segment| segment.unusable == 0 && segment.present != 0;
    let attributes = |segment: &kvm_segment| {
        let &kvm_segment { limit, type_, dpl, db, s, l, g, avl, .. } = segment;
        (limit, type_ | 1, dpl, db, s, l, g, avl)
    };
    (given.base, given.selector, usable(given)) == (read.base, read.selector, usable(read))
        && (!usable(given) || attributes(given) == attributes(read))
}

/// Components that the other side does not have are in their initial state.
fn same_xsave(given: &[u8], read: &[u8]) -> bool {
    let common = given.len().min(read.len());
    (0..common).filter(|at| xsave_counts(*at)).all(|at| given[at] == read[at])
}

/// Not the x87's last opcode and pointers, which some processors keep only behind an exception; nor the mask of MXCSR,
/// which is the processor's; nor what is unused; nor which components are present: one that is in its initial state may
/// count as either.
fn xsave_counts(at: usize) -> bool {
    !matches!(at, 6..24 | 28..32 | 416..528)
}

fn shared(given: &VmState, read: &VmState) -> Option<&'static str> {
    let VmState { pic_master, pic_slave, ioapic, pit, clock } = given;
    let parts = [
        (same_chip(pic_master, &read.pic_master, pic_mask), "the first PIC"),
        (same_chip(pic_slave, &read.pic_slave, pic_mask), "the second PIC"),
        (same_chip(ioapic, &read.ioapic, ioapic_mask), "the IOAPIC"),
        (same_pit(pit, &read.pit), "the PIT"),
        (clock.clock <= read.clock.clock.saturating_add(CLOCK_SLACK_NS), "the clock, which goes backwards,"),
    ];
    parts.iter().find(|(same, _)| !same).map(|(_, what)| *what)
}

fn same_bytes(given: &[c_char], read: &[c_char], mask: fn(usize) -> u8) -> bool {
    given.len() == read.len()
        && given.iter().zip(read).enumerate().all(|(at, (given, read))| (given ^ read) as u8 & mask(at) == 0)
}

fn same_chip(given: &kvm_irqchip, read: &kvm_irqchip, mask: fn(usize) -> u8) -> bool {
    // SAFETY: `dummy` covers the whole union, and any bytes are valid for it.
    let (given_bytes, read_bytes) = unsafe { (given.chip.dummy, read.chip.dummy) };
    given.chip_id == read.chip_id && same_bytes(&given_bytes, &read_bytes, mask)
}

/// The version, which is KVM's; the timer's current count; what waits for the processor, from the timer or the IOAPIC,
/// with its trigger mode; and the priority that follows from that.
fn lapic_mask(at: usize) -> u8 {
    match at {
        0x30..0x40 | 0xa0..0xb0 | 0x180..0x280 | 0x390..0x3a0 => 0,
        _ => 0xff,
    }
}

/// Lines, which the PIT moves (`last_irr`, `irr`); and what follows the last field.
fn pic_mask(at: usize) -> u8 {
    if (2..16).contains(&at) { 0xff } else { 0 }
}

/// Lines, which the PIT moves; of each redirection whether an interrupt is on its way (bit 12) or served (bit 14).
fn ioapic_mask(at: usize) -> u8 {
    match at {
        16..24 => 0,
        24..216 if at % 8 == 1 => !0x50,
        0..216 => 0xff,
        _ => 0,
    }
}

fn same_pit(given: &kvm_pit_state2, read: &kvm_pit_state2) -> bool {
    let mut channels = given.channels.iter().zip(&read.channels);
    given.flags == read.flags
        && channels.all(|(given, read)| {
            (given.count, given.rw_mode, given.mode, given.bcd, given.gate)
                == (read.count, read.rw_mode, read.mode, read.bcd, read.gate)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_differs_by_what_the_guest_can_use_of_it() {
        let segment = |selector, type_, unusable| kvm_segment {
            base: 0x1000,
            limit: 0xffff,
            selector,
            type_,
            present: 1,
            unusable,
            ..Default::default()
        };
        assert!(same_segment(&segment(8, 2, 0), &segment(8, 3, 0)), "it counts as accessed");
        assert!(!same_segment(&segment(8, 2, 0), &segment(8, 10, 0)));
        assert!(!same_segment(&segment(8, 2, 0), &segment(16, 2, 0)));
        assert!(!same_segment(&segment(0, 2, 0), &segment(0, 2, 1)));
        let garbage = kvm_segment { limit: 5, dpl: 3, present: 0, ..segment(0, 9, 1) };
        assert!(same_segment(&garbage, &segment(0, 0, 1)));
    }

    #[test]
    fn the_entry_of_32_bit_system_calls_has_32_bits_where_64_bit_code_cannot_call_it() {
        let leaf = |name: &[u8; 12]| {
            let word = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
            [kvm_cpuid_entry2 { ebx: word(0), edx: word(4), ecx: word(8), ..Default::default() }]
        };
        assert_eq!(msr_mask(0x175, &leaf(b"AuthenticAMD")), 0xffff_ffff);
        assert_eq!(msr_mask(0x176, &leaf(b"AuthenticAMD")), 0xffff_ffff);
        assert_eq!(msr_mask(0x175, &leaf(b"GenuineIntel")), u64::MAX);
        assert_eq!(msr_mask(0x174, &leaf(b"AuthenticAMD")), u64::MAX);
    }

    #[test]
    fn what_a_guest_has_in_its_registers_counts_and_what_is_undefined_does_not() {
        let read = vec![0; 1088];
        for (at, counts) in
            [(0, true), (24, true), (160, true), (576, true), (8, false), (30, false), (512, false)]
        {
            let mut given = read.clone();
            given[at] = 1;
            assert_eq!(same_xsave(&given, &read), !counts, "byte {at}");
        }
        assert!(same_xsave(&read[..832], &read), "a host with more components");
    }

    #[test]
    fn interrupt_chips_differ_by_what_the_guest_set_up() {
        let with = |at: usize, value| {
            let mut chip = kvm_irqchip::default();
            // SAFETY: `dummy` covers the whole union.
            unsafe { chip.chip.dummy[at] = value };
            chip
        };
        let blank = kvm_irqchip::default();
        assert!(same_chip(&with(1, 1), &blank, pic_mask), "a line");
        assert!(!same_chip(&with(2, 1), &blank, pic_mask), "the mask");
        assert!(same_chip(&with(17, 1), &blank, ioapic_mask), "a line");
        assert!(!same_chip(&with(24, 1), &blank, ioapic_mask), "a vector");
        assert!(same_chip(&with(25, 0x40), &blank, ioapic_mask), "it is being served");
        assert!(!same_chip(&with(26, 1), &blank, ioapic_mask), "it is masked");
    }
}
