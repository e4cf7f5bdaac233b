//! Two slots at the beginning of a medium that say the same and are written one after the other: one is always whole,
//! and when one is damaged later the other has what it had.

use crate::medium::Medium;
use std::io;

pub(crate) const SLOT_BYTES: u64 = 4096;
/// What lies behind the slots begins here.
pub(crate) const SLOTS_END: u64 = 2 * SLOT_BYTES;

/// What a slot says, and the count of its writing.
pub(crate) type Slot<T> = (u64, T);

/// What was found.
pub(crate) struct Found<T> {
    pub(crate) count: u64,
    pub(crate) newest: T,
    /// The slot that does not say it. It is mended before the other one is written again.
    pub(crate) behind: Option<u64>,
}

/// The newer of the two. An error that says more than that a slot is damaged comes first.
pub(crate) fn read<T, E: From<io::Error>, const BYTES: usize>(
    medium: &impl Medium,
    decode: impl Fn(&[u8; BYTES]) -> Result<Slot<T>, E>,
    is_damage: impl Fn(&E) -> bool,
) -> Result<Found<T>, E> {
    let slot = |slot: u64| {
        let mut bytes = [0; BYTES];
        medium.read(slot * SLOT_BYTES, &mut bytes)?;
        decode(&bytes)
    };
    let found = |(count, newest), behind| Ok(Found { count, newest, behind });
    match (slot(0), slot(1)) {
        (Ok(a), Ok(b)) if a.0 == b.0 => found(a, None),
        (Ok(a), Ok(b)) => {
            if a.0 > b.0 {
                found(a, Some(1))
            } else {
                found(b, Some(0))
            }
        }
        (Ok(a), Err(why)) if is_damage(&why) => found(a, Some(1)),
        (Err(why), Ok(b)) if is_damage(&why) => found(b, Some(0)),
        (Err(why), Err(more)) if is_damage(&why) => Err(more),
        (Err(why), _) | (_, Err(why)) => Err(why),
    }
}

/// Writes both, durably.
pub(crate) fn write(medium: &impl Medium, bytes: &[u8]) -> io::Result<()> {
    (0..2).try_for_each(|slot| write_one(medium, slot, bytes))
}

/// Writes one, durably.
pub(crate) fn write_one(medium: &impl Medium, slot: u64, bytes: &[u8]) -> io::Result<()> {
    put(medium, slot, bytes)?;
    medium.sync()
}

/// Writes one. The next flush makes it durable.
pub(crate) fn put(medium: &impl Medium, slot: u64, bytes: &[u8]) -> io::Result<()> {
    medium.write(slot * SLOT_BYTES, bytes)
}

/// Writes again what they say.
pub(crate) fn write_again<const BYTES: usize>(medium: &impl Medium) -> io::Result<()> {
    (0..2).try_for_each(|slot| {
        let mut bytes = [0; BYTES];
        medium.read(slot * SLOT_BYTES, &mut bytes)?;
        put(medium, slot, &bytes)
    })
}
