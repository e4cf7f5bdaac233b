//! Memory that is what was written to it.

use crate::fault;

/// A processor's share of the memory, each word of which says where it is and in which round it was written.
pub struct Memory {
    processor: usize,
    words: Vec<u64>,
    round: u64,
}

impl Memory {
    pub fn new(processor: usize, bytes: usize) -> Self {
        Self { processor, words: vec![0; bytes / 8], round: 0 }
    }

    /// Checks what the last round wrote, and writes the next.
    pub fn round(&mut self) {
        let seed = (self.processor as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let (last, next) = (self.round, self.round + 1);
        let value = |round: u64, index: usize| match round {
            0 => 0,
            round => round.wrapping_mul(0xd134_2543_de82_ef95) ^ (index as u64).wrapping_mul(seed),
        };
        for (index, word) in self.words.iter_mut().enumerate() {
            let (is, want) = (*word, value(last, index));
            if is != want {
                let (at, processor) = (std::ptr::from_mut(word), self.processor);
                fault(format_args!("memory at {at:p}, processor {processor}: {is:016x}, not {want:016x}"));
            }
            *word = value(next, index);
        }
        self.round = next;
    }
}
