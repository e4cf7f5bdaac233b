//! ft-client: talks to the key-value guests and checks that they keep their promises.
//!
//! Without a subcommand it keeps one TCP connection busy until it is told to stop, checks every answer, reads
//! everything back, and sums up. It ends with 0 only if the connection survived and no answer was wrong; with 1
//! otherwise; with 2 when it was called wrongly. `shared` keeps several connections busy on the same keys.

use clap::{Args, Parser, Subcommand};
use ft_tests::kv::connection::Connection;
use ft_tests::kv::run::{LoadPlan, Summary, run};
use ft_tests::kv::shared::{self, SharedEnd, SharedPlan};
use std::io::{Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[derive(Parser)]
#[command(name = "ft-client", version, about, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Option<RunArgs>,
}

#[derive(Subcommand)]
enum Command {
    /// Send one request and print the answer; ends with 1 if that is an error
    Call {
        /// Address of the service
        #[arg(long, value_parser = address)]
        addr: SocketAddr,
        /// How long to wait for connection and answer
        #[arg(long, default_value_t = 10.0, value_parser = positive)]
        timeout_s: f64,
        /// The request, e.g. GET key
        #[arg(required = true)]
        request: Vec<String>,
    },
    /// Keep several connections busy on the same keys, and look for an order of all that was asked that explains every
    /// answer; ends with 0 only if there is one for each key and all connections survived
    ///
    /// Prints a JSON line when all connections are made, and one that sums up.
    Shared(SharedArgs),
}

#[derive(Args)]
struct SharedArgs {
    /// Address of the service
    #[arg(long, value_parser = address)]
    addr: SocketAddr,
    /// Stop when this file exists; what was asked is answered, and every key read back over another connection
    #[arg(long)]
    stop_file: PathBuf,
    /// The service is gone when this file exists: no answer is waited for any longer
    #[arg(long)]
    gone_file: PathBuf,
    /// Number of connections
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u8).range(1..=32))]
    connections: u8,
    /// Number of keys
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    keys: u16,
    /// Requests a second of each connection, at most
    #[arg(long, default_value_t = 20.0, value_parser = positive)]
    rate: f64,
    /// Chooses the operations
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// An answer that takes longer does not come: the connection is lost
    #[arg(long, default_value_t = 120.0, value_parser = positive)]
    timeout_s: f64,
    /// Where all that was asked of a key goes whose answers no order explains
    #[arg(long)]
    history: Option<PathBuf>,
}

#[derive(Args)]
struct RunArgs {
    /// Address of the service
    #[arg(long, value_parser = address)]
    addr: SocketAddr,
    /// Stop after this time
    #[arg(long, value_parser = positive)]
    duration_s: Option<f64>,
    /// Stop when standard input ends
    #[arg(long)]
    until_stdin_closes: bool,
    /// Stop when this file exists
    #[arg(long)]
    stop_file: Option<PathBuf>,
    /// Requests a second [default: as fast as the answers come]
    #[arg(long, value_parser = positive)]
    rate: Option<f64>,
    /// Bytes of the values that are set
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=900))]
    value_bytes: u16,
    /// Number of keys
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u16).range(1..))]
    keys: u16,
    /// Begins the names of the keys; clients of one VM need different ones [default: from the process and the time]
    #[arg(long)]
    name: Option<String>,
    /// Chooses the sequence of operations
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// An answer that takes longer does not come: the connection is lost
    #[arg(long, default_value_t = 30.0, value_parser = positive)]
    timeout_s: f64,
    /// After a lost connection make another one and go on checking; the run has failed all the same
    #[arg(long)]
    reconnect: bool,
    /// Print the summary as a JSON object
    #[arg(long)]
    json: bool,
    /// Print a JSON line every 200 ms
    #[arg(long)]
    progress: bool,
    /// Note every answer in this file: when it came (microseconds since 1970), and its round trip in microseconds
    #[arg(long)]
    trace: Option<PathBuf>,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let mut addresses = text.to_socket_addrs().map_err(|error| format!("want HOST:PORT: {error}"))?;
    addresses.next().ok_or_else(|| "no such host".to_owned())
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 1e7 => Ok(number),
        _ => Err("want a number above 0, at most 10000000".to_owned()),
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match (cli.command, cli.run) {
        (Some(Command::Call { addr, timeout_s, request }), _) => call(addr, timeout_s, &request.join(" ")),
        (Some(Command::Shared(args)), _) => share(args),
        (None, Some(args)) => check(args),
        (None, None) => {
            eprintln!("ft-client: --addr is missing; see --help");
            ExitCode::from(2)
        }
    }
}

fn call(addr: SocketAddr, timeout_s: f64, request: &str) -> ExitCode {
    let timeout = Duration::from_secs_f64(timeout_s);
    let answer = Connection::open(addr, timeout).and_then(|mut connection| connection.call(request, timeout));
    match answer {
        Ok(answer) => {
            print_line(&answer);
            ExitCode::from(u8::from(answer.starts_with("ERR")))
        }
        Err(error) => {
            eprintln!("ft-client: {request}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A name that no client had before: a process number comes round, and the guest still has what the earlier one wrote.
fn own_name() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("c{}-{:x}", std::process::id(), now.as_millis())
}

fn check(args: RunArgs) -> ExitCode {
    let plan = LoadPlan {
        addr: args.addr,
        name: args.name.unwrap_or_else(own_name),
        keys: usize::from(args.keys),
        value_bytes: usize::from(args.value_bytes),
        rate: args.rate,
        seed: args.seed,
        timeout: Duration::from_secs_f64(args.timeout_s),
        reconnect: args.reconnect,
        trace: args.trace,
    };
    let stdin_closed = args.until_stdin_closes.then(watch_stdin);
    let end = args.duration_s.map(|seconds| Instant::now() + Duration::from_secs_f64(seconds));
    let stop = || {
        stdin_closed.as_ref().is_some_and(|closed| closed.load(Ordering::Relaxed))
            || end.is_some_and(|end| Instant::now() >= end)
            || args.stop_file.as_ref().is_some_and(|file| file.exists())
    };
    let summary = run(&plan, &stop, &mut |progress| {
        if args.progress {
            print_line(&serde_json::to_string(progress).unwrap_or_default());
        }
    });
    if args.json {
        print_line(&serde_json::to_string(&summary).unwrap_or_default());
    } else {
        print_summary(&summary);
    }
    if summary.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn share(args: SharedArgs) -> ExitCode {
    let plan = SharedPlan {
        addr: args.addr,
        name: own_name(),
        keys: usize::from(args.keys),
        connections: usize::from(args.connections),
        rate: args.rate,
        seed: args.seed,
        timeout: Duration::from_secs_f64(args.timeout_s),
        history: args.history,
    };
    let end = SharedEnd { stop: &|| args.stop_file.exists(), gone: &|| args.gone_file.exists() };
    match shared::run(&plan, end, || print_line(r#"{"ready":true}"#)) {
        Ok(summary) => {
            print_line(&serde_json::to_string(&summary).unwrap_or_default());
            if summary.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("ft-client: {error}");
            ExitCode::FAILURE
        }
    }
}

fn watch_stdin() -> Arc<AtomicBool> {
    let closed = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&closed);
    std::thread::spawn(move || {
        let mut bytes = [0; 256];
        while matches!(std::io::stdin().read(&mut bytes), Ok(n) if n > 0) {}
        flag.store(true, Ordering::Relaxed);
    });
    closed
}

fn print_summary(summary: &Summary) {
    let Summary { acked_writes, acked_lost, wrong_answers, ops, rtt_us, client_gap_ms, .. } = summary;
    let connection = match &summary.connection_error {
        None => "survived".to_owned(),
        Some(error) => format!("lost: {error}"),
    };
    print_line(&format!("connection     {connection}"));
    print_line(&format!("requests       {ops}, of them {acked_writes} acknowledged writes"));
    print_line(&format!("lost           {acked_lost}"));
    print_line(&format!("wrong answers  {wrong_answers}"));
    print_line(&format!(
        "round trip     {} us median, {} us p99, {} us longest",
        rtt_us.p50, rtt_us.p99, rtt_us.max
    ));
    print_line(&format!("longest gap    {client_gap_ms} ms"));
    if !summary.verified {
        print_line("read back      not done");
    }
    for complaint in &summary.complaints {
        print_line(&format!("               {complaint}"));
    }
}

/// Prints at once, also into a pipe. Nobody listening is not this program's failure.
fn print_line(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
