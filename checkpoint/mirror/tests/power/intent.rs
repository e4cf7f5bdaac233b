//! Writes go into an image only where the map covers them. After any loss, each extent that may differ is set.

use crate::lossy::{Lossy, Luck};
use ft_mirror::{Damage, IntentError, IntentMap, Medium, MemoryMedium};
use proptest::prelude::*;
use std::collections::BTreeSet;

const EXTENT: u64 = 1 << 20;
const DISK: u64 = 70_000 * EXTENT - 512;

#[derive(Clone, Debug)]
enum Step {
    Write {
        offset: u64,
        bytes: u64,
    },
    Settle {
        luck: u64,
    },
    Commit,
    /// A call fails, of those that make it durable.
    Fail {
        calls: u32,
        luck: u64,
    },
    Die,
    LosePower {
        luck: u64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..DISK - (8 << 20), 1..8_u64 << 20).prop_map(|(offset, bytes)| Step::Write { offset, bytes }),
        2 => any::<u64>().prop_map(|luck| Step::Settle { luck }),
        3 => Just(Step::Commit),
        2 => (0..4_u32, any::<u64>()).prop_map(|(calls, luck)| Step::Fail { calls, luck }),
        1 => Just(Step::Die),
        2 => any::<u64>().prop_map(|luck| Step::LosePower { luck }),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #[test]
    fn what_may_differ_is_set_after_any_loss(steps in steps()) {
        let store = Lossy::new(IntentMap::<Lossy>::bytes_for(DISK, EXTENT).unwrap() as usize);
        let mut map = IntentMap::create(&store, DISK, EXTENT, 9).unwrap();
        // Extents that were written and not settled.
        let mut differ = BTreeSet::new();
        for step in steps {
            match step {
                Step::Write { offset, bytes } => {
                    let range = offset..offset + bytes;
                    if !map.covers(&range) {
                        map.mark(&range);
                        prop_assert!(!map.covers(&range));
                        // The guest's write waits as long as this fails.
                        if map.commit().is_err() {
                            prop_assert!(!map.covers(&range));
                            continue;
                        }
                    }
                    prop_assert!(map.covers(&range));
                    differ.extend(range.start / EXTENT..range.end.div_ceil(EXTENT));
                }
                Step::Settle { luck } => {
                    let mut luck = Luck(luck);
                    for extent in map.set().filter(|_| luck.next().is_multiple_of(2)).collect::<Vec<_>>() {
                        map.clear(extent);
                        differ.remove(&extent);
                    }
                }
                Step::Commit => drop(map.commit()),
                Step::Fail { calls, luck } => store.fail_after(calls, Luck(luck)),
                Step::Die => {
                    store.fail_never();
                    map = IntentMap::open(&store, DISK).unwrap().0;
                }
                Step::LosePower { luck } => {
                    store.lose_power(&mut Luck(luck));
                    map = IntentMap::open(&store, DISK).unwrap().0;
                }
            }
            let set: BTreeSet<_> = map.set().collect();
            prop_assert!(differ.is_subset(&set), "{:?}", differ.difference(&set).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_damaged_block_counts_as_all_set_and_a_damaged_head_as_no_map() {
    let bytes = IntentMap::<Lossy>::bytes_for(DISK, EXTENT).unwrap() as usize;
    let store = Lossy::new(bytes);
    let mut map = IntentMap::create(&store, DISK, EXTENT, 9).unwrap();
    map.mark(&(0..1));
    map.commit().unwrap();
    store.flip(4096 * 2 + 100, 3);
    let (map, damage) = IntentMap::open(&store, DISK).unwrap();
    assert_eq!(damage, Damage { blocks: 1 });
    assert_eq!(map.set().count(), 1 + 4088 * 8);
    assert_eq!(map.range(69_999), 69_999 * EXTENT..DISK);
    assert!(matches!(IntentMap::open(&store, DISK + 1), Err(IntentError::Size { .. })));
    store.flip(9, 0);
    assert!(matches!(IntentMap::open(&store, DISK), Err(IntentError::NoMap)));
    store.write(0, &[0; 40]).unwrap();
    assert!(matches!(IntentMap::open(&store, DISK), Err(IntentError::NoMap)));
}

#[test]
fn a_map_of_before_does_not_shine_through_a_new_one() {
    let bytes = IntentMap::<Lossy>::bytes_for(DISK, EXTENT).unwrap() as usize;
    let store = Lossy::new(bytes);
    let mut map = IntentMap::create(&store, DISK, EXTENT, 9).unwrap();
    map.mark(&(0..DISK));
    map.commit().unwrap();
    drop(IntentMap::create(&store, DISK, EXTENT, 10).unwrap());
    assert_eq!(IntentMap::open(&store, DISK).unwrap().0.set().count(), 0);
}

#[test]
fn no_byte_that_changed_hides_what_may_differ_and_a_map_that_was_cut_is_none() {
    let bytes = IntentMap::<Lossy>::bytes_for(DISK, EXTENT).unwrap() as usize;
    let store = Lossy::new(bytes);
    let mut map = IntentMap::create(&store, DISK, EXTENT, 7).unwrap();
    for extent in [0, 9, 32_703, 32_704, 69_998] {
        map.mark(&(extent * EXTENT..(extent + 1) * EXTENT));
    }
    map.commit().unwrap();
    let set: BTreeSet<u64> = map.set().collect();
    let mut nothing = 0;
    for at in (0..128).chain((128..bytes).step_by(13)) {
        store.flip(at, (at % 8) as u8);
        match IntentMap::open(&store, DISK) {
            Ok((found, _)) => {
                let told = found.set().filter(|extent| set.contains(extent)).count();
                assert_eq!(told, set.len(), "byte {at}");
            }
            Err(IntentError::Io(error)) => panic!("byte {at}: {error}"),
            Err(_) => nothing += 1,
        }
        store.flip(at, (at % 8) as u8);
    }
    assert!((40..60).contains(&nothing), "{nothing} bytes of the head tell that it is a map");
    for left in (0..bytes).step_by(61).chain([bytes - 1]) {
        let cut = MemoryMedium::new(left);
        cut.write(0, &store.content()[..left]).unwrap();
        assert!(IntentMap::open(&cut, DISK).is_err(), "{left} bytes are left");
    }
}
