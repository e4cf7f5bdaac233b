//! A rehearsal shows whether a machine could go on from a state. It executes nothing, and leaves the memory as it was.

use ft_ram::GuestRam;
use ft_vm::machine::Machine;
use ft_vm::spec::{Boot, EngineKind, FreestandingImage, MachineSpec, NetSpec};
use ft_vm::state::StateError;
use ft_vm::testing::{Remember, content, engines, spec, wiring};
use std::time::{Duration, Instant};

const RAM_BYTES: u64 = 32 << 20;

/// A machine with every device, paused in the middle of its work.
fn paused(engine: EngineKind, vcpus: u8) -> (Machine, GuestRam) {
    let nets = vec![NetSpec { mac: [2, 0, 0, 0, 0, 1], mtu: 1500 }];
    let spec = MachineSpec { nets, rng: true, ..spec(engine, vcpus, RAM_BYTES) };
    let ram = GuestRam::new(RAM_BYTES).unwrap();
    let mut machine = Machine::new(&spec, &ram, wiring(&Remember::default())).unwrap();
    let cmdline = ft_vm::guest::CMDLINE_DEFAULT.to_owned();
    machine.boot(&Boot::Freestanding { image: FreestandingImage::BuiltIn, cmdline }).unwrap();
    (machine, ram)
}

fn run(machine: &mut Machine, time: Duration) -> Vec<u8> {
    machine.resume().unwrap();
    let began = Instant::now();
    while began.elapsed() < time {
        std::thread::yield_now();
    }
    machine.pause().unwrap();
    let mut state = Vec::new();
    machine.capture(&mut state).unwrap();
    state
}

fn scratch(machine: &Machine, ram: &GuestRam) -> Machine {
    let ram = ram.private_copy().unwrap();
    Machine::new(machine.spec(), &ram, wiring(&Remember::default())).unwrap()
}

#[test]
fn a_state_that_a_machine_can_go_on_from_passes_wherever_the_guest_stands() {
    for engine in engines("rehearsals") {
        for vcpus in if engine == EngineKind::Kvm { 1..=2 } else { 1..=1 } {
            let (mut machine, ram) = paused(engine, vcpus);
            for round in 0..20 {
                let state = run(&mut machine, Duration::from_millis(round));
                let before = content(&ram);
                let outcome = scratch(&machine, &ram).rehearse(&state);
                assert!(outcome.is_ok(), "{engine}, {vcpus} vCPUs, round {round}: {outcome:?}");
                assert!(content(&ram) == before, "the memory is as it was");
            }
        }
    }
}

#[test]
fn a_state_of_another_machine_or_a_damaged_one_does_not() {
    for engine in engines("rehearsals") {
        let (mut machine, ram) = paused(engine, 1);
        let mut state = run(&mut machine, Duration::from_millis(5));
        let other = MachineSpec { rng: false, ..machine.spec().clone() };
        let mut other = Machine::new(&other, &ram, wiring(&Remember::default())).unwrap();
        assert!(matches!(other.rehearse(&state), Err(StateError::Spec { field: "rng", .. })));
        let last = state.len() - 1;
        state[last] ^= 1;
        assert!(matches!(scratch(&machine, &ram).rehearse(&state), Err(StateError::Crc { .. })));
    }
}
