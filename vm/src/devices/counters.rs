//! The devices' counters. They are atomics inside, so that a metrics reader never takes a device's lock, and a plain
//! struct outside.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Totals since the devices were made; they are the host's, not part of the machine's state.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct DeviceCounters {
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> DeviceCounters {
                DeviceCounters { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Frames that the guest transmitted and the sink took.
    frames_out,
    /// Bytes of those frames.
    bytes_out,
    /// Frames delivered to the guest.
    frames_in,
    /// Bytes of those frames.
    bytes_in,
    /// Frames for the guest that were lost: no driver, or no buffer of the guest is as large.
    rx_dropped,
    /// Frames of the guest's that were dropped: longer than any card takes, or shorter than an Ethernet header.
    tx_dropped,
    /// Times that the sink was full and the guest's queue was left standing.
    tx_stalls,
    /// Rings, descriptor chains or requests that break the virtio rules; each stops its device until the driver
    /// resets it.
    malformed,
    /// Resets of virtio devices by their drivers.
    resets,
    /// Port and memory accesses of the guest to devices and their bus: each leaves the guest.
    accesses,
    /// Port and memory accesses that no device answers, or not at that width.
    unknown_io,
    /// Block requests served.
    block_requests,
    /// Block requests that failed: beyond the disk's end, writes, host read errors.
    block_errors,
    /// Host read errors among them.
    block_host_errors,
    /// Console input bytes that the guest was too slow to take.
    console_dropped,
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

/// Counts one, and says whether a log line about it is due: at the 1st, 2nd, 4th, 8th... time, since a guest could
/// otherwise fill the log.
pub(crate) fn count(counter: &AtomicU64) -> bool {
    (counter.fetch_add(1, Ordering::Relaxed).wrapping_add(1)).is_power_of_two()
}
