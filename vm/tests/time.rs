//! A guest's time goes with the host's on every engine: run by itself, stopped for a checkpoint again and again, and
//! taken over by another machine; at rest and at work.

use ft_ram::{GuestRam, RamView};
use ft_vm::machine::Machine;
use ft_vm::spec::EngineKind;
use ft_vm::testing::{Remember, between, boot_code, content, engines, spec, wiring};
use std::time::{Duration, Instant};

// The page at 0x700000 says how long to idle in each turn, in microseconds; zero not at all. The clock, and the number
// of turns, go to 0x701000.
std::arch::global_asm!(
    ".globl turns_start",
    "turns_start:",
    "  mov r14, 0xd0100000",
    "  mov rcx, [0x700000]",
    "2:",
    "  test rcx, rcx",
    "  jz 3f",
    "  mov [r14 + 0x08], rcx",
    "3:",
    "  mov rax, [r14]",
    "  mov [0x701000], rax",
    "  inc qword ptr [0x701008]",
    "  jmp 2b",
    ".globl turns_end",
    "turns_end:",
);

unsafe extern "C" {
    static turns_start: u8;
    static turns_end: u8;
}

const RAM_BYTES: u64 = 16 << 20;
const PHASE: Duration = Duration::from_secs(2);
const EPOCH: Duration = Duration::from_millis(5);
/// Longer than an epoch: time that is begun anew with each would never come there.
const IDLE_US: u64 = 20_000;
/// How far guest and wall may be apart in a phase: a host has other things to do as well.
const TOLERANCE: Duration = Duration::from_millis(700);

struct Guest {
    name: String,
    machine: Machine,
    ram: GuestRam,
    view: RamView,
}

#[derive(Clone, Copy)]
struct Seen {
    at: Instant,
    clock: Duration,
    turns: u64,
}

impl Guest {
    fn boot(engine: EngineKind, idle_us: u64) -> Self {
        let (mut machine, ram, _) = ft_vm::testing::machine(&spec(engine, 1, RAM_BYTES));
        // SAFETY: the labels enclose this program's assembly above.
        boot_code(&mut machine, &unsafe { between(&raw const turns_start, &raw const turns_end) });
        let view = ram.view().unwrap();
        view.write_in_page(0x700, 0, &idle_us.to_le_bytes());
        machine.resume().unwrap();
        let name = format!("{engine}, {}", if idle_us == 0 { "at work" } else { "at rest" });
        let guest = Self { name, machine, ram, view };
        while guest.look().turns == 0 {
            std::thread::sleep(EPOCH);
        }
        guest
    }

    fn look(&self) -> Seen {
        let mut page = [0; 4096];
        self.view.read_page(0x701, &mut page);
        let word = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
        Seen { at: Instant::now(), clock: Duration::from_nanos(word(0)), turns: word(8) }
    }

    /// Lets a phase go by, in which `each` is done once an epoch.
    fn phase(&mut self, phase: &str, mut each: impl FnMut(&mut Machine)) {
        let before = self.look();
        while before.at.elapsed() < PHASE {
            std::thread::sleep(EPOCH);
            each(&mut self.machine);
        }
        let after = self.look();
        let (wall, guest) = (after.at - before.at, after.clock.saturating_sub(before.clock));
        let turns = after.turns - before.turns;
        let said = format!("{}, {phase}: {guest:?} in {wall:?}, {turns} turns", self.name);
        eprintln!("{said}");
        assert!(guest.abs_diff(wall) < TOLERANCE, "{said}");
        assert!(turns >= 10, "{said}");
        // On KVM a pause ends the idling.
        if self.name == format!("{}, at rest", EngineKind::Soft) {
            assert!(u128::from(turns) <= guest.as_micros() / u128::from(IDLE_US) + 1, "{said}");
        }
    }

    /// Another machine goes on from what is captured of this one.
    fn taken_over(mut self) -> Self {
        self.machine.pause().unwrap();
        let mut state = Vec::new();
        self.machine.capture(&mut state).unwrap();
        let before = self.look();
        let ram = GuestRam::new(RAM_BYTES).unwrap();
        let view = ram.view().unwrap();
        content(&self.ram).iter().for_each(|(index, page)| view.write_page(*index, page));
        let mut machine = Machine::new(self.machine.spec(), &ram, wiring(&Remember::default())).unwrap();
        machine.restore(&state).unwrap();
        machine.resume().unwrap();
        let guest = Self { name: self.name, machine, ram, view };
        while guest.look().turns == before.turns {
            std::thread::sleep(EPOCH);
        }
        let (first, last) = (guest.look().clock, before.clock);
        assert!(first >= last, "{}: its clock went back from {last:?} to {first:?}", guest.name);
        guest
    }
}

fn goes_with_the_host(engine: EngineKind, idle_us: u64) {
    let checkpoint = |machine: &mut Machine| {
        machine.pause().unwrap();
        machine.capture(&mut Vec::new()).unwrap();
        machine.resume().unwrap();
    };
    let mut guest = Guest::boot(engine, idle_us);
    guest.phase("by itself", |_| {});
    guest.phase("checkpointed", checkpoint);
    let mut guest = guest.taken_over();
    guest.phase("taken over", |_| {});
    guest.phase("taken over and checkpointed", checkpoint);
}

#[test]
fn the_time_of_a_guest_at_rest_goes_with_the_hosts() {
    for engine in engines("time at rest") {
        goes_with_the_host(engine, IDLE_US);
    }
}

#[test]
fn the_time_of_a_guest_at_work_goes_with_the_hosts() {
    for engine in engines("time at work") {
        goes_with_the_host(engine, 0);
    }
}
