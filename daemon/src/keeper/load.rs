//! How much of its time the guest works. A pause costs a guest that waits nothing: what it would have done then, it
//! does at once afterwards. So the pauses' share of the time is measured against the time that the guest works.

use ft_vm::machine::Stint;

/// About so much of the time that the guest ran is averaged over.
const SPAN_US: u64 = 20_000;

/// Of the busiest of the guest's processors, over the last tens of milliseconds.
#[derive(Debug, Default)]
pub(super) struct Load {
    worked_us: u64,
    ran_us: u64,
}

impl Load {
    /// The guest ran, and has stopped.
    pub(super) fn ran(&mut self, stint: Stint) {
        let ran_us = stint.ran.as_micros() as u64;
        self.worked_us += (stint.worked.as_micros() as u64).min(ran_us);
        self.ran_us += ran_us;
        while self.ran_us > SPAN_US {
            (self.worked_us, self.ran_us) = (self.worked_us / 2, self.ran_us / 2);
        }
    }

    /// Thousandths of its time; all of it, as long as nothing is known.
    pub(super) fn permille(&self) -> u64 {
        if self.ran_us == 0 {
            return 1000;
        }
        self.worked_us * 1000 / self.ran_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    const MS: u64 = 1000;

    fn after(epochs: &[(u64, u64)]) -> u64 {
        let mut load = Load::default();
        for &(ran, worked) in epochs {
            load.ran(Stint { ran: Duration::from_micros(ran), worked: Duration::from_micros(worked) });
        }
        load.permille()
    }

    #[test]
    fn a_guest_counts_as_busy_until_it_was_seen_to_wait_and_again_soon_after_it_works() {
        assert_eq!(after(&[]), 1000);
        assert_eq!(after(&[(MS, 100)]), 100);
        assert_eq!(after(&[(5 * MS, 5 * MS); 20]), 1000);
        let mut epochs = vec![(5 * MS, 0); 100];
        assert_eq!(after(&epochs), 0);
        epochs.extend([(5 * MS, 5 * MS); 10]);
        assert!(after(&epochs) > 900, "{}", after(&epochs));
    }

    proptest! {
        #[test]
        fn it_is_a_part_of_the_time(epochs in proptest::collection::vec((0..100 * MS, 0..200 * MS), 0..50)) {
            prop_assert!(after(&epochs) <= 1000);
        }
    }
}
