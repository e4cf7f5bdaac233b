//! Cuts a byte stream into lines, holding at most one line's worth of it.

use super::LINE_MAX;
use super::alloc::vec::Vec;

/// The unfinished line of one connection.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
    /// The line being received is too long: the rest of it is thrown away.
    overlong: bool,
}

/// What [`Lines::next`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A line without its end.
    Complete(Vec<u8>),
    /// The end of a line that had more than [`LINE_MAX`] bytes.
    Overlong,
}

impl Lines {
    /// Takes bytes off the front of `input` up to the next line end. `None`: all of it is taken and no line is
    /// complete.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Line> {
        let end = input.iter().position(|&byte| byte == b'\n');
        let (part, rest) = match end {
            Some(end) => (&input[..end], &input[end + 1..]),
            None => (*input, &input[input.len()..]),
        };
        *input = rest;
        // One byte more than a line may have: the CR before the LF.
        if self.overlong || self.partial.len() + part.len() > LINE_MAX + 1 {
            self.overlong = true;
            self.partial.clear();
        } else {
            self.partial.extend_from_slice(part);
        }
        end?;
        let mut line = core::mem::take(&mut self.partial);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        let overlong = core::mem::take(&mut self.overlong) || line.len() > LINE_MAX;
        Some(if overlong { Line::Overlong } else { Line::Complete(line) })
    }
}
