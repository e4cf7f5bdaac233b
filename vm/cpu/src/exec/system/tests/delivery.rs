//! Exceptions and interrupts: the order and time of delivery, and the stack.

use super::*;

#[test]
fn a_fault_at_cpl_0_pushes_its_frame_on_the_running_stack() {
    let code = assemble!("nop", "mov rax, [rcx]", "hlt");
    let mut guest = Guest::new(&code).flags(IF);
    guest.cpu.regs[1] = 1 << 63;
    guest.cpu.regs[4] = STACK - 3;
    let guest = guest.expect_error(vector::GP, 0);
    assert_eq!(guest.cpu.regs[4], STACK - 16 - 48, "aligned to 16 bytes");
    let [rip, cs, flags, rsp, ss] = guest.frame(8);
    assert_eq!((rip, cs, rsp, ss), (CODE + 1, 8, STACK - 3, 0x10));
    assert_eq!(flags, IF | RF | 2);
    assert_eq!(guest.cpu.rflags() & IF, 0, "an interrupt gate");
}

#[test]
fn a_trap_gate_leaves_interrupts_on() {
    let guest = Guest::new(&assemble!("ud2")).flags(IF);
    guest.gate(vector::UD, 0, 0xf, 0);
    let guest = guest.expect(vector::UD);
    assert_eq!(guest.cpu.rflags() & IF, IF);
    assert_eq!(guest.frame(0)[0], CODE);
}

#[test]
fn a_fault_at_cpl_3_switches_to_the_kernels_stack() {
    let code = assemble!("mov [rcx], rax");
    let mut guest = Guest::new(&code).user();
    guest.cpu.regs[1] = UNMAPPED;
    let guest = guest.expect_error(vector::PF, 6);
    assert_eq!((guest.cpu.cpl, guest.cpu.sys.cr2, guest.cpu.regs[4]), (0, UNMAPPED, RSP0 - 48));
    assert_eq!(guest.cpu.sys.segs[SS], SegmentRegister::default());
    let [rip, cs, _, rsp, ss] = guest.frame(8);
    assert_eq!((rip, cs, rsp, ss), (CODE, USER_CODE.into(), STACK, USER_DATA.into()));
}

#[test]
fn an_interrupt_stack_is_used_at_every_level() {
    for user in [false, true] {
        let guest = Guest::new(&assemble!("ud2"));
        guest.gate(vector::UD, 0, 0xe, 1);
        let guest = if user { guest.user() } else { guest }.expect(vector::UD);
        assert_eq!(guest.cpu.regs[4], IST1 - 40);
        assert_eq!(guest.frame(0)[3], STACK);
    }
}

#[test]
fn software_interrupts_need_the_gates_leave_and_return_behind_themselves() {
    let guest = Guest::new(&assemble!("int 0x80")).user().expect_error(vector::GP, 0x80 * 8 + 2);
    assert_eq!(guest.frame(8)[0], CODE);
    let guest = Guest::new(&assemble!("int 0x80")).user();
    guest.gate(0x80, 3, 0xe, 0);
    let guest = guest.expect(0x80);
    assert_eq!(guest.frame(0)[0], CODE + 2);
    assert_eq!(guest.frame(0)[2] & RF, 0);
    let guest = Guest::new(&assemble!("int3")).expect(vector::BP);
    assert_eq!(guest.frame(0)[0], CODE + 1);
    // The debug trap asks nobody.
    Guest::new(&[0xf1]).user().expect(vector::DB);
}

#[test]
fn faults_of_a_delivery_combine_to_a_double_fault_and_a_shutdown() {
    // #UD is benign: what follows stands alone.
    let guest = Guest::new(&assemble!("ud2"));
    guest.absent_gate(vector::UD);
    guest.expect_error(vector::NP, 6 * 8 + 3);
    // #GP, then #NP: double fault.
    let code = assemble!("mov rax, [rcx]");
    let mut guest = Guest::new(&code);
    guest.cpu.regs[1] = 1 << 63;
    guest.absent_gate(vector::GP);
    guest.expect_error(vector::DF, 0);
    // #PF with a stack that is not there: double fault on its own stack.
    let mut guest = Guest::new(&code);
    guest.cpu.regs[1] = UNMAPPED;
    guest.cpu.regs[4] = UNMAPPED + 0x2000;
    guest.gate(vector::DF, 0, 0xe, 1);
    let guest = guest.expect_error(vector::DF, 0);
    assert_eq!(guest.cpu.sys.cr2, UNMAPPED + 0x2000 - 8, "of the second page fault");
    // The double fault's gate is missing, too.
    let mut guest = Guest::new(&code);
    guest.cpu.regs[1] = UNMAPPED;
    guest.cpu.sys.idtr.1 = 0;
    assert_eq!(run_to(&mut guest.cpu, 100), CpuExit::TripleFault);
}

#[test]
fn a_missing_kernel_stack_is_an_invalid_tss() {
    let mut guest = Guest::new(&assemble!("ud2")).user();
    guest.cpu.sys.tr.limit = 3;
    guest.gate(vector::TS, 0, 0xe, 0);
    // #TS needs a stack, too, and ends as a triple fault.
    assert_eq!(run_to(&mut guest.cpu, 100), CpuExit::TripleFault);
    assert_eq!((guest.cpu.fault.vector, guest.cpu.fault.error), (vector::TS, Some(0x31)));
}

#[test]
fn an_external_interrupt_waits_for_the_instruction_after_sti() {
    let guest = Guest::new(&assemble!("sti", "nop", "nop", "hlt"));
    guest.bus.0.lock().unwrap().pending = Some(0x41);
    let guest = guest.expect(0x41);
    assert_eq!(guest.frame(0)[0], CODE + 2);
    assert_eq!(guest.frame(0)[2], IF | 2);
    // And for the one after a load of SS.
    let guest = Guest::new(&assemble!("mov ss, eax", "nop", "nop", "hlt")).flags(0);
    let mut guest = Guest { ..guest };
    guest.cpu.regs[0] = KERNEL_DATA.into();
    run_to(&mut guest.cpu, 0);
    guest.cpu.set_rflags(IF);
    assert_eq!(run_to(&mut guest.cpu, 1), CpuExit::Limit);
    guest.bus.0.lock().unwrap().pending = Some(0x42);
    let guest = guest.expect(0x42);
    assert_eq!(guest.frame(0)[0], CODE + 3);
}

#[test]
fn an_interrupt_ends_a_halt() {
    let code = assemble!("sti", "hlt", "inc rax", "cli", "hlt");
    let guest = Guest::new(&code).run();
    assert_eq!(guest.cpu.rip, CODE + 2);
    guest.bus.0.lock().unwrap().pending = Some(0x41);
    let guest = guest.expect(0x41);
    assert!(guest.cpu.halted);
    assert_eq!(guest.frame(0)[0], CODE + 2);
}

#[test]
fn a_single_step_traps_after_one_instruction() {
    let guest = Guest::new(&assemble!("nop", "nop", "hlt")).flags(TF).expect(vector::DB);
    assert_eq!(guest.frame(0)[0], CODE + 1);
    assert_eq!(guest.cpu.sys.dr[6], 0xffff_4ff0);
    assert_eq!(guest.cpu.rflags() & TF, 0);
    // Of a halt, too, which ends with it.
    let guest = Guest::new(&assemble!("hlt", "nop")).flags(TF).expect(vector::DB);
    assert_eq!(guest.frame(0)[0], CODE + 1);
}
