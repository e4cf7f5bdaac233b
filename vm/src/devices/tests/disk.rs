//! A writable disk: requests in flight, pauses, states, trouble. The disk does what it is asked for when the test says
//! so.

mod pace;
mod resets;

use super::hand::Hand;
use super::*;
use proptest::prelude::*;
use std::time::Duration;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const OK: u8 = 0;
const IOERR: u8 = 1;
/// Not written yet.
const UNTOUCHED: u8 = 0xee;
const F_FLUSH: u64 = 1 << 9;
const F_EVENT_IDX: u64 = 1 << 29;
/// Header, data and status of slot `n` are at `SLOTS + n * SLOT_BYTES`.
const SLOTS: u64 = 0x20_0000;
const SLOT_BYTES: u64 = 0x1_0000;
const DATA: u64 = 0x1000;
const STATUS: u64 = 0x800;
const LONG: Duration = Duration::from_secs(600);

/// A guest with a writable disk.
struct Guest {
    rig: Rig,
    hand: Hand,
    ring: Ring,
}

impl Guest {
    fn new() -> Self {
        Self::with(|disk| disk)
    }

    fn with(change: impl FnOnce(Disk) -> Disk) -> Self {
        let hand = Hand::new(DISK_BYTES);
        let mut disk = hand.disk();
        // Nobody else does anything while a test waits.
        disk.drain_within = Duration::ZERO;
        let rig = Rig::with_disk(GuestRam::new(RAM_BYTES).unwrap(), change(disk), disk_image());
        let ring = rig.start_with(DISK, 1, VERSION_1 | F_FLUSH).remove(0);
        Self { rig, hand, ring }
    }

    fn slot(slot: u64) -> u64 {
        SLOTS + slot * SLOT_BYTES
    }

    /// Makes a request available without a notification.
    fn offer(&mut self, slot: u64, kind: u32, sector: u64, data: &[u8]) {
        let (at, rig) = (Self::slot(slot), &self.rig);
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        rig.poke(at, &header);
        rig.poke(at + STATUS, &[UNTOUCHED]);
        rig.poke(at + DATA, data);
        let flags = if kind == IN { WRITE } else { 0 };
        let mut chain = vec![(at, 16, 0), (at + DATA, data.len() as u32, flags), (at + STATUS, 1, WRITE)];
        if data.is_empty() {
            chain.remove(1);
        }
        self.ring.offer(rig, &chain);
    }

    fn request(&mut self, slot: u64, kind: u32, sector: u64, data: &[u8]) {
        self.offer(slot, kind, sector, data);
        self.ring.notify(&self.rig);
    }

    fn status(&self, slot: u64) -> u8 {
        self.rig.peek(Self::slot(slot) + STATUS, 1)[0]
    }

    fn data(&self, slot: u64, bytes: usize) -> Vec<u8> {
        self.rig.peek(Self::slot(slot) + DATA, bytes)
    }

    fn statuses(&self, slots: std::ops::Range<u64>) -> Vec<u8> {
        slots.map(|slot| self.status(slot)).collect()
    }

    fn pause(&self) -> DevicesState {
        self.rig.devices.quiesce();
        self.rig.devices.capture()
    }

    /// The same machine on another host, with that host's copy of the disk; it goes on there.
    fn elsewhere(&self, state: &DevicesState, hand: Hand) -> Self {
        let ram = GuestRam::new(RAM_BYTES).unwrap();
        let mut disk = hand.disk();
        disk.drain_within = Duration::ZERO;
        let rig = Rig::with_disk(ram, disk, disk_image());
        // What this guest uses of its memory.
        for page in 0x100..0x300 {
            rig.view.write_page(page, &self.rig.page(page));
        }
        let state = state::decoded(&state::encoded(state)).unwrap();
        rig.devices.restore(&state).unwrap();
        assert_eq!(hand.orders(), 0, "a state that is taken over asks the disk for nothing");
        rig.devices.resume();
        Self { rig, hand, ring: self.ring.copy() }
    }

    fn is_stopped(&self) -> bool {
        self.rig.status(DISK) & NEEDS_RESET != 0
    }
}

#[test]
fn requests_are_under_way_at_once_and_come_back_in_the_order_in_which_they_are_done() {
    let mut guest = Guest::new();
    for slot in 0..2 {
        guest.request(slot, OUT, slot * 8, &[slot as u8 + 1; 4096]);
    }
    assert_eq!(guest.hand.orders(), 2);
    assert!(guest.ring.take_used(&guest.rig).is_empty(), "nothing is done on the vCPU's thread");
    assert!(!guest.rig.chip.level(NET_GSI + 1));
    guest.hand.do_one(1);
    assert_eq!(guest.ring.take_used(&guest.rig), [(3, 1)]);
    assert!(guest.rig.chip.level(NET_GSI + 1));
    assert_eq!(guest.statuses(0..2), [UNTOUCHED, OK]);
    guest.hand.do_one(0);
    assert_eq!(guest.statuses(0..2), [OK, OK]);
    guest.request(2, IN, 0, &[0; 8192]);
    guest.hand.do_all();
    assert_eq!(guest.data(2, 8192), [[1; 4096], [2; 4096]].concat());
}

#[test]
fn a_request_waits_for_the_changes_before_it_to_the_same_sectors_and_for_nothing_else() {
    let mut guest = Guest::new();
    guest.request(0, OUT, 8, &[1; 512]);
    guest.request(1, IN, 7, &[0; 1024]);
    assert_eq!(guest.hand.orders(), 1, "the read touches what is being written");
    let mut range = 16u64.to_le_bytes().to_vec();
    range.extend([8, 0, 0, 0, 0, 0, 0, 0]);
    // Slots 0 and 1 took six of eight descriptors.
    guest.hand.do_all();
    assert_eq!(guest.ring.take_used(&guest.rig).len(), 2);
    assert_eq!(guest.data(1, 1024), [[0; 512], [1; 512]].concat());
    guest.request(2, WRITE_ZEROES, 0, &range);
    guest.request(3, FLUSH, 0, &[]);
    assert_eq!(guest.hand.orders(), 2, "a flush covers what was completed before it");
    guest.hand.do_all();
    assert_eq!(guest.statuses(0..4), [OK; 4]);
    assert_eq!(guest.hand.content(8 * 512, 512), [1; 512]);
}

#[test]
fn a_discard_reads_as_zeroes() {
    let mut guest = Guest::new();
    guest.request(0, OUT, 0, &[7; 1024]);
    guest.hand.do_all();
    let mut range = 1u64.to_le_bytes().to_vec();
    range.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    guest.request(1, DISCARD, 0, &range);
    guest.hand.do_all();
    assert_eq!(guest.status(1), OK);
    assert_eq!(guest.hand.content(0, 1024), [[7; 512], [0; 512]].concat());
}

#[test]
fn while_the_machine_is_paused_nothing_of_a_request_is_seen_and_then_it_goes_on() {
    let mut guest = Guest::new();
    guest.request(0, OUT, 0, &[5; 512]);
    guest.request(1, IN, 64, &[0xaa; 512]);
    let state = guest.pause();
    let requests = &state.virtio[1].requests;
    assert_eq!(requests.len(), 2);
    let first = RequestState { head: 0, operation: DiskOperation::Write, offset: 0, bytes: 512 };
    let second = RequestState { head: 3, operation: DiskOperation::Read, offset: 64 * 512, bytes: 512 };
    assert_eq!(requests[..], [first, second]);
    // As a vCPU that has not stopped yet.
    guest.request(2, FLUSH, 0, &[]);
    assert_eq!(guest.hand.orders(), 2, "ordered while the machine is to stop");
    let memory = guest.rig.memory();
    guest.hand.do_all();
    assert!(guest.rig.memory() == memory);
    assert_eq!(guest.statuses(0..3), [UNTOUCHED; 3]);
    assert_eq!(guest.rig.devices.capture().virtio[1], state.virtio[1]);
    guest.rig.devices.resume();
    guest.hand.do_all();
    assert_eq!(guest.statuses(0..3), [OK; 3]);
    assert_eq!(guest.ring.take_used(&guest.rig).len(), 3);
}

#[test]
fn elsewhere_what_was_in_flight_is_done_again_and_given_back_once() {
    let mut guest = Guest::new();
    guest.request(0, OUT, 0, &[5; 512]);
    guest.request(1, IN, 0, &[0xaa; 512]);
    let state = guest.pause();
    for done_here in [false, true] {
        // Whether the host that is lost had written it or not.
        if done_here {
            guest.hand.do_one(0);
        }
        let mut there = guest.elsewhere(&state, guest.hand.copy());
        there.hand.do_all();
        assert_eq!(there.statuses(0..2), [OK, OK]);
        assert_eq!(there.data(1, 512), [5; 512]);
        assert_eq!(there.ring.take_used(&there.rig), [(0, 1), (3, 513)]);
        assert!(there.rig.chip.level(NET_GSI + 1));
        assert!(there.pause().virtio[1].requests.is_empty());
    }
}

#[test]
fn a_pause_gives_a_disk_its_time_and_a_disk_that_stands_still_gets_it_once() {
    let mut guest = Guest::with(|disk| Disk { drain_within: LONG, ..disk });
    guest.request(0, OUT, 0, &[5; 512]);
    let hand = guest.hand.clone();
    let engine = std::thread::spawn(move || hand.do_one(0));
    assert!(guest.pause().virtio[1].requests.is_empty(), "it was done in time");
    engine.join().unwrap();
    guest.rig.devices.resume();
    assert_eq!(guest.status(0), OK);

    let within = Duration::from_millis(50);
    let mut guest = Guest::with(|disk| Disk { drain_within: within, ..disk });
    guest.request(0, OUT, 0, &[5; 512]);
    let begun = Instant::now();
    assert_eq!(guest.pause().virtio[1].requests.len(), 1);
    assert!(begun.elapsed() >= within);
    // Each of them would wait as long as the first: 50 s.
    for _ in 0..1000 {
        guest.rig.devices.resume();
        assert_eq!(guest.pause().virtio[1].requests.len(), 1);
    }
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    guest.rig.devices.resume();
    guest.hand.do_all();
    assert_eq!(guest.status(0), OK, "15 s later it is done all the same");
}

#[test]
fn a_driver_that_breaks_the_rules_loses_no_write_that_is_under_way() {
    type Break = fn(&mut Guest);
    let breaks: [(&str, Break); 4] = [
        ("no chain", |guest| guest.ring.offer_head(&guest.rig, QUEUE_SIZE)),
        ("no header", |guest| guest.ring.offer(&guest.rig, &[(SLOTS, 15, 0), (SLOTS + STATUS, 1, WRITE)])),
        ("given twice", |guest| guest.ring.offer_head(&guest.rig, 0)),
        ("more than there are", |guest| guest.rig.poke(guest.ring.avail + 2, &100u16.to_le_bytes())),
    ];
    for (what, break_it) in breaks {
        let mut guest = Guest::new();
        guest.request(0, OUT, 0, &[9; 512]);
        break_it(&mut guest);
        guest.ring.notify(&guest.rig);
        assert!(guest.is_stopped() && guest.rig.malformed() == 1, "{what}");
        let state = guest.pause();
        assert_eq!(state.virtio[1].requests.len(), 1, "{what}");
        guest.elsewhere(&state, guest.hand.copy());
        guest.rig.devices.resume();
        guest.hand.do_all();
        assert_eq!(guest.status(0), UNTOUCHED, "{what}: a stopped device gives nothing back");
        assert_eq!(guest.hand.content(0, 512), [9; 512], "{what}");
        guest.ring = guest.rig.start_with(DISK, 1, VERSION_1).remove(0);
        guest.request(1, IN, 0, &[0; 512]);
        guest.hand.do_all();
        assert_eq!(guest.data(1, 512), [9; 512], "{what}");
    }
}

#[test]
fn a_chain_that_was_changed_while_the_disk_had_it_stops_the_disk_where_the_machine_goes_on() {
    let mut guest = Guest::new();
    guest.request(0, OUT, 0, &[9; 512]);
    // Another sector.
    guest.rig.poke(Guest::slot(0) + 8, &[1]);
    let state = guest.pause();
    let there = guest.elsewhere(&state, guest.hand.copy());
    there.hand.do_all();
    assert!(there.is_stopped());
    assert_eq!(there.hand.content(0, 1024), [0; 1024]);
}

#[test]
fn states_of_requests_that_cannot_be_are_refused_by_name() {
    let mut guest = Guest::new();
    guest.request(0, OUT, 0, &[9; 512]);
    guest.request(1, IN, 0, &[9; 512]);
    let good = guest.pause();
    type Change = fn(&mut Vec<RequestState>);
    let changes: [(&str, Change); 6] = [
        ("1 requests in flight for 2 chains taken", |requests| requests.truncate(1)),
        ("no request that can be in flight", |requests| requests[1].head = 0),
        ("no request that can be in flight", |requests| requests[0].offset = DISK_BYTES as u64),
        ("no request that can be in flight", |requests| requests[0].bytes = u64::MAX),
        ("no request that can be in flight", |requests| requests[0].offset = 100),
        ("no request that can be in flight", |requests| requests[0].operation = DiskOperation::Flush),
    ];
    for (what, change) in changes {
        let mut bad = good.clone();
        change(&mut bad.virtio[1].requests);
        let error = guest.rig.devices.restore(&bad).unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
    }
    let mut bad = good.clone();
    bad.virtio[0].requests = good.virtio[1].requests.clone();
    let error = guest.rig.devices.restore(&bad).unwrap_err().to_string();
    assert!(error.contains("net (virtio device 0): 2 requests in flight for 0 chains"), "{error}");
    guest.rig.devices.restore(&good).unwrap();
}

#[test]
fn a_state_that_replaces_requests_under_way_waits_for_them_where_they_touch() {
    let mut guest = Guest::new();
    guest.request(0, OUT, 0, &[1; 512]);
    let state = guest.pause();
    guest.rig.devices.restore(&state).unwrap();
    guest.rig.devices.resume();
    guest.hand.wake();
    assert_eq!(guest.hand.orders(), 1, "the same request, from before");
    guest.hand.do_one(0);
    assert_eq!((guest.status(0), guest.hand.orders()), (UNTOUCHED, 1));
    guest.hand.do_one(0);
    assert_eq!(guest.status(0), OK);
}

#[test]
fn an_error_is_reported_or_kept_from_the_guest_as_the_disk_says() {
    let mut guest = Guest::new();
    guest.request(0, OUT, 0, &[1; 512]);
    guest.hand.fail(0);
    assert_eq!(guest.status(0), IOERR);
    assert_eq!(guest.rig.devices.counters().block_host_errors, 1);

    let owner = Arc::new(Owner::default());
    let theirs = Arc::clone(&owner) as Arc<dyn DiskOwner>;
    let mut guest = Guest::with(|disk| Disk { on_io_error: OnIoError::Stop, owner: Some(theirs), ..disk });
    guest.request(0, OUT, 0, &[1; 512]);
    guest.request(1, IN, 0, &[0; 512]);
    guest.hand.fail(0);
    assert_eq!((guest.status(0), guest.hand.orders(), *owner.stops.lock()), (UNTOUCHED, 0, 1));
    // It is in flight as any other, and where the machine goes on it is tried there.
    let state = guest.pause();
    assert_eq!(state.virtio[1].requests.len(), 2);
    let there = guest.elsewhere(&state, guest.hand.copy());
    there.hand.do_all();
    assert_eq!((there.statuses(0..2), there.data(1, 512)), (vec![OK, OK], vec![1; 512]));
    guest.rig.devices.resume();
    guest.hand.wake();
    assert_eq!(guest.hand.orders(), 0, "a pause is no reason to try again");
    guest.rig.devices.disk(0).unwrap().try_again();
    guest.hand.do_all();
    assert_eq!((guest.statuses(0..2), guest.data(1, 512)), (vec![OK, OK], vec![1; 512]));
    assert_eq!(owner.changes.lock().len(), 1, "a change is told once");
}

/// Notes what it is told.
#[derive(Default)]
struct Owner {
    full: AtomicBool,
    /// Where and what.
    changes: Mutex<Vec<(u64, u8)>>,
    shown: Mutex<Vec<Range<u64>>>,
    stops: Mutex<usize>,
}

impl DiskOwner for Owner {
    fn change(&self, change: &DiskChange<'_>) -> DiskAnswer {
        if self.full.load(Ordering::Relaxed) {
            return DiskAnswer::Full;
        }
        self.changes.lock().push(match change {
            DiskChange::Write { offset, data } => (*offset, data[0]),
            DiskChange::Zeroes { offset, .. } => (*offset, 0),
            DiskChange::Flush => (u64::MAX, 0),
        });
        DiskAnswer::Taken
    }

    fn shown(&self, bytes: &Range<u64>) {
        self.shown.lock().push(bytes.clone());
    }

    fn stopped(&self, _: &ft_disk::IoFault) {
        *self.stops.lock() += 1;
    }
}

#[test]
fn the_owner_sees_changes_in_order_before_they_are_made_and_can_hold_them_back() {
    let owner = Arc::new(Owner::default());
    let theirs = Arc::clone(&owner) as Arc<dyn DiskOwner>;
    let mut guest = Guest::with(|disk| Disk { owner: Some(theirs), ..disk });
    guest.offer(0, OUT, 0, &[1; 512]);
    guest.offer(1, FLUSH, 0, &[]);
    guest.ring.notify(&guest.rig);
    assert_eq!(*owner.changes.lock(), [(0, 1), (u64::MAX, 0)]);
    guest.hand.do_all();
    assert_eq!(guest.ring.take_used(&guest.rig).len(), 2);
    assert_eq!(*owner.shown.lock(), vec![Range { start: 0, end: 512 }], "the guest has it back");

    owner.full.store(true, Ordering::Relaxed);
    guest.request(2, OUT, 0, &[2; 512]);
    assert_eq!(guest.hand.orders(), 0, "held back");
    owner.full.store(false, Ordering::Relaxed);
    owner.changes.lock().clear();
    // A pause does not let it go on under way, and the change counts to what comes after.
    assert_eq!(guest.pause().virtio[1].requests.len(), 1);
    guest.hand.wake();
    assert!(owner.changes.lock().is_empty(), "a change is told in the pause");
    guest.rig.devices.resume();
    guest.hand.wake();
    assert_eq!((guest.hand.orders(), &owner.changes.lock()[..]), (1, &[(0, 2)][..]));

    owner.full.store(true, Ordering::Relaxed);
    guest.request(3, OUT, 8, &[3; 512]);
    owner.full.store(false, Ordering::Relaxed);
    guest.rig.devices.disk(0).unwrap().try_again();
    guest.hand.do_all();
    assert_eq!(guest.statuses(2..4), [OK, OK]);
    assert_eq!(*owner.changes.lock(), [(0, 2), (4096, 3)]);
}

#[test]
fn for_a_driver_that_does_not_flush_a_write_that_is_done_is_durable() {
    let mut guest = Guest::new();
    guest.request(0, OUT, 0, &[1; 512]);
    assert!(!guest.hand.persists(0));
    guest.hand.do_all();
    guest.ring = guest.rig.start_with(DISK, 1, VERSION_1).remove(0);
    guest.request(0, OUT, 0, &[1; 512]);
    assert!(guest.hand.persists(0));
    let state = guest.pause();
    let there = guest.elsewhere(&state, guest.hand.copy());
    there.hand.wake();
    assert!(there.hand.persists(0));
}

#[test]
fn with_event_indices_both_sides_are_left_alone_as_far_as_they_say() {
    let mut guest = Guest::new();
    guest.ring = guest.rig.start_with(DISK, 1, VERSION_1 | F_FLUSH | F_EVENT_IDX).remove(0);
    let (used_event, avail_event) =
        (guest.ring.avail + 4 + 2 * u64::from(QUEUE_SIZE), guest.ring.used + 4 + 8 * u64::from(QUEUE_SIZE));
    // The driver wants to hear of the second.
    guest.rig.poke(used_event, &1u16.to_le_bytes());
    guest.request(0, OUT, 0, &[1; 512]);
    assert_eq!(guest.rig.peek_u16(avail_event), 1, "asks for a notification of the next");
    guest.request(1, OUT, 8, &[1; 512]);
    assert_eq!(guest.rig.peek_u16(avail_event), 2);
    let edges = guest.rig.chip.edges(NET_GSI + 1);
    guest.hand.do_one(0);
    assert_eq!((guest.status(0), guest.rig.chip.edges(NET_GSI + 1)), (OK, edges), "not the first");
    guest.hand.do_one(0);
    assert_eq!((guest.status(1), guest.rig.chip.edges(NET_GSI + 1)), (OK, edges + 1));
    // What a stop has left in the ring is found without a notification.
    guest.ring.take_used(&guest.rig);
    guest.rig.devices.quiesce();
    guest.offer(2, FLUSH, 0, &[]);
    guest.rig.devices.resume();
    guest.hand.do_all();
    assert_eq!(guest.status(2), OK);
    assert_eq!(guest.rig.peek_u16(avail_event), 3);
}

#[derive(Clone, Debug)]
enum Step {
    /// Operation, sector, sectors, byte.
    Request(u8, u64, u64, u8),
    /// The engine does one of those that it has.
    Do(prop::sample::Index),
    /// The engine does one and dies before it tells.
    DoAndForget(prop::sample::Index),
    Pause,
    Elsewhere,
    Notify,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = any::<prop::sample::Index>;
    prop::collection::vec(
        prop_oneof![
            8 => (0u8..4, 0u64..12, 1u64..5, 1u8..255).prop_map(|(o, s, n, b)| Step::Request(o, s, n, b)),
            4 => place().prop_map(Step::Do),
            1 => place().prop_map(Step::DoAndForget),
            2 => Just(Step::Pause),
            2 => Just(Step::Elsewhere),
            2 => Just(Step::Notify),
        ],
        1..60,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// In whatever order a disk does what it has, whenever the machine pauses, and wherever it goes on: each request
    /// comes back once, and reads and the image are as if each had been done before the next was asked for.
    #[test]
    fn it_is_as_if_each_request_had_been_done_before_the_next(steps in steps()) {
        let mut guest = Guest::new();
        let mut model = vec![0u8; DISK_BYTES];
        // Of the slots in use, what a read has to bring.
        let mut open: BTreeMap<u64, Option<Vec<u8>>> = BTreeMap::new();
        for step in steps.into_iter().chain([Step::Notify]) {
            match step {
                Step::Request(operation, sector, sectors, byte) => {
                    // Three descriptors each, of eight.
                    let Some(slot) = (0..2).find(|slot| !open.contains_key(slot)) else { continue };
                    let range = (sector * 512) as usize..((sector + sectors) * 512) as usize;
                    let data = vec![byte; range.len()];
                    let mut zeroes = sector.to_le_bytes().to_vec();
                    zeroes.extend((sectors as u32).to_le_bytes());
                    zeroes.extend([0; 4]);
                    // A slot has its descriptors.
                    guest.ring.next_desc = 3 * slot as u16;
                    let expected = match operation {
                        0 => {
                            guest.offer(slot, IN, sector, &data);
                            Some(model[range].to_vec())
                        }
                        1 => {
                            guest.offer(slot, OUT, sector, &data);
                            model[range].fill(byte);
                            None
                        }
                        2 => {
                            guest.offer(slot, WRITE_ZEROES, 0, &zeroes);
                            model[range].fill(0);
                            None
                        }
                        _ => {
                            guest.offer(slot, FLUSH, 0, &[]);
                            None
                        }
                    };
                    open.insert(slot, expected);
                    if byte % 2 == 0 {
                        guest.ring.notify(&guest.rig);
                    }
                }
                Step::Notify => guest.ring.notify(&guest.rig),
                Step::Do(which) => {
                    guest.hand.wake();
                    if guest.hand.orders() != 0 {
                        guest.hand.do_one(which.index(guest.hand.orders()));
                    }
                }
                Step::DoAndForget(which) if guest.hand.orders() != 0 => {
                    // Only a host that is lost forgets.
                    drop(guest.hand.do_silently(which.index(guest.hand.orders())));
                    let state = guest.pause();
                    guest = guest.elsewhere(&state, guest.hand.copy());
                }
                Step::DoAndForget(_) => {}
                Step::Pause => {
                    guest.pause();
                    guest.rig.devices.resume();
                }
                Step::Elsewhere => {
                    let state = guest.pause();
                    guest = guest.elsewhere(&state, guest.hand.copy());
                }
            }
            for (head, _) in guest.ring.take_used(&guest.rig) {
                let slot = u64::from(head / 3);
                let expected = open.remove(&slot);
                prop_assert!(expected.is_some(), "slot {} came back twice", slot);
                prop_assert_eq!(guest.status(slot), OK);
                if let Some(Some(expected)) = expected {
                    prop_assert_eq!(guest.data(slot, expected.len()), expected);
                }
            }
        }
        guest.hand.do_all();
        for (head, _) in guest.ring.take_used(&guest.rig) {
            if let Some(Some(expected)) = open.remove(&u64::from(head / 3)) {
                prop_assert_eq!(guest.data(u64::from(head / 3), expected.len()), expected);
            }
        }
        prop_assert!(open.is_empty(), "{:?} never came back", open.keys());
        prop_assert!(guest.hand.content(0, DISK_BYTES) == model);
        prop_assert!(!guest.is_stopped());
    }
}

on_pci_too!(
    while_the_machine_is_paused_nothing_of_a_request_is_seen_and_then_it_goes_on,
    elsewhere_what_was_in_flight_is_done_again_and_given_back_once,
    it_is_as_if_each_request_had_been_done_before_the_next,
);
