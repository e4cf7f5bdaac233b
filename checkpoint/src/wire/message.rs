//! The messages in frames. Small messages are postcard. Page and state batches are records (see [`crate::page`]), parts
//! of the log are bytes of [`ft_vm::replay::log`]; these are only borrowed here.

use super::frame::{Frame, FrameError, FrameType, WireSink};
pub use super::identity::{Fact, Identity};
pub use super::pages::{HashRun, PageHashes};
use crate::scrub::Sample;
use ft_mirror::Change;
use serde::{Deserialize, Serialize};

/// How a pair replicates: what its epochs are made of. On the wire it is a number, in a configuration a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Every epoch is a checkpoint: pages and state.
    #[default]
    Checkpoint,
    /// The first epoch is a checkpoint, the others are the event log from there on.
    Replay,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Checkpoint => "checkpoint",
            Self::Replay => "replay",
        })
    }
}

/// What a backup holds: a sealed checkpoint of a pairing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The pairing.
    pub pairing: u64,
    /// The last sealed epoch.
    pub epoch: u64,
}

/// Backup to primary, first: who I am and what I hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The backup.
    pub identity: Identity,
    /// Its sealed checkpoint, if any.
    pub held: Option<Held>,
    /// Names the second connection that belongs to this one: see [`Message::Pulse`].
    pub pulse: u64,
}

/// Primary to backup: accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The primary.
    pub identity: Identity,
    /// The pairing that follows.
    pub pairing: u64,
    /// The epoch after which the stream goes on, or none: a full copy comes.
    pub resume_from: Option<u64>,
}

/// Either side: no, and why. Nothing follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refuse {
    /// See [`super::handshake::Refusal::code`].
    pub code: u16,
    /// For people.
    pub text: String,
}

/// A full copy starts; whatever the backup held is gone with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyBegin {
    /// Names the copy and what follows it.
    pub pairing: u64,
    /// Pages of RAM; every one must come at least once.
    pub total_pages: u32,
}

/// A checkpoint starts; its epoch is the frame's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochBegin {
    /// The pairing it belongs to.
    pub pairing: u64,
    /// Pages in it.
    pub pages: u32,
    /// Bytes of machine state in it, decoded.
    pub state_bytes: u32,
}

/// An epoch of the event log is complete; the last part of the log follows in the same frame. Most epochs are short,
/// and there may be thousands a second: each is one frame then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEnd {
    /// The pairing's digest after this epoch.
    pub digest: u64,
    /// The primary's clock at its cut; comes back in the ack.
    pub stamp_us: u64,
}

/// How far a backup that executes the log has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Instructions that it has executed.
    pub count: u64,
    /// Age of the oldest log that it has not executed to its end, in microseconds.
    pub lag_us: u64,
    /// Bytes of log that it has not executed.
    pub pending_bytes: u64,
}

/// The backup has found that it does not execute what the primary executed. What it holds is of no use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diverged {
    /// Instructions that had been executed.
    pub count: u64,
    /// What differs.
    pub what: String,
}

/// What a node can say of its arbiter, and with it of a take-over: the backup's word is what "protected" rests on, the
/// primary's tells the backup the same. Said whenever the arbiter has answered, or has failed to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Where its cell is, for people.
    pub place: String,
    /// Identity and generation of the cell that it found there last, if there was one.
    pub cell: Option<(u64, u64)>,
    /// The pairing with which that cell names the backup.
    pub named: Option<u64>,
    /// When the arbiter was asked last that has answered, by the receiver's clock: at the earliest, as the sender knows
    /// that clock by the stamps that have come from it. 0: before the first of them. None: it never answered.
    pub asked_us: Option<u64>,
    /// Why the last request had no answer, for people.
    pub trouble: Option<String>,
    /// A backup: why the VM could not go on from what it holds when that was last tried, and since when it is so, in
    /// microseconds. None: it could.
    pub unfit: Option<(String, u64)>,
    /// The receiver shall ask its own arbiter now, and say the same of it.
    pub asks: bool,
    /// The sender's clock.
    pub stamp_us: u64,
}

/// Primary to backup, while a copy is under way: what an extent of a disk is like, after all changes that came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    /// The disk's number.
    pub disk: u16,
    /// The extent's: it begins at so many times [`EXTENT_BYTES`](super::disk::EXTENT_BYTES).
    pub extent: u32,
    /// BLAKE3 of its bytes.
    pub hash: [u8; 32],
}

/// The backup's answer to a [`Compare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// The disk's number.
    pub disk: u16,
    /// The extent's.
    pub extent: u32,
    /// The backup's is the same.
    pub same: bool,
}

/// Both, when a copy begins: a part of what may differ from the peer's image of a disk, extent by extent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMap {
    /// The disk's number.
    pub disk: u16,
    /// The pairing in which both images were the same last, but for what is set in either host's map. None: all may
    /// differ.
    pub base: Option<u64>,
    /// The extent of the first bit, a multiple of 8. Parts come in order, the first at 0.
    pub at: u32,
    /// A bit for each extent, the lowest first.
    pub bits: Vec<u8>,
}

/// Backup to primary: its images have, durably, what the guest had written by the end of this epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// The pairing.
    pub pairing: u64,
    /// The epoch.
    pub epoch: u64,
}

/// How the VM's way to the network is on the sender's host: said when a connection begins, and at each change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Whether nobody beyond that host would reach the VM there.
    pub is_cut_off: bool,
    /// What is wrong, for people; empty if nothing is.
    pub trouble: String,
}

/// A host as its node sees it now, for a comparison outside any pairing. Its clock is read last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survey {
    /// As in a hello, without the facts of files.
    pub identity: Identity,
    /// Those.
    pub files: HostFiles,
    /// The release of ftd, for people.
    pub release: String,
    /// The MTU of its way to the other host, if the system tells.
    pub mtu: Option<u32>,
    /// What it lacks to be the backup, for people.
    pub lacks: Option<String>,
    /// Microseconds since 1970, by its clock.
    pub clock_us: u64,
}

/// What a host's files hold, as far as that is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostFiles {
    /// A fact for each.
    Known(Vec<Fact>),
    /// One has not been read; why, for people.
    Unread(String),
}

impl Survey {
    /// The identity as in a hello, as far as the files are known.
    pub fn whole(&self) -> Identity {
        let mut identity = self.identity.clone();
        if let HostFiles::Known(facts) = &self.files {
            identity.facts.extend_from_slice(facts);
        }
        identity
    }
}

/// An epoch is complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochEnd {
    /// The pairing's digest after this checkpoint (see [`crate::digest`]).
    pub digest: u64,
    /// The primary's clock at its pause; comes back in the ack.
    pub stamp_us: u64,
    /// Pages to be compared as of this epoch (see [`crate::scrub`]); at most [`crate::scrub::SAMPLES_MAX`].
    pub samples: Vec<Sample>,
}

/// The backup has sealed `epoch`, and with it all before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The epoch.
    pub epoch: u64,
    /// From its [`EpochEnd`].
    pub stamp_us: u64,
}

/// Nothing follows on this connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bye {
    /// A code of the daemon's.
    pub reason: u16,
    /// For people.
    pub text: String,
}

/// Any message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// See [`Hello`].
    Hello(Hello),
    /// See [`Welcome`].
    Welcome(Welcome),
    /// See [`Refuse`].
    Refuse(Refuse),
    /// See [`CopyBegin`].
    CopyBegin(CopyBegin),
    /// Page records of a full copy.
    CopyPages(&'a [u8]),
    /// See [`EpochBegin`].
    EpochBegin(EpochBegin),
    /// Page records of a checkpoint.
    Pages(&'a [u8]),
    /// State block records of a checkpoint.
    State(&'a [u8]),
    /// See [`EpochEnd`].
    EpochEnd(EpochEnd),
    /// A part of an epoch's log, ahead of its end.
    Log(&'a [u8]),
    /// See [`LogEnd`]; the last part of the log.
    LogEnd(LogEnd, &'a [u8]),
    /// See [`Ack`].
    Ack(Ack),
    /// I live; the sender's clock as it is written, and how long the answer shall permit the sender to release.
    Heartbeat {
        /// Microseconds of the sender's clock.
        stamp_us: u64,
        /// The lease asked for, in microseconds.
        lease_us: u64,
    },
    /// Answer to a heartbeat, with its stamp.
    Echo {
        /// From the heartbeat.
        stamp_us: u64,
        /// The lease granted: for so long and longer, the sender does not contest.
        lease_us: u64,
    },
    /// The cell names this pairing and its backup since this generation: protected.
    Paired {
        /// The new generation.
        generation: u64,
    },
    /// Planned switchover: the checkpoint of `epoch` is the last; go on with the VM once it is sealed.
    Switchover {
        /// The last epoch.
        epoch: u64,
    },
    /// The sender has taken over.
    TookOver {
        /// In this generation.
        generation: u64,
    },
    /// See [`Bye`].
    Bye(Bye),
    /// The backup will not take over as asked, and has changed nothing.
    Decline {
        /// Why, for people.
        text: String,
    },
    /// See [`Position`].
    Position(Position),
    /// See [`Diverged`].
    Diverged(Diverged),
    /// See [`Standing`].
    Standing(Standing),
    /// See [`Network`].
    Network(Network),
    /// Backup to primary, first on a second connection, which carries heartbeats and their answers and nothing else.
    Pulse {
        /// From the hello on the connection that it belongs to.
        name: u64,
    },
    /// None asks for a [`Survey`], which is all that is answered; nothing follows.
    Survey(Option<Box<Survey>>),
    /// A change of a disk, ahead of the checkpoint that it belongs to. In a full copy, where no epoch is (0), it is
    /// also what makes the backup's disk equal.
    Disk(Change<'a>),
    /// See [`Compare`].
    Compare(Compare),
    /// See [`Compared`].
    Compared(Compared),
    /// See [`DiskMap`].
    DiskMap(DiskMap),
    /// See [`Settled`].
    Settled(Settled),
    /// See [`PageHashes`].
    PageHashes(PageHashes),
    /// The next version: the backup names its build.
    #[cfg(feature = "next-version")]
    Build {
        /// For people.
        text: String,
    },
}

impl<'a> Message<'a> {
    /// The type of frame it travels in.
    pub fn kind(&self) -> FrameType {
        match self {
            Self::Hello(_) => FrameType::Hello,
            Self::Welcome(_) => FrameType::Welcome,
            Self::Refuse(_) => FrameType::Refuse,
            Self::CopyBegin(_) => FrameType::CopyBegin,
            Self::CopyPages(_) => FrameType::CopyPages,
            Self::EpochBegin(_) => FrameType::EpochBegin,
            Self::Pages(_) => FrameType::Pages,
            Self::State(_) => FrameType::State,
            Self::EpochEnd(_) => FrameType::EpochEnd,
            Self::Ack(_) => FrameType::Ack,
            Self::Heartbeat { .. } => FrameType::Heartbeat,
            Self::Echo { .. } => FrameType::Echo,
            Self::Paired { .. } => FrameType::Paired,
            Self::Switchover { .. } => FrameType::Switchover,
            Self::TookOver { .. } => FrameType::TookOver,
            Self::Bye(_) => FrameType::Bye,
            Self::Decline { .. } => FrameType::Decline,
            Self::Log(_) => FrameType::Log,
            Self::LogEnd(..) => FrameType::LogEnd,
            Self::Position(_) => FrameType::Position,
            Self::Diverged(_) => FrameType::Diverged,
            Self::Standing(_) => FrameType::Standing,
            Self::Network(_) => FrameType::Network,
            Self::Pulse { .. } => FrameType::Pulse,
            Self::Survey(_) => FrameType::Survey,
            Self::Disk(_) => FrameType::Disk,
            Self::Compare(_) => FrameType::Compare,
            Self::Compared(_) => FrameType::Compared,
            Self::DiskMap(_) => FrameType::DiskMap,
            Self::Settled(_) => FrameType::Settled,
            Self::PageHashes(_) => FrameType::PageHashes,
            #[cfg(feature = "next-version")]
            Self::Build { .. } => FrameType::Build,
        }
    }

    /// The message in a frame.
    pub fn decode(frame: &Frame<'a>) -> Result<Self, FrameError> {
        let kind = frame.kind;
        Ok(match kind {
            FrameType::Hello => {
                let hello: Hello = parse(frame)?;
                checked(&hello.identity, kind)?;
                Self::Hello(hello)
            }
            FrameType::Welcome => {
                let welcome: Welcome = parse(frame)?;
                checked(&welcome.identity, kind)?;
                Self::Welcome(welcome)
            }
            FrameType::Refuse => Self::Refuse(parse(frame)?),
            FrameType::CopyBegin => Self::CopyBegin(parse(frame)?),
            FrameType::CopyPages => Self::CopyPages(frame.payload),
            FrameType::EpochBegin => Self::EpochBegin(parse(frame)?),
            FrameType::Pages => Self::Pages(frame.payload),
            FrameType::State => Self::State(frame.payload),
            FrameType::EpochEnd => Self::EpochEnd(parse(frame)?),
            FrameType::Ack => Self::Ack(parse(frame)?),
            FrameType::Heartbeat => {
                let (stamp_us, lease_us) = parse(frame)?;
                Self::Heartbeat { stamp_us, lease_us }
            }
            FrameType::Echo => {
                let (stamp_us, lease_us) = parse(frame)?;
                Self::Echo { stamp_us, lease_us }
            }
            FrameType::Paired => Self::Paired { generation: parse(frame)? },
            FrameType::Switchover => Self::Switchover { epoch: parse(frame)? },
            FrameType::TookOver => Self::TookOver { generation: parse(frame)? },
            FrameType::Bye => Self::Bye(parse(frame)?),
            FrameType::Decline => Self::Decline { text: parse(frame)? },
            FrameType::Log => Self::Log(frame.payload),
            FrameType::LogEnd => {
                let (end, part) = parse_head(frame)?;
                Self::LogEnd(end, part)
            }
            FrameType::Position => Self::Position(parse(frame)?),
            FrameType::Diverged => Self::Diverged(parse(frame)?),
            FrameType::Standing => Self::Standing(parse(frame)?),
            FrameType::Network => Self::Network(parse(frame)?),
            FrameType::Pulse => Self::Pulse { name: parse(frame)? },
            FrameType::Survey => {
                let survey: Option<Box<Survey>> = parse(frame)?;
                survey.iter().try_for_each(|survey| checked(&survey.whole(), kind))?;
                Self::Survey(survey)
            }
            FrameType::Disk => Self::Disk(super::disk::decode(frame.payload)?),
            FrameType::Compare => Self::Compare(parse(frame)?),
            FrameType::Compared => Self::Compared(parse(frame)?),
            FrameType::DiskMap => Self::DiskMap(parse(frame)?),
            FrameType::Settled => Self::Settled(parse(frame)?),
            FrameType::PageHashes => {
                let said: PageHashes = parse(frame)?;
                if let Some(why) = said.fault() {
                    return Err(FrameError::Malformed { kind, why: why.into() });
                }
                Self::PageHashes(said)
            }
            #[cfg(feature = "next-version")]
            FrameType::Build => Self::Build { text: parse(frame)? },
        })
    }

    /// Writes it as a frame of `epoch`. Not flushed.
    pub fn write(&self, epoch: u64, out: &mut impl WireSink) -> Result<(), FrameError> {
        out.frame(self.kind(), epoch, &self.payload()?)
    }

    /// Writes it and flushes.
    pub fn send(&self, epoch: u64, out: &mut impl WireSink) -> Result<(), FrameError> {
        self.write(epoch, out)?;
        out.flush()
    }

    fn payload(&self) -> Result<std::borrow::Cow<'a, [u8]>, FrameError> {
        let encoded = match self {
            Self::CopyPages(bytes) | Self::Pages(bytes) | Self::State(bytes) | Self::Log(bytes) => {
                return Ok((*bytes).into());
            }
            Self::Disk(change) => return Ok(super::disk::encode(change).into()),
            Self::Hello(m) => postcard::to_stdvec(m),
            Self::Welcome(m) => postcard::to_stdvec(m),
            Self::Refuse(m) => postcard::to_stdvec(m),
            Self::CopyBegin(m) => postcard::to_stdvec(m),
            Self::EpochBegin(m) => postcard::to_stdvec(m),
            Self::EpochEnd(m) => postcard::to_stdvec(m),
            Self::Ack(m) => postcard::to_stdvec(m),
            Self::Heartbeat { stamp_us, lease_us } | Self::Echo { stamp_us, lease_us } => {
                postcard::to_stdvec(&(stamp_us, lease_us))
            }
            Self::Paired { generation: n }
            | Self::Switchover { epoch: n }
            | Self::TookOver { generation: n }
            | Self::Pulse { name: n } => postcard::to_stdvec(n),
            Self::Bye(m) => postcard::to_stdvec(m),
            Self::Decline { text } => postcard::to_stdvec(text),
            Self::LogEnd(m, part) => postcard::to_stdvec(m).map(|head| [&head, *part].concat()),
            Self::Position(m) => postcard::to_stdvec(m),
            Self::Diverged(m) => postcard::to_stdvec(m),
            Self::Standing(m) => postcard::to_stdvec(m),
            Self::Network(m) => postcard::to_stdvec(m),
            Self::Compare(m) => postcard::to_stdvec(m),
            Self::Compared(m) => postcard::to_stdvec(m),
            Self::DiskMap(m) => postcard::to_stdvec(m),
            Self::Settled(m) => postcard::to_stdvec(m),
            Self::PageHashes(m) => postcard::to_stdvec(m),
            Self::Survey(m) => postcard::to_stdvec(m),
            #[cfg(feature = "next-version")]
            Self::Build { text } => postcard::to_stdvec(text),
        };
        let malformed = |e: postcard::Error| FrameError::Malformed { kind: self.kind(), why: e.to_string() };
        Ok(encoded.map_err(malformed)?.into())
    }
}

fn checked(identity: &Identity, kind: FrameType) -> Result<(), FrameError> {
    identity.check().map_err(|e| FrameError::Malformed { kind, why: e.to_string() })
}

fn parse<'a, T: Deserialize<'a>>(frame: &Frame<'a>) -> Result<T, FrameError> {
    match parse_head(frame)? {
        (message, []) => Ok(message),
        (_, rest) => {
            let why = format!("{} bytes too many", rest.len());
            Err(FrameError::Malformed { kind: frame.kind, why })
        }
    }
}

/// A message, and what follows it in the frame.
fn parse_head<'a, T: Deserialize<'a>>(frame: &Frame<'a>) -> Result<(T, &'a [u8]), FrameError> {
    let malformed = |e: postcard::Error| FrameError::Malformed { kind: frame.kind, why: e.to_string() };
    postcard::take_from_bytes(frame.payload).map_err(malformed)
}
