//! Checks, before the VM runs, that this host has everything the configuration needs. A missing piece gives one clear
//! message and an exit code, instead of a failure in the middle.

use super::service::InstanceLock;
use crate::boot::{self, ImageBootError};
use crate::config::{Config, DiskConfig};
use crate::disks::{self, BesideError, DiskReaderError};
use crate::exit::DaemonExit;
use crate::peer::Listen;
use crate::role::StartAs;
use crate::user::ProcessUser;
use ft_arbiter::{Arbiter, ArbiterError, Cell, Place};
use ft_netbuf::{Tap, TapError};
use ft_ram::{Backing, GuestRam, MemoryError};
use ft_vm::boot::BootError;
use ft_vm::devices::{ConsoleSink, Wiring};
use ft_vm::machine::{Machine, MachineError};
use ft_vm::spec::{Boot, DiskSpec, EngineKind, MachineSpec, NetSpec};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::Duration;
use thiserror::Error;

/// Why this host cannot run the configuration.
#[derive(Debug, Error)]
pub enum HostError {
    /// KVM cannot be used.
    #[error(
        "/dev/kvm: {source}; this host has no usable KVM: load the module, enable virtualisation in the firmware, \
         add this daemon's user to group kvm, to which udev gives the device, or set machine.engine = \"soft\""
    )]
    Kvm {
        /// Why.
        source: io::Error,
    },
    /// A file that the VM needs cannot be read.
    #[error("{key} = {}: cannot be read: {source}", path.display())]
    Unreadable {
        /// The configuration key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The daemon's threads cannot be confined.
    #[error("{0}; confinement = \"none\" does without")]
    Confinement(#[from] ft_confine::ThreadConfineError),
    /// A disk's image cannot be opened, or somebody else uses it.
    #[error("machine.disk.image: {0}")]
    Image(#[from] ft_disk::DiskImageError),
    /// Images, or what stands beside them.
    #[error(transparent)]
    Beside(#[from] BesideError),
    /// A writable disk, or what lies beside it, cannot be used.
    #[error(transparent)]
    Disks(#[from] crate::disks::DisksError),
    /// A file is not what it should be.
    #[error("{key} = {}: {problem}", path.display())]
    Unsuitable {
        /// The configuration key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// There cannot be such a machine here.
    #[error("machine: {0}")]
    Machine(#[from] MachineError),
    /// Nor such memory.
    #[error("machine, its memory: {0}")]
    Memory(#[from] MemoryError),
    /// There is nothing to boot in its image.
    #[error(transparent)]
    NoGuest(#[from] ImageBootError),
    /// Its guest cannot be booted.
    #[error("machine.kernel, machine.initrd or machine.cmdline: {0}")]
    Boot(#[from] BootError),
    /// The TAP cannot be used.
    #[error("machine.net.tap: {0}")]
    Tap(#[from] TapError),
    /// An address cannot be listened on.
    #[error("{key} = {address}: cannot listen there: {source}")]
    Listen {
        /// The configuration key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// This host has no address from which the peer can be reached.
    #[error(
        "peer.address = {address}: this host has no way there, so there is no address to wait for the peer at: \
         {source}; bring the link between the hosts up, or set replication.listen"
    )]
    NoWay {
        /// The peer's address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A directory of the daemon's own cannot be written.
    #[error("{key} = {}: cannot be made and written: {source}", path.display())]
    Directory {
        /// The configuration key.
        key: &'static str,
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The group of the control socket does not exist.
    #[error("control_group = {group}: this host has no such group")]
    NoGroup {
        /// The group.
        group: String,
    },
    /// Nor may this process give it to that group.
    #[error(
        "control_group = {group}: only members may give their socket to it, and this process is {user}: usermod \
         --append --groups {group} USER"
    )]
    NotInGroup {
        /// The group.
        group: String,
        /// This process's user.
        user: ProcessUser,
    },
    /// This host's certificate cannot be used.
    #[error("[tls]: {0}")]
    Credentials(#[from] ft_tls::CredentialError),
    /// The system gives no more threads.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The arbiter's cell cannot be used.
    #[error(transparent)]
    Arbiter(#[from] ArbiterError),
    /// The arbiter does not answer at all.
    #[error("{place}: no answer within {} s: it hangs", ARBITER_LIMIT.as_secs())]
    ArbiterHangs {
        /// Which arbiter.
        place: Place,
    },
}

/// How long a check waits for the arbiter. A daemon that starts goes on without its answer, and says so.
const ARBITER_LIMIT: Duration = Duration::from_secs(3);

/// What became of a question to the arbiter that was not to be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArbiterAnswer {
    /// It could be read and set.
    Given,
    /// None in time.
    Late,
}

/// The VM's own daemon runs on this host already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningHere {
    /// Its process.
    pub process: String,
    /// The keys that were not checked, since it has what they name.
    pub in_use: Vec<&'static str>,
}

impl fmt::Display for RunningHere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { process, in_use } = self;
        write!(f, "the VM's daemon runs on this host (process {process})")?;
        match in_use[..] {
            [] => Ok(()),
            _ => write!(f, "; in use, and not checked: {}", in_use.join(", ")),
        }
    }
}

/// What only one daemon at a time can have.
#[derive(Clone, Copy, Debug)]
enum Claim {
    /// The port at which the peer is waited for.
    Replication,
    /// The port at which remote operators are served.
    Control,
    Metrics,
    Tap,
    /// The images, and the machine that is made with them.
    Images,
}

impl Claim {
    const ALL: [Self; 5] = [Self::Images, Self::Replication, Self::Control, Self::Metrics, Self::Tap];

    fn key(self) -> &'static str {
        match self {
            Self::Replication => "replication.listen",
            Self::Control => "control.listen",
            Self::Metrics => "metrics.listen",
            Self::Tap => "machine.net.tap",
            Self::Images => "machine.disk.image",
        }
    }
}

impl HostError {
    /// How the daemon ends.
    #[must_use]
    pub fn exit(&self) -> DaemonExit {
        match self {
            Self::Arbiter(_) | Self::ArbiterHangs { .. } => DaemonExit::Arbiter,
            Self::Tap(TapError::InUse { .. })
            | Self::Image(ft_disk::DiskImageError::InUse { .. })
            | Self::Beside(BesideError::Image(ft_disk::DiskImageError::InUse { .. })) => DaemonExit::InUse,
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => DaemonExit::InUse,
            _ => DaemonExit::Host,
        }
    }
}

impl Config {
    /// Checks everything that this host must offer, and that the arbiter answers. What the VM's own daemon has, where
    /// that runs here, is rightly in use.
    pub fn check(&self) -> Result<Option<RunningHere>, HostError> {
        let holder = InstanceLock::holder(&self.state_dir);
        self.check_needs()?;
        let mut in_use = Vec::new();
        for claim in Claim::ALL {
            match self.claim(claim) {
                Err(e) if holder.is_some() && e.exit() == DaemonExit::InUse => in_use.push(claim.key()),
                claimed => claimed?,
            }
        }
        match self.in_time(|arbiter| arbiter.probe())? {
            Some(_) => Ok(holder.map(|process| RunningHere { process, in_use })),
            None => Err(HostError::ArbiterHangs { place: self.arbiter(&self.trust()?).place() }),
        }
    }

    /// Whether the arbiter could be read and set now. Storage that hangs keeps a thread, and nobody else.
    pub fn ask_arbiter(&self) -> Result<ArbiterAnswer, HostError> {
        match self.in_time(|arbiter| arbiter.probe()) {
            Ok(Some(_)) => Ok(ArbiterAnswer::Given),
            Ok(None) => Ok(ArbiterAnswer::Late),
            Err(HostError::Arbiter(error)) if error.trouble.is_silence() => Ok(ArbiterAnswer::Late),
            Err(error) => Err(error),
        }
    }

    /// The cell, if the arbiter answers in time.
    pub fn read_cell(&self) -> Result<Option<Cell>, HostError> {
        let answer = self.in_time(|arbiter| arbiter.read())?;
        let place = self.arbiter(&self.trust()?).place();
        answer.ok_or(HostError::ArbiterHangs { place })
    }

    /// What the arbiter answers; none: nothing in time.
    fn in_time<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut dyn Arbiter) -> Result<T, ArbiterError> + Send + 'static,
    ) -> Result<Option<T>, HostError> {
        let (answer, answered) = sync_channel(1);
        let mut arbiter = self.arbiter(&self.trust()?);
        std::thread::Builder::new()
            .name("ftd-check".into())
            .spawn(move || drop(answer.send(ask(arbiter.as_mut()))))
            .map_err(HostError::Thread)?;
        Ok(answered.recv_timeout(ARBITER_LIMIT).ok().transpose()?)
    }

    /// Checks everything that this host must offer itself. Nothing is left changed but directories of the daemon's own
    /// that it made; the TAP and the ports are taken for a moment.
    pub fn check_host(&self) -> Result<(), HostError> {
        self.check_needs()?;
        Claim::ALL.into_iter().try_for_each(|claim| self.claim(claim))
    }

    /// Checks all but what only one daemon at a time can have.
    fn check_needs(&self) -> Result<(), HostError> {
        self.trust()?;
        if self.machine.engine == EngineKind::Kvm {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/kvm")
                .map_err(|source| HostError::Kvm { source })?;
        }
        for (key, path) in
            [("machine.kernel", &self.machine.kernel), ("machine.initrd", &self.machine.initrd)]
        {
            if let Some(path) = path {
                readable_file(key, path)?;
            }
        }
        disks::check(self)?;
        writable_directory("state_dir", &self.state_dir)?;
        if let Some(directory) = self.control_socket.parent() {
            writable_directory("control_socket", directory)?;
        }
        if let Some(group) = &self.control_group {
            let found = nix::unistd::Group::from_name(group).ok().flatten();
            let found = found.ok_or_else(|| HostError::NoGroup { group: group.clone() })?;
            let user = ProcessUser::now();
            if !user.may_give_to(found.gid) {
                return Err(HostError::NotInGroup { group: group.clone(), user });
            }
        }
        Ok(())
    }

    /// Takes it for a moment.
    fn claim(&self, claim: Claim) -> Result<(), HostError> {
        match claim {
            Claim::Replication => {
                let address = self
                    .listen()
                    .address(self.peer.address)
                    .map_err(|source| HostError::NoWay { address: self.peer.address, source })?;
                can_listen(claim.key(), address)
            }
            Claim::Control => self.control.listen.map_or(Ok(()), |address| can_listen(claim.key(), address)),
            Claim::Metrics => self.metrics.listen.map_or(Ok(()), |address| can_listen(claim.key(), address)),
            Claim::Tap => {
                for net in &self.machine.nets {
                    Tap::open(&net.tap)?.set_up()?;
                }
                Ok(())
            }
            Claim::Images => self.try_boot(&self.machine_spec()?),
        }
    }

    /// Boots the guest in a machine that never runs: what is wrong with it is found before the cell says that it runs.
    fn try_boot(&self, spec: &MachineSpec) -> Result<(), HostError> {
        let boot = self.find_guest()?;
        let disks = super::wiring::open_disks(self)?;
        let ram = GuestRam::held(spec.ram_bytes, Backing { lock: false, ..self.machine.backing() })?;
        let wiring = Wiring { frames: None, console: Box::new(NoConsole), disks };
        let mut machine = Machine::new(spec, &ram, wiring)?;
        match boot {
            Some(boot) => Ok(machine.boot(&boot)?),
            None => Ok(()),
        }
    }

    /// What would be booted. None: nothing that can be used is in its image, which need not be so, since this node is
    /// not the one that boots it first. A backup's image becomes the primary's.
    fn find_guest(&self) -> Result<Option<Boot>, HostError> {
        let is_to_boot = || {
            let cell = self.read_cell();
            self.start_as == StartAs::Primary
                && cell.is_ok_and(|cell| cell.is_none_or(|cell| cell.owner.is_none()))
        };
        match boot::would_boot(self) {
            Ok(boot) => Ok(Some(boot)),
            Err(ImageBootError::Disk(DiskReaderError::Beside(why))) => Err(why.into()),
            Err(why) if is_to_boot() => Err(why.into()),
            Err(why) => {
                tracing::debug!("{why}");
                Ok(None)
            }
        }
    }

    /// The machine, as both nodes must agree on it. Reads the disks' sizes.
    pub fn machine_spec(&self) -> Result<MachineSpec, HostError> {
        let spec = |disk: &DiskConfig| {
            Ok(DiskSpec { bytes: ft_disk::image_bytes(&disk.image)?, read_only: disk.read_only })
        };
        let disks = self.machine.disks.iter().map(spec).collect::<Result<_, HostError>>()?;
        Ok(MachineSpec {
            engine: self.machine.engine,
            vcpus: self.machine.vcpus,
            ram_bytes: self.machine.memory_mib << 20,
            nets: self.machine.nets.iter().map(|net| NetSpec { mac: net.mac.0, mtu: net.mtu }).collect(),
            disks,
            rng: self.machine.rng,
            bus: self.machine.bus(),
            cpu: self.machine.cpu,
        })
    }

    /// Where the peer is waited for.
    #[must_use]
    pub fn listen(&self) -> Listen {
        self.replication.listen.map_or(Listen::TowardsPeer, Listen::At)
    }
}

/// The console of a machine that says nothing.
pub(super) struct NoConsole;

impl ConsoleSink for NoConsole {
    fn write(&mut self, _: &[u8]) {}
}

/// Whether it is a readable regular file.
fn readable_file(key: &'static str, path: &Path) -> Result<(), HostError> {
    let unreadable = |source| HostError::Unreadable { key, path: path.to_owned(), source };
    // Judged before it is opened: opening a FIFO would wait for its writer.
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        let problem = "it is not a regular file".to_owned();
        return Err(HostError::Unsuitable { key, path: path.to_owned(), problem });
    }
    File::open(path).map(drop).map_err(unreadable)
}

fn writable_directory(key: &'static str, path: &Path) -> Result<(), HostError> {
    fs::create_dir_all(path)
        .and_then(|()| {
            Ok(nix::unistd::access(path, nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK)?)
        })
        .map_err(|source| HostError::Directory { key, path: path.to_owned(), source })
}

fn can_listen(key: &'static str, address: SocketAddr) -> Result<(), HostError> {
    TcpListener::bind(address).map(drop).map_err(|source| HostError::Listen { key, address, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host {
        directory: tempfile::TempDir,
        text: String,
    }

    impl Host {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let base = directory.path().display();
            let text = format!(
                r#"
                vm = "web"
                node = "alpha"
                start_as = "primary"
                state_dir = "{base}/state"
                control_socket = "{base}/run/web.sock"
                peer = {{ node = "beta", address = "127.0.0.1:1" }}
                arbiter = {{ path = "{base}/web.cell" }}
                replication = {{ listen = "127.0.0.1:0" }}
                [machine]
                engine = "soft"
                "#
            );
            Self { directory, text }
        }

        fn with(mut self, line: &str) -> Self {
            self.text.push_str(line);
            self
        }

        fn replaced(mut self, from: &str, to: &str) -> Self {
            self.text = self.text.replace(from, to);
            self
        }

        fn check(&self) -> Result<Option<RunningHere>, HostError> {
            Config::parse(&self.text, Path::new("test.toml")).unwrap().check()
        }

        fn refused(&self, exit: DaemonExit, message: &str) {
            let error = self.check().expect_err(message);
            assert!(error.to_string().contains(message), "{error}");
            assert_eq!(error.exit(), exit, "{error}");
        }
    }

    #[test]
    fn a_host_that_can_run_it_passes() {
        assert_eq!(Host::new().check().unwrap(), None);
    }

    #[test]
    fn a_host_passes_for_kvm_if_it_has_it() {
        let there = OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
        let host = Host::new().replaced("engine = \"soft\"", "engine = \"kvm\"");
        match there {
            true => drop(host.check().unwrap()),
            false => host.refused(DaemonExit::Host, "/dev/kvm"),
        }
    }

    #[test]
    fn what_is_missing_is_named_with_its_exit_code() {
        let host = Host::new().with("guest = \"linux\"\nkernel = \"/nowhere/vmlinuz\"");
        host.refused(DaemonExit::Host, "machine.kernel = /nowhere/vmlinuz: cannot be read: No such file");
        let host = Host::new().with("guest = \"linux\"\nkernel = \"/dev\"");
        host.refused(DaemonExit::Host, "machine.kernel = /dev: it is not a regular file");
        let host = Host::new().replaced("/web.cell", "/not-mounted/web.cell");
        host.refused(DaemonExit::Arbiter, "not-mounted/web.cell: looking for its directory: No such file");
        let host = Host::new().replaced("/state\"", "/a-file/state\"");
        fs::write(host.directory.path().join("a-file"), "").unwrap();
        host.refused(DaemonExit::Host, "a-file/state: cannot be made and written");
        let host = Host::new().replaced("start_as", "control_group = \"no-such-group\"\nstart_as");
        host.refused(DaemonExit::Host, "control_group = no-such-group");

        let host = Host::new();
        let image = host.directory.path().join("disk");
        fs::write(&image, [0; 700]).unwrap();
        let host = host.with(&format!("[[machine.disk]]\nimage = \"{}\"\nread_only = true", image.display()));
        host.refused(DaemonExit::Host, "disk: 700 bytes is not a positive multiple of 512");

        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = Host::new().replaced("127.0.0.1:0", &taken.local_addr().unwrap().to_string());
        host.refused(DaemonExit::InUse, "replication.listen = 127.0.0.1:");
        let mut config = Config::parse(&Host::new().text, Path::new("test.toml")).unwrap();
        config.control.listen = Some(taken.local_addr().unwrap());
        assert!(config.check().unwrap_err().to_string().starts_with("control.listen = 127.0.0.1:"));
        let host = Host::new().replaced("\"127.0.0.1:0\"", "\"192.0.2.1:7400\", security = \"none\"");
        host.refused(DaemonExit::Host, "cannot listen there");
    }

    /// It hangs: the kernel takes connections, and nobody serves them.
    #[test]
    fn a_service_or_an_etcd_that_hangs_is_waited_for_as_storage_that_hangs_and_told_by_a_check() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = silent.local_addr().unwrap();
        for (kind, told) in [
            (format!("kind = \"service\", address = \"{address}\""), "no answer for 800 ms"),
            (format!("kind = \"etcd\", endpoints = [\"http://{address}\"]"), "not answered within 900 ms"),
        ] {
            let host = Host::new();
            let path = format!("path = \"{}/web.cell\"", host.directory.path().display());
            let host = host.replaced(&path, &kind);
            let config = Config::parse(&host.text, Path::new("test.toml")).unwrap();
            assert_eq!(config.ask_arbiter().unwrap(), ArbiterAnswer::Late, "{kind}");
            host.refused(DaemonExit::Arbiter, told);
        }
        drop(silent);
        let host = Host::new();
        let path = format!("path = \"{}/web.cell\"", host.directory.path().display());
        let host = host.replaced(&path, &format!("kind = \"service\", address = \"{address}\""));
        let config = Config::parse(&host.text, Path::new("test.toml")).unwrap();
        assert!(config.ask_arbiter().is_err(), "nobody is there");
    }

    #[test]
    fn what_the_vms_own_daemon_has_is_no_fault_and_what_it_has_not_is_checked() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = Host::new().replaced("127.0.0.1:0", &taken.local_addr().unwrap().to_string());
        let _running = InstanceLock::acquire(&host.directory.path().join("state")).unwrap();
        let process = std::process::id().to_string();
        let running = RunningHere { process, in_use: vec!["replication.listen"] };
        assert_eq!(host.check().unwrap(), Some(running));
        host.replaced("/web.cell", "/not-mounted/web.cell").refused(DaemonExit::Arbiter, "not-mounted");
    }
}
