//! Hardware breakpoints: their hits, the moment of the trap, and progress after the return.

use super::*;

/// Where hits are listed: their return addresses, from R11 on.
const HITS: u64 = DATA + 0x2000;
const HANDLER: u64 = 0x3_8000;

/// With a debug handler that lists where it was called from, and the flags it returns with in RSI.
fn guest(code: &[u8]) -> Guest {
    let mut guest = Guest::new(code);
    let handler = assemble!("mov rsi, [rsp]", "mov [r11], rsi", "mov rsi, [rsp + 16]", "add r11, 8", "iretq");
    guest.ram.memory().write_slice(&handler, GuestAddress(HANDLER)).unwrap();
    let low = HANDLER & 0xffff | u64::from(KERNEL_CODE) << 16 | 0x8e << 40 | (HANDLER >> 16) << 48;
    guest.put(IDT + 16, low);
    (guest.cpu.regs[1], guest.cpu.regs[11]) = (DATA, HITS);
    guest
}

/// The return addresses, relative to the code.
fn hits(guest: &Guest) -> Vec<u64> {
    (HITS..guest.cpu.regs[11]).step_by(8).map(|at| guest.get(at) - CODE).collect()
}

/// Runs it at once, and another time instruction by instruction.
fn run(code: &[u8], prepare: impl Fn(&mut Guest)) -> Guest {
    let mut guest = guest(code);
    prepare(&mut guest);
    let whole = guest.run();
    let mut parts = self::guest(code);
    prepare(&mut parts);
    for limit in 1.. {
        if run_to(&mut parts.cpu, limit) != CpuExit::Limit {
            break;
        }
        parts.cpu.sys.validate(parts.cpu.cpl).unwrap();
    }
    assert_eq!((parts.cpu.regs, parts.cpu.count), (whole.cpu.regs, whole.cpu.count));
    assert_eq!((hits(&parts), parts.cpu.sys.dr), (hits(&whole), whole.cpu.sys.dr));
    whole
}

#[test]
fn an_instruction_breakpoint_is_a_fault_before_each_execution_of_it() {
    let code = assemble!(
        "mov dr3, rax",
        "mov dr7, rbx",
        "mov ecx, 3",
        "2: inc rdx",
        "loop 2b",
        "xor ebx, ebx",
        "mov dr7, rbx",
        "mov ecx, 1",
        "jmp 4f",
        "4: hlt"
    );
    let place = 11;
    let guest = run(&code, |guest| (guest.cpu.regs[0], guest.cpu.regs[3]) = (CODE + place, 0x40));
    assert_eq!(hits(&guest), [place; 3]);
    assert_eq!((guest.cpu.regs[2], guest.cpu.regs[6] & RF), (3, RF), "executed as often, by way of RF");
    assert_eq!(guest.cpu.sys.dr[6], 0xffff_0ff8);
    // Not enabled, it does not hit.
    let guest = run(&code, |guest| guest.cpu.regs[0] = CODE + place);
    assert_eq!((hits(&guest), guest.cpu.sys.dr[6]), (vec![], 0xffff_0ff0));
}

#[test]
fn a_breakpoint_on_its_own_handler_is_no_end_of_instructions() {
    // With int1, which goes there.
    let mut guest = guest(&assemble!("mov dr0, rax", "mov dr7, rbx", ".byte 0xf1"));
    (guest.cpu.regs[0], guest.cpu.regs[3]) = (HANDLER, 1);
    assert_eq!(run_to(&mut guest.cpu, 1000), CpuExit::Limit);
    assert_eq!((guest.cpu.count, guest.cpu.rip), (1000, HANDLER));
}

/// Breakpoint 1 on the four bytes at DATA + 4.
fn watch(code: &[u8], access: u64) -> Guest {
    run(code, |guest| {
        (guest.cpu.regs[0], guest.cpu.regs[3]) = (DATA + 6, 0x4 | (0xc | access) << 20);
    })
}

#[test]
fn a_watchpoint_is_a_trap_after_each_access_to_its_bytes() {
    let code = assemble!(
        // The page is one to which access is direct by now.
        "mov [rcx], rdx",
        "mov [rcx], rdx",
        "mov dr1, rax",
        "mov dr7, rbx",
        "mov [rcx + 8], rdx",
        "mov [rcx], edx",
        "mov [rcx + 0x800], rdx",
        // 23
        "mov [rcx], rdx",
        // 26
        "mov rdx, [rcx + 1]",
        // 30
        "add dword ptr [rcx + 3], 1",
        // 34
        "xor ebx, ebx",
        "mov dr7, rbx",
        "mov [rcx], rdx",
        "hlt"
    );
    let after = |bytes: &[u8]| {
        let start = code.windows(bytes.len()).rposition(|window| window == bytes).unwrap();
        (start + bytes.len()) as u64
    };
    let written = after(&[0x48, 0x89, 0x11, 0x48, 0x8b]) - 2;
    let read = after(&[0x48, 0x8b, 0x51, 0x01]);
    let changed = after(&[0x83, 0x41, 0x03, 0x01]);
    let guest = watch(&code, 1);
    assert_eq!(hits(&guest), [written, changed]);
    assert_eq!((guest.cpu.sys.dr[6], guest.cpu.regs[6] & RF), (0xffff_0ff2, 0));
    assert_eq!(hits(&watch(&code, 3)), [written, read, changed]);
}

#[test]
fn a_repeated_instruction_is_trapped_after_the_iteration_that_hits() {
    let code = assemble!(
        "mov [rcx], rdx",
        "mov dr1, rax",
        "mov dr7, rbx",
        "lea rdi, [rcx + 2]",
        "mov ecx, 16",
        "rep stosb",
        "hlt"
    );
    let place = code.len() as u64 - 3;
    let guest = watch(&code, 1);
    assert_eq!(hits(&guest), [place; 4]);
    assert_eq!((guest.cpu.regs[1], guest.cpu.regs[7]), (0, DATA + 18));
}

#[test]
fn ports_can_be_watched_where_debugging_extensions_are_on() {
    let code = assemble!("mov dr1, rax", "mov dr7, rbx", "out 0x80, al", "in al, 0x90", "hlt");
    for (extensions, expected) in [(0, vec![]), (1 << 3, vec![8])] {
        let guest = run(&code, |guest| {
            guest.cpu.sys.cr4 |= extensions;
            (guest.cpu.regs[0], guest.cpu.regs[3]) = (0x80, 0x4 | 2 << 20);
        });
        assert_eq!(hits(&guest), expected);
    }
}
