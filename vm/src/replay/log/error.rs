//! The faults of a log.

use super::format::LOG_VERSION;
use ft_ram::PageIndex;

/// Why a log is refused. Offsets are into the bytes that were given to be read, or, for a compressed batch, into its
/// decompressed entries.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Something else.
    #[error("log at byte {offset}: no batch of an event log begins here")]
    Magic {
        /// Where.
        offset: usize,
    },
    /// Another version's.
    #[error("log at byte {offset}: format version {theirs}, this program reads {LOG_VERSION}")]
    Version {
        /// Where the batch begins.
        offset: usize,
        /// The batch's.
        theirs: u8,
    },
    /// A flag that this version does not have.
    #[error("log at byte {offset}: unknown batch flags {flags:#04x}")]
    Flags {
        /// Where the batch begins.
        offset: usize,
        /// What they are.
        flags: u8,
    },
    /// The end is missing.
    #[error("log at byte {offset}: cut off, the batch has only {have} bytes here")]
    Truncated {
        /// Where the batch begins.
        offset: usize,
        /// What there is of it.
        have: usize,
    },
    /// Not the bytes that were written.
    #[error("log at byte {offset}: corrupt batch, checksum {computed:#010x} where {stated:#010x} is stated")]
    Crc {
        /// Where the batch begins.
        offset: usize,
        /// In the batch.
        stated: u32,
        /// Over the batch.
        computed: u32,
    },
    /// A batch, or several, between this and the one before.
    #[error("log at byte {offset}: batch {theirs} where batch {due} is due: the ones before it are missing")]
    Missing {
        /// Where the batch begins.
        offset: usize,
        /// Its number.
        theirs: u64,
        /// The number due.
        due: u64,
    },
    /// A batch that has been read already.
    #[error("log at byte {offset}: batch {theirs} again, where batch {due} is due")]
    Repeated {
        /// Where the batch begins.
        offset: usize,
        /// Its number.
        theirs: u64,
        /// The number due.
        due: u64,
    },
    /// The batch does not go on where the one before ended: it is of another log.
    #[error("log at byte {offset}: batch {index} starts at count {theirs}, the log has come to {due}")]
    Start {
        /// Where the batch begins.
        offset: usize,
        /// Its number.
        index: u64,
        /// The count at which it says it starts.
        theirs: u64,
        /// The count at which the batch before was cut, or at which the machine is.
        due: u64,
    },
    /// Counts that no machine reaches.
    #[error("log, batch {batch}, byte {offset} after count {count}: the counts overflow")]
    Overflow {
        /// The batch's number.
        batch: u64,
        /// Where.
        offset: usize,
        /// The last count that was one.
        count: u64,
    },
    /// An event after its batch's end.
    #[error("log, batch {batch}: an event at count {count}, after the batch's cut at {cut}")]
    AfterCut {
        /// The batch's number.
        batch: u64,
        /// The event's count.
        count: u64,
        /// The cut's.
        cut: u64,
    },
    /// A number, length or tag that cannot be, or one that its place has no room for.
    #[error("log, batch {batch}, byte {offset} after count {count}: {what}")]
    Malformed {
        /// The batch's number.
        batch: u64,
        /// Where.
        offset: usize,
        /// Of the last event that was read, or where the batch starts.
        count: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// More than fits.
    #[error("log, batch {batch}: {length} {what}, at most {max} are allowed")]
    TooLong {
        /// The batch's number.
        batch: u64,
        /// Of what.
        what: &'static str,
        /// How many.
        length: u64,
        /// The bound.
        max: usize,
    },
    /// To be written: an event before one that was written, or a cut before it.
    #[error("log, batch {batch}: count {count} after count {last}: counts never go back")]
    Backwards {
        /// The batch's number.
        batch: u64,
        /// The count given.
        count: u64,
        /// The last one.
        last: u64,
    },
    /// The pages of a digest that is to be written are not sorted, or one is there twice.
    #[error("log, batch {batch}: page {page} of a digest is not above the one before it")]
    Unsorted {
        /// The batch's number.
        batch: u64,
        /// The page.
        page: PageIndex,
    },
}
