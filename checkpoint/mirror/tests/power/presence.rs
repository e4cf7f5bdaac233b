//! A unit that was said to be in the overlay is in the map after any loss, and none is that was never asked for.

use crate::lossy::{Lossy, Luck};
use ft_mirror::{BaseFacts, BaseFormat, Medium, MemoryMedium, OverlayOf, PresenceError, PresenceMap};
use proptest::prelude::*;
use std::collections::BTreeSet;

const UNIT: u64 = 64 << 10;
const DISK: u64 = 70_000 * UNIT - 512;

fn of() -> OverlayOf {
    let base = BaseFacts {
        bytes: 60_000 * UNIT,
        hash: [7; 32],
        format: BaseFormat::Qcow2,
        file_bytes: 12_345,
        modified: (-3, 999_999_999),
    };
    OverlayOf { image: 77, disk_bytes: DISK, unit_bytes: UNIT, base }
}

fn bytes() -> usize {
    PresenceMap::<Lossy>::bytes_for(&of()).unwrap() as usize
}

fn present<M: Medium>(map: &PresenceMap<M>) -> BTreeSet<u64> {
    map.present().collect()
}

#[derive(Clone, Debug)]
enum Step {
    Add {
        units: Vec<u64>,
    },
    /// A call fails, of those that make it durable.
    Fail {
        calls: u32,
        luck: u64,
    },
    Note {
        modified: u32,
    },
    Die,
    /// Power fails, at once or in the middle of what comes next.
    LosePower {
        luck: u64,
    },
    LosePowerIn {
        calls: u32,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let unit = prop_oneof![0..100_u64, 32_700..32_710_u64, 0..70_000_u64];
    let step = prop_oneof![
        8 => prop::collection::vec(unit, 1..9).prop_map(|units| Step::Add { units }),
        2 => (0..6_u32, any::<u64>()).prop_map(|(calls, luck)| Step::Fail { calls, luck }),
        1 => any::<u32>().prop_map(|modified| Step::Note { modified }),
        1 => Just(Step::Die),
        2 => any::<u64>().prop_map(|luck| Step::LosePower { luck }),
        2 => (0..8_u32).prop_map(|calls| Step::LosePowerIn { calls }),
    ];
    prop::collection::vec(step, 1..50)
}

proptest! {
    #[test]
    fn what_was_said_to_be_present_is_after_any_loss(steps in steps()) {
        let store = Lossy::new(bytes());
        let mut map = PresenceMap::create(&store, of(), 9).unwrap();
        let (mut said, mut asked) = (BTreeSet::new(), BTreeSet::new());
        // A flush that failed, which a new process knows nothing of, and power that fails while that one mends the map:
        // two faults at once.
        let mut has_failed = false;
        for step in steps {
            match step {
                Step::Add { units } => {
                    asked.extend(units.iter().copied());
                    if map.add(&units).is_ok() {
                        said.extend(units);
                    }
                }
                Step::Fail { calls, luck } => {
                    store.fail_after(calls, Luck(luck));
                    has_failed = true;
                }
                Step::Note { modified } => drop(map.note_base(BaseFacts { modified: (5, modified), ..of().base })),
                Step::Die => {
                    store.fail_never();
                    map = PresenceMap::open(&store, DISK).unwrap();
                    has_failed = false;
                }
                Step::LosePower { luck } => {
                    store.lose_power(&mut Luck(luck));
                    map = PresenceMap::open(&store, DISK).unwrap();
                    has_failed = false;
                }
                Step::LosePowerIn { calls } if !has_failed => store.lose_power_after(calls),
                Step::LosePowerIn { .. } => {}
            }
            prop_assert_eq!(map.of().base.hash, of().base.hash);
            let present = present(&map);
            prop_assert!(said.is_subset(&present), "{:?} are lost", said.difference(&present).collect::<Vec<_>>());
            prop_assert!(present.is_subset(&asked));
        }
    }

    #[test]
    fn power_that_fails_while_a_map_is_mended_loses_nothing(calls in 0..12_u32, flips in any::<u64>(), luck: u64) {
        let store = Lossy::new(bytes());
        let said: BTreeSet<u64> = [0, 9, 32_703, 32_704, 69_999].into();
        let mut map = PresenceMap::create(&store, of(), 9).unwrap();
        map.add(&said.iter().copied().collect::<Vec<_>>()).unwrap();
        let mut draw = Luck(flips);
        let place = (draw.next() % bytes() as u64) as usize;
        store.flip(place, (draw.next() % 8) as u8);
        store.lose_power_after(calls);
        drop(PresenceMap::open(&store, DISK));
        store.lose_power(&mut Luck(luck));
        prop_assert_eq!(present(&PresenceMap::open(&store, DISK).unwrap()), said);
    }
}

#[test]
fn no_byte_that_changed_hides_a_unit_and_two_that_did_are_an_error() {
    let store = Lossy::new(bytes());
    let mut map = PresenceMap::create(&store, of(), 9).unwrap();
    let said: BTreeSet<u64> = [0, 9, 32_703, 32_704, 69_999].into();
    map.add(&said.iter().copied().collect::<Vec<_>>()).unwrap();
    for at in (0..128).chain((128..bytes()).step_by(13)) {
        store.flip(at, (at % 8) as u8);
        let found = PresenceMap::look(&store, DISK).unwrap();
        assert_eq!((present(&found), found.of()), (said.clone(), &of()), "byte {at}");
        store.flip(at, (at % 8) as u8);
    }
    // Both copies of the first block, and then of the head.
    for (one, other) in [(8192 + 8, 8192 + 4096 + 8), (100, 4096 + 40)] {
        store.flip(one, 1);
        store.flip(other, 3);
        let found = PresenceMap::open(&store, DISK);
        assert!(matches!(found, Err(PresenceError::Damaged(0) | PresenceError::NoMap)));
        store.flip(one, 1);
        store.flip(other, 3);
    }
    let found = PresenceMap::open(&store, DISK + 512);
    assert!(matches!(found, Err(PresenceError::Size { map: DISK, .. })));
    for left in (0..bytes()).step_by(61).chain([bytes() - 1]) {
        let cut = MemoryMedium::new(left);
        cut.write(0, &store.content()[..left]).unwrap();
        assert!(PresenceMap::open(&cut, DISK).is_err(), "{left} bytes are left");
    }
}

#[test]
fn a_map_of_before_does_not_shine_through_a_new_one() {
    let store = Lossy::new(bytes());
    let mut map = PresenceMap::create(&store, of(), 9).unwrap();
    map.add(&[1, 2, 3]).unwrap();
    drop(PresenceMap::create(&store, of(), 10).unwrap());
    assert_eq!(present(&PresenceMap::open(&store, DISK).unwrap()), BTreeSet::new());
}
