//! A stamp is the old one or the new one after any loss of power, and never one that nobody wrote.

use crate::lossy::{Lossy, Luck};
use ft_mirror::{History, ImageOf, Medium, Stamp, StampError, StampFile};
use proptest::prelude::*;

const BYTES: usize = StampFile::<Lossy>::BYTES as usize;

fn stamps() -> impl Strategy<Value = Stamp> {
    let history = prop_oneof![
        (1..9_u64).prop_map(|generation| History::Ran { generation }),
        (any::<u64>(), prop::option::of(1..9_u64))
            .prop_map(|(pairing, named_in)| History::Follows { pairing, named_in }),
        any::<u64>().prop_map(|pairing| History::Mixed { pairing }),
    ];
    (any::<[u64; 4]>(), history).prop_map(|([vm, image, disk_bytes, cell], history)| Stamp {
        of: ImageOf { vm, image, disk_bytes },
        cell,
        history,
    })
}

#[derive(Clone, Debug)]
enum Step {
    Write(Stamp),
    /// Power fails after so many calls, in whatever then goes on, and then while it is opened again.
    LosePower {
        calls: u32,
        as_opened: u32,
        luck: u64,
        next: Stamp,
    },
    /// A call fails in whatever then goes on. It is tried again, or the process dies; then power fails.
    Fail {
        calls: u32,
        dies: bool,
        luck: u64,
        next: Stamp,
        last: Stamp,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        1 => stamps().prop_map(Step::Write),
        3 => (0..5_u32, 0..3_u32, any::<u64>(), stamps()).prop_map(|(calls, as_opened, luck, next)| {
            Step::LosePower { calls, as_opened, luck, next }
        }),
        2 => (0..5_u32, any::<bool>(), any::<u64>(), stamps(), stamps())
            .prop_map(|(calls, dies, luck, next, last)| Step::Fail { calls, dies, luck, next, last }),
    ];
    prop::collection::vec(step, 1..30)
}

fn first() -> Stamp {
    let of = ImageOf { vm: 1, image: 2, disk_bytes: 4096 };
    Stamp { of, cell: 3, history: History::Ran { generation: 1 } }
}

proptest! {
    #[test]
    fn it_is_the_old_one_or_the_new_one_after_any_loss(steps in steps()) {
        let store = Lossy::new(BYTES);
        let mut file = StampFile::create(&store, first()).unwrap();
        for step in steps {
            match step {
                Step::Write(next) => file.write(next).unwrap(),
                Step::LosePower { calls, as_opened, luck, next } => {
                    let mut luck = Luck(luck);
                    let old = file.stamp();
                    store.lose_power_after(calls);
                    let written = file.write(next).is_ok();
                    store.lose_power(&mut luck);
                    store.lose_power_after(as_opened);
                    drop(StampFile::open(&store));
                    store.lose_power(&mut luck);
                    file = StampFile::open(&store).unwrap();
                    let found = file.stamp();
                    prop_assert!(found == next || !written && found == old, "{:?}", found);
                    prop_assert_eq!(StampFile::look(&&store).unwrap(), found);
                }
                Step::Fail { calls, dies, luck, next, last } => {
                    let old = file.stamp();
                    store.fail_after(calls, Luck(luck));
                    let written = file.write(next).is_ok();
                    store.fail_never();
                    let said = if dies {
                        file = StampFile::open(&store).unwrap();
                        file.stamp()
                    } else {
                        // It may be the one that it said before.
                        let last = if luck % 2 == 0 { last } else { old };
                        file.write(last).unwrap();
                        last
                    };
                    prop_assert!(!dies || said == next || !written && said == old);
                    store.lose_power(&mut Luck(luck));
                    file = StampFile::open(&store).unwrap();
                    prop_assert_eq!(file.stamp(), said);
                }
            }
        }
    }

    #[test]
    fn a_byte_that_changed_costs_nothing_and_one_in_each_slot_is_said(
        stamp in stamps(), at in 0..76_usize, other in 0..76_usize, bit in 0..8_u8, slot in 0..2_usize,
    ) {
        let store = Lossy::new(BYTES);
        StampFile::create(&store, stamp).unwrap();
        store.flip(slot * 4096 + at, bit);
        prop_assert_eq!(StampFile::look(&&store).unwrap(), stamp);
        store.flip((1 - slot) * 4096 + other, bit);
        prop_assert!(matches!(StampFile::open(&store), Err(StampError::Damaged)));
    }

    #[test]
    fn no_bytes_make_it_panic_and_a_file_that_was_cut_is_said(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let store = Lossy::new(BYTES);
        store.write(0, &bytes).unwrap();
        prop_assert!(StampFile::open(&store).is_err());
        let short = Lossy::new(BYTES - 1 - bytes.len());
        let is_cut = |outcome: Result<_, _>| matches!(outcome, Err(StampError::Cut { .. }));
        prop_assert!(is_cut(StampFile::open(&short)) && is_cut(StampFile::create(&short, first())));
    }
}

#[test]
fn what_one_slot_lost_is_there_again_when_it_was_opened() {
    let store = Lossy::new(BYTES);
    StampFile::create(&store, first()).unwrap();
    for slot in [0, 1, 0] {
        store.flip(slot * 4096 + 20, 3);
        assert_eq!(StampFile::open(&store).unwrap().stamp(), first());
    }
}
