//! A guest with more memory than fits below the hole for devices: what it writes above 4 GiB is in the dirty log, goes
//! to the other machine, and is what it reads there.

use ft_ram::layout::{FREESTANDING_PAGE_TABLES, HIGH_RAM_BASE, LOW_RAM_END, PAGE_SIZE};
use ft_ram::{GuestRam, PageIndex};
use ft_vm::machine::Machine;
use ft_vm::spec::EngineKind;
use ft_vm::testing::{Remember, between, boot_code, engines, spec, wiring};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

// In each round writes the round's number to one word in every 64 KiB of the 16 MiB from 0x700000's address on, after
// it has found the number of the round before there; what differs is counted at 0x701008. Rounds are counted at
// 0x701000.
std::arch::global_asm!(
    ".globl high_start",
    "high_start:",
    "  mov r8, [0x700000]",
    "  mov r9, [0x701000]",
    "2:",
    "  mov rax, r8",
    "  mov ecx, 256",
    "3:",
    "  cmp [rax], r9",
    "  je 4f",
    "  inc qword ptr [0x701008]",
    "4:",
    "  lea rdx, [r9 + 1]",
    "  mov [rax], rdx",
    "  add rax, 0x10000",
    "  dec ecx",
    "  jnz 3b",
    "  inc r9",
    "  mov [0x701000], r9",
    "  jmp 2b",
    ".globl high_end",
    "high_end:",
);

unsafe extern "C" {
    static high_start: u8;
    static high_end: u8;
}

const RAM_BYTES: u64 = 6 << 30;
/// In the last GiB of the guest's memory, whose pages are numbered on from those below the hole.
const AREA: u64 = HIGH_RAM_BASE + (2 << 30) + (512 << 20);
const FIRST_PAGE: PageIndex = ((AREA - HIGH_RAM_BASE + LOW_RAM_END) / PAGE_SIZE as u64) as PageIndex;
const PAGES_APART: usize = 16;
const AREA_PAGES: PageIndex = 256 * PAGES_APART as PageIndex;
const ROUNDS: u64 = 0x70_1000;
const WRONG: u64 = 0x70_1008;
/// Where page directories of the memory above 4 GiB are put: the freestanding program has none.
const DIRECTORIES: u64 = 0x30_0000;
/// Present, writable, user, accessed; of a page, dirty and 2 MiB as well.
const TABLE: u64 = 0x27;
const LARGE_PAGE: u64 = 0xe7;
const MOVES: usize = 6;

/// Maps what lies above 4 GiB.
fn map_high(ram: &GuestRam) {
    let put = |at: u64, entry: u64| ram.memory().write_obj(entry, GuestAddress(at)).unwrap();
    for gib in 4..8_u64 {
        let directory = DIRECTORIES + (gib - 4) * PAGE_SIZE as u64;
        put(FREESTANDING_PAGE_TABLES + PAGE_SIZE as u64 + gib * 8, directory | TABLE);
        for page in 0..512 {
            put(directory + page * 8, (gib << 30) | (page << 21) | LARGE_PAGE);
        }
    }
}

fn word(ram: &GuestRam, at: u64) -> u64 {
    ram.memory().read_obj(GuestAddress(at)).unwrap()
}

fn get_on(machine: &Machine, ram: &GuestRam) {
    let (begun, before) = (Instant::now(), word(ram, ROUNDS));
    while word(ram, ROUNDS) < before + 2 {
        if let Ok(event) = machine.events().try_recv() {
            panic!("{event:?}");
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "the guest does not get on");
        std::thread::yield_now();
    }
}

/// Copies pages, each where it has its number.
fn copy(from: &GuestRam, to: &GuestRam, pages: impl IntoIterator<Item = PageIndex>) {
    let (from, to) = (from.view().unwrap(), to.view().unwrap());
    let mut page = [0; PAGE_SIZE];
    for index in pages {
        from.read_page(index, &mut page);
        to.write_page(index, &page);
    }
}

#[test]
fn memory_above_4_gib_is_logged_moved_and_kept() {
    for engine in engines("memory above 4 GiB") {
        let spec = spec(engine, 1, RAM_BYTES);
        let (mut machine, mut ram, _) = ft_vm::testing::machine(&spec);
        // SAFETY: the labels enclose this program's assembly above.
        boot_code(&mut machine, &unsafe { between(&raw const high_start, &raw const high_end) });
        map_high(&ram);
        ram.memory().write_obj(AREA, GuestAddress(0x70_0000)).unwrap();
        for _ in 0..MOVES {
            // The copy while it runs, and the rest after it was stopped: as a pairing begins.
            let other = GuestRam::new(RAM_BYTES).unwrap();
            machine.start_dirty_log().unwrap();
            machine.resume().unwrap();
            get_on(&machine, &ram);
            let mut held = Vec::new();
            let all = |run: std::ops::Range<PageIndex>| {
                held.extend(run);
                Ok::<_, std::io::Error>(())
            };
            ram.view().unwrap().held(all).unwrap();
            assert!(held.len() < 1 << 16, "{engine}: {} pages of a sparse memory are held", held.len());
            copy(&ram, &other, held);
            get_on(&machine, &ram);
            machine.pause().unwrap();
            let mut dirty = Vec::new();
            machine.harvest(&mut dirty).unwrap();
            let written: BTreeSet<_> = (FIRST_PAGE..FIRST_PAGE + AREA_PAGES).step_by(PAGES_APART).collect();
            let in_log: BTreeSet<_> = dirty
                .iter()
                .copied()
                .filter(|page| u64::from(*page) >= LOW_RAM_END / PAGE_SIZE as u64)
                .collect();
            assert_eq!(in_log, written, "{engine}: the pages above 4 GiB that were written, and no others");
            let mut state = Vec::new();
            machine.capture(&mut state).unwrap();
            copy(&ram, &other, dirty);
            machine = Machine::new(&spec, &other, wiring(&Remember::default())).unwrap();
            machine.restore(&state).unwrap();
            ram = other;
        }
        machine.resume().unwrap();
        get_on(&machine, &ram);
        machine.pause().unwrap();
        let (rounds, wrong) = (word(&ram, ROUNDS), word(&ram, WRONG));
        eprintln!("{engine}: {rounds} rounds, {MOVES} moves");
        assert_eq!(wrong, 0, "{engine}: words above 4 GiB that were not what was written");
    }
}

/// Both tables of a booted Linux say where memory is: below the hole, and from 4 GiB on.
#[test]
fn linux_is_told_of_the_memory_above_4_gib() {
    use ft_vm::spec::Boot;
    use ft_vm::testing::elf;
    use std::io::Write;

    let (mut machine, ram, _) = ft_vm::testing::machine(&spec(EngineKind::Soft, 1, RAM_BYTES));
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&elf(&[0xf4])).unwrap();
    let (kernel, initrd, cmdline) = (file.path().to_owned(), None, String::new());
    machine.boot(&Boot::Linux { kernel, initrd, cmdline }).unwrap();
    // The zero page's table: its count at 0x1e8; entries of base, size and kind at 0x2d0.
    let zero_page = ft_ram::layout::ZERO_PAGE;
    let entries = ram.memory().read_obj::<u8>(GuestAddress(zero_page + 0x1e8)).unwrap();
    let entry = |index: u64| {
        let at = GuestAddress(zero_page + 0x2d0 + index * 20);
        let words: [u32; 5] = ram.memory().read_obj(at).unwrap();
        let wide = |low: usize| u64::from(words[low]) | u64::from(words[low + 1]) << 32;
        (wide(0), wide(2), words[4])
    };
    let memory: Vec<_> = (0..entries.into()).map(entry).filter(|entry| entry.2 == 1).collect();
    let bytes: u64 = memory.iter().map(|entry| entry.1).sum();
    assert_eq!(memory.last(), Some(&(HIGH_RAM_BASE, RAM_BYTES - LOW_RAM_END, 1)), "{memory:x?}");
    assert!(memory.iter().all(|entry| entry.0 + entry.1 <= LOW_RAM_END || entry.0 >= HIGH_RAM_BASE));
    assert!((RAM_BYTES - (1 << 20)..=RAM_BYTES).contains(&bytes), "{bytes:#x}");
}
