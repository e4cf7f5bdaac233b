//! How this host holds guest memory.

use super::MachineConfig;
use ft_ram::Backing;
use serde::Deserialize;

/// Which pages guest memory is held in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HugePages {
    /// Of 4 KiB.
    None,
    /// Of 2 MiB where the kernel has them.
    Transparent,
}

impl MachineConfig {
    /// How this host holds guest memory.
    #[must_use]
    pub fn backing(&self) -> Backing {
        let huge_pages = self.huge_pages == HugePages::Transparent;
        Backing { huge_pages, numa_node: self.numa_node, lock: self.lock_memory }
    }
}
