//! The child that reads a disk: its whole life.

use super::confine::confine;
use super::wire;
use ft_image::{BootLimits, ReadAt};
use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The hidden subcommand of `ftd` that is the child; the socket is its standard input.
pub const COMMAND: &str = "read-image";

/// The socket.
struct Socket;

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(io::stdin().as_fd(), into)?)
    }
}

impl Write for Socket {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        Ok(nix::unistd::write(io::stdin().as_fd(), from)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The disk, by way of the daemon.
struct Asked {
    bytes: u64,
    socket: RefCell<Socket>,
}

impl ReadAt for Asked {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        wire::read(&mut *self.socket.borrow_mut(), into, offset)
    }
}

/// Looks into a disk of so many bytes for what is to be booted, and says it. Confined before the first byte is read.
pub fn run(disk_bytes: u64, file_bytes_max: u64) -> io::Result<()> {
    // What a panic says goes to the daemon.
    std::panic::set_hook(Box::new(|_| ()));
    if let Err(e) = confine(file_bytes_max) {
        return wire::say(&mut Socket, Err(format!("the process that reads it cannot be confined: {e}")));
    }
    let look = || {
        let disk = Asked { bytes: disk_bytes, socket: RefCell::new(Socket) };
        ft_image::find(Box::new(disk), &BootLimits { file_bytes_max }).map_err(|e| e.to_string())
    };
    let found = catch_unwind(AssertUnwindSafe(look)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("the process that reads it panicked: {}", text.unwrap_or_default()))
    });
    wire::say(&mut Socket, found)
}
