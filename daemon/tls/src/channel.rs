//! A connection, in the clear or in TLS, that can be read and written at the same time by two threads.
//!
//! rustls keeps both directions of a connection in one object. It is locked while bytes are encrypted or decrypted, and
//! never while the socket is waited for: a writer that cannot go on keeps no reader waiting, and so two peers that both
//! send a lot never wait for each other.

use crate::error::TlsError;
use crate::party::Party;
use parking_lot::Mutex;
use rustls::Connection;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

/// Encrypted while the connection is locked: some tens of microseconds for what is read meanwhile.
const ENCRYPT_BYTES: usize = 64 << 10;
/// Asked of the socket at a time.
const READ_BYTES: usize = 64 << 10;

/// A connection. Its clones are the same one.
#[derive(Debug)]
pub struct Channel {
    socket: TcpStream,
    tls: Option<Arc<Tls>>,
}

struct Tls {
    party: Party,
    connection: Mutex<Connection>,
    /// What has been read from the socket and not been decrypted.
    inbound: Mutex<Inbound>,
    /// What has been encrypted, in the order in which it must be sent; one writer at a time.
    outbound: Mutex<Vec<u8>>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("party", &self.party).finish_non_exhaustive()
    }
}

struct Inbound {
    bytes: Box<[u8]>,
    from: usize,
    to: usize,
}

impl Channel {
    /// A connection in the clear.
    #[must_use]
    pub fn clear(socket: TcpStream) -> Self {
        Self { socket, tls: None }
    }

    /// A connection that has shaken hands with `party`.
    pub(crate) fn secured(socket: TcpStream, connection: Connection, party: Party) -> Self {
        let inbound = Inbound { bytes: vec![0; READ_BYTES].into(), from: 0, to: 0 };
        let tls = Tls {
            party,
            connection: Mutex::new(connection),
            inbound: Mutex::new(inbound),
            outbound: Mutex::default(),
        };
        Self { socket, tls: Some(Arc::new(tls)) }
    }

    /// Who is at the other end, where that is proven.
    #[must_use]
    pub fn party(&self) -> Option<&Party> {
        self.tls.as_ref().map(|tls| &tls.party)
    }

    /// The socket: for its options, and to shut it down. What it carries is not to be read or written past this.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Makes of some of `bytes` what is to be sent for them, and of anything that TLS itself has to say, for a writer
    /// that does not wait for the socket: he sends it himself, whole and in order, and writes by no other way.
    pub fn encrypt(&self, bytes: &[u8], into: &mut Vec<u8>) -> io::Result<usize> {
        match &self.tls {
            None => {
                into.extend_from_slice(bytes);
                Ok(bytes.len())
            }
            Some(tls) => tls.encrypt(&[IoSlice::new(bytes)], into),
        }
    }

    /// The same connection again.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { socket: self.socket.try_clone()?, tls: self.tls.clone() })
    }
}

impl Read for Channel {
    /// Reads as a socket does, and as one that does not wait where the socket does not. A connection that ends without
    /// its last word in TLS has ended: what is spoken here says itself what is whole.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &self.tls {
            None => self.socket.read(into),
            Some(tls) => tls.read(&self.socket, into),
        }
    }
}

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.tls {
            None => self.socket.write(bytes),
            Some(tls) => tls.write(&self.socket, &[IoSlice::new(bytes)]),
        }
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.tls {
            None => self.socket.write_vectored(parts),
            Some(tls) => tls.write(&self.socket, parts),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Tls {
    fn read(&self, mut socket: &TcpStream, into: &mut [u8]) -> io::Result<usize> {
        let mut inbound = self.inbound.lock();
        loop {
            {
                let mut connection = self.connection.lock();
                match connection.reader().read(into) {
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                    read => return read,
                }
                if inbound.from < inbound.to {
                    let Inbound { bytes, from, to } = &mut *inbound;
                    *from += connection.read_tls(&mut &bytes[*from..*to])?;
                    match connection.process_new_packets() {
                        Ok(_) => continue,
                        Err(e) => {
                            self.say_why(socket, &mut connection);
                            return Err(io::Error::new(ErrorKind::InvalidData, TlsError::from(e)));
                        }
                    }
                }
            }
            let count = socket.read(&mut inbound.bytes)?;
            if count == 0 {
                // Nothing more of a record will come, if one has begun.
                return Ok(0);
            }
            (inbound.from, inbound.to) = (0, count);
        }
    }

    /// Tells the other end what is wrong with what it sent, if nobody else is sending.
    fn say_why(&self, mut socket: &TcpStream, connection: &mut Connection) {
        if let Some(mut alert) = self.outbound.try_lock() {
            alert.clear();
            while connection.wants_write() && connection.write_tls(&mut *alert).is_ok() {}
            // The connection is over in any case.
            let _ = socket.write(&alert);
            alert.clear();
        }
    }

    /// Sends some of `parts`, whole: after an error the connection cannot be gone on with.
    fn write(&self, mut socket: &TcpStream, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut outbound = self.outbound.lock();
        outbound.clear();
        let count = self.encrypt(parts, &mut outbound)?;
        socket.write_all(&outbound)?;
        Ok(count)
    }

    fn encrypt(&self, parts: &[IoSlice<'_>], into: &mut Vec<u8>) -> io::Result<usize> {
        let mut connection = self.connection.lock();
        let mut count = 0;
        for part in parts {
            let part = &part[..part.len().min(ENCRYPT_BYTES - count)];
            count += connection.writer().write(part)?;
        }
        while connection.wants_write() {
            connection.write_tls(into)?;
        }
        Ok(count)
    }
}
