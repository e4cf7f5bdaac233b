//! Checks whether two nodes fit each other: a pure comparison that names the first mismatch, the most telling first.

use super::message::{Identity, Mode, Refuse};
use ft_vm::spec::MachineSpec;

/// Version of the messages' meaning.
pub const PROTOCOL: u16 = 3;

/// Which part of the handshake a node plays. The CPU and the generation are judged differently from the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// This node runs the VM.
    Primary,
    /// This node stands by.
    Backup,
}

/// Why two nodes cannot pair.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Message versions differ.
    #[error("the peer's protocol is {theirs}, this node's {ours}: install the same version on both")]
    Protocol {
        /// The peer's.
        theirs: u16,
        /// Ours.
        ours: u16,
    },
    /// The peer protects another VM.
    #[error("the peer protects VM {theirs:?}, this node {ours:?}")]
    Vm {
        /// The peer's.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// Both call themselves the same: most likely the address is this node's own.
    #[error("the peer calls itself {0:?}, as this node does: check that peer.address is not this node's own")]
    SameNode(String),
    /// The peer's machine is not described as ours.
    #[error("{field} differs: the peer has {theirs}, this node {ours}")]
    Spec {
        /// What differs.
        field: &'static str,
        /// The peer's.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// The description does not parse.
    #[error("the {whose} description of the machine is unreadable: {why}")]
    SpecUnreadable {
        /// "peer's" or "local".
        whose: &'static str,
        /// Why.
        why: String,
    },
    /// A backup promises by its own lease what a primary counts on by its own.
    #[error(
        "replication.lease_ms differs: the peer has {} ms, this node {} ms; set both alike",
        theirs_us / 1000,
        ours_us / 1000
    )]
    Lease {
        /// The peer's.
        theirs_us: u64,
        /// Ours.
        ours_us: u64,
    },
    /// One would ship what the other does not take.
    #[error("replication.mode differs: the peer has {theirs}, this node {ours}; set both alike")]
    Mode {
        /// The peer's.
        theirs: Mode,
        /// Ours.
        ours: Mode,
    },
    /// Another build's engine could execute the same and come to something else.
    #[error(
        "the engine differs: the peer's build is {theirs:016x}, this node's {ours:016x}; install the \
         same build of ftd on both"
    )]
    Engine {
        /// The peer's fingerprint.
        theirs: u64,
        /// Ours.
        ours: u64,
    },
    /// A machine captured on one CPU could not go on on the other.
    #[error("CPU: {0}")]
    Cpu(String),
    /// The primary's ownership is from an older generation than the backup knows of: it has been replaced.
    #[error(
        "the primary's generation is {primary}, but its backup has seen {backup}: another node has replaced it"
    )]
    StalePrimary {
        /// The primary's.
        primary: u64,
        /// The backup's.
        backup: u64,
    },
}

impl Refusal {
    /// The number that travels in a [`Refuse`].
    pub fn code(&self) -> u16 {
        match self {
            Self::Protocol { .. } => 1,
            Self::Vm { .. } => 2,
            Self::SameNode(_) => 3,
            Self::Spec { .. } => 4,
            Self::SpecUnreadable { .. } => 5,
            Self::Cpu(_) => 6,
            Self::StalePrimary { .. } => 7,
            Self::Lease { .. } => 8,
            Self::Mode { .. } => 9,
            Self::Engine { .. } => 10,
        }
    }

    /// The message that tells the peer.
    pub fn to_message(&self) -> Refuse {
        Refuse { code: self.code(), text: self.to_string() }
    }
}

/// Whether the refusal of this number stays until somebody changes a node: versions or configurations do not fit.
pub fn is_permanent(code: u16) -> bool {
    matches!(code, 1..=6 | 8..=10)
}

/// Compares the peer's identity with ours. `cpu_fits(theirs, ours)` says why a machine could not move between the CPUs.
pub fn check<E: std::fmt::Display>(
    theirs: &Identity,
    ours: &Identity,
    our_side: Side,
    cpu_fits: impl FnOnce(&[u8], &[u8]) -> Result<(), E>,
) -> Result<(), Refusal> {
    if theirs.protocol != ours.protocol {
        return Err(Refusal::Protocol { theirs: theirs.protocol, ours: ours.protocol });
    }
    if theirs.vm != ours.vm {
        return Err(Refusal::Vm { theirs: theirs.vm.clone(), ours: ours.vm.clone() });
    }
    if theirs.node == ours.node {
        return Err(Refusal::SameNode(ours.node.clone()));
    }
    if theirs.lease_us != ours.lease_us {
        return Err(Refusal::Lease { theirs_us: theirs.lease_us, ours_us: ours.lease_us });
    }
    if theirs.spec != ours.spec {
        check_spec(&read_spec("peer's", &theirs.spec)?, &read_spec("local", &ours.spec)?)?;
    }
    same("what boots (machine.guest and machine.cmdline)", &theirs.boot, &ours.boot)?;
    if theirs.mode != ours.mode {
        return Err(Refusal::Mode { theirs: theirs.mode, ours: ours.mode });
    }
    if theirs.engine != ours.engine {
        return Err(Refusal::Engine { theirs: theirs.engine, ours: ours.engine });
    }
    cpu_fits(&theirs.cpu, &ours.cpu).map_err(|e| Refusal::Cpu(e.to_string()))?;
    let (primary, backup) = match our_side {
        Side::Primary => (ours.generation, theirs.generation),
        Side::Backup => (theirs.generation, ours.generation),
    };
    if primary < backup {
        return Err(Refusal::StalePrimary { primary, backup });
    }
    Ok(())
}

fn read_spec(whose: &'static str, bytes: &[u8]) -> Result<MachineSpec, Refusal> {
    postcard::from_bytes(bytes).map_err(|e| Refusal::SpecUnreadable { whose, why: e.to_string() })
}

fn same<T: PartialEq + std::fmt::Debug>(field: &'static str, theirs: &T, ours: &T) -> Result<(), Refusal> {
    if theirs == ours {
        return Ok(());
    }
    Err(Refusal::Spec { field, theirs: format!("{theirs:?}"), ours: format!("{ours:?}") })
}

fn check_spec(theirs: &MachineSpec, ours: &MachineSpec) -> Result<(), Refusal> {
    // Every field by name, so that a new one cannot be forgotten here.
    let MachineSpec { engine, vcpus, ram_bytes, net, disks, rng } = ours;
    same("engine", &theirs.engine, engine)?;
    same("guest memory (bytes)", &theirs.ram_bytes, ram_bytes)?;
    same("number of vCPUs", &theirs.vcpus, vcpus)?;
    same("network card", &theirs.net, net)?;
    same("disks", &theirs.disks, disks)?;
    same("virtio-rng", &theirs.rng, rng)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ft_vm::spec::{DiskSpec, EngineKind, NetSpec};

    fn spec() -> MachineSpec {
        MachineSpec {
            engine: EngineKind::Kvm,
            vcpus: 2,
            ram_bytes: 64 << 20,
            net: Some(NetSpec { mac: [2, 0, 0, 0, 0, 1] }),
            disks: vec![DiskSpec { bytes: 1024, read_only: true }],
            rng: true,
        }
    }

    fn identity(node: &str, spec: &MachineSpec) -> Identity {
        Identity {
            protocol: PROTOCOL,
            vm: "web".into(),
            node: node.into(),
            generation: 5,
            spec: postcard::to_stdvec(spec).unwrap(),
            boot: "builtin: ip=10.0.0.5/24 port=7777".into(),
            mode: Mode::Checkpoint,
            engine: 77,
            cpu: vec![1],
            features: 0,
            lease_us: 25_000,
        }
    }

    fn checked(change: impl FnOnce(&mut Identity), side: Side) -> Result<(), Refusal> {
        let mut theirs = identity("b", &spec());
        change(&mut theirs);
        check(&theirs, &identity("a", &spec()), side, |theirs, ours| {
            if theirs == ours { Ok(()) } else { Err("other family") }
        })
    }

    #[test]
    fn equal_nodes_pair_from_both_sides() {
        assert_eq!(checked(|_| (), Side::Primary), Ok(()));
        assert_eq!(checked(|_| (), Side::Backup), Ok(()));
    }

    #[test]
    fn every_mismatch_is_named() {
        let refusal = |change: fn(&mut Identity)| checked(change, Side::Primary).unwrap_err();
        assert_eq!(refusal(|i| i.protocol = 9), Refusal::Protocol { theirs: 9, ours: PROTOCOL });
        assert_eq!(refusal(|i| i.vm = "db".into()).code(), 2);
        assert_eq!(refusal(|i| i.node = "a".into()), Refusal::SameNode("a".into()));
        let lease = Refusal::Lease { theirs_us: 50_000, ours_us: 25_000 };
        assert_eq!(refusal(|i| i.lease_us = 50_000), lease, "safety rests on equal leases");
        let mode = Refusal::Mode { theirs: Mode::Replay, ours: Mode::Checkpoint };
        assert_eq!(refusal(|i| i.mode = Mode::Replay), mode);
        assert_eq!(refusal(|i| i.engine = 78), Refusal::Engine { theirs: 78, ours: 77 });
        assert_eq!(refusal(|i| i.cpu = vec![2]), Refusal::Cpu("other family".into()));
        assert!(matches!(refusal(|i| i.spec.truncate(1)), Refusal::SpecUnreadable { whose: "peer's", .. }));
        let with = |change: fn(&mut MachineSpec)| {
            let mut other = spec();
            change(&mut other);
            match checked(|i| i.spec = postcard::to_stdvec(&other).unwrap(), Side::Backup) {
                Err(Refusal::Spec { field, .. }) => field,
                other => panic!("{other:?}"),
            }
        };
        let boot = refusal(|i| i.boot = "builtin: ip=10.0.0.6/24 port=7777".into());
        assert!(matches!(boot, Refusal::Spec { field, .. } if field.contains("machine.cmdline")), "{boot:?}");
        assert_eq!(with(|s| s.engine = EngineKind::Soft), "engine");
        assert_eq!(with(|s| s.ram_bytes *= 2), "guest memory (bytes)");
        assert_eq!(with(|s| s.vcpus = 1), "number of vCPUs");
        assert_eq!(with(|s| s.net = None), "network card");
        assert_eq!(with(|s| s.disks[0].bytes = 512), "disks");
        assert_eq!(with(|s| s.rng = false), "virtio-rng");
    }

    #[test]
    fn only_the_primary_may_not_be_behind() {
        assert_eq!(checked(|i| i.generation = 4, Side::Primary), Ok(()), "a returning backup is behind");
        let stale = |primary, backup| Err(Refusal::StalePrimary { primary, backup });
        assert_eq!(checked(|i| i.generation = 6, Side::Primary), stale(5, 6));
        assert_eq!(checked(|i| i.generation = 4, Side::Backup), stale(4, 5));
    }
}
