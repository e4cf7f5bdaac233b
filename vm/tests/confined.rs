//! A device that runs somebody else's code gets no file, no socket, no program and no signal to anybody: the console
//! here is one, and it is called on the vCPU's thread, as all devices are.

use ft_ram::GuestRam;
use ft_vm::devices::{ConsoleSink, Wiring};
use ft_vm::machine::Machine;
use ft_vm::testing::{between, boot_code, engines, spec};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::Pid;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

// Writes to the console without end.
std::arch::global_asm!(
    ".globl speaks_start",
    "speaks_start:",
    "  mov r14, 0xd0100000",
    "  mov al, 0x21",
    "2:",
    "  mov [r14 + 0x20], al",
    "  jmp 2b",
    ".globl speaks_end",
    "speaks_end:",
);

unsafe extern "C" {
    static speaks_start: u8;
    static speaks_end: u8;
}

const RAM_BYTES: u64 = 16 << 20;

/// A file that nobody has made.
fn new_file() -> PathBuf {
    std::env::temp_dir().join(format!("ftd-compromised-{}", std::process::id()))
}

/// What it tried, and what came of it.
type Attempts = Vec<(&'static str, io::Result<()>)>;

struct Compromised(Option<Sender<Attempts>>);

impl ConsoleSink for Compromised {
    fn write(&mut self, _: &[u8]) {
        let Some(sender) = self.0.take() else { return };
        let stream = || socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None);
        let attempts = vec![
            ("a file to read", File::open("/etc/passwd").map(drop)),
            ("a file to write", File::create(new_file()).map(drop)),
            ("a socket", stream().map(drop).map_err(io::Error::from)),
            ("a program", Command::new("/bin/true").status().map(drop)),
            ("a signal to this process", kill(Pid::this(), Signal::SIGCONT).map_err(io::Error::from)),
            ("a signal to another", kill(Pid::parent(), Signal::SIGCONT).map_err(io::Error::from)),
            ("a thread", std::thread::Builder::new().spawn(|| ()).map(drop)),
        ];
        sender.send(attempts).unwrap();
    }
}

fn attempts(engine: ft_vm::spec::EngineKind) -> Attempts {
    let (sender, attempts) = channel();
    let ram = GuestRam::new(RAM_BYTES).unwrap();
    let wiring = Wiring { frames: None, console: Box::new(Compromised(Some(sender))), disks: Vec::new() };
    let mut machine = Machine::new(&spec(engine, 1, RAM_BYTES), &ram, wiring).unwrap();
    // SAFETY: the labels enclose this program's assembly above.
    boot_code(&mut machine, &unsafe { between(&raw const speaks_start, &raw const speaks_end) });
    machine.resume().unwrap();
    let attempts = attempts.recv_timeout(Duration::from_secs(60)).unwrap();
    machine.pause().unwrap();
    // The machine is as good as before.
    machine.capture(&mut Vec::new()).unwrap();
    attempts
}

#[test]
fn a_compromised_device_gets_no_file_no_socket_no_program_and_sends_no_signal() {
    for engine in engines("a compromised device") {
        // Unconfined, all of it is there: what follows is not for want of something else.
        if !ft_confine::is_on() {
            for (what, result) in attempts(engine) {
                result.unwrap_or_else(|e| panic!("{engine}: {what}, unconfined: {e}"));
            }
            std::fs::remove_file(new_file()).unwrap();
        }
        ft_confine::on().unwrap();
        for (what, result) in attempts(engine) {
            let error = result.expect_err(what);
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{engine}: {what}: {error}");
        }
        assert!(!new_file().exists());
        let asked: Vec<_> = ft_confine::refused().iter().map(|call| call.number as i64).collect();
        for number in [libc::SYS_openat, libc::SYS_socket, libc::SYS_kill] {
            assert!(asked.contains(&number), "{engine}: {number} is counted: {asked:?}");
        }
    }
}
