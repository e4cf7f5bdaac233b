//! How the host holds a guest's memory: with huge pages, on one node of its own memory, locked. The guest sees nothing
//! of it, and two hosts need not agree.

use crate::error::MemoryError;
use nix::sys::mman::{MmapAdvise, madvise};
use std::path::Path;
use std::ptr::NonNull;

/// How the host holds a guest's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backing {
    /// Whether the kernel is asked for huge pages.
    pub huge_pages: bool,
    /// The only node of the host that gives memory.
    pub numa_node: Option<u16>,
    /// Whether it is kept from being swapped out: each page from the time on at which it is first touched.
    pub lock: bool,
}

const SYS: &str = "/sys";
/// Settings of huge pages in shared memory, which a memfd is; by the kernel the second one counts, if it is there and
/// does not say "inherit".
const SHMEM_ENABLED: [&str; 2] = [
    "kernel/mm/transparent_hugepage/shmem_enabled",
    "kernel/mm/transparent_hugepage/hugepages-2048kB/shmem_enabled",
];
/// Settings with which the kernel gives huge pages to whoever asks for them.
const GIVING: [&str; 4] = ["always", "within_size", "advise", "force"];
const NODES_WITH_MEMORY: &str = "devices/system/node/has_memory";
/// Nodes that a mask has room for.
const NODES_MAX: usize = 1024;
/// MPOL_BIND (linux/mempolicy.h)
const BIND: libc::c_int = 2;

impl Backing {
    /// Whether this host can hold memory so.
    pub(crate) fn check(self) -> Result<(), MemoryError> {
        self.check_in(Path::new(SYS))
    }

    fn check_in(self, sys: &Path) -> Result<(), MemoryError> {
        if self.huge_pages {
            let setting = huge_page_setting(sys);
            if !setting.as_deref().is_some_and(|setting| GIVING.contains(&setting)) {
                return Err(MemoryError::HugePages {
                    setting: setting.unwrap_or_else(|| "not there".into()),
                });
            }
        }
        if let Some(node) = self.numa_node {
            let nodes = std::fs::read_to_string(sys.join(NODES_WITH_MEMORY)).unwrap_or_default();
            if !is_listed(nodes.trim(), node) || usize::from(node) >= NODES_MAX {
                let nodes = if nodes.trim().is_empty() { "none" } else { nodes.trim() }.to_owned();
                return Err(MemoryError::Node { node, nodes });
            }
        }
        Ok(())
    }

    /// Tells the kernel of a mapping before it is first touched.
    pub(crate) fn apply(self, base: NonNull<u8>, bytes: usize) -> Result<(), MemoryError> {
        if self.huge_pages {
            // SAFETY: this advice changes no content of the mapping, which is the caller's.
            unsafe { madvise(base.cast(), bytes, MmapAdvise::MADV_HUGEPAGE) }
                .map_err(|e| MemoryError::Map(format!("asking for huge pages: {e}")))?;
        }
        if let Some(node) = self.numa_node {
            bind(base, bytes, node).map_err(|source| MemoryError::Bind { node, source })?;
        }
        Ok(())
    }
}

fn bind(base: NonNull<u8>, bytes: usize, node: u16) -> std::io::Result<()> {
    let mut mask = [0_u64; NODES_MAX / 64];
    mask[usize::from(node) / 64] = 1 << (node % 64);
    // SAFETY: a policy changes no content; the mapping is the caller's, and the kernel reads as many bits of the mask
    // as there are (it takes one less than it is told).
    let refused = unsafe {
        libc::syscall(libc::SYS_mbind, base.as_ptr(), bytes, BIND, mask.as_ptr(), NODES_MAX + 1, 0)
    } != 0;
    if refused { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// What the kernel says of huge pages in shared memory; none where it has none.
fn huge_page_setting(sys: &Path) -> Option<String> {
    let chosen = |file: &str| {
        let text = std::fs::read_to_string(sys.join(file)).ok()?;
        let (_, rest) = text.split_once('[')?;
        Some(rest.split_once(']')?.0.to_owned())
    };
    let [whole, of_size] = SHMEM_ENABLED.map(chosen);
    of_size.filter(|setting| setting != "inherit").or(whole)
}

/// Whether a list of the kernel's, as in `0-1,4`, has this number.
fn is_listed(list: &str, number: u16) -> bool {
    list.split(',').any(|part| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to) = (from.parse::<u16>(), to.parse::<u16>());
        matches!((from, to), (Ok(from), Ok(to)) if (from..=to).contains(&number))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Sys(tempfile::TempDir);

    impl Sys {
        fn with(self, file: &str, text: &str) -> Self {
            let path = self.0.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
            self
        }

        fn refusal(&self, backing: Backing) -> Option<String> {
            backing.check_in(self.0.path()).err().map(|e| e.to_string())
        }
    }

    fn sys() -> Sys {
        Sys(tempfile::tempdir().unwrap())
    }

    const HUGE: Backing = Backing { huge_pages: true, numa_node: None, lock: false };

    fn node(node: u16) -> Backing {
        Backing { numa_node: Some(node), ..Backing::default() }
    }

    #[test]
    fn huge_pages_that_the_kernel_does_not_give_are_refused_with_its_setting_and_the_cure() {
        let [whole, of_size] = SHMEM_ENABLED;
        let never = "always within_size advise [never] deny force\n";
        let refusal = sys().with(whole, never).refusal(HUGE).unwrap();
        for part in ["\"never\"", "echo advise >/sys/kernel/mm/transparent_hugepage/shmem_enabled"] {
            assert!(refusal.contains(part), "{refusal}");
        }
        assert!(sys().refusal(HUGE).unwrap().contains("\"not there\""));
        let advise = "always within_size [advise] never deny force\n";
        assert_eq!(sys().with(whole, advise).refusal(HUGE), None);
        assert_eq!(sys().with(whole, advise).with(of_size, "always [inherit] never\n").refusal(HUGE), None);
        assert!(sys().with(whole, advise).with(of_size, "always inherit [never]\n").refusal(HUGE).is_some());
        assert_eq!(sys().with(whole, never).with(of_size, "always [advise] never\n").refusal(HUGE), None);
        assert_eq!(sys().refusal(Backing::default()), None);
    }

    #[test]
    fn a_node_that_the_host_does_not_have_is_refused_with_those_that_it_has() {
        let sys = sys().with(NODES_WITH_MEMORY, "0-1,4\n");
        assert_eq!([0, 1, 4].map(|number| sys.refusal(node(number))), [None, None, None]);
        let refusal = sys.refusal(node(2)).unwrap();
        assert!(refusal.contains("no node 2 with memory; it has: 0-1,4"), "{refusal}");
        assert!(super::tests::sys().refusal(node(0)).unwrap().contains("it has: none"));
    }

    #[test]
    fn memory_of_one_node_is_bound_to_it_in_the_kernels_own_words() {
        if node(0).check().is_err() {
            eprintln!("SKIPPED memory of one node: this kernel has no nodes");
            return;
        }
        let ram = crate::GuestRam::held(16 << 20, node(0)).unwrap();
        let at = ram.slots()[0].host as usize;
        let maps = std::fs::read_to_string("/proc/self/numa_maps").unwrap();
        let line = maps.lines().find(|line| line.starts_with(&format!("{at:x} "))).expect("the mapping");
        assert!(line.contains(" bind:0 "), "{line}");
    }

    #[test]
    fn memory_with_huge_pages_has_them_where_the_kernel_gives_them() {
        match crate::GuestRam::held(64 << 20, HUGE) {
            Err(e) => {
                eprintln!("SKIPPED memory with huge pages: {e}");
                assert!(matches!(e, MemoryError::HugePages { .. }), "{e}");
            }
            Ok(ram) => {
                ram.view().unwrap().write_page(1000, &[7; 4096]);
                let held = ram.held_bytes().unwrap();
                assert!(held >= 2 << 20, "one page that was written holds {held} bytes");
            }
        }
    }

    proptest! {
        #[test]
        fn any_list_is_read_and_a_range_has_what_lies_in_it(
            text in ".{0,40}", from in 0_u16..900, more in 0_u16..100, number in any::<u16>(),
        ) {
            let _ = is_listed(&text, number);
            let list = format!("1000,{from}-{}", from + more);
            prop_assert_eq!(is_listed(&list, number), number == 1000 || (from..=from + more).contains(&number));
        }
    }
}
