//! Two machines of which the second executes what the first did. Their disks do what they are asked for in orders of
//! their own, and the first one's owner holds changes back now and then; the guest is told of what is done at the same
//! places. Then guest and image are the same on both, whatever overlaps, is reset or is against the rules.

use super::told::Engine;
use super::*;
use proptest::prelude::*;
use proptest::sample::Index;

const F_FLUSH: u64 = 1 << 9;
const OUT: u32 = 1;
/// What slot `n` reads is at `SLOTS + n * SLOT_BYTES`, and what it writes behind that.
const SLOTS: u64 = 0x20_0000;
const SLOT_BYTES: u64 = 0x1_0000;
const WRITTEN: u64 = 0x8000;
const SLOTS_MAX: u16 = QUEUE_SIZE / 2;

/// What the guest does.
#[derive(Clone, Debug)]
enum Act {
    Request {
        slot: u16,
        kind: u32,
        sector: u64,
        sectors: u64,
        byte: u8,
    },
    Notify,
    /// The driver begins anew.
    Reset,
    /// A chain that is none.
    Break,
}

#[derive(Clone, Debug)]
enum Step {
    /// Kind, sector, sectors, byte.
    Request(u32, u64, u64, u8),
    Act(Act),
    /// The disk does one of those that it has.
    Do(Index),
    /// The guest is told of one that is done.
    Show,
    /// The owner takes no change, or takes them again.
    Hold(bool),
}

/// Holds changes back, sometimes.
#[derive(Default)]
struct Owner(AtomicBool);

impl DiskOwner for Owner {
    fn change(&self, _: &DiskChange<'_>) -> DiskAnswer {
        if self.0.load(Ordering::Relaxed) { DiskAnswer::Full } else { DiskAnswer::Taken }
    }

    fn shown(&self, _: &Range<u64>) {}

    fn stopped(&self, _: &ft_disk::IoFault) {}
}

impl Engine {
    fn act(&mut self, act: &Act) {
        match *act {
            Act::Request { slot, kind, sector, sectors, byte } => {
                let (at, bytes) = (SLOTS + u64::from(slot) * SLOT_BYTES, sectors * 512);
                let mut readable = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
                let mut writable = 1;
                match kind {
                    0 => writable += bytes as u32,
                    OUT => readable.extend(vec![byte; bytes as usize]),
                    11 | 13 => {
                        readable.extend(sector.to_le_bytes());
                        readable.extend((sectors as u32).to_le_bytes());
                        readable.extend([0; 4]);
                    }
                    _ => {}
                }
                self.rig.poke(at, &readable);
                self.ring.next_desc = 2 * slot;
                let chain = [(at, readable.len() as u32, 0), (at + WRITTEN, writable, WRITE)];
                self.ring.offer(&self.rig, &chain);
            }
            Act::Notify => self.ring.notify(&self.rig),
            Act::Reset => self.ring = self.rig.start_with(DISK, 1, VERSION_1 | F_FLUSH).remove(0),
            Act::Break => self.ring.offer_head(&self.rig, QUEUE_SIZE),
        }
    }

    fn do_one(&self, which: &Index) {
        self.hand.wake();
        if self.hand.orders() != 0 {
            self.hand.do_one(which.index(self.hand.orders()));
        }
    }

    /// All that it was asked for.
    fn do_all(&self) {
        loop {
            self.hand.wake();
            self.take();
            if self.hand.orders() == 0 {
                return;
            }
            self.hand.do_one(0);
        }
    }

    /// What the guest has in its memory and of its devices.
    fn seen(&self) -> (DevicesState, Vec<u8>) {
        (self.rig.devices.capture(), self.rig.peek(0x10_0000, 0x20_0000))
    }
}

/// What the second one is to do, in order.
enum Entry {
    Act(Act),
    Shown(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop_oneof![4 => Just(OUT), 4 => Just(0), 1 => Just(4), 1 => Just(11), 1 => Just(13)];
    prop::collection::vec(
        prop_oneof![
            10 => (kind, 0u64..10, 1u64..5, 1u8..255).prop_map(|(k, s, n, b)| Step::Request(k, s, n, b)),
            5 => Just(Step::Act(Act::Notify)),
            1 => Just(Step::Act(Act::Reset)),
            1 => Just(Step::Act(Act::Break)),
            5 => any::<Index>().prop_map(Step::Do),
            5 => Just(Step::Show),
            2 => any::<bool>().prop_map(Step::Hold),
        ],
        1..80,
    )
}

/// What the guest did and was told.
fn record(first: &mut Engine, owner: &Owner, steps: &[Step]) -> Vec<Entry> {
    let (mut log, mut busy) = (Vec::new(), BTreeSet::new());
    for step in steps {
        let act = match step {
            Step::Request(kind, sector, sectors, byte) => {
                let Some(slot) = (0..SLOTS_MAX).find(|slot| busy.insert(*slot)) else { continue };
                Act::Request { slot, kind: *kind, sector: *sector, sectors: *sectors, byte: *byte }
            }
            Step::Act(act) => act.clone(),
            Step::Do(which) => {
                first.do_one(which);
                continue;
            }
            Step::Show => {
                first.take();
                if let Some((disk, head, well)) = first.rig.devices.next_finished() {
                    let shown = first.rig.devices.show_request(disk.into(), head, well);
                    assert_eq!((shown, well), (Shown::Done, true));
                    log.push(Entry::Shown(head));
                }
                for (head, _) in first.ring.take_used(&first.rig) {
                    busy.remove(&(head as u16 / 2));
                }
                continue;
            }
            Step::Hold(holds) => {
                owner.0.store(*holds, Ordering::Relaxed);
                first.rig.devices.disk(0).unwrap().try_again();
                continue;
            }
        };
        if matches!(act, Act::Reset) {
            busy.clear();
        }
        first.act(&act);
        log.push(Entry::Act(act));
    }
    log
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn two_that_execute_the_same_have_the_same_guest_and_the_same_image(
        steps in steps(),
        order in prop::collection::vec((any::<bool>(), any::<Index>()), 1..20),
    ) {
        let owner = Arc::new(Owner::default());
        let theirs = Arc::clone(&owner) as Arc<dyn DiskOwner>;
        let started = |mut engine: Engine| {
            engine.act(&Act::Reset);
            engine
        };
        let mut first = started(Engine::with(|disk| Disk { owner: Some(theirs), ..disk }));
        let mut second = started(Engine::with(|disk| disk));
        let log = record(&mut first, &owner, &steps);
        let mut order = order.iter().cycle();
        for entry in &log {
            let (early, which) = order.next().unwrap();
            if *early {
                second.do_one(which);
            }
            second.take();
            match entry {
                Entry::Act(act) => second.act(act),
                Entry::Shown(head) => loop {
                    second.take();
                    match second.rig.devices.show_request(0, *head, true) {
                        Shown::Done => break,
                        Shown::NotYet => second.do_one(&order.next().unwrap().1),
                        Shown::Never => prop_assert!(false, "{head} is not in flight"),
                    }
                }
            }
        }
        prop_assert!(first.seen() == second.seen());
        owner.0.store(false, Ordering::Relaxed);
        first.rig.devices.disk(0).unwrap().try_again();
        first.do_all();
        second.do_all();
        prop_assert!(first.hand.content(0, DISK_BYTES) == second.hand.content(0, DISK_BYTES));
        prop_assert!(first.seen() == second.seen());
    }
}

on_pci_too!(two_that_execute_the_same_have_the_same_guest_and_the_same_image,);
