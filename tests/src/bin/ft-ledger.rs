//! ft-ledger: watches over the entries that the Linux guest with a disk writes, and reads them in an image.

use anyhow::Context;
use clap::{Parser, Subcommand};
use ft_tests::ledger::acknowledged;
use ft_tests::ledger::follow::{Following, follow};
use ft_tests::ledger::image::{Keeping, Past, read_image};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Parser)]
#[command(name = "ft-ledger", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Let the guest write entries, and note what it acknowledges; before and after, it checks what it has on its disk
    Follow {
        /// Address of the ledger
        #[arg(long)]
        addr: SocketAddr,
        /// Where the last acknowledged number is noted, and read when another client goes on
        #[arg(long)]
        acked: PathBuf,
        /// Stop when this file exists
        #[arg(long)]
        stop_file: PathBuf,
        /// An answer that takes longer does not come
        #[arg(long, default_value_t = 300)]
        timeout_s: u64,
    },
    /// Check an image that nobody uses: its file system, and that every acknowledged entry is there
    Image {
        /// How the guest keeps its entries
        #[arg(long)]
        work: Keeping,
        /// Where the last acknowledged number is noted
        #[arg(long)]
        acked: PathBuf,
        /// The guest was told of I/O errors: its file system may have noted that
        #[arg(long)]
        failed: bool,
        /// The image
        image: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("ft-ledger: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<String> {
    match task {
        Task::Follow { addr, acked, stop_file, timeout_s } => {
            let plan = Following { addr, noted: acked, timeout: Duration::from_secs(timeout_s) };
            let followed = follow(&plan, &|| stop_file.exists())?;
            Ok(serde_json::to_string(&followed)?)
        }
        Task::Image { work, acked, failed, image } => {
            let past = if failed { Past::Failing } else { Past::Well };
            let acked = acknowledged(&acked).with_context(|| acked.display().to_string())?;
            let last = read_image(&image, work, past, acked).with_context(|| image.display().to_string())?;
            anyhow::ensure!(
                last >= acked,
                "{}: LOST: entry {acked} was acknowledged, and entry {last} is the last",
                image.display()
            );
            Ok(format!("LAST {last}"))
        }
    }
}
