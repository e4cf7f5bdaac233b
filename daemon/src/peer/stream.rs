//! The two directions of a connection's socket, and the connection as the handshake leaves it.

use super::pulse::PulseEnds;
use crate::role::ConnId;
use ft_checkpoint::wire::handshake::Agreed;
use ft_checkpoint::wire::message::Identity;
use ft_checkpoint::wire::{FrameReader, FrameWriter};
use ft_tls::Channel;
use std::cell::Cell;
use std::io::Read;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// The kernel's buffer: small, so that a heartbeat that overtakes the bulk in the outbox is not stuck behind it there.
const SOCKET_BUFFER_BYTES: usize = 512 << 10;
/// Bytes in that buffer which TCP has yet to send: on a slow link the buffer is more than a heartbeat may wait for.
static UNSENT_BYTES_MAX: u32 = 128 << 10;
/// A write that makes no progress for this long is a peer that reads nothing.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// A pair of connections on which both nodes have found that they fit.
pub struct Fitting {
    /// Its number.
    pub conn: ConnId,
    /// The peer's generation, as it said.
    pub generation: u64,
    /// What this node said of itself, or is about to: it was judged so.
    pub ours: Identity,
    /// The versions in which the two talk.
    pub agreed: Agreed,
    /// Reading side.
    pub reader: PeerReader,
    /// Writing side.
    pub writer: PeerWriter,
    /// The second connection, for heartbeats.
    pub pulse: PulseEnds,
}

/// A stream whose reads must be over by a deadline, while there is one: a peer that trickles bytes does not get more
/// time.
pub struct PeerStream {
    channel: Channel,
    deadline: Cell<Option<Instant>>,
}

impl PeerStream {
    /// Reads fail after `deadline`.
    pub fn new(channel: Channel, deadline: Instant) -> Self {
        Self { channel, deadline: Cell::new(Some(deadline)) }
    }

    /// From here on silence is judged by the core, which knows what to make of it.
    pub fn lift_deadline(&self) -> std::io::Result<()> {
        self.deadline.set(None);
        self.channel.socket().set_read_timeout(None)
    }
}

impl Read for PeerStream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if let Some(deadline) = self.deadline.get() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(std::io::ErrorKind::TimedOut.into());
            }
            self.channel.socket().set_read_timeout(Some(left))?;
        }
        self.channel.read(buffer)
    }
}

/// The reading side of a connection that has shaken hands.
pub type PeerReader = FrameReader<PeerStream>;
/// The writing side.
pub type PeerWriter = FrameWriter<Channel>;

/// Socket options that both sides want.
pub fn tune(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let size = SOCKET_BUFFER_BYTES;
    nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::SndBuf, &size)?;
    limit_unsent(stream)
}

/// Bytes wait here rather than in the kernel, on a link of any rate.
fn limit_unsent(stream: &TcpStream) -> std::io::Result<()> {
    // SAFETY: the descriptor is open as long as the stream is borrowed; the option is a u32, and its length says so.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            (&raw const UNSENT_BYTES_MAX).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
