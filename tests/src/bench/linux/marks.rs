//! The guest's console output, cut into lines; a line that marks a moment is reported at once.

use ft_vm::devices::ConsoleSink;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Longest line that is looked at; of a longer one the beginning.
const LINE_BYTES_MAX: usize = 4096;

/// A moment of the guest's life, as scripts/guest/init and its service announce it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Userland,
    Begin,
    End { sum: String },
}

impl Mark {
    fn of(line: &str) -> Option<Self> {
        let line = line.trim_end();
        if line.ends_with("guest: userland is up") {
            Some(Self::Userland)
        } else if line.ends_with("bench: begin") {
            Some(Self::Begin)
        } else {
            let (_, sum) = line.split_once("bench: end ")?;
            Some(Self::End { sum: sum.into() })
        }
    }
}

/// A console that tells marks.
pub(super) struct Marks {
    line: Vec<u8>,
    told: Sender<Mark>,
}

impl Marks {
    pub(super) fn new() -> (Self, Receiver<Mark>) {
        let (told, marks) = channel();
        (Self { line: Vec::new(), told }, marks)
    }
}

impl ConsoleSink for Marks {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte != b'\n' {
                if self.line.len() < LINE_BYTES_MAX {
                    self.line.push(byte);
                }
            } else if let Some(mark) = Mark::of(&String::from_utf8_lossy(&std::mem::take(&mut self.line))) {
                // Nobody listens any more when the run has been given up.
                let _ = self.told.send(mark);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_whatever_pieces_the_console_comes_in() {
        let console = "[    0.1] Linux version 6.1\r\n[    1.9] guest: userland is up\r\nbench: beginning\r\n\
                       bench: begin\r\nbench: end a41b\r\nbench: begin";
        for size in 1..console.len() {
            let (mut marks, told) = Marks::new();
            console.as_bytes().chunks(size).for_each(|piece| marks.write(piece));
            let end = Mark::End { sum: "a41b".into() };
            assert_eq!(told.try_iter().collect::<Vec<_>>(), [Mark::Userland, Mark::Begin, end]);
        }
    }
}
