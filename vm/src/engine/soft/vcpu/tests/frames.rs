//! Frames that find no buffer, and wait for one.

use super::*;
use crate::devices::Delivered;

const AVAILABLE: u64 = RING + 0x1002;
const USED: u64 = RING + 0x2002;

#[test]
fn a_guest_that_makes_room_and_rests_has_the_frame_that_waits_before_it_is_left_alone() {
    // It notifies nobody of the buffer.
    let code = assemble!("mov word ptr [0x209002], 1", "hlt");
    let mut rig = Rig::new(&code, &assemble!("iretq"), |state| {
        // Something wakes it after a while, or this test would wait for ever.
        for (register, value) in [(0x320, 0x40), (0x3e0, 0xb), (0x380, 1 << 20)] {
            apic(state, register, value);
        }
    });
    rig.start_devices();
    let set = |rig: &Rig, at, value: u16| rig.ram.memory().write_obj(value, GuestAddress(at)).unwrap();
    set(&rig, AVAILABLE, 0);
    rig.worker.resume();
    rig.worker.reach.inbox.open(true);
    assert_eq!(rig.worker.reach.inbox.put_frame(0, &plain_packet(&[7; 60])), Delivered::Yes);
    rig.worker.reach.bell.take();
    rig.worker.live();
    assert!(rig.worker.cpu.halted);
    let given: u16 = rig.ram.memory().read_obj(GuestAddress(USED)).unwrap();
    assert_eq!(given, 1);
}
