//! The MP table, for kernels without ACPI: processors, the buses, the IOAPIC and the wiring of its pins.
//!
//! Reference: Intel MultiProcessor Specification 1.4, chapter 4. The floating pointer is in the last KiB of base
//! memory, where kernels look for it; the table, which outgrows that with many processors, is in the BIOS area.

use super::acpi::{INTI_HIGH_LEVEL, TableError};
use crate::devices::{virtio_functions, virtio_windows};
use crate::spec::{BusKind, MachineSpec};
use ft_ram::GuestMemory;
use ft_ram::layout::{
    ACPI_BASE, ACPI_SIZE, HIMEM_BASE, IOAPIC_BASE, LAPIC_BASE, MPTABLE_BASE, PCI_GSI_BASE, SCI_GSI,
};
use vm_memory::{Bytes, GuestAddress};

const TABLE_BASE: u64 = ACPI_BASE + ACPI_SIZE;
const TABLE_ROOM: usize = (HIMEM_BASE - TABLE_BASE) as usize;

const SPEC_REVISION: u8 = 4;
const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IOAPIC: u8 = 2;
const ENTRY_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;
const LAPIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
const CPU_ENABLED: u8 = 1 << 0;
const CPU_BOOTSTRAP: u8 = 1 << 1;
/// Family 6; features FPU and APIC. Kernels take what CPUID says.
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES: u32 = 1 << 0 | 1 << 9;
const IOAPIC_ENABLED: u8 = 1 << 0;
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
const ALL_LAPICS: u8 = 0xff;
/// Polarity and trigger as the bus has them: for ISA, active high and edge; for PCI, active low and level.
const CONFORMS: u16 = 0;
const IOAPIC_PINS: u8 = 24;
/// A PCI bus is known by its own number, so it comes first.
const PCI_BUS: u8 = 0;

/// Writes the floating pointer and the table.
pub fn write_mptable(memory: &GuestMemory, spec: &MachineSpec) -> Result<(), TableError> {
    let table = table(spec);
    if table.len() > TABLE_ROOM {
        return Err(TableError::TooLarge { table: "MP table", bytes: table.len(), room: TABLE_ROOM });
    }
    let mut pointer = Vec::with_capacity(16);
    pointer.extend_from_slice(b"_MP_");
    pointer.extend_from_slice(&(TABLE_BASE as u32).to_le_bytes());
    // Length in 16 bytes, revision, checksum, and five feature bytes: there is a table, no IMCR.
    pointer.extend_from_slice(&[1, SPEC_REVISION, 0, 0, 0, 0, 0, 0]);
    pointer[10] = checksum(&pointer);
    for (address, bytes) in [(TABLE_BASE, &table), (MPTABLE_BASE, &pointer)] {
        memory.write_slice(bytes, GuestAddress(address)).map_err(|source| TableError::Memory {
            table: "MP table",
            address,
            source,
        })?;
    }
    Ok(())
}

fn table(spec: &MachineSpec) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut count = 0u16;
    let mut entry = |bytes: &[&[u8]]| {
        entries.extend(bytes.concat());
        count += 1;
    };

    for cpu in 0..spec.vcpus {
        let flags = CPU_ENABLED | if cpu == 0 { CPU_BOOTSTRAP } else { 0 };
        entry(&[
            &[ENTRY_PROCESSOR, cpu, LAPIC_VERSION, flags],
            &CPU_SIGNATURE.to_le_bytes(),
            &CPU_FEATURES.to_le_bytes(),
            &[0; 8],
        ]);
    }
    let isa_bus = match spec.bus {
        BusKind::Mmio => 0,
        BusKind::Pci => {
            entry(&[&[ENTRY_BUS, PCI_BUS], b"PCI   "]);
            PCI_BUS + 1
        }
    };
    entry(&[&[ENTRY_BUS, isa_bus], b"ISA   "]);
    // APIC identities are one space here: the first after the processors'.
    let ioapic = spec.vcpus;
    entry(&[&[ENTRY_IOAPIC, ioapic, IOAPIC_VERSION, IOAPIC_ENABLED], &(IOAPIC_BASE as u32).to_le_bytes()]);
    let isa_pins = if spec.bus == BusKind::Pci { PCI_GSI_BASE as u8 } else { IOAPIC_PINS };
    for pin in 0..isa_pins {
        let level =
            u32::from(pin) == SCI_GSI || virtio_windows(spec).any(|window| window.gsi == u32::from(pin));
        let flags = if level { INTI_HIGH_LEVEL } else { CONFORMS };
        entry(&[&[ENTRY_INTERRUPT, INT], &flags.to_le_bytes(), &[isa_bus, pin, ioapic, pin]]);
    }
    for function in virtio_functions(spec) {
        // INTA# of the device: level triggered and active low, as the bus has it.
        let wiring = [PCI_BUS, function.device << 2, ioapic, function.gsi as u8];
        entry(&[&[ENTRY_INTERRUPT, INT], &CONFORMS.to_le_bytes(), &wiring]);
    }
    for (kind, lint) in [(EXT_INT, 0), (NMI, 1)] {
        let source = [isa_bus, 0, ALL_LAPICS, lint];
        entry(&[&[ENTRY_LOCAL_INTERRUPT, kind], &CONFORMS.to_le_bytes(), &source]);
    }

    let length = (HEADER_BYTES + entries.len()) as u16;
    let mut table = Vec::with_capacity(usize::from(length));
    table.extend_from_slice(b"PCMP");
    table.extend_from_slice(&length.to_le_bytes());
    table.extend_from_slice(&[SPEC_REVISION, 0]);
    table.extend_from_slice(b"FTD     ");
    table.extend_from_slice(b"FTDVM       ");
    // No OEM table.
    table.extend_from_slice(&[0; 6]);
    table.extend_from_slice(&count.to_le_bytes());
    table.extend_from_slice(&(LAPIC_BASE as u32).to_le_bytes());
    // No extended table.
    table.extend_from_slice(&[0; 4]);
    table.extend_from_slice(&entries);
    table[7] = checksum(&table);
    table
}

const HEADER_BYTES: usize = 44;

/// What makes the bytes sum to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{CpuModel, EngineKind, NetSpec};
    use ft_ram::GuestRam;

    fn spec(vcpus: u8) -> MachineSpec {
        let nets = vec![NetSpec { mac: [2; 6], mtu: 1500 }];
        let (engine, bus, cpu) = (EngineKind::Kvm, BusKind::Mmio, CpuModel::Host);
        MachineSpec { engine, vcpus, ram_bytes: 16 << 20, nets, disks: vec![], rng: true, bus, cpu }
    }

    #[test]
    fn pointer_and_table_are_where_kernels_look_and_sum_to_zero() {
        for vcpus in [1, 2, 64] {
            let ram = GuestRam::new(16 << 20).unwrap();
            write_mptable(ram.memory(), &spec(vcpus)).unwrap();
            let mut pointer = [0; 16];
            ram.memory().read_slice(&mut pointer, GuestAddress(MPTABLE_BASE)).unwrap();
            assert_eq!((&pointer[..4], checksum(&pointer)), (&b"_MP_"[..], 0));
            let base = u32::from_le_bytes(pointer[4..8].try_into().unwrap());
            let mut header = [0; HEADER_BYTES];
            ram.memory().read_slice(&mut header, GuestAddress(base.into())).unwrap();
            let mut table = vec![0; usize::from(u16::from_le_bytes([header[4], header[5]]))];
            ram.memory().read_slice(&mut table, GuestAddress(base.into())).unwrap();
            assert_eq!((&table[..4], checksum(&table)), (&b"PCMP"[..], 0));

            // Entries of type 0 are 20 bytes long, all others 8; they end where the table ends.
            let (mut at, mut entries, mut processors) = (HEADER_BYTES, 0, 0);
            while at < table.len() {
                processors += u8::from(table[at] == ENTRY_PROCESSOR);
                at += if table[at] == ENTRY_PROCESSOR { 20 } else { 8 };
                entries += 1;
            }
            assert_eq!((at, processors), (table.len(), vcpus));
            assert_eq!(entries, u16::from_le_bytes([table[34], table[35]]));
        }
    }

    /// Names of the buses of a table for one processor, in the order of their numbers.
    fn buses(table: &[u8]) -> Vec<&str> {
        let entries = table[HEADER_BYTES + 20..].chunks(8).take_while(|entry| entry[0] == ENTRY_BUS);
        entries.map(|entry| std::str::from_utf8(&entry[2..]).unwrap()).collect()
    }

    #[test]
    fn functions_on_pci_have_the_pins_above_those_of_isa() {
        let table = table(&MachineSpec { bus: BusKind::Pci, ..spec(1) });
        assert_eq!(buses(&table), ["PCI   ", "ISA   "]);
        let pins: Vec<_> =
            table[HEADER_BYTES + 20..].chunks(8).filter(|entry| entry[0] == ENTRY_INTERRUPT).collect();
        let of = |bus| pins.iter().filter(move |entry| entry[4] == bus);
        assert!(of(1).all(|entry| entry[5] == entry[7]) && of(1).count() == 16);
        // Device number and pin INTA# as the source.
        assert_eq!(of(0).map(|entry| (entry[5], entry[7])).collect::<Vec<_>>(), [(1 << 2, 16), (2 << 2, 17)]);
    }

    #[test]
    fn virtio_pins_are_level_triggered_and_isa_pins_are_not() {
        let table = table(&spec(1));
        assert_eq!(buses(&table), ["ISA   "]);
        let pins = &table[HEADER_BYTES + 20 + 8 + 8..][..usize::from(IOAPIC_PINS) * 8];
        let level: Vec<_> = pins.chunks(8).filter(|entry| entry[2] == 0xd).map(|entry| entry[7]).collect();
        assert_eq!(level, [5, 6, 9]);
        assert!(pins.chunks(8).all(|entry| entry[5] == entry[7]), "the interrupt's number is the pin's");
    }
}
