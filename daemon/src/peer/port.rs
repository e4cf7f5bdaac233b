//! The replication port: where it is, and the gate in front of the handshake. Only the peer's configured address gets
//! through. Anybody else's connection is closed unread, counted, and told in few lines.

use crate::config::{Name, PeerConfig, REPLICATION_PORT};
use crate::limited::{Limited, unsaid};
use crate::observe::{RefusingService, Telemetry};
use ft_tls::Protection;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the way to the peer is looked up, where the port lies on it.
const LOOK_INTERVAL_MS: u16 = 1000;
/// Lines about strangers: a few, then one a minute.
const STRANGER_LINES: (u32, Duration) = (3, Duration::from_secs(60));

/// Who the peer is and where, which may change while the daemon runs; and how it is spoken to.
#[derive(Debug)]
pub struct PeerPlace {
    config: Mutex<PeerConfig>,
    protection: Protection,
}

impl PeerPlace {
    /// As configured.
    #[must_use]
    pub fn new(config: PeerConfig, protection: Protection) -> Self {
        Self { config: Mutex::new(config), protection }
    }

    /// How connections to it are made.
    pub fn protection(&self) -> &Protection {
        &self.protection
    }

    /// As configured last.
    #[must_use]
    pub fn get(&self) -> PeerConfig {
        self.config.lock().clone()
    }

    /// It is to be found elsewhere. Connections that there are stay.
    pub fn move_to(&self, address: SocketAddr, from: Option<IpAddr>) {
        let mut config = self.config.lock();
        config.address = address;
        config.from = from;
    }

    /// It has another name: that of the next hello.
    pub fn rename(&self, node: Name) {
        self.config.lock().node = node;
    }

    /// Whether the peer's connections come from there.
    fn admits(&self, from: IpAddr) -> bool {
        self.config.lock().connects_from().to_canonical() == from.to_canonical()
    }
}

/// Where a port is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// At this address.
    At(SocketAddr),
    /// At this host's address on the way to the peer, and again when that changes.
    TowardsPeer,
}

impl Listen {
    /// The address now.
    pub fn address(self, peer: SocketAddr) -> io::Result<SocketAddr> {
        match self {
            Self::At(address) => Ok(address),
            Self::TowardsPeer => Ok(SocketAddr::new(address_towards(peer)?, REPLICATION_PORT)),
        }
    }
}

/// This host's address on the way to `peer`. Nothing is sent.
fn address_towards(peer: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr =
        if peer.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(peer)?;
    Ok(socket.local_addr()?.ip())
}

/// See the module.
pub struct Port {
    listener: TcpListener,
    listen: Listen,
    peer: Arc<PeerPlace>,
    telemetry: Arc<Telemetry>,
    strangers: Limited,
}

impl Port {
    /// Binds it.
    pub fn bind(listen: Listen, peer: Arc<PeerPlace>, telemetry: Arc<Telemetry>) -> io::Result<Self> {
        let listener = bind(listen.address(peer.get().address)?)?;
        Ok(Self { listener, listen, peer, telemetry, strangers: Limited::new(STRANGER_LINES) })
    }

    /// Where connections that come to nothing are counted.
    pub fn telemetry(&self) -> Arc<Telemetry> {
        Arc::clone(&self.telemetry)
    }

    /// The next connection that comes from the peer's address.
    pub fn accept(&mut self) -> io::Result<TcpStream> {
        loop {
            let mut ready = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
            poll(&mut ready, PollTimeout::from(LOOK_INTERVAL_MS))?;
            match self.listener.accept() {
                Ok((stream, from)) if self.peer.admits(from.ip()) => return Ok(stream),
                Ok((_, from)) => self.turn_away(from),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.follow_the_way(),
                Err(e) => return Err(e),
            }
        }
    }

    fn turn_away(&self, from: SocketAddr) {
        self.telemetry.refused(RefusingService::Replication, "stranger");
        if let Some(more) = self.strangers.pass(Instant::now()) {
            let peer = self.peer.get();
            tracing::warn!(
                "closed a connection from {from}: the peer {} connects from {}{}",
                peer.node,
                peer.connects_from(),
                unsaid(more)
            );
        }
    }

    /// The private link may have had no address yet when the port was bound.
    fn follow_the_way(&mut self) {
        if self.listen != Listen::TowardsPeer {
            return;
        }
        let wanted = self.listen.address(self.peer.get().address).ok();
        let bound = self.listener.local_addr().ok();
        if let Some(wanted) = wanted.filter(|wanted| Some(*wanted) != bound)
            && let Ok(listener) = bind(wanted)
        {
            tracing::info!("waiting for the peer at {wanted} now, which is the way to it");
            self.listener = listener;
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn peer(address: &str, from: Option<&str>) -> Arc<PeerPlace> {
        let from = from.map_or(String::new(), |from| format!("from = \"{from}\""));
        let text = format!("node = \"beta\"\naddress = \"{address}\"\n{from}");
        Arc::new(PeerPlace::new(toml::from_str(&text).unwrap(), Protection::None))
    }

    #[test]
    fn only_the_peers_address_gets_through() {
        let place = peer("127.0.0.1:7400", None);
        assert!(place.admits("127.0.0.1".parse().unwrap()));
        assert!(place.admits("::ffff:127.0.0.1".parse().unwrap()));
        assert!(!place.admits("127.0.0.2".parse().unwrap()));
        place.move_to("127.0.0.1:7400".parse().unwrap(), Some("127.0.0.2".parse().unwrap()));
        assert!(place.admits("127.0.0.2".parse().unwrap()));
        assert!(!place.admits("127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn strangers_are_closed_and_counted() {
        let telemetry = Arc::new(Telemetry::default());
        let listen = Listen::At("127.0.0.1:0".parse().unwrap());
        let mut port = Port::bind(listen, peer("127.0.0.2:7400", None), Arc::clone(&telemetry)).unwrap();
        let at = port.listener.local_addr().unwrap();
        let strangers: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(at).unwrap()).collect();
        // It waits for the peer, which does not come.
        std::thread::spawn(move || port.accept());
        for mut stranger in strangers {
            assert_eq!(stranger.read(&mut [0; 1]).unwrap_or(0), 0, "it is closed, and nothing is said");
        }
        let metrics = telemetry.metrics.render("web", "alpha");
        assert!(metrics.contains("service=\"replication\",reason=\"stranger\"} 100\n"), "{metrics}");
    }

    #[test]
    fn the_port_lies_on_the_way_to_the_peer() {
        let loopback = "127.0.0.1:9".parse().unwrap();
        assert_eq!(Listen::TowardsPeer.address(loopback).unwrap(), "127.0.0.1:7400".parse().unwrap());
        let at = "127.0.0.3:1".parse().unwrap();
        assert_eq!(Listen::At(at).address(loopback).unwrap(), at);
    }
}
