//! The words of the confined child that reads a disk, as the daemon hears them. An input is what the child says, one
//! word after the other.

use ft_image::{BootEntry, BootOrigin};
use ftd::boot::fuzzing::{ChildWord, hear, said};

const DISK_BYTES: u64 = 1 << 20;
const FILE_BYTES_MAX: u64 = 4096;
/// What is asked for at once, at most.
const READ_BYTES_MAX: usize = 128 << 10;

/// See the module.
pub(crate) fn run(input: &[u8]) {
    let mut words = input;
    loop {
        match hear(&mut words, DISK_BYTES, FILE_BYTES_MAX) {
            Ok(ChildWord::Read { offset, bytes }) => {
                assert!(bytes <= READ_BYTES_MAX && offset + bytes as u64 <= DISK_BYTES);
                assert!(offset.is_multiple_of(512) && bytes.is_multiple_of(512));
            }
            Ok(ChildWord::Found(entry)) => return found(*entry),
            Ok(ChildWord::Failed(why)) => return assert!(!why.contains(char::is_control)),
            Err(error) => return assert!(!error.to_string().is_empty()),
        }
    }
}

/// What was found is bounded, can be shown, and is heard again as it is.
fn found(entry: BootEntry) {
    let BootEntry { kernel, initrd, cmdline, origin } = &entry;
    let initrd_bytes = initrd.as_ref().map_or(0, Vec::len);
    assert!(kernel.len() as u64 <= FILE_BYTES_MAX && initrd_bytes as u64 <= FILE_BYTES_MAX);
    assert!(!cmdline.contains(char::is_control) && !origin.to_string().contains(char::is_control));
    let again = said(entry.clone()).expect("a vector takes everything");
    let heard = hear(&mut &again[..], DISK_BYTES, FILE_BYTES_MAX).expect("it was heard before");
    assert_eq!(heard, ChildWord::Found(Box::new(entry)));
}

/// See the module.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let text = |text: &str| text.to_owned();
    let origin = BootOrigin {
        title: text("Debian"),
        found_in: text("partition 1, /boot/grub/grub.cfg"),
        kernel: text("/vmlinuz"),
        version: Some(text("6.1.0")),
        initrds: vec![text("/initrd.img")],
    };
    let entry =
        BootEntry { kernel: vec![7; 600], initrd: Some(vec![8; 300]), cmdline: text("ro quiet"), origin };
    let alone = BootEntry { initrd: None, ..entry.clone() };
    let [entry, alone] = [entry, alone].map(|entry| said(entry).expect("a vector takes everything"));
    let why = b"there is no partition";
    let failed = [&[3][..], &(why.len() as u64).to_le_bytes(), why].concat();
    let question = |offset: u64, bytes: u64| [&[1][..], &offset.to_le_bytes(), &bytes.to_le_bytes()].concat();
    vec![[question(0, 4096), question(DISK_BYTES - 512, 512), entry].concat(), alone, failed]
}
