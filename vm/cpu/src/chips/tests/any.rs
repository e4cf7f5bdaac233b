//! The chips survive any accesses, at any times, on any state, and a repetition has the same result.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Out(u16, u8),
    In(u16),
    Write(u64, u32),
    Read(u64),
    Level(u32, bool),
    Wait(u64),
    ToTimer,
    Take,
    Deadline(u64),
    Base(u64),
    Cr8(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ports = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x70, 0x71];
    let port = prop::sample::select(ports.to_vec());
    let register = prop_oneof![
        (0u64..0x40).prop_map(|register| LAPIC_BASE + register * 16),
        Just(LAPIC_BASE + LVT_TIMER),
        Just(LAPIC_BASE + INITIAL),
        Just(IOAPIC_BASE),
        Just(IOAPIC_BASE + 0x10),
    ];
    let value = prop_oneof![any::<u32>(), 0u32..0x400, (0u32..24).prop_map(|bit| 1 << bit)];
    let wait = prop_oneof![
        0..2000u64,
        0..10 * S,
        (0..=64u32).prop_map(|bits| u64::MAX.checked_shr(bits).unwrap_or(0))
    ];
    let step = prop_oneof![
        4 => (port.clone(), any::<u8>()).prop_map(|(port, value)| Step::Out(port, value)),
        // The clock's registers, chosen and written in one go.
        2 => (0..0x10u16, any::<u8>()).prop_map(|(index, value)| Step::Out(0x7000 | index, value)),
        2 => port.prop_map(Step::In),
        5 => (register.clone(), value).prop_map(|(register, value)| Step::Write(register, value)),
        2 => register.prop_map(Step::Read),
        2 => (0..30u32, any::<bool>()).prop_map(|(gsi, high)| Step::Level(gsi, high)),
        2 => wait.clone().prop_map(Step::Wait),
        2 => Just(Step::ToTimer),
        3 => Just(Step::Take),
        1 => wait.prop_map(Step::Deadline),
        1 => any::<u64>().prop_map(Step::Base),
        1 => any::<u8>().prop_map(Step::Cr8),
    ];
    prop::collection::vec(step, 0..60)
}

/// Does a step; what the guest sees of it.
fn step(chips: &mut Chips, now: &mut u64, step: &Step) -> u64 {
    let mut byte = [0];
    let mut word = [0; 4];
    match *step {
        Step::Out(port @ 0x7000.., value) => {
            chips.pio_write(*now, 0x70, &[port as u8, value]);
        }
        Step::Out(port, value) => {
            chips.pio_write(*now, port, &[value]);
        }
        Step::In(port) => {
            chips.pio_read(*now, port, &mut byte);
        }
        Step::Write(addr, value) => {
            chips.mmio_write(*now, addr, &value.to_le_bytes());
        }
        Step::Read(addr) => {
            chips.mmio_read(*now, addr, &mut word);
        }
        Step::Level(gsi, high) => chips.set_level(gsi, high),
        Step::Wait(ns) => *now = now.saturating_add(ns),
        Step::ToTimer => {
            *now = chips.next_timer_ns().unwrap_or(0).max(*now);
            chips.run_timers(*now);
            let over = chips.next_timer_ns().is_some_and(|next| next <= *now);
            assert!(!over || *now == u64::MAX, "timers that ran are due again");
        }
        Step::Take => return chips.acknowledge_interrupt(*now).map_or(256, u64::from),
        Step::Deadline(value) => chips.set_tsc_deadline(*now, value),
        // Mostly where it was, or no step would reach it again.
        Step::Base(value) => chips.set_apic_base(if value % 8 == 0 { value } else { LAPIC_BASE | 1 << 11 }),
        Step::Cr8(value) => chips.set_cr8(value),
    }
    let seen = u64::from(chips.interrupt_pending(*now)) << 48 | u64::from(chips.take_nmi()) << 49;
    seen | u64::from(byte[0]) << 32 | u64::from(u32::from_le_bytes(word))
}

proptest! {
    #[test]
    fn any_accesses_at_any_times_are_survived_and_a_restored_state_goes_on_alike(
        before in steps(), after in steps(), boot_s in any::<u64>(),
    ) {
        let (mut chips, mut now) = (Chips::new(boot_s), 0);
        for this in &before {
            step(&mut chips, &mut now, this);
        }
        let bytes = postcard::to_allocvec(&chips).unwrap();
        let mut restored: Chips = postcard::from_bytes(&bytes).unwrap();
        prop_assert_eq!(restored.validate(), Ok(()));
        let mut restored_now = now;
        for this in &after {
            let seen = step(&mut chips, &mut now, this);
            prop_assert_eq!(step(&mut restored, &mut restored_now, this), seen);
        }
        prop_assert_eq!(restored, chips);
    }

    #[test]
    fn any_state_that_validates_is_survived(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        before in steps(), after in steps(),
    ) {
        let (mut chips, mut now) = (Chips::new(BOOT_S), 0u64);
        for this in &before {
            step(&mut chips, &mut now, this);
        }
        let mut bytes = postcard::to_allocvec(&chips).unwrap();
        // Each flip that leaves a valid state stays.
        for (at, flip) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            match postcard::from_bytes::<Chips>(&bytes) {
                Ok(state) if state.validate().is_ok() => chips = state,
                _ => bytes[at] ^= flip,
            }
        }
        for this in &after {
            step(&mut chips, &mut now, this);
        }
    }

    /// However often timers are asked to run in between, the state comes out the same bit for bit.
    #[test]
    fn asking_more_often_changes_nothing(all in steps(), more in 1..9u64) {
        let (mut chips, mut now) = (Chips::new(BOOT_S), 0u64);
        let (mut asked, mut asked_now) = (Chips::new(BOOT_S), 0u64);
        // The engine stops at every timer; between them it may stop anywhere.
        let advance = |chips: &mut Chips, from: u64, to: u64, stops: u64| {
            let (mut at, mut fired) = (from, 0);
            while at < to && fired < 100 {
                let until = chips.next_timer_ns().map_or(to, |next| next.clamp(at + 1, to));
                for stop in 1..=stops {
                    chips.run_timers(at + (until - at) / stops * stop);
                }
                chips.run_timers(until);
                (at, fired) = (until, fired + 1);
            }
            at
        };
        for this in &all {
            if let Step::Wait(ns) = *this {
                let to = now.saturating_add(ns.min(MS));
                now = advance(&mut chips, now, to, 0);
                asked_now = advance(&mut asked, asked_now, to, more);
                prop_assert_eq!(now, asked_now);
            } else {
                let seen = step(&mut chips, &mut now, this);
                prop_assert_eq!(step(&mut asked, &mut asked_now, this), seen);
            }
            prop_assert_eq!(&asked, &chips);
        }
    }
}
