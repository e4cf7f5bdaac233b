//! A secured connection for the control plane, which waits for no socket: what is read and written there is encrypted
//! and decrypted here, by the connection that has shaken hands.

use ft_tls::Channel;
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{self, ErrorKind, Read};
use std::net::TcpStream as BlockingSocket;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// A host that is gone is noticed after about this time, also where nobody has anything to say.
const GONE_AFTER_S: u32 = 60;
/// Between two questions to a host that is silent.
const PROBE_S: u32 = 15;

/// See the module.
pub struct SecuredStream {
    channel: Channel,
    /// The same socket, for its readiness and to write what is encrypted.
    socket: TcpStream,
    outbound: Vec<u8>,
    sent: usize,
}

impl SecuredStream {
    /// Must be called within a tokio runtime.
    pub fn new(channel: Channel) -> io::Result<Self> {
        let socket = channel.socket().try_clone()?;
        socket.set_nonblocking(true)?;
        Ok(Self { channel, socket: TcpStream::from_std(socket)?, outbound: Vec::new(), sent: 0 })
    }

    /// Sends all that is encrypted.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.outbound.len() {
            match ready!(Pin::new(&mut self.socket).poll_write(context, &self.outbound[self.sent..]))? {
                0 => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                count => self.sent += count,
            }
        }
        self.outbound.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for SecuredStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { channel, socket, .. } = self.get_mut();
        let room = into.initialize_unfilled();
        // What has come already needs no readiness of the socket.
        let mut read = channel.read(room);
        loop {
            match read {
                Err(e) if e.kind() == ErrorKind::WouldBlock => ready!(socket.poll_read_ready(context))?,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                read => return Poll::Ready(read.map(|count| into.advance(count))),
            }
            read = socket.try_io(Interest::READABLE, || channel.read(room));
        }
    }
}

impl AsyncWrite for SecuredStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // One part at a time is encrypted and kept.
        ready!(this.poll_send(context))?;
        let count = this.channel.encrypt(bytes, &mut this.outbound)?;
        match this.poll_send(context) {
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(count)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(context))?;
        Pin::new(&mut this.socket).poll_shutdown(context)
    }
}

/// Has the kernel notice that the other host is gone, and send what is written at once.
pub fn keep_alive(socket: &BlockingSocket) -> io::Result<()> {
    socket.set_nodelay(true)?;
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &PROBE_S)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &PROBE_S)?;
    setsockopt(socket, sockopt::TcpUserTimeout, &(GONE_AFTER_S * 1000))?;
    Ok(())
}
