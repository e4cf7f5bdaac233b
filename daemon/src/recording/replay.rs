//! `ftd replay`: executes a recording again and compares its digests.

use super::console::{self, Printer, WhenFull};
use super::{Run, RunError, disk_of, end_of, final_digest, hash_image};
use ft_checkpoint::recording::{About, DiskImage, End, EndReason, NextSection, Reader};
use ft_ram::{GuestRam, RamView};
use ft_vm::devices::{Disk, FrameSink, Offloads, Transmit, Wiring};
use ft_vm::machine::{Machine, MachineError, engine_fingerprint};
use ft_vm::replay::log::LogReader;
use ft_vm::spec::EngineKind;
use std::fs::File;
use std::io::{BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// About the most log, as memory holds it, that the machine is given ahead of its execution.
const AHEAD_BYTES: usize = 8 << 20;
/// How often a terminal is told how far it has come.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Whether a recording that cannot be verified up to its end is a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// It is.
    Demanded,
    /// It is told.
    Welcome,
}

/// What to replay.
#[derive(Clone, Debug)]
pub struct ReplayOptions {
    /// The recording.
    pub log: PathBuf,
    /// The count at which to stop, if not at the end.
    pub until: Option<u64>,
    /// Whether it must be verified up to its end.
    pub proof: Proof,
    /// Whether the guest's console is not shown.
    pub quiet: bool,
    /// The disks' images, if they are not where they were.
    pub disks: Vec<PathBuf>,
}

/// Executes a recording.
pub fn replay(options: &ReplayOptions) -> Result<(), RunError> {
    let path = &options.log;
    let file = File::open(path).map_err(|source| RunError::File { path: path.clone(), source })?;
    let file_bytes = file.metadata().map_or(0, |metadata| metadata.len());
    let in_recording = |source| RunError::Recording { path: path.clone(), source };
    let mut reader = Reader::open(BufReader::with_capacity(1 << 20, file)).map_err(in_recording)?;
    let about = reader.about().clone();
    let ours = engine_fingerprint(EngineKind::Soft);
    if about.spec.engine != EngineKind::Soft || about.engine_fingerprint != ours {
        let (program, theirs) = (about.program, about.engine_fingerprint);
        return Err(RunError::Engine { path: path.clone(), program, theirs, ours });
    }
    let disks = open_disks(&about, &options.disks)?;
    let ram = GuestRam::new(about.spec.ram_bytes)?;
    let view = ram.view()?;
    let state = reader.start(&view).map_err(in_recording)?;
    let frames = Some(Arc::new(NoCable) as Arc<dyn FrameSink>);
    let (printer, console) = console::open(options.quiet, WhenFull::Wait)?;
    let mut machine = Machine::new(&about.spec, &ram, Wiring { frames, console, disks })?;
    machine.restore(&state).map_err(|source| RunError::Start { path: path.clone(), source })?;
    machine.start_replaying()?;
    machine.show_replayed_console(!options.quiet)?;

    let start = machine.count();
    let mut replay = ReplayRun {
        path,
        until: options.until,
        log: LogReader::new(start),
        start,
        since: Instant::now(),
        progress: Progress::new(file_bytes),
        view,
        machine,
    };
    let verdict = replay.run(&mut reader).and_then(|outcome| outcome.judge(options.proof));
    if options.until.is_some() || matches!(verdict, Err(RunError::Diverged(_))) {
        match replay.machine.registers() {
            Ok(registers) => eprintln!("ftd: registers at {registers}"),
            Err(e) => eprintln!("ftd: cannot read the registers: {e}"),
        }
    }
    drop(replay);
    printer.into_iter().for_each(Printer::finish);
    verdict
}

/// A replay under way.
struct ReplayRun<'a> {
    path: &'a Path,
    until: Option<u64>,
    /// Reads ahead of the machine, to know where what it is given ends.
    log: LogReader,
    start: u64,
    since: Instant,
    progress: Progress,
    view: RamView,
    machine: Machine,
}

/// How far the recording goes.
enum Last {
    /// To its end.
    End(End),
    /// To where it was cut, by a crash of the recorder or afterwards.
    CutOff { offset: u64 },
    /// On; `--until` was met before.
    Until,
}

/// How a replay ended.
struct ReplayEnd {
    count: u64,
    digest: u64,
    last: Last,
}

impl ReplayRun<'_> {
    fn run(&mut self, reader: &mut Reader<BufReader<File>>) -> Result<ReplayEnd, RunError> {
        self.machine.resume()?;
        let (mut ahead, mut batches) = (0, 0);
        let last = loop {
            if self.until.is_some_and(|until| until <= self.log.count()) {
                break Ok(Last::Until);
            }
            match reader.more() {
                Ok(NextSection::Log(log)) => {
                    ahead += self.feed(&log, batches)?;
                    batches += 1;
                }
                Ok(NextSection::End(end)) => break Ok(Last::End(end)),
                Ok(NextSection::CutOff { offset }) => break Ok(Last::CutOff { offset }),
                Err(e) => break Err(e),
            }
            self.progress.read_bytes = reader.offset();
            if ahead >= AHEAD_BYTES {
                self.catch_up()?;
                ahead = 0;
            }
        };
        // A damaged recording is executed up to the damage: that much of it is good.
        let ended = self.catch_up()?;
        let took = self.since.elapsed();
        self.progress.clear();
        self.machine.pause()?;
        let count = self.machine.count();
        let digest = final_digest(&mut self.machine, &self.view, ended.unwrap_or(EndReason::Stopped))?;
        let run = Run { instructions: count.saturating_sub(self.start), took };
        let ended = ended.map(|why| format!(": {why}")).unwrap_or_default();
        eprintln!("ftd: replayed {run}{ended}");
        eprintln!("ftd: count {count}, digest {digest:016x}");
        match last {
            Ok(last) => Ok(ReplayEnd { count, digest, last }),
            Err(source) => Err(RunError::Recording { path: self.path.to_owned(), source }),
        }
    }

    /// Gives the machine a section of the log, or of it what is before the count to stop at. How much memory that
    /// takes.
    fn feed(&mut self, log: &[u8], section: u64) -> Result<usize, RunError> {
        let refused = |source| RunError::Log { path: self.path.to_owned(), batch: section, source };
        let (mut behind, mut memory_bytes) = (0, 0);
        while behind < log.len() && self.until.is_none_or(|until| self.log.count() < until) {
            let from = behind;
            let batch = self.log.read(log, &mut behind).map_err(|e| refused(MachineError::Log(e)))?;
            memory_bytes += batch.memory_bytes();
            match self.until {
                Some(until) if until < batch.cut => {
                    let earlier = batch.until(until).map_err(|e| refused(MachineError::Log(e)))?;
                    self.machine.feed_log(&earlier).map_err(refused)?;
                }
                _ => self.machine.feed_log(&log[from..behind]).map_err(refused)?,
            }
        }
        Ok(memory_bytes)
    }

    /// Waits until the machine has executed all that it was given, or cannot go on.
    fn catch_up(&mut self) -> Result<Option<EndReason>, RunError> {
        let mut ended = None;
        loop {
            let done = self.machine.wait_replayed(PROGRESS_INTERVAL);
            while let Ok(event) = self.machine.events().try_recv() {
                ended = end_of(&event)?.or(ended);
            }
            match done {
                Ok(true) => return Ok(ended),
                Ok(false) if ended.is_some() => return Ok(ended),
                Ok(false) => self.progress.show(self.machine.count(), self.start, self.since),
                Err(MachineError::Diverged { count, what }) => {
                    return Err(RunError::Diverged(format!("at count {count}: {what}")));
                }
                // A crash where the log ends is the one that was recorded.
                Err(MachineError::Crashed { .. }) if ended == Some(EndReason::Crashed) => return Ok(ended),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl ReplayEnd {
    /// Compares with what the recorder said.
    fn judge(self, proof: Proof) -> Result<(), RunError> {
        let unverified = |why: String| match proof {
            Proof::Demanded => Err(RunError::Unverified(why)),
            Proof::Welcome => {
                eprintln!("ftd: {why}");
                Ok(())
            }
        };
        match self.last {
            Last::End(end) if end.count != self.count => Err(RunError::Diverged(format!(
                "it ended at count {}, the recording at {}: {}",
                self.count, end.count, end.why
            ))),
            Last::End(end) if end.digest != self.digest => Err(RunError::Diverged(format!(
                "memory and state at the end have digest {:016x}, recorded was {:016x}",
                self.digest, end.digest
            ))),
            Last::End(end) => {
                eprintln!("ftd: as recorded, to the end: {}", end.why);
                Ok(())
            }
            Last::CutOff { offset } => unverified(format!(
                "the recording is cut off at byte {offset}, without an end; replayed up to count {}, where its last \
                 whole batch ends",
                self.count
            )),
            // Whoever asks for less has verified what was asked for.
            Last::Until => Ok(()),
        }
    }
}

/// The images, where they were or where the command line says, as long as they are what they were.
fn open_disks(about: &About, given: &[PathBuf]) -> Result<Vec<Disk>, RunError> {
    let disks = about.disks.len();
    if !given.is_empty() && given.len() != disks {
        return Err(RunError::Disks { given: given.len(), disks });
    }
    let open = |(index, recorded): (usize, &DiskImage)| {
        let path = given.get(index).cloned().unwrap_or_else(|| PathBuf::from(&recorded.path));
        let refused = |why| RunError::Disk { index, path: path.clone(), why };
        let (image, file) = hash_image(&path).map_err(|e| refused(e.to_string()))?;
        if (image.bytes, image.hash) != (recorded.bytes, recorded.hash) {
            return Err(refused("it is not the image that the recorded VM had".into()));
        }
        disk_of(file).map_err(|e| refused(e.to_string()))
    };
    about.disks.iter().enumerate().map(open).collect()
}

/// A cable that leads nowhere: there is one, as the guest can see.
struct NoCable;

impl FrameSink for NoCable {
    fn transmit(&self, _: u8, _: &[u8]) -> Transmit {
        Transmit::Taken
    }

    fn set_offloads(&self, _: u8, _: Offloads) {}
}

/// How far a long replay has come, on a terminal.
struct Progress {
    terminal: bool,
    shown: bool,
    file_bytes: u64,
    read_bytes: u64,
}

impl Progress {
    fn new(file_bytes: u64) -> Self {
        Self { terminal: std::io::stderr().is_terminal(), shown: false, file_bytes, read_bytes: 0 }
    }

    fn show(&mut self, count: u64, start: u64, since: Instant) {
        if self.terminal {
            self.shown = true;
            let percent = self.read_bytes.saturating_mul(100) / self.file_bytes.max(1);
            let run = Run { instructions: count.saturating_sub(start), took: since.elapsed() };
            eprint!("\r\x1b[Kftd: {run}, {percent} % of the recording read");
            let _ = std::io::stderr().flush();
        }
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            eprint!("\r\x1b[K");
        }
    }
}
