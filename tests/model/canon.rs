//! When two states are the same. Times are taken relative to now, generations, epochs and counters to the newest, and
//! names of connections, processes and pairings by where they first appear: nothing depends on more of them. A time
//! that is further away than anything is waited for is as good as any such. Text that is for people does not
//! count, only whether it is there.
//!
//! A state is read by its `Debug` form, which names every field of the core: what this module does not know counts as
//! it is.

use std::fmt::{self, Write};
use std::hash::{Hash, Hasher};

use crate::world::{CONN_BASE, COUNTER_BASE, EPOCH_BASE, GENERATION_BASE, STEP_US, TIME_BASE, World};

/// Longer than the longest time of the policy: four failure timeouts.
const FAR_US: i64 = 13 * STEP_US as i64;

/// Further than a VM runs on, or checkpoints are in flight, without anything having left or been acknowledged.
const FAR_BEHIND: i64 = 16;

/// Numbers that are only shown, or that only measure a round trip, on which no lease depends here.
const SHOWN: [&str; 4] = ["suspicions", "pairings", "round_trip", "out_of_reach"];

struct Canon<'a, H> {
    hasher: &'a mut H,
    world: &'a World,
    names: Vec<u64>,
    in_text: bool,
    /// The field whose value comes next is only shown.
    skips: bool,
}

impl<H: Hasher> Canon<'_, H> {
    /// How far an epoch or a counter lies behind the newest.
    fn behind(&self, number: u64, newest: u64) -> i64 {
        (number as i64 - newest as i64).max(-FAR_BEHIND)
    }

    fn number(&mut self, number: u64) {
        let (kind, value) = match number {
            _ if !(TIME_BASE >> 1..COUNTER_BASE << 1).contains(&number) => (0, number as i64),
            _ if number < CONN_BASE => {
                let ago = number as i64 - self.world.now as i64;
                (1, ago.clamp(-FAR_US, FAR_US))
            }
            _ if number < GENERATION_BASE => {
                let known = self.names.iter().position(|name| *name == number);
                let at = known.unwrap_or_else(|| {
                    self.names.push(number);
                    self.names.len() - 1
                });
                (2, at as i64)
            }
            _ if number < EPOCH_BASE => {
                let newest = self.world.truth_cell().map_or(GENERATION_BASE, |cell| cell.generation);
                (3, number as i64 - newest as i64)
            }
            _ if number < COUNTER_BASE => (4, self.behind(number, self.world.serial.epoch)),
            _ => (5, self.behind(number, self.world.serial.counter)),
        };
        self.hasher.write_u8(kind);
        self.hasher.write_i64(value);
    }
}

impl<H: Hasher> Write for Canon<'_, H> {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        let first = piece.as_bytes().first().copied().unwrap_or(b' ');
        if first == b'"' && piece.len() == 1 {
            self.in_text = !self.in_text;
            self.hasher.write_u8(first);
        } else if self.in_text {
            // Names of nodes are one letter.
            if piece.len() == 1 {
                self.hasher.write_u8(first);
            }
        } else if first.is_ascii_digit() {
            let number = piece.parse().map_err(|_| fmt::Error)?;
            if !self.skips {
                self.number(number);
            }
        } else if piece == ", " || piece == ": " || self.skips && (piece == "true" || piece == "false") {
            // Between a field's name and its value, or two fields.
        } else {
            self.skips = SHOWN.contains(&piece);
            self.hasher.write(piece.as_bytes());
        }
        Ok(())
    }
}

impl Hash for World {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let mut canon = Canon { hasher, world: self, names: Vec::new(), in_text: false, skips: false };
        write!(canon, "{self:?}").expect("every number is one");
    }
}

impl PartialEq for World {
    /// As far as their fingerprints go, which is what the checker goes by.
    fn eq(&self, other: &Self) -> bool {
        fingerprint(self) == fingerprint(other)
    }
}

/// A number for the state.
pub fn fingerprint(world: &World) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}
