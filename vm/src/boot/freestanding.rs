//! Freestanding guests: a static ELF64 program that every vCPU enters in 64-bit mode at CPL 3, with the first 3 GiB of
//! RAM and the devices' registers identity-mapped for it. The guest has no interrupts and no exceptions: it polls, and
//! a fault ends it. It needs only the user-mode instructions of a processor.

use super::entry::{Entry, EntrySegment, VcpuEntry};
use super::{BootError, write_cmdline};
use crate::spec::MachineSpec;
use ft_ram::GuestRam;
use ft_ram::layout::{
    CMDLINE_BASE, FREESTANDING_PAGE_TABLES, FREESTANDING_STACK_SIZE, PLATFORM_BASE, PLATFORM_SIZE,
    VIRTIO_MMIO_BASE,
};
use vm_memory::{Bytes, GuestAddress};

const PAGE_2M: u64 = 2 << 20;
const TABLE_BYTES: u64 = 4096;
/// Present, writable, user, and accessed already, so that the processor has no reason to dirty the tables.
const TABLE: u64 = 0b111 | 1 << 5;
/// As above, dirty already, and a 2 MiB page.
const LARGE_PAGE: u64 = TABLE | 1 << 6 | 1 << 7;
/// The levels above the four page directories, which map 1 GiB each.
const DIRECTORIES: u64 = FREESTANDING_PAGE_TABLES + 2 * TABLE_BYTES;
const TABLES_END: u64 = DIRECTORIES + 4 * TABLE_BYTES;

/// CR0: PE, MP, ET, NE, WP, AM, PG.
const CR0: u64 = 0x8005_0033;
/// CR4: PAE, OSFXSR, OSXMMEXCPT.
const CR4: u64 = 0x620;
/// EFER: SCE, LME, LMA, NXE.
const EFER: u64 = 0xd01;
const CODE_SELECTOR: u16 = 0x33;
const DATA_SELECTOR: u16 = 0x2b;

pub(super) fn load(
    name: &str,
    image: &[u8],
    cmdline: &str,
    ram: &GuestRam,
    spec: &MachineSpec,
) -> Result<Entry, BootError> {
    let program = Program::parse(image)
        .map_err(|why| BootError::NotAProgram { name: name.to_owned(), why: why.to_owned() })?;
    let vcpus = usize::from(spec.vcpus);
    let stacks = vcpus as u64 * FREESTANDING_STACK_SIZE;
    let room = ram.low_end().saturating_sub(stacks);
    for segment in &program.segments {
        if segment.address < TABLES_END {
            return Err(BootError::NotAProgram {
                name: name.to_owned(),
                why: format!("it wants to be at {:#x}, below {TABLES_END:#x}", segment.address),
            });
        }
        let end = segment.address.saturating_add(segment.bytes_in_memory);
        if end > ram.low_end() {
            return Err(BootError::TooLarge { what: "program", end, room: ram.low_end() });
        }
        if end > room {
            return Err(BootError::Stacks { vcpus });
        }
        // The rest of the segment is zero already: this is a fresh machine.
        ram.memory().write_slice(segment.content, GuestAddress(segment.address))?;
    }
    let cmdline_bytes = write_cmdline(ram, cmdline)?;
    write_page_tables(ram)?;

    let vcpus = (0..u64::from(spec.vcpus)).map(|index| VcpuEntry {
        rip: program.entry,
        // As after a call: a return address (zero) is on the stack.
        rsp: ram.low_end() - index * FREESTANDING_STACK_SIZE - 8,
        rbp: 0,
        rdi: index,
        rsi: CMDLINE_BASE,
        rdx: cmdline_bytes as u64,
        code: EntrySegment::code(CODE_SELECTOR, 3),
        data: EntrySegment::data(DATA_SELECTOR, 3),
        task: None,
        gdt: (0, 0),
        cr0: CR0,
        cr3: FREESTANDING_PAGE_TABLES,
        cr4: CR4,
        efer: EFER,
    });
    Ok(Entry { vcpus: vcpus.collect(), firmware: None })
}

fn write_page_tables(ram: &GuestRam) -> Result<(), BootError> {
    let put =
        |table: u64, index: u64, entry: u64| ram.memory().write_obj(entry, GuestAddress(table + index * 8));
    put(FREESTANDING_PAGE_TABLES, 0, (FREESTANDING_PAGE_TABLES + TABLE_BYTES) | TABLE)?;
    for directory in 0..4 {
        let address = DIRECTORIES + directory * TABLE_BYTES;
        put(FREESTANDING_PAGE_TABLES + TABLE_BYTES, directory, address | TABLE)?;
    }
    let ram_pages = (0..ram.low_end()).step_by(PAGE_2M as usize);
    let device_pages = (VIRTIO_MMIO_BASE..PLATFORM_BASE + PLATFORM_SIZE).step_by(PAGE_2M as usize);
    for page in ram_pages.chain(device_pages) {
        // The four directories follow each other: one index runs through them all.
        put(DIRECTORIES, page / PAGE_2M, page | LARGE_PAGE)?;
    }
    Ok(())
}

/// What is used of an ELF file.
struct Program<'a> {
    entry: u64,
    segments: Vec<Segment<'a>>,
}

struct Segment<'a> {
    address: u64,
    bytes_in_memory: u64,
    content: &'a [u8],
}

const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const HEADER_BYTES: usize = 64;
const SEGMENT_HEADER_BYTES: usize = 56;

impl<'a> Program<'a> {
    /// A static little-endian ELF64 executable for x86-64 (ELF-64 Object File Format, figures 2 and 6).
    fn parse(image: &'a [u8]) -> Result<Self, &'static str> {
        let header = image.get(..HEADER_BYTES).ok_or("it is too short for an ELF header")?;
        if header[..4] != *b"\x7fELF" {
            return Err("it is not an ELF file");
        }
        if header[4..6] != [2, 1] {
            return Err("it is not a little-endian 64-bit ELF file");
        }
        if (u16_at(header, 16), u16_at(header, 18)) != (2, 62) {
            return Err("it is not a statically placed executable for x86-64");
        }
        if usize::from(u16_at(header, 54)) != SEGMENT_HEADER_BYTES {
            return Err("its program headers have another size than ELF64's");
        }
        let (entry, table) = (u64_at(header, 24), u64_at(header, 32));
        let mut segments = Vec::new();
        for index in 0..u64::from(u16_at(header, 56)) {
            let at =
                table.checked_add(index * SEGMENT_HEADER_BYTES as u64).ok_or("bad program header offset")?;
            let segment =
                part(image, at, SEGMENT_HEADER_BYTES as u64).ok_or("its program headers are cut off")?;
            let kind = u32_at(segment, 0);
            if kind == PT_INTERP {
                return Err("it is dynamically linked");
            }
            let bytes_in_memory = u64_at(segment, 40);
            if kind != PT_LOAD || bytes_in_memory == 0 {
                continue;
            }
            let content =
                part(image, u64_at(segment, 8), u64_at(segment, 32)).ok_or("a segment is cut off")?;
            if content.len() as u64 > bytes_in_memory {
                return Err("a segment has more bytes in the file than in memory");
            }
            segments.push(Segment { address: u64_at(segment, 16), bytes_in_memory, content });
        }
        let inside = |s: &Segment<'_>| entry.checked_sub(s.address).is_some_and(|o| o < s.bytes_in_memory);
        if !segments.iter().any(inside) {
            return Err("its entry is in none of its segments");
        }
        Ok(Self { entry, segments })
    }
}

fn part(image: &[u8], at: u64, bytes: u64) -> Option<&[u8]> {
    let at = usize::try_from(at).ok()?;
    image.get(at..at.checked_add(usize::try_from(bytes).ok()?)?)
}

/// Fields of headers whose length has been checked.
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn arbitrary_bytes_behind_an_elf_header_never_panic(
            mut image in proptest::collection::vec(any::<u8>(), 64..400), table in 0u64..400, count in 0u16..8
        ) {
            image[..6].copy_from_slice(b"\x7fELF\x02\x01");
            image[16..20].copy_from_slice(&[2, 0, 62, 0]);
            image[32..40].copy_from_slice(&table.to_le_bytes());
            image[54..56].copy_from_slice(&56u16.to_le_bytes());
            image[56..58].copy_from_slice(&count.to_le_bytes());
            if let Ok(program) = Program::parse(&image) {
                prop_assert!(program.segments.iter().all(|s| s.content.len() as u64 <= s.bytes_in_memory));
            }
        }
    }

    #[test]
    fn what_is_no_static_program_is_refused_by_name() {
        let refused = |image: &[u8]| Program::parse(image).err().unwrap();
        assert!(refused(b"#!/bin/sh").contains("too short"));
        assert!(refused(&[0; 100]).contains("not an ELF"));
        let mut shared = [0; 100];
        shared[..6].copy_from_slice(b"\x7fELF\x02\x01");
        shared[16..20].copy_from_slice(&[3, 0, 62, 0]);
        assert!(refused(&shared).contains("statically placed"));
    }
}
