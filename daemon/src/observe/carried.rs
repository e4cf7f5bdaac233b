//! What keeps a connection from carrying more, as the kernel's TCP counts it: the link, or the backup. Looked at now
//! and then, by who shows it; nothing on the way of a checkpoint asks.

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// What is measured is that of about this time.
const SPAN: Duration = Duration::from_millis(500);
/// Offsets in `struct tcp_info` (linux/tcp.h), which only grows at its end.
const BYTES_ACKED: usize = 120;
const BUSY_US: usize = 168;
const WINDOW_LIMITED_US: usize = 176;
const INFO_BYTES: usize = 184;

/// Where a connection's speed ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bottleneck {
    /// The link carries no more.
    Link,
    /// The backup takes no more: it does not read, or has received all and not answered.
    Backup,
}

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Carried {
    /// Where its speed ends, if it is to carry more.
    pub by: Bottleneck,
    /// Bytes a second that the backup's host has received.
    pub bytes_per_s: f64,
}

/// See the module.
#[derive(Debug)]
pub struct Meter {
    stream: TcpStream,
    last: Mutex<Option<(Instant, Counts)>>,
    carried: Mutex<Option<Carried>>,
}

/// The kernel's counters of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    bytes_acked: u64,
    /// Time in which something waited for its ack.
    busy_us: u64,
    /// The part of it in which the peer's window was full.
    window_limited_us: u64,
}

impl Meter {
    /// Of a connection.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, last: Mutex::default(), carried: Mutex::default() }
    }

    /// What it has carried of late; none before that is known.
    pub fn carried(&self) -> Option<Carried> {
        let now = Instant::now();
        let mut last = self.last.lock();
        if last.is_none_or(|(at, _)| now.saturating_duration_since(at) >= SPAN)
            && let Ok(counts) = counts(&self.stream)
        {
            if let Some((at, before)) = *last {
                *self.carried.lock() = Some(between(before, counts, now.saturating_duration_since(at)));
            }
            *last = Some((now, counts));
        }
        *self.carried.lock()
    }
}

fn between(before: Counts, now: Counts, elapsed: Duration) -> Carried {
    let elapsed_us = elapsed.as_micros().max(1) as u64;
    let limited_us = now.window_limited_us.saturating_sub(before.window_limited_us);
    let on_the_way_us = now.busy_us.saturating_sub(before.busy_us).saturating_sub(limited_us);
    // Bytes that were on their way for most of the time waited for the link.
    let by = if on_the_way_us > elapsed_us / 2 { Bottleneck::Link } else { Bottleneck::Backup };
    let bytes = now.bytes_acked.saturating_sub(before.bytes_acked);
    Carried { by, bytes_per_s: bytes as f64 * 1e6 / elapsed_us as f64 }
}

fn counts(stream: &TcpStream) -> io::Result<Counts> {
    let mut info = [0_u8; INFO_BYTES];
    let mut length = INFO_BYTES as libc::socklen_t;
    // SAFETY: the descriptor is the stream's; the kernel writes at most `length` bytes into `info`, which has as many.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // What an old kernel does not tell stays 0: then the backup is named.
    let at = |offset: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&info[offset..offset + 8]);
        u64::from_ne_bytes(bytes)
    };
    Ok(Counts {
        bytes_acked: at(BYTES_ACKED),
        busy_us: at(BUSY_US),
        window_limited_us: at(WINDOW_LIMITED_US),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    #[test]
    fn a_link_that_is_busy_and_a_backup_that_does_not_read_are_told_apart() {
        let second = |busy_ms: u64, window_ms: u64| {
            let now = Counts {
                bytes_acked: 1_250_000,
                busy_us: busy_ms * 1000,
                window_limited_us: window_ms * 1000,
            };
            between(Counts::default(), now, Duration::from_secs(1)).by
        };
        assert_eq!(second(990, 0), Bottleneck::Link);
        assert_eq!(second(990, 900), Bottleneck::Backup, "its window is full");
        assert_eq!(second(100, 0), Bottleneck::Backup, "all has arrived, and is not answered");
    }

    #[test]
    fn the_kernel_counts_what_is_carried_and_how_long_the_peers_window_was_full() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut theirs, _) = listener.accept().unwrap();
        ours.write_all(&[7; 1000]).unwrap();
        theirs.read_exact(&mut [0; 1000]).unwrap();
        let carried = |stream: &TcpStream| counts(stream).unwrap();
        while carried(&ours).bytes_acked < 1000 {
            std::thread::yield_now();
        }
        // The peer reads no more.
        ours.set_nonblocking(true).unwrap();
        while ours.write(&[7; 65536]).is_ok() {}
        while carried(&ours).window_limited_us == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(carried(&ours).busy_us >= carried(&ours).window_limited_us);
    }
}
