//! What an entry of a ledger holds: bytes that its number alone determines. Whoever reads it, in the guest or on a
//! host, knows every byte that must be there.

/// Draws numbers, the same ones for the same entry (splitmix64).
pub struct Draw(u64);

impl Draw {
    /// For one entry.
    pub fn of(number: u64) -> Self {
        Self(number.wrapping_mul(0xd134_2543_de82_ef95))
    }

    /// The next one.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From `low` up to and without `high`.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + (self.word() % (high - low) as u64) as usize
    }

    /// So many bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let words = std::iter::repeat_with(|| self.word().to_le_bytes()).take(count.div_ceil(8));
        let mut bytes: Vec<u8> = words.flatten().collect();
        bytes.truncate(count);
        bytes
    }
}

/// FNV-1a of 64 bits.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// The number from 1 to `last` that was written last into place `place` of `places`, when entry n goes to place
/// n modulo `places`.
pub fn last_in(place: u64, places: u64, last: u64) -> Option<u64> {
    let back = (last % places + places - place) % places;
    last.checked_sub(back).filter(|number| *number > 0)
}
