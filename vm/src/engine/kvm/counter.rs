//! The guest's time stamp counter over a take-over. A vCPU's counter is its host's, scaled to the guest's frequency,
//! plus an offset. The offsets of all vCPUs are moved by the same amount, so that each counter goes on from where it
//! was and what one vCPU reads after another is never behind it.
//!
//! The guest's clock (kvmclock) is read and set at other moments than the counters: a guest that measures the one by
//! the other must find both as far from each other as they were. So the offsets are those that the counters have at
//! one moment at which KVM tells the clock and the host's counter together, on either host.
//!
//! Writing the counters themselves does not do: each would be a little later than the one before, and KVM takes a value
//! within a second of where it expects the counter to be for an attempt to synchronise it, and ignores what it says.

use super::ioctl;
use kvm_bindings::{
    KVM_CLOCK_HOST_TSC, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_clock_data, kvm_device_attr,
};
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

/// By how much the offsets of captured vCPUs are moved (modulo 2^64) on a host whose scaled counter is `host` now.
///
/// With `clocks` each counter is as far from the guest's clock as it was. Without them, or where a counter is scaled,
/// what was the host's counter when the last of them was read is so again: apart from the clock by the time between
/// these readings. Offsets that the host of the capture did not show count as zero; all of them are equal then, unless
/// the guest has set its counters apart.
pub(super) fn offset_shift(
    captured: impl Iterator<Item = CapturedCounter>,
    host: u64,
    clocks: Option<Clocks>,
) -> u64 {
    let hosts = captured.map(|vcpu| vcpu.counter.wrapping_sub(vcpu.offset.unwrap_or(0)));
    // Later by less than half the range, as they may wrap around.
    let last = hosts.reduce(|a, b| if b.wrapping_sub(a) < 1 << 63 { b } else { a }).unwrap_or(0);
    match clocks {
        Some(clocks) if clocks.are_unscaled(last, host) => clocks.shift(),
        _ => last.wrapping_sub(host),
    }
}

/// A moment by the guest's clock, in nanoseconds, and by the host's own counter, unscaled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub clock_ns: u64,
    pub host: u64,
}

impl Moment {
    /// As KVM tells both together, where it does (Linux 5.16, on a host whose own clock is its counter).
    pub(super) fn of(clock: &kvm_clock_data) -> Option<Self> {
        let told = clock.flags & KVM_CLOCK_HOST_TSC != 0;
        told.then_some(Self { clock_ns: clock.clock, host: clock.host_tsc })
    }
}

/// A moment on the host of the capture, after the counters were read, and one on this host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clocks {
    pub captured: Moment,
    pub here: Moment,
    /// Frequency of the guest's counters.
    pub khz: u32,
}

impl Clocks {
    /// Whether the counters that a guest's offsets are from are the hosts' own: they were read less than a minute
    /// before. Scaled ones are as far from those as the time since the host's start.
    fn are_unscaled(&self, captured: u64, here: u64) -> bool {
        let minute = u64::from(self.khz) * 1000 * 60;
        let soon_after = |moment: &Moment, counter| moment.host.wrapping_sub(counter) < minute;
        soon_after(&self.captured, captured) && soon_after(&self.here, here)
    }

    fn shift(&self) -> u64 {
        let passed_ns = i128::from(self.here.clock_ns) - i128::from(self.captured.clock_ns);
        let ticks = passed_ns * i128::from(self.khz) / 1_000_000;
        self.captured.host.wrapping_add(ticks as u64).wrapping_sub(self.here.host)
    }
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
    use crate::spec::EngineKind;
    use crate::state::{self, EngineState};
    use crate::testing;
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
            let shift = offset_shift(captured.iter().copied(), here, None);
            let last = read_after.iter().max().unwrap();
            for (vcpu, after) in captured.iter().zip(&read_after) {
                let now = here.wrapping_add(vcpu.offset.unwrap()).wrapping_add(shift);
                prop_assert_eq!(now.wrapping_sub(vcpu.counter), last - after);
            }
        }
    }

    proptest! {
        #[test]
        fn each_counter_is_as_far_from_the_clock_as_it_was_unless_it_is_scaled(
            host in any::<u64>(),
            offset in any::<u64>(),
            clock_after_us in 0_u64..1_000_000,
            here in any::<u64>(),
            set_after_us in 0_u64..1_000_000,
            clock_ns in 0_u64..1 << 60,
            scaled in any::<bool>(),
        ) {
            const KHZ: u32 = 2_000_000;
            let ticks = |us: u64| us * u64::from(KHZ) / 1000;
            let away = if scaled { 1 << 50 } else { 0 };
            let counter = host.wrapping_add(offset);
            let captured = Moment { clock_ns, host: host.wrapping_add(ticks(clock_after_us) + away) };
            // The clock was set to what it was, and read a microsecond later.
            let set = Moment { clock_ns: clock_ns + 1000, host: here.wrapping_add(ticks(set_after_us) + away) };
            let vcpus = [CapturedCounter { counter, offset: Some(offset) }];
            let clocks = Clocks { captured, here: set, khz: KHZ };
            let shift = offset_shift(vcpus.into_iter(), here, Some(clocks));
            if scaled {
                prop_assert_eq!(here.wrapping_add(offset).wrapping_add(shift), counter);
            } else {
                let then = captured.host.wrapping_add(offset);
                let now = set.host.wrapping_add(offset).wrapping_add(shift);
                prop_assert_eq!(now.wrapping_sub(then), ticks(1));
            }
        }
    }

    #[test]
    fn counters_without_offsets_become_one_that_goes_on_from_the_last() {
        let captured = [1_000, 1_300, 1_200].map(|counter| CapturedCounter { counter, offset: None });
        assert_eq!(50_u64.wrapping_add(offset_shift(captured.into_iter(), 50, None)), 1_300);
    }

    /// How far each counter is from the clock, in ns, by a capture's moment of both; none where KVM tells no such
    /// moment, or moves no counters.
    fn distances(bytes: &[u8]) -> Option<Vec<i128>> {
        let EngineState::Kvm(state) = state::decode(bytes).unwrap().engine else { panic!("not of KVM") };
        let moment = Moment::of(&state.vm.clock)?;
        // An emulated KVM takes an offset, and leaves the counter where it is.
        state.vcpus.iter().any(|vcpu| vcpu.tsc_offset != Some(0)).then_some(())?;
        let distance = |vcpu: &state::VcpuState| {
            let counter = moment.host.wrapping_add(vcpu.tsc_offset?);
            Some(i128::from(counter) * 1_000_000 / i128::from(vcpu.tsc_khz) - i128::from(moment.clock_ns))
        };
        state.vcpus.iter().map(distance).collect()
    }

    #[test]
    fn over_a_restore_each_counter_stays_as_far_from_the_clock_as_it_was() {
        const TEST: &str = "over_a_restore_each_counter_stays_as_far_from_the_clock_as_it_was";
        if !testing::kvm(TEST) {
            return;
        }
        let spec = testing::spec(EngineKind::Kvm, 2, 16 << 20);
        let (mut machine, ..) = testing::machine(&spec);
        let (mut before, mut after) = (Vec::new(), Vec::new());
        machine.capture(&mut before).unwrap();
        for round in 0..6 {
            let (mut heir, ..) = testing::machine(&spec);
            heir.restore(&before).unwrap();
            after.clear();
            heir.capture(&mut after).unwrap();
            let both = distances(&before).zip(distances(&after));
            std::mem::swap(&mut before, &mut after);
            // KVM may not know of such a moment before a machine's clock was set once.
            let Some((was, is)) = both else {
                if round == 0 {
                    continue;
                }
                return eprintln!(
                    "SKIPPED {TEST}: KVM does not tell clock and counter together here, or moves no counters"
                );
            };
            for (was, is) in was.iter().zip(&is) {
                // KVM's clock goes by a multiplication of its own.
                assert!((was - is).abs() <= 2_000, "{was} ns before, {is} ns after");
            }
        }
    }
}
