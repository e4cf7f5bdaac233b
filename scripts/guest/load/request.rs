//! What the load generator is asked: a line asks, a line answers.
//!
//! | request | answer |
//! |---|---|
//! | `PING` | `PONG` |
//! | `LOAD read\|write\|flushed-write random\|sequential BYTES INFLIGHT MS` | the figures, as a JSON object |
//! | `TOUCH COUNT` | `TOUCHED COUNT`: something has changed in so many of the disk's extents, and is flushed |
//!
//! What cannot be done is answered `ERR why`.

use super::disk::{ALIGN, Disk};
use super::work::{self, BLOCK_MAX, INFLIGHT_MAX, Kind, Load, Order};
use std::time::Duration;

/// Longest load.
const MS_MAX: usize = 600_000;

/// Does what the line asks.
pub fn answer(disk: &Disk, line: &str) -> Result<String, String> {
    match line.split_whitespace().collect::<Vec<_>>()[..] {
        ["PING"] => Ok("PONG".to_owned()),
        ["LOAD", kind, order, bytes, inflight, ms] => {
            let load = load(kind, order, bytes, inflight, ms).ok_or("no such load")?;
            Ok(work::run(disk, &load).map_err(|why| why.to_string())?.to_string())
        }
        ["TOUCH", count] => {
            let count = count.parse().map_err(|_| "no number")?;
            work::touch(disk, count).map_err(|why| why.to_string())?;
            Ok(format!("TOUCHED {count}"))
        }
        _ => Err("no such request".to_owned()),
    }
}

fn load(kind: &str, order: &str, bytes: &str, inflight: &str, ms: &str) -> Option<Load> {
    let within = |word: &str, most: usize| word.parse().ok().filter(|number| (1..=most).contains(number));
    let kind = match kind {
        "read" => Kind::Read,
        "write" => Kind::Write,
        "flushed-write" => Kind::FlushedWrite,
        _ => return None,
    };
    let order = match order {
        "random" => Order::Random,
        "sequential" => Order::Sequential,
        _ => return None,
    };
    Some(Load {
        kind,
        order,
        block_bytes: within(bytes, BLOCK_MAX).filter(|bytes| bytes.is_multiple_of(ALIGN))?,
        inflight: within(inflight, INFLIGHT_MAX)?,
        length: Duration::from_millis(within(ms, MS_MAX)? as u64),
    })
}
