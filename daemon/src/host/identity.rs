//! What this host tells its peer of itself in a handshake: all that resuming depends on, in the operator's words.

use crate::config::{Config, GuestKind, MachineConfig};
use crate::nonce::random_nonce;
use ft_checkpoint::wire::handshake::PROTOCOL;
use ft_checkpoint::wire::identity::{Fact, STATE_FORMAT, Versions, Weight};
use ft_checkpoint::wire::message::{Identity, Mode};
use ft_vm::machine::{MachineError, cpu_profile, engine_fingerprint};
use ft_vm::spec::{BusKind, CpuModel, DiskSpec, EngineKind, MachineSpec, NetSpec};
use ft_vm::state::{STATE_OLDEST, STATE_VERSION};

/// Why this host cannot be described.
#[derive(Debug, thiserror::Error)]
pub enum DescribeError {
    /// The processor does not tell.
    #[error("cannot describe this host's processor to the peer: {0}")]
    Processor(#[from] MachineError),
    /// Its description cannot be written.
    #[error("cannot describe this host's processor to the peer: {0}")]
    Write(#[from] serde_json::Error),
}

/// All that is known without reading a file of the machine's.
pub fn identity(config: &Config, spec: &MachineSpec) -> Result<Identity, DescribeError> {
    Ok(Identity {
        protocol: PROTOCOL,
        vm: config.vm.to_string(),
        node: config.node.to_string(),
        peer: config.peer.node.to_string(),
        process: random_nonce(),
        generation: 0,
        facts: facts(config, spec)?,
    })
}

/// The processor that the guest sees, for people; none on the engine that has one of its own.
pub fn processor(config: &Config) -> Result<Option<String>, MachineError> {
    match config.machine.engine {
        EngineKind::Soft => Ok(None),
        EngineKind::Kvm => {
            let profile = cpu_profile(config.machine.cpu)?;
            Ok(Some(format!(
                "{:?}: {}, family {}, model {}",
                config.machine.cpu.to_string(),
                profile.vendor,
                profile.family,
                profile.model
            )))
        }
    }
}

/// A writable disk is told by its size: its content is made equal.
fn disk_facts(config: &Config, disks: &[DiskSpec]) -> Vec<Fact> {
    let mut facts = Vec::new();
    for (number, disk) in (1..).zip(disks) {
        facts.push(Fact::equal(format!("disk {number}: machine.disk.read_only"), disk.read_only));
        if !disk.read_only {
            facts.push(Fact::equal(format!("disk {number}: bytes of its image"), disk.bytes));
        }
    }
    if config.has_writable_disk() {
        let replication = &config.replication;
        facts.push(Fact::equal("replication.journal_mib", replication.journal_mib));
        facts.push(Fact::equal(
            "replication.durability",
            format!("{:?}", replication.durability).to_lowercase(),
        ));
    }
    facts
}

/// By its name. The version before has only the host's, and does not say so.
fn processor_fact(model: CpuModel) -> Fact {
    let weight = if model == CpuModel::Host { Weight::Optional } else { Weight::Required };
    Fact { weight, ..Fact::equal("machine.cpu", model) }
}

fn facts(config: &Config, spec: &MachineSpec) -> Result<Vec<Fact>, DescribeError> {
    // Every field by name, so that a new one cannot be forgotten here. Read-only disks are told by content, see
    // `contents`.
    let MachineSpec { engine, vcpus, ram_bytes, nets, disks, rng, bus, cpu } = spec;
    let (machine, replication) = (&config.machine, &config.replication);
    let of_cards = |tell: fn(&NetSpec) -> String| match nets.as_slice() {
        [] => "no network card".to_owned(),
        nets => nets.iter().map(tell).collect::<Vec<_>>().join(", "),
    };
    let macs = of_cards(|net| net.mac.map(|byte| format!("{byte:02x}")).join(":"));
    let mtus = of_cards(|net| net.mtu.to_string());
    let cmdline = match machine.guest {
        GuestKind::Builtin => "machine.net.addresses (the built-in guest's command line)",
        GuestKind::Linux | GuestKind::Freestanding | GuestKind::Image => "machine.cmdline",
    };
    let yes_or_no = |yes| if yes { "yes" } else { "no" };
    let mut facts = vec![
        Fact::versions(STATE_FORMAT, Versions { oldest: STATE_OLDEST, newest: STATE_VERSION }),
        Fact::equal("replication.mode", replication.mode),
        Fact::equal("replication.lease_ms", replication.lease_ms),
        Fact::equal("machine.engine", engine),
        Fact::equal("machine.vcpus", vcpus),
        Fact::equal("machine.memory_mib", ram_bytes >> 20),
        Fact::equal("machine.net.mac", macs),
        Fact::equal("machine.net.mtu", mtus),
        Fact::equal("machine.rng", yes_or_no(*rng)),
        Fact::equal("number of disks", disks.len()),
        Fact::equal("machine.on_reset", format!("{:?}", machine.on_reset).to_lowercase()),
        Fact::equal("machine.guest", format!("{:?}", machine.guest).to_lowercase()),
        Fact::equal_shown(cmdline, machine.cmdline.as_str(), format!("{:?}", machine.cmdline)),
    ];
    facts.extend(disk_facts(config, disks));
    // As long as the guest does with itself what it likes, the version before does the same.
    let defaults = MachineConfig::default();
    for (name, ours, default) in [
        ("machine.on_panic", machine.on_panic, defaults.on_panic),
        ("machine.on_watchdog", machine.on_watchdog, defaults.on_watchdog),
    ] {
        if ours != default {
            facts.push(Fact::equal(name, format!("{ours:?}").to_lowercase()));
        }
    }
    // The version before has nothing but virtio-mmio, and does not say so.
    if *bus != BusKind::Mmio {
        facts.push(Fact::equal("machine.bus", bus));
    }
    facts.push(processor_fact(*cpu));
    // As long as it has none, the version before may have the same machine.
    #[cfg(feature = "next-version")]
    if machine.mark != 0 {
        facts.push(Fact::equal("machine.mark", machine.mark));
    }
    match engine {
        EngineKind::Kvm => facts.push(Fact::processor(serde_json::to_vec(&cpu_profile(*cpu)?)?)),
        // The guest sees nothing of the host's processor.
        EngineKind::Soft => {}
    }
    if replication.mode == Mode::Replay {
        // A backup that goes on from state may be of another build; one that executes what was executed may not.
        let build = format!("{:016x}", engine_fingerprint(*engine));
        facts.push(Fact::equal("build of the engine `soft` (install the same ftd on both)", build));
        facts.push(Fact::versions(
            "format of the event log",
            Versions::only(ft_vm::replay::log::LOG_VERSION.into()),
        ));
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DiskConfig, Durability};
    use ft_checkpoint::wire::handshake::{Side, check};
    use std::path::Path;

    fn config() -> Config {
        let example = include_str!("../../../scripts/systemd/ftd.example.toml");
        let mut config = Config::parse(example, Path::new("ftd.toml")).unwrap();
        config.machine.disks = vec![DiskConfig {
            image: "/disk.img".into(),
            read_only: false,
            base: None,
            io_engine: Default::default(),
            on_io_error: Default::default(),
        }];
        config
    }

    /// What a primary says to a backup that differs from it in this.
    fn refusal(differ: impl FnOnce(&mut Config, &mut DiskSpec)) -> Option<String> {
        let said = |node: &str, peer: &str, config: &Config, bytes| {
            let state = Fact::versions(STATE_FORMAT, Versions::only(STATE_VERSION));
            Identity {
                protocol: PROTOCOL,
                vm: "web".into(),
                node: node.into(),
                peer: peer.into(),
                process: random_nonce(),
                generation: 0,
                facts: [vec![state], disk_facts(config, &[DiskSpec { bytes, read_only: false }])].concat(),
            }
        };
        let (mut theirs, mut disk) = (config(), DiskSpec { bytes: 1 << 30, read_only: false });
        differ(&mut theirs, &mut disk);
        let (theirs, ours) = (said("b", "a", &theirs, disk.bytes), said("a", "b", &config(), 1 << 30));
        let fits = |_: &[u8], _: &[u8]| Ok::<(), String>(());
        check(&theirs, &ours, Side::Primary, fits).err().map(|refusal| refusal.to_string())
    }

    #[test]
    fn hosts_that_promise_different_things_of_a_disk_are_refused_by_name_and_value() {
        assert_eq!(refusal(|_, _| {}), None);
        let told = |text: Option<String>, parts: [&str; 3]| {
            let text = text.expect("it should be refused");
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        };
        let durability = refusal(|theirs, _| theirs.replication.durability = Durability::Sync);
        told(durability, ["replication.durability", "sync", "commit"]);
        let journal = refusal(|theirs, _| theirs.replication.journal_mib = 512);
        told(journal, ["replication.journal_mib", "512", "256"]);
        let size = refusal(|_, disk| disk.bytes = 1 << 20);
        told(size, ["disk 1: bytes of its image", "1048576", "1073741824"]);
    }

    #[test]
    fn hosts_with_unlike_processors_by_name_are_refused_by_these_names_and_an_older_one_may_know_none() {
        let says = |node: &str, peer: &str, facts: Vec<Fact>| Identity {
            protocol: PROTOCOL,
            vm: "web".into(),
            node: node.into(),
            peer: peer.into(),
            process: random_nonce(),
            generation: 0,
            facts: [vec![Fact::versions(STATE_FORMAT, Versions::only(STATE_VERSION))], facts].concat(),
        };
        let refusal = |theirs: Vec<Fact>, ours: Vec<Fact>| {
            let fits = |_: &[u8], _: &[u8]| Ok::<(), String>(());
            check(&says("b", "a", theirs), &says("a", "b", ours), Side::Primary, fits)
                .err()
                .map(|refusal| refusal.to_string())
        };
        let of = |model| vec![processor_fact(model)];
        assert_eq!(refusal(of(CpuModel::X86_64V3), of(CpuModel::X86_64V3)), None);
        let text = refusal(of(CpuModel::X86_64V3), of(CpuModel::Host)).expect("it should be refused");
        assert!(["machine.cpu", "x86-64-v3", "host"].iter().all(|part| text.contains(part)), "{text}");
        assert_eq!(refusal(of(CpuModel::Host), Vec::new()), None);
        let text = refusal(Vec::new(), of(CpuModel::X86_64V2)).expect("it should be refused");
        assert!(text.contains("machine.cpu: a has x86-64-v2, b has none"), "{text}");
    }

    #[test]
    fn a_bus_that_the_version_before_does_not_have_is_said_and_one_that_it_has_is_not() {
        let mut config = config();
        config.machine.engine = EngineKind::Soft;
        let spec = |bus| {
            let (nets, disks) = (vec![], vec![DiskSpec { bytes: 1 << 30, read_only: false }]);
            let (engine, cpu) = (EngineKind::Soft, CpuModel::Host);
            MachineSpec { engine, vcpus: 1, ram_bytes: 1 << 28, nets, disks, rng: true, bus, cpu }
        };
        let says = |bus| facts(&config, &spec(bus)).unwrap().iter().any(|fact| fact.name == "machine.bus");
        assert_eq!((says(BusKind::Pci), says(BusKind::Mmio)), (true, false));
    }
}
