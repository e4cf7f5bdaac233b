//! Segment registers and descriptor tables.

use super::*;

#[test]
fn segments_are_loaded_with_their_checks() {
    let load = |selector: u16| {
        let mut guest = Guest::new(&assemble!("mov es, eax", "hlt"));
        guest.cpu.regs[0] = selector.into();
        guest
    };
    let guest = load(USER_DATA).run();
    assert_eq!(guest.cpu.sys.segs[ES], SegmentRegister::flat_data(USER_DATA, 3));
    assert_eq!(guest.get(GDT + 0x20) >> 40 & 1, 1, "the accessed bit");
    assert_eq!(load(3).run().cpu.sys.segs[ES], SegmentRegister { selector: 3, ..SegmentRegister::default() });
    load(ABSENT).expect_error(vector::NP, ABSENT.into());
    load(TSS_SELECTOR).expect_error(vector::GP, TSS_SELECTOR.into());
    load(0x60).expect_error(vector::GP, 0x60);
    load(0x24).expect_error(vector::GP, 0x24);
    load(KERNEL_DATA).user().expect_error(vector::GP, KERNEL_DATA.into());
    // A code segment that is only executable does not exist here; SS wants data of its own level.
    for (selector, vector, error) in
        [(USER_DATA, vector::GP, 0x20), (KERNEL_CODE, vector::GP, 8), (ABSENT, vector::SS, ABSENT)]
    {
        let mut guest = Guest::new(&assemble!("mov ss, eax", "hlt"));
        guest.cpu.regs[0] = selector.into();
        guest.expect_error(vector, error.into());
    }
    Guest::new(&assemble!("xor eax, eax", "mov ss, eax", "hlt")).run();
    Guest::new(&[0x8e, 0xc8]).expect(vector::UD);
}

#[test]
fn segments_are_pushed_popped_and_read() {
    let code = assemble!("push fs", "pop gs", "mov eax, gs", "mov [rcx], gs", "hlt");
    let mut guest = Guest::new(&code);
    guest.cpu.sys.segs[FS] = SegmentRegister { selector: USER_DATA, ..SegmentRegister::default() };
    guest.cpu.regs[0] = u64::MAX;
    guest.cpu.regs[1] = DATA;
    let guest = guest.run();
    assert_eq!(guest.cpu.regs[0], u64::from(USER_DATA));
    assert_eq!(guest.cpu.regs[4], STACK);
    assert_eq!(guest.get(DATA), u64::from(USER_DATA));
}

#[test]
fn a_program_may_ask_for_a_segments_rights_and_limit() {
    let code = assemble!(
        "mov eax, 0x53",
        "lsl ecx, eax",
        "lar edx, eax",
        "setz bl",
        "mov eax, 0x10",
        "lsl r8d, eax",
        "setz bh",
        "verw ax",
        "hlt"
    );
    let guest = Guest::new(&code).user().expect_error(vector::GP, 0);
    assert_eq!((guest.cpu.regs[1], guest.cpu.regs[2]), (0x123, 0x40_f500));
    assert_eq!(guest.cpu.regs[3] & 0xffff, 1, "the kernel's segment is not to be seen");
    assert_eq!(BYTE_LIMIT, 0x50);
}

#[test]
fn tables_are_loaded_and_stored() {
    let code = assemble!("lgdt [rcx]", "sgdt [rdx]", "mov eax, 0x30", "ltr ax", "str rbx", "sldt esi", "hlt");
    let mut guest = Guest::new(&code);
    guest.put(DATA, 0x67 | GDT << 16);
    guest.put(DATA + 8, 0);
    (guest.cpu.regs[1], guest.cpu.regs[2]) = (DATA, DATA + 0x100);
    let guest = guest.run();
    assert_eq!(guest.cpu.sys.gdtr, (GDT, 0x67));
    assert_eq!(guest.get(DATA + 0x100), 0x67 | GDT << 16);
    assert_eq!((guest.cpu.sys.tr.base, guest.cpu.regs[3]), (TSS, 0x30));
    assert_eq!(guest.get(GDT + 0x30) >> 40 & 0xf, 0xb, "busy");
    // A busy TSS is not loaded again.
    Guest::new(&assemble!("mov eax, 0x30", "ltr ax", "ltr ax")).expect_error(vector::GP, 0x30);
    Guest::new(&assemble!("lidt [rcx]")).user().expect_error(vector::GP, 0);
}
