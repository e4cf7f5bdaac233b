//! Whether this host has a processor for each of the VM's vCPUs. Fewer are no reason to refuse: a backup on a smaller
//! host is better than none, and a VM that mostly waits does not notice.

use crate::config::Config;
use std::num::NonZeroUsize;

/// More vCPUs than processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "machine.vcpus = {vcpus}: ftd has {here} processors on this host (by their number, its affinity and its control \
     group); the VM runs, but a vCPU that waits for a processor holds up those that wait for its locks, and pauses \
     take longer: give the VM fewer vCPUs, or ftd more processors"
)]
pub struct Crowded {
    vcpus: u8,
    here: usize,
}

impl Crowded {
    /// Of this configuration on this host; none where there is room, or the kernel does not tell.
    #[must_use]
    pub fn of(config: &Config) -> Option<Self> {
        let here = std::thread::available_parallelism().ok()?;
        Self::among(config.machine.vcpus, here)
    }

    /// Says so in the log.
    pub fn say(config: &Config) {
        if let Some(crowded) = Self::of(config) {
            tracing::warn!("{crowded}");
        }
    }

    fn among(vcpus: u8, here: NonZeroUsize) -> Option<Self> {
        let here = here.get();
        (usize::from(vcpus) > here).then_some(Self { vcpus, here })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_vcpus_than_processors_are_told_with_both_numbers() {
        let among = |vcpus, here| Crowded::among(vcpus, NonZeroUsize::new(here).unwrap());
        assert_eq!([among(2, 2), among(1, 8)], [None, None]);
        let told = among(8, 2).unwrap().to_string();
        assert!(told.starts_with("machine.vcpus = 8: ftd has 2 processors"), "{told}");
    }
}
