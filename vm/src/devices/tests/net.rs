//! virtio-net: frames out and in, back-pressure, pausing.

use super::*;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

const FRAME: u64 = 0x20_0000;
const BUFFER: u64 = 0x30_0000;
const HEADER: [u8; 12] = [0; 12];
const RX: usize = 0;
const TX: usize = 1;
const LONG: Duration = Duration::from_secs(3600);

fn frame(number: u8, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| number.wrapping_add(i as u8)).collect()
}

fn packet(number: u8, bytes: usize) -> Vec<u8> {
    plain_packet(&frame(number, bytes))
}

/// Offers a frame for transmission, header and frame in separate buffers.
fn send(rig: &Rig, tx: &mut Ring, number: u8, bytes: usize) -> Vec<u8> {
    let at = FRAME + u64::from(number) * 0x4000;
    let frame = frame(number, bytes);
    rig.poke(at, &HEADER);
    rig.poke(at + 0x100, &frame);
    tx.offer(rig, &[(at, 12, 0), (at + 0x100, bytes as u32, 0)]);
    frame
}

#[test]
fn features_and_address_are_those_of_the_machine() {
    let rig = Rig::new();
    assert_eq!(rig.get(NET), u32::from_le_bytes(*b"virt"));
    assert_eq!((rig.get(NET + 4), rig.get(NET + 8)), (2, 1));
    assert_eq!(rig.features(NET) & (VERSION_1 | 1 << 5), VERSION_1 | 1 << 5);
    let mut mac = [0; 6];
    for (i, byte) in mac.iter_mut().enumerate() {
        rig.devices.mmio_read(NET + 0x100 + i as u64, std::slice::from_mut(byte));
    }
    assert_eq!(mac, MAC);
}

#[test]
fn a_driver_without_version_1_or_with_features_not_offered_is_refused() {
    let rig = Rig::new();
    for features in [0, 1 << 5, VERSION_1 | 1 << 2, VERSION_1 | 1 << 33] {
        rig.negotiate(NET, features);
        assert_eq!(rig.status(NET), ACKNOWLEDGE | DRIVER, "{features:#x}");
    }
    rig.negotiate(NET, VERSION_1 | 1 << 5);
    assert_eq!(rig.status(NET), ACKNOWLEDGE | DRIVER | FEATURES_OK);
}

#[test]
fn frames_leave_in_order_and_whole() {
    let rig = Rig::new();
    let mut rings = rig.start(NET, 2);
    let sent: Vec<_> =
        [(0, 14), (1, 60), (2, 1514)].map(|(number, bytes)| send(&rig, &mut rings[TX], number, bytes)).into();
    assert!(rig.sink.frames.lock().is_empty());
    rings[TX].notify(&rig);
    assert_eq!(*rig.sink.frames.lock(), sent);
    assert_eq!(rings[TX].take_used(&rig), [(0, 0), (2, 0), (4, 0)]);
    let counters = rig.devices.counters();
    assert_eq!((counters.frames_out, counters.bytes_out), (3, 14 + 60 + 1514));
}

#[test]
fn the_line_is_high_until_the_driver_acknowledges() {
    let rig = Rig::new();
    let mut rings = rig.start(NET, 2);
    send(&rig, &mut rings[TX], 0, 60);
    rings[TX].notify(&rig);
    assert!(rig.chip.level(NET_GSI));
    assert_eq!(rig.get(NET + 0x60), 1);
    rig.set(NET + 0x64, 1);
    assert!(!rig.chip.level(NET_GSI));
    assert_eq!((rig.get(NET + 0x60), rig.chip.edges(NET_GSI)), (0, 1));
}

#[test]
fn an_acknowledgement_that_leaves_bits_set_makes_a_new_edge() {
    let rig = Rig::new();
    let mut rings = rig.start(NET, 2);
    send(&rig, &mut rings[TX], 0, 60);
    rings[TX].notify(&rig);
    // A broken chain adds the configuration bit.
    rings[TX].offer_head(&rig, QUEUE_SIZE);
    rings[TX].notify(&rig);
    assert_eq!((rig.get(NET + 0x60), rig.chip.edges(NET_GSI)), (3, 1));
    rig.set(NET + 0x64, 1);
    assert_eq!((rig.get(NET + 0x60), rig.chip.edges(NET_GSI), rig.chip.level(NET_GSI)), (2, 2, true));
    rig.set(NET + 0x64, 2);
    assert!(!rig.chip.level(NET_GSI));
}

#[test]
fn a_driver_that_wants_no_interrupts_gets_none() {
    let rig = Rig::new();
    let mut rings = rig.start(NET, 2);
    rig.poke(rings[TX].avail, &1u16.to_le_bytes());
    send(&rig, &mut rings[TX], 0, 60);
    rings[TX].notify(&rig);
    assert_eq!((rings[TX].take_used(&rig).len(), rig.chip.edges(NET_GSI)), (1, 0));
}

#[test]
fn a_full_sink_leaves_the_frames_in_the_queue_and_none_is_lost_or_reordered() {
    let rig = Rig::new();
    let mut rings = rig.start(NET, 2);
    *rig.sink.room.lock() = 1;
    let sent: Vec<_> = (0..3).map(|number| send(&rig, &mut rings[TX], number, 60)).collect();
    rings[TX].notify(&rig);
    assert_eq!(*rig.sink.frames.lock(), sent[..1]);
    assert_eq!(rings[TX].take_used(&rig).len(), 1);
    let port = rig.devices.net(0).unwrap();
    *rig.sink.room.lock() = 1;
    port.resume_transmit();
    assert_eq!(*rig.sink.frames.lock(), sent[..2]);
    *rig.sink.room.lock() = 9;
    port.resume_transmit();
    assert_eq!(*rig.sink.frames.lock(), sent);
    assert_eq!(rings[TX].take_used(&rig).len(), 2);
    assert_eq!(rig.malformed(), 0);
}

#[test]
fn a_frame_in_the_queue_when_the_machine_was_captured_is_sent_by_whoever_resumes_it() {
    let rig = Rig::new();
    let mut rings = rig.start(NET, 2);
    *rig.sink.room.lock() = 0;
    let sent = send(&rig, &mut rings[TX], 0, 60);
    rings[TX].notify(&rig);
    rig.devices.quiesce();
    let state = rig.devices.capture();

    let backup = Rig::on(rig.ram.clone());
    backup.devices.restore(&state).unwrap();
    assert!(backup.sink.frames.lock().is_empty());
    backup.devices.resume();
    assert_eq!(*backup.sink.frames.lock(), [sent]);
    assert_eq!(rings[TX].take_used(&backup).len(), 1);
    assert!(backup.chip.level(NET_GSI));
}

#[test]
fn frames_arrive_with_a_header_that_says_one_buffer() {
    let rig = Rig::new();
    let port = rig.devices.net(0).unwrap();
    assert_eq!(port.deliver(&packet(1, 60)), Delivered::NotReady);
    let mut rings = rig.start(NET, 2);
    assert_eq!(port.deliver(&packet(1, 60)), Delivered::NoBuffers);
    // In two buffers, split in the middle of the header.
    rings[RX].offer(&rig, &[(BUFFER, 5, WRITE), (BUFFER + 0x1000, 2000, WRITE)]);
    rings[RX].notify(&rig);
    assert_eq!(port.deliver(&packet(1, 1514)), Delivered::Yes);
    assert_eq!(rings[RX].take_used(&rig), [(0, 12 + 1514)]);
    let mut received = rig.peek(BUFFER, 5);
    received.extend(rig.peek(BUFFER + 0x1000, 12 + 1514 - 5));
    assert_eq!(received[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(received[12..], frame(1, 1514));
    assert!(rig.chip.level(NET_GSI));
    let counters = rig.devices.counters();
    assert_eq!((counters.frames_in, counters.bytes_in, counters.rx_dropped), (1, 1514, 1));
}

#[test]
fn a_frame_longer_than_the_buffer_is_dropped_and_the_buffer_goes_back_empty() {
    let rig = Rig::new();
    let port = rig.devices.net(0).unwrap();
    let mut rings = rig.start(NET, 2);
    for bytes in [1526, 25, 0, 1526] {
        rings[RX].offer(&rig, &[(BUFFER, bytes, WRITE)]);
    }
    assert_eq!(port.deliver(&packet(1, 10_000)), Delivered::Unfit, "no guest's frame");
    assert!(rings[RX].take_used(&rig).is_empty());
    for bytes in [1515, 14, 14] {
        assert_eq!(port.deliver(&packet(1, bytes)), Delivered::Unfit);
    }
    assert!(rig.chip.level(NET_GSI));
    assert_eq!(port.deliver(&packet(2, 1514)), Delivered::Yes);
    assert_eq!(rings[RX].take_used(&rig), [(0, 0), (1, 0), (2, 0), (3, 1526)]);
    assert_eq!(rig.devices.counters().rx_dropped, 4);
}

#[test]
fn while_quiesced_nothing_touches_memory_or_lines() {
    let rig = Rig::new();
    let port = rig.devices.net(0).unwrap();
    let mut rings = rig.start(NET, 2);
    rings[RX].offer(&rig, &[(BUFFER, 2000, WRITE)]);
    *rig.sink.room.lock() = 0;
    let sent = send(&rig, &mut rings[TX], 0, 60);
    rings[TX].notify(&rig);
    rig.devices.quiesce();
    let (state, memory) = (rig.devices.capture(), rig.memory());
    rig.take_dirty();

    *rig.sink.room.lock() = 9;
    assert_eq!(port.deliver(&packet(1, 60)), Delivered::Paused);
    port.resume_transmit();
    rig.devices.console_input(b"typed");
    assert!(!port.wait_for_buffers(Duration::ZERO));
    assert_eq!((rig.memory() == memory, rig.take_dirty().len()), (true, 0));
    assert_eq!(rig.devices.capture().virtio, state.virtio);
    assert_eq!(rig.devices.capture().com1, state.com1);
    assert!(!rig.chip.level(NET_GSI));

    rig.devices.resume();
    assert_eq!(*rig.sink.frames.lock(), [sent]);
    assert!(port.wait_for_buffers(Duration::ZERO));
    assert_eq!(port.deliver(&packet(1, 60)), Delivered::Yes);
}

#[test]
fn whoever_waits_for_buffers_is_woken_by_the_notification_by_resume_and_by_reset() {
    let rig = Rig::new();
    let port = rig.devices.net(0).unwrap();
    let mut rings = rig.start(NET, 2);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| port.wait_for_buffers(LONG));
        rings[RX].offer(&rig, &[(BUFFER, 2000, WRITE)]);
        rings[RX].notify(&rig);
        assert!(waiter.join().unwrap());
        rig.devices.quiesce();
        let waiter = scope.spawn(|| port.wait_for_buffers(LONG));
        rig.devices.resume();
        assert!(waiter.join().unwrap());
        assert_eq!(port.deliver(&packet(1, 60)), Delivered::Yes);
        let waiter = scope.spawn(|| port.wait_for_buffers(LONG));
        rig.devices.reset();
        assert!(waiter.join().unwrap());
    });
}

#[test]
fn a_frame_delivered_between_the_guests_look_and_its_idling_is_not_slept_over() {
    let rig = Rig::new();
    let port = rig.devices.net(0).unwrap();
    let mut rings = rig.start(NET, 2);
    rings[RX].offer(&rig, &[(BUFFER, 2000, WRITE)]);
    // The guest was idle, looks, sees nothing...
    let idle = PLATFORM_BASE + ft_ram::layout::platform::IDLE_US;
    assert_eq!(rig.devices.mmio_write(idle, &0u64.to_le_bytes()), None);
    assert!(rings[RX].take_used(&rig).is_empty());
    assert_eq!(port.deliver(&packet(1, 60)), Delivered::Yes);
    // ...and idles.
    assert!(!rig.devices.idle.wait(LONG));
    // It need not acknowledge to be able to wait again.
    assert!(rig.devices.idle.wait(LONG));
}

on_pci_too!(
    frames_leave_in_order_and_whole,
    the_line_is_high_until_the_driver_acknowledges,
    while_quiesced_nothing_touches_memory_or_lines,
);

/// Another vCPU fills the transmit queue as fast as the card empties it.
#[test]
fn a_queue_that_is_never_empty_does_not_keep_the_machine_from_standing_still() {
    const EVENT_IDX: u64 = 1 << 29;
    let rig = Arc::new(Rig::new());
    let mut rings = rig.start_with(NET, 2, VERSION_1 | EVENT_IDX);
    send(&rig, &mut rings[TX], 0, 60);
    // Every entry of the ring is this one chain.
    (1..QUEUE_SIZE).for_each(|_| rings[TX].offer_head(&rig, 0));
    let (avail, next) = (rings[TX].avail, AtomicU16::new(rings[TX].next_avail));
    let filled = rig.ram.view().unwrap();
    *rig.sink.meanwhile.lock() = Some(Box::new(move || {
        let next = next.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let (page, offset) = (avail / PAGE_SIZE as u64, avail as usize % PAGE_SIZE);
        filled.write_in_page(page as PageIndex, offset + 2, &next.to_le_bytes());
    }));
    let notifying = Arc::clone(&rig);
    let notifies = std::thread::spawn(move || rings[TX].notify(&notifying));
    while rig.sink.frames.lock().len() < 10 * usize::from(QUEUE_SIZE) {
        std::thread::yield_now();
    }
    let (stands, stood) = std::sync::mpsc::channel();
    let standing = Arc::clone(&rig);
    std::thread::spawn(move || {
        standing.devices.quiesce();
        stands.send(()).unwrap();
    });
    stood.recv_timeout(Duration::from_secs(60)).expect("the card never stops sending");
    notifies.join().unwrap();
    // What was left goes out when the machine goes on.
    *rig.sink.meanwhile.lock() = None;
    let before = rig.sink.frames.lock().len();
    rig.devices.resume();
    assert!(rig.sink.frames.lock().len() > before);
    assert_eq!(rig.malformed(), 0);
}
