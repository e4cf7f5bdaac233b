//! A writable disk of a machine whose engine decides what happens when: what the disk has finished is not seen before
//! the engine says so, and then with the outcome that the engine says.

use super::hand::Hand;
use super::*;
use crate::devices::inbox::Bell;

const HEADER: u64 = 0x20_0000;
const DATA: u64 = 0x21_0000;
const STATUS: u64 = 0x22_0000;
const UNTOUCHED: u8 = 0xee;

pub(super) struct Engine {
    pub(super) rig: Rig,
    pub(super) hand: Hand,
    inbox: Arc<Inbox>,
    pub(super) ring: Ring,
}

impl Engine {
    fn new() -> Self {
        Self::with(|disk| disk)
    }

    pub(super) fn with(change: impl FnOnce(Disk) -> Disk) -> Self {
        let hand = Hand::new(DISK_BYTES);
        let inbox = Arc::new(Inbox::new(Arc::new(Bell::default())));
        let rig = Rig::made(
            GuestRam::new(RAM_BYTES).unwrap(),
            change(hand.disk()),
            disk_image(),
            |spec, ram, irq, wiring| {
                let (random, inbox) = (Box::new(HostRandom), Arc::clone(&inbox));
                let by = Deterministic { now_ns: Arc::default(), random, inbox };
                Devices::deterministic(spec, ram, irq, wiring, by)
            },
        );
        let ring = rig.start(DISK, 1).remove(0);
        Self { rig, hand, inbox, ring }
    }

    /// Reads a sector into slot `slot`.
    fn read(&mut self, slot: u64, sector: u64) {
        let mut header = vec![0; 8];
        header.extend(sector.to_le_bytes());
        self.rig.poke(HEADER + 16 * slot, &header);
        self.rig.poke(STATUS + slot, &[UNTOUCHED]);
        let chain = [(HEADER + 16 * slot, 16, 0), (DATA + 512 * slot, 512, WRITE), (STATUS + slot, 1, WRITE)];
        self.ring.offer(&self.rig, &chain);
        self.ring.notify(&self.rig);
    }

    fn status(&self, slot: u64) -> u8 {
        self.rig.peek(STATUS + slot, 1)[0]
    }

    pub(super) fn take(&self) {
        self.rig.devices.take_finished(&self.inbox);
    }
}

#[test]
fn what_a_disk_has_finished_is_seen_when_the_engine_says_so_and_not_before() {
    let mut engine = Engine::new();
    engine.read(0, 0);
    engine.read(1, 1);
    let devices = &engine.rig.devices;
    let state = devices.capture().virtio[1].clone();
    engine.hand.do_one(1);
    assert!(engine.inbox.is_waiting());
    assert_eq!(devices.next_finished(), None, "it lies in the inbox");
    engine.take();
    assert_eq!(devices.next_finished(), Some((0, 3, true)));
    assert_eq!((engine.status(1), devices.capture().virtio[1] == state), (UNTOUCHED, true));
    assert!(!engine.rig.chip.level(NET_GSI + 1));
    assert_eq!(devices.show_request(0, 0, true), Shown::NotYet, "the other one");
    assert_eq!(devices.show_request(0, 3, true), Shown::Done);
    assert_eq!((engine.status(1), engine.status(0)), (0, UNTOUCHED));
    assert!(engine.rig.chip.level(NET_GSI + 1));
    assert_eq!(devices.show_request(0, 3, true), Shown::Never, "once");
    assert_eq!(devices.show_request(7, 3, true), Shown::Never, "no such disk");
    engine.hand.do_all();
    engine.take();
    assert_eq!(devices.show_request(0, 0, true), Shown::Done);
    assert_eq!((devices.next_finished(), engine.inbox.is_waiting()), (None, false));
}

#[test]
fn the_guest_sees_the_outcome_that_the_engine_says_unless_the_host_could_not_do_it() {
    let mut engine = Engine::new();
    engine.read(0, 0);
    engine.read(1, 1);
    engine.hand.fail(0);
    engine.hand.do_one(0);
    engine.take();
    let devices = &engine.rig.devices;
    assert_eq!(devices.next_finished(), Some((0, 0, false)));
    assert_eq!(devices.show_request(0, 0, true), Shown::Never, "this host has not read it");
    assert_eq!(devices.show_request(0, 0, false), Shown::Done);
    assert_eq!(devices.show_request(0, 3, false), Shown::Done, "as it was where the log is from");
    assert_eq!((engine.status(0), engine.status(1)), (1, 1));
}

#[test]
fn a_state_with_requests_is_taken_over_unseen_and_they_are_asked_for_when_the_engine_goes_on() {
    let mut engine = Engine::new();
    engine.read(0, 2);
    let state = engine.rig.devices.capture();
    let there = Engine::new();
    for page in 0..(RAM_BYTES / PAGE_SIZE as u64) as PageIndex {
        there.rig.view.write_page(page, &engine.rig.page(page));
    }
    there.rig.devices.restore(&state).unwrap();
    there.rig.take_dirty();
    assert_eq!(there.hand.orders(), 0);
    there.rig.devices.go_on_unseen();
    assert_eq!((there.hand.orders(), there.rig.take_dirty().len()), (1, 0));
    there.hand.do_all();
    there.take();
    assert_eq!(there.rig.devices.show_request(0, 0, true), Shown::Done);
    assert_eq!(there.status(0), 0);
}

#[test]
fn a_disk_is_at_rest_when_the_guest_was_shown_all_that_it_has_asked_for() {
    let mut engine = Engine::new();
    assert!(engine.rig.devices.are_disks_at_rest());
    engine.read(0, 0);
    assert!(!engine.rig.devices.are_disks_at_rest());
    engine.hand.do_all();
    engine.take();
    assert!(!engine.rig.devices.are_disks_at_rest(), "it is done, and not shown");
    assert_eq!(engine.rig.devices.show_request(0, 0, true), Shown::Done);
    assert!(engine.rig.devices.are_disks_at_rest());
    engine.read(1, 1);
    engine.ring = engine.rig.start(DISK, 1).remove(0);
    assert!(!engine.rig.devices.are_disks_at_rest(), "the guest has forgotten it, the disk has not");
    engine.hand.do_all();
    engine.take();
    assert!(engine.rig.devices.are_disks_at_rest());
}
