//! The processor's core as a whole: memory and its faults, self-modifying code, exact limits, string instructions.

use super::cpu::{Cpu, Fault};
use super::dirty::Tracker;
use super::flags::{CF, DF, OF, SF, ZF};
use super::op::Stop;
use super::run::CpuExit;
use super::testing::{CODE, STACK, TABLES, machine, run_to, run_to_hlt};
use ft_ram::GuestRam;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

/// Assembles a program that ends in hlt into a function that gives its bytes.
macro_rules! program {
    ($name:ident, $($line:literal),* $(,)?) => {
        fn $name() -> &'static [u8] {
            unsafe extern "C" {
                #[link_name = concat!("ftd_test_", stringify!($name))]
                static START: u8;
                #[link_name = concat!("ftd_test_", stringify!($name), "_end")]
                static END: u8;
            }
            // SAFETY: the two labels enclose assembled bytes in the text segment.
            unsafe {
                let (start, end) = (&raw const START, &raw const END);
                std::slice::from_raw_parts(start, end.offset_from(start) as usize)
            }
        }
        std::arch::global_asm!(
            concat!(".global ftd_test_", stringify!($name), ", ftd_test_", stringify!($name), "_end"),
            concat!("ftd_test_", stringify!($name), ":"),
            $($line,)*
            "hlt",
            concat!("ftd_test_", stringify!($name), "_end:"),
        );
    };
}

/// The page table entry of a small page.
fn entry(page: u64) -> GuestAddress {
    GuestAddress(TABLES + 0x3000 + page * 8)
}

fn set_entry(cpu: &mut Cpu, ram: &GuestRam, page: u64, bits: u64) {
    ram.memory().write_obj(page << 12 | bits, entry(page)).unwrap();
    cpu.flush_tlb_page(page << 12);
}

fn get_entry(ram: &GuestRam, page: u64) -> u64 {
    ram.memory().read_obj(entry(page)).unwrap()
}

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;

#[test]
fn page_faults_say_what_was_missing_and_where() {
    let (mut cpu, ram) = machine(&[]);
    let page = 0x700;
    let addr = page << 12;
    // Entry, user mode, write: the error code.
    let cases = [
        (0, false, false, 0),
        (0, true, true, 6),
        (P, false, true, 3),
        (P | W, true, false, 5),
        (P | W, true, true, 7),
        (P | U, true, true, 7),
        (P | W | U | 1 << 45, false, false, 9),
    ];
    for (bits, user, write, code) in cases {
        set_entry(&mut cpu, &ram, page, bits);
        cpu.cpl = if user { 3 } else { 0 };
        let stop = if write { cpu.store(addr + 8, 1u32).err() } else { cpu.load::<u32>(addr + 8).err() };
        assert_eq!(stop, Some(Stop::Fault), "{bits:#x}");
        assert_eq!(cpu.fault, Fault { vector: 14, error: Some(code) }, "{bits:#x}");
        assert_eq!(cpu.sys.cr2, addr + 8);
        assert_eq!(get_entry(&ram, page) & (A | D), 0, "a faulting access marks nothing");
    }
}

#[test]
fn walks_set_accessed_bits_and_writes_alone_the_dirty_bit() {
    let (mut cpu, ram) = machine(&[]);
    set_entry(&mut cpu, &ram, 0x700, P | W);
    cpu.load::<u64>(0x70_0000).unwrap();
    assert_eq!(get_entry(&ram, 0x700) & (A | D), A);
    cpu.store(0x70_0000, 1u64).unwrap();
    assert_eq!(get_entry(&ram, 0x700) & (A | D), A | D);
}

#[test]
fn a_store_across_pages_that_faults_leaves_no_trace() {
    let (mut cpu, ram) = machine(&[]);
    set_entry(&mut cpu, &ram, 0x701, P);
    assert_eq!(cpu.store(0x70_0ffd, u64::MAX), Err(Stop::Fault));
    assert_eq!((cpu.sys.cr2, cpu.fault.error), (0x70_1000, Some(3)));
    assert_eq!(cpu.load::<u64>(0x70_0ff8).unwrap(), 0);
    cpu.sys.cr0 &= !super::walk::CR0_WP;
    cpu.paging_changed();
    cpu.store(0x70_0ffd, u64::MAX).unwrap();
    assert_eq!(cpu.load::<u128>(0x70_0ff8).unwrap(), u128::from(u64::MAX) << 40);
}

#[test]
fn an_address_that_is_not_canonical_is_a_protection_fault_at_either_end() {
    let (mut cpu, _ram) = machine(&[]);
    for addr in [1 << 47, u64::MAX << 47 >> 1, 0x8000_0000_0000_0000] {
        assert_eq!(cpu.load::<u8>(addr), Err(Stop::Fault), "{addr:#x}");
        assert_eq!(cpu.fault, Fault { vector: 13, error: Some(0) });
    }
}

#[test]
fn every_page_written_is_dirty_for_each_tracker_until_it_takes_it() {
    let (mut cpu, _ram) = machine(&[]);
    cpu.track_dirty(Tracker::Harvest, true);
    cpu.track_dirty(Tracker::Digest, true);
    let take = |cpu: &mut Cpu, tracker| {
        let mut pages = Vec::new();
        cpu.take_dirty(tracker, &mut pages);
        pages
    };
    // The tables' page: the walks marked entries there.
    let table = ((TABLES + 0x3000 + 0x700 * 8) >> 12) as u32;
    let directories = [(TABLES >> 12) as u32, (TABLES >> 12) as u32 + 1, (TABLES >> 12) as u32 + 2];
    cpu.store(0x70_0ffc, 1u64).unwrap();
    let first = take(&mut cpu, Tracker::Harvest);
    assert_eq!(first, [&directories[..], &[table, 0x700, 0x701]].concat());
    assert!(take(&mut cpu, Tracker::Harvest).is_empty());
    for _ in 0..2 {
        cpu.store(0x70_0000, 2u64).unwrap();
    }
    assert_eq!(take(&mut cpu, Tracker::Harvest), [0x700]);
    assert_eq!(take(&mut cpu, Tracker::Digest), first);
}

program!(
    modifies_the_next_instruction,
    "lea rbx, [rip + 2f]",
    "mov byte ptr [rbx + 1], 0x2a",
    "2: mov al, 1",
    "mov byte ptr [rbx + 1], 0x17",
    "add al, 1",
);

#[test]
fn code_that_changes_its_own_next_instruction_executes_the_new_one() {
    assert_eq!(run_to_hlt(modifies_the_next_instruction()).regs[0], 0x2b);
}

program!(
    modifies_across_pages,
    "mov eax, 0",
    "jmp 3f",
    "2: .fill 4096 - 10 - 3, 1, 0x90",
    // Its immediate is on the next page.
    "3: mov ecx, 0x01010101",
    "add eax, ecx",
    "mov byte ptr [rip + 3b + 3], 0x02",
    "cmp eax, 0x02000000",
    "jb 3b",
);

#[test]
fn an_instruction_across_pages_is_decoded_again_when_its_end_changes() {
    let code = modifies_across_pages();
    let instruction = code.windows(5).position(|bytes| bytes == [0xb9, 1, 1, 1, 1]).unwrap();
    assert!((4092..4096).contains(&instruction), "{instruction}");
    assert_eq!(run_to_hlt(code).regs[0], 0x0101_0101 + 0x0102_0101);
}

#[test]
fn code_written_by_a_device_is_decoded_again() {
    // add eax, 1; hlt
    let (mut cpu, ram) = machine(&[0x83, 0xc0, 1, 0xf4]);
    assert_eq!(run_to(&mut cpu, 100), CpuExit::Halted);
    ram.memory().write_obj(5u8, GuestAddress(CODE + 2)).unwrap();
    cpu.invalidate_code_page((CODE >> 12) as u32);
    (cpu.rip, cpu.halted) = (CODE, false);
    assert_eq!(run_to(&mut cpu, 100), CpuExit::Halted);
    assert_eq!(cpu.regs[0], 6);
}

program!(
    mixture,
    "mov r15, 40",
    "mov rax, 88172645463325252",
    "lea rdi, [rip + 9f]",
    "and rdi, -4096",
    "add rdi, 0x10000",
    "2: imul rax, rax, 69069",
    "add rax, 12345",
    "mov [rdi + r15*8], rax",
    "mov rcx, rax",
    "and ecx, 0x3f",
    "push rcx",
    "lea rsi, [rdi + 4000]",
    "push rdi",
    "lea rdi, [rdi + 8100]",
    "rep movsb",
    "pop rdi",
    "pop rcx",
    "rol rbx, cl",
    "xor rbx, rax",
    "call 3f",
    "test al, 8",
    "cmovnz r8, rax",
    "sete r9b",
    // Writes to its own page, into what is executed next and elsewhere.
    "mov byte ptr [rip + 4f + 3], al",
    "4: add r10b, 1",
    "mov [rip + 9f], rax",
    "dec r15",
    "jnz 2b",
    "jmp 8f",
    "3: mov rdx, rax",
    "xor edx, edx",
    "or ecx, 1",
    "div rcx",
    "mul rbx",
    "adc r11, rdx",
    "ret",
    "9: .quad 0",
    "8: nop",
);

fn everything(cpu: &Cpu, ram: &GuestRam) -> (Vec<u64>, u64, Vec<u8>) {
    let mut memory = vec![0; 0x13_0000];
    ram.memory().read_slice(&mut memory, GuestAddress(0)).unwrap();
    (cpu.regs.iter().copied().chain([cpu.rip, cpu.rflags()]).collect(), cpu.count, memory)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_run_split_anywhere_ends_as_one_that_is_not(splits in proptest::collection::vec(1u64..60, 1..80)) {
        let (mut whole, ram) = machine(mixture());
        prop_assert_eq!(run_to(&mut whole, u64::MAX), CpuExit::Halted);
        let expected = everything(&whole, &ram);
        let (mut parts, ram) = machine(mixture());
        let mut limit = 0;
        for by in splits.iter().cycle() {
            limit += by;
            match run_to(&mut parts, limit) {
                CpuExit::Limit => prop_assert_eq!(parts.count, limit),
                exit => {
                    prop_assert_eq!(exit, CpuExit::Halted);
                    break;
                }
            }
        }
        prop_assert!(everything(&parts, &ram) == expected);
    }

    #[test]
    fn whatever_bytes_are_executed_the_run_ends_at_its_limit_or_says_why(
        code in proptest::collection::vec(any::<u8>(), 1..200),
        registers in any::<[u64; 16]>(),
    ) {
        let (mut cpu, _ram) = machine(&code);
        cpu.cpl = 3;
        cpu.regs = registers.map(|value| value & 0xff_ffff);
        for limit in [7, 300] {
            match run_to(&mut cpu, limit) {
                CpuExit::Limit => prop_assert_eq!(cpu.count, limit),
                CpuExit::Attention => prop_assert!(false, "nobody asked"),
                _ => prop_assert!(cpu.count <= limit),
            }
        }
    }
}

program!(
    sums,
    "mov rcx, 1000",
    "xor eax, eax",
    "2: add rax, rcx",
    "loop 2b",
    "mov rbx, 0x7fffffffffffffff",
    "add rbx, 1",
    "pushfq",
    "pop rdx",
    "mov ecx, 0x80",
    "add cl, cl",
    "pushfq",
    "pop rsi",
    "xor edi, edi",
    "sub edi, 1",
    "pushfq",
    "pop r8",
    "inc edi",
    "pushfq",
    "pop r9",
    "mov ah, 5",
    "mov bh, ah",
    "add bh, ah",
    "movzx ecx, bh",
);

#[test]
fn arithmetic_sets_the_flags_that_the_manual_says() {
    let cpu = run_to_hlt(sums());
    let status = |register: usize| cpu.regs[register] & (CF | ZF | SF | OF);
    assert_eq!(cpu.regs[0] & !0xff00, 500_500 & !0xff00);
    assert_eq!(status(2), SF | OF);
    assert_eq!(status(6), CF | ZF | OF);
    assert_eq!(status(8), CF | SF);
    assert_eq!(status(9), CF | ZF, "inc keeps the carry");
    assert_eq!((cpu.regs[7], cpu.regs[1]), (0, 10));
    assert_eq!(cpu.regs[4], STACK);
}

#[test]
fn repeated_string_instructions_count_page_by_page_and_fault_in_the_middle() {
    // rep movsb; hlt
    let (mut cpu, ram) = machine(&[0xf3, 0xa4, 0xf4]);
    for at in 0..0x3000u64 {
        ram.memory().write_obj(at as u8 ^ (at >> 8) as u8, GuestAddress(0x40_0000 + at)).unwrap();
    }
    set_entry(&mut cpu, &ram, 0x502, P);
    (cpu.regs[6], cpu.regs[7], cpu.regs[1]) = (0x40_0100, 0x50_0f00, 0x2000);
    let fault = cpu.run_until_fault(CODE + 2, 100).unwrap();
    assert_eq!((fault.vector, cpu.sys.cr2), (14, 0x50_2000));
    // To the destination's page end, the source's, the destination's.
    assert_eq!((cpu.count, cpu.rip), (3, CODE));
    assert_eq!((cpu.regs[6], cpu.regs[7], cpu.regs[1]), (0x40_1200, 0x50_2000, 0xf00));
    set_entry(&mut cpu, &ram, 0x502, P | W);
    assert_eq!(run_to(&mut cpu, 100), CpuExit::Halted);
    let mut copied = [vec![0; 0x2000], vec![0; 0x2000]];
    ram.memory().read_slice(&mut copied[0], GuestAddress(0x40_0100)).unwrap();
    ram.memory().read_slice(&mut copied[1], GuestAddress(0x50_0f00)).unwrap();
    assert!(copied[0] == copied[1]);
    assert_eq!((cpu.regs[1], cpu.count), (0, 3 + 3));
}

#[test]
fn overlapping_copies_go_element_by_element_in_either_direction() {
    for (down, distance) in [(false, 1u64), (false, 3), (false, 64), (true, 1), (true, 9), (false, 5000)] {
        // rep movsw; hlt
        let (mut cpu, ram) = machine(&[0x66, 0xf3, 0xa5, 0xf4]);
        let mut expected: Vec<u8> = (0..0x6000u32).map(|at| (at * 7 + (at >> 8)) as u8).collect();
        ram.memory().write_slice(&expected, GuestAddress(0x40_0000)).unwrap();
        let count = 3001;
        let (from, to) = if down { (0x3000 + distance, 0x3000) } else { (0x800, 0x800 + distance) };
        for step in 0..count as usize {
            let at = |start: u64| if down { start as usize - 2 * step } else { start as usize + 2 * step };
            for byte in [expected[at(from)], expected[at(from) + 1]].into_iter().enumerate() {
                expected[at(to) + byte.0] = byte.1;
            }
        }
        (cpu.regs[6], cpu.regs[7], cpu.regs[1]) = (0x40_0000 + from, 0x40_0000 + to, count);
        cpu.set_rflags(if down { DF } else { 0 });
        assert_eq!(run_to(&mut cpu, 10_000), CpuExit::Halted);
        let mut found = vec![0; 0x6000];
        ram.memory().read_slice(&mut found, GuestAddress(0x40_0000)).unwrap();
        assert!(found == expected, "{down} {distance}");
    }
}

#[test]
fn scans_stop_at_the_element_and_keep_its_flags() {
    // repne scasb; hlt
    let (mut cpu, ram) = machine(&[0xf2, 0xae, 0xf4]);
    ram.memory().write_obj(0x55u8, GuestAddress(0x40_1234)).unwrap();
    (cpu.regs[0], cpu.regs[7], cpu.regs[1]) = (0x55, 0x40_0000, 0x5000);
    assert_eq!(run_to(&mut cpu, 100), CpuExit::Halted);
    assert_eq!((cpu.regs[7], cpu.regs[1]), (0x40_1235, 0x5000 - 0x1235));
    assert_ne!(cpu.rflags() & ZF, 0);
}

#[test]
fn a_bit_number_in_a_register_reaches_outside_the_operand() {
    // bts [rbx], rcx; btr dword ptr [rbx], ecx; hlt
    let (mut cpu, ram) = machine(&[0x48, 0x0f, 0xab, 0x0b, 0x0f, 0xb3, 0x0b, 0xf4]);
    (cpu.regs[3], cpu.regs[1]) = (0x40_0100, -65i64 as u64);
    assert_eq!(run_to(&mut cpu, 1), CpuExit::Limit);
    assert_eq!(ram.memory().read_obj::<u64>(GuestAddress(0x40_00f0)).unwrap(), 1 << 63);
    assert_eq!(run_to(&mut cpu, 9), CpuExit::Halted);
    assert_eq!(ram.memory().read_obj::<u64>(GuestAddress(0x40_00f0)).unwrap(), 0);
    assert_ne!(cpu.rflags() & CF, 0);
}

#[test]
fn divisions_that_do_not_fit_raise_divide_errors() {
    for (code, rax, rdx, rbx) in [
        (&[0x48, 0xf7, 0xf3], 1, 5, 5),
        (&[0x48, 0xf7, 0xf3], 1, 0, 0),
        (&[0x48, 0xf7, 0xfb], 1 << 63, u64::MAX, u64::MAX),
        (&[0x48, 0xf7, 0xfb], 0, 1 << 63, u64::MAX),
    ] {
        let (mut cpu, _ram) = machine(code);
        (cpu.regs[0], cpu.regs[2], cpu.regs[3]) = (rax, rdx, rbx);
        assert_eq!(cpu.run_until_fault(0, 5), Some(Fault { vector: 0, error: None }));
        assert_eq!((cpu.rip, cpu.regs[0], cpu.regs[2]), (CODE, rax, rdx));
    }
}

#[test]
fn what_the_engine_lacks_is_counted_each_time_and_what_nobody_has_is_not() {
    // vzeroupper; ud2; an opcode that does not exist in 64-bit mode
    for (code, counted) in [(&[0xc5, 0xf8, 0x77][..], 1), (&[0x0f, 0x0b], 0), (&[0x06], 0)] {
        let (mut cpu, _ram) = machine(code);
        for times in 1..4 {
            let fault = cpu.run_until_fault(0, u64::MAX);
            assert_eq!(fault, Some(Fault { vector: 6, error: None }), "{code:x?}");
            assert_eq!(cpu.unknown_instructions, counted * times, "{code:x?}");
        }
    }
}

#[test]
fn instructions_of_more_than_fifteen_bytes_are_protection_faults() {
    for (prefixes, vector) in [(14, None), (15, Some(13))] {
        let mut code = vec![0x66; prefixes];
        code.push(0x90);
        let (mut cpu, _ram) = machine(&code);
        let fault = cpu.run_until_fault(CODE + code.len() as u64, 1);
        assert_eq!(fault.map(|fault| fault.vector), vector);
    }
}
