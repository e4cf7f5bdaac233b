//! virtio-block and virtio-rng: reads, and requests that are refused.

use super::*;

const HEADER: u64 = 0x20_0000;
const DATA: u64 = 0x21_0000;
const STATUS: u64 = 0x2f_0000;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// Sends a request; says its status and how many bytes the device says it wrote.
fn request(rig: &Rig, ring: &mut Ring, kind: u32, sector: u64, bytes: u32) -> (u8, u32) {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    rig.poke(HEADER, &header);
    rig.poke(STATUS, &[0xee]);
    let mut chain = vec![(HEADER, 16, 0)];
    if bytes > 0 {
        chain.push((DATA, bytes, if kind == 1 { 0 } else { WRITE }));
    }
    chain.push((STATUS, 1, WRITE));
    ring.offer(rig, &chain);
    ring.notify(rig);
    let used = ring.take_used(rig);
    assert_eq!(used.len(), 1);
    (rig.peek(STATUS, 1)[0], used[0].1)
}

#[test]
fn sectors_are_those_of_the_image() {
    let rig = Rig::new();
    let ring = &mut rig.start(DISK, 1)[0];
    assert_eq!(rig.get(DISK + 0x100), (DISK_BYTES / 512) as u32);
    for (sector, bytes) in [(0, 512), (3, 4096), (DISK_BYTES as u64 / 512 - 1, 512), (1, 200 * 512)] {
        assert_eq!(request(&rig, ring, 0, sector, bytes), (OK, bytes + 1));
        let start = sector as usize * 512;
        assert_eq!(rig.peek(DATA, bytes as usize), disk_content()[start..start + bytes as usize]);
    }
    assert_eq!(rig.devices.counters().block_errors, 0);
}

#[test]
fn what_the_disk_does_not_have_or_allow_is_an_error_to_the_guest_only() {
    let rig = Rig::new();
    let ring = &mut rig.start(DISK, 1)[0];
    let end = DISK_BYTES as u64 / 512;
    for (kind, sector, bytes, status) in [
        (0, end, 512, IOERR),
        (0, end - 1, 1024, IOERR),
        (0, u64::MAX, 512, IOERR),
        (0, u64::MAX / 512, 512, IOERR),
        (0, 0, 100, IOERR),
        (0, 0, 5 << 20, IOERR),
        (1, 0, 512, IOERR),
        (77, 0, 512, UNSUPP),
    ] {
        // The status stands behind a gap, so that nothing is written from the first byte on.
        let written = u32::from(kind == 1);
        assert_eq!(request(&rig, ring, kind, sector, bytes), (status, written), "{kind} {sector} {bytes}");
    }
    assert_eq!((rig.devices.counters().block_errors, rig.malformed()), (8, 0));
    assert_eq!(request(&rig, ring, 4, 0, 0), (OK, 1), "flush");
    assert_eq!(request(&rig, ring, 8, 0, 20), (OK, 21), "get id");
    assert_eq!(rig.peek(DATA, 10), b"ftd-disk-0");
    assert_eq!(rig.features(DISK) & 1 << 5, 1 << 5, "the disk is read-only");
}

#[test]
fn a_host_read_error_is_an_io_error_to_the_guest_and_counted() {
    let rig = Rig::new();
    let ring = &mut rig.start(DISK, 1)[0];
    rig.disk.set_len(4096).unwrap();
    assert_eq!(request(&rig, ring, 0, 8, 512), (IOERR, 0));
    assert_eq!(rig.devices.counters().block_host_errors, 1);
    assert_eq!(request(&rig, ring, 0, 0, 512), (OK, 513));
}

#[test]
fn random_bytes_fill_the_buffers_up_to_the_bound() {
    let rig = Rig::new();
    let ring = &mut rig.start(RNG, 1)[0];
    ring.offer(&rig, &[(DATA, 64, WRITE), (DATA + 0x1000, 64, WRITE)]);
    ring.offer(&rig, &[(DATA + 0x10000, 1 << 20, WRITE)]);
    ring.notify(&rig);
    let used: Vec<_> = ring.take_used(&rig).into_iter().map(|used| used.1).collect();
    assert_eq!(used, [128, 4096]);
    assert!(rig.peek(DATA, 64).iter().any(|&byte| byte != 0));
    assert!(rig.peek(DATA + 0x1000, 64).iter().any(|&byte| byte != 0));
    assert!(rig.peek(DATA + 0x10000 + 4096, 4096).iter().all(|&byte| byte == 0));
}

#[test]
fn disks_that_cannot_work_are_refused_by_name() {
    let ram = GuestRam::new(RAM_BYTES).unwrap();
    let refuse = |disks: Vec<DiskSpec>, images: usize| {
        let images = (0..images).map(|_| AtOnce::reading(&disk_image())).collect();
        let wiring = Wiring { frames: None, console: Box::new(Screen::default()), disks: images };
        let spec = MachineSpec { disks, ..spec() };
        let Err(error) = Devices::new(&spec, &ram, Arc::new(Chip::default()), wiring) else {
            panic!("{:?} was taken", spec.disks)
        };
        error.to_string()
    };
    let good = DiskSpec { bytes: DISK_BYTES as u64, read_only: true };
    let writable = DiskSpec { read_only: false, ..good.clone() };
    let other = DiskSpec { bytes: 1024, ..good.clone() };
    let odd = DiskSpec { bytes: 1000, ..good.clone() };
    assert!(
        refuse(vec![good.clone(), writable], 2).starts_with("disk 1 is writable, and its image was opened")
    );
    assert!(refuse(vec![good.clone(), other], 2).contains("disk 1: the image has 262144 bytes"));
    assert!(refuse(vec![odd], 1).starts_with("disk 0: 1000 bytes"));
    assert!(refuse(vec![good.clone()], 0).starts_with("0 disk images for 1 disks"));
    assert!(refuse(vec![good; 15], 15).starts_with("17 virtio devices"));
}
