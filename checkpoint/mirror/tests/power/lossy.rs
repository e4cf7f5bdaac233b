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
    /// Calls until one fails, and its luck.
    fails: Option<(u32, Luck)>,
}

/// What the one call says that fails.
pub const FAILURE: i32 = 5;

impl State {
    fn call(&mut self) -> io::Result<()> {
        match &mut self.fails {
            None => {}
            Some((0, _)) => {
                let luck = self.fails.take().map(|(_, luck)| luck);
                luck.into_iter().for_each(|mut luck| self.write_back(&mut luck));
                return Err(io::Error::from_raw_os_error(FAILURE));
            }
            Some((left, _)) => *left -= 1,
        }
        match &mut self.left {
            None => Ok(()),
            Some(0) => Err(io::Error::other("power failed")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    /// Of each write that was not flushed, each piece becomes durable or not, and is forgotten.
    fn write_back(&mut self, luck: &mut Luck) {
        for (offset, bytes) in self.unflushed.drain(..) {
            let mut at = 0;
            while at < bytes.len() {
                let place = offset + at;
                let length = (PIECE_BYTES - place % PIECE_BYTES).min(bytes.len() - at);
                if luck.next().is_multiple_of(2) {
                    self.durable[place..place + length].copy_from_slice(&bytes[at..at + length]);
                }
                at += length;
            }
        }
    }
}

/// See the module.
pub struct Lossy(RefCell<State>);

impl Lossy {
    pub fn new(bytes: usize) -> Self {
        let zeroes = vec![0; bytes];
        Self(RefCell::new(State {
            durable: zeroes.clone(),
            live: zeroes,
            unflushed: Vec::new(),
            left: None,
            fails: None,
        }))
    }

    pub fn content(&self) -> Vec<u8> {
        self.0.borrow().live.clone()
    }

    /// Power fails after so many writes and flushes: they are errors from then on.
    pub fn lose_power_after(&self, calls: u32) {
        self.0.borrow_mut().left = Some(calls);
    }

    /// After so many writes and flushes one fails. What was not flushed before it is durable or not, each piece of it,
    /// and no later flush writes it; but all of it is read as it was written.
    pub fn fail_after(&self, calls: u32, luck: Luck) {
        self.0.borrow_mut().fails = Some((calls, luck));
    }

    /// Neither power nor a call fails after all.
    pub fn fail_never(&self) {
        let mut state = self.0.borrow_mut();
        (state.left, state.fails) = (None, None);
    }

    /// Power fails: of each write that was not flushed, each piece is there or not. Then it is back.
    pub fn lose_power(&self, luck: &mut Luck) {
        let mut state = self.0.borrow_mut();
        (state.left, state.fails) = (None, None);
        state.write_back(luck);
        let State { durable, live, .. } = &mut *state;
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
        let State { durable, unflushed, .. } = &mut *state;
        for (at, bytes) in unflushed.drain(..) {
            durable[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(())
    }
}
