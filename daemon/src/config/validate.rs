//! The rules of a configuration beyond the types of its values: ranges, and values that must fit each other.

use super::{Config, GuestKind, MachineConfig};
use ft_checkpoint::wire::message::Mode;
use ft_netbuf::tap;
use ft_vm::guest::Settings;
use ft_vm::spec::{BusKind, CpuModel, EngineKind, MODEL_RAM_BYTES_MAX, MTUS, NETS_MAX};
use std::fmt::Display;
use std::net::IpAddr;
use std::ops::RangeInclusive;

impl Config {
    pub(super) fn validate(&self) -> Result<(), BadValue> {
        if self.peer.node == self.node {
            return refuse("peer.node", &self.peer.node, "must differ from node, which names this node");
        }
        if self.control_group.as_deref() == Some("") {
            return refuse("control_group", "\"\"", "must name a group, or be left out");
        }
        self.validate_paths()?;
        self.arbiter.validate(self.tls.is_some())?;
        self.validate_link()?;
        self.validate_control()?;
        self.validate_machine()?;
        self.validate_disks()?;
        self.validate_replication()?;
        self.validate_engine()
    }

    fn validate_paths(&self) -> Result<(), BadValue> {
        let machine = &self.machine;
        let paths = [
            ("state_dir", Some(&self.state_dir)),
            ("control_socket", Some(&self.control_socket)),
            ("machine.kernel", machine.kernel.as_ref()),
            ("machine.initrd", machine.initrd.as_ref()),
            ("arbiter.path", self.arbiter.path.as_ref()),
            ("arbiter.password_file", self.arbiter.password_file.as_ref()),
            ("arbiter.ca", self.arbiter.ca.as_ref()),
            ("tls.ca", self.tls.as_ref().map(|tls| &tls.ca)),
            ("tls.identity", self.tls.as_ref().map(|tls| &tls.identity)),
        ];
        let disks = machine.disks.iter().map(|disk| ("machine.disk.image", Some(&disk.image)));
        let bases = machine.disks.iter().map(|disk| ("machine.disk.base", disk.base.as_ref()));
        for (key, path) in paths.into_iter().chain(disks).chain(bases) {
            if let Some(path) = path
                && (!path.is_absolute() || path.file_name().is_none())
            {
                return refuse(key, path.display(), "must be an absolute path");
            }
        }
        // sockaddr_un has 108 bytes with the terminating zero.
        if self.control_socket.as_os_str().len() > 107 {
            return refuse("control_socket", self.control_socket.display(), "must be at most 107 bytes long");
        }
        Ok(())
    }

    fn validate_machine(&self) -> Result<(), BadValue> {
        let machine = &self.machine;
        within("machine.vcpus", u64::from(machine.vcpus), 1..=64)?;
        within("machine.memory_mib", machine.memory_mib, 16..=1 << 20)?;
        if !machine.memory_mib.is_multiple_of(2) {
            return refuse(
                "machine.memory_mib",
                machine.memory_mib,
                "must be even: guest memory is made of 2 MiB pages",
            );
        }
        let guest = match machine.guest {
            GuestKind::Builtin => "builtin",
            GuestKind::Linux => "linux",
            GuestKind::Freestanding => "freestanding",
            GuestKind::Image => "image",
        };
        match (machine.guest, &machine.kernel, &machine.initrd) {
            (GuestKind::Linux | GuestKind::Freestanding, None, _) => {
                return refuse(
                    "machine.guest",
                    guest,
                    "needs machine.kernel, the path of the kernel or program to boot",
                );
            }
            (GuestKind::Builtin, Some(kernel), _) => {
                return refuse(
                    "machine.kernel",
                    kernel.display(),
                    "the builtin guest takes none; set machine.guest to \"linux\" or \"freestanding\"",
                );
            }
            (GuestKind::Image, ..) if machine.disks.is_empty() => {
                return refuse("machine.guest", guest, "needs a disk: what lies in the first one is booted");
            }
            (GuestKind::Image, Some(kernel), _) => {
                let allowed = "machine.guest = \"image\" takes none: it boots the kernel in the first disk";
                return refuse("machine.kernel", kernel.display(), allowed);
            }
            (GuestKind::Builtin | GuestKind::Freestanding | GuestKind::Image, _, Some(initrd)) => {
                return refuse(
                    "machine.initrd",
                    initrd.display(),
                    "only machine.guest = \"linux\" takes one",
                );
            }
            _ => {}
        }
        let runs_linux = matches!(machine.guest, GuestKind::Linux | GuestKind::Image);
        if !runs_linux && machine.bus() == BusKind::Pci {
            let why = format!("the {guest} guest finds its devices on \"mmio\" only");
            return refuse("machine.bus", "pci", why);
        }
        if machine.cmdline.len() > 2000 || machine.cmdline.contains('\0') {
            return refuse(
                "machine.cmdline",
                &machine.cmdline,
                "must be at most 2000 bytes long, without zero bytes",
            );
        }
        self.validate_cards()
    }

    fn validate_cards(&self) -> Result<(), BadValue> {
        let cards = &self.machine.nets;
        within("machine.net (their number)", cards.len() as u64, 0..=NETS_MAX as u64)?;
        for (index, net) in cards.iter().enumerate() {
            let others = &cards[..index];
            if !tap::is_interface_name(&net.tap) {
                return refuse(
                    "machine.net.tap",
                    &net.tap,
                    format!(
                        "must be an interface name: 1 to {} bytes, no '/', ':' or space",
                        tap::NAME_BYTES_MAX
                    ),
                );
            }
            within("machine.net.mtu", net.mtu.into(), u64::from(*MTUS.start())..=u64::from(*MTUS.end()))?;
            if let Some(uplink) = &net.uplink
                && !tap::is_interface_name(uplink)
            {
                return refuse("machine.net.uplink", uplink, "must be an interface name");
            }
            within("machine.net.addresses (their number)", net.addresses.len() as u64, 0..=64)?;
            if others.iter().any(|other| other.tap == net.tap) {
                return refuse(
                    "machine.net.tap",
                    &net.tap,
                    "another card has it; each needs a TAP of its own",
                );
            }
            if others.iter().any(|other| other.mac == net.mac) {
                let allowed = "another card has it; each needs an address of its own";
                return refuse("machine.net.mac", net.mac, allowed);
            }
            let twice = net.addresses.iter().find(|a| others.iter().any(|other| other.addresses.contains(a)));
            if let Some(address) = twice {
                return refuse("machine.net.addresses", address, "another card has it");
            }
        }
        Ok(())
    }

    fn validate_replication(&self) -> Result<(), BadValue> {
        let r = &self.replication;
        within("replication.epoch_ms", r.epoch_ms, 1..=1000)?;
        within("replication.pipeline_depth", r.pipeline_depth, 1..=64)?;
        within("replication.inflight_mib", r.inflight_mib, 1..=1 << 16)?;
        within("replication.shadow_mib", r.shadow_mib, 0..=1 << 20)?;
        within("replication.hold_frames", r.hold_frames, 16..=1 << 20)?;
        within("replication.hold_mib", r.hold_mib, 1..=1 << 12)?;
        within("replication.hold_ms_max", r.hold_ms_max, 10..=60_000)?;
        within("replication.guest_speed_min_pct", r.guest_speed_min_pct, 1..=100)?;
        within("replication.heartbeat_ms", r.heartbeat_ms, 1..=10_000)?;
        within("replication.lease_ms", r.lease_ms, 2..=60_000)?;
        within("replication.failure_timeout_ms", r.failure_timeout_ms, 10..=600_000)?;
        within("recovery.boot_delay_s", self.recovery.boot_delay_s, 1..=86_400)?;
        within("replication.rehearsal_s", r.rehearsal_s, 1..=86_400)?;
        within("replication.takeover_delay_ms", r.takeover_delay_ms, 0..=60_000)?;
        if r.hold_ms_max < 2 * r.epoch_ms {
            let allowed = format!(
                "must be at least twice epoch_ms ({}): a frame waits for its epoch's end first",
                r.epoch_ms
            );
            return refuse("replication.hold_ms_max", r.hold_ms_max, allowed);
        }
        if r.lease_ms < 2 * r.heartbeat_ms {
            let allowed = format!(
                "must be at least twice heartbeat_ms ({}), or output would stop between two heartbeats",
                r.heartbeat_ms
            );
            return refuse("replication.lease_ms", r.lease_ms, allowed);
        }
        if r.lease_ms >= r.failure_timeout_ms {
            let allowed = format!(
                "must be below failure_timeout_ms ({}): the permission to send must end before the peer may take over",
                r.failure_timeout_ms
            );
            return refuse("replication.lease_ms", r.lease_ms, allowed);
        }
        Ok(())
    }
}

impl Config {
    fn validate_engine(&self) -> Result<(), BadValue> {
        let engine = self.machine.engine;
        if self.replication.mode == Mode::Replay && engine != EngineKind::Soft {
            let allowed =
                "cannot stop at an exact instruction, as mode = \"replay\" needs; set engine = \"soft\"";
            return refuse("machine.engine", engine, allowed);
        }
        if engine == EngineKind::Soft && self.machine.vcpus > 1 {
            return refuse(
                "machine.vcpus",
                self.machine.vcpus,
                "engine = \"soft\" has one vCPU; set it to 1",
            );
        }
        self.machine.validate_cpu()?;
        within("replay.batch_us", self.replay.batch_us, 100..=100_000)?;
        within("replay.lag_ms_max", self.replay.lag_ms_max, 10..=60_000)?;
        if self.replay.batch_us > self.replay.lag_ms_max * 500 {
            let allowed =
                format!("must be at most half of replay.lag_ms_max ({} ms)", self.replay.lag_ms_max);
            return refuse("replay.batch_us", self.replay.batch_us, allowed);
        }
        Ok(())
    }
}

impl MachineConfig {
    fn validate_cpu(&self) -> Result<(), BadValue> {
        if self.cpu == CpuModel::Host {
            return Ok(());
        }
        if self.engine == EngineKind::Soft {
            let allowed =
                "engine = \"soft\" has a processor of its own, the same on every host: leave cpu out";
            return refuse("machine.cpu", self.cpu, allowed);
        }
        if self.memory_mib << 20 > MODEL_RAM_BYTES_MAX {
            let allowed = format!(
                "must be at most {} with cpu = \"{}\", whose addresses have 39 bits; \"host\" has the host's",
                MODEL_RAM_BYTES_MAX >> 20,
                self.cpu
            );
            return refuse("machine.memory_mib", self.memory_mib, allowed);
        }
        Ok(())
    }

    /// The built-in guest's command line with everything spelled out. It answers where `net.addresses` says, which is
    /// what is announced for it.
    pub(super) fn builtin_cmdline(&self) -> Result<String, BadValue> {
        const ADDRESSES: &str = "machine.net.addresses";
        const ONE: &str = "the builtin guest has one IPv4 address: list that one, or none";
        let address = match self.nets.first().map_or(&[][..], |net| &net.addresses) {
            [] => None,
            [IpAddr::V4(address)] => Some(*address),
            several => {
                let several: Vec<_> = several.iter().map(IpAddr::to_string).collect();
                return Err(BadValue::new(ADDRESSES, several.join(", "), ONE));
            }
        };
        let cmdline = &self.cmdline;
        let settings = Settings::parse(cmdline, address)
            .map_err(|error| BadValue::new("machine.cmdline", cmdline, error.to_string()))?;
        match address {
            Some(address) if address != settings.address => {
                let allowed = format!("ip= must be {address}, the address in {ADDRESSES}, or be left out");
                Err(BadValue::new("machine.cmdline", cmdline, allowed))
            }
            _ => Ok(settings.to_string()),
        }
    }
}

/// A value that is refused.
pub(super) struct BadValue {
    pub(super) key: &'static str,
    pub(super) value: String,
    pub(super) allowed: String,
}

impl BadValue {
    fn new(key: &'static str, value: impl Display, allowed: impl Into<String>) -> Self {
        Self { key, value: value.to_string(), allowed: allowed.into() }
    }
}

pub(super) fn refuse(
    key: &'static str,
    value: impl Display,
    allowed: impl Into<String>,
) -> Result<(), BadValue> {
    Err(BadValue::new(key, value, allowed))
}

pub(super) fn within(key: &'static str, value: u64, range: RangeInclusive<u64>) -> Result<(), BadValue> {
    if range.contains(&value) {
        return Ok(());
    }
    refuse(key, value, format!("must be {} to {}", range.start(), range.end()))
}
