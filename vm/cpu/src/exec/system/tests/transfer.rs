//! Far transfers, iretq, syscall and sysret, swapgs.

use super::*;

#[test]
fn iretq_goes_to_user_code_and_leaves_it_no_kernel_segments() {
    let code = assemble!(
        "push 0x23",
        "push 0x150000",
        "push 0x202",
        "push 0x2b",
        "lea rax, [rip + 77f]",
        "push rax",
        "iretq",
        "77:",
        "hlt"
    );
    let mut guest = Guest::new(&code);
    guest.cpu.sys.segs[FS] = SegmentRegister { base: 0x1234, ..SegmentRegister::default() };
    guest.cpu.sys.segs[GS].base = 0x5678;
    let guest = guest.expect_error(vector::GP, 0);
    let [_, cs, flags, rsp, ss] = guest.frame(8);
    assert_eq!((cs, rsp, ss), (USER_CODE.into(), 0x15_0000, USER_DATA.into()));
    assert_eq!(flags, 0x202 | RF);
    assert_eq!(guest.cpu.sys.segs[FS].base, 0x1234, "a null selector keeps its base");
    assert_eq!(guest.cpu.sys.segs[GS], SegmentRegister::default(), "a kernel segment is taken away");
    assert_eq!(guest.cpu.sys.segs[DS], SegmentRegister::default());
}

#[test]
fn iretq_refuses_frames_that_are_not_for_it() {
    // SS, RSP, RFLAGS, CS, RIP and the error code of the #GP.
    let text = 0x10_0100;
    for (ss, cs, rip, error) in [
        (0x23, 0, text, 0),
        (0x23, 0x10, text, 0x10),
        (0x23, 0x2b, 1 << 63, 0),
        (0x10, 0x2b, text, 0x10),
        (0, 0x2b, text, 0),
        (0x23, 0x29, text, 0x28),
        (0x23, 0x73, text, 0x70),
    ] {
        let mut guest = Guest::new(&assemble!("iretq"));
        guest.cpu.regs[4] = DATA;
        for (index, value) in [rip, cs, 2, STACK, ss].into_iter().enumerate() {
            guest.put(DATA + index as u64 * 8, value);
        }
        let guest = guest.expect_error(vector::GP, error);
        assert_eq!(guest.frame(8)[3], DATA, "nothing was popped");
    }
}

#[test]
fn syscall_and_sysret_make_a_round_trip() {
    // Kernel: sysretq to user code; user: syscall; kernel: hlt at LSTAR.
    let code = assemble!(
        "lea rcx, [rip + 77f]",
        "mov r11d, 0x302",
        "mov r11d, 0x242",
        "sysretq",
        "77:",
        "inc eax",
        "syscall",
        "nop"
    );
    let mut guest = Guest::new(&code);
    guest.cpu.sys.fmask = IF | 0x40;
    let guest = guest.run();
    let cpu = &guest.cpu;
    assert_eq!((cpu.rip, cpu.cpl, cpu.regs[0]), (HANDLERS + 0x81, 0, 1));
    assert_eq!(cpu.regs[1], CODE + code.len() as u64 - 1, "RCX returns behind the syscall");
    assert_eq!(cpu.regs[11] & 0x202, 0x202);
    assert_eq!(cpu.rflags() & (IF | 0x40), 0, "masked");
    assert_eq!(cpu.sys.segs[CS], SegmentRegister::flat_code(KERNEL_CODE, 0, true));
    assert_eq!(cpu.sys.segs[SS], SegmentRegister::flat_data(KERNEL_DATA, 0));
}

#[test]
fn sysret_loads_the_segments_that_star_names() {
    let mut guest = Guest::new(&assemble!("sysretq"));
    guest.cpu.regs[1] = CODE + 0x100;
    guest.cpu.regs[11] = u64::MAX;
    assert_eq!(run_to(&mut guest.cpu, 1), CpuExit::Limit);
    assert_eq!(guest.cpu.sys.segs[CS], SegmentRegister::flat_code(USER_CODE, 3, true));
    assert_eq!(guest.cpu.sys.segs[SS], SegmentRegister::flat_data(USER_DATA, 3));
    assert_eq!((guest.cpu.cpl, guest.cpu.rip), (3, CODE + 0x100));
    assert_eq!(guest.cpu.rflags(), 0x3c_7fd7 & !RF);
    // To 32-bit code, which makes its system calls through CSTAR.
    let mut guest = Guest::new(&[0x0f, 0x07]);
    guest.put(CODE + 0x100, 0x050f);
    guest.cpu.regs[1] = (CODE + 0x100) | 7 << 32;
    guest.cpu.sys.cstar = HANDLERS + 0x90;
    assert_eq!(run_to(&mut guest.cpu, 1), CpuExit::Limit);
    assert_eq!(guest.cpu.sys.segs[CS], SegmentRegister::flat_code(USER_CODE32, 3, false));
    assert!(!guest.cpu.long);
    let guest = guest.expect(0x90);
    assert!(guest.cpu.long);
    assert_eq!(guest.cpu.regs[1], CODE + 0x102);
    // Not before the kernel enabled it, not in user code.
    let mut guest = Guest::new(&assemble!("syscall"));
    guest.cpu.sys.efer &= !1;
    guest.expect(vector::UD);
    Guest::new(&assemble!("sysretq")).user().expect_error(vector::GP, 0);
    Guest::new(&assemble!("sysenter")).user().expect(vector::UD);
}

#[test]
fn swapgs_exchanges_the_bases() {
    let mut guest = Guest::new(&assemble!("swapgs", "hlt"));
    (guest.cpu.sys.segs[GS].base, guest.cpu.sys.kernel_gs_base) = (1, 2);
    let guest = guest.run();
    assert_eq!((guest.cpu.sys.segs[GS].base, guest.cpu.sys.kernel_gs_base), (2, 1));
    Guest::new(&assemble!("swapgs")).user().expect_error(vector::GP, 0);
}

#[test]
fn far_calls_return_where_they_came_from() {
    let code = assemble!("call fword ptr [rcx]", "hlt");
    let mut guest = Guest::new(&code);
    guest.cpu.regs[1] = DATA;
    guest.put(DATA, (CODE + 0x100) | u64::from(KERNEL_CODE) << 32);
    guest.put(CODE + 0x100, 0xcb);
    // Two 32-bit values were pushed, and are popped by the 32-bit form.
    let guest = guest.run();
    assert_eq!((guest.cpu.rip, guest.cpu.regs[4]), (CODE + code.len() as u64, STACK));
    // A TSS is no place to go to.
    let mut guest = Guest::new(&code);
    guest.cpu.regs[1] = DATA;
    guest.put(DATA, u64::from(TSS_SELECTOR) << 32);
    guest.expect_error(vector::GP, TSS_SELECTOR.into());
}
