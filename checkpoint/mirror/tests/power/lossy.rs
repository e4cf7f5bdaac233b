//! Storage under which power may fail.

use ft_mirror::Medium;
use std::cell::RefCell;
use std::io;

/// What is written as a whole or not at all. A disk's is larger.
const PIECE_BYTES: usize = 64;

/// Draws whether a sector survives: a small generator, so that a case is its seed.
pub struct Luck(pub u64);

impl Luck {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }
}

struct State {
    durable: Vec<u8>,
    live: Vec<u8>,
    unflushed: Vec<(usize, Vec<u8>)>,
    /// Calls until power fails.
    left: Option<u32>,
}

impl State {
    fn call(&mut self) -> io::Result<()> {
        match &mut self.left {
            None => Ok(()),
            Some(0) => Err(io::Error::other("power failed")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }
}

/// See the module.
pub struct Lossy(RefCell<State>);

impl Lossy {
    pub fn new(bytes: usize) -> Self {
        let zeroes = vec![0; bytes];
        Self(RefCell::new(State { durable: zeroes.clone(), live: zeroes, unflushed: Vec::new(), left: None }))
    }

    pub fn content(&self) -> Vec<u8> {
        self.0.borrow().live.clone()
    }

    /// Power fails after so many writes and flushes: they are errors from then on.
    pub fn lose_power_after(&self, calls: u32) {
        self.0.borrow_mut().left = Some(calls);
    }

    /// It does not fail after all.
    pub fn lose_power_never(&self) {
        self.0.borrow_mut().left = None;
    }

    /// Power fails: of each write that was not flushed, each piece is there or not. Then it is back.
    pub fn lose_power(&self, luck: &mut Luck) {
        let mut state = self.0.borrow_mut();
        let State { durable, live, unflushed, left } = &mut *state;
        *left = None;
        for (offset, bytes) in unflushed.drain(..) {
            let mut at = 0;
            while at < bytes.len() {
                let place = offset + at;
                let length = (PIECE_BYTES - place % PIECE_BYTES).min(bytes.len() - at);
                if luck.next().is_multiple_of(2) {
                    durable[place..place + length].copy_from_slice(&bytes[at..at + length]);
                }
                at += length;
            }
        }
        live.copy_from_slice(durable);
    }

    /// A bit changes, durably.
    pub fn flip(&self, at: usize, bit: u8) {
        let mut state = self.0.borrow_mut();
        state.live[at] ^= 1 << bit;
        state.durable[at] ^= 1 << bit;
    }
}

impl Medium for Lossy {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.borrow().live.len() as u64)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let from = offset as usize;
        into.copy_from_slice(&self.0.borrow().live[from..from + into.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        let at = offset as usize;
        // A call that fails may have taken effect.
        let called = state.call();
        state.live[at..at + from.len()].copy_from_slice(from);
        state.unflushed.push((at, from.to_vec()));
        called
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.call()?;
        let State { durable, live, unflushed, .. } = &mut *state;
        unflushed.clear();
        durable.copy_from_slice(live);
        Ok(())
    }
}
