//! The specification of a machine: the part of its description that both hosts must agree on. Host-side wiring (TAP
//! names, console sinks) is not here: two replicas of one machine have equal specs and different wiring.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// Network cards that a machine can have at most.
pub const NETS_MAX: usize = 8;

/// vCPUs that a machine can have at most.
pub const VCPUS_MAX: u8 = 64;

/// Bytes of a sector, the unit of addresses on a disk whatever its block size.
pub const SECTOR_BYTES: u64 = 512;

/// What executes the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// The host's processor, by KVM. Any number of vCPUs; not replayable.
    #[default]
    Kvm,
    /// The deterministic processor in software: one vCPU, needs no /dev/kvm, can be recorded and replayed.
    Soft,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Soft => "soft",
        })
    }
}

/// How the guest reaches its virtio devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BusKind {
    /// Each has a window of registers and a line, of which the guest is told. All that freestanding programs know.
    #[default]
    Mmio,
    /// Each is a function on PCI, which the guest finds by itself; interrupts are messages.
    Pci,
}

impl std::fmt::Display for BusKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Mmio => "mmio",
            Self::Pci => "pci",
        })
    }
}

/// RAM of a machine whose processor has a name, at most: what its 39 address bits reach, without the hole below 4 GiB.
pub const MODEL_RAM_BYTES_MAX: u64 = (1 << 39) - (1 << 30);

/// The processor that the guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CpuModel {
    /// The host's, with all of it whose state is captured; on the software engine that engine's own.
    #[default]
    #[serde(rename = "host")]
    Host,
    /// The x86-64 psABI's level 2 and nothing beyond it, the same on every host of a maker.
    #[serde(rename = "x86-64-v2")]
    X86_64V2,
    /// The same, of level 3.
    #[serde(rename = "x86-64-v3")]
    X86_64V3,
}

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::X86_64V2 => "x86-64-v2",
            Self::X86_64V3 => "x86-64-v3",
        })
    }
}

/// The machine. Equal on both hosts, or the handshake refuses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// What executes it: a state of one engine means nothing to the other.
    pub engine: EngineKind,
    /// Number of vCPUs, 1 to [`VCPUS_MAX`].
    pub vcpus: u8,
    /// Guest RAM in bytes: a multiple of 2 MiB, at least 16 MiB.
    pub ram_bytes: u64,
    /// Network cards in order, at most [`NETS_MAX`].
    pub nets: Vec<NetSpec>,
    /// Disks in order; all read-only for now.
    pub disks: Vec<DiskSpec>,
    /// Whether the guest gets a virtio-rng.
    pub rng: bool,
    /// Where its virtio devices are.
    pub bus: BusKind,
    /// The processor that its guest sees.
    pub cpu: CpuModel,
}

impl MachineSpec {
    /// How many virtio devices it has.
    pub fn virtio_devices(&self) -> usize {
        self.nets.len() + self.disks.len() + usize::from(self.rng)
    }
}

/// Payload of an Ethernet frame where nothing else is agreed on.
pub const MTU_DEFAULT: u16 = 1500;
/// What a card can be given as its MTU: from what IPv4 needs to the largest frame.
pub const MTUS: std::ops::RangeInclusive<u16> = 68..=9198;

/// A virtio network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetSpec {
    /// The card's address.
    pub mac: [u8; 6],
    /// The largest payload of a frame that the guest is to send, in bytes, as the card tells its driver.
    pub mtu: u16,
}

/// A virtio disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// Size in bytes, a multiple of [`SECTOR_BYTES`]; both hosts' images must have it.
    pub bytes: u64,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// What runs in the machine when it is booted afresh. Needed only where a boot happens, not to restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boot {
    /// Linux: bzImage or vmlinux (ELF), with an optional initramfs.
    Linux {
        /// Path of the kernel.
        kernel: PathBuf,
        /// Path of the initramfs.
        initrd: Option<PathBuf>,
        /// Kernel command line, without what the machine itself adds for its devices.
        cmdline: String,
    },
    /// The same, from files that were read somewhere else.
    LinuxRead {
        /// The kernel.
        kernel: BootContent,
        /// The initramfs.
        initrd: Option<BootContent>,
        /// As above.
        cmdline: String,
    },
    /// An ELF program started in 64-bit mode at CPL 3 on every vCPU.
    Freestanding {
        /// The ELF image.
        image: FreestandingImage,
        /// Passed to the program (RSI: address, RDX: length in bytes).
        cmdline: String,
    },
}

/// A file that was read.
#[derive(Clone, PartialEq, Eq)]
pub struct BootContent {
    /// What it is called where it is from.
    pub name: String,
    /// What it holds.
    pub bytes: Arc<[u8]>,
}

impl fmt::Debug for BootContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ({} bytes)", self.name, self.bytes.len())
    }
}

/// Where a freestanding program comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FreestandingImage {
    /// The guest that is built into this crate.
    BuiltIn,
    /// A file.
    File(PathBuf),
}
