//! ACPI tables: how a stock kernel finds processors, interrupt routing, COM1, the virtio-mmio devices or the PCI bus,
//! power-off and reset. Full hardware model (PM1a, SCI), not hardware-reduced, since the machine has a PIC, a PIT and
//! ISA interrupts.
//!
//! Addresses, interrupts and register values are those of [`ft_ram::layout`]. References: ACPI 6.5 §5.2 and §6.4.

use crate::devices::{virtio_functions, virtio_windows};
use crate::spec::{BusKind, MachineSpec};
use acpi_tables::Aml;
use acpi_tables::aml::{
    self, AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package,
    Path, ResourceTemplate,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as Space, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use ft_ram::GuestMemory;
use ft_ram::layout::{
    ACPI_BASE, ACPI_SIZE, COM1_GSI, COM1_PORT, IOAPIC_BASE, LAPIC_BASE, PCI_CONFIG_PORT, PCI_WINDOW_BASE,
    PCI_WINDOW_SIZE, PM1A_CNT_PORT, PM1A_EVT_PORT, PVPANIC_PORT, RESET_PORT, RESET_VALUE, RTC_CENTURY,
    RTC_GSI, RTC_PORT, SCI_GSI, SLP_TYP_S5, VIRTIO_MMIO_SIZE, WATCHDOG_PORT, WATCHDOG_TICK_MS,
};
use vm_memory::{Bytes, GuestAddress};

const OEM_ID: [u8; 6] = *b"FTD   ";
const OEM_TABLE_ID: [u8; 8] = *b"FTDVM   ";
const OEM_REVISION: u32 = 1;
/// The FACS needs 64; all get it.
const ALIGNMENT: u64 = 64;

/// IAPC_BOOT_ARCH (ACPI 6.5 table 5.10): a COM port, but no i8042 (its bit stays clear) or VGA. (The bit that says that
/// there is no CMOS clock stays clear as well.)
const BOOT_ARCH_LEGACY_DEVICES: u16 = 1 << 0;
const BOOT_ARCH_NO_VGA: u16 = 1 << 2;
/// MADT: there are two 8259s as well.
const MADT_PCAT_COMPAT: u32 = 1 << 0;
const MADT_SOURCE_OVERRIDE: u8 = 2;
const MADT_LAPIC_NMI: u8 = 4;
/// MPS INTI flags: active high, level triggered.
pub(super) const INTI_HIGH_LEVEL: u16 = 0b01 | 0b11 << 2;

/// Why boot tables could not be written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// They are larger than the room for them.
    #[error("{table} needs {bytes} bytes, there is room for {room}")]
    TooLarge {
        /// Which.
        table: &'static str,
        /// Bytes it needs.
        bytes: usize,
        /// Bytes there are.
        room: usize,
    },
    /// Where they belong there is no memory.
    #[error("cannot write {table} at {address:#x}: {source}")]
    Memory {
        /// Which.
        table: &'static str,
        /// Where.
        address: u64,
        /// vm-memory's answer.
        source: vm_memory::GuestMemoryError,
    },
}

/// Writes the tables; returns the RSDP's address.
pub fn write_tables(memory: &GuestMemory, spec: &MachineSpec) -> Result<u64, TableError> {
    let mut tables = Tables { next: ACPI_BASE + ALIGNMENT, memory };
    let facs = tables.place("FACS", &FACS::new())?;
    let dsdt = tables.place("DSDT", &dsdt(spec))?;
    let fadt = tables.place("FADT", &fadt(facs, dsdt))?;
    let madt = tables.place("MADT", &madt(spec.vcpus))?;
    let wdat = tables.place("WDAT", &wdat())?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    xsdt.add_entry(wdat);
    let xsdt = tables.place("XSDT", &xsdt)?;
    tables.next = ACPI_BASE;
    tables.place("RSDP", &Rsdp::new(OEM_ID, xsdt))
}

struct Tables<'a> {
    memory: &'a GuestMemory,
    next: u64,
}

impl Tables<'_> {
    fn place(&mut self, table: &'static str, content: &dyn Aml) -> Result<u64, TableError> {
        let mut bytes = Vec::new();
        content.to_aml_bytes(&mut bytes);
        let address = self.next;
        let end = address + bytes.len() as u64;
        if end > ACPI_BASE + ACPI_SIZE {
            let room = (ACPI_BASE + ACPI_SIZE - address) as usize;
            return Err(TableError::TooLarge { table, bytes: bytes.len(), room });
        }
        self.memory.write_slice(&bytes, GuestAddress(address)).map_err(|source| TableError::Memory {
            table,
            address,
            source,
        })?;
        self.next = end.next_multiple_of(ALIGNMENT);
        Ok(address)
    }
}

fn dsdt(spec: &MachineSpec) -> Sdt {
    let mut code = Vec::new();
    let s5 = Package::new(vec![&SLP_TYP_S5, &aml::ZERO, &aml::ZERO, &aml::ZERO]);
    Name::new("_S5_".into(), &s5).to_aml_bytes(&mut code);

    Device::new(
        "_SB_.COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &aml::ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &IO::new(COM1_PORT, COM1_PORT, 1, 8),
                    &Interrupt::new(true, true, false, false, COM1_GSI),
                ]),
            ),
        ],
    )
    .to_aml_bytes(&mut code);

    Device::new(
        "_SB_.RTC0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &IO::new(RTC_PORT, RTC_PORT, 1, 2),
                    &Interrupt::new(true, true, false, false, RTC_GSI),
                ]),
            ),
        ],
    )
    .to_aml_bytes(&mut code);

    Device::new(
        "_SB_.PEVT".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&IO::new(PVPANIC_PORT, PVPANIC_PORT, 1, 1)]),
            ),
            // Present and working, and not shown to users.
            &Name::new("_STA".into(), &0x0bu8),
        ],
    )
    .to_aml_bytes(&mut code);

    for window in virtio_windows(spec) {
        Device::new(
            Path::new(&format!("_SB_.VR{:02X}", window.index)),
            vec![
                &Name::new("_HID".into(), &"LNRO0005"),
                &Name::new("_UID".into(), &window.index),
                &Name::new("_CCA".into(), &aml::ONE),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![
                        &Memory32Fixed::new(true, window.base as u32, VIRTIO_MMIO_SIZE as u32),
                        &Interrupt::new(true, false, false, false, window.gsi),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(&mut code);
    }

    if spec.bus == BusKind::Pci {
        pci_host_bridge(spec, &mut code);
    }

    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&code);
    dsdt
}

/// The host bridge: its configuration ports, what it decodes, and where INTA# of each device leads.
fn pci_host_bridge(spec: &MachineSpec, code: &mut Vec<u8>) {
    let window_end = (PCI_WINDOW_BASE + PCI_WINDOW_SIZE - 1) as u32;
    // Address (any function), pin, source (none: the index is a GSI), index.
    let wiring: Vec<_> =
        virtio_functions(spec).map(|f| (u32::from(f.device) << 16 | 0xffff, f.gsi)).collect();
    let routes: Vec<_> = wiring
        .iter()
        .map(|(address, gsi)| Package::new(vec![address, &aml::ZERO, &aml::ZERO, gsi]))
        .collect();
    Device::new(
        "_SB_.PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &aml::ZERO),
            &Name::new("_CCA".into(), &aml::ONE),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &AddressSpace::new_bus_number(0u16, 0),
                    &IO::new(PCI_CONFIG_PORT, PCI_CONFIG_PORT, 1, 8),
                    &AddressSpace::new_memory(
                        AddressSpaceCacheable::NotCacheable,
                        true,
                        PCI_WINDOW_BASE as u32,
                        window_end,
                        None,
                    ),
                ]),
            ),
            &Name::new("_PRT".into(), &Package::new(routes.iter().map(|route| route as &dyn Aml).collect())),
        ],
    )
    .to_aml_bytes(code);
}

fn fadt(facs: u64, dsdt: u64) -> acpi_tables::fadt::FADT {
    let io = |bits, access, port: u16| GAS::new(Space::SystemIo, bits, 0, access, u64::from(port));
    // WBINVD works; the power button is a fixed one (its flag is clear), and there is no sleep button.
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .firmware_ctrl_32(facs as u32)
        .flag(Flags::Wbinvd)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup);
    // Both the 32-bit and the 64-bit fields, as long-lived kernels differ in which they look at first. Without an SMI
    // command port the machine is in ACPI mode from the start.
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.sci_int = (SCI_GSI as u16).into();
    fadt.pm1a_evt_blk = u32::from(PM1A_EVT_PORT).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = io(32, AccessSize::WordAccess, PM1A_EVT_PORT);
    fadt.pm1a_cnt_blk = u32::from(PM1A_CNT_PORT).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = io(16, AccessSize::WordAccess, PM1A_CNT_PORT);
    // Above these latencies, in microseconds, C2 and C3 do not exist.
    fadt.p_lvl2_lat = 101.into();
    fadt.p_lvl3_lat = 1001.into();
    fadt.century = RTC_CENTURY;
    fadt.iapc_boot_arch = (BOOT_ARCH_LEGACY_DEVICES | BOOT_ARCH_NO_VGA).into();
    fadt.reset_reg = io(8, AccessSize::ByteAccess, RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.finalize()
}

/// Interrupt routing is KVM's default: GSI n is pin n of the IOAPIC, also for the PIT's IRQ 0, so only the SCI, which
/// is level triggered unlike an ISA interrupt, is overridden.
fn madt(vcpus: u8) -> Sdt {
    let mut madt = Sdt::new(*b"APIC", 36, 4, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let mut body = Vec::new();
    body.extend_from_slice(&(LAPIC_BASE as u32).to_le_bytes());
    body.extend_from_slice(&MADT_PCAT_COMPAT.to_le_bytes());
    for cpu in 0..vcpus {
        ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled).to_aml_bytes(&mut body);
    }
    IoApic::new(0, IOAPIC_BASE as u32, 0).to_aml_bytes(&mut body);
    // Type, length, ISA bus, IRQ, GSI, flags.
    body.extend_from_slice(&[MADT_SOURCE_OVERRIDE, 10, 0, SCI_GSI as u8]);
    body.extend_from_slice(&SCI_GSI.to_le_bytes());
    body.extend_from_slice(&INTI_HIGH_LEVEL.to_le_bytes());
    // Type, length, all processors, flags, LINT1.
    body.extend_from_slice(&[MADT_LAPIC_NMI, 6, 0xff, 0, 0, 1]);
    madt.append_slice(&body);
    madt
}

/// How the watchdog is driven (Microsoft, Hardware Watchdog Timers Design Specification 1.0, appendix A): its actions
/// as accesses to its ports.
fn wdat() -> Sdt {
    const READ_VALUE: u8 = 0;
    const READ_COUNT: u8 = 1;
    const WRITE_VALUE: u8 = 2;
    const WRITE_COUNT: u8 = 3;
    // Action, instruction, port from the first, bytes of the register, value, mask.
    let actions: [(u8, u8, u16, u8, u32, u32); 8] = [
        // Begin anew; what is left; the time from beginning to end, read and set.
        (1, WRITE_VALUE, 1, 1, 1, 0xff),
        (4, READ_COUNT, 4, 2, 0, 0xffff),
        (5, READ_COUNT, 2, 2, 0, 0xffff),
        (6, WRITE_COUNT, 2, 2, 0, 0xffff),
        // Whether it counts, to begin; whether it does not, to end.
        (8, READ_VALUE, 0, 1, 1, 1),
        (9, WRITE_VALUE, 0, 1, 1, 1),
        (10, READ_VALUE, 0, 1, 0, 1),
        (11, WRITE_VALUE, 0, 1, 0, 1),
    ];
    let mut body = Vec::new();
    // Length of the header that begins here; no PCI device: segment, bus, device, function, reserved.
    body.extend_from_slice(&32u32.to_le_bytes());
    body.extend_from_slice(&[0xff, 0, 0xff, 0xff, 0xff, 0, 0, 0]);
    // Milliseconds of a tick, most and fewest ticks; enabled; reserved; entries.
    for number in [WATCHDOG_TICK_MS, u16::MAX.into(), 1] {
        body.extend_from_slice(&number.to_le_bytes());
    }
    body.extend_from_slice(&[1, 0, 0, 0]);
    body.extend_from_slice(&(actions.len() as u32).to_le_bytes());
    for (action, instruction, offset, bytes, value, mask) in actions {
        body.extend_from_slice(&[action, instruction, 0, 0]);
        let access = if bytes == 1 { AccessSize::ByteAccess } else { AccessSize::WordAccess };
        GAS::new(Space::SystemIo, bytes * 8, 0, access, u64::from(WATCHDOG_PORT + offset))
            .to_aml_bytes(&mut body);
        body.extend_from_slice(&value.to_le_bytes());
        body.extend_from_slice(&mask.to_le_bytes());
    }
    let mut wdat = Sdt::new(*b"WDAT", 36, 1, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    wdat.append_slice(&body);
    wdat
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{CpuModel, DiskSpec, EngineKind, NetSpec};
    use ft_ram::GuestRam;

    fn spec(vcpus: u8, disks: usize) -> MachineSpec {
        MachineSpec {
            engine: EngineKind::Kvm,
            vcpus,
            ram_bytes: 16 << 20,
            nets: vec![NetSpec { mac: [2; 6], mtu: 1500 }],
            disks: vec![DiskSpec { bytes: 512, read_only: true }; disks],
            rng: true,
            bus: BusKind::Mmio,
            cpu: CpuModel::Host,
        }
    }

    fn read(ram: &GuestRam, address: u64, bytes: usize) -> Vec<u8> {
        let mut table = vec![0; bytes];
        ram.memory().read_slice(&mut table, GuestAddress(address)).unwrap();
        table
    }

    fn number(bytes: &[u8]) -> u64 {
        bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    fn table(ram: &GuestRam, address: u64) -> Vec<u8> {
        let length = number(&read(ram, address + 4, 4));
        read(ram, address, length as usize)
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// Every table of a machine by its signature, found as a kernel finds them.
    fn tables(spec: &MachineSpec) -> Vec<(String, Vec<u8>)> {
        let ram = GuestRam::new(16 << 20).unwrap();
        let rsdp_address = write_tables(ram.memory(), spec).unwrap();
        assert_eq!((rsdp_address, rsdp_address % 16), (ACPI_BASE, 0));
        let rsdp = read(&ram, rsdp_address, 36);
        assert_eq!((&rsdp[..8], sum(&rsdp[..20]), sum(&rsdp)), (&b"RSD PTR "[..], 0, 0));
        let xsdt = table(&ram, number(&rsdp[24..32]));
        let mut found = vec![];
        for entry in xsdt[36..].chunks(8) {
            found.push(table(&ram, number(entry)));
        }
        let fadt = found[0].clone();
        assert_eq!(number(&fadt[40..44]), number(&fadt[140..148]), "DSDT and X_DSDT");
        found.push(table(&ram, number(&fadt[40..44])));
        found.push(xsdt);
        let facs = table(&ram, number(&fadt[36..40]));
        assert_eq!((&facs[..4], facs.len(), number(&fadt[36..40]) % 64), (&b"FACS"[..], 64, 0));
        found.iter().map(|table| (String::from_utf8(table[..4].to_vec()).unwrap(), table.clone())).collect()
    }

    #[test]
    fn every_table_is_reachable_and_its_bytes_sum_to_zero() {
        let tables = tables(&spec(2, 1));
        let names: Vec<_> = tables.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["FACP", "APIC", "WDAT", "DSDT", "XSDT"]);
        for (name, table) in &tables {
            assert_eq!(sum(table), 0, "{name}");
        }
    }

    /// As Linux's drivers/watchdog/wdat_wdt.c and drivers/acpi/acpi_watchdog.c read it.
    #[test]
    fn the_watchdogs_table_is_enabled_is_of_no_pci_device_and_names_its_ports() {
        let tables = tables(&spec(1, 0));
        let wdat = &tables.iter().find(|(name, _)| name == "WDAT").unwrap().1;
        assert_eq!((number(&wdat[36..40]), number(&wdat[40..42]), &wdat[42..45]), (32, 0xff, &[0xff; 3][..]));
        assert_eq!((number(&wdat[48..52]), number(&wdat[52..56]), number(&wdat[56..60])), (100, 0xffff, 1));
        assert_eq!((wdat[60] & 1, number(&wdat[64..68])), (1, (wdat.len() as u64 - 68) / 24));
        for entry in wdat[68..].chunks(24) {
            // I/O space; the width of an access, of which there are as many bytes.
            assert_eq!((entry[4], entry[5]), (1, 8 << (entry[7] - 1)));
            assert!((0x610..0x618).contains(&number(&entry[8..16])));
        }
    }

    #[test]
    fn either_engines_machine_is_said_to_have_a_cmos_clock_and_where_it_keeps_the_century() {
        for engine in [EngineKind::Kvm, EngineKind::Soft] {
            let fadt = &tables(&MachineSpec { engine, ..spec(1, 0) })[0].1;
            assert_eq!((number(&fadt[109..111]) & 1 << 5, fadt[108]), (0, 0x32), "{engine}");
        }
    }

    #[test]
    fn the_largest_machine_has_room_and_the_tables_stay_in_theirs() {
        let ram = GuestRam::new(16 << 20).unwrap();
        write_tables(ram.memory(), &MachineSpec { bus: BusKind::Pci, ..spec(64, 14) }).unwrap();
        write_tables(ram.memory(), &spec(64, 14)).unwrap();
        let mut dirty = vec![];
        ram.take_vmm_dirty(|page| dirty.push(u64::from(page) * 4096));
        assert!(dirty.iter().all(|page| (ACPI_BASE..ACPI_BASE + ACPI_SIZE).contains(page)), "{dirty:x?}");
    }

    /// The compiler of the ACPI reference implementation reads the tables back.
    #[test]
    fn iasl_disassembles_the_tables_to_what_was_meant() {
        if std::process::Command::new("iasl").arg("-v").output().is_err() {
            eprintln!(
                "SKIPPED iasl_disassembles_the_tables_to_what_was_meant: no iasl (package acpica-tools)"
            );
            return;
        }
        let mmio = [
            "Name (_S5",
            "LNRO0005",
            "PNP0501",
            "0xD0000000",
            "0xD0002000",
            "0x00000005,",
            "0x00000007,",
            "QEMU0001",
            "0x0505",
            "PNP0B00",
            "0x0070",
        ];
        means(&spec(2, 1), &mmio);
        let pci = ["PNP0A03", "0xE0000000", "0xEFFFFFFF", "0x0CF8", "_PRT", "0x0002FFFF", "0x12"];
        means(&MachineSpec { bus: BusKind::Pci, ..spec(2, 1) }, &pci);
    }

    /// The DSDT, disassembled, has these parts.
    fn means(spec: &MachineSpec, parts: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        for (name, table) in tables(spec) {
            std::fs::write(dir.path().join(format!("{name}.dat")), table).unwrap();
            let out = std::process::Command::new("iasl")
                .args(["-d", &format!("{name}.dat")])
                .current_dir(dir.path())
                .output()
                .unwrap();
            let said =
                format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
            assert!(out.status.success(), "{name}: {said}");
            for bad in ["Error", "Warning", "invalid"] {
                assert!(!said.contains(bad), "{name}: {said}");
            }
        }
        let dsdt = std::fs::read_to_string(dir.path().join("DSDT.dsl")).unwrap();
        for part in parts {
            assert!(dsdt.contains(part), "{part} in {dsdt}");
        }
        // It must also compile again.
        let again =
            std::process::Command::new("iasl").arg("DSDT.dsl").current_dir(dir.path()).output().unwrap();
        let said = String::from_utf8_lossy(&again.stdout).into_owned();
        assert!(said.contains(" 0 Errors"), "{said}");
    }
}
