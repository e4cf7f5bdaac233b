//! Why a connection to the peer does not come about.

use ft_checkpoint::wire::FrameError;
use ft_checkpoint::wire::handshake::{self, Refusal};
use ft_checkpoint::wire::message::Refuse;

/// Why a handshake came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The connection failed, or what came is not ours.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// We do not fit, by our judgement.
    #[error("{0}")]
    Misfit(#[from] Refusal),
    /// The peer refuses us.
    #[error("the peer refuses: {}", .0.text)]
    Refused(Refuse),
    /// Not the message that belongs here.
    #[error("expected {0}, got another message")]
    Unexpected(&'static str),
}

impl HandshakeError {
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
