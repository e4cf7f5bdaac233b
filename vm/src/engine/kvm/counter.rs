//! The guest's time stamp counter over a take-over. A vCPU's counter is its host's, scaled to the guest's frequency,
//! plus an offset. The offsets of all vCPUs are moved by the same amount, so that each counter goes on from where it
//! was and what one vCPU reads after another is never behind it.
//!
//! Writing the counters themselves does not do: each would be a little later than the one before, and KVM takes a value
//! within a second of where it expects the counter to be for an attempt to synchronise it, and ignores what it says.

use super::ioctl;
use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr};
use kvm_ioctls::VcpuFd;
use std::io;

fn attribute(offset: &mut u64) -> kvm_device_attr {
    let addr = std::ptr::from_mut(offset).expose_provenance() as u64;
    kvm_device_attr { flags: 0, group: KVM_VCPU_TSC_CTRL, attr: u64::from(KVM_VCPU_TSC_OFFSET), addr }
}

/// Whether this host's kernel shows the offsets (Linux 5.16).
pub(super) fn has_offset(vcpu: &VcpuFd) -> bool {
    let mut offset = 0;
    ioctl::has_attribute(vcpu, &attribute(&mut offset))
}

pub(super) fn read_offset(vcpu: &VcpuFd) -> io::Result<u64> {
    let mut offset = 0;
    // SAFETY: the attribute is a u64, and the address is that of one.
    unsafe { ioctl::get_attribute(vcpu, &attribute(&mut offset)) }?;
    Ok(offset)
}

pub(super) fn set_offset(vcpu: &VcpuFd, mut offset: u64) -> io::Result<()> {
    // SAFETY: the attribute is a u64, and the address is that of one.
    unsafe { ioctl::set_attribute(vcpu, &attribute(&mut offset)) }
}

/// By how much the offsets of captured vCPUs are moved (modulo 2^64) on a host whose scaled counter is `host` now: what
/// was the host's counter when the last of them was read is so again. Offsets that the host of the capture did not show
/// count as zero; all of them are equal then, unless the guest has set its counters apart.
pub(super) fn offset_shift(captured: impl Iterator<Item = CapturedCounter>, host: u64) -> u64 {
    let hosts = captured.map(|vcpu| vcpu.counter.wrapping_sub(vcpu.offset.unwrap_or(0)));
    // Later by less than half the range, as they may wrap around.
    let last = hosts.reduce(|a, b| if b.wrapping_sub(a) < 1 << 63 { b } else { a });
    last.unwrap_or(0).wrapping_sub(host)
}

/// A captured vCPU's counter, and its offset from the counter that its host had.
#[derive(Clone, Copy)]
pub(super) struct CapturedCounter {
    pub counter: u64,
    pub offset: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_counter_goes_back_and_all_keep_their_distance(
            host in any::<u64>(),
            read_after in prop::collection::vec(0_u64..1 << 40, 1..8),
            apart in any::<u64>(),
            here in any::<u64>(),
        ) {
            let captured: Vec<_> = read_after.iter().enumerate().map(|(index, after)| {
                let offset = if index == 1 { apart } else { 77 };
                let counter = host.wrapping_add(*after).wrapping_add(offset);
                CapturedCounter { counter, offset: Some(offset) }
            }).collect();
            let shift = offset_shift(captured.iter().copied(), here);
            let last = read_after.iter().max().unwrap();
            for (vcpu, after) in captured.iter().zip(&read_after) {
                let now = here.wrapping_add(vcpu.offset.unwrap()).wrapping_add(shift);
                prop_assert_eq!(now.wrapping_sub(vcpu.counter), last - after);
            }
        }
    }

    #[test]
    fn counters_without_offsets_become_one_that_goes_on_from_the_last() {
        let captured = [1_000, 1_300, 1_200].map(|counter| CapturedCounter { counter, offset: None });
        assert_eq!(50_u64.wrapping_add(offset_shift(captured.into_iter(), 50)), 1_300);
    }
}
