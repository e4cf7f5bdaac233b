//! `ftd record`: boots the VM and records its run.

use super::console::{self, Printer, WhenFull};
use super::{Run, RunError, disk_of, end_of, final_digest, hash_image};
use crate::boot;
use crate::config::Config;
use crate::exit::DaemonExit;
use crate::host::{HostError, Socket, set_offloads, start_pump};
use crate::nonce::random_nonce;
use ft_checkpoint::recording::{About, DiskImage, End, EndReason, Writer};
use ft_netbuf::{Emit, Tap};
use ft_ram::{GuestRam, RamView};
use ft_vm::devices::{Disk, FrameSink, Offloads, Transmit, Wiring};
use ft_vm::machine::{ConsoleHandle, Machine, engine_fingerprint};
use ft_vm::spec::{CpuModel, EngineKind};
use nix::sys::signal::{SigSet, Signal};
use parking_lot::Mutex;
use std::fs::File;
use std::io::{BufWriter, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// How often what was logged goes into the file: what a crash of the recorder may lose.
const CUT_INTERVAL: Duration = Duration::from_millis(20);

/// What to record.
#[derive(Clone, Debug)]
pub struct RecordOptions {
    /// The recording; must not exist.
    pub out: PathBuf,
    /// For how long, if not until the guest ends or a signal comes.
    pub limit: Option<Duration>,
    /// Whether standard input is typed into the guest's console.
    pub stdin: bool,
    /// Whether the guest's console is not shown.
    pub quiet: bool,
}

/// Boots the configuration's VM alone, and records it until it ends, time is over, or SIGINT or SIGTERM comes.
pub fn record(config: &Config, options: &RecordOptions) -> Result<DaemonExit, RunError> {
    if config.machine.vcpus != 1 {
        return Err(RunError::Vcpus(config.machine.vcpus));
    }
    if let Some(base) = config.machine.disks.iter().find_map(|disk| disk.base.clone()) {
        return Err(RunError::Base(base));
    }
    if options.out.exists() {
        return Err(RunError::Exists(options.out.clone()));
    }
    // Threads inherit what is blocked: before the first one is made.
    let stop = stop_on_signals()?;
    let mut spec = config.machine_spec()?;
    (spec.engine, spec.cpu) = (EngineKind::Soft, CpuModel::Host);
    let ram = GuestRam::new(spec.ram_bytes)?;
    let view = ram.view()?;
    let boot = boot::would_boot(config)?;
    let (images, disks) = open_disks(config)?;
    let (cables, frames) = open_cables(config)?;
    let (printer, console) = console::open(options.quiet, WhenFull::Drop)?;
    let mut machine = Machine::new(&spec, &ram, Wiring { frames: Some(frames), console, disks })?;
    machine.boot(&boot)?;

    let about = About {
        vm: config.vm.to_string(),
        engine_fingerprint: engine_fingerprint(EngineKind::Soft),
        spec,
        program: concat!("ftd ", env!("CARGO_PKG_VERSION")).into(),
        disks: images,
    };
    let recorder = Recorder::begin(machine, view, about, &options.out)?;
    for (number, socket) in (0..).zip(cables) {
        socket.plug(recorder.machine.net(number));
    }
    let keyboard = Keyboard::default();
    if options.stdin {
        keyboard.start(recorder.machine.console())?;
    }
    eprintln!("ftd: recording {} into {}", config.vm, options.out.display());
    let (run, end) = recorder.run(&stop, options.limit)?;
    keyboard.unplug();
    printer.into_iter().for_each(Printer::finish);
    eprintln!("ftd: recorded {run}: {}", end.why);
    eprintln!("ftd: count {}, digest {:016x}", end.count, end.digest);
    Ok(if end.why == EndReason::Crashed { DaemonExit::GuestCrashed } else { DaemonExit::Ok })
}

/// A machine and where its run is written to.
struct Recorder {
    machine: Machine,
    view: RamView,
    writer: Writer<BufWriter<File>>,
    path: PathBuf,
    /// Where it began.
    start: u64,
}

impl Recorder {
    /// Writes the start.
    fn begin(mut machine: Machine, view: RamView, about: About, path: &Path) -> Result<Self, RunError> {
        machine.start_recording()?;
        let start = machine.count();
        let mut state = Vec::new();
        machine.capture(&mut state)?;
        let file = File::create_new(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => RunError::Exists(path.to_owned()),
            _ => RunError::File { path: path.to_owned(), source },
        })?;
        let nonce = random_nonce() as u32;
        let writer = Writer::begin(BufWriter::new(file), nonce, &about, &state, &view)
            .map_err(|source| RunError::Recording { path: path.to_owned(), source })?;
        Ok(Self { machine, view, writer, path: path.to_owned(), start })
    }

    fn run(mut self, stop: &Receiver<()>, limit: Option<Duration>) -> Result<(Run, End), RunError> {
        let since = Instant::now();
        self.machine.resume()?;
        let mut why = None;
        while why.is_none() {
            let left = limit.map_or(CUT_INTERVAL, |limit| limit.saturating_sub(since.elapsed()));
            match stop.recv_timeout(left.min(CUT_INTERVAL)) {
                Err(RecvTimeoutError::Timeout) if limit.is_none_or(|limit| since.elapsed() < limit) => {}
                _ => why = Some(EndReason::Stopped),
            }
            if let Ok(event) = self.machine.events().try_recv() {
                why = end_of(&event)?;
            }
            self.cut()?;
        }
        self.machine.pause()?;
        let took = since.elapsed();
        // What came in between the last cut and the pause.
        let count = self.cut()?;
        // The guest may have ended itself before it was stopped.
        while let Ok(event) = self.machine.events().try_recv() {
            why = end_of(&event)?.or(why);
        }
        let why = why.unwrap_or(EndReason::Stopped);
        let digest = final_digest(&mut self.machine, &self.view, why)?;
        let end = End { count, digest, why };
        let path = self.path;
        let written = self.writer.end(&end).and_then(|out| Ok(out.get_ref().sync_all()?));
        written.map_err(|source| RunError::Recording { path, source })?;
        Ok((Run { instructions: count - self.start.min(count), took }, end))
    }

    fn cut(&mut self) -> Result<u64, RunError> {
        let mut log = Vec::new();
        let cut = self.machine.cut_log(&mut log, Box::new(|| {}))?;
        let written = self.writer.log(&log);
        written.map_err(|source| RunError::Recording { path: self.path.clone(), source })?;
        Ok(cut.count)
    }
}

fn open_disks(config: &Config) -> Result<(Vec<DiskImage>, Vec<Disk>), RunError> {
    let mut opened = (Vec::new(), Vec::new());
    for disk in &config.machine.disks {
        let (image, file) =
            hash_image(&disk.image).map_err(|source| RunError::File { path: disk.image.clone(), source })?;
        opened.0.push(image);
        opened.1.push(disk_of(file).map_err(|source| RunError::File { path: disk.image.clone(), source })?);
    }
    Ok(opened)
}

/// A socket for each card, and where all of them send.
fn open_cables(config: &Config) -> Result<(Vec<Socket>, Arc<dyn FrameSink>), RunError> {
    let (mut sockets, mut taps) = (Vec::new(), Vec::new());
    for net in &config.machine.nets {
        let tap = Arc::new(Tap::open(&net.tap).map_err(HostError::Tap)?);
        tap.set_up().map_err(HostError::Tap)?;
        tap.set_mtu(net.mtu).map_err(HostError::Tap)?;
        let socket = Socket::default();
        start_pump(Arc::clone(&tap), socket.clone()).map_err(HostError::Thread)?;
        sockets.push(socket);
        taps.push(tap);
    }
    Ok((sockets, Arc::new(Direct(taps))))
}

/// Frames go straight out: nobody takes over from this machine, so nothing has to be held back.
struct Direct(Vec<Arc<Tap>>);

impl FrameSink for Direct {
    fn transmit(&self, card: u8, packet: &[u8]) -> Transmit {
        // What the interface does not take is lost, as on any cable.
        let _ = self.0.get(usize::from(card)).map(|tap| tap.emit(packet));
        Transmit::Taken
    }

    fn set_offloads(&self, card: u8, offloads: Offloads) {
        if let Some(tap) = self.0.get(usize::from(card)) {
            set_offloads(tap, offloads);
        }
    }
}

/// SIGINT and SIGTERM come out here, for as long as the process lives.
fn stop_on_signals() -> Result<Receiver<()>, RunError> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().map_err(|e| RunError::System("cannot wait for signals", e.into()))?;
    let (sender, stop): (Sender<()>, _) = channel();
    std::thread::Builder::new()
        .name("ftd-signals".into())
        .spawn(move || while signals.wait().is_ok() && sender.send(()).is_ok() {})
        .map_err(|e| RunError::System("no thread for signals", e))?;
    Ok(stop)
}

/// Types standard input into the guest's console, as long as there is one.
#[derive(Clone, Default)]
struct Keyboard(Arc<Mutex<Option<ConsoleHandle>>>);

impl Keyboard {
    fn start(&self, console: ConsoleHandle) -> Result<(), RunError> {
        *self.0.lock() = Some(console);
        let keyboard = self.clone();
        std::thread::Builder::new()
            .name("ftd-stdin".into())
            .spawn(move || {
                let (mut input, mut bytes) = (std::io::stdin().lock(), [0; 256]);
                while let Ok(n @ 1..) = input.read(&mut bytes)
                    && let Some(console) = &*keyboard.0.lock()
                {
                    console.input(&bytes[..n]);
                }
            })
            .map(drop)
            .map_err(|e| RunError::System("no thread for standard input", e))
    }

    /// The machine's devices, console output among them, end only when nobody can type any more.
    fn unplug(&self) {
        *self.0.lock() = None;
    }
}
