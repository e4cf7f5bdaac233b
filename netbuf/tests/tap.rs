//! The TAP against the real kernel, each test in a network namespace of its own thread, which vanishes with it.

use ft_netbuf::tap::HEADER_BYTES;
use ft_netbuf::{Announcement, Emit, Tap, TapError, TapOffloads};
use nix::sched::{CloneFlags, unshare};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

/// Runs the test in a fresh network namespace, or says that it could not.
fn in_own_network(test_name: &str, test: impl FnOnce() + Send + 'static) {
    if Command::new("ip").arg("-V").output().is_err() {
        eprintln!("SKIPPED {test_name}: no ip (iproute2)");
        return;
    }
    let result = std::thread::spawn(move || match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) if std::path::Path::new("/dev/net/tun").exists() => {
            test();
            None
        }
        Ok(()) => Some("no /dev/net/tun".to_owned()),
        Err(errno) => Some(format!("unshare(CLONE_NEWNET): {errno}")),
    })
    .join();
    match result {
        Ok(None) => {}
        Ok(Some(reason)) => eprintln!("SKIPPED {test_name}: {reason}"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn ip(arguments: &str) {
    // The child inherits this thread's namespace.
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("it was found");
    assert!(status.success(), "ip {arguments}");
}

const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

/// A complete frame behind its header.
fn plain(frame: &[u8]) -> Vec<u8> {
    [&[0; HEADER_BYTES], frame].concat()
}

/// A TAP with addresses: the host's, and a guest's that need not be asked for.
fn addressed_tap() -> Tap {
    let tap = Tap::open("ft0").unwrap();
    tap.set_up().unwrap();
    address();
    tap
}

/// Attaches to a TAP that somebody has just left. A process that another test is about to start has all files of this
/// one until it begins.
fn open_again() -> Tap {
    for _ in 0..1000 {
        match Tap::open("ft0") {
            Err(TapError::InUse { .. }) => std::thread::sleep(Duration::from_millis(10)),
            opened => return opened.unwrap(),
        }
    }
    panic!("ft0 stays in use");
}

fn address() {
    ip("addr add 10.9.9.1/24 dev ft0");
    ip("neigh add 10.9.9.2 lladdr 52:54:00:01:02:03 dev ft0");
}

/// Ends the test when what it waits for does not come.
fn wake_in_the_end(tap: &Tap) {
    let waker = tap.waker();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(120));
        waker.wake();
    });
}

/// The header of the frame that brings a datagram which the host sends to the guest.
fn header_of_a_datagram(tap: &Tap) -> [u8; HEADER_BYTES] {
    UdpSocket::bind("10.9.9.1:0").unwrap().send_to(b"to the guest", "10.9.9.2:9").unwrap();
    let mut buffer = [0; 2048];
    loop {
        let len = tap.receive(&mut buffer).unwrap().expect("the frame comes within two minutes");
        let (header, frame) = buffer[..len].split_first_chunk().unwrap();
        if frame.ends_with(b"to the guest") {
            return *header;
        }
    }
}

#[test]
fn frames_travel_both_ways() {
    in_own_network("frames_travel_both_ways", || {
        let tap = addressed_tap();
        tap.set_up().unwrap();
        UdpSocket::bind("10.9.9.1:0").unwrap().send_to(b"to the guest", "10.9.9.2:9").unwrap();
        // Who has 10.9.9.1? Tell 10.9.9.2: the host's answer proves that the frame arrived.
        let guest = IpAddr::from(Ipv4Addr::new(10, 9, 9, 2));
        let mut request = Announcement::new(GUEST_MAC, &[guest]).frames()[1].clone();
        request[38..42].copy_from_slice(&[10, 9, 9, 1]);
        tap.emit(&plain(&request)).unwrap();

        wake_in_the_end(&tap);
        let mut buffer = [0; 2048];
        let (mut datagram_seen, mut answer_seen) = (false, false);
        while !(datagram_seen && answer_seen) {
            let len = tap.receive(&mut buffer).unwrap().expect("both frames come within two minutes");
            let frame = &buffer[HEADER_BYTES..len];
            datagram_seen |= frame.ends_with(b"to the guest") && frame.starts_with(&GUEST_MAC);
            answer_seen |= frame[12..14] == [8, 6] && frame[20..22] == [0, 2];
        }
    });
}

#[test]
fn a_waker_ends_a_receive_once() {
    in_own_network("a_waker_ends_a_receive_once", || {
        let tap = Tap::open("ft0").unwrap();
        let waker = tap.waker();
        let waking = std::thread::spawn(move || waker.wake());
        assert!(tap.receive(&mut [0; 2048]).unwrap().is_none());
        waking.join().unwrap();
        tap.waker().wake();
        tap.waker().wake();
        assert!(tap.receive(&mut [0; 2048]).unwrap().is_none());
    });
}

#[test]
fn an_interface_made_beforehand_is_attached_to() {
    in_own_network("an_interface_made_beforehand_is_attached_to", || {
        ip("tuntap add name ft0 mode tap");
        drop(Tap::open("ft0").unwrap());
        open_again().set_up().unwrap();
    });
}

#[test]
fn a_deleted_interface_is_attached_to_again_when_there_is_another_of_its_name() {
    in_own_network("a_deleted_interface_is_attached_to_again_when_there_is_another_of_its_name", || {
        ip("tuntap add name ft0 mode tap");
        let tap = Tap::open("ft0").unwrap();
        assert_eq!(tap.attached_to().as_deref(), Some("ft0"));
        ip("link set dev ft0 name ft1");
        assert_eq!(tap.attached_to().as_deref(), Some("ft1"), "a renamed one is still the VM's cable");
        ip("link delete dev ft1");
        // The kernel tells who waits for frames.
        tap.receive(&mut [0; 2048]).unwrap_err();
        assert_eq!(tap.attached_to(), None);
        assert!(tap.emit(&[0; 60]).is_err());
        assert!(matches!(tap.reattach(), Err(TapError::Gone { name }) if name == "ft0"));
        ip("tuntap add name ft0 mode tap");
        tap.reattach().unwrap();
        assert_eq!(tap.attached_to().as_deref(), Some("ft0"));
        tap.emit(&plain(&Announcement::new(GUEST_MAC, &[]).frames()[0])).unwrap();
    });
}

#[test]
fn a_frame_for_the_guest_lacks_what_its_driver_takes_also_from_another_interface_of_the_name() {
    let test = "a_frame_for_the_guest_lacks_what_its_driver_takes_also_from_another_interface_of_the_name";
    in_own_network(test, || {
        ip("tuntap add name ft0 mode tap");
        let tap = addressed_tap();
        wake_in_the_end(&tap);
        assert_eq!(header_of_a_datagram(&tap), [0; HEADER_BYTES], "complete");
        let offloads = TapOffloads { checksum: true, tso4: true, tso6: true, ecn: true };
        tap.set_offloads(offloads).unwrap();
        assert!(is_given_segments("ft0"));
        // The checksum is missing at byte 6 behind the headers of Ethernet and IP.
        let partial = [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0];
        assert_eq!(header_of_a_datagram(&tap), partial);
        ip("link delete dev ft0");
        ip("tuntap add name ft0 mode tap");
        tap.reattach().unwrap();
        address();
        assert_eq!(header_of_a_datagram(&tap), partial);
        tap.set_offloads(TapOffloads::default()).unwrap();
        assert_eq!(header_of_a_datagram(&tap), [0; HEADER_BYTES]);
        assert!(!is_given_segments("ft0"));
    });
}

#[test]
fn a_frame_of_the_guest_needs_no_checksum_where_its_header_says_so() {
    in_own_network("a_frame_of_the_guest_needs_no_checksum_where_its_header_says_so", || {
        let tap = addressed_tap();
        let socket = UdpSocket::bind("10.9.9.1:777").unwrap();
        let mut frame = [&tap_mac()[..], &GUEST_MAC, &[8, 0]].concat();
        frame.extend([0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 17, 0x14, 0xb9, 10, 9, 9, 2, 10, 9, 9, 1]);
        // The checksum so far: of the pseudo-header.
        frame.extend([0, 9, 3, 9, 0, 12, 0x26, 0x32]);
        frame.extend(b"data");
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        tap.emit(&plain(&frame)).unwrap();
        socket.recv(&mut [0; 64]).unwrap_err();
        let header = [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0];
        tap.emit(&[&header[..], &frame].concat()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let mut received = [0; 64];
        let len = socket.recv(&mut received).unwrap();
        assert_eq!(&received[..len], b"data");
    });
}

/// SIOCGIFHWADDR of netdevice(7).
fn tap_mac() -> [u8; 6] {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // SAFETY: ifreq is plain data for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"ft0") {
        *to = *from as libc::c_char;
    }
    // SAFETY: SIOCGIFHWADDR fills in the ifreq, which outlives the call.
    assert_eq!(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &mut request) }, 0);
    // SAFETY: the kernel has filled in the address.
    let bytes = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    std::array::from_fn(|at| bytes[at] as u8)
}

/// ETHTOOL_GTSO of linux/ethtool.h: whether the interface is given segments that are still to be cut into frames.
fn is_given_segments(name: &str) -> bool {
    #[repr(C)]
    struct EthtoolValue {
        command: u32,
        data: u32,
    }
    let mut value = EthtoolValue { command: 0x1e, data: 0 };
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // SAFETY: ifreq is plain data for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: SIOCETHTOOL reads and writes the ethtool_value that the ifreq points to; both outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &mut request) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    value.data != 0
}

#[test]
fn offloads_that_an_earlier_user_left_on_are_turned_off() {
    in_own_network("offloads_that_an_earlier_user_left_on_are_turned_off", || {
        ip("tuntap add name ft0 mode tap");
        let earlier = std::fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        // SAFETY: ifreq is plain data for which all zeroes are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(b"ft0") {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes the ifreq, which outlives the call.
        assert_eq!(unsafe { libc::ioctl(earlier.as_raw_fd(), libc::TUNSETIFF, &mut request) }, 0);
        let segments = libc::TUN_F_CSUM | libc::TUN_F_TSO4;
        // SAFETY: TUNSETOFFLOAD takes a number.
        assert_eq!(unsafe { libc::ioctl(earlier.as_raw_fd(), libc::TUNSETOFFLOAD, segments) }, 0);
        drop(earlier);
        assert!(is_given_segments("ft0"), "they survive who set them");
        let _tap = open_again();
        assert!(!is_given_segments("ft0"));
    });
}

#[test]
fn the_longest_frames_of_a_card_travel_both_ways_also_over_another_interface_of_the_name() {
    let test = "the_longest_frames_of_a_card_travel_both_ways_also_over_another_interface_of_the_name";
    in_own_network(test, || {
        const MTU: u16 = 9198;
        ip("tuntap add name ft0 mode tap");
        let tap = addressed_tap();
        wake_in_the_end(&tap);
        tap.set_mtu(MTU).unwrap();
        ip("link delete dev ft0");
        ip("tuntap add name ft0 mode tap");
        tap.reattach().unwrap();
        address();
        let payload = vec![0x5a; usize::from(MTU) - 28];
        let socket = UdpSocket::bind("10.9.9.1:777").unwrap();
        socket.send_to(&payload, "10.9.9.2:9").unwrap();
        let mut buffer = vec![0; 1 << 16];
        let len = loop {
            let len = tap.receive(&mut buffer).unwrap().expect("the frame comes within two minutes");
            if len > 2048 {
                break len;
            }
        };
        assert_eq!(len, HEADER_BYTES + 14 + usize::from(MTU), "in one frame");
        // And back: the addresses of Ethernet, IP and UDP change places, which leaves checksums as they are.
        let mut packet = buffer[..len].to_vec();
        let frame = &mut packet[HEADER_BYTES..];
        for (a, b, bytes) in [(0, 6, 6), (26, 30, 4), (34, 36, 2)] {
            (0..bytes).for_each(|at| frame.swap(a + at, b + at));
        }
        socket.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        tap.emit(&packet).unwrap();
        assert_eq!(socket.recv(&mut buffer).unwrap(), payload.len());
    });
}

#[test]
fn what_is_in_the_way_is_named() {
    in_own_network("what_is_in_the_way_is_named", || {
        let _held = Tap::open("ft0").unwrap();
        assert!(matches!(Tap::open("ft0"), Err(TapError::InUse { name }) if name == "ft0"));
        assert!(matches!(Tap::open("lo"), Err(TapError::NotATap { name }) if name == "lo"));
        for bad in ["", "sixteen-bytes-xx", "a/b", "a b", "..", "a:b", "ft%d"] {
            assert!(matches!(Tap::open(bad), Err(TapError::Name { .. })), "{bad}");
        }
    });
}

/// Makes this thread's user nobody, without capabilities.
fn become_nobody() {
    // The system call itself changes this thread alone; the library's function would change the whole process.
    // SAFETY: takes three numbers.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
    assert_eq!(result, 0);
}

/// What was open stays open: whose the driver's file is does not matter to this.
#[test]
fn what_only_an_administrator_may_change_is_named_with_the_command() {
    in_own_network("what_only_an_administrator_may_change_is_named_with_the_command", || {
        let tap = Tap::open("ft0").unwrap();
        become_nobody();
        let said = tap.set_up().unwrap_err().to_string();
        assert!(
            said.contains("bringing it up: no right to") && said.ends_with("ip link set ft0 up"),
            "{said}"
        );
        let said = tap.set_mtu(9000).unwrap_err().to_string();
        assert!(said.ends_with("ip link set ft0 mtu 9000"), "{said}");
        // It is large enough as it is.
        tap.set_mtu(1500).unwrap();
    });
}

#[test]
fn missing_rights_are_named() {
    in_own_network("missing_rights_are_named", || {
        become_nobody();
        let error = Tap::open("ft0").unwrap_err();
        // udev lets everybody open the driver; a host without udev may not.
        if std::fs::File::open("/dev/net/tun").is_err() {
            assert!(matches!(&error, TapError::NoRightToDriver { name } if name == "ft0"), "{error}");
            return;
        }
        assert!(matches!(&error, TapError::NoRights { name, exists: false } if name == "ft0"), "{error}");
        let said = error.to_string();
        assert!(said.starts_with("TAP interface 'ft0' is not there; this process is user "), "{said}");
        assert!(said.contains("without CAP_NET_ADMIN: make the interface ahead"), "{said}");
        assert!(said.contains("ip tuntap add ft0 mode tap user nobody; ip link set ft0 up"), "{said}");
    });
}
