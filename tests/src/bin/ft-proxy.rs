//! ft-proxy: a TCP proxy between two daemons that harms the stream at one chosen byte.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use ft_tests::proxy::mangle::MangleMode;
use ft_tests::proxy::relay::{Direction, ProxyLog, ProxyOptions, serve, tell};
use serde_json::json;

/// Stands between two daemons and harms the stream; says on stdout, in JSON lines, what it did.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Where to listen
    #[arg(long, value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Where connections lead
    #[arg(long, value_name = "ADDR:PORT")]
    to: SocketAddr,
    /// The fault [default: each connection's is drawn by the seed]
    #[arg(long)]
    mode: Option<MangleMode>,
    /// The direction harmed, seen from the side that connects [default: drawn by the seed]
    #[arg(long)]
    direction: Option<Direction>,
    /// Stands for everything that is drawn
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The fault comes after at least this many bytes in its direction
    #[arg(long, default_value_t = 0)]
    after_bytes: u64,
    /// ... and at most this many more
    #[arg(long, default_value_t = 0)]
    spread_bytes: u64,
    /// How many faults; later connections pass untouched
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// How much later everything arrives, each way: the ends are far from each other
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let listener =
        TcpListener::bind(cli.listen).with_context(|| format!("cannot listen on {}", cli.listen))?;
    let log: ProxyLog = Arc::new(Mutex::new(io::stdout()));
    tell(&log, json!({"event": "listening", "listen": listener.local_addr()?.to_string()}));
    let options = ProxyOptions {
        to: cli.to,
        mode: cli.mode,
        direction: cli.direction,
        seed: cli.seed,
        after_bytes: cli.after_bytes,
        spread_bytes: cli.spread_bytes,
        count: cli.count,
        delay: Duration::from_millis(cli.delay_ms),
    };
    serve(&listener, &options, &log)
}
