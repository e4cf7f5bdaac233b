//! How much one notification does.

use super::*;

#[test]
fn a_notification_takes_a_mebibyte_and_the_disks_thread_has_the_rest() {
    const BYTES: u32 = 256 << 10;
    let mut guest = Guest::new();
    guest.ring = guest.rig.start_with(DISK, 1, VERSION_1 | INDIRECT_DESC).remove(0);
    let (header, status) = ((Guest::slot(0), 16, 0), (Guest::slot(0) + STATUS, 1, WRITE));
    let table = Ring { desc: Guest::slot(1), ..guest.ring.copy() };
    for (index, (address, bytes, flags)) in (0u16..).zip([header, (0x60_0000, BYTES, WRITE), status]) {
        let next = if index < 2 { NEXT } else { 0 };
        table.descriptor(&guest.rig, index, address, bytes, flags | next, index + 1);
    }
    (0..QUEUE_SIZE).for_each(|_| guest.ring.offer(&guest.rig, &[(table.desc, 48, 4)]));
    guest.ring.notify(&guest.rig);
    assert_eq!(guest.hand.bytes_held(), 1 << 20);
    guest.hand.wake();
    assert_eq!(guest.hand.orders(), usize::from(QUEUE_SIZE));
    guest.hand.do_all();
    assert_eq!(guest.ring.take_used(&guest.rig).len(), usize::from(QUEUE_SIZE));
}
