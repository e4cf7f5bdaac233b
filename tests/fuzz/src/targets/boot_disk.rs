//! The search for what a disk has to be booted: partition tables, ext4 and its journal, vfat, boot loader entries and
//! grub.cfg. An input is a disk (see [`sparse`]); the checksums of its partition table are put right.

use crate::input::{FuzzInput, put_sparse, sparse};
use crc::{CRC_32_ISO_HDLC, Crc};
use ft_image::testing::{ext4_with, gpt, mbr, vfat};
use ft_image::{BootLimits, find};

const DISK_BYTES_MAX: usize = 24 << 20;
const FILE_BYTES_MAX: u64 = 1 << 20;
const SECTOR: usize = 512;

/// See the module.
pub(crate) fn run(input: &[u8]) {
    let mut disk = sparse(&mut FuzzInput::new(input), DISK_BYTES_MAX);
    let last = (disk.len() / SECTOR).saturating_sub(1);
    for sector in [1, last] {
        mend_gpt(&mut disk, sector * SECTOR);
    }
    match find(Box::new(disk), &BootLimits { file_bytes_max: FILE_BYTES_MAX }) {
        Ok(entry) => {
            let initrd = entry.initrd.as_ref().map_or(0, Vec::len);
            assert!(entry.kernel.len() as u64 <= FILE_BYTES_MAX && initrd as u64 <= FILE_BYTES_MAX);
            assert!(!entry.origin.to_string().is_empty());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Puts the checksums of the header in this place right, if there is one.
fn mend_gpt(disk: &mut [u8], at: usize) {
    let crc = Crc::<u32>::new(&CRC_32_ISO_HDLC);
    let Some(header) = disk.get(at..at + SECTOR).filter(|header| header.starts_with(b"EFI PART")) else {
        return;
    };
    let word = |offset: usize| u32::from_le_bytes(std::array::from_fn(|i| header[offset + i])) as usize;
    let (header_bytes, first) = (word(12).min(SECTOR), word(72).saturating_mul(SECTOR));
    let entries = first.checked_add(word(80).saturating_mul(word(84))).and_then(|end| disk.get(first..end));
    if let Some(checksum) = entries.map(|entries| crc.checksum(entries)) {
        disk[at + 88..at + 92].copy_from_slice(&checksum.to_le_bytes());
    }
    disk[at + 16..at + 20].fill(0);
    let checksum = crc.checksum(&disk[at..at + header_bytes]);
    disk[at + 16..at + 20].copy_from_slice(&checksum.to_le_bytes());
}

const GRUB: &str = "set default=\"0\"\nif [ -s $prefix/grubenv ]; then load_env; fi\n\
    function f { set a=\"${1}\"; }\nf b\nsearch --no-floppy --fs-uuid --set=root cafe-0001\n\
    menuentry 'Linux' --class os {\n linux /vmlinuz root=$root ro quiet\n initrd /initrd.img\n}\n\
    submenu 'more' {\n menuentry 'old' { linux /vmlinuz old; }\n}\nfor x in 1 2; do set b=$b$x; done\n";
const ENTRY: &str =
    "title Linux\nversion 6.1\nlinux /vmlinuz\ninitrd /initrd.img\noptions root=/dev/vda2 $kernelopts\n";

/// See the module.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let files = [("/vmlinuz", "a kernel"), ("/initrd.img", "an initrd")];
    let with = |more: &[(&'static str, &'static str)]| [&files[..], more].concat();
    let by_grub = with(&[("/boot/grub/grub.cfg", GRUB), ("/boot/grub/grubenv", "saved_entry=1\n")]);
    let by_entry = with(&[("/loader/entries/a+3.conf", ENTRY), ("/loader/loader.conf", "default a*\n")]);
    let links = with(&[("/boot/vmlinuz-6.1.0", "-> ../vmlinuz")]);
    let options = ["-O", "^metadata_csum", "-U", "11111111-2222-3333-4444-555555555555", "-N", "64"];
    // Not unmounted: its journal is to be looked at.
    let mut used = ext4_with(&by_grub, &options);
    used[1024 + 0x60] |= 4;
    let disks = [
        used,
        gpt(&[vfat(&by_entry)]),
        mbr(&[vfat(&[]), vfat(&by_grub)]),
        vfat(&by_grub),
        ext4_with(&by_grub, &options),
        ext4_with(&links, &options),
    ];
    let input = |disk: &Vec<u8>| {
        let mut input = Vec::new();
        put_sparse(&mut input, disk);
        input
    };
    disks.iter().map(input).collect()
}
