//! What a guest's network carries: bulk TCP into the guest and out of it, and a byte that goes in and comes back. Its
//! end of it is scripts/guest/service/bulk.rs.

use super::Spread;
use anyhow::{Context, ensure};
use serde::Serialize;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Nothing takes longer; a connection that does is lost.
const PATIENCE: Duration = Duration::from_secs(120);
const PIECE_BYTES: usize = 256 << 10;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Bulk into the guest
    In,
    /// Bulk out of the guest
    Out,
    /// One byte, and its answer
    Turn,
}

/// What it came to.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct NetFigures {
    /// Which way.
    pub way: Way,
    /// Bytes that arrived, one way.
    pub bytes: u64,
    /// How long it took, in microseconds.
    pub us: u64,
    /// Mebibytes a second.
    pub mib_per_s: f64,
    /// Of a byte and its answer.
    pub turn_us: Option<Spread>,
}

/// Measures for so long over one connection.
pub fn measure(addr: SocketAddr, way: Way, length: Duration) -> anyhow::Result<NetFigures> {
    let mut stream = TcpStream::connect_timeout(&addr, PATIENCE).with_context(|| format!("{addr}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut turns = Vec::new();
    let (bytes, took) = match way {
        Way::In => put(&mut stream, length)?,
        Way::Out => get(&mut stream, length)?,
        Way::Turn => turn(&mut stream, length, &mut turns)?,
    };
    ensure!(bytes > 0, "nothing arrived in {length:?}");
    let mib_per_s = bytes as f64 / took.as_secs_f64() / f64::from(1 << 20);
    let turn_us = (way == Way::Turn).then(|| Spread::of(&mut turns));
    Ok(NetFigures { way, bytes, us: took.as_micros() as u64, mib_per_s, turn_us })
}

/// Until the guest has said that it has everything.
fn put(stream: &mut TcpStream, length: Duration) -> anyhow::Result<(u64, Duration)> {
    let piece: Vec<u8> = (0..PIECE_BYTES).map(|i| i as u8).collect();
    stream.write_all(b"<")?;
    let (began, mut sent) = (Instant::now(), 0);
    while began.elapsed() < length {
        stream.write_all(&piece)?;
        sent += piece.len() as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut told = [0; 8];
    stream.read_exact(&mut told)?;
    let told = u64::from_le_bytes(told);
    ensure!(told == sent, "the guest has {told} bytes of {sent}");
    Ok((told, began.elapsed()))
}

/// From the first bytes on: the connection has its window by then.
fn get(stream: &mut TcpStream, length: Duration) -> anyhow::Result<(u64, Duration)> {
    let mut piece = vec![0; PIECE_BYTES];
    let pattern: Vec<u8> = (0..PIECE_BYTES + 256).map(|i| i as u8).collect();
    stream.write_all(b">")?;
    stream.read_exact(&mut piece[..1])?;
    let (began, mut received) = (Instant::now(), 1_u64);
    while began.elapsed() < length {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(bytes) => {
                let expected = &pattern[received as usize % 256..];
                ensure!(piece[..bytes] == expected[..bytes], "wrong bytes at {received}");
                received += bytes as u64;
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok((received, began.elapsed()))
}

fn turn(
    stream: &mut TcpStream,
    length: Duration,
    turns: &mut Vec<Duration>,
) -> anyhow::Result<(u64, Duration)> {
    stream.write_all(b"=")?;
    let (began, mut byte) = (Instant::now(), [0]);
    while began.elapsed() < length {
        let asked = Instant::now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        turns.push(asked.elapsed());
    }
    Ok((turns.len() as u64, began.elapsed()))
}

#[cfg(test)]
#[path = "../../../scripts/guest/service/bulk.rs"]
mod bulk;

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn the_guests_end_and_this_one_understand_each_other() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        assert_ne!(addr.port(), bulk::PORT);
        std::thread::spawn(move || bulk::serve(&listener));
        for way in [Way::In, Way::Out, Way::Turn] {
            let figures = measure(addr, way, Duration::from_millis(50)).unwrap();
            assert!(figures.bytes > 10 && figures.us >= 50_000, "{figures:?}");
            assert_eq!(figures.turn_us.is_some(), way == Way::Turn);
        }
    }
}
