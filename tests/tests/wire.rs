//! ft-wire on a real bridge port: two namespaces speak with one MAC address, one after the other.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use ft_tests::wire::speakers::CaptureRecord;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};

const MAC: &str = "52:54:00:00:00:07";

/// Namespaces named after this process, removed at the end.
struct Namespaces(String);

impl Namespaces {
    fn name(&self, place: &str) -> String {
        format!("{}-{place}", self.0)
    }

    /// Runs `ip` with `{place}` replaced by the namespace's name.
    fn ip(&self, line: &str) {
        let mut line = line.to_owned();
        for place in ["w", "a", "b"] {
            line = line.replace(&format!("{{{place}}}"), &self.name(place));
        }
        let status = Command::new("ip").args(line.split(' ')).status().unwrap();
        assert!(status.success(), "ip {line}");
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for place in ["w", "a", "b"] {
            let _ = Command::new("ip").args(["netns", "del", &self.name(place)]).status();
        }
    }
}

#[test]
fn frames_are_ascribed_to_the_port_they_came_from_and_not_to_the_one_they_leave_by() {
    if !Uid::effective().is_root() || Command::new("ip").arg("-V").output().is_err() {
        eprintln!("SKIPPED frames_are_ascribed_to_the_port_they_came_from: needs root and iproute2");
        return;
    }
    let namespaces = Namespaces(format!("ftwire{}", std::process::id()));
    for place in ["w", "a", "b"] {
        namespaces.ip(&format!("netns add {{{place}}}"));
    }
    namespaces.ip("-n {w} link add name lan type bridge stp_state 0 forward_delay 0");
    namespaces.ip("-n {w} link set dev lan up");
    for host in ["a", "b"] {
        namespaces.ip(&format!(
            "link add name out netns {{{host}}} address {MAC} type veth peer name to-{host} netns {{w}}"
        ));
        namespaces.ip(&format!("-n {{{host}}} address add 10.0.0.1/24 dev out"));
        namespaces.ip(&format!("-n {{w}} link set dev to-{host} master lan up"));
    }
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("capture.json");
    let mut wire = Command::new("ip")
        .args(["netns", "exec", &namespaces.name("w"), env!("CARGO_BIN_EXE_ft-wire"), "capture"])
        .args(["--port", "alpha=to-a", "--port", "beta=to-b", "--mac", MAC, "--out"])
        .arg(&out)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    BufReader::new(wire.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    assert_eq!(ready, "ready\n");

    for host in ["a", "b"] {
        // A datagram to an address nobody has makes the kernel ask for it; the link goes up only now, so that one host
        // speaks after the other. IPv6 is off: it speaks unasked.
        let script = "sysctl -qw net.ipv6.conf.out.disable_ipv6=1 && ip link set dev out up && \
                      echo > /dev/udp/10.0.0.9/9";
        let status = Command::new("ip")
            .args(["netns", "exec", &namespaces.name(host), "bash", "-c", script])
            .status()
            .unwrap();
        assert!(status.success());
        namespaces.ip(&format!("-n {{{host}}} link set dev out down"));
    }
    kill(Pid::from_raw(i32::try_from(wire.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert!(wire.wait().unwrap().success());

    let capture: CaptureRecord = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
    let ports: Vec<_> = capture.speakers.iter().map(|stretch| stretch.port.as_str()).collect();
    assert_eq!(ports, ["alpha", "beta"]);
    assert_eq!((capture.dropped_frames, capture.strange_frames, capture.switches), (0, 0, 1));
    assert!(
        capture.started_ns <= capture.speakers[0].first_ns && capture.speakers[1].last_ns <= capture.ended_ns
    );
}
