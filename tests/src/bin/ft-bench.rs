//! ft-bench: measures the layers below the daemon: the parts of a checkpoint, and the deterministic engine beside QEMU.
//! It prints one JSON object a line; `scripts/bench` makes tables of them.

use clap::{Parser, Subcommand};
use ft_tests::bench::linux::{self, Emulator, Guest};
use ft_tests::bench::net::{self, Way};
use ft_tests::bench::{codec, confined, pause, tsc};
use serde::Serialize;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Parser)]
#[command(name = "ft-bench", version, about)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The pause of a real machine against its number of dirty pages; needs /dev/kvm
    Pause {
        /// Numbers of pages to dirty an epoch
        #[arg(required = true, value_parser = clap::value_parser!(u64).range(1..=32768))]
        pages: Vec<u64>,
        /// Time for each number of pages
        #[arg(long, default_value_t = 2000)]
        ms: u64,
        /// The guest's memory, in MiB
        #[arg(long, default_value_t = pause::RAM_MIB, value_parser = clap::value_parser!(u64).range(pause::RAM_MIB..))]
        ram_mib: u64,
    },
    /// Throughput of encoding and decoding
    Codec {
        /// Time for each kind of page
        #[arg(long, default_value_t = 1000)]
        ms: u64,
    },
    /// What a system call costs a confined thread; needs /dev/kvm
    Confined {
        /// So many times 20,000 calls of each kind
        #[arg(long, default_value_t = 50)]
        batches: u32,
    },
    /// Speed of this processor's time stamp counter
    Tsc {
        /// Time to count for
        #[arg(long, default_value_t = 500)]
        ms: u64,
    },
    /// What a Linux guest's network carries, and how fast it answers
    Net {
        /// Where its service moves bytes
        #[arg(long)]
        addr: SocketAddr,
        /// Which way
        #[arg(long)]
        way: Way,
        /// Time to measure for
        #[arg(long, default_value_t = 5000)]
        ms: u64,
    },
    /// A Linux guest on emulated processors: time to userland, and for fixed integer work
    Soft {
        /// What scripts/guest/build printed
        guest: PathBuf,
        /// What executes it, one after the other
        #[arg(long, required = true, value_delimiter = ',')]
        on: Vec<Emulator>,
        /// Longest silence, in seconds, that is waited through
        #[arg(long, default_value_t = 120)]
        patience_s: u64,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().what {
        What::Pause { pages, ms, ram_mib } => pages
            .iter()
            .try_for_each(|&pages| print(&pause::measure(ram_mib, pages, Duration::from_millis(ms))?)),
        What::Codec { ms } => codec::measure(Duration::from_millis(ms))?.iter().try_for_each(print),
        What::Confined { batches } => confined::measure(batches)?.iter().try_for_each(print),
        What::Tsc { ms } => print(&tsc::measure(Duration::from_millis(ms))),
        What::Net { addr, way, ms } => print(&net::measure(addr, way, Duration::from_millis(ms))?),
        What::Soft { guest, on, patience_s } => {
            let guest = Guest::open(&guest)?;
            let patience = Duration::from_secs(patience_s);
            on.iter().try_for_each(|&on| print(&linux::measure(&guest, on, patience)?))
        }
    }
}

fn print(figures: &impl Serialize) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{}", serde_json::to_string(figures)?)?)
}
