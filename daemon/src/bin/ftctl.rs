//! ftctl: the operator's commands for a running ftd. It prints data on stdout and messages on stderr, and ends with a
//! documented exit code.

mod cells;
mod console;
mod reach;
mod verify;

use cells::{CellsAction, CellsTarget};
use clap::{CommandFactory, Parser, Subcommand};
use ftd::config::Name;
use ftd::control::api::{Failure, Goal, Request, Response, STATUS_SCHEMA, Start, Status};
use ftd::control::client::{Client, ClientError, status_in, unexpected};
use ftd::control::show::{self, Palette};
use ftd::exit::CtlExit;
use ftd::manual::{completion_script, write_command_pages};
use reach::{Reached, Target};
use std::borrow::Cow;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const WATCH_INTERVAL_MS: u64 = 1000;

/// Shows and controls a VM that ftd protects.
#[derive(Parser)]
#[command(name = "ftctl", version, after_help = CtlExit::HELP)]
struct Command {
    #[command(flatten)]
    target: Target,
    /// Print JSON: a status, or {"schema":1,"done":"..."}
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    #[command(flatten)]
    OfDaemon(DaemonAction),
    /// Look into an arbiter's service: the cells of its VMs; needs no daemon of a VM
    Arbiter {
        #[command(flatten)]
        target: CellsTarget,
        #[command(subcommand)]
        action: CellsAction,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory that exists
    #[command(hide = true)]
    Manual {
        /// The directory
        directory: PathBuf,
        /// The day at their foot: 2026-01-31
        date: String,
    },
}

/// What a VM's daemon is asked: over its socket, or from another machine.
#[derive(Subcommand)]
enum DaemonAction {
    /// Show the VM's status; the exit code is 0 if the VM is protected and its network is well, and 3 if not
    Status {
        /// Keep showing it, at every change and every second
        #[arg(long)]
        watch: bool,
    },
    /// Hand the VM over to the backup: a planned switchover, in which nothing is lost
    #[command(visible_alias = "switchover")]
    Failover {
        /// Do not ask for confirmation
        #[arg(long)]
        yes: bool,
        /// Give up after this time, leaving the VM where it is: 30s, 500ms, 2m
        #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_time)]
        timeout: Duration,
    },
    /// Boot the VM on this node, after it has ended; with --fresh, after its state was lost
    ///
    /// A VM that ended (its guest powered off, ftctl stop --power-off) stays off until then, or until a daemon starts
    /// whose start_as is "primary". A VM whose memory was lost, since both hosts died, waits for it on the host that
    /// owns it. A VM that runs, or could go on somewhere, is never booted anew.
    #[command(visible_alias = "boot")]
    Start {
        /// Boot the VM anew although its memory is lost, or the other host may still hold it: that state is given up
        #[arg(long)]
        fresh: bool,
        /// Give up after this time: 30s, 500ms, 2m
        #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_time)]
        timeout: Duration,
    },
    /// Take the VM over from a host that is gone for good, when this node may not do so by itself
    ///
    /// Only your word can say that: if that host runs the VM and merely cannot be reached, two hosts speak for the VM.
    /// The VM goes on from the state that this node holds; all that happened since is lost. If this node holds none,
    /// the VM boots anew. Refused while the other host is heard, and for 10 s after.
    Release {
        /// The node that owns the VM, and is gone
        node: Name,
        /// Do it; without this, say what would be done
        #[arg(long)]
        yes: bool,
        /// Give up after this time: 30s, 500ms, 2m
        #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_time)]
        timeout: Duration,
    },
    /// Attach to the VM's serial console; Ctrl-] detaches
    Console,
    /// Wait until the VM has reached a state; also waits for a daemon that is still starting
    Wait {
        /// The state to wait for
        #[arg(long = "for", value_name = "GOAL")]
        goal: Goal,
        /// Give up after this time: 30s, 500ms, 2m
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_time)]
        timeout: Duration,
    },
    /// Stop the daemon; a protected VM moves to the backup first
    ///
    /// A VM that cannot move goes on, and the daemon with it: the exit code is 5, and the message says why. It ends
    /// only with --power-off. A state that cannot be restored here is written to disk first, and the next daemon goes
    /// on from it.
    Stop {
        /// End the VM: its guest's power button is pressed, and the cord is pulled if it is not off in time
        #[arg(long)]
        power_off: bool,
        /// How long the guest has to power off: 30s, 500ms, 2m; 0 pulls the cord at once
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_time, requires = "power_off")]
        timeout: Duration,
    },
    /// The VM's writable disks
    Disk {
        #[command(subcommand)]
        action: DiskAction,
    },
    /// Print the metrics in the text format of Prometheus
    Metrics,
}

#[derive(Subcommand)]
enum DiskAction {
    /// Compare the backup's images with those of this host, which runs the VM, while it is protected
    ///
    /// Extent by extent of 1 MiB, in the stream of the guest's changes. A write of the guest into the very MiB that is
    /// compared waits for that, some milliseconds, 300 at most. Ends with 1 if something differs, and says where; that
    /// is compared again when the backup comes back.
    Verify {
        /// MiB a second that are read for it; 0 is no limit
        #[arg(long, value_name = "MIB", default_value_t = 32)]
        limit: u64,
        /// Send this host's content where the backup's differs; ends with 0 if all is the same then
        #[arg(long)]
        repair: bool,
    },
}

/// Why a command ends early.
enum End {
    Client(ClientError),
    /// Our own input or output failed.
    Local(io::Error),
    /// The operator did not confirm.
    Unconfirmed(Cow<'static, str>),
    /// The arbiter's service: what it said, and what that means.
    Arbiter(String, CtlExit),
}

impl From<ClientError> for End {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Local(error)
    }
}

fn main() -> ExitCode {
    let end = match run(&Command::parse()) {
        Ok(exit) => return exit.into(),
        Err(end) => end,
    };
    let (message, exit) = match end {
        // Whoever read our output has seen enough.
        End::Local(error) if error.kind() == io::ErrorKind::BrokenPipe => return CtlExit::Ok.into(),
        End::Local(error) => (error.to_string(), CtlExit::Failure),
        End::Unconfirmed(message) => (message.into_owned(), CtlExit::Usage),
        End::Arbiter(message, exit) => (message, exit),
        End::Client(error) => (error.to_string(), exit_of(&error)),
    };
    eprintln!("ftctl: {message}");
    exit.into()
}

fn exit_of(error: &ClientError) -> CtlExit {
    match error {
        ClientError::Unreachable { .. }
        | ClientError::NoSocket { .. }
        | ClientError::Away { .. }
        | ClientError::Unproven { .. } => CtlExit::Unreachable,
        ClientError::Several { .. } | ClientError::OtherVm { .. } => CtlExit::Usage,
        ClientError::BrokenOff(_) | ClientError::Nonsense(_) => CtlExit::Failure,
        ClientError::Failure(failure) => match failure {
            Failure::Refused(_) | Failure::Busy(_) => CtlExit::Refused,
            Failure::TimedOut(_) => CtlExit::Timeout,
            Failure::BadRequest(_) | Failure::Failed(_) => CtlExit::Failure,
        },
    }
}

fn run(command: &Command) -> Result<CtlExit, End> {
    let target = &command.target;
    match &command.action {
        Action::Arbiter { target: service, action } => {
            target.must_be_here("the service's place is its --address")?;
            cells::run(service, target.keys(), action, command.json)
        }
        Action::Completions { shell } => {
            target.must_be_here("it speaks to no daemon")?;
            print(&completion_script("ftctl", &Command::command(), *shell))
        }
        Action::Manual { directory, date } => {
            write_command_pages(Command::command(), date, directory)?;
            Ok(CtlExit::Ok)
        }
        Action::OfDaemon(action) => ask(action, &target.reached()?, command.json),
    }
}

fn ask(action: &DaemonAction, daemon: &Reached, json: bool) -> Result<CtlExit, End> {
    let connect = || daemon.connect();
    match action {
        DaemonAction::Status { watch: false } => {
            let status = connect()?.status()?;
            print_status(&status, json)?;
            Ok(exit_for(&status))
        }
        DaemonAction::Status { watch: true } => watch(connect()?, json),
        DaemonAction::Failover { yes, timeout } => {
            let mut client = connect()?;
            if !yes {
                confirm(&client.status()?)?;
            }
            print_done(&client.request(Request::Switchover { timeout_ms: millis(*timeout) })?, json)
        }
        DaemonAction::Start { fresh, timeout } => {
            let how = if *fresh { Start::Fresh } else { Start::Ended };
            print_done(&connect()?.request(Request::Start { how, timeout_ms: millis(*timeout) })?, json)
        }
        DaemonAction::Release { node, yes, timeout } => {
            let mut client = connect()?;
            if !yes {
                return Err(End::Unconfirmed(what_release_does(&client.status()?, node).into()));
            }
            let how = Start::From(node.to_string());
            print_done(&client.request(Request::Start { how, timeout_ms: millis(*timeout) })?, json)
        }
        DaemonAction::Console => console::attach(connect()?),
        DaemonAction::Wait { goal, timeout } => {
            let status = wait(daemon, *goal, Instant::now() + *timeout)?;
            print_status(&status, json)?;
            Ok(CtlExit::Ok)
        }
        DaemonAction::Stop { power_off, timeout } => {
            let power_off_ms = power_off.then(|| millis(*timeout));
            print_done(&connect()?.request(Request::Stop { power_off_ms })?, json)
        }
        DaemonAction::Disk { action: DiskAction::Verify { limit, repair } } => {
            verify::verify(connect()?, *limit, *repair, json)
        }
        DaemonAction::Metrics => match connect()?.request(Request::Metrics)? {
            Response::Metrics(text) => print(&text),
            other => Err(unexpected(&other).into()),
        },
    }
}

fn exit_for(status: &Status) -> CtlExit {
    if status.is_well_protected() { CtlExit::Ok } else { CtlExit::Degraded }
}

fn print(text: &str) -> Result<CtlExit, End> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(CtlExit::Ok)
}

fn print_status(status: &Status, json: bool) -> Result<CtlExit, End> {
    if json {
        return print(&format!("{}\n", serde_json::to_string(status).map_err(io::Error::from)?));
    }
    print(&show::block(status, palette()))
}

fn print_done(response: &Response, json: bool) -> Result<CtlExit, End> {
    match response {
        Response::Done(message) if json => {
            print(&format!("{}\n", serde_json::json!({ "schema": STATUS_SCHEMA, "done": message })))
        }
        Response::Done(message) => {
            eprintln!("ftctl: {message}");
            Ok(CtlExit::Ok)
        }
        other => Err(unexpected(other).into()),
    }
}

fn palette() -> Palette {
    let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if io::stdout().is_terminal() && !is_plain { Palette::Coloured } else { Palette::Plain }
}

fn watch(mut client: Client, json: bool) -> Result<CtlExit, End> {
    let mut response = client.request(Request::Watch { interval_ms: WATCH_INTERVAL_MS })?;
    loop {
        let status = status_in(response)?;
        if json {
            print_status(&status, true)?;
        } else if io::stdout().is_terminal() {
            // Home, the new lines over the old ones, and whatever is left below cleared.
            let block = show::block(&status, palette()).replace('\n', "\x1b[K\n");
            print(&format!("\x1b[H{block}\x1b[J"))?;
        } else {
            print(&show::line(&status))?;
        }
        response = client.response()?;
    }
}

fn confirm(status: &Status) -> Result<(), End> {
    if !io::stdin().is_terminal() {
        return Err(End::Unconfirmed(
            "standard input is no terminal: pass --yes to hand the VM over without confirmation".into(),
        ));
    }
    eprint!("Hand {} over from {} to {}? [y/N] ", status.vm, status.node, status.peer.node);
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(End::Unconfirmed("nothing was done".into())),
    }
}

fn what_release_does(status: &Status, gone: &Name) -> String {
    format!(
        "nothing was done. {} is {} {} in generation {}: {}. With --yes, {} becomes the owner of {} in the place of \
         {gone}: the VM goes on from what {} holds, or boots anew if that is nothing, and what {gone} had of it is \
         lost. Make sure that {gone} does not run",
        status.node,
        status.role,
        status.state,
        status.generation,
        status.detail,
        status.node,
        status.vm,
        status.node
    )
}

fn wait(daemon: &Reached, goal: Goal, deadline: Instant) -> Result<Status, End> {
    let interval = daemon.retry_interval();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let result = daemon
            .connect()
            .and_then(|mut client| client.request(Request::Wait { goal, timeout_ms: millis(left) }))
            .and_then(status_in);
        match result {
            // Not there yet, or restarting.
            Err(
                ClientError::Unreachable { .. }
                | ClientError::NoSocket { .. }
                | ClientError::Away { .. }
                | ClientError::BrokenOff(_),
            ) if left > interval => std::thread::sleep(interval),
            result => return Ok(result?),
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A number with ms, s, m or h; seconds without.
fn parse_time(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("not a time like 500ms, 30s, 2m or 1h".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "not a time like 500ms, 30s, 2m or 1h".to_owned())?;
    let time = number.checked_mul(unit_ms).filter(|ms| *ms <= ftd::control::api::TIMEOUT_MS_MAX);
    time.map(Duration::from_millis).ok_or_else(|| "longer than a day".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Command::command().debug_assert();
    }

    #[test]
    fn times_have_units_and_a_bound() {
        assert_eq!(parse_time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_time("30"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_time("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "s", "-1s", "1.5s", "25h", "99999999999999999999s", "18446744073709551615h"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
