//! The complete state of a machine, memory apart, and its encoding.
//!
//! The state is plain data and is not trusted when it comes back: `encode` puts it behind a header with a length and
//! a CRC, `decode` checks length, CRC and version before it looks at a single field, and refuses what does not encode
//! back to the very same bytes (so that nothing is cut, padded or ignored on the way in). What the fields mean to this
//! host is checked where they are applied. A field that is forgotten where state is collected or applied does not
//! compile: both places name every field.
//!
//! A build reads and writes its own version and the one before, so that two builds that follow each other can hand a
//! machine to and fro. What the older version has no place for is left out only where nothing is lost by that.

pub(crate) mod compare;
pub(crate) mod error;
mod older;

pub use error::StateError;

use crate::devices::DevicesState;
use crate::engine::soft::state::SoftState;
use crate::spec::{EngineKind, MachineSpec};
use ft_ram::PageIndex;
use ft_ram::layout::{HIGH_RAM_BASE, LOW_RAM_END, PAGE_SIZE};
use kvm_bindings::{
    kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_pit_state2, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use serde::{Deserialize, Serialize};

const MAGIC: [u8; 4] = *b"FTVM";
/// Version of the layout below. It changes with any change of a captured field.
pub const STATE_VERSION: u16 = 5 + cfg!(feature = "next-version") as u16;
/// The oldest version that is still read and written.
pub const STATE_OLDEST: u16 = STATE_VERSION - 1;
/// Magic, version, two bytes of zero, body length, CRC-32C over everything but the CRC itself.
const HEADER_BYTES: usize = 4 + 2 + 2 + 4 + 4;
/// The longest body that is looked at: 64 vCPUs with the largest register files stay far below it.
const BODY_BYTES_MAX: usize = 16 << 20;

/// Everything about a machine but its memory.
#[derive(Serialize, Deserialize)]
pub(crate) struct MachineState {
    /// Whose state this is; compared before anything is applied.
    pub spec: MachineSpec,
    pub engine: EngineState,
    pub devices: DevicesState,
    /// See [`Machine::mark`](crate::machine::Machine::mark).
    #[cfg(feature = "next-version")]
    #[serde(skip)]
    pub mark: u64,
}

/// Everything but devices and memory, as the engine has it that executes the machine.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) enum EngineState {
    Kvm(Box<KvmState>),
    Soft(Box<SoftState>),
}

impl EngineState {
    fn kind(&self) -> EngineKind {
        match self {
            Self::Kvm(_) => EngineKind::Kvm,
            Self::Soft(_) => EngineKind::Soft,
        }
    }

    /// For the engine that is given a state of the other one.
    pub(crate) fn foreign(&self, ours: EngineKind) -> StateError {
        StateError::Spec { field: "engine", theirs: self.kind().to_string(), ours: ours.to_string() }
    }
}

/// A machine on KVM.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct KvmState {
    /// In the order of their indices.
    pub vcpus: Vec<VcpuState>,
    pub vm: VmState,
}

/// One virtual processor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct VcpuState {
    pub cpuid: Vec<kvm_cpuid_entry2>,
    pub tsc_khz: u32,
    /// From the host's counter, scaled, to the guest's; none where the host's kernel does not show it.
    pub tsc_offset: Option<u64>,
    pub mp_state: kvm_mp_state,
    pub regs: kvm_regs,
    pub sregs: Sregs,
    pub xcrs: kvm_xcrs,
    /// As KVM_GET_XSAVE2 gives it.
    #[serde(with = "as_bytes")]
    pub xsave: Vec<u8>,
    pub debug_regs: kvm_debugregs,
    pub lapic: kvm_lapic_state,
    pub msrs: Vec<kvm_msr_entry>,
    pub events: kvm_vcpu_events,
}

/// Segments and control registers. `base.interrupt_bitmap` is always zero: the interrupt that it would name is in the
/// vCPU's events.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sregs {
    pub base: kvm_sregs,
    /// PAE's page directory pointers, which are registers and may differ from what memory holds by now.
    pub pdptrs: Option<[u64; 4]>,
}

/// What all vCPUs share inside the kernel.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct VmState {
    pub pic_master: kvm_irqchip,
    pub pic_slave: kvm_irqchip,
    pub ioapic: kvm_irqchip,
    pub pit: kvm_pit_state2,
    pub clock: kvm_clock_data,
}

/// Appends the state, encoded in this version, to `out`.
pub(crate) fn encode(state: &MachineState, version: u16, out: &mut Vec<u8>) -> Result<(), StateError> {
    if !(STATE_OLDEST..=STATE_VERSION).contains(&version) {
        return Err(StateError::Version { theirs: version, oldest: STATE_OLDEST, newest: STATE_VERSION });
    }
    let older = if version == older::NUMBER { Some(older::from_newer(state)?) } else { None };
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    let body = std::mem::take(out);
    *out = match &older {
        Some(older) => postcard::to_extend(older, body),
        None => postcard::to_extend(state, body),
    }
    .map_err(|e| StateError::Decode(e.to_string()))?;
    #[cfg(feature = "next-version")]
    next::append(state.mark, version, out).inspect_err(|_| out.truncate(start))?;
    let body_bytes = out.len() - start - HEADER_BYTES;
    if body_bytes > BODY_BYTES_MAX {
        out.truncate(start);
        return Err(StateError::Encode(body_bytes));
    }
    let header = &mut out[start..];
    header[..4].copy_from_slice(&MAGIC);
    header[4..6].copy_from_slice(&version.to_le_bytes());
    header[8..12].copy_from_slice(&(body_bytes as u32).to_le_bytes());
    let crc = checksum(header);
    header[12..16].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

/// Reads a state of any version that is known here: length, then CRC, then version, then the fields.
pub(crate) fn decode(bytes: &[u8]) -> Result<MachineState, StateError> {
    let Some((header, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(StateError::TooShort(bytes.len()));
    };
    let [m0, m1, m2, m3, v0, v1, _, _, l0, l1, l2, l3, c0, c1, c2, c3] = *header;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(StateError::Magic([m0, m1, m2, m3]));
    }
    let said = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if said != body.len() || said > BODY_BYTES_MAX {
        return Err(StateError::Length { said, is: body.len() });
    }
    let (said, is) = (u32::from_le_bytes([c0, c1, c2, c3]), checksum(bytes));
    if said != is {
        return Err(StateError::Crc { said, is });
    }
    let version = u16::from_le_bytes([v0, v1]);
    if !(STATE_OLDEST..=STATE_VERSION).contains(&version) {
        return Err(StateError::Version { theirs: version, oldest: STATE_OLDEST, newest: STATE_VERSION });
    }
    let malformed = |e: postcard::Error| StateError::Decode(format!("{e} ({} bytes)", body.len()));
    let (state, later) = if version == older::NUMBER {
        let (state, later) = postcard::take_from_bytes(body).map_err(malformed)?;
        (older::to_newer(state), later)
    } else {
        postcard::take_from_bytes(body).map_err(malformed)?
    };
    #[cfg(feature = "next-version")]
    let (state, later) = next::take(state, version, later).map_err(malformed)?;
    let mut again = Vec::with_capacity(bytes.len());
    encode(&state, version, &mut again)?;
    if !later.is_empty() || again != bytes {
        return Err(StateError::Decode("it has bytes that mean nothing".into()));
    }
    Ok(state)
}

/// Where the guest has KVM keep the wall clock, by its old number and its new one. Setting either has KVM write there
/// at once (Documentation/virt/kvm/x86/msr.rst).
const MSR_KVM_WALL_CLOCK: [u32; 2] = [0x11, 0x4b56_4d00];
/// `struct pvclock_wall_clock`
const WALL_CLOCK_BYTES: u64 = 12;

/// Pages of guest memory that are written when a machine takes this captured state.
pub fn pages_written_by_restore(state: &[u8]) -> Result<Vec<PageIndex>, StateError> {
    let EngineState::Kvm(kvm) = decode(state)?.engine else { return Ok(Vec::new()) };
    let clocks = kvm.vcpus.iter().flat_map(|vcpu| &vcpu.msrs);
    let places = clocks.filter(|msr| MSR_KVM_WALL_CLOCK.contains(&msr.index) && msr.data != 0);
    let mut pages: Vec<_> = places
        .flat_map(|msr| [msr.data, msr.data.saturating_add(WALL_CLOCK_BYTES - 1)])
        .map(|address| match address.checked_sub(HIGH_RAM_BASE) {
            Some(above) => LOW_RAM_END + above,
            None => address,
        })
        .filter_map(|offset| PageIndex::try_from(offset / PAGE_SIZE as u64).ok())
        .collect();
    pages.sort_unstable();
    pages.dedup();
    Ok(pages)
}

/// What the next version has behind the body of this one.
#[cfg(feature = "next-version")]
mod next {
    use super::{MachineState, STATE_VERSION, StateError};

    pub(super) fn append(mark: u64, version: u16, out: &mut Vec<u8>) -> Result<(), StateError> {
        match (version, mark) {
            // A machine that was never marked is the same machine without the field.
            (..STATE_VERSION, 0) => {}
            (..STATE_VERSION, _) => return Err(StateError::NotCarried { field: "machine.mark", version }),
            _ => out.extend_from_slice(&mark.to_le_bytes()),
        }
        Ok(())
    }

    pub(super) fn take(
        state: MachineState,
        version: u16,
        later: &[u8],
    ) -> Result<(MachineState, &[u8]), postcard::Error> {
        match (version, later.split_first_chunk()) {
            (..STATE_VERSION, _) => Ok((state, later)),
            (_, Some((mark, rest))) => Ok((MachineState { mark: u64::from_le_bytes(*mark), ..state }, rest)),
            (_, None) => Err(postcard::Error::DeserializeUnexpectedEnd),
        }
    }
}

/// Over the header without its CRC, and the body.
fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[HEADER_BYTES..])
}

/// Names the first part of the spec in which a state differs from the machine that is to take it.
pub(crate) fn check_spec(theirs: &MachineSpec, ours: &MachineSpec) -> Result<(), StateError> {
    fn same<T: PartialEq + std::fmt::Debug>(
        field: &'static str,
        theirs: &T,
        ours: &T,
    ) -> Result<(), StateError> {
        if theirs == ours {
            return Ok(());
        }
        Err(StateError::Spec { field, theirs: format!("{theirs:?}"), ours: format!("{ours:?}") })
    }
    let MachineSpec { engine, vcpus, ram_bytes, nets, disks, rng, bus, cpu } = theirs;
    same("engine", engine, &ours.engine)?;
    same("vcpus", vcpus, &ours.vcpus)?;
    same("ram_bytes", ram_bytes, &ours.ram_bytes)?;
    same("nets", nets, &ours.nets)?;
    same("disks", disks, &ours.disks)?;
    same("rng", rng, &ours.rng)?;
    same("bus", bus, &ours.bus)?;
    same("cpu", cpu, &ours.cpu)
}

/// A byte vector as one run of bytes rather than element by element.
mod as_bytes {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        <&[u8]>::deserialize(deserializer).map(<[u8]>::to_vec)
    }
}

#[cfg(test)]
mod tests;
