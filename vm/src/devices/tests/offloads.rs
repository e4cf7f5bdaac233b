//! virtio-net with a driver that leaves work to the card, and takes frames that have work left; and queues whose two
//! sides say how far they want to be left alone.

use super::*;

const FRAME: u64 = 0x20_0000;
const BUFFER: u64 = 0x30_0000;
const RX: usize = 0;
const TX: usize = 1;

const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const GUEST_ECN: u64 = 1 << 9;
const HOST_TSO4: u64 = 1 << 11;
const HOST_TSO6: u64 = 1 << 12;
const HOST_ECN: u64 = 1 << 13;
const MRG_RXBUF: u64 = 1 << 15;
const EVENT_IDX: u64 = 1 << 29;
const OFFLOADS: u64 =
    CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | HOST_TSO4 | HOST_TSO6 | HOST_ECN | MRG_RXBUF;
const ALL: Offloads = Offloads { checksum: true, tso4: true, tso6: true, ecn: true };

/// A TCP segment over IPv4 of so many bytes, behind a header that asks for everything.
fn segment(bytes: usize) -> Vec<u8> {
    let mut packet = vec![1, 1, 0, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
    packet.extend([2; 12]);
    packet.extend([8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet.extend([0, 7, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0, 0, 0, 0, 0, 0]);
    packet.extend((packet.len()..NET_HEADER_BYTES + bytes).map(|i| i as u8));
    packet
}

fn send(rig: &Rig, tx: &mut Ring, packet: &[u8]) {
    rig.poke(FRAME, packet);
    tx.offer(rig, &[(FRAME, packet.len() as u32, 0)]);
    tx.notify(rig);
}

#[test]
fn the_host_is_told_what_the_driver_takes_and_told_anew_after_a_reset_and_a_restore() {
    let rig = Rig::new();
    let told = |rig: &Rig| rig.sink.offloads.lock().last().copied();
    assert_eq!(told(&rig), Some(Offloads::default()), "whatever an earlier machine took");
    assert_eq!(rig.features(NET) & (OFFLOADS | EVENT_IDX), OFFLOADS | EVENT_IDX);
    rig.start_with(NET, 2, VERSION_1 | OFFLOADS);
    assert_eq!(told(&rig), Some(ALL));
    rig.devices.quiesce();
    let there = Rig::on(rig.ram.clone());
    there.devices.restore(&rig.devices.capture()).unwrap();
    assert_eq!(told(&there), Some(ALL), "before anything runs");
    there.devices.resume();
    there.set(NET + 0x70, 0);
    assert_eq!(told(&there), Some(Offloads::default()));
    // Chosen, but not negotiated.
    there.set(NET + 0x70, ACKNOWLEDGE | DRIVER);
    there.set(NET + 0x24, 0);
    there.set(NET + 0x20, OFFLOADS as u32);
    there.devices.quiesce();
    let again = Rig::on(rig.ram.clone());
    again.devices.restore(&there.devices.capture()).unwrap();
    assert_eq!(told(&again), Some(Offloads::default()));
}

#[test]
fn a_segment_leaves_whole_with_a_header_that_was_checked() {
    let rig = Rig::new();
    let mut rings = rig.start_with(NET, 2, VERSION_1 | OFFLOADS);
    let packet = segment(SEGMENT_BYTES_MAX);
    send(&rig, &mut rings[TX], &packet);
    assert_eq!(*rig.sink.frames.lock(), [&packet[NET_HEADER_BYTES..]]);
    assert_eq!(rig.sink.headers.lock()[0], [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]);
    assert_eq!(rings[TX].take_used(&rig).len(), 1);
    let counters = rig.devices.counters();
    assert_eq!((counters.frames_out, counters.bytes_out), (1, SEGMENT_BYTES_MAX as u64));
}

#[test]
fn a_header_that_does_not_fit_its_frame_loses_the_frame_and_the_card_goes_on() {
    let rig = Rig::new();
    let mut rings = rig.start_with(NET, 2, VERSION_1 | OFFLOADS);
    // No size of frames; a checksum beyond the frame's end, of a segment and of a frame.
    for change in [&[(4, 0), (5, 0)][..], &[(6, 0xff), (7, 0xff)], &[(1, 0), (6, 0xff)]] {
        let mut packet = segment(200);
        change.iter().for_each(|&(at, byte)| packet[at] = byte);
        send(&rig, &mut rings[TX], &packet);
    }
    assert_eq!((rings[TX].take_used(&rig).len(), rig.malformed()), (3, 0));
    assert!(rig.sink.frames.lock().is_empty());
    assert_eq!(rig.devices.counters().tx_dropped, 3);
    send(&rig, &mut rings[TX], &segment(200));
    assert_eq!(rig.sink.frames.lock().len(), 1);
}

#[test]
fn an_offload_that_nobody_offers_stops_the_card() {
    for gso_type in [3, 5, 0x80] {
        let rig = Rig::new();
        let mut rings = rig.start_with(NET, 2, VERSION_1 | OFFLOADS);
        let mut packet = segment(200);
        packet[1] = gso_type;
        send(&rig, &mut rings[TX], &packet);
        assert_eq!((rig.status(NET) & NEEDS_RESET, rig.malformed()), (NEEDS_RESET, 1), "{gso_type}");
        assert!(rig.sink.frames.lock().is_empty());
    }
}

#[test]
fn a_long_frame_arrives_over_as_many_buffers_as_it_needs_and_is_seen_only_whole() {
    let rig = Rig::new();
    let port = rig.devices.net(0).unwrap();
    let mut rings = rig.start_with(NET, 2, VERSION_1 | OFFLOADS);
    let packet = segment(4000);
    for at in 0..2 {
        rings[RX].offer(&rig, &[(BUFFER + at * 0x1000, 1536, WRITE)]);
    }
    assert_eq!(port.deliver(&packet), Delivered::NoBuffers);
    assert!(rings[RX].take_used(&rig).is_empty());
    rings[RX].offer(&rig, &[(BUFFER + 0x2000, 1536, WRITE)]);
    rings[RX].offer(&rig, &[(BUFFER + 0x3000, 1536, WRITE)]);
    assert_eq!(port.deliver(&packet), Delivered::Yes);
    assert_eq!(rings[RX].take_used(&rig), [(0, 1536), (1, 1536), (2, 4012 - 2 * 1536)]);
    let received = [0, 0x1000, 0x2000].map(|at| rig.peek(BUFFER + at, 1536)).concat();
    assert_eq!(received[..12], [1, 1, 0, 0, 0xa8, 5, 34, 0, 16, 0, 3, 0]);
    assert_eq!(received[12..4012], packet[12..]);
    assert_eq!(port.deliver(&plain_packet(&[5; 60])), Delivered::Yes);
    assert_eq!(rig.peek(BUFFER + 0x3000, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
}

#[test]
fn a_frame_that_a_full_queue_has_no_room_for_is_lost_and_the_buffers_go_back_empty() {
    let rig = Rig::new();
    let port = rig.devices.net(0).unwrap();
    let mut rings = rig.start_with(NET, 2, VERSION_1 | OFFLOADS);
    (0..u64::from(QUEUE_SIZE)).for_each(|at| rings[RX].offer(&rig, &[(BUFFER + at * 0x100, 100, WRITE)]));
    assert_eq!(port.deliver(&segment(700)), Delivered::Yes);
    assert_eq!(rings[RX].take_used(&rig).len(), 8);
    (0..u64::from(QUEUE_SIZE)).for_each(|at| rings[RX].offer(&rig, &[(BUFFER + at * 0x100, 100, WRITE)]));
    assert_eq!(port.deliver(&segment(1000)), Delivered::Unfit);
    let empty: Vec<_> = (0..u32::from(QUEUE_SIZE)).map(|head| (head, 0)).collect();
    assert_eq!(rings[RX].take_used(&rig), empty);
}

#[test]
fn a_buffer_too_small_for_the_header_stops_the_card() {
    let rig = Rig::new();
    let mut rings = rig.start_with(NET, 2, VERSION_1 | OFFLOADS);
    rings[RX].offer(&rig, &[(BUFFER, 11, WRITE)]);
    assert_eq!(rig.devices.net(0).unwrap().deliver(&segment(100)), Delivered::NotReady);
    assert_eq!((rig.status(NET) & NEEDS_RESET, rig.malformed()), (NEEDS_RESET, 1));
}

#[test]
fn a_driver_that_takes_complete_frames_alone_gets_no_others() {
    let rig = Rig::new();
    let port = rig.devices.net(0).unwrap();
    let mut rings = rig.start(NET, 2);
    rings[RX].offer(&rig, &[(BUFFER, 9000, WRITE)]);
    assert_eq!(port.deliver(&segment(4000)), Delivered::Unfit);
    assert_eq!(port.deliver(&[0; 11]), Delivered::Unfit, "no header");
    assert_eq!(rig.devices.counters().rx_dropped, 2);
    assert_eq!(port.deliver(&plain_packet(&[5; 60])), Delivered::Yes);
    assert_eq!(rings[RX].take_used(&rig).len(), 1);
}

/// Where the driver says which used entry it waits for, and where the device says which available one.
fn used_event(rig: &Rig, ring: &Ring, index: u16) {
    rig.poke(ring.avail + 4 + 2 * u64::from(QUEUE_SIZE), &index.to_le_bytes());
}

fn avail_event(rig: &Rig, ring: &Ring) -> u16 {
    rig.peek_u16(ring.used + 4 + 8 * u64::from(QUEUE_SIZE))
}

#[test]
fn a_driver_is_interrupted_at_the_entry_that_it_waits_for_also_by_another_machine() {
    let rig = Rig::new();
    let mut rings = rig.start_with(NET, 2, VERSION_1 | EVENT_IDX);
    used_event(&rig, &rings[TX], 2);
    for _ in 0..2 {
        send(&rig, &mut rings[TX], &plain_packet(&[1; 60]));
    }
    assert_eq!((rings[TX].take_used(&rig).len(), rig.chip.edges(NET_GSI)), (2, 0));
    assert_eq!(avail_event(&rig, &rings[TX]), 2, "the device wants to know of the next one");
    rig.devices.quiesce();
    let there = Rig::on(rig.ram.clone());
    there.devices.restore(&rig.devices.capture()).unwrap();
    there.devices.resume();
    assert_eq!(there.chip.edges(NET_GSI), 0);
    for _ in 0..2 {
        send(&there, &mut rings[TX], &plain_packet(&[1; 60]));
    }
    assert_eq!(there.chip.edges(NET_GSI), 1);
    there.set(NET + 0x64, 1);
    // An entry that is nowhere near.
    used_event(&there, &rings[TX], 0x8000);
    send(&there, &mut rings[TX], &plain_packet(&[1; 60]));
    assert_eq!(there.chip.edges(NET_GSI), 1);
}

#[test]
fn a_frame_over_several_buffers_interrupts_a_driver_that_waits_for_any_of_them() {
    for (event, edges) in [(0, 1), (1, 1), (2, 1), (3, 0)] {
        let rig = Rig::new();
        let mut rings = rig.start_with(NET, 2, VERSION_1 | OFFLOADS | EVENT_IDX);
        used_event(&rig, &rings[RX], event);
        (0..3).for_each(|at| rings[RX].offer(&rig, &[(BUFFER + at * 0x1000, 1536, WRITE)]));
        assert_eq!(rig.devices.net(0).unwrap().deliver(&segment(4000)), Delivered::Yes);
        assert_eq!(rig.chip.edges(NET_GSI), edges, "{event}");
    }
}

#[test]
fn whoever_has_no_buffer_asks_to_be_told_of_the_next_one() {
    let rig = Rig::new();
    let mut rings = rig.start_with(NET, 2, VERSION_1 | EVENT_IDX);
    let port = rig.devices.net(0).unwrap();
    rings[RX].offer(&rig, &[(BUFFER, 2000, WRITE)]);
    assert_eq!(port.deliver(&plain_packet(&[1; 60])), Delivered::Yes);
    assert_eq!(port.deliver(&plain_packet(&[1; 60])), Delivered::NoBuffers);
    assert_eq!(avail_event(&rig, &rings[RX]), 1);
    let mut rng = rig.start_with(RNG, 1, VERSION_1 | EVENT_IDX);
    for _ in 0..3 {
        rng[0].offer(&rig, &[(BUFFER, 10, WRITE)]);
    }
    rng[0].notify(&rig);
    assert_eq!((rng[0].take_used(&rig).len(), avail_event(&rig, &rng[0])), (3, 3));
}

#[test]
fn a_frame_that_a_deterministic_engine_cannot_deliver_leaves_no_trace_in_the_guest() {
    for offloads in [0, MRG_RXBUF] {
        let rig = Rig::new();
        let mut rings = rig.start_with(NET, 2, VERSION_1 | EVENT_IDX | offloads);
        let put = |bytes: usize| {
            rig.ram.take_vmm_dirty(|_| ());
            let outcome = rig.devices.receive(0, &plain_packet(&vec![1; bytes]));
            let mut written = 0;
            rig.ram.take_vmm_dirty(|_| written += 1);
            (outcome, written != 0)
        };
        assert_eq!(put(60), (Put::NoBuffers, false));
        rings[RX].offer(&rig, &[(BUFFER, 200, WRITE)]);
        if offloads == 0 {
            assert_eq!(put(1000), (Put::Done, true), "too small for ever: the driver has it back");
            assert_eq!(put(60), (Put::NoBuffers, false));
            rings[RX].offer(&rig, &[(BUFFER, 200, WRITE)]);
        } else {
            assert_eq!(put(1000), (Put::NoBuffers, false));
        }
        assert_eq!(avail_event(&rig, &rings[RX]), 0);
        assert_eq!(put(60), (Put::Done, true));
    }
}
