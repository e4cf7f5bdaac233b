//! The configuration file: TOML, one VM per file. Unknown keys are refused. Every error names the file, the key, its
//! value and the allowed values. [`Config::load`] checks everything that the file alone can show; the room `host`
//! checks the rest against this host when the daemon starts.

mod arbiter;
mod confinement;
mod control;
mod disk;
mod fall;
mod file;
mod log;
mod memory;
mod net;
mod recovery;
mod replay;
mod served;
mod services;
mod tls;
mod validate;

pub use arbiter::{ArbiterConfig, ArbiterKind, Security};
pub use confinement::Confinement;
pub use control::{CONTROL_PORT, ControlConfig};
pub use disk::{DiskConfig, Durability, OnDiskError};
pub use fall::{OnFall, OnReset};
pub use file::keys;
pub use log::{LogConfig, LogFormat, LogLevel};
pub use memory::HugePages;
pub use net::{CardLink, Mac, NetConfig};
pub use recovery::RecoveryConfig;
pub use replay::ReplayConfig;
pub use served::ServedConfig;
pub use tls::{TLS_DIRECTORY, TlsConfig};

use crate::role::{OnUplinkLoss, StartAs};
use file::FILE_BYTES_MAX;
use ft_checkpoint::wire::message::Mode;
use ft_tls::{Party, PartyKind};
use ft_vm::spec::{Boot, BusKind, CpuModel, EngineKind, FreestandingImage};
use serde::Deserialize;
use std::fmt::Display;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use thiserror::Error;

/// Where a node waits for its peer, unless told otherwise.
pub const REPLICATION_PORT: u16 = 7400;

/// One protected VM, as one node sees it. The comments of `scripts/systemd/ftd.example.toml` are the user's manual.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The VM's name, equal on both nodes.
    pub vm: Name,
    /// This node.
    pub node: Name,
    /// Who boots the VM while the arbiter's cell is empty.
    pub start_as: StartAs,
    /// Directory of the lock file; /var/lib/ftd/VM unless given.
    #[serde(default)]
    pub state_dir: PathBuf,
    /// Where `ftctl` connects; /run/ftd/VM.sock unless given.
    #[serde(default)]
    pub control_socket: PathBuf,
    /// Group that may use the control socket.
    pub control_group: Option<String>,
    /// The other node.
    pub peer: PeerConfig,
    /// The VM.
    #[serde(default)]
    pub machine: MachineConfig,
    /// How it is protected.
    #[serde(default)]
    pub replication: ReplicationConfig,
    /// What replay mode adds.
    #[serde(default)]
    pub replay: ReplayConfig,
    /// The way back after an ending.
    #[serde(default)]
    pub recovery: RecoveryConfig,
    /// Who decides when the nodes lose each other.
    pub arbiter: ArbiterConfig,
    /// What this host proves itself by to others.
    pub tls: Option<TlsConfig>,
    /// What the daemon may ask of the kernel once it runs.
    #[serde(default)]
    pub confinement: Confinement,
    /// Operators on other machines.
    #[serde(default)]
    pub control: ControlConfig,
    /// Messages.
    #[serde(default)]
    pub log: LogConfig,
    /// Prometheus.
    #[serde(default)]
    pub metrics: MetricsConfig,
}

/// The other node.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    /// Its name, other than this node's.
    pub node: Name,
    /// Its `replication.listen`, as seen from here.
    pub address: SocketAddr,
    /// Where its connections come from, if not from the IP address of `address`.
    pub from: Option<IpAddr>,
}

impl PeerConfig {
    /// Where its connections come from.
    #[must_use]
    pub fn connects_from(&self) -> IpAddr {
        self.from.unwrap_or(self.address.ip())
    }
}

/// The VM.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MachineConfig {
    /// What executes it.
    pub engine: EngineKind,
    /// The processor that the guest sees.
    pub cpu: CpuModel,
    /// vCPUs.
    pub vcpus: u8,
    /// Guest memory.
    pub memory_mib: u64,
    /// Whether this host keeps guest memory from being swapped out.
    pub lock_memory: bool,
    /// Which pages this host holds guest memory in.
    pub huge_pages: HugePages,
    /// The node of this host that gives guest memory.
    pub numa_node: Option<u16>,
    /// What boots.
    pub guest: GuestKind,
    /// Linux: bzImage or vmlinux. Freestanding: the ELF program.
    pub kernel: Option<PathBuf>,
    /// Linux: initramfs.
    pub initrd: Option<PathBuf>,
    /// Command line or argument; the built-in guest's is complete, its address among the rest.
    pub cmdline: String,
    /// Whether there is a virtio-rng.
    pub rng: bool,
    /// Where the guest finds its virtio devices, if not where its kind looks for them.
    pub bus: Option<BusKind>,
    /// Where the serial console goes.
    pub console: ConsoleTarget,
    /// What a reset by the guest does.
    pub on_reset: OnReset,
    /// What a panic of the guest's kernel does.
    pub on_panic: OnFall,
    /// What is done when the guest does not feed its watchdog any more.
    pub on_watchdog: OnFall,
    /// The next version: a number that the VM keeps wherever it runs; 0 is none.
    #[cfg(feature = "next-version")]
    pub mark: u64,
    /// The network cards: one table, or several.
    #[serde(rename = "net", deserialize_with = "net::one_or_many")]
    pub nets: Vec<NetConfig>,
    /// The disks.
    #[serde(rename = "disk")]
    pub disks: Vec<DiskConfig>,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            engine: EngineKind::Kvm,
            cpu: CpuModel::Host,
            vcpus: 1,
            memory_mib: 256,
            lock_memory: false,
            huge_pages: HugePages::None,
            numa_node: None,
            guest: GuestKind::Builtin,
            kernel: None,
            initrd: None,
            cmdline: String::new(),
            rng: true,
            bus: None,
            console: ConsoleTarget::Socket,
            on_reset: OnReset::Restart,
            on_panic: OnFall::Report,
            on_watchdog: OnFall::Restart,
            #[cfg(feature = "next-version")]
            mark: 0,
            nets: Vec::new(),
            disks: Vec::new(),
        }
    }
}

impl MachineConfig {
    /// What happens to the VM when a card that counts for it reaches nobody here any more.
    #[must_use]
    pub fn on_uplink_loss(&self) -> OnUplinkLoss {
        match self.nets.iter().any(|net| net.on_uplink_loss == OnUplinkLoss::Switchover) {
            true => OnUplinkLoss::Switchover,
            false => OnUplinkLoss::Stay,
        }
    }

    /// Where the guest finds its virtio devices.
    #[must_use]
    pub fn bus(&self) -> BusKind {
        self.bus.unwrap_or(match self.guest {
            GuestKind::Linux | GuestKind::Image => BusKind::Pci,
            GuestKind::Builtin | GuestKind::Freestanding => BusKind::Mmio,
        })
    }
}

/// What boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestKind {
    /// The program built into ftd.
    Builtin,
    /// A Linux kernel.
    Linux,
    /// An ELF program without an operating system.
    Freestanding,
    /// What lies in the first disk.
    Image,
}

/// Where the serial console goes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum ConsoleTarget {
    /// To `ftctl console`.
    Socket,
    /// To the daemon's stdout.
    Stdout,
    /// Into a file.
    File(PathBuf),
}

impl TryFrom<String> for ConsoleTarget {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        match text.as_str() {
            "socket" => Ok(Self::Socket),
            "stdout" => Ok(Self::Stdout),
            _ => match text.strip_prefix("file:") {
                Some(path) if path.starts_with('/') => Ok(Self::File(path.into())),
                _ => Err(ValueError::Console(text)),
            },
        }
    }
}

/// How the VM is protected. Times in milliseconds.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplicationConfig {
    /// Where this node waits for its peer: unless given, the default port of its address on the way to the peer.
    pub listen: Option<SocketAddr>,
    /// What protects the link to the peer.
    pub security: Option<Security>,
    /// How.
    pub mode: Mode,
    /// Length of an epoch, at most.
    pub epoch_ms: u64,
    /// Checkpoints captured and not yet acked, at most.
    pub pipeline_depth: u64,
    /// Their memory, at most.
    pub inflight_mib: u64,
    /// Memory for the copies of pages that deltas are made against.
    pub shadow_mib: u64,
    /// Frames held, at most.
    pub hold_frames: u64,
    /// Their memory, at most.
    pub hold_mib: u64,
    /// How long output may be held: the VM is slowed to keep to it.
    pub hold_ms_max: u64,
    /// The VM is not slowed below this part of its speed, in percent.
    pub guest_speed_min_pct: u64,
    /// What happens where both cannot be kept.
    pub on_overload: OnOverload,
    /// Interval of heartbeats when there is nothing else to say.
    pub heartbeat_ms: u64,
    /// How long a word from the peer permits output.
    pub lease_ms: u64,
    /// Silence after which the peer is suspected.
    pub failure_timeout_ms: u64,
    /// How often the backup tries whether the VM could go on from what it holds, in seconds.
    pub rehearsal_s: u64,
    /// Head start that the backup gives to the primary in the arbitration.
    pub takeover_delay_ms: u64,
    /// The journal of writable disks on this host.
    pub journal_mib: u64,
    /// What the backup has of a checkpoint's disk writes when it acknowledges it.
    pub durability: Durability,
    /// MiB a second of a writable disk's image that are read to be compared with the peer's, or sent; 0: no limit.
    pub disk_copy_mib_s: u64,
}

impl Default for ReplicationConfig {
    fn default() -> Self {
        Self {
            listen: None,
            security: None,
            mode: Mode::Checkpoint,
            epoch_ms: 5,
            pipeline_depth: 4,
            inflight_mib: 64,
            shadow_mib: 256,
            hold_frames: 4096,
            hold_mib: 16,
            hold_ms_max: 100,
            guest_speed_min_pct: 10,
            on_overload: OnOverload::Yield,
            heartbeat_ms: 5,
            lease_ms: 25,
            failure_timeout_ms: 300,
            rehearsal_s: 60,
            takeover_delay_ms: 5,
            journal_mib: 256,
            durability: Durability::Commit,
            disk_copy_mib_s: 0,
        }
    }
}

/// What happens where link or backup carry less than the slowest guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnOverload {
    /// The VM goes on without a backup, which comes back later.
    Yield,
    /// Output is held for longer.
    Hold,
}

/// Prometheus.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Where metrics are served over HTTP, if at all.
    pub listen: Option<SocketAddr>,
}

/// The name of a VM, a node or an arbiter, which is one that a certificate can have: 1 to 32 of a-z, 0-9 and '-', with
/// no '-' at either end.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Name(String);

impl Name {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Name {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        match Party::new(PartyKind::Node, &text) {
            Ok(_) => Ok(Self(text)),
            Err(_) => Err(ValueError::Name(text)),
        }
    }
}

impl FromStr for Name {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        text.to_owned().try_into()
    }
}

/// Why a text is not the value of a key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ValueError {
    /// Not the name of a VM or a node.
    #[error("name '{0}' is not 1 to 32 of a-z, 0-9 and '-', with no '-' at either end")]
    Name(String),
    /// Not a MAC address.
    #[error("mac '{0}' is not of the form 52:54:00:12:34:56")]
    MacForm(String),
    /// More than a MAC address.
    #[error("mac '{0}' has more than six bytes")]
    MacLength(String),
    /// Not the address of one card.
    #[error("mac '{0}' is not a unicast address: its first byte must be even, and not all zero")]
    MacNotUnicast(String),
    /// Not a place for the console.
    #[error("console '{0}' is not one of: socket, stdout, file:/PATH")]
    Console(String),
}

/// Why a configuration file is refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{}: cannot be read: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is longer than any configuration.
    #[error("{}: longer than {FILE_BYTES_MAX} bytes; this is no configuration file", file.display())]
    TooLong {
        /// The file.
        file: PathBuf,
    },
    /// It is not TOML, or has an unknown key or a value of the wrong kind.
    #[error("{}: {source}", file.display())]
    Parse {
        /// The file.
        file: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// A value is out of its range or contradicts another.
    #[error("{}: {key} = {value}: {allowed}", file.display())]
    Value {
        /// The file.
        file: PathBuf,
        /// The key with its sections.
        key: &'static str,
        /// What it holds.
        value: String,
        /// What is allowed.
        allowed: String,
    },
}

impl Config {
    /// Reads and judges a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&file::read(path)?, path)
    }

    /// Judges a text; `file` is for the messages.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = toml::from_str(text)
            .map_err(|source| ConfigError::Parse { file: file.to_owned(), source: Box::new(source) })?;
        if config.state_dir.as_os_str().is_empty() {
            config.state_dir = Path::new("/var/lib/ftd").join(config.vm.as_str());
        }
        if config.control_socket.as_os_str().is_empty() {
            config.control_socket = PathBuf::from(format!("/run/ftd/{}.sock", config.vm));
        }
        let mode = config.replication.mode;
        config.machine.disks.iter_mut().for_each(|disk| disk.settle(mode));
        let refused = |validate::BadValue { key, value, allowed }| ConfigError::Value {
            file: file.to_owned(),
            key,
            value,
            allowed,
        };
        config.validate().map_err(refused)?;
        if config.machine.guest == GuestKind::Builtin {
            config.machine.cmdline = config.machine.builtin_cmdline().map_err(refused)?;
        }
        Ok(config)
    }

    /// What boots when the VM is booted afresh, unless it lies in a disk.
    #[must_use]
    pub fn boot(&self) -> Boot {
        let cmdline = self.machine.cmdline.clone();
        match (self.machine.guest, &self.machine.kernel) {
            (GuestKind::Linux, Some(kernel)) => {
                Boot::Linux { kernel: kernel.clone(), initrd: self.machine.initrd.clone(), cmdline }
            }
            (GuestKind::Freestanding, Some(kernel)) => {
                Boot::Freestanding { image: FreestandingImage::File(kernel.clone()), cmdline }
            }
            // Validation leaves no other guest without a kernel.
            _ => Boot::Freestanding { image: FreestandingImage::BuiltIn, cmdline },
        }
    }
}

#[cfg(test)]
mod tests;
