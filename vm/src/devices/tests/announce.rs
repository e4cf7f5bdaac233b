//! virtio-net's configuration that changes, and its control queue: a guest is asked to announce itself, and answers.

use super::*;

const BUFFER: u64 = 0x30_0000;
const CONTROL: usize = 2;
const STATUS: u64 = 1 << 16;
const CTRL_VQ: u64 = 1 << 17;
const GUEST_ANNOUNCE: u64 = 1 << 21;
const FEATURES: u64 = VERSION_1 | STATUS | CTRL_VQ | GUEST_ANNOUNCE;
const LINK_UP: u16 = 1;
const ANNOUNCE: u16 = 2;
const INT_CONFIG: u32 = 2;

/// The status in the card's configuration, and the configuration's generation.
fn status(rig: &Rig) -> (u16, u32) {
    let mut status = [0; 2];
    rig.devices.mmio_read(NET + 0x106, &mut status);
    (u16::from_le_bytes(status), rig.get(NET + 0xfc))
}

/// Sends a command with one byte of nothing in particular; the answer.
fn command(rig: &Rig, ring: &mut Ring, class: u8, command: u8) -> u8 {
    rig.poke(BUFFER, &[class, command, 0x77]);
    rig.poke(BUFFER + 0x1000, &[0xee]);
    ring.offer(rig, &[(BUFFER, 3, 0), (BUFFER + 0x1000, 1, WRITE)]);
    ring.notify(rig);
    assert_eq!(ring.take_used(rig).len(), 1);
    rig.peek(BUFFER + 0x1000, 1)[0]
}

#[test]
fn a_driver_is_asked_to_announce_itself_until_it_says_that_it_has() {
    let rig = Rig::new();
    assert_eq!(rig.features(NET) & FEATURES, FEATURES);
    let mut rings = rig.start_with(NET, 3, FEATURES);
    let (before, generation) = status(&rig);
    assert_eq!((before, rig.chip.edges(NET_GSI)), (LINK_UP, 0));
    rig.devices.announce();
    let (asked, asked_generation) = status(&rig);
    assert_eq!((asked, rig.get(NET + 0x60), rig.chip.level(NET_GSI)), (LINK_UP | ANNOUNCE, INT_CONFIG, true));
    assert_ne!(asked_generation, generation);
    rig.set(NET + 0x64, INT_CONFIG);
    rig.devices.announce();
    assert_eq!((status(&rig).1, rig.chip.edges(NET_GSI)), (asked_generation, 1), "it is asked already");
    assert_eq!(command(&rig, &mut rings[CONTROL], 3, 0), 0);
    let (after, after_generation) = status(&rig);
    assert_eq!(after, LINK_UP);
    assert_ne!(after_generation, asked_generation);
    assert_eq!(rig.get(NET + 0x60), 1, "an answer, and no change that the driver does not know of");
}

#[test]
fn a_driver_that_is_asked_is_asked_still_by_another_machine_and_no_more_after_a_reset() {
    let rig = Rig::new();
    rig.start_with(NET, 3, FEATURES);
    rig.devices.announce();
    rig.devices.quiesce();
    let there = Rig::on(rig.ram.clone());
    there.devices.restore(&rig.devices.capture()).unwrap();
    there.devices.resume();
    assert_eq!(status(&there), status(&rig));
    assert!(there.chip.level(NET_GSI));
    there.set(NET + 0x70, 0);
    assert_eq!(status(&there), (LINK_UP, 0));
    let mut bad = rig.devices.capture();
    bad.virtio[0].config_status = 4;
    let refused = Rig::on(rig.ram.clone()).devices.restore(&bad).unwrap_err().to_string();
    assert!(refused.contains("configuration status 0x4"), "{refused}");
}

#[test]
fn a_link_that_goes_is_told_and_stays_away_over_resets_and_on_another_machine_until_it_is_back() {
    let rig = Rig::new();
    rig.start_with(NET, 3, FEATURES);
    rig.devices.set_link(0, true);
    assert_eq!(rig.chip.edges(NET_GSI), 0, "nothing has changed");
    rig.devices.set_link(0, false);
    assert_eq!((status(&rig).0, rig.get(NET + 0x60), rig.chip.level(NET_GSI)), (0, INT_CONFIG, true));
    rig.devices.announce();
    assert_eq!(status(&rig).0, ANNOUNCE);
    rig.set(NET + 0x70, 0);
    assert_eq!(status(&rig).0, 0, "a reset brings no cable back");
    rig.devices.quiesce();
    let there = Rig::on(rig.ram.clone());
    there.devices.restore(&rig.devices.capture()).unwrap();
    there.devices.resume();
    assert_eq!(there.devices.has_link(0), Some(false));
    there.devices.reset();
    there.start_with(NET, 3, FEATURES);
    assert_eq!(status(&there).0, 0);
    there.devices.set_link(0, true);
    assert_eq!((status(&there).0, there.get(NET + 0x60)), (LINK_UP, INT_CONFIG));
    there.devices.set_link(7, false);
    assert_eq!(there.devices.has_link(7), None);
}

#[test]
fn a_driver_that_does_not_announce_is_not_asked() {
    for features in [VERSION_1, FEATURES & !GUEST_ANNOUNCE, FEATURES & !CTRL_VQ, FEATURES & !STATUS] {
        let rig = Rig::new();
        let mut rings = rig.start_with(NET, 3, features);
        rig.devices.announce();
        assert_eq!((status(&rig).0, rig.chip.edges(NET_GSI)), (LINK_UP, 0));
        assert_eq!(command(&rig, &mut rings[CONTROL], 3, 0), 1);
    }
    let rig = Rig::new();
    rig.negotiate(NET, FEATURES);
    rig.devices.announce();
    assert_eq!(status(&rig).0, LINK_UP, "it does not run yet");
}

#[test]
fn commands_for_what_is_not_offered_are_errors_and_malformed_ones_stop_the_card() {
    let rig = Rig::new();
    let mut rings = rig.start_with(NET, 3, FEATURES);
    // Receive modes, the MAC address, VLANs, another one of announcements, queues, offloads.
    for (class, number) in [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0), (5, 0), (255, 255)] {
        assert_eq!(command(&rig, &mut rings[CONTROL], class, number), 1, "{class} {number}");
    }
    for chain in [&[(BUFFER, 1, 0), (BUFFER, 1, WRITE)][..], &[(BUFFER, 3, 0)], &[(BUFFER, 3, WRITE)]] {
        let mut rings = rig.start_with(NET, 3, FEATURES);
        let malformed = rig.malformed();
        rings[CONTROL].offer(&rig, chain);
        rings[CONTROL].notify(&rig);
        assert_eq!((rig.status(NET) & NEEDS_RESET, rig.malformed()), (NEEDS_RESET, malformed + 1));
    }
}
