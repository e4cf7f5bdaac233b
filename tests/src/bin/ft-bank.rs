//! ft-bank: a client of the PostgreSQL in a guest, which checks that it keeps its promises.
//!
//! `run` keeps one connection busy with pgbench's transactions until it is told to stop, checks every answer, reads
//! the history back and has the database check itself. It ends with 0 only if the connection survived and nothing was
//! wrong; with 1 otherwise; with 2 when it was called wrongly.

use clap::{Args, Parser, Subcommand};
use ft_tests::bank::run::{BankPlan, run};
use ft_tests::bank::wire::BankConnection;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Parser)]
#[command(name = "ft-bank", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Ask one query and print its rows; ends with 1 if that fails
    Call {
        /// Address of PostgreSQL
        #[arg(long)]
        addr: SocketAddr,
        /// How long to wait for connection and answer
        #[arg(long, default_value_t = 10)]
        timeout_s: u64,
        /// The query
        #[arg(default_value = "SELECT 1")]
        query: String,
    },
    /// Keep one connection busy and check it
    Run(RunArgs),
}

#[derive(Args)]
struct RunArgs {
    /// Address of PostgreSQL
    #[arg(long)]
    addr: SocketAddr,
    /// Stop when this file exists
    #[arg(long)]
    stop_file: PathBuf,
    /// Chooses accounts and amounts
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// An answer that takes longer does not come: the connection is lost
    #[arg(long, default_value_t = 300)]
    timeout_s: u64,
    /// Where each client notes what it was acknowledged, for those after it to look for
    #[arg(long)]
    acked: Option<PathBuf>,
    /// Print the summary as a JSON object, and a JSON line every 200 ms before
    #[arg(long)]
    json: bool,
    /// Note every answer in this file: when it came (microseconds since 1970), and its round trip in microseconds
    #[arg(long)]
    trace: Option<PathBuf>,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Task::Call { addr, timeout_s, query } => call(addr, Duration::from_secs(timeout_s), &query),
        Task::Run(args) => keep_busy(args),
    }
}

fn call(addr: SocketAddr, timeout: Duration, query: &str) -> ExitCode {
    let answer = BankConnection::open(addr, timeout).and_then(|mut database| database.call(query, timeout));
    let error = match answer {
        Ok(answer) => {
            for row in answer.rows {
                println!("{}", row.into_iter().map(Option::unwrap_or_default).collect::<Vec<_>>().join("|"));
            }
            answer.error
        }
        Err(error) => Some(error.to_string()),
    };
    match error {
        None => ExitCode::SUCCESS,
        Some(error) => {
            eprintln!("ft-bank: {query}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn keep_busy(args: RunArgs) -> ExitCode {
    let RunArgs { addr, stop_file, seed, timeout_s, acked, json, trace } = args;
    let plan = BankPlan { addr, seed, timeout: Duration::from_secs(timeout_s), acked, trace };
    let summary = run(&plan, &|| stop_file.exists(), &mut |progress| {
        if json {
            println!("{}", serde_json::to_string(progress).unwrap_or_default());
        }
    });
    if json {
        println!("{}", serde_json::to_string(&summary).unwrap_or_default());
    } else {
        println!("{summary:?}");
    }
    if summary.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
