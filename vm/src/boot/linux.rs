//! Linux by its 64-bit boot protocol (Documentation/arch/x86/boot.rst): bzImage or vmlinux, initramfs, command line,
//! e820 map, ACPI tables and MP table, and the first vCPU at the kernel's entry. The others wait for their start, as
//! after power-on.

use super::entry::{Entry, EntrySegment, Firmware, VcpuEntry};
use super::{BootError, acpi, control, mptable, unreadable, write_cmdline};
use crate::devices::cmdline_additions;
use crate::spec::{BootContent, MachineSpec};
use ft_ram::GuestRam;
use ft_ram::layout::{
    ACPI_BASE, ACPI_SIZE, BOOT_GDT, BOOT_PAGE_TABLES, CMDLINE_BASE, CMDLINE_SIZE, HIGH_RAM_BASE, HIMEM_BASE,
    MPTABLE_BASE, PAGE_SIZE, ZERO_PAGE,
};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, Elf, KernelLoader, KernelLoaderResult};
use std::fs;
use std::io::{Cursor, Read, Seek};
use std::ops::Range;
use std::path::Path;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, ReadVolatile};

/// "HdrS"
const HEADER_MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
/// A loader without a number of its own.
const LOADER_OTHER: u8 = 0xff;
/// The kernel has an entry for 64-bit mode, 0x200 bytes after its start.
const XLF_KERNEL_64: u16 = 1;
const ENTRY_64: u64 = 0x200;
const LOADED_HIGH: u8 = 1;
/// Highest address of an initramfs for kernels that do not say (vmlinux): 32 bits, less what old kernels spare.
const INITRD_END_MAX: u64 = 0x8000_0000;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// Base memory ends where the MP table begins; the legacy video and ROM area follows.
const BIOS_AREA: u64 = 0xa_0000;

/// `__BOOT_CS` and `__BOOT_DS` of the protocol.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x20;

/// MTRRs enabled, write-back by default: what firmware leaves behind. Without, the kernel takes all memory for
/// uncached.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;
/// ExtINT on LINT0, NMI on LINT1.
const LINT_MODES: [u32; 2] = [0x700, 0x400];

/// A file that is loaded.
pub(super) enum File<'a> {
    /// Of the host.
    Path(&'a Path),
    /// That was read already.
    Read(&'a BootContent),
}

pub(super) fn load(
    kernel: File<'_>,
    initrd: Option<File<'_>>,
    cmdline: &str,
    ram: &GuestRam,
    spec: &MachineSpec,
) -> Result<Entry, BootError> {
    let additions = cmdline_additions(spec);
    let cmdline = [cmdline.trim(), additions.as_str()].join(" ");
    let cmdline_bytes = write_cmdline(ram, cmdline.trim())?;
    let loaded = load_kernel(kernel, ram)?;

    let mut params = boot_params { hdr: loaded.header, ..Default::default() };
    if let Some(initrd) = initrd {
        let highest = match u64::from(params.hdr.initrd_addr_max) {
            0 => INITRD_END_MAX,
            last => last + 1,
        };
        let (base, bytes) = load_initrd(initrd, loaded.end, highest, ram)?;
        (params.hdr.ramdisk_image, params.hdr.ramdisk_size) = (base as u32, bytes as u32);
    }
    params.hdr.type_of_loader = LOADER_OTHER;
    params.hdr.cmd_line_ptr = CMDLINE_BASE as u32;
    params.hdr.cmdline_size = cmdline_bytes as u32;
    params.acpi_rsdp_addr = acpi::write_tables(ram.memory(), spec)?;
    mptable::write_mptable(ram.memory(), spec)?;
    let map = e820(ram);
    params.e820_entries = map.len() as u8;
    params.e820_table[..map.len()].copy_from_slice(&map);
    ram.memory().write_obj(params, GuestAddress(ZERO_PAGE))?;

    write_page_tables(ram)?;
    Ok(Entry {
        vcpus: vec![entry(loaded.entry, ram)?],
        firmware: Some(Firmware { mtrr_def_type: MTRR_WRITE_BACK, lint_modes: LINT_MODES }),
    })
}

struct LoadedKernel {
    entry: u64,
    /// First address that the kernel does not need while it starts.
    end: u64,
    header: setup_header,
}

fn load_kernel(kernel: File<'_>, ram: &GuestRam) -> Result<LoadedKernel, BootError> {
    match kernel {
        File::Path(path) => {
            let (mut file, bytes) = open("kernel", path)?;
            load_kernel_from(&mut file, bytes, path, ram)
        }
        File::Read(BootContent { name, bytes }) => {
            load_kernel_from(&mut Cursor::new(bytes), bytes.len() as u64, Path::new(name), ram)
        }
    }
}

/// A file of the host, and its size.
fn open(what: &'static str, path: &Path) -> Result<(fs::File, u64), BootError> {
    let file = fs::File::open(path).map_err(unreadable(what, path))?;
    let bytes = file.metadata().map_err(unreadable(what, path))?.len();
    Ok((file, bytes))
}

fn load_kernel_from<F: Read + Seek + ReadVolatile>(
    file: &mut F,
    file_bytes: u64,
    path: &Path,
    ram: &GuestRam,
) -> Result<LoadedKernel, BootError> {
    let mut magic = [0; 4];
    let not_a_kernel =
        |why: &dyn std::fmt::Display| BootError::NotAKernel { path: path.to_owned(), why: why.to_string() };
    file.read_exact(&mut magic).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => not_a_kernel(&"it has less than four bytes"),
        _ => unreadable("kernel", path)(e),
    })?;
    let fits = |end: u64| match end <= ram.low_end() {
        true => Ok(end),
        false => Err(BootError::TooLarge { what: "kernel", end, room: ram.low_end() }),
    };
    if magic == *b"\x7fELF" {
        let end = elf_end(file, file_bytes).map_err(|why| not_a_kernel(&why))?;
        let end = fits(end)?;
        let KernelLoaderResult { kernel_load, .. } =
            load_by::<Elf, F>(file, ram).map_err(|e| not_a_kernel(&e))?;
        let header = setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            kernel_alignment: 0x100_0000,
            loadflags: LOADED_HIGH,
            ..Default::default()
        };
        return Ok(LoadedKernel { entry: kernel_load.0, end, header });
    }
    // The part that is loaded is shorter than the file.
    fits(HIMEM_BASE + file_bytes)?;
    let KernelLoaderResult { kernel_load, kernel_end, setup_header, .. } =
        load_by::<BzImage, F>(file, ram).map_err(|e| not_a_kernel(&e))?;
    let Some(header) = setup_header.filter(|header| header.xloadflags & XLF_KERNEL_64 != 0) else {
        return Err(not_a_kernel(&"it has no entry for 64-bit mode"));
    };
    // It unpacks itself in place, or to where it prefers to be.
    let unpacked = kernel_load.0.max(header.pref_address).saturating_add(header.init_size.into());
    Ok(LoadedKernel { entry: kernel_load.0 + ENTRY_64, end: fits(unpacked.max(kernel_end))?, header })
}

fn load_by<L: KernelLoader, F: Read + Seek + ReadVolatile>(
    file: &mut F,
    ram: &GuestRam,
) -> Result<KernelLoaderResult, linux_loader::loader::Error> {
    L::load(ram.memory(), None, file, Some(GuestAddress(HIMEM_BASE)))
}

/// First address after a vmlinux' segments, checked before linux-loader writes the first of them. So is whether the
/// file has what its program headers say: linux-loader adds up what they say.
fn elf_end(file: &mut (impl Read + Seek), file_bytes: u64) -> Result<u64, String> {
    let mut header = [0; 64];
    file.rewind().and_then(|()| file.read_exact(&mut header)).map_err(|e| e.to_string())?;
    if header[4] != 2 {
        return Err("it is not a 64-bit ELF file".into());
    }
    let u64_at = |bytes: &[u8], at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    let table = u64_at(&header, 32);
    let count = u16::from_le_bytes([header[56], header[57]]);
    let mut end = HIMEM_BASE;
    file.seek(std::io::SeekFrom::Start(table)).map_err(|e| e.to_string())?;
    for _ in 0..count {
        let mut segment = [0; 56];
        file.read_exact(&mut segment).map_err(|_| "its program headers are cut off".to_owned())?;
        if u64_at(&segment, 8).saturating_add(u64_at(&segment, 32)) > file_bytes {
            return Err("a segment is cut off".into());
        }
        if segment[..4] == [1, 0, 0, 0] {
            end = end.max(u64_at(&segment, 24).saturating_add(u64_at(&segment, 40)));
        }
    }
    Ok(end)
}

/// Loads the initramfs as high as it may be; its address and size.
fn load_initrd(initrd: File<'_>, after: u64, highest: u64, ram: &GuestRam) -> Result<(u64, u64), BootError> {
    match initrd {
        File::Path(path) => {
            let (mut file, bytes) = open("initramfs", path)?;
            load_initrd_from(&mut file, bytes, path, after..highest, ram)
        }
        File::Read(BootContent { name, bytes }) => {
            let (mut file, path) = (Cursor::new(bytes), Path::new(name));
            load_initrd_from(&mut file, bytes.len() as u64, path, after..highest, ram)
        }
    }
}

fn load_initrd_from(
    file: &mut impl ReadVolatile,
    bytes: u64,
    path: &Path,
    place: Range<u64>,
    ram: &GuestRam,
) -> Result<(u64, u64), BootError> {
    let room = ram.low_end().min(place.end);
    let base = room
        .checked_sub(bytes)
        .map(|base| base & !(PAGE_SIZE as u64 - 1))
        .filter(|&base| base >= place.start);
    let Some(base) = base else {
        return Err(BootError::TooLarge { what: "initramfs", end: place.start.saturating_add(bytes), room });
    };
    let mut at = 0;
    while at < bytes {
        let chunk = (bytes - at).min(1 << 20);
        let slice = ram.memory().get_slice(GuestAddress(base + at), chunk as usize)?;
        file.read_exact_volatile(&mut slice.offset(0).map_err(vm_memory::GuestMemoryError::from)?)
            .map_err(|e| unreadable("initramfs", path)(std::io::Error::other(e.to_string())))?;
        at += chunk;
    }
    Ok((base, bytes))
}

fn e820(ram: &GuestRam) -> Vec<boot_e820_entry> {
    let entry = |addr: u64, end: u64, kind: u32| boot_e820_entry { addr, size: end - addr, r#type: kind };
    let mut map = vec![
        entry(0, MPTABLE_BASE, E820_RAM),
        entry(MPTABLE_BASE, BIOS_AREA, E820_RESERVED),
        entry(ACPI_BASE, ACPI_BASE + ACPI_SIZE, E820_RESERVED),
        entry(HIMEM_BASE, ram.low_end(), E820_RAM),
    ];
    let high = ram.bytes() - ram.low_end();
    if high > 0 {
        map.push(entry(HIGH_RAM_BASE, HIGH_RAM_BASE + high, E820_RAM));
    }
    map
}

/// The first 4 GiB, identity-mapped by 2 MiB pages: kernel, zero page and command line are among them, as the
/// protocol asks.
fn write_page_tables(ram: &GuestRam) -> Result<(), BootError> {
    const TABLE: u64 = 0b11;
    const LARGE_PAGE: u64 = TABLE | 1 << 7;
    let pdpt = BOOT_PAGE_TABLES + 0x1000;
    let directories = BOOT_PAGE_TABLES + 0x2000;
    ram.memory().write_obj(pdpt | TABLE, GuestAddress(BOOT_PAGE_TABLES))?;
    for directory in 0..4u64 {
        ram.memory()
            .write_obj((directories + directory * 0x1000) | TABLE, GuestAddress(pdpt + directory * 8))?;
    }
    for page in 0..4 * 512u64 {
        ram.memory().write_obj((page << 21) | LARGE_PAGE, GuestAddress(directories + page * 8))?;
    }
    Ok(())
}

/// 64-bit mode at the kernel's entry, with a GDT of the segments that the protocol names.
fn entry(rip: u64, ram: &GuestRam) -> Result<VcpuEntry, BootError> {
    let code = EntrySegment::code(CODE_SELECTOR, 0);
    let data = EntrySegment::data(DATA_SELECTOR, 0);
    let task = EntrySegment::task(TSS_SELECTOR, 0x67);
    let gdt = [0, 0, code.descriptor(), data.descriptor(), task.descriptor(), 0];
    for (index, entry) in (0u64..).zip(gdt) {
        ram.memory().write_obj(entry, GuestAddress(BOOT_GDT + index * 8))?;
    }
    Ok(VcpuEntry {
        rip,
        rsp: BOOT_PAGE_TABLES - 0x10,
        rbp: BOOT_PAGE_TABLES - 0x10,
        rdi: 0,
        rsi: ZERO_PAGE,
        rdx: 0,
        code,
        data,
        task: Some(task),
        gdt: (BOOT_GDT, (gdt.len() * 8 - 1) as u16),
        cr0: control::CR0_PE_ET_PG,
        cr3: BOOT_PAGE_TABLES,
        cr4: control::CR4_PAE,
        efer: control::EFER_LME_LMA,
    })
}

const _: () = assert!(CMDLINE_BASE as usize + CMDLINE_SIZE <= MPTABLE_BASE as usize);
