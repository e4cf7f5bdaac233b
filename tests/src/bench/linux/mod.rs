//! One Linux guest on several emulated processors: how long each takes from its start to the guest's userland, and for
//! the fixed integer work that the guest's `ft.bench` does there. The guest, its command line and its memory are the
//! same for all; a checksum that the guest prints tells whether they computed the same.
//!
//! Speeds are of processor time (of the process: all its threads), so that other work on the machine takes nothing from
//! them; the time that passed is given beside it.

mod marks;
mod qemu;
mod soft;

use anyhow::{Context, bail};
use marks::{Mark, Marks};
use serde::Serialize;
use soft::Keeping;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// As the smallest machine that Debian's kernel is at ease in.
const RAM_MIB: u64 = 256;
/// How often a run is looked after.
const TEND_INTERVAL: Duration = Duration::from_millis(20);

/// What executes the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Emulator {
    /// ftd's deterministic engine
    Soft,
    /// The same, and what it records is cut and counted
    SoftRecord,
    /// QEMU's translator, one thread
    Qemu,
    /// QEMU with an instruction count, recording
    QemuRecord,
}

/// A directory that scripts/guest/build made.
#[derive(Clone, Debug)]
pub struct Guest {
    kernel: PathBuf,
    initrd: PathBuf,
    cmdline: String,
}

impl Guest {
    /// The guest in this directory.
    pub fn open(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join("cmdline");
        let cmdline = std::fs::read_to_string(&path).with_context(|| {
            format!("{} is no built guest: cannot read {}", directory.display(), path.display())
        })?;
        // There is no card: nothing to give an address to, and the small kernel would wait for one.
        let words = cmdline.split_whitespace().filter(|word| !word.starts_with("ip="));
        let cmdline = words.chain(["ft.bench"]).collect::<Vec<_>>().join(" ");
        Ok(Self { kernel: directory.join("kernel"), initrd: directory.join("initramfs.cpio"), cmdline })
    }
}

/// What one run came to.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// What executed it.
    pub on: Emulator,
    /// From the start of the machine to the guest's userland.
    pub boot: Part,
    /// The integer work.
    pub integer: Part,
    /// Its result.
    pub sum: String,
}

/// A stretch of a run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Part {
    /// Time that passed.
    pub wall_s: f64,
    /// Processor time.
    pub cpu_s: f64,
    /// Instructions that the guest executed, where they are counted.
    pub instructions: Option<u64>,
    /// Millions of them in a second of processor time.
    pub mips: Option<f64>,
    /// What the recording grew by, where there is one.
    pub log_bytes: Option<u64>,
}

impl Part {
    fn between(from: &Reading, to: &Reading) -> Self {
        let grown = |from: Option<u64>, to: Option<u64>| Some(to?.saturating_sub(from?));
        let cpu_s = to.cpu.saturating_sub(from.cpu).as_secs_f64();
        let instructions = grown(from.instructions, to.instructions);
        Self {
            wall_s: to.at.duration_since(from.at).as_secs_f64(),
            cpu_s,
            instructions,
            mips: instructions.map(|count| count as f64 / cpu_s.max(1e-9) / 1e6),
            log_bytes: grown(from.log_bytes, to.log_bytes),
        }
    }
}

/// The meters of a run at a moment.
#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    cpu: Duration,
    instructions: Option<u64>,
    log_bytes: Option<u64>,
}

/// A guest that is being executed; ends when dropped.
trait Run {
    fn read(&self) -> anyhow::Result<Reading>;
    /// What has to be done now and then; an error if the guest will not go on.
    fn tend(&mut self) -> anyhow::Result<()>;
}

/// Runs the guest to the end of its work, or gives up after `patience` without a mark.
pub fn measure(guest: &Guest, on: Emulator, patience: Duration) -> anyhow::Result<Figures> {
    let (marks, told) = Marks::new();
    match on {
        Emulator::Soft => watch(on, soft::start(guest, marks, Keeping::Nothing)?, &told, patience),
        Emulator::SoftRecord => watch(on, soft::start(guest, marks, Keeping::Log)?, &told, patience),
        Emulator::Qemu => watch(on, qemu::start(guest, marks, false)?, &told, patience),
        Emulator::QemuRecord => watch(on, qemu::start(guest, marks, true)?, &told, patience),
    }
}

fn watch(
    on: Emulator,
    (start, mut run): (Reading, impl Run),
    told: &Receiver<Mark>,
    patience: Duration,
) -> anyhow::Result<Figures> {
    let mut next = |after: &str| {
        let since = Instant::now();
        loop {
            match told.recv_timeout(TEND_INTERVAL) {
                Ok(mark) => return Ok((mark, run.read()?)),
                Err(RecvTimeoutError::Timeout) if since.elapsed() < patience => run.tend()?,
                Err(RecvTimeoutError::Timeout) => bail!("{on:?}: nothing for {patience:?} after {after}"),
                Err(RecvTimeoutError::Disconnected) => bail!("{on:?}: the console ended after {after}"),
            }
        }
    };
    let (Mark::Userland, userland) = next("the start")? else { bail!("{on:?}: no userland before the work") };
    let (Mark::Begin, begin) = next("userland came up")? else { bail!("{on:?}: the work did not begin") };
    let (Mark::End { sum }, end) = next("the work began")? else { bail!("{on:?}: the work did not end") };
    Ok(Figures { on, boot: Part::between(&start, &userland), integer: Part::between(&begin, &end), sum })
}
