//! The way to a daemon on another machine: its host and port as the operator names them, and a connection in TLS with
//! the node that is there.

use super::secured::keep_alive;
use crate::config::CONTROL_PORT;
use ft_tls::{Channel, Credentials, Party, PartyKind, SecuredService, TlsError};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time for a connection and its handshake, for each address of the host's.
const CONNECT: Duration = Duration::from_secs(10);

/// A host and a port: `alpha`, `alpha:7381`, `10.0.0.1:7381`, `fd00::1`, `[fd00::1]:7381`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    host: String,
    port: u16,
}

/// Why a text is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a host's name or address, with or without a port behind it, like alpha, 10.0.0.1:7380 or [fd00::1]:7380"
)]
pub struct BadHostPort;

impl FromStr for HostPort {
    type Err = BadHostPort;

    fn from_str(text: &str) -> Result<Self, BadHostPort> {
        let of_ip = |ip: IpAddr, port| Self { host: ip.to_string(), port };
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.port() == 0 {
                Err(BadHostPort)
            } else {
                Ok(of_ip(address.ip(), address.port()))
            };
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Ok(of_ip(ip, CONTROL_PORT));
        }
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => {
                let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
                (host, port.parse().ok().filter(|port| digits && *port != 0).ok_or(BadHostPort)?)
            }
            None => (text, CONTROL_PORT),
        };
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let is_name = (1..=253).contains(&host.len()) && host.bytes().all(allowed) && !host.starts_with('-');
        if is_name { Ok(Self { host: host.to_owned(), port }) } else { Err(BadHostPort) }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// Which daemon, and who asks.
#[derive(Clone, Debug)]
pub struct DaemonPlace {
    /// Where it listens.
    pub at: HostPort,
    /// The node that its certificate must name, if not any of the site's.
    pub node: Option<String>,
    /// The VM that it must be of, if not any.
    pub vm: Option<String>,
    /// The operator's or observer's certificate.
    pub credentials: Arc<Credentials>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum NoWay {
    /// Nobody is there.
    #[error(transparent)]
    Away(#[from] io::Error),
    /// Who is there is not who should be, or does not take this operator.
    #[error(transparent)]
    Unproven(TlsError),
}

impl DaemonPlace {
    /// Connects to the first of the host's addresses that answers, and shakes hands.
    pub(super) fn connect(&self) -> Result<Channel, NoWay> {
        let socket = self.dial()?;
        keep_alive(&socket)?;
        let node = self.node.clone();
        let admits = move |party: &Party| match (party.kind(), &node) {
            (PartyKind::Node, None) => Ok(()),
            (PartyKind::Node, Some(node)) if node == party.name() => Ok(()),
            (PartyKind::Node, Some(node)) => Err(format!("the other end is {party}, and not node {node}")),
            (PartyKind::Arbiter | PartyKind::Operator | PartyKind::Observer, _) => {
                Err(format!("the other end is {party}, and no node"))
            }
        };
        let until = Instant::now() + CONNECT;
        let shaken = self.credentials.dial_admitted(socket, SecuredService::Control, admits, until);
        let channel = shaken.map_err(|e| match e {
            // It takes no more connections, or is something else that hangs up.
            TlsError::Io(e) if is_hung_up(&e) => {
                let why =
                    "it closed the connection before it proved who it is: it has as many as it takes, or is no daemon";
                NoWay::Away(io::Error::new(e.kind(), why))
            }
            TlsError::Io(e) => NoWay::Away(e),
            TlsError::TimedOut => NoWay::Away(io::Error::new(io::ErrorKind::TimedOut, TlsError::TimedOut)),
            e @ (TlsError::Tls(_) | TlsError::NotAdmitted(_)) => NoWay::Unproven(e),
        })?;
        channel.socket().set_read_timeout(Some(CONNECT))?;
        Ok(channel)
    }

    fn dial(&self) -> io::Result<TcpStream> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
        for address in (self.at.host.as_str(), self.at.port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, CONNECT) {
                Ok(socket) => return Ok(socket),
                Err(e) => last = e,
            }
        }
        Err(last)
    }
}

fn is_hung_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_the_default_port_unless_it_is_said() {
        for (text, shown) in [
            ("alpha", "alpha:7380"),
            ("alpha.example.org:7381", "alpha.example.org:7381"),
            ("10.0.0.1", "10.0.0.1:7380"),
            ("10.0.0.1:9", "10.0.0.1:9"),
            ("fd00::1", "[fd00::1]:7380"),
            ("[fd00::1]", "[fd00::1]:7380"),
            ("[fd00::1]:9", "[fd00::1]:9"),
        ] {
            let parsed: HostPort = text.parse().unwrap();
            assert_eq!(parsed.to_string(), shown);
            assert_eq!(shown.parse(), Ok(parsed), "{text}");
        }
        for bad in ["", ":", ":1", "a:", "a:0", "a:65536", "a:+1", "10.0.0.1:0", "a b", "-a", "a/b", "[a]:1"]
        {
            assert_eq!(bad.parse::<HostPort>(), Err(BadHostPort), "{bad}");
        }
    }
}
