//! Non-maskable interrupts: taken whatever IF says, one at a time until iret, and never lost.

use super::*;
use ft_cpu::flags::IF;

/// `mov dword ptr [r15 + 0x300], ...`: an NMI to itself.
macro_rules! send {
    () => {
        "mov dword ptr [r15 + 0x300], 0x40400"
    };
}

/// Counts; the first one sends another, and notes the count when it had time to be taken.
fn nesting_handler() -> Vec<u8> {
    assemble!(
        "inc qword ptr [r12]",
        "cmp qword ptr [r12], 1",
        "jne 2f",
        send!(),
        "nop",
        "mov rax, [r12]",
        "mov [r12 + 8], rax",
        "2: iretq"
    )
}

fn halted(rig: &mut Rig) {
    while rig.worker.run(10_000) != CpuExit::Halted {}
}

#[test]
fn one_is_taken_with_interrupts_off_and_the_next_one_after_its_iret() {
    let code = assemble!(send!(), "lea rbx, [rip]", "hlt");
    let mut rig = Rig::new(&code, &nesting_handler(), |_| ());
    halted(&mut rig);
    assert_eq!((rig.get(DATA), rig.get(DATA + 8)), (2, 1), "taken, and the nested one not before the iret");
    assert_eq!(rig.worker.cpu.rip, CODE + code.len() as u64);
    // The interrupt frame of both: right behind the instruction that sent the first.
    assert_eq!(rig.get(STACK - 40), CODE + code.len() as u64 - 8);
    assert_eq!(rig.worker.cpu.rflags() & IF, 0);
    let expected = rig.whole();

    // The same, moved into another machine after every instruction.
    let mut rig = Rig::new(&code, &nesting_handler(), |_| ());
    let mut blocked = 0;
    for count in 1.. {
        let exit = rig.worker.run(count);
        let whole = rig.whole();
        blocked += u32::from(whole.state.system.nmi_blocked);
        rig = Rig::elsewhere(&whole);
        if exit == CpuExit::Halted {
            break;
        }
    }
    assert!(blocked > 8, "{blocked} of the states were within a handler");
    assert_same(&rig.whole(), &expected);
}

/// A device's line as an NMI, by the IOAPIC.
fn line(state: &mut SoftState) {
    pin(state, 3, 4 << 8);
}

fn raise(rig: &mut Rig) {
    rig.worker.platform().chips.set_level(3, true);
    rig.worker.platform().chips.set_level(3, false);
}

#[test]
fn it_ends_a_halt_and_waits_for_the_instruction_after_a_load_of_ss() {
    let handler = assemble!("inc qword ptr [r12]", "mov rbx, [rsp]", "iretq");
    let code = assemble!("hlt", "mov eax, ss", "mov ss, eax", "nop", "nop", "hlt");
    let mut rig = Rig::new(&code, &handler, line);
    halted(&mut rig);
    assert_eq!(rig.get(DATA), 0);
    raise(&mut rig);
    // The handler's three, then the two loads.
    assert_eq!(rig.worker.run(1 + 3 + 2), CpuExit::Limit);
    assert_eq!((rig.get(DATA), rig.worker.cpu.regs[3]), (1, CODE + 1));
    assert_eq!(rig.worker.cpu.rip, CODE + 5);
    raise(&mut rig);
    halted(&mut rig);
    assert_eq!((rig.get(DATA), rig.worker.cpu.regs[3]), (2, CODE + 6), "after the nop");
}

#[test]
fn an_iret_that_faults_lets_the_next_one_in_too() {
    // A return to a null code segment, from the first NMI only.
    let handler = assemble!(
        "inc qword ptr [r12]",
        "cmp qword ptr [r12], 1",
        "jne 2f",
        send!(),
        "mov qword ptr [rsp + 8], 0",
        "2: iretq"
    );
    let mut rig = Rig::new(&assemble!(send!(), "hlt"), &handler, |_| ());
    halted(&mut rig);
    assert_eq!((rig.get(DATA), rig.get(DATA + 0x820)), (2, 1));
    assert!(!rig.worker.cpu.sys.nmi_blocked);
}

#[test]
fn several_before_the_first_is_taken_are_one() {
    let mut rig = Rig::new(&assemble!("nop", "hlt"), &assemble!("inc qword ptr [r12]", "iretq"), line);
    (0..3).for_each(|_| raise(&mut rig));
    halted(&mut rig);
    assert_eq!(rig.get(DATA), 1);
}
