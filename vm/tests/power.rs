//! A press of the power button reaches the guest, which powers off; also when another machine goes on with it.

use ft_ram::GuestRam;
use ft_vm::machine::{Machine, MachineEvent};
use ft_vm::spec::{Boot, EngineKind, FreestandingImage, MachineSpec, NetSpec};
use ft_vm::testing::{Remember, content, engines, event, spec, wiring};
use std::time::{Duration, Instant};

const RAM_BYTES: u64 = 32 << 20;

fn booted(engine: EngineKind) -> (Machine, GuestRam) {
    let nets = vec![NetSpec { mac: [2, 0, 0, 0, 0, 1], mtu: 1500 }];
    let spec = MachineSpec { nets, ..spec(engine, 1, RAM_BYTES) };
    let ram = GuestRam::new(RAM_BYTES).unwrap();
    let console = Remember::default();
    let mut machine = Machine::new(&spec, &ram, wiring(&console)).unwrap();
    let image = FreestandingImage::BuiltIn;
    machine.boot(&Boot::Freestanding { image, cmdline: String::new() }).unwrap();
    machine.resume().unwrap();
    let begun = Instant::now();
    while !console.text().contains("guest: ") {
        assert!(begun.elapsed() < Duration::from_secs(300), "{}", console.text());
        std::thread::sleep(Duration::from_millis(10));
    }
    (machine, ram)
}

#[test]
fn a_guest_whose_power_button_is_pressed_powers_off() {
    for engine in engines("power button") {
        let (machine, _ram) = booted(engine);
        assert!(machine.events().recv_timeout(Duration::from_millis(500)).is_err(), "nobody has pressed it");
        machine.press_power_button().unwrap();
        assert_eq!(event(&machine), MachineEvent::PoweredOff, "{engine}");
    }
}

#[test]
fn a_press_is_a_part_of_the_machines_state() {
    for engine in engines("power button, moved") {
        let (mut machine, ram) = booted(engine);
        machine.pause().unwrap();
        machine.press_power_button().unwrap();
        let mut state = Vec::new();
        machine.capture(&mut state).unwrap();
        let other_ram = GuestRam::new(RAM_BYTES).unwrap();
        let view = other_ram.view().unwrap();
        content(&ram).iter().for_each(|(index, page)| view.write_page(*index, page));
        let mut other = Machine::new(machine.spec(), &other_ram, wiring(&Remember::default())).unwrap();
        other.restore(&state).unwrap();
        other.resume().unwrap();
        assert_eq!(event(&other), MachineEvent::PoweredOff, "{engine}");
    }
}
