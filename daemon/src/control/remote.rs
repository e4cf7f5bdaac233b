//! Serves operators on other machines, in TLS alone: a second transport to the one handler of requests. A connection
//! has one of few places, in all and of its source, from the moment it is accepted. Until the handshake has proven an
//! operator or an observer of the site, it costs that place, and a confined thread that waits for no longer than the
//! handshake may take. Then it is served as a client of the control socket is, with the rights of its certificate.

use super::api::{Greeting, Response};
use super::caller::Caller;
use super::secured::{SecuredStream, keep_alive};
use super::server::{Controlled, Session};
use crate::limited::{Limited, unsaid};
use crate::observe::{RefusingService, Telemetry};
use ft_confine::ThreadKind;
use ft_tls::{Channel, Credentials, Party, Places, SecuredService, TlsError};
use std::io;
use std::net::{SocketAddr, TcpStream as BlockingSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Connections at a time, in all.
pub const REMOTES_MAX: usize = 64;
/// Connections at a time from one address, or one /64 of IPv6.
pub const REMOTES_OF_SOURCE_MAX: usize = 16;
/// Time for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Lines about those who are not let in: a few, then one in so much time.
const STRANGER_LINES: (u32, Duration) = (5, Duration::from_secs(10));

/// A handshake that is under way.
type Shaking = oneshot::Receiver<Result<Channel, TlsError>>;

/// See the module.
pub struct RemoteServer {
    listener: TcpListener,
    credentials: Arc<Credentials>,
    places: Arc<Places>,
    handshake: Duration,
    strangers: Limited,
    telemetry: Arc<Telemetry>,
}

impl RemoteServer {
    /// Listens at an address, with this host's certificate. Who is not served is counted.
    pub async fn bind(
        address: SocketAddr,
        credentials: Arc<Credentials>,
        telemetry: Arc<Telemetry>,
    ) -> io::Result<Self> {
        Ok(Self {
            listener: TcpListener::bind(address).await?,
            credentials,
            places: Places::new(REMOTES_MAX, REMOTES_OF_SOURCE_MAX),
            handshake: HANDSHAKE,
            strangers: Limited::new(STRANGER_LINES),
            telemetry,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Takes clients until the future is dropped, and has them served by another runtime.
    pub async fn serve<C: Controlled>(self, controlled: Arc<C>, clients: Handle) {
        let this = Arc::new(self);
        loop {
            let (stream, from) = match this.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "control.listen: cannot accept a client; trying again");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let place = match this.places.take(from.ip()) {
                Ok(place) => place,
                Err(none) => {
                    this.refused(from, "full", &none);
                    continue;
                }
            };
            let (this, controlled) = (Arc::clone(&this), Arc::clone(&controlled));
            let shaking = this.shake_hands(stream, from);
            clients.spawn(async move {
                let _place = place;
                match this.secured(shaking, from).await {
                    // How a client ends is its own business.
                    Ok((channel, caller)) => {
                        if let Err(error) = serve_one(channel, caller, &*controlled).await {
                            tracing::debug!(%error, "remote control client gone");
                        }
                    }
                    Err(e) => this.refused(from, e.kind(), &e),
                }
            });
        }
    }

    /// Shakes hands, on a thread that may wait.
    fn shake_hands(&self, stream: TcpStream, from: SocketAddr) -> io::Result<Shaking> {
        let stream: BlockingSocket = stream.into_std()?;
        stream.set_nonblocking(false)?;
        keep_alive(&stream)?;
        let (credentials, limit) = (Arc::clone(&self.credentials), self.handshake);
        let (done, shaking) = oneshot::channel();
        std::thread::Builder::new().name("ftd-operator".into()).spawn(move || {
            ft_confine::this_thread(ThreadKind::Link);
            let admits =
                move |party: &Party| Caller::remote(party, from).map(drop).map_err(|e| e.to_string());
            let until = Instant::now() + limit;
            // Who waits for it may have ended.
            let _ = done.send(credentials.take(stream, SecuredService::Control, admits, until));
        })?;
        Ok(shaking)
    }

    /// What came of a handshake.
    async fn secured(
        &self,
        shaking: io::Result<Shaking>,
        from: SocketAddr,
    ) -> Result<(Channel, Caller), TlsError> {
        let channel = shaking?.await.map_err(io::Error::other)??;
        let party = channel.party().ok_or_else(|| TlsError::NotAdmitted("it has no certificate".into()))?;
        let caller = Caller::remote(party, from).map_err(|e| TlsError::NotAdmitted(e.to_string()))?;
        Ok((channel, caller))
    }

    /// Whoever has no certificate may try as often as he likes: few of his attempts are told.
    fn refused(&self, from: SocketAddr, kind: &str, why: &dyn std::error::Error) {
        self.telemetry.refused(RefusingService::Control, kind);
        if let Some(more) = self.strangers.pass(Instant::now()) {
            tracing::warn!("control.listen: no operator is served from {from}: {why}{}", unsaid(more));
        }
    }
}

async fn serve_one<C: Controlled>(channel: Channel, caller: Caller, controlled: &C) -> io::Result<()> {
    let greeting = {
        let status = controlled.status();
        let status = status.borrow();
        Greeting { vm: status.vm.clone(), node: status.node.clone() }
    };
    let (reader, writer) = tokio::io::split(SecuredStream::new(channel)?);
    let mut session = Session::new(reader, writer, caller);
    session.send(&Response::Greeting(greeting)).await?;
    session.serve(controlled).await
}

#[cfg(test)]
mod tests;
