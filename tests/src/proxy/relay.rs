//! Moves the bytes of the proxied connections and tells, line by line, what happened to them.
//!
//! Two threads a connection, one for each direction. The first connections are harmed, as many as were asked for; later
//! ones pass untouched, so that the daemons can find together again.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use serde::Serialize;
use serde_json::json;

use super::distance::Distant;
use super::mangle::{MangleAct, MangleMode, ManglePlan, Mangler};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const CHUNK_BYTES: usize = 64 * 1024;

/// Which way bytes flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From the side that connected.
    Forward,
    /// Towards it.
    Back,
}

/// Where the proxy stands and what it does.
#[derive(Clone, Debug)]
pub struct ProxyOptions {
    /// The far end.
    pub to: SocketAddr,
    /// The fault; `None`: each connection's is drawn by the seed.
    pub mode: Option<MangleMode>,
    /// The direction harmed; `None`: drawn by the seed.
    pub direction: Option<Direction>,
    /// Stands for everything that is drawn.
    pub seed: u64,
    /// The fault comes after at least this many bytes in its direction,
    pub after_bytes: u64,
    /// and at most this many more.
    pub spread_bytes: u64,
    /// How many faults; connections after that many pass.
    pub count: u64,
    /// How much later everything arrives, in either direction.
    pub delay: Duration,
}

/// Where the lines go.
pub type ProxyLog = Arc<Mutex<dyn Write + Send>>;

/// Accepts connections for ever; returns only with an error of the listener.
pub fn serve(listener: &TcpListener, options: &ProxyOptions, log: &ProxyLog) -> Result<()> {
    let struck = Arc::new(AtomicU64::new(0));
    for connection in 0u64.. {
        let (near, from) = listener.accept().context("accept")?;
        let options = options.clone();
        let (log, struck) = (Arc::clone(log), Arc::clone(&struck));
        thread::spawn(move || match TcpStream::connect_timeout(&options.to, CONNECT_TIMEOUT) {
            Ok(far) => {
                if let Err(error) = relay(&options, connection, near, far, &log, &struck) {
                    tell(
                        &log,
                        json!({"event": "error", "connection": connection, "error": error.to_string()}),
                    );
                }
            }
            Err(error) => tell(
                &log,
                json!({
                    "event": "refused", "connection": connection, "from": from.to_string(),
                    "error": error.to_string()
                }),
            ),
        });
    }
    Ok(())
}

/// Writes one line with the time.
pub fn tell(log: &ProxyLog, mut line: serde_json::Value) {
    if let Some(fields) = line.as_object_mut() {
        fields.insert("t_ns".into(), crate::wire::owners::now_ns().unwrap_or(0).into());
    }
    let mut out = log.lock().unwrap_or_else(PoisonError::into_inner);
    // The reader of the lines may be gone; the proxy goes on without.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn plan(options: &ProxyOptions, connection: u64, struck: u64) -> (ManglePlan, Direction) {
    // Neighbouring seeds and connections must not share their plans.
    let seed = options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(connection);
    let mode = match options.mode {
        _ if struck >= options.count => MangleMode::Pass,
        Some(mode) => mode,
        None => MangleMode::FAULTS[(seed >> 8) as usize % MangleMode::FAULTS.len()],
    };
    let drawn = if (seed >> 40) & 1 == 0 { Direction::Forward } else { Direction::Back };
    (
        ManglePlan::from_seed(mode, seed, options.after_bytes, options.spread_bytes),
        options.direction.unwrap_or(drawn),
    )
}

fn relay(
    options: &ProxyOptions,
    connection: u64,
    near: TcpStream,
    far: TcpStream,
    log: &ProxyLog,
    struck: &Arc<AtomicU64>,
) -> Result<()> {
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let (fault, harmed) = plan(options, connection, struck.load(Ordering::SeqCst));
    tell(log, json!({"event": "connected", "connection": connection, "direction": harmed, "plan": fault}));
    let both = Arc::new(Both::default());
    let flow =
        |direction: Direction, from: &TcpStream, to: &TcpStream| -> io::Result<thread::JoinHandle<u64>> {
            let plan =
                if direction == harmed { fault } else { ManglePlan { mode: MangleMode::Pass, ..fault } };
            let reader = from.try_clone()?;
            let mut flow = Flow {
                direction,
                connection,
                reader: match options.delay {
                    Duration::ZERO => Box::new(reader),
                    delay => Box::new(Distant::start(reader, delay)),
                },
                from: from.try_clone()?,
                to: to.try_clone()?,
                mangler: Mangler::new(plan),
                plan,
                both: Arc::clone(&both),
                struck: Arc::clone(struck),
                log: Arc::clone(log),
            };
            Ok(thread::spawn(move || flow.run()))
        };
    let forward = flow(Direction::Forward, &near, &far)?;
    let back = flow(Direction::Back, &far, &near)?;
    let (forward_bytes, back_bytes) = (forward.join().unwrap_or(0), back.join().unwrap_or(0));
    tell(
        log,
        json!({"event": "closed", "connection": connection, "forward_bytes": forward_bytes, "back_bytes": back_bytes}),
    );
    Ok(())
}

/// What one direction does to the other, too.
#[derive(Default)]
struct Both {
    swallow: AtomicBool,
    reset: AtomicBool,
}

struct Flow {
    direction: Direction,
    connection: u64,
    /// What `from` sends, when it arrives.
    reader: Box<dyn Read + Send>,
    from: TcpStream,
    to: TcpStream,
    mangler: Mangler,
    plan: ManglePlan,
    both: Arc<Both>,
    struck: Arc<AtomicU64>,
    log: ProxyLog,
}

impl Flow {
    /// Moves bytes until the stream ends; the number of bytes read. A stream's end, in order or by an error, ends the
    /// other side's likewise.
    fn run(&mut self) -> u64 {
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut read_bytes = 0;
        loop {
            let length = match self.reader.read(&mut chunk) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => {
                    self.reset();
                    return read_bytes;
                }
            };
            read_bytes += length as u64;
            let acts = self.mangler.feed(&chunk[..length]);
            if !self.perform(acts) {
                return read_bytes;
            }
        }
        let acts = self.mangler.finish();
        if self.perform(acts) && !self.both.reset.load(Ordering::SeqCst) {
            // Both ends may be gone by now.
            let _ = self.to.shutdown(Shutdown::Write);
        }
        read_bytes
    }

    /// Whether the stream goes on.
    fn perform(&mut self, acts: Vec<MangleAct>) -> bool {
        for act in acts {
            match act {
                MangleAct::Send(_) if self.both.swallow.load(Ordering::SeqCst) => {}
                MangleAct::Send(bytes) => {
                    if self.to.write_all(&bytes).is_err() {
                        self.reset();
                        return false;
                    }
                }
                MangleAct::Report => {
                    self.struck.fetch_add(1, Ordering::SeqCst);
                    tell(
                        &self.log,
                        json!({
                            "event": "fault", "connection": self.connection, "direction": self.direction,
                            "plan": self.plan
                        }),
                    );
                }
                MangleAct::Pause(time) => thread::sleep(time),
                MangleAct::End => {
                    for socket in [&self.to, &self.from] {
                        let _ = socket.shutdown(Shutdown::Both);
                    }
                    return false;
                }
                MangleAct::Reset => {
                    self.reset();
                    return false;
                }
                MangleAct::Swallow => self.both.swallow.store(true, Ordering::SeqCst),
            }
        }
        true
    }

    /// Ends both sides abruptly: with no time to linger, the last close sends a reset.
    fn reset(&self) {
        self.both.reset.store(true, Ordering::SeqCst);
        for socket in [&self.to, &self.from] {
            let _ = setsockopt(socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
            // Wakes the other direction's thread; the descriptors are closed when both have ended.
            let _ = socket.shutdown(Shutdown::Read);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A far end that sends back what it gets, behind a proxy; the address to connect to.
    fn proxied(options: ProxyOptions) -> SocketAddr {
        let far = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = far.local_addr().unwrap();
        thread::spawn(move || {
            while let Ok((mut stream, _)) = far.accept() {
                thread::spawn(move || {
                    let mut copy = stream.try_clone().unwrap();
                    let _ = io::copy(&mut stream, &mut copy);
                    let _ = copy.shutdown(Shutdown::Write);
                });
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let log: ProxyLog = Arc::new(Mutex::new(io::sink()));
        thread::spawn(move || serve(&listener, &ProxyOptions { to, ..options }, &log));
        address
    }

    fn options(mode: MangleMode) -> ProxyOptions {
        ProxyOptions {
            to: "127.0.0.1:1".parse().unwrap(),
            mode: Some(mode),
            direction: Some(Direction::Forward),
            seed: 1,
            after_bytes: 10,
            spread_bytes: 0,
            count: 1,
            delay: Duration::ZERO,
        }
    }

    fn echo(address: SocketAddr) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.write_all(&[0; 100])?;
        stream.shutdown(Shutdown::Write)?;
        let mut back = Vec::new();
        stream.read_to_end(&mut back)?;
        Ok(back)
    }

    #[test]
    fn one_connection_is_corrupted_and_the_next_passes() {
        let address = proxied(options(MangleMode::Corrupt));
        let back = echo(address).unwrap();
        assert_eq!(back.len(), 100);
        assert_eq!(back.iter().filter(|&&byte| byte != 0).count(), 1);
        assert_ne!(back[10], 0);
        assert_eq!(echo(address).unwrap(), [0; 100]);
    }

    #[test]
    fn a_far_end_answers_late_and_completely() {
        let delay = Duration::from_millis(30);
        let address = proxied(ProxyOptions { delay, ..options(MangleMode::Pass) });
        let start = std::time::Instant::now();
        assert_eq!(echo(address).unwrap(), [0; 100]);
        assert!(start.elapsed() >= 2 * delay, "{:?}", start.elapsed());
    }

    #[test]
    fn a_truncated_stream_ends_in_order() {
        let back = echo(proxied(options(MangleMode::Truncate)));
        assert!(back.is_ok_and(|back| back.len() <= 10));
    }

    #[test]
    fn a_dropped_connection_is_reset() {
        let error = echo(proxied(options(MangleMode::DropConnection))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_stalled_connection_stays_open_and_says_nothing() {
        let mut stream = TcpStream::connect(proxied(options(MangleMode::Stall))).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        stream.write_all(&[0; 100]).unwrap();
        let mut back = Vec::new();
        let error = stream.read_to_end(&mut back).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(back.len() <= 10);
    }
}
