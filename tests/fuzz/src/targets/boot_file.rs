//! The files that a machine boots: a kernel as bzImage or ELF, an initramfs, a command line, a freestanding program. An
//! input says which, and is the file. It is refused, or the machine has it in its memory and could be resumed.

use crate::input::{FuzzInput, put_piece};
use ft_ram::GuestRam;
use ft_vm::devices::{ConsoleSink, Wiring};
use ft_vm::machine::Machine;
use ft_vm::spec::{Boot, BootContent, BusKind, CpuModel, EngineKind, FreestandingImage, MachineSpec};
use std::io::Write;
use std::os::fd::AsRawFd;

const RAM_BYTES: u64 = 16 << 20;
const PROGRAM_BASE: u64 = 0x20_0000;

struct Silent;

impl ConsoleSink for Silent {
    fn write(&mut self, _: &[u8]) {}
}

/// See the module.
pub(crate) fn run(input: &[u8]) {
    let mut input = FuzzInput::new(input);
    let settings = input.u8();
    let cmdline = String::from_utf8_lossy(input.piece()).into_owned();
    let content = |name: &str, bytes: &[u8]| BootContent { name: name.into(), bytes: bytes.into() };
    let initrd = (settings & 2 != 0).then(|| content("initrd", input.piece()));
    let file;
    let boot = if settings & 1 == 0 {
        Boot::LinuxRead { kernel: content("vmlinuz", input.rest()), initrd, cmdline }
    } else {
        let mut program = tempfile::tempfile().expect("there is room for a file");
        program.write_all(input.rest()).expect("there is room for it");
        file = program;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        Boot::Freestanding { image: FreestandingImage::File(path.into()), cmdline }
    };
    let spec = MachineSpec {
        engine: EngineKind::Soft,
        vcpus: 1,
        ram_bytes: RAM_BYTES,
        nets: Vec::new(),
        disks: Vec::new(),
        rng: false,
        bus: if settings & 4 == 0 { BusKind::Mmio } else { BusKind::Pci },
        cpu: CpuModel::Host,
    };
    let ram = GuestRam::new(RAM_BYTES).expect("there is memory");
    let wiring = Wiring { frames: None, console: Box::new(Silent), disks: Vec::new() };
    let mut machine = Machine::new(&spec, &ram, wiring).expect("a machine can be made");
    match machine.boot(&boot) {
        Ok(()) => machine.capture(&mut Vec::new()).expect("what was booted can be captured"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// The smallest static ELF64 file: one segment, entered at its start.
fn elf(base: u64, code: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [base, 64, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    file.extend_from_slice(&[1, 0, 0, 0, 7, 0, 0, 0]);
    for word in [120, base, base, code.len() as u64, code.len() as u64, 4096] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(code);
    file
}

/// A bzImage with a 64-bit entry (Documentation/arch/x86/boot.rst): four sectors of setup, then the kernel.
fn bz_image() -> Vec<u8> {
    let mut file = vec![0; 512 * 5 + 0x400];
    file[0x1f1] = 4;
    file[0x1f4..0x1f8].copy_from_slice(&64u32.to_le_bytes());
    file[0x1fe..0x200].copy_from_slice(&0xaa55u16.to_le_bytes());
    file[0x200..0x202].copy_from_slice(&[0xeb, 0x66]);
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    file[0x211] = 1;
    file[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
    file[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    file[0x230..0x234].copy_from_slice(&0x20_0000u32.to_le_bytes());
    file[0x234] = 1;
    file[0x236..0x238].copy_from_slice(&3u16.to_le_bytes());
    file[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
    file[0x258..0x260].copy_from_slice(&0x10_0000u64.to_le_bytes());
    file[0x260..0x264].copy_from_slice(&0x1000u32.to_le_bytes());
    file
}

/// See the module.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let seed = |settings: u8, initrd: Option<&[u8]>, file: &[u8]| {
        let mut seed = vec![settings];
        put_piece(&mut seed, b"console=ttyS0 a=b");
        initrd.iter().for_each(|initrd| put_piece(&mut seed, initrd));
        seed.extend_from_slice(file);
        seed
    };
    vec![
        seed(0, None, &bz_image()),
        seed(2, Some(b"070701"), &bz_image()),
        seed(4, None, &elf(0x10_0000, &[0xf4; 64])),
        seed(1, None, &elf(PROGRAM_BASE, &[0xf4; 64])),
    ]
}
