//! The daemon's messages: JSON lines, or text, with the journal's priority prefixes instead of a time when stderr is
//! the journal. Logging blocks nobody: `queue` stands between the threads and stderr.

mod queue;

use crate::config::{LogFormat, LogLevel};
use queue::{LineQueue, Stderr};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal};
use std::panic::PanicHookInfo;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{self, FmtContext};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

/// Environment variable that overrides `log.level`, in the syntax of tracing's filters (`debug,ftd::control=trace`).
pub const LOG_FILTER_VARIABLE: &str = "FTD_LOG";
/// Time that an ending process gives its last messages to be written.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// The running log.
#[derive(Clone)]
pub struct Log {
    queue: LineQueue,
    handle: reload::Handle<EnvFilter, Registry>,
}

/// Waits, within a bound, until the last messages are written. Dropped at the end of the process.
#[must_use = "the last messages may be lost without it"]
pub struct LogDrain(Log);

impl Drop for LogDrain {
    fn drop(&mut self) {
        self.0.drain();
    }
}

impl Log {
    /// Starts to log to stderr. Panics are messages from now on.
    pub fn start(format: LogFormat, level: LogLevel) -> io::Result<(Self, LogDrain)> {
        let queue = LineQueue::default();
        queue.start(Stderr::open()?)?;
        let (filter, handle) = reload::Layer::new(filter(level));
        let lines = fmt::layer().with_writer(queue.clone());
        let lines = match format {
            LogFormat::Json => lines.json().flatten_event(true).boxed(),
            LogFormat::Text if std::env::var_os("JOURNAL_STREAM").is_some() => {
                let line = fmt::format().with_target(false).with_level(false).without_time();
                lines.with_ansi(false).event_format(JournalLine(line)).boxed()
            }
            LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).with_target(false).boxed(),
        };
        // Fails only if messages go somewhere already.
        let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
        let (panics, told) = channel();
        let thread = std::thread::Builder::new().name("ftd-panics".into());
        thread.spawn(move || {
            told.iter().for_each(|(what, trace): (String, Backtrace)| log_panic(&what, &trace))
        })?;
        std::panic::set_hook(Box::new(move |panic| tell_panic(panic, &panics)));
        let log = Self { queue, handle };
        Ok((log.clone(), LogDrain(log)))
    }

    /// Messages dropped because stderr took none.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.queue.lost()
    }

    /// Waits, within a bound, until all messages are written.
    pub fn drain(&self) {
        self.queue.drain(DRAIN_LIMIT);
    }

    /// Logs from this severity on.
    pub fn set_level(&self, level: LogLevel) -> Result<(), reload::Error> {
        self.handle.reload(filter(level))
    }
}

/// What is logged: the variable's word goes before the configuration's.
fn filter(level: LogLevel) -> EnvFilter {
    let level = match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    EnvFilter::try_from_env(LOG_FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new(level))
}

/// The standard library's own hook would write to stderr, and wait for it. What a backtrace's addresses mean is in the
/// program's file, which a confined thread cannot open: another one looks, and logs.
fn tell_panic(panic: &PanicHookInfo<'_>, panics: &Sender<(String, Backtrace)>) {
    let thread = std::thread::current();
    let what = format!("thread '{}' {panic}", thread.name().unwrap_or("without a name"));
    let trace = Backtrace::capture();
    match ft_confine::is_confined() {
        // It lives as long as the process.
        true => drop(panics.send((what, trace))),
        false => log_panic(&what, &trace),
    }
}

fn log_panic(what: &str, trace: &Backtrace) {
    match trace.status() {
        BacktraceStatus::Captured => tracing::error!("{what}\n{trace}"),
        _ => tracing::error!("{what}"),
    }
}

/// A line that starts with its syslog priority in angle brackets, which the journal takes off (sd-daemon(3)).
struct JournalLine<F>(F);

impl<S, N, F> FormatEvent<S, N> for JournalLine<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}
