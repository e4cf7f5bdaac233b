//! The TAP against the real kernel, each test in a network namespace of its own thread, which vanishes with it.

use ft_netbuf::{Announcement, Emit, Tap, TapError};
use nix::sched::{CloneFlags, unshare};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
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

#[test]
fn frames_travel_both_ways() {
    in_own_network("frames_travel_both_ways", || {
        let tap = Tap::open("ft0").unwrap();
        tap.set_up().unwrap();
        tap.set_up().unwrap();
        ip("addr add 10.9.9.1/24 dev ft0");
        ip("neigh add 10.9.9.2 lladdr 52:54:00:01:02:03 dev ft0");
        UdpSocket::bind("10.9.9.1:0").unwrap().send_to(b"to the guest", "10.9.9.2:9").unwrap();
        // Who has 10.9.9.1? Tell 10.9.9.2: the host's answer proves that the frame arrived.
        let guest = IpAddr::from(Ipv4Addr::new(10, 9, 9, 2));
        let mut request = Announcement::new(GUEST_MAC, &[guest]).frames()[1].clone();
        request[38..42].copy_from_slice(&[10, 9, 9, 1]);
        tap.emit(&request).unwrap();

        // Ends the test when the frames do not come.
        let waker = tap.waker();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(120));
            waker.wake();
        });
        let mut buffer = [0; 2048];
        let (mut datagram_seen, mut answer_seen) = (false, false);
        while !(datagram_seen && answer_seen) {
            let len = tap.receive(&mut buffer).unwrap().expect("both frames come within two minutes");
            let frame = &buffer[..len];
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
        Tap::open("ft0").unwrap().set_up().unwrap();
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

#[test]
fn missing_rights_are_named() {
    in_own_network("missing_rights_are_named", || {
        // The system call itself changes this thread alone; the library's function would change the whole process.
        // SAFETY: takes three numbers.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(result, 0);
        let error = Tap::open("ft0").unwrap_err();
        assert!(matches!(&error, TapError::NoRights { name, .. } if name == "ft0"), "{error}");
        assert!(error.to_string().contains("CAP_NET_ADMIN"));
    });
}
