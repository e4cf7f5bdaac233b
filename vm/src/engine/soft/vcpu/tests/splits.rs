//! A guest with timers, interrupts, NMIs, breakpoints, frames and console input comes to the same state however its run
//! is split: where it was stopped, captured, moved to another machine, or replayed from its log.

use super::*;
use crate::engine::soft::vcpu::Mode;
use crate::replay::log::LogReader;
use ft_cpu::flags::RF;
use proptest::prelude::*;

/// Where every run ends.
const END: u64 = 40_000;

/// Works on memory and counters in patterns that depend on all that has happened, halts, sends itself NMIs, and turns
/// interrupts and breakpoints off and on.
fn guest() -> Vec<u8> {
    assemble!(
        "mov r8d, 12345",
        "lea rcx, [rip + 5f]",
        "mov dr0, rcx",
        "lea rcx, [r12 + 0x100]",
        "mov dr1, rcx",
        "sti",
        "2: imul r8, r8, 69069",
        "add r8, 12345",
        "mov rcx, r8",
        "shr rcx, 33",
        "and ecx, 0x3f8",
        "xor [r12 + rcx], r8",
        "rdtsc",
        "add [r12 + rcx + 0x400], rax",
        "test r8d, 0xf0000",
        "jnz 3f",
        "hlt",
        "3: test r8d, 0x1f00000",
        "jnz 3f",
        "mov dword ptr [r15 + 0x300], 0x40400",
        "3: test r8d, 0xe000000",
        "jnz 3f",
        "cli",
        "mov ecx, 100",
        "lea rdi, [r12 + 0x1000]",
        "lea rsi, [r12 + 0x40]",
        "rep movsb",
        "mov eax, ss",
        "mov ss, eax",
        "sti",
        "nop",
        "3: test r8d, 0x70000000",
        "jnz 3f",
        // Either, both, or none: of instructions at DR0, of writes to the eight bytes at DR1.
        "mov rcx, r8",
        "shr rcx, 35",
        "and ecx, 5",
        "or ecx, 0x900000",
        "mov dr7, rcx",
        "3: mov rcx, [r12 + 0x800]",
        "and ecx, 31",
        "inc ecx",
        "4: dec r9",
        "add r10, r9",
        "loop 4b",
        "5: inc qword ptr [r12 + 0x7f8]",
        "jmp 2b",
    )
}

fn nmi_handler() -> Vec<u8> {
    assemble!(
        "push rax",
        "inc qword ptr [r12 + 0x828]",
        "mov rax, [rsp + 8]",
        "rol qword ptr [r12 + 0x830], 5",
        "xor [r12 + 0x830], rax",
        // Every fourth is followed by another one.
        "test byte ptr [r12 + 0x828], 3",
        "jnz 2f",
        "mov dword ptr [r15 + 0x300], 0x40400",
        "2: pop rax",
        "iretq"
    )
}

fn rig(timer_ns: u32, pit: u16) -> Rig {
    let mut rig = Rig::new(&guest(), &nmi_handler(), |state| {
        // Edges of the PIT and of COM1, the level of the card.
        pin(state, 0, 0x50);
        pin(state, 4, 0x54);
        pin(state, 5, 0x65 | 1 << 15);
        state.chips.pio_write(0, 0x43, &[0x34]);
        for byte in pit.to_le_bytes() {
            state.chips.pio_write(0, 0x40, &[byte]);
        }
        // By one, periodic.
        apic(state, 0x3e0, 0b1011);
        apic(state, 0x320, 0x40 | 1 << 17);
        apic(state, 0x380, timer_ns);
    });
    rig.start_devices();
    rig
}

/// What happens so many instructions after the one before.
type Script = Vec<(u64, LogInput)>;

/// A frame behind a header, which the driver takes or not.
fn packet() -> impl Strategy<Value = Vec<u8>> {
    let frame = proptest::collection::vec(any::<u8>(), 14..600);
    let gso_type = prop_oneof![3 => Just(0u8), 2 => Just(1), 1 => any::<u8>()];
    (frame, 0..3u8, gso_type, 0..100u8).prop_map(|(frame, flags, gso_type, csum_start)| {
        let mut packet = plain_packet(&frame);
        (packet[0], packet[1], packet[6]) = (flags, gso_type, csum_start);
        packet
    })
}

fn input() -> impl Strategy<Value = LogInput> {
    prop_oneof![
        3 => packet().prop_map(|packet| LogInput::Frame { card: 0, packet }),
        3 => proptest::collection::vec(any::<u8>(), 1..20).prop_map(LogInput::Console),
        1 => (1u64..200_000).prop_map(|ns| LogInput::Advance { ns }),
        1 => (128u32..20_000).prop_map(|ns_per_256| LogInput::Pace { ns_per_256 }),
    ]
}

/// What is done with a machine where its run is split.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Run,
    Stop,
    Capture,
    /// Captured, and taken over by a fresh processor.
    Reload,
    /// The same, in the next moment that has this about it.
    ReloadAt(Moment),
    /// The same, in another machine.
    Move,
}

/// State that the registers do not show.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// The guest has just let interrupts in, or loaded SS.
    Shadow,
    Nmi,
    /// Back from an instruction breakpoint, which must not hit again.
    Resume,
    Halted,
}

impl Moment {
    fn is_now(self, rig: &Rig) -> bool {
        let cpu = &rig.worker.cpu;
        match self {
            Self::Shadow => cpu.shadow && cpu.rip < NMI_HANDLER,
            Self::Nmi => cpu.sys.nmi_blocked,
            Self::Resume => cpu.rflags() & RF != 0,
            Self::Halted => cpu.halted,
        }
    }
}

fn cut() -> impl Strategy<Value = Cut> {
    let moment = prop::sample::select(vec![Moment::Shadow, Moment::Nmi, Moment::Resume, Moment::Halted]);
    prop_oneof![
        8 => Just(Cut::Run),
        2 => Just(Cut::Stop),
        1 => Just(Cut::Capture),
        4 => Just(Cut::Reload),
        8 => moment.prop_map(Cut::ReloadAt),
        1 => Just(Cut::Move),
    ]
}

/// Runs the script, split at these counts.
fn play(mut rig: Rig, script: &Script, cuts: &[(u64, Cut)]) -> Rig {
    let mut cuts = cuts.iter().cycle();
    let mut next_cut = cuts.next().map(|&(by, cut)| (by, cut));
    let mut at = 0;
    let stops = script.iter().map(|(by, input)| {
        at += by;
        (at, Some(input))
    });
    for (stop, input) in stops.take_while(|(at, _)| *at < END).chain([(END, None)]) {
        while let Some((place, cut)) = next_cut.filter(|(place, _)| *place < stop) {
            rig.run_to(place);
            match cut {
                Cut::Run => {}
                Cut::Stop => {
                    // Host time, by which a stopped guest is moved forward, is no part of this.
                    rig.worker.running = false;
                    rig.worker.stop();
                    rig.worker.resume();
                }
                Cut::Capture => drop(rig.worker.capture().unwrap()),
                Cut::Reload => rig.reload(),
                Cut::ReloadAt(moment) => {
                    while !moment.is_now(&rig) && rig.worker.cpu.count < stop.min(place + 300) {
                        rig.run_to(rig.worker.cpu.count + 1);
                    }
                    rig.reload();
                }
                Cut::Move => rig = Rig::elsewhere(&rig.whole()),
            }
            next_cut = cuts.next().map(|&(by, cut)| (place + by, cut));
        }
        rig.run_to(stop);
        match input {
            // As much as there is room for, as from the inbox.
            Some(LogInput::Console(bytes)) => {
                let room = rig.devices.console_room().min(bytes.len());
                if room != 0 {
                    rig.worker.input(&LogInput::Console(bytes[..room].to_vec()));
                }
            }
            Some(input) => drop(rig.worker.input(input)),
            None => {}
        }
    }
    rig
}

/// A machine that replays a log, from the same start.
fn replay(mut rig: Rig, log: &[u8]) -> Rig {
    let start = rig.worker.start_replaying().unwrap();
    rig.worker.feed(LogReader::new(start).read_all(log).unwrap());
    let done =
        |rig: &Rig| matches!(&rig.worker.mode, Mode::Replaying(log) if log.is_done(rig.worker.cpu.count));
    while !done(&rig) {
        rig.worker.take_journal();
        rig.worker.replay();
        rig.worker.reach.bell.take();
        assert!(rig.events.try_recv().is_err(), "diverged at {}", rig.worker.cpu.count);
    }
    rig
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_run_with_interrupts_ends_the_same_however_it_is_split(
        script in proptest::collection::vec((0u64..1500, input()), 0..60),
        cuts in proptest::collection::vec((1u64..500, cut()), 1..100),
        (timer_ns, pit) in (500u32..60_000, 8u16..80),
    ) {
        let mut whole = rig(timer_ns, pit);
        whole.worker.start_recording().unwrap();
        let mut whole = play(whole, &script, &[]);
        let mut log = Vec::new();
        whole.worker.cut(&mut log, || ()).unwrap();
        whole.worker.stop_recording();
        let expected = whole.whole();
        prop_assert!(whole.get(DATA + 0x808) > 10, "interrupts were taken");
        prop_assert_eq!(whole.get(DATA + 0x820), 0, "no fault was");

        let mut parts = play(rig(timer_ns, pit), &script, &cuts);
        assert_same(&parts.whole(), &expected);
        let mut again = replay(rig(timer_ns, pit), &log);
        assert_same(&again.whole(), &expected);
    }
}

#[test]
fn the_guest_that_is_split_does_all_that_it_is_for() {
    let frame = |byte| LogInput::Frame { card: 0, packet: plain_packet(&[byte; 64]) };
    let script = vec![(900, frame(1)), (900, LogInput::Console(b"abc".to_vec())), (900, frame(2))];
    let rig = play(rig(20_000, 60), &script, &[]);
    for (at, what) in [
        (0x808, "interrupts"),
        (0x810, "console input"),
        (0x818, "frames"),
        (0x828, "NMIs"),
        (0x838, "breakpoints"),
    ] {
        assert_ne!(rig.get(DATA + at), 0, "{what}");
    }
    let frames: u16 = rig.ram.memory().read_obj(GuestAddress(RING + 0x2000 + 2)).unwrap();
    assert_eq!((frames, rig.worker.cpu.count), (2, END));
}
