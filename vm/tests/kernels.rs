//! Kernels that a guest has made: what lies in its own disk is booted, whatever it is.

use ft_vm::spec::{Boot, BootContent, EngineKind};
use ft_vm::testing::spec;
use proptest::prelude::*;

const RAM_BYTES: u64 = 32 << 20;
/// What a damaged byte becomes.
const VALUES: [u8; 7] = [0, 1, 2, 4, 0x7f, 0x80, 0xff];

/// The smallest bzImage that is taken.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0x90; 4096];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x55, 0xaa, 0xeb, 0x66]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x211, &[1, 0, 0, 0, 0, 0x10, 0]);
    put(0x236, &[1, 0]);
    put(0x258, &0x10_0000u64.to_le_bytes());
    put(0x260, &0x10_0000u32.to_le_bytes());
    image
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// A guest that boots from its own disk makes the kernel itself.
    #[test]
    fn a_damaged_kernel_is_loaded_or_refused(
        is_elf: bool,
        hits in prop::collection::vec((0usize..0x280, prop::sample::select(&VALUES[..])), 0..8),
        length in 0usize..6000,
    ) {
        let (mut machine, _ram, _) = ft_vm::testing::machine(&spec(EngineKind::Soft, 1, RAM_BYTES));
        let sound = if is_elf { ft_vm::testing::elf(&[0x90; 1000]) } else { bzimage() };
        let mut boot = |bytes: &[u8]| {
            let content = |bytes: &[u8]| BootContent { name: "file".into(), bytes: bytes.into() };
            let (kernel, initrd) = (content(bytes), Some(content(&[1; 100])));
            machine.boot(&Boot::LinuxRead { kernel, initrd, cmdline: "quiet".into() }).is_ok()
        };
        prop_assert!(boot(&sound));
        let mut damaged = sound;
        for (at, value) in hits {
            let at = at % damaged.len();
            damaged[at] = value;
        }
        damaged.truncate(length);
        boot(&damaged);
    }
}
