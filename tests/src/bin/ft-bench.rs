//! ft-bench: measures the parts of a checkpoint below the daemon. One JSON object a line; `scripts/bench` makes tables.

use clap::{Parser, Subcommand};
use ft_tests::bench::{codec, pause};
use serde::Serialize;
use std::io::Write;
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
    },
    /// Throughput of encoding and decoding
    Codec {
        /// Time for each kind of page
        #[arg(long, default_value_t = 1000)]
        ms: u64,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().what {
        What::Pause { pages, ms } => {
            pages.iter().try_for_each(|&pages| print(&pause::measure(pages, Duration::from_millis(ms))?))
        }
        What::Codec { ms } => codec::measure(Duration::from_millis(ms))?.iter().try_for_each(print),
    }
}

fn print(figures: &impl Serialize) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{}", serde_json::to_string(figures)?)?)
}
