//! COM1: vm-superio's 16550, with its output going to the console sink and its input fed from a bounded queue.
//!
//! The line is an edge, as on the ISA bus. Input that waits in the queue has not been seen by the guest and is not part
//! of the machine's state; input in the UART's FIFO is.

use super::counters::{Counters, add};
use super::error::DeviceStateError;
use super::host::{ConsoleSink, IrqChip};
use ft_ram::layout::COM1_GSI;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};

/// Console input that the guest has not read yet is kept up to this many bytes.
const INPUT_MAX: usize = 4096;
/// vm-superio's FIFO.
const FIFO_BYTES: usize = 64;

/// The UART's registers and receive FIFO (vm-superio's `SerialState`, which is not serialisable itself).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the 16550's registers by their names")]
pub struct Com1State {
    pub baud_divisor_low: u8,
    pub baud_divisor_high: u8,
    pub interrupt_enable: u8,
    pub interrupt_identification: u8,
    pub line_control: u8,
    pub line_status: u8,
    pub modem_control: u8,
    pub modem_status: u8,
    pub scratch: u8,
    pub in_buffer: Vec<u8>,
}

/// Where the guest's console output goes; shared by COM1 and the platform device.
#[derive(Clone)]
pub(crate) struct Console(Arc<Mutex<Box<dyn ConsoleSink>>>);

impl Console {
    pub(crate) fn new(sink: Box<dyn ConsoleSink>) -> Self {
        Self(Arc::new(Mutex::new(sink)))
    }
}

impl io::Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Line {
    chip: Arc<dyn IrqChip>,
    /// Off while a state is taken over: an interrupt that it had raised is in the interrupt chip's own state.
    connected: Arc<AtomicBool>,
}

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        if self.connected.load(Ordering::Relaxed) {
            self.chip.set_level(COM1_GSI, true);
            self.chip.set_level(COM1_GSI, false);
        }
        Ok(())
    }
}

pub(crate) struct Com1 {
    uart: Serial<Line, NoEvents, Console>,
    input: VecDeque<u8>,
    chip: Arc<dyn IrqChip>,
    console: Console,
    counters: Arc<Counters>,
}

impl Com1 {
    pub(crate) fn new(chip: Arc<dyn IrqChip>, console: Console, counters: Arc<Counters>) -> Self {
        let line = Line { chip: Arc::clone(&chip), connected: Arc::new(AtomicBool::new(true)) };
        let uart = Serial::new(line, console.clone());
        Self { uart, input: VecDeque::new(), chip, console, counters }
    }

    pub(crate) fn read(&mut self, offset: u8) -> u8 {
        let value = self.uart.read(offset);
        self.feed();
        value
    }

    pub(crate) fn write(&mut self, offset: u8, value: u8) {
        // Neither the console nor the line can fail.
        let _ = self.uart.write(offset, value);
        self.feed();
    }

    /// Takes console input; what does not fit is dropped and counted.
    pub(crate) fn enqueue(&mut self, bytes: &[u8]) {
        let taken = bytes.len().min(INPUT_MAX - self.input.len());
        self.input.extend(&bytes[..taken]);
        add(&self.counters.console_dropped, (bytes.len() - taken) as u64);
    }

    /// Moves waiting input into the UART's FIFO when that has run empty: one interrupt for a FIFO full, not for a byte.
    pub(crate) fn feed(&mut self) {
        if self.input.is_empty() || self.uart.fifo_capacity() < FIFO_BYTES {
            return;
        }
        let bytes = &self.input.make_contiguous()[..];
        // In loopback mode the UART takes nothing; the next access tries again.
        let taken = self.uart.enqueue_raw_bytes(bytes).unwrap_or(0);
        self.input.drain(..taken);
    }

    /// Bytes that [`Self::type_in`] would take: a FIFO full when that is empty, otherwise none, as in [`Self::feed`].
    pub(crate) fn room(&self) -> usize {
        if self.uart.fifo_capacity() < FIFO_BYTES { 0 } else { FIFO_BYTES }
    }

    /// Puts input into the UART's FIFO, past the queue; how many bytes it took. In loopback mode it takes nothing.
    pub(crate) fn type_in(&mut self, bytes: &[u8]) -> usize {
        self.uart.enqueue_raw_bytes(&bytes[..bytes.len().min(self.room())]).unwrap_or(0)
    }

    #[cfg(test)]
    pub(crate) fn forget_input(&mut self) {
        self.input.clear();
    }

    pub(crate) fn reset(&mut self) {
        let line = Line { chip: Arc::clone(&self.chip), connected: Arc::new(AtomicBool::new(true)) };
        self.uart = Serial::new(line, self.console.clone());
    }

    pub(crate) fn capture(&self) -> Com1State {
        let SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        } = self.uart.state();
        Com1State {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        }
    }

    pub(crate) fn check(state: &Com1State) -> Result<(), DeviceStateError> {
        if state.in_buffer.len() > FIFO_BYTES {
            return Err(DeviceStateError::SerialFifo { bytes: state.in_buffer.len() });
        }
        Ok(())
    }

    /// Takes over a state that [`Self::check`] has passed.
    pub(crate) fn restore(&mut self, state: &Com1State) -> Result<(), DeviceStateError> {
        let Com1State {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        } = state.clone();
        let state = SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        };
        let connected = Arc::new(AtomicBool::new(false));
        let line = Line { chip: Arc::clone(&self.chip), connected: Arc::clone(&connected) };
        self.uart = Serial::from_state(&state, line, NoEvents, self.console.clone())
            .map_err(|_| DeviceStateError::SerialFifo { bytes: state.in_buffer.len() })?;
        connected.store(true, Ordering::Relaxed);
        self.input.clear();
        Ok(())
    }
}
