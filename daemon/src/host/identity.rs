//! What this host tells its peer of itself in a handshake: all that resuming depends on, in the operator's words.

use crate::config::{Config, GuestKind};
use crate::nonce::random_nonce;
use ft_checkpoint::wire::handshake::PROTOCOL;
use ft_checkpoint::wire::identity::{Fact, STATE_FORMAT, Versions};
use ft_checkpoint::wire::message::{Identity, Mode};
use ft_vm::machine::{MachineError, engine_fingerprint, host_cpu_profile};
use ft_vm::spec::{DiskSpec, EngineKind, MachineSpec};
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

fn facts(config: &Config, spec: &MachineSpec) -> Result<Vec<Fact>, DescribeError> {
    // Every field by name, so that a new one cannot be forgotten here. Read-only disks are told by content, see
    // `contents`.
    let MachineSpec { engine, vcpus, ram_bytes, net, disks, rng } = spec;
    let (machine, replication) = (&config.machine, &config.replication);
    let card = match net {
        Some(net) => net.mac.map(|byte| format!("{byte:02x}")).join(":"),
        None => "no network card".to_owned(),
    };
    let mtu = net.as_ref().map_or_else(|| "no network card".to_owned(), |net| net.mtu.to_string());
    let cmdline = match machine.guest {
        GuestKind::Builtin => "machine.net.addresses (the built-in guest's command line)",
        GuestKind::Linux | GuestKind::Freestanding => "machine.cmdline",
    };
    let yes_or_no = |yes| if yes { "yes" } else { "no" };
    let mut facts = vec![
        Fact::versions(STATE_FORMAT, Versions { oldest: STATE_OLDEST, newest: STATE_VERSION }),
        Fact::equal("replication.mode", replication.mode),
        Fact::equal("replication.lease_ms", replication.lease_ms),
        Fact::equal("machine.engine", engine),
        Fact::equal("machine.vcpus", vcpus),
        Fact::equal("machine.memory_mib", ram_bytes >> 20),
        Fact::equal("machine.net.mac", card),
        Fact::equal("machine.net.mtu", mtu),
        Fact::equal("machine.rng", yes_or_no(*rng)),
        Fact::equal("number of disks", disks.len()),
        Fact::equal("machine.on_reset", format!("{:?}", machine.on_reset).to_lowercase()),
        Fact::equal("machine.guest", format!("{:?}", machine.guest).to_lowercase()),
        Fact::equal_shown(cmdline, machine.cmdline.as_str(), format!("{:?}", machine.cmdline)),
    ];
    facts.extend(disk_facts(config, disks));
    // As long as it has none, the version before may have the same machine.
    #[cfg(feature = "next-version")]
    if machine.mark != 0 {
        facts.push(Fact::equal("machine.mark", machine.mark));
    }
    match engine {
        EngineKind::Kvm => facts.push(Fact::processor(serde_json::to_vec(&host_cpu_profile()?)?)),
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
