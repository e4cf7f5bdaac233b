//! Numbers of the format: its version, its bounds, its tags.

/// Version of the format, and of what its inputs mean. Another one is refused, not guessed at.
pub const LOG_VERSION: u8 = 4;
/// Most bytes of a frame with its header, of a piece of console input, and of random bytes read at once.
pub const INPUT_BYTES_MAX: usize = 66 << 10;
/// Most pages of a digest; who has more writes several.
pub const DIGEST_PAGES_MAX: usize = 1 << 20;
/// Most bytes of a batch's entries, compressed or not. Every single entry fits.
pub const BATCH_BYTES_MAX: usize = 16 << 20;
/// Most entries of a batch.
pub const BATCH_ENTRIES_MAX: usize = 1 << 16;

pub(super) const MAGIC: [u8; 2] = *b"FL";
pub(super) const FLAG_LZ4: u8 = 1;
/// Magic, version, flags, CRC.
pub(super) const FIXED_BYTES: usize = 8;
/// Most bytes of a body before its entries: four varints of 64 bits.
pub(super) const PREFIX_BYTES_MAX: usize = 40;

pub(super) const TAG_FRAME: u8 = 1;
pub(super) const TAG_CONSOLE: u8 = 2;
pub(super) const TAG_ADVANCE: u8 = 3;
pub(super) const TAG_RANDOM: u8 = 4;
pub(super) const TAG_CONTROL: u8 = 5;
pub(super) const TAG_DIGEST: u8 = 6;
pub(super) const TAG_PACE: u8 = 7;
pub(super) const TAG_DISK: u8 = 8;
pub(super) const TAG_STOOD_STILL: u8 = 9;
pub(super) const TAG_TIME_OF_DAY: u8 = 10;
pub(super) const TAG_LINK: u8 = 11;

/// Over a batch but for the place of the checksum itself.
pub(super) fn checksum(batch: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&batch[..4]), &batch[FIXED_BYTES..])
}
