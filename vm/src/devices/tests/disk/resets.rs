//! A driver that resets its disk with requests in flight, once or in a loop.

use super::*;

#[test]
fn a_write_that_a_reset_has_forgotten_lands_before_any_later_one() {
    let mut guest = Guest::new();
    guest.request(0, OUT, 0, &[1; 512]);
    guest.ring = guest.rig.start_with(DISK, 1, VERSION_1 | F_FLUSH).remove(0);
    guest.request(0, OUT, 0, &[2; 512]);
    guest.request(1, OUT, 8, &[3; 512]);
    assert_eq!(guest.hand.orders(), 2, "the old one is in the way of the first, not of the second");
    guest.hand.do_one(0);
    assert_eq!(guest.status(0), UNTOUCHED, "the guest does not hear of what it has forgotten");
    guest.hand.do_all();
    assert_eq!(guest.statuses(0..2), [OK, OK]);
    assert_eq!(guest.hand.content(0, 512), [2; 512]);
    assert_eq!(guest.ring.take_used(&guest.rig).len(), 2);
}

#[test]
fn a_driver_that_resets_its_disk_again_and_again_is_not_served_before_the_storage_is() {
    let (at, segment) = (Guest::slot(0), (Guest::slot(0) + DATA, 32 << 10, WRITE));
    let (header, status) = ((at, 16, 0), (at + STATUS, 1, WRITE));
    // As much as the queue has descriptors for; and what moves no bytes.
    let read = [&[header][..], &[segment; 6], &[status]].concat();
    for (kind, chain, at_once) in [(IN, read, 1), (FLUSH, vec![header, status], 4)] {
        let mut guest = Guest::new();
        guest.rig.poke(at, &[&kind.to_le_bytes()[..], &[0; 12]].concat());
        let (mut most, mut most_bytes) = (0, 0);
        for _ in 0..500 {
            (0..at_once).for_each(|_| guest.ring.offer(&guest.rig, &chain));
            guest.ring.notify(&guest.rig);
            (most, most_bytes) = (most.max(guest.hand.orders()), most_bytes.max(guest.hand.bytes_held()));
            guest.ring = guest.rig.start_with(DISK, 1, VERSION_1 | F_FLUSH).remove(0);
        }
        assert!((100..256 + 128).contains(&most), "{most} requests");
        assert!(most_bytes < 52 << 20, "{most_bytes} bytes");
        guest.request(2, OUT, 0, &[7; 512]);
        assert_eq!(guest.hand.orders(), most);
        guest.hand.do_all();
        assert_eq!((guest.status(2), guest.hand.content(0, 512)), (OK, vec![7; 512]));
    }
}
