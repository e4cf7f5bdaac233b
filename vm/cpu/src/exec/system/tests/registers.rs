//! Control, debug and model-specific registers, and their permitted states.

use super::*;
use crate::exec::system::msr;
use crate::exec::system::state::{CR0_PG, EFER_LMA, InvalidSystem, System};

#[test]
fn msrs_take_what_they_can_hold_and_nothing_else() {
    let mut guest = Guest::new(&[]);
    let cpu = &mut guest.cpu;
    for index in [msr::STAR, msr::LSTAR, msr::CSTAR, msr::KERNEL_GS_BASE, msr::FS_BASE, msr::TSC_ADJUST] {
        assert!(cpu.write_msr(index, 0x1234_5678_9abc), "{index:#x}");
        assert_eq!(cpu.read_msr(index), Some(0x1234_5678_9abc), "{index:#x}");
    }
    let bad = [
        (msr::LSTAR, 1 << 63),
        (msr::KERNEL_GS_BASE, 1 << 50),
        (msr::EFER, 0xd01 | 1 << 12),
        // Long mode is on: LME cannot go.
        (msr::EFER, 0),
        (msr::PAT, 2),
        (msr::MTRR_DEF_TYPE, 0xc02),
        (msr::TSC_AUX, 1 << 32),
        (msr::APIC_BASE, 0xfee0_0d00),
        (0x200, 0xff00_0000_0000_0006),
        (0x250, 3),
        (0x1234, 0),
    ];
    for (index, value) in bad {
        assert!(!cpu.write_msr(index, value), "{index:#x}");
    }
    assert_eq!(cpu.read_msr(0x1234), None);
    assert!(cpu.write_msr(0x20f, 0xff_c000_0800) && cpu.write_msr(msr::MTRR_DEF_TYPE, 0xc06));
    assert_eq!(cpu.read_msr(0x20f), Some(0xff_c000_0800));
    cpu.sys.validate(0).unwrap();

    let before = msr::unknown_accesses();
    Guest::new(&assemble!("mov ecx, 0x1234", "rdmsr")).expect_error(vector::GP, 0);
    assert!(msr::unknown_accesses() > before);
    Guest::new(&assemble!("mov ecx, 0x10", "rdmsr")).user().expect_error(vector::GP, 0);
}

#[test]
fn the_time_stamp_counter_is_virtual_time_and_can_be_set() {
    let guest = Guest::new(&assemble!("nop", "nop", "rdtsc", "hlt")).run();
    assert_eq!(guest.cpu.regs[0], guest.cpu.clock.ns(2));
    let code = assemble!("mov ecx, 0x10", "mov eax, 1000000", "xor edx, edx", "wrmsr", "rdtscp", "hlt");
    let mut guest = Guest::new(&code);
    guest.cpu.sys.tsc_aux = 7;
    let guest = guest.run();
    assert_eq!(guest.cpu.regs[0], 1_000_000 + guest.cpu.clock.ns(1));
    assert_eq!(guest.cpu.regs[1], 7);
}

#[test]
fn a_deadline_in_ticks_is_one_in_virtual_time_for_the_bus() {
    let mut guest = Guest::new(&[]);
    assert!(guest.cpu.write_msr(msr::TSC_DEADLINE, 5000));
    assert!(guest.cpu.write_msr(msr::TSC_ADJUST, 1000));
    assert_eq!(guest.bus.0.lock().unwrap().deadline, 4000, "an armed deadline stays at its tick");
    assert_eq!(guest.cpu.read_msr(msr::TSC_DEADLINE), Some(5000));
    assert!(guest.cpu.write_msr(msr::TSC_DEADLINE, 10));
    assert_eq!(guest.bus.0.lock().unwrap().deadline, 1, "long over is due, not off and not never");
    assert!(guest.cpu.write_msr(msr::TSC_DEADLINE, 0));
    assert_eq!(guest.bus.0.lock().unwrap().deadline, 0);
}

#[test]
fn control_registers_refuse_what_cannot_be() {
    let try_to = |code: &[u8], value: u64| {
        let mut guest = Guest::new(code);
        guest.cpu.regs[0] = value;
        guest
    };
    let cr0 = assemble!("mov cr0, rax", "hlt");
    let cr4 = assemble!("mov cr4, rax", "hlt");
    for (code, value) in [
        (&cr0, 0x8005_0032),
        (&cr0, 0x0005_0033),
        (&cr0, 0xa005_0033),
        (&cr0, 0x1_8005_0033),
        (&cr4, 0x600),
        (&cr4, 0x6a0 | 1 << 20),
        (&cr4, 0x6a0 | 1 << 12),
        (&assemble!("mov cr3, rax", "hlt"), 1 << 52),
        (&assemble!("mov cr8, rax", "hlt"), 16),
        (&assemble!("mov dr7, rax", "hlt"), 1 << 32),
    ] {
        try_to(code, value).expect_error(vector::GP, 0);
        try_to(code, value).user().expect_error(vector::GP, 0);
    }
    assert_eq!(try_to(&cr0, 0x8005_003b).run().cpu.sys.cr0, 0x8005_003b);
    let code =
        assemble!("mov cr0, rax", "clts", "mov rbx, cr0", "smsw ecx", "mov dr6, rbx", "mov rdx, dr6", "hlt");
    let guest = try_to(&code, 0x8005_003b).run();
    assert_eq!((guest.cpu.regs[3], guest.cpu.regs[1]), (0x8005_0033, 0x8005_0033));
    assert_eq!(guest.cpu.regs[2], 0xffff_0ff3);
    try_to(&assemble!("mov rax, cr1"), 0).expect(vector::UD);
}

/// What the kernel's loader does to choose the number of page table levels.
#[test]
fn paging_goes_off_and_on_through_32_bit_code() {
    let code = assemble!("push 0x40", "lea rax, [rip + 77f]", "push rax", "retfq", "77:");
    let code32 = [
        0x0f, 0x20, 0xc0, // mov eax, cr0
        0x0f, 0xba, 0xf0, 0x1f, // btr eax, 31
        0x0f, 0x22, 0xc0, // mov cr0, eax
        0x0f, 0x20, 0xc3, // mov ebx, cr0
        0x0d, 0, 0, 0, 0x80, // or eax, 1 << 31
        0x0f, 0x22, 0xc0, // mov cr0, eax
        0x6a, 0x08, // push 8
        0x68, 0, 1, 0x10, 0,    // push CODE + 0x100
        0xcb, // retf
    ];
    let mut guest = Guest::new(&[&code[..], &code32].concat());
    guest.put(CODE + 0x100, 0xf4);
    let mut modes = Vec::new();
    while run_to(&mut guest.cpu, modes.len() as u64 + 1) == CpuExit::Limit {
        let sys = &guest.cpu.sys;
        modes.push((guest.cpu.long, sys.efer & EFER_LMA != 0, sys.cr0 & CR0_PG != 0));
        assert!(modes.len() < 30, "{modes:?}");
    }
    modes.dedup();
    let expected = [
        (true, true, true),
        (false, true, true),
        (false, false, false),
        (false, true, true),
        (true, true, true),
    ];
    assert_eq!(modes, expected, "{:?} at {:#x}", guest.cpu.fault, guest.cpu.rip);
    assert_eq!(guest.cpu.rip, CODE + 0x101);
    assert_eq!(guest.cpu.sys.segs[CS].selector, KERNEL_CODE);
    assert_eq!(KERNEL_CODE32, 0x40);
}

#[test]
fn a_state_that_no_guest_can_reach_is_refused_by_the_registers_name() {
    System::default().validate(0).unwrap();
    let good = Guest::new(&[]).cpu.sys;
    good.validate(0).unwrap();
    let refused = |change: &dyn Fn(&mut System)| {
        let mut sys = good.clone();
        change(&mut sys);
        let InvalidSystem { register, .. } = sys.validate(0).unwrap_err();
        register
    };
    assert_eq!(refused(&|s| s.cr0 &= !1), "CR0");
    assert_eq!(refused(&|s| s.cr4 |= 1 << 21), "CR4");
    assert_eq!(refused(&|s| s.efer &= !EFER_LMA), "EFER");
    assert_eq!(refused(&|s| s.cr3 = 1 << 41), "CR3");
    assert_eq!(refused(&|s| s.segs[FS].base = 1 << 63), "a segment's base");
    assert_eq!(refused(&|s| s.segs[CS].attributes |= 1 << 14), "CS's attributes");
    assert_eq!(refused(&|s| s.lstar = 1 << 63), "LSTAR");
    assert_eq!(refused(&|s| s.mtrrs.fixed[3] = 2), "an MTRR");
    assert!(good.validate(4).is_err());
}

#[test]
fn the_state_survives_its_encoding() {
    let sys = Guest::new(&[]).cpu.sys;
    let bytes = postcard::to_stdvec(&sys).unwrap();
    assert_eq!(postcard::from_bytes::<System>(&bytes).unwrap(), sys);
}
