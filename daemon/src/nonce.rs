//! Random numbers for names that must not repeat across restarts: pairings and recordings.

use std::hash::{BuildHasher, Hasher};

/// A number never given before, as far as chance allows.
pub fn random_nonce() -> u64 {
    // Seeded by the system's randomness in every process; the time and the pid only add to it.
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u128(std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos());
    hasher.write_u32(std::process::id());
    hasher.finish()
}
