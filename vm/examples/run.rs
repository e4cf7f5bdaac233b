//! Runs one machine, unprotected, on a TAP: to look at a guest by hand, and to see that vm/ works without the daemon.
//!
//!     cargo run --release -p ft-vm --example run -- --tap ftd0 [--engine kvm|soft] [--vcpus N] [--ram-mb N]
//!         [--cmdline WORDS] [--kernel vmlinux [--initrd initramfs.cpio]] [--disk IMAGE] [--epoch-ms N]
//!
//! The disk is writable. Without a kernel it runs the built-in guest. The console is standard input and output. With
//! `--epoch-ms` the machine is paused, captured and resumed at this interval, as under checkpoint protection. Ends when
//! the guest does.

use ft_disk::{Access, ImageStore, IoEngine, RawImage};
use ft_ram::GuestRam;
use ft_vm::devices::{
    ConsoleSink, Delivered, Disk, FRAME_BYTES_MAX, FrameSink, NET_HEADER_BYTES, Offloads, Transmit, Wiring,
};
use ft_vm::machine::{Machine, MachineEvent};
use ft_vm::spec::{Boot, BusKind, CpuModel, DiskSpec, EngineKind, FreestandingImage, MachineSpec, NetSpec};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

type AnyError = Box<dyn std::error::Error>;

struct Stdout;

impl ConsoleSink for Stdout {
    fn write(&mut self, bytes: &[u8]) {
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(bytes).and_then(|()| out.flush());
    }
}

struct Tap(File);

impl Tap {
    fn open(name: &str) -> Result<Self, AnyError> {
        const IFF_TAP_NO_PI_VNET_HDR: i16 = 0x5002;
        let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
        // struct ifreq: 16 bytes of name, then the flags.
        let mut request = [0_u8; 40];
        let room = request[..15].get_mut(..name.len()).ok_or("the TAP's name is too long")?;
        room.copy_from_slice(name.as_bytes());
        request[16..18].copy_from_slice(&IFF_TAP_NO_PI_VNET_HDR.to_ne_bytes());
        // SAFETY: the kernel reads and writes one ifreq, which the array has room for.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) } < 0 {
            return Err(format!("TAP {name}: {}", std::io::Error::last_os_error()).into());
        }
        let header_bytes = NET_HEADER_BYTES as libc::c_int;
        // SAFETY: the kernel reads one int.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &header_bytes) } < 0 {
            return Err(format!("TAP {name}: {}", std::io::Error::last_os_error()).into());
        }
        Ok(Self(file))
    }
}

impl FrameSink for Tap {
    fn transmit(&self, _: u8, packet: &[u8]) -> Transmit {
        // A TAP that refuses a frame loses it, as a cable does.
        let _ = (&self.0).write(packet);
        Transmit::Taken
    }

    /// Frames for the guest are always complete.
    fn set_offloads(&self, _: u8, _: Offloads) {}
}

struct Options {
    tap: String,
    engine: EngineKind,
    vcpus: u8,
    ram_mb: u64,
    kernel: Option<String>,
    initrd: Option<String>,
    cmdline: Option<String>,
    disk: Option<String>,
    epoch_ms: Option<u64>,
}

fn options() -> Result<Options, AnyError> {
    let mut options = Options {
        tap: String::new(),
        engine: EngineKind::Kvm,
        vcpus: 1,
        ram_mb: 64,
        kernel: None,
        initrd: None,
        cmdline: None,
        disk: None,
        epoch_ms: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(option) = words.next() {
        let value = words.next().ok_or_else(|| format!("{option} needs a value"))?;
        match option.as_str() {
            "--tap" => options.tap = value,
            "--engine" if value == "soft" => options.engine = EngineKind::Soft,
            "--engine" if value == "kvm" => options.engine = EngineKind::Kvm,
            "--vcpus" => options.vcpus = value.parse()?,
            "--ram-mb" => options.ram_mb = value.parse()?,
            "--kernel" => options.kernel = Some(value),
            "--initrd" => options.initrd = Some(value),
            "--cmdline" => options.cmdline = Some(value),
            "--disk" => options.disk = Some(value),
            "--epoch-ms" => options.epoch_ms = Some(value.parse()?),
            _ => return Err(format!("unknown option {option}").into()),
        }
    }
    if options.tap.is_empty() { Err("--tap NAME is missing".into()) } else { Ok(options) }
}

fn main() -> Result<(), AnyError> {
    let options = options()?;
    let image = options.disk.map(|path| RawImage::open(path.as_ref(), Access::Writable)).transpose()?;
    let spec = MachineSpec {
        engine: options.engine,
        vcpus: options.vcpus,
        ram_bytes: options.ram_mb << 20,
        nets: vec![NetSpec { mac: [0x52, 0x54, 0, 0xf7, 0xd0, 1], mtu: 1500 }],
        disks: image.iter().map(|image| DiskSpec { bytes: image.bytes(), read_only: false }).collect(),
        rng: true,
        bus: BusKind::Mmio,
        cpu: CpuModel::Host,
    };
    let boot = match options.kernel {
        Some(kernel) => Boot::Linux {
            kernel: kernel.into(),
            initrd: options.initrd.map(Into::into),
            cmdline: options.cmdline.unwrap_or_default(),
        },
        None => Boot::Freestanding {
            image: FreestandingImage::BuiltIn,
            cmdline: options.cmdline.unwrap_or_else(|| ft_vm::guest::CMDLINE_DEFAULT.to_owned()),
        },
    };
    let tap = Arc::new(Tap::open(&options.tap)?);
    let ram = GuestRam::new(spec.ram_bytes)?;
    let frames = Arc::clone(&tap);
    let disks = image.map(|image| Disk::new(ImageStore::new(image, IoEngine::Auto))).into_iter().collect();
    let wiring = Wiring { frames: Some(frames), console: Box::new(Stdout), disks };
    let mut machine = Machine::new(&spec, &ram, wiring)?;
    machine.boot(&boot)?;
    pump_frames(tap, &machine);
    pump_console(&machine);

    if options.epoch_ms.is_some() {
        machine.start_dirty_log()?;
    }
    machine.resume()?;
    let epoch = Duration::from_millis(options.epoch_ms.unwrap_or(1000));
    let mut pauses = Pauses::default();
    loop {
        match machine.events().recv_timeout(epoch) {
            Ok(MachineEvent::PoweredOff) => return Ok(()),
            Ok(MachineEvent::Panicked { .. }) => eprintln!("the guest's kernel has panicked"),
            Ok(MachineEvent::WatchdogFired) => eprintln!("the guest hangs"),
            Ok(MachineEvent::Reset) => {
                machine.pause()?;
                machine.boot(&boot)?;
                machine.resume()?;
            }
            Ok(MachineEvent::Crashed { vcpu, why } | MachineEvent::Failed { vcpu, why }) => {
                return Err(format!("vCPU {vcpu}: {why}").into());
            }
            Ok(MachineEvent::Diverged { .. }) => return Err("nothing is replayed here".into()),
            Err(RecvTimeoutError::Timeout) if options.epoch_ms.is_some() => {
                pauses.checkpoint(&mut machine)?
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err("the machine is gone".into()),
        }
    }
}

/// Frames from the TAP to the guest.
fn pump_frames(tap: Arc<Tap>, machine: &Machine) {
    let Some(port) = machine.net(0) else { return };
    std::thread::spawn(move || {
        let mut frame = [0; NET_HEADER_BYTES + FRAME_BYTES_MAX];
        while let Ok(bytes) = (&tap.0).read(&mut frame) {
            while matches!(port.deliver(&frame[..bytes]), Delivered::NoBuffers | Delivered::Paused) {
                port.wait_for_buffers(Duration::from_secs(1));
            }
        }
    });
}

fn pump_console(machine: &Machine) {
    let console = machine.console();
    std::thread::spawn(move || {
        let mut bytes = [0; 256];
        while let Ok(n @ 1..) = std::io::stdin().read(&mut bytes) {
            console.input(&bytes[..n]);
        }
    });
}

/// What checkpoints of the machine would cost.
#[derive(Default)]
struct Pauses {
    state: Vec<u8>,
    pages: Vec<u32>,
    pause_us: Vec<u128>,
    dirty: usize,
}

impl Pauses {
    fn checkpoint(&mut self, machine: &mut Machine) -> Result<(), AnyError> {
        self.state.clear();
        self.pages.clear();
        let start = Instant::now();
        machine.pause()?;
        machine.harvest(&mut self.pages)?;
        machine.capture(&mut self.state)?;
        machine.resume()?;
        self.pause_us.push(start.elapsed().as_micros());
        self.dirty += self.pages.len();
        if self.pause_us.len() == 1000 {
            self.pause_us.sort_unstable();
            let (p50, p99) = (self.pause_us[500], self.pause_us[990]);
            eprintln!("1000 pauses: {p50} us p50, {p99} us p99, {} pages each", self.dirty / 1000);
            self.pause_us.clear();
            self.dirty = 0;
        }
        Ok(())
    }
}
