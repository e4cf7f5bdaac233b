//! Errors of connections to the peer: why one does not come about, and how one ends.

use ft_checkpoint::receiver::ReceiveError;
use ft_checkpoint::wire::FrameError;
use ft_checkpoint::wire::handshake::{self, Refusal};
use ft_checkpoint::wire::message::Refuse;
use ft_tls::TlsError;

/// Why a handshake came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The connection failed, or what came is not ours.
    #[error(transparent)]
    Frame(FrameError),
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The other end is not proven to be the peer, or does not take this end's proof.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The peer begins with a handshake of TLS.
    #[error(
        "it speaks TLS, and this node does not: give this node its certificate ([tls]), or set replication.security = \
         \"none\" on both"
    )]
    TlsThere,
    /// We do not fit, by our judgement.
    #[error("{0}")]
    Misfit(#[from] Refusal),
    /// The peer refuses us.
    #[error("the peer refuses: {}", .0.text)]
    Refused(Refuse),
    /// The node that dialled cannot be the backup now.
    #[error("{0}")]
    Declined(String),
    /// Not the message that belongs here.
    #[error("expected {0}, received another message")]
    Unexpected(&'static str),
    /// The peer did not connect a second time, for the heartbeats.
    #[error("its second connection, for heartbeats, did not come")]
    NoPulse,
}

impl HandshakeError {
    /// Whether one of the two still reads its files, to compare them: a matter of time.
    pub fn is_reading(&self) -> bool {
        match self {
            Self::Misfit(refusal) => handshake::is_reading(refusal.code()),
            Self::Refused(refuse) => handshake::is_reading(refuse.code),
            _ => false,
        }
    }

    /// What kind of reason it is, in a word for a metric.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tls(e) => e.kind(),
            Self::TlsThere => "unproven",
            Self::Frame(_) | Self::Io(_) | Self::NoPulse => "broken",
            Self::Misfit(_) | Self::Refused(_) | Self::Declined(_) | Self::Unexpected(_) => "unfit",
        }
    }

    /// Whether somebody has spoken at the other end. Where TLS fails nobody knows who it was: it may be the peer with a
    /// certificate that has expired, and a VM is not booted anew while its state may be there.
    pub fn is_answer(&self) -> bool {
        let spoke_tls = matches!(self, Self::Tls(TlsError::Tls(_) | TlsError::NotAdmitted(_)));
        spoke_tls || matches!(self, Self::Misfit(_) | Self::Refused(_) | Self::Unexpected(_))
    }

    /// Whether no waiting mends it: the versions or the configurations of the two nodes do not fit.
    pub fn is_permanent(&self) -> bool {
        let code = match self {
            Self::Frame(FrameError::Version { .. }) => return true,
            Self::Misfit(refusal) => refusal.code(),
            Self::Refused(refuse) => refuse.code,
            _ => return false,
        };
        handshake::is_permanent(code)
    }
}

/// The first bytes of a handshake of TLS, 22 for its records and 3 for their version, as a frame's magic.
const TLS_HANDSHAKE: u32 = u32::from_le_bytes([22, 3, 0, 0]);

impl From<FrameError> for HandshakeError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::BadMagic(magic) if magic & 0xffff == TLS_HANDSHAKE => Self::TlsThere,
            // The other end has judged this one's certificate after the handshake was over here.
            FrameError::Io(e) => match e.downcast::<TlsError>() {
                Ok(of_tls) => Self::Tls(of_tls),
                Err(e) => Self::Frame(FrameError::Io(e)),
            },
            other => Self::Frame(other),
        }
    }
}

/// How a connection came to its end.
#[derive(Debug)]
pub enum LinkEnd {
    /// Closed or reset, unreadable, or given up by us: nothing is known of the peer.
    Lost(LinkError),
    /// The peer said good-bye, for this reason.
    Bye(String),
}

/// Why a connection was lost, or given up.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Nothing can be read, or it is damaged.
    #[error(transparent)]
    Read(#[from] FrameError),
    /// Nothing can be written.
    #[error("writing: {0}")]
    Write(FrameError),
    /// The connection for heartbeats has ended, or is damaged.
    #[error("heartbeats: {0}")]
    Pulse(FrameError),
    /// What came on it is none.
    #[error("heartbeats: it sent something else among them")]
    NoBeat,
    /// What came is not what belongs there.
    #[error(transparent)]
    Refused(#[from] ReceiveError),
    /// The backup speaks as a primary.
    #[error("it sent a message that only a primary sends")]
    OutOfRole,
    /// What the primary sent is complete, and cannot be gone on from.
    #[error("what it sent is complete, but {0}")]
    Unusable(&'static str),
    /// The disks here do not follow.
    #[error("this node's disks do not follow the primary's")]
    DisksFail,
    /// A page here is not the primary's.
    #[error("the memory held here is not the primary's")]
    Distrusted,
    /// The log that the primary sends cannot be kept.
    #[error("it sends log without end, and more of it cannot be kept")]
    TooMuchLog,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_whose_certificate_is_refused_is_there_and_one_that_says_nothing_is_not() {
        assert!(HandshakeError::Tls(TlsError::NotAdmitted("it has expired".into())).is_answer());
        assert!(!HandshakeError::Tls(TlsError::TimedOut).is_answer());
        let reset = || std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert!(!HandshakeError::Tls(TlsError::Io(reset())).is_answer());
        assert!(!HandshakeError::Io(reset()).is_answer());
    }

    #[test]
    fn the_first_bytes_of_tls_are_told_from_other_garbage() {
        for version in [1, 3] {
            let magic = u32::from_le_bytes([22, 3, version, 2]);
            assert!(matches!(HandshakeError::from(FrameError::BadMagic(magic)), HandshakeError::TlsThere));
        }
        let other = u32::from_le_bytes(*b"GET ");
        assert!(matches!(HandshakeError::from(FrameError::BadMagic(other)), HandshakeError::Frame(_)));
    }
}
