//! A failure of the host's is told as one, and is none of the guest's.

use ft_ram::GuestRam;
use ft_vm::devices::{ConsoleSink, Wiring};
use ft_vm::machine::{Machine, MachineError, MachineEvent};
use ft_vm::testing::{between, boot_code, engines, event, spec};

// Writes to the console without end.
std::arch::global_asm!(
    ".globl prints_start",
    "prints_start:",
    "  mov r14, 0xd0100000",
    "  mov al, 0x21",
    "2:",
    "  mov [r14 + 0x20], al",
    "  jmp 2b",
    ".globl prints_end",
    "prints_end:",
);

unsafe extern "C" {
    static prints_start: u8;
    static prints_end: u8;
}

const RAM_BYTES: u64 = 16 << 20;

struct Panics;

impl ConsoleSink for Panics {
    fn write(&mut self, _: &[u8]) {
        panic!("no paper");
    }
}

#[test]
fn a_panic_in_a_device_is_a_failure_of_the_machine_and_not_a_crash_of_the_guest() {
    for engine in engines("a panic in a device") {
        let ram = GuestRam::new(RAM_BYTES).unwrap();
        let wiring = Wiring { frames: None, console: Box::new(Panics), disks: Vec::new() };
        let mut machine = Machine::new(&spec(engine, 1, RAM_BYTES), &ram, wiring).unwrap();
        // SAFETY: the labels enclose this program's assembly above.
        boot_code(&mut machine, &unsafe { between(&raw const prints_start, &raw const prints_end) });
        machine.resume().unwrap();
        let MachineEvent::Failed { vcpu: 0, why } = event(&machine) else {
            panic!("it is told as another thing")
        };
        assert!(why.starts_with("internal error: no paper"), "{why}");
        machine.pause().unwrap();
        let refused = machine.capture(&mut Vec::new()).unwrap_err();
        assert!(matches!(refused, MachineError::Failed { vcpu: 0, .. }), "{refused}");
        assert!(refused.to_string().starts_with("the host failed vCPU 0"), "{refused}");
    }
}
