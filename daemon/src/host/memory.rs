//! Whether this host has the memory for the VM, asked before a copy of it is: what the kernel says is available, and
//! the limits of the daemon's control groups, of its address space and on locked memory. A limit that the kernel does
//! not tell is none.

use ft_checkpoint::receiver::BACKLOG_BYTES_MAX;
use std::fs;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// A backup maps the guest's memory for the machine, for what is received, and for the rehearsal.
const MAPPINGS: u64 = 3;
/// A backup holds checkpoints that it has not applied yet, and the memory of some that it has applied, for the next
/// ones: each up to this, and up to the memory of the VM.
const BACKLOGS: u64 = 2;
const CAP_IPC_LOCK: u32 = 14;

/// What the VM needs of a host.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// Its memory.
    pub ram_bytes: u64,
    /// All of it is to be locked.
    pub lock: bool,
}

/// What a backup needs beside the memory of the VM.
fn beside(ram_bytes: u64) -> u64 {
    BACKLOGS * ram_bytes.min(BACKLOG_BYTES_MAX as u64)
}

/// What the host lacks.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Shortage {
    /// Memory.
    #[error(
        "its host has {} MiB of memory left, a backup of this VM needs {} MiB (machine.memory_mib, and what waits \
         to be applied): free memory there",
        left >> 20, need >> 20
    )]
    Host {
        /// What is left.
        left: u64,
        /// What a backup of the VM needs.
        need: u64,
    },
    /// Memory within a control group's limit.
    #[error(
        "ftd has {} MiB of memory left there within the limit of the control group {}, a backup of this VM \
         needs {} MiB (machine.memory_mib, and what waits to be applied): raise the limit (MemoryMax= of the service)",
        left >> 20, group.display(), need >> 20
    )]
    Group {
        /// The group's directory.
        group: PathBuf,
        /// What is left.
        left: u64,
        /// What a backup of the VM needs.
        need: u64,
    },
    /// Address space.
    #[error(
        "ftd may map {} MiB more there, a backup of this VM needs {} MiB: raise RLIMIT_AS (LimitAS= of the service)",
        left >> 20, need >> 20
    )]
    AddressSpace {
        /// What is left.
        left: u64,
        /// What a backup maps.
        need: u64,
    },
    /// Locked memory.
    #[error(
        "ftd may lock {} MiB more there, the VM needs {} MiB: raise RLIMIT_MEMLOCK (LimitMEMLOCK= of the service), or \
         set machine.lock_memory = false",
        left >> 20, need >> 20
    )]
    Locked {
        /// What is left.
        left: u64,
        /// What is to be locked.
        need: u64,
    },
}

impl Need {
    /// What this host lacks now.
    #[must_use]
    pub fn shortage(self) -> Option<Shortage> {
        self.shortage_beside(None)
    }

    /// As [`Self::shortage`]; where the daemon still has memory of the VM, of which the kernel holds so many bytes, a
    /// copy will come into that.
    #[must_use]
    pub fn shortage_beside(self, kept: Option<u64>) -> Option<Shortage> {
        self.shortage_in(Path::new("/"), kept)
    }

    fn shortage_in(self, root: &Path, kept: Option<u64>) -> Option<Shortage> {
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        let (limits, status) = (read("proc/self/limits"), read("proc/self/status"));
        let meminfo = read("proc/meminfo");
        let swap = if self.lock { 0 } else { kib(&meminfo, "SwapFree:").unwrap_or(0) };
        let groups = read("proc/self/cgroup");
        let need = self.ram_bytes.saturating_sub(kept.unwrap_or(0)) + beside(self.ram_bytes);
        // What is kept is mapped for the machine, and locked with that.
        let locked = if kept.is_some() { 0 } else { self.ram_bytes };
        let mapped = self.ram_bytes * (MAPPINGS - u64::from(kept.is_some())) + beside(self.ram_bytes);

        let space = limit(&limits, "Max address space");
        let space = space.map(|most| most.saturating_sub(kib(&status, "VmSize:").unwrap_or(0)));
        if let Some(left) = space.filter(|left| *left < mapped) {
            return Some(Shortage::AddressSpace { left, need: mapped });
        }
        if self.lock && !may_lock_anything(&status) {
            let most = limit(&limits, "Max locked memory");
            let left = most.map(|most| most.saturating_sub(kib(&status, "VmLck:").unwrap_or(0)));
            if let Some(left) = left.filter(|left| *left < locked) {
                return Some(Shortage::Locked { left, need: locked });
            }
        }
        let host = kib(&meminfo, "MemAvailable:").map(|left| left + swap);
        if let Some(left) = host.filter(|left| *left < need) {
            return Some(Shortage::Host { left, need });
        }
        let (group, left) = tightest_group(root, &groups, swap)?;
        (left < need).then_some(Shortage::Group { group, left, need })
    }
}

/// A figure in KiB of a file like /proc/meminfo, in bytes.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A soft limit of /proc/self/limits, if it is one.
fn limit(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

fn may_lock_anything(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    effective.is_some_and(|set| set >> CAP_IPC_LOCK & 1 == 1)
}

/// Files of a control group with memory limits, by the version of control groups.
struct Files {
    most: &'static str,
    used: &'static str,
    /// Of memory.stat: what the kernel would reclaim.
    reclaimable: [&'static str; 2],
}

const UNIFIED: Files =
    Files { most: "memory.max", used: "memory.current", reclaimable: ["inactive_file ", "active_file "] };
const LEGACY: Files = Files {
    most: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    reclaimable: ["total_inactive_file ", "total_active_file "],
};

/// The group of this process, or above it, that leaves the least memory, and how much that is.
fn tightest_group(root: &Path, groups: &str, swap: u64) -> Option<(PathBuf, u64)> {
    let mounts = root.join("sys/fs/cgroup");
    let of_line = |line: &str| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let path = path.trim_start_matches('/').to_owned();
        match controllers {
            "" => Some((mounts.clone(), path, UNIFIED)),
            list if list.split(',').any(|one| one == "memory") => Some((mounts.join("memory"), path, LEGACY)),
            _ => None,
        }
    };
    let left_in = |group: &Path, files: &Files| {
        let read = |name: &str| fs::read_to_string(group.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        let (most, used) = (number(files.most)?, number(files.used)?);
        let stat = read("memory.stat").unwrap_or_default();
        let of_stat = |name: &&str| {
            stat.lines().find_map(|line| line.strip_prefix(name)).and_then(|n| n.parse::<u64>().ok())
        };
        let reclaimable: u64 = files.reclaimable.iter().filter_map(of_stat).sum();
        let swap_most = number("memory.swap.max").map(|most| {
            let used = number("memory.swap.current").unwrap_or(0);
            most.saturating_sub(used)
        });
        let swap = swap_most.map_or(swap, |most| most.min(swap));
        Some(most.saturating_sub(used).saturating_add(reclaimable).saturating_add(swap))
    };
    groups
        .lines()
        .filter_map(of_line)
        .flat_map(|(mount, path, files)| {
            let group = mount.join(path);
            let above: Vec<PathBuf> =
                group.ancestors().take_while(|at| at.starts_with(&mount)).map(Path::to_owned).collect();
            above.into_iter().filter_map(move |at| left_in(&at, &files).map(|left| (at, left)))
        })
        .min_by_key(|(_, left)| *left)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    struct Host(tempfile::TempDir);

    impl Host {
        /// 1000 MiB available, 200 MiB of swap, no limits.
        fn new() -> Self {
            let host = Self(tempfile::tempdir().unwrap());
            host.with("proc/meminfo", "MemTotal: 9000000 kB\nMemAvailable: 1024000 kB\nSwapFree: 204800 kB\n")
                .with("proc/self/limits", "Max address space  unlimited  unlimited  bytes\n")
                .with(
                    "proc/self/status",
                    "VmSize:\t  102400 kB\nVmLck:\t 1024 kB\nCapEff:\t0000000000000000\n",
                )
        }

        fn with(self, file: &str, text: &str) -> Self {
            let path = self.0.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
            self
        }

        fn lacks(&self, ram_mib: u64, lock: bool) -> Option<Shortage> {
            Need { ram_bytes: ram_mib * MIB, lock }.shortage_in(self.0.path(), None)
        }

        fn lacks_beside(&self, ram_mib: u64, lock: bool, kept_mib: u64) -> Option<Shortage> {
            Need { ram_bytes: ram_mib * MIB, lock }.shortage_in(self.0.path(), Some(kept_mib * MIB))
        }
    }

    #[test]
    fn memory_that_is_to_be_locked_cannot_be_swap() {
        let host = Host::new();
        assert_eq!(host.lacks(944, false), None, "what waits to be applied needs memory too");
        assert_eq!(host.lacks(945, false), Some(Shortage::Host { left: 1200 * MIB, need: 1201 * MIB }));
        assert_eq!(host.lacks(745, true), Some(Shortage::Host { left: 1000 * MIB, need: 1001 * MIB }));
    }

    #[test]
    fn a_limit_on_address_space_counts_all_of_a_backups_mappings() {
        let host = Host::new().with("proc/self/limits", "Max address space  419430400  unlimited  bytes\n");
        assert_eq!(host.lacks(60, false), None);
        assert_eq!(host.lacks(61, false), Some(Shortage::AddressSpace { left: 300 * MIB, need: 305 * MIB }));
    }

    #[test]
    fn a_limit_on_locked_memory_counts_if_memory_is_locked_by_an_ordinary_process() {
        let limits = "Max locked memory  11534336  11534336  bytes\n";
        let host = Host::new().with("proc/self/limits", limits);
        assert_eq!((host.lacks(10, true), host.lacks(11, false)), (None, None));
        assert_eq!(host.lacks(11, true), Some(Shortage::Locked { left: 10 * MIB, need: 11 * MIB }));
        let host = host.with("proc/self/status", "CapEff:\t0000000000004000\n");
        assert_eq!(host.lacks(11, true), None);
    }

    #[test]
    fn the_tightest_of_the_groups_above_counts_of_either_version() {
        let host = Host::new()
            .with("proc/self/cgroup", "1:name=systemd:/x\n0::/system.slice/ftd.service\n")
            .with("sys/fs/cgroup/system.slice/ftd.service/memory.max", "max\n")
            .with("sys/fs/cgroup/system.slice/memory.max", "209715200\n")
            .with("sys/fs/cgroup/system.slice/memory.current", "104857600\n")
            .with("sys/fs/cgroup/system.slice/memory.swap.max", "0\n")
            .with("sys/fs/cgroup/system.slice/memory.stat", "anon 1\ninactive_file 1048576\nactive_file 0\n");
        assert_eq!(host.lacks(33, false), None);
        let lacks = host.lacks(34, false);
        assert!(
            matches!(&lacks, Some(Shortage::Group { group, left, .. })
                if *left == 101 * MIB && group.ends_with("cgroup/system.slice")),
            "{lacks:?}"
        );
        let host = Host::new()
            .with("proc/self/cgroup", "4:cpu,memory:/a/b\n0::/\n")
            .with("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "104857600\n")
            .with("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "0\n");
        assert_eq!(host.lacks(100, false), None, "with the host's swap");
        assert!(matches!(host.lacks(101, false), Some(Shortage::Group { .. })));
    }

    #[test]
    fn memory_of_the_vm_that_is_kept_is_not_asked_for_again() {
        let host = Host::new();
        assert_eq!(host.lacks_beside(1500, false, 556), None);
        let need = 1201 * MIB;
        assert_eq!(host.lacks_beside(1500, false, 555), Some(Shortage::Host { left: 1200 * MIB, need }));
        let host = Host::new().with("proc/self/limits", "Max address space  419430400  unlimited  bytes\n");
        assert_eq!(host.lacks_beside(75, false, 0), None, "one of the mappings is there");
        assert_eq!(
            host.lacks_beside(76, false, 0),
            Some(Shortage::AddressSpace { left: 300 * MIB, need: 304 * MIB })
        );
        let host = Host::new().with("proc/self/limits", "Max locked memory  11534336  11534336  bytes\n");
        assert!(host.lacks(11, true).is_some());
        assert_eq!(host.lacks_beside(11, true, 0), None, "it is locked already");
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_no_limit() {
        let host = Host(tempfile::tempdir().unwrap());
        assert_eq!(host.lacks(1 << 20, true), None);
    }
}
