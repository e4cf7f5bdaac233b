//! A guest's time goes with the host's on every engine: run by itself, stopped for a checkpoint again and again, and
//! taken over by another machine; at rest and at work.

use ft_ram::{GuestRam, RamView};
use ft_vm::machine::Machine;
use ft_vm::spec::EngineKind;
use ft_vm::testing::{Remember, between, boot_code, content, engines, is_kvm_emulated, spec, wiring};
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

// Each vCPU in turn, by a lock at 0x702000, reads its time stamp counter and puts it to 0x702008. The number of turns
// goes to 0x702010, of those whose counter was behind the one before to 0x702018.
std::arch::global_asm!(
    ".globl counters_start",
    "counters_start:",
    "  mov edi, 0x702000",
    "2:",
    "  pause",
    "  mov eax, 1",
    "  xchg [rdi], eax",
    "  test eax, eax",
    "  jnz 2b",
    "  lfence",
    "  rdtsc",
    "  shl rdx, 32",
    "  or rax, rdx",
    "  cmp rax, [rdi + 0x08]",
    "  jae 3f",
    "  inc qword ptr [rdi + 0x18]",
    "3:",
    "  mov [rdi + 0x08], rax",
    "  inc qword ptr [rdi + 0x10]",
    "  mov dword ptr [rdi], 0",
    "  jmp 2b",
    ".globl counters_end",
    "counters_end:",
);

unsafe extern "C" {
    static turns_start: u8;
    static turns_end: u8;
    static counters_start: u8;
    static counters_end: u8;
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

/// The last counter that any vCPU has read, the number of turns, and how often it was behind the one before.
fn counters(view: &RamView) -> [u64; 3] {
    let mut page = [0; 4096];
    view.read_page(0x702, &mut page);
    [0x08, 0x10, 0x18].map(|at| u64::from_le_bytes(page[at..at + 8].try_into().unwrap()))
}

/// By how much a guest's counter goes on at most while it runs: on KVM it is the host's with an offset, the software
/// engine's goes by its clock.
struct Ran {
    since: Instant,
    host: u64,
}

impl Ran {
    /// No processor's counter is faster.
    const GHZ_MAX: u64 = 8;

    fn begin() -> Self {
        Self { since: Instant::now(), host: host_counter() }
    }

    fn end(self, engine: EngineKind) -> u64 {
        match engine {
            EngineKind::Kvm => host_counter() - self.host,
            EngineKind::Soft => self.since.elapsed().as_nanos() as u64 * Self::GHZ_MAX,
        }
    }
}

fn host_counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction.
    unsafe { std::arch::x86_64::_rdtsc() }
}

fn wait_for_turns(view: &RamView, beyond: u64) {
    while counters(view)[1] <= beyond {
        std::thread::yield_now();
    }
}

/// The heir's machine is as old as the first, a little older, a little younger, and much younger.
#[test]
fn the_time_stamp_counter_goes_on_where_it_was_however_old_the_heirs_machine_is() {
    for engine in engines("the time stamp counter") {
        if engine == EngineKind::Kvm && is_kvm_emulated() {
            eprintln!(
                "SKIPPED the time stamp counter, on KVM: it is emulated here, and guests see the host's counter"
            );
            continue;
        }
        let vcpus = if engine == EngineKind::Soft { 1 } else { 2 };
        let spec = spec(engine, vcpus, RAM_BYTES);
        for [older_ms, younger_ms] in [[0, 0], [800, 0], [0, 800], [0, 3000]] {
            let ram = GuestRam::new(RAM_BYTES).unwrap();
            let view = ram.view().unwrap();
            let heir = || Machine::new(&spec, &ram, wiring(&Remember::default())).unwrap();
            let older = (older_ms > 0).then(heir);
            std::thread::sleep(Duration::from_millis(older_ms));
            let (mut machine, first_ram, _) = ft_vm::testing::machine(&spec);
            let first_view = first_ram.view().unwrap();
            std::thread::sleep(Duration::from_millis(younger_ms));
            let mut heir = older.unwrap_or_else(heir);

            // SAFETY: the labels enclose this program's assembly above.
            boot_code(&mut machine, &unsafe { between(&raw const counters_start, &raw const counters_end) });
            machine.resume().unwrap();
            wait_for_turns(&first_view, 0);
            let ran = Ran::begin();
            wait_for_turns(&first_view, counters(&first_view)[1]);
            machine.pause().unwrap();
            let mut state = Vec::new();
            machine.capture(&mut state).unwrap();
            let before = ran.end(engine);
            let [last, turns, _] = counters(&first_view);
            content(&first_ram).iter().for_each(|(index, page)| view.write_page(*index, page));
            let ran = Ran::begin();
            heir.restore(&state).unwrap();
            heir.resume().unwrap();
            wait_for_turns(&view, turns);
            heir.pause().unwrap();
            let [now, _, behind] = counters(&view);
            let name = format!("{engine}, {older_ms} ms older, {younger_ms} ms younger");
            let advance = now.checked_sub(last);
            let advance = advance.unwrap_or_else(|| panic!("{name}: went back by {} cycles", last - now));
            let most = before + ran.end(engine);
            eprintln!("{name}: went on by {advance} cycles, {most} on the host");
            assert!(advance <= most, "{name}: went on by {advance} cycles in {most} at most");
            assert_eq!(behind, 0, "{name}: a vCPU's counter is behind another's");
        }
    }
}
