//! Priorities, nesting, edges and levels, through the LAPIC, the IOAPIC and the PIC.

use super::*;

#[test]
fn higher_classes_nest_and_lower_ones_wait_for_the_end() {
    let mut pc = Pc::with_apic();
    let send = |pc: &mut Pc, vector: u32| pc.apic(ICR, 1 << 18 | vector);
    send(&mut pc, 0x51);
    assert_eq!(pc.take(), Some(0x51));
    send(&mut pc, 0x5f);
    assert_eq!(pc.take(), None, "the class in service holds its own back");
    send(&mut pc, 0x61);
    assert_eq!(pc.take(), Some(0x61));
    assert_eq!(pc.apic_read(PPR), 0x60);
    // The registers show 0x51 and 0x61 in service, 0x5f requested.
    assert_eq!((pc.apic_read(0x120), pc.apic_read(0x130)), (1 << 17, 1 << 1));
    assert_eq!(pc.apic_read(0x220), 1 << 31);
    pc.apic(EOI, 0);
    assert_eq!(pc.take(), None);
    pc.apic(EOI, 0);
    pc.chips.set_cr8(5);
    assert_eq!((pc.apic_read(TPR), pc.take()), (0x50, None));
    pc.apic(TPR, 0x4f);
    assert_eq!((pc.chips.cr8(), pc.take()), (4, Some(0x5f)));
    // To others only: to nobody. An NMI to itself waits apart.
    pc.apic(ICR, 3 << 18 | 0x71);
    pc.apic(ICR, 2 << 18 | 4 << 8);
    assert_eq!((pc.take(), pc.chips.take_nmi(), pc.chips.take_nmi()), (None, true, false));
}

#[test]
fn a_devices_message_is_taken_by_whom_it_is_for_at_once_and_once() {
    let mut pc = Pc::with_apic();
    pc.apic(0xd0, 1 << 24);
    // To processor 0, to its logical place, to all; an NMI; and to those that are not there.
    for (address, data) in [(0xfee0_0000, 0x51), (0xfee0_1004, 0x152), (0xfeef_f000, 0xc053)] {
        pc.chips.signal(address, data);
        assert_eq!(pc.take(), Some(data as u8), "{address:#x}");
        assert_eq!(pc.take(), None);
        pc.apic(EOI, 0);
    }
    pc.chips.signal(0xfee0_0000, 0x400);
    assert_eq!((pc.take(), pc.chips.take_nmi(), pc.chips.take_nmi()), (None, true, false));
    for address in [0xfee0_1000, 0xfee0_2004] {
        pc.chips.signal(address, 0x51);
        assert_eq!(pc.take(), None, "{address:#x}");
    }
}

#[test]
fn an_illegal_vector_is_an_error_told_once() {
    let mut pc = Pc::with_apic();
    pc.apic(LVT_ERROR, 0xfe);
    pc.apic(ICR, 1 << 18 | 3);
    assert_eq!(pc.take(), Some(0xfe));
    assert_eq!(pc.apic_read(0x280), 0, "shown after a write");
    pc.apic(0x280, 0);
    assert_eq!(pc.apic_read(0x280), 1 << 5);
    pc.apic(LVT_ERROR, 2);
    pc.pin(3, 1);
    pc.chips.set_level(3, true);
    pc.apic(0x280, 0);
    assert_eq!(pc.apic_read(0x280), 1 << 6);
}

#[test]
fn a_level_that_stays_high_is_sent_again_after_the_end_and_not_before() {
    let mut pc = Pc::with_apic();
    pc.pin(5, IO_LEVEL | 0x41);
    pc.chips.set_level(5, true);
    assert_eq!(pc.take(), Some(0x41));
    assert_eq!(pc.pin_low(5), 1 << 14 | IO_LEVEL | 0x41);
    pc.chips.set_level(5, false);
    pc.chips.set_level(5, true);
    assert_eq!(pc.take(), None);
    pc.apic(EOI, 0);
    assert_eq!(pc.take(), Some(0x41));
    pc.chips.set_level(5, false);
    pc.apic(EOI, 0);
    assert_eq!((pc.take(), pc.pin_low(5)), (None, IO_LEVEL | 0x41));
    // Masked while high: sent when unmasked.
    pc.pin(5, MASKED | IO_LEVEL | 0x41);
    pc.chips.set_level(5, true);
    assert_eq!(pc.take(), None);
    pc.pin(5, IO_LEVEL | 0x41);
    assert_eq!(pc.take(), Some(0x41));
    // Kernels end it without an EOI by a turn through edge mode.
    pc.pin(5, MASKED | 0x41);
    assert_eq!(pc.pin_low(5), MASKED | 0x41);
}

#[test]
fn an_edge_is_one_interrupt_and_is_lost_on_a_masked_pin() {
    let mut pc = Pc::with_apic();
    pc.pin(4, MASKED | 0x34);
    pc.chips.set_level(4, true);
    pc.pin(4, 0x34);
    assert_eq!(pc.take(), None);
    pc.chips.set_level(4, false);
    for _ in 0..2 {
        pc.chips.set_level(4, true);
    }
    assert_eq!(pc.take(), Some(0x34));
    pc.apic(EOI, 0);
    assert_eq!(pc.take(), None);
    // To a processor that is not there.
    pc.set_mmio(IOAPIC_BASE, 0x11 + 2 * 4);
    pc.set_mmio(IOAPIC_BASE + 0x10, 3 << 24);
    pc.chips.set_level(4, false);
    pc.chips.set_level(4, true);
    assert_eq!(pc.take(), None);
}

#[test]
fn the_slave_pic_reaches_the_processor_through_master_and_lint0() {
    let mut pc = Pc::new();
    pc.init_pic(0x30, 0x38);
    pc.chips.set_level(12, true);
    assert_eq!(pc.take(), Some(0x3c));
    // IRQ 9 is better than 12 within the slave, but the master has its input in service; IRQ 1 is better than that.
    pc.chips.set_level(9, true);
    assert_eq!(pc.take(), None);
    pc.chips.set_level(1, true);
    assert_eq!(pc.take(), Some(0x31));
    // What is in service, by OCW3.
    pc.outb(0x20, 0x0b);
    pc.outb(0xa0, 0x0b);
    assert_eq!((pc.inb(0x20), pc.inb(0xa0)), (1 << 1 | 1 << 2, 1 << 4));
    // Specific ends, as Linux sends them.
    for (port, value) in [(0x20, 0x61), (0xa0, 0x64), (0x20, 0x62)] {
        pc.outb(port, value);
    }
    assert_eq!(pc.take(), Some(0x39));
    pc.outb(0xa0, 0x20);
    pc.outb(0x20, 0x20);
    assert_eq!(pc.take(), None, "edges were one interrupt each");
    // Not while LINT0 is masked, but past an APIC that is disabled.
    pc.chips.set_level(1, false);
    pc.chips.set_level(1, true);
    pc.apic(LVT_LINT0, MASKED | 0x700);
    assert_eq!(pc.take(), None);
    pc.chips.set_apic_base(LAPIC_BASE);
    assert_eq!(pc.take(), Some(0x31));
    assert!(!pc.chips.mmio_read(pc.now, LAPIC_BASE, &mut [0; 4]));
}

#[test]
fn a_level_triggered_pic_input_repeats_until_it_falls() {
    let mut pc = Pc::new();
    pc.init_pic(0x30, 0x38);
    pc.outb(0x4d0, 0xff);
    pc.outb(0x4d1, 0xff);
    assert_eq!((pc.inb(0x4d0), pc.inb(0x4d1)), (0xf8, 0xde));
    pc.chips.set_level(11, true);
    for _ in 0..3 {
        assert_eq!(pc.take(), Some(0x3b));
        pc.outb(0xa0, 0x20);
        pc.outb(0x20, 0x20);
    }
    pc.chips.set_level(11, false);
    assert_eq!(pc.take(), None);
    // A mask holds it back; the special mask lets lesser ones past the one in service.
    pc.chips.set_level(3, true);
    pc.chips.set_level(6, true);
    assert_eq!(pc.take(), Some(0x33));
    assert_eq!(pc.take(), None);
    pc.outb(0x20, 0x68);
    pc.outb(0x21, 1 << 3);
    assert_eq!(pc.take(), Some(0x36));
}

#[test]
fn an_acknowledge_without_a_request_is_spurious_and_leaves_nothing_in_service() {
    let mut pic = Pic::new();
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1)] {
        pic.write(port, value);
    }
    assert_eq!(pic.acknowledge(), 0x37);
    pic.write(0x20, 0x0b);
    assert_eq!(pic.read(0x20), 0);
}

#[test]
fn logical_destinations_are_members_of_a_flat_set_or_of_a_cluster() {
    const LOGICAL: u32 = 1 << 11;
    let mut pc = Pc::with_apic();
    let mut reaches = |dfr: u32, ldr: u32, destination: u32| {
        pc.apic(0xe0, dfr);
        pc.apic(0xd0, ldr << 24);
        pc.apic(0x310, destination << 24);
        pc.apic(ICR, LOGICAL | 0x55);
        let taken = pc.take().is_some();
        pc.apic(EOI, 0);
        taken
    };
    let (flat, cluster) = (u32::MAX, 0x0fff_ffff);
    assert_eq!([0x04, 0x06, 0x03, 0xff].map(|to| reaches(flat, 4, to)), [true, true, false, true]);
    assert_eq!([0x14, 0x24, 0x13, 0xf4].map(|to| reaches(cluster, 0x14, to)), [true, false, false, true]);
}

#[test]
fn the_pit_works_through_the_pic_and_through_lint0_as_a_fixed_interrupt() {
    let mut pc = Pc::new();
    pc.init_pic(0x30, 0x38);
    for (port, value) in [(0x43, 0x34), (0x40, 0), (0x40, 0)] {
        pc.outb(port, value);
    }
    pc.sleep();
    assert_eq!(pc.take(), Some(0x30));
    pc.outb(0x20, 0x20);
    // "Virtual wire", one of Linux's last resorts: the PIC with automatic ends behind LINT0 as an edge of its own.
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 3)] {
        pc.outb(port, value);
    }
    pc.apic(SVR, 0x1ff);
    pc.apic(LVT_LINT0, 0x44);
    pc.sleep();
    assert_eq!(pc.take(), Some(0x44));
}
