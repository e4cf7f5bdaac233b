//! Port I/O and the permission for it.

use super::*;

#[test]
fn ports_are_for_the_kernel_and_for_whom_it_lets() {
    let guest = Guest::new(&assemble!("mov eax, -1", "in al, 0x42", "out 0x43, ax", "hlt")).run();
    assert_eq!(guest.cpu.regs[0], 0xffff_ff42);
    assert_eq!(guest.bus.0.lock().unwrap().written, [(0x43, vec![0x42, 0xff])]);
    let user = |limit: u32, bits: u64| {
        let mut guest = Guest::new(&assemble!("in al, 0x42", "ud2")).user();
        guest.cpu.sys.tr.limit = limit;
        guest.put(TSS + 0x68 + 8, bits);
        guest
    };
    user(0x67, 0).expect_error(vector::GP, 0);
    user(0x90, 0).expect(vector::UD);
    user(0x90, 1 << 2).expect_error(vector::GP, 0);
    user(0x67, 0).flags(3 << 12).expect(vector::UD);
    Guest::new(&assemble!("cli")).user().expect_error(vector::GP, 0);
    Guest::new(&assemble!("hlt")).user().expect_error(vector::GP, 0);
}

#[test]
fn strings_go_through_ports_element_by_element() {
    let code = assemble!("rep outsb", "mov edi, 0x60100", "mov ecx, 2", "rep insw", "hlt");
    let mut guest = Guest::new(&code);
    guest.put(DATA, u64::from_le_bytes(*b"abcdefgh"));
    (guest.cpu.regs[6], guest.cpu.regs[1], guest.cpu.regs[2]) = (DATA, 3, 0x77);
    let guest = guest.run();
    let written: Vec<u8> =
        guest.bus.0.lock().unwrap().written.iter().flat_map(|(_, data)| data.clone()).collect();
    assert_eq!(written, b"abc");
    assert_eq!((guest.cpu.regs[1], guest.cpu.regs[6], guest.cpu.regs[7]), (0, DATA + 3, DATA + 0x104));
    assert_eq!(guest.get(DATA + 0x100), 0x7777_7777);
    assert_eq!(guest.cpu.count, 3 + 2 + 2 + 1, "each element is an instruction");
    // A page that is not there faults before the port is read, with the rest still to do.
    let mut guest = Guest::new(&assemble!("rep insb"));
    (guest.cpu.regs[7], guest.cpu.regs[1]) = (UNMAPPED, 5);
    let guest = guest.expect_error(vector::PF, 2);
    assert_eq!(guest.cpu.regs[1], 5);
}
