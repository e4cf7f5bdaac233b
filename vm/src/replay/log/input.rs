//! The entries of a log.

use super::digest::Digest;

/// What a machine is given from outside, or reads there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogInput {
    /// A frame, put into the receive ring of one of the guest's cards.
    Frame {
        /// Which card.
        card: u8,
        /// The frame behind its header.
        packet: Vec<u8>,
    },
    /// Bytes typed into the console.
    Console(Vec<u8>),
    /// Virtual time moves forward.
    Advance {
        /// By so many nanoseconds.
        ns: u64,
    },
    /// The same, for a guest that stood still: its watchdog did not count.
    StoodStill {
        /// For so many nanoseconds.
        ns: u64,
    },
    /// From here on, instructions take another virtual time.
    Pace {
        /// Nanoseconds that 256 instructions take.
        ns_per_256: u32,
    },
    /// The clock of the time of day is set forward, or back: the machine stood still, or is on another host.
    TimeOfDay {
        /// By so much.
        seconds: i64,
    },
    /// Random bytes that a device read from the host.
    Random(Vec<u8>),
    /// A disk gives a request back.
    Disk {
        /// Which disk.
        disk: u8,
        /// The first descriptor of the request's chain.
        head: u16,
        /// Whether the host could do it.
        well: bool,
    },
    /// A network card tells of a link, or of none.
    Link {
        /// Which card.
        card: u8,
        /// Whether there is one.
        up: bool,
    },
    /// What the machine's owner did to it.
    Control(ControlAction),
    /// Not an input: what the recorder's machine looked like at this count.
    Digest(Box<Digest>),
}

/// What a machine's owner does to it that changes how it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ControlAction {
    /// Cached address translations are dropped, as at a capture, after which a restored machine has none.
    FlushTranslations = 1,
    /// The power button is pressed.
    PressPowerButton = 2,
    /// The guest is asked to announce its addresses.
    Announce = 3,
}

impl ControlAction {
    pub(super) fn from_wire(byte: u8) -> Option<Self> {
        let all = [Self::FlushTranslations, Self::PressPowerButton, Self::Announce];
        all.into_iter().find(|action| *action as u8 == byte)
    }
}

/// An input at its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Instructions that had retired when it took effect.
    pub count: u64,
    /// What it was.
    pub input: LogInput,
}

/// A batch that was read and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Its number, from 0 where recording began.
    pub index: u64,
    /// Where the batch before it was cut, or where recording began.
    pub start: u64,
    /// How far a machine that has executed up to `start` may be executed with this batch.
    pub cut: u64,
    /// In order; counts from `start` to `cut`, both included, never going back.
    pub entries: Vec<LogEntry>,
}

impl Batch {
    /// About what it takes in memory: compressed it may have been much smaller.
    pub fn memory_bytes(&self) -> usize {
        let content = |entry: &LogEntry| match &entry.input {
            LogInput::Frame { packet: bytes, .. } | LogInput::Console(bytes) | LogInput::Random(bytes) => {
                bytes.len()
            }
            LogInput::Digest(digest) => size_of::<Digest>() + size_of_val(digest.pages.as_slice()),
            LogInput::Advance { .. }
            | LogInput::StoodStill { .. }
            | LogInput::Link { .. }
            | LogInput::TimeOfDay { .. }
            | LogInput::Pace { .. }
            | LogInput::Control(_)
            | LogInput::Disk { .. } => 0,
        };
        self.entries.iter().map(|entry| size_of::<LogEntry>() + content(entry)).sum()
    }
}

/// What a [`LogWriter::cut`](super::LogWriter::cut) put out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogCut {
    /// The count of the cut.
    pub count: u64,
    /// Entries since the cut before.
    pub entries: u64,
    /// Bytes appended.
    pub bytes: usize,
}
