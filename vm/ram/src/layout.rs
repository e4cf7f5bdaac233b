//! The guest-physical address map and interrupt numbers, in one place. Boot tables, devices and the freestanding
//! guest all read from here; a change is a change of the machine's version.

/// Bytes in a page: the unit of dirty tracking and replication.
pub const PAGE_SIZE: usize = 4096;

/// RAM below 4 GiB ends here at the latest; what is above it starts at [`HIGH_RAM_BASE`].
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// RAM that does not fit below the hole continues here.
pub const HIGH_RAM_BASE: u64 = 0x1_0000_0000;

/// virtio-mmio device `i` sits at `VIRTIO_MMIO_BASE + i * VIRTIO_MMIO_SIZE`.
pub const VIRTIO_MMIO_BASE: u64 = 0xd000_0000;
/// Bytes of one virtio-mmio window.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// virtio-mmio devices raise the GSIs from here on, in order, but for [`RTC_GSI`] and [`SCI_GSI`].
pub const VIRTIO_GSI_BASE: u32 = 5;
/// Windows reserved for virtio-mmio; GSIs stay within one IOAPIC.
pub const VIRTIO_DEVICES_MAX: usize = 16;

/// The platform device: clock, idle, power and identity registers for guests without firmware or interrupts.
/// It shares the first 2 MiB of the MMIO hole with the virtio windows, so that one large page maps them all.
pub const PLATFORM_BASE: u64 = 0xd010_0000;
/// Bytes of the platform device's window.
pub const PLATFORM_SIZE: u64 = 0x1000;

/// PCI: first of the eight ports of configuration mechanism #1.
pub const PCI_CONFIG_PORT: u16 = 0xcf8;
/// PCI: where base address registers may lie; elsewhere they are not decoded.
pub const PCI_WINDOW_BASE: u64 = 0xe000_0000;
/// Bytes of that.
pub const PCI_WINDOW_SIZE: u64 = 0x1000_0000;
/// PCI: GSI of the first of the [`PCI_LINES`] interrupt lines, above those of the ISA bus. The function of device `d`
/// has line `(d - 1) % PCI_LINES`.
pub const PCI_GSI_BASE: u32 = 16;
/// PCI: interrupt lines that the devices share.
pub const PCI_LINES: u32 = 8;

/// COM1: first I/O port and GSI.
pub const COM1_PORT: u16 = 0x3f8;
/// COM1's interrupt.
pub const COM1_GSI: u32 = 4;
/// ACPI power management: PM1a event block (4 bytes), then PM1a control block (2 bytes).
pub const PM1A_EVT_PORT: u16 = 0x600;
/// PM1a control block; writing SLP_EN with [`SLP_TYP_S5`] powers off.
pub const PM1A_CNT_PORT: u16 = 0x604;
/// ACPI reset register: writing [`RESET_VALUE`] resets.
pub const RESET_PORT: u16 = 0x608;
/// Value for the ACPI reset register.
pub const RESET_VALUE: u8 = 0x01;
/// SLP_TYP of S5 (soft off), as announced in the DSDT.
pub const SLP_TYP_S5: u8 = 5;
/// ACPI's system control interrupt.
pub const SCI_GSI: u32 = 9;
/// The i8042's command port: writing 0xfe pulses the reset line, which is how kernels without ACPI reboot.
pub const I8042_COMMAND_PORT: u16 = 0x64;

/// The pvpanic port, at which a guest's kernel says that it has panicked; QEMU's, too.
pub const PVPANIC_PORT: u16 = 0x505;

/// The watchdog's eight ports; see `ft_vm`'s `devices/watchdog.rs`.
pub const WATCHDOG_PORT: u16 = 0x610;
/// Milliseconds of a tick of the watchdog.
pub const WATCHDOG_TICK_MS: u32 = 100;

/// The RTC's two ports, and its interrupt; where PCs keep the century in its memory.
pub const RTC_PORT: u16 = 0x70;
/// The RTC's interrupt.
pub const RTC_GSI: u32 = 8;
/// The byte of the RTC's memory that is the century.
pub const RTC_CENTURY: u8 = 0x32;

/// RSDP and ACPI tables (the BIOS read-only area, where kernels scan for the signature).
pub const ACPI_BASE: u64 = 0x000e_0000;
/// Room for RSDP and ACPI tables, up to 1 MiB.
pub const ACPI_SIZE: u64 = 0x0001_0000;
/// The MP floating pointer and table (last KiB of the 640 KiB base memory).
pub const MPTABLE_BASE: u64 = 0x0009_fc00;
/// Local APIC, as in every PC.
pub const LAPIC_BASE: u64 = 0xfee0_0000;
/// I/O APIC, as in every PC.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// Three pages that Intel's KVM needs for real-mode emulation; below the BIOS area at 4 GiB.
pub const KVM_TSS_BASE: u64 = 0xfffb_d000;
/// One page for Intel's KVM identity map.
pub const KVM_IDENTITY_MAP_BASE: u64 = 0xfffb_c000;

/// Linux: zero page (boot parameters).
pub const ZERO_PAGE: u64 = 0x7000;
/// Boot stack pointer and page tables live between 0x8000 and 0xf000.
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
/// Boot GDT.
pub const BOOT_GDT: u64 = 0x500;
/// The kernel's command line; at most [`CMDLINE_SIZE`] bytes with its terminating NUL.
pub const CMDLINE_BASE: u64 = 0x20000;
/// Bytes reserved for the command line.
pub const CMDLINE_SIZE: usize = 4096;
/// Kernels load here (1 MiB).
pub const HIMEM_BASE: u64 = 0x0010_0000;

/// Freestanding guests: page tables (identity, user, 2 MiB pages) start here.
pub const FREESTANDING_PAGE_TABLES: u64 = 0x10_0000;
/// Freestanding guests: bytes of stack of each vCPU; vCPU `i`'s stack ends at `low_ram_end - i * this`.
pub const FREESTANDING_STACK_SIZE: u64 = 256 * 1024;

/// Registers of the platform device: byte offsets from [`PLATFORM_BASE`]. All are 8 bytes wide unless said.
pub mod platform {
    /// Read: guest time in nanoseconds. Monotonic; goes on from the checkpoint after a take-over.
    pub const CLOCK_NS: u64 = 0x00;
    /// Write: give up the processor until a device has something for the driver, or for this many microseconds.
    pub const IDLE_US: u64 = 0x08;
    /// Write: power off.
    pub const POWER_OFF: u64 = 0x10;
    /// Write: reset.
    pub const RESET: u64 = 0x18;
    /// Write, 1 byte: a character to the console.
    pub const CONSOLE: u64 = 0x20;
    /// Read: number of vCPUs.
    pub const VCPUS: u64 = 0x28;
    /// Read: bytes of RAM.
    pub const RAM_BYTES: u64 = 0x30;
    /// Read: 1 when the power button was pressed and no driver of the ACPI registers has taken notice, else 0.
    pub const POWER_BUTTON: u64 = 0x38;
    /// Write: the guest has panicked; as at the pvpanic port.
    pub const PANIC: u64 = 0x40;
    /// Write: the watchdog begins anew with so many milliseconds; 0 ends it.
    pub const WATCHDOG_MS: u64 = 0x48;
}
