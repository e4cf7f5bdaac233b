//! The dirty log names exactly the pages that were written, by the guest or by the VMM, and forgets none between
//! harvests, whether the machine stands or runs.

use ft_ram::layout::{FREESTANDING_PAGE_TABLES, HIGH_RAM_BASE};
use ft_ram::{Backing, GuestRam, PageIndex};
use ft_vm::machine::{Machine, MachineError};
use ft_vm::spec::EngineKind;
use ft_vm::testing::{PROGRAM_BASE, Remember, between, boot_code, engines, machine, spec, wiring};
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use vm_memory::{Bytes, GuestAddress};

/// Pages of the page tables of a freestanding program: the first level, the second, four directories.
const TABLE_PAGES: PageIndex = 6;

// Takes orders from the page at 0x700000: word 0 counts orders, word 1 is the number of pages, from word 2 on their
// numbers. Writes to each page, then the order's number to the page at 0x701000. Polls by idling.
std::arch::global_asm!(
    ".globl scribe_start",
    "scribe_start:",
    "  mov r14, 0xd0100000",
    "  mov r8, 0x700000",
    "  mov r9, 0x701000",
    "  xor ebx, ebx",
    "2:",
    "  mov rax, [r8]",
    "  cmp rax, rbx",
    "  jne 3f",
    "  mov ecx, 200",
    "  mov [r14 + 8], rcx",
    "  jmp 2b",
    "3:",
    "  mov rbx, rax",
    "  mov rcx, [r8 + 8]",
    "  lea rsi, [r8 + 16]",
    "4:",
    "  test rcx, rcx",
    "  jz 5f",
    "  mov rdx, [rsi]",
    "  shl rdx, 12",
    "  inc qword ptr [rdx + 128]",
    "  add rsi, 8",
    "  dec rcx",
    "  jmp 4b",
    "5:",
    "  mov [r9], rbx",
    "  jmp 2b",
    ".globl scribe_end",
    "scribe_end:",
);

unsafe extern "C" {
    static scribe_start: u8;
    static scribe_end: u8;
}

const ORDERS: u64 = 0x70_0000;
const DONE: u64 = 0x70_1000;
const RAM_BYTES: u64 = 64 << 20;
/// Pages that the guest is told to write: from 8 MiB on, below the stack.
const PAGES: std::ops::Range<PageIndex> = 0x800..0x3f00;

struct Scribe {
    machine: Machine,
    ram: GuestRam,
    orders: u64,
}

impl Scribe {
    fn start(engine: EngineKind) -> Self {
        Self::over(engine, GuestRam::new(RAM_BYTES).unwrap())
    }

    fn over(engine: EngineKind, ram: GuestRam) -> Self {
        let mut machine =
            Machine::new(&spec(engine, 1, RAM_BYTES), &ram, wiring(&Remember::default())).unwrap();
        // SAFETY: the labels enclose this program's assembly above.
        boot_code(&mut machine, &unsafe { between(&raw const scribe_start, &raw const scribe_end) });
        Self { machine, ram, orders: 0 }
    }

    /// Has the guest write to these pages; returns when it has.
    fn write(&mut self, pages: &BTreeSet<PageIndex>) {
        assert!(pages.len() <= 500);
        self.order(pages);
        while self.ram.memory().read_obj::<u64>(GuestAddress(DONE)).unwrap() != self.orders {
            std::thread::yield_now();
        }
    }

    fn order(&mut self, pages: &BTreeSet<PageIndex>) {
        let memory = self.ram.memory();
        let list: Vec<u8> = pages.iter().flat_map(|&page| u64::from(page).to_le_bytes()).collect();
        memory.write_slice(&list, GuestAddress(ORDERS + 16)).unwrap();
        memory.write_obj(pages.len() as u64, GuestAddress(ORDERS + 8)).unwrap();
        self.orders += 1;
        memory.write_obj(self.orders, GuestAddress(ORDERS)).unwrap();
    }

    fn harvest(&mut self) -> Vec<PageIndex> {
        let mut dirty = Vec::new();
        self.machine.harvest(&mut dirty).unwrap();
        assert!(dirty.is_sorted_by(|a, b| a < b), "sorted, each once");
        // KVM may take the first access to a page for a write, and the code is only read. A processor walks the page
        // tables; where it has nested ones (AMD), that counts as writing them.
        let tables = (FREESTANDING_PAGE_TABLES >> 12) as PageIndex;
        let is_table = |page| (tables..tables + TABLE_PAGES).contains(&page);
        dirty.retain(|&page| page != (PROGRAM_BASE >> 12) as PageIndex && !is_table(page));
        dirty
    }
}

fn some_pages(rng: &mut impl Rng, count: usize) -> BTreeSet<PageIndex> {
    (0..count).map(|_| rng.random_range(PAGES)).collect()
}

fn with_mailbox(pages: &BTreeSet<PageIndex>) -> Vec<PageIndex> {
    let mailbox = [(ORDERS >> 12) as PageIndex, (DONE >> 12) as PageIndex];
    pages.iter().copied().chain(mailbox).collect::<BTreeSet<_>>().into_iter().collect()
}

#[test]
fn a_harvest_names_exactly_the_pages_that_guest_and_vmm_wrote() {
    for engine in engines("exact harvest") {
        let no_pages: [PageIndex; 0] = [];
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let mut scribe = Scribe::start(engine);
        scribe.machine.resume().unwrap();
        scribe.write(&some_pages(&mut rng, 100));
        scribe.machine.pause().unwrap();
        scribe.machine.start_dirty_log().unwrap();
        assert_eq!(scribe.harvest(), no_pages, "what was written before is not in the log");
        for round in 0..40 {
            let pages = some_pages(&mut rng, [0, 1, 7, 64, 300][round % 5]);
            scribe.machine.resume().unwrap();
            scribe.write(&pages);
            scribe.machine.pause().unwrap();
            let mut expected = with_mailbox(&pages);
            // The VMM's own writes join: one page that the guest wrote too, one that it did not.
            if round % 2 == 0 {
                scribe.ram.memory().write_obj(7u8, GuestAddress(0x60_0000)).unwrap();
                scribe.ram.memory().write_obj(7u8, GuestAddress(ORDERS + 4000)).unwrap();
                expected.insert(0, 0x600);
            }
            assert_eq!(scribe.harvest(), expected, "round {round}");
            assert_eq!(scribe.harvest(), no_pages, "a harvest is not repeated");
        }
        scribe.machine.stop_dirty_log().unwrap();
        assert!(matches!(scribe.machine.harvest(&mut Vec::new()), Err(MachineError::NotLogging)));
    }
}

#[test]
fn harvests_of_a_running_machine_together_name_every_page_written_and_no_other() {
    for engine in engines("running harvest") {
        let mut rng = rand::rngs::StdRng::seed_from_u64(2);
        let mut scribe = Scribe::start(engine);
        scribe.machine.start_dirty_log().unwrap();
        scribe.machine.resume().unwrap();
        for _ in 0..8 {
            let pages = some_pages(&mut rng, 400);
            let mut seen = BTreeSet::new();
            scribe.order(&pages);
            while scribe.ram.memory().read_obj::<u64>(GuestAddress(DONE)).unwrap() != scribe.orders {
                seen.extend(scribe.harvest());
            }
            scribe.machine.pause().unwrap();
            seen.extend(scribe.harvest());
            scribe.machine.resume().unwrap();
            assert_eq!(seen.into_iter().collect::<Vec<_>>(), with_mailbox(&pages));
        }
    }
}

/// Also where the guest's pages are of 2 MiB before the log is on.
#[test]
fn a_harvest_names_pages_of_4_kib_where_the_host_has_huge_ones() {
    for engine in engines("harvest of huge pages") {
        let ram = match GuestRam::held(RAM_BYTES, Backing { huge_pages: true, ..Backing::default() }) {
            Ok(ram) => ram,
            Err(e) => return eprintln!("SKIPPED harvest of huge pages: {e}"),
        };
        let mut rng = rand::rngs::StdRng::seed_from_u64(3);
        let mut scribe = Scribe::over(engine, ram);
        scribe.machine.resume().unwrap();
        for _ in 0..4 {
            scribe.write(&some_pages(&mut rng, 100));
            scribe.machine.start_dirty_log().unwrap();
            for _ in 0..10 {
                let pages = some_pages(&mut rng, 50);
                scribe.machine.pause().unwrap();
                scribe.harvest();
                scribe.machine.resume().unwrap();
                scribe.write(&pages);
                scribe.machine.pause().unwrap();
                assert_eq!(scribe.harvest(), with_mailbox(&pages));
                scribe.machine.resume().unwrap();
            }
            // Without the log KVM may map huge pages again.
            scribe.machine.stop_dirty_log().unwrap();
        }
        let held = scribe.ram.held_bytes().unwrap();
        eprintln!("{engine}: {} KiB held", held >> 10);
        assert!(held.is_multiple_of(2 << 20), "{held} bytes are held, not in pages of 2 MiB");
    }
}

#[test]
fn pages_above_the_hole_are_numbered_on() {
    for engine in engines("harvest above 4 GiB") {
        let (mut machine, ram, _) = machine(&spec(engine, 1, (3 << 30) + (16 << 20)));
        machine.start_dirty_log().unwrap();
        ram.memory().write_obj(1u8, GuestAddress(HIGH_RAM_BASE + 4096)).unwrap();
        let mut dirty = vec![42];
        machine.harvest(&mut dirty).unwrap();
        assert_eq!(dirty, [42, (3 << 18) + 1], "appended to what is there");
    }
}
