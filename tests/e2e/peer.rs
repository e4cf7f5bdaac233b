//! Peers that do not fit, and connections that are no peers: they are refused with the reason, and disturb nothing
//! else.

use crate::fixture::{Config, Daemon, Engine, Pair, Traffic, World, call};
use ft_checkpoint::wire::frame::VERSION;
use ft_checkpoint::wire::handshake::{PROTOCOL, is_permanent};
use ft_checkpoint::wire::identity::{Fact, Versions};
use ft_checkpoint::wire::message::{Ack, HashRun, Hello, Identity, PageHashes, Refuse, Welcome};
use ft_checkpoint::wire::{FrameReader, FrameWriter, Message, vm_id};
use ftd::control::api::{Role, State};
use ftd::exit::DaemonExit;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);

/// A connection that speaks the protocol.
struct Fake {
    reader: FrameReader<TcpStream>,
    writer: FrameWriter<TcpStream>,
}

impl Fake {
    fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let writer = FrameWriter::new(stream.try_clone().unwrap(), vm_id("web"), 1);
        Self { reader: FrameReader::new(stream), writer }
    }

    /// The daemon that dials, and what it says of itself. Its second connection, for heartbeats, is hung up.
    fn accept(listener: &TcpListener) -> (Self, Hello) {
        loop {
            let mut fake = Self::new(listener.accept().unwrap().0);
            let frame = fake.reader.read().unwrap();
            match Message::decode(&frame).unwrap() {
                Message::Hello(hello) => return (fake, hello),
                Message::Pulse { .. } => {}
                other => panic!("no hello: {other:?}"),
            }
        }
    }

    /// As a backup dials.
    fn dial(index: usize) -> Self {
        Self::new(TcpStream::connect(("127.0.0.1", Config::port(index))).unwrap())
    }

    /// As a backup dials: the stream, and the pulse that belongs to it.
    fn dial_twice(index: usize, hello: Hello) -> (Self, Self) {
        let (mut stream, mut pulse) = (Self::dial(index), Self::dial(index));
        pulse.send(&Message::Pulse { name: hello.pulse });
        stream.send(&Message::Hello(hello));
        (stream, pulse)
    }

    /// Answers every heartbeat, until the connection ends.
    fn answer_heartbeats(mut self) {
        std::thread::spawn(move || {
            while let Ok(frame) = self.reader.read() {
                let Ok(Message::Heartbeat { stamp_us, lease_us }) = Message::decode(&frame) else { return };
                if (Message::Echo { stamp_us, lease_us }).send(0, &mut self.writer).is_err() {
                    return;
                }
            }
        });
    }

    fn send(&mut self, message: &Message<'_>) {
        message.send(0, &mut self.writer).unwrap();
    }

    /// The refusal that comes.
    fn refusal(&mut self) -> Refuse {
        let frame = self.reader.read().unwrap();
        match Message::decode(&frame).unwrap() {
            Message::Refuse(refuse) => refuse,
            other => panic!("no refusal: {other:?}"),
        }
    }
}

/// Versions that come after those of this build.
const LATER: Versions = Versions::only(PROTOCOL.newest + 7);

/// A node that brings nothing.
fn identity(vm: &str, node: &str, protocol: Versions) -> Identity {
    let (vm, node, peer) = (vm.into(), node.into(), "alpha".into());
    Identity { protocol, vm, node, peer, process: 1, generation: 1, facts: Vec::new() }
}

/// A backup's identity as the primary's that it dials, with one fact changed.
fn as_primary(backup: &Identity, name: &str, change: impl FnOnce(&mut Fact)) -> Identity {
    let mut identity = Identity { node: backup.peer.clone(), peer: backup.node.clone(), ..backup.clone() };
    change(identity.facts.iter_mut().find(|fact| fact.name.contains(name)).expect("there is such a fact"));
    identity
}

#[test]
fn a_backup_that_does_not_fit_is_refused_with_the_reason() {
    World::run("a_backup_that_does_not_fit_is_refused_with_the_reason", |world| {
        let mut alpha = Daemon::start(world, &Config::alpha(world));
        alpha.wait_until(Role::Primary, State::Solo);
        let traffic = Traffic::start();
        for (identity, says) in [
            (identity("web", "beta", LATER), "protocol"),
            (identity("db", "beta", PROTOCOL), "VM"),
            (identity("web", "alpha", PROTOCOL), "two nodes call themselves alpha"),
            (
                identity("web", "gamma", PROTOCOL),
                "node gamma asked to pair with node alpha, whose peer.node is beta",
            ),
            (identity("web", "beta", PROTOCOL), "beta has none"),
        ] {
            let mut fake = Fake::dial(0);
            fake.send(&Message::Hello(Hello { identity, held: None, pulse: 1 }));
            let refusal = fake.refusal();
            assert!(refusal.text.contains(says), "{refusal:?}");
            for line in refusal.text.lines() {
                alpha.wait_for_log(line);
            }
            alpha.wait_for("telling the operator", |status| {
                status.peer.trouble.as_ref() == Some(&refusal.text)
            });
        }
        traffic.must_have_lost_nothing();
    });
}

#[test]
fn a_backup_whose_memory_has_another_size_ends_and_says_so() {
    World::run("a_backup_whose_memory_has_another_size_ends_and_says_so", |world| {
        let mut alpha = Daemon::start(world, &Config::alpha(world));
        let mut beta = Daemon::start(world, &Config::beta(world).with("machine.memory_mib", 64));
        beta.must_fail(DaemonExit::Peer, &["machine.memory_mib: ", "alpha has 32", "beta has 64"]);
        alpha.wait_until(Role::Primary, State::Solo);
        // Corrected, it is welcome.
        let _beta = Daemon::start(world, &Config::beta(world));
        alpha.wait_until(Role::Primary, State::Protected);
    });
}

#[test]
fn a_backup_whose_host_has_not_the_memory_is_told_on_both_before_any_copy() {
    World::run("a_backup_whose_host_has_not_the_memory_is_told_on_both_before_any_copy", |world| {
        let mut beta = Daemon::start(world, &Config::beta(world));
        beta.wait_until(Role::Backup, State::Waiting);
        // Enough for what a daemon does by itself: each new thread may reserve 64 MiB. Not enough for a copy.
        beta.limit_address_space(Some(150 << 20));
        let mut alpha = Daemon::start(world, &Config::alpha(world));
        for daemon in [&mut alpha, &mut beta] {
            let says =
                ["node beta cannot be the backup now", "a backup of this VM needs 160 MiB", "LimitAS="];
            daemon.wait_for("telling the operator", |status| {
                status.peer.trouble.as_ref().is_some_and(|why| says.iter().all(|text| why.contains(text)))
            });
            daemon.wait_for_log(says[0]);
        }
        assert!(!alpha.log().contains("full copy"), "{}", alpha.log());
        beta.limit_address_space(None);
        alpha.wait_until(Role::Primary, State::Protected);
    });
}

#[test]
fn a_backup_of_another_vm_ends_and_says_so() {
    World::run("a_backup_of_another_vm_ends_and_says_so", |world| {
        let mut alpha = Daemon::start(world, &Config::alpha(world));
        alpha.wait_until(Role::Primary, State::Solo);
        let cell = world.path("arbiter/db.cell");
        let config = Config::beta(world).with("vm", "db").with("arbiter.path", cell.to_str().unwrap());
        Daemon::start(world, &config).must_fail(DaemonExit::Peer, &["\"web\"", "\"db\""]);
        assert!(alpha.is_running());
    });
}

#[test]
fn a_backup_whose_primary_is_of_another_version_ends_and_says_so() {
    World::run("a_backup_whose_primary_is_of_another_version_ends_and_says_so", |world| {
        let listener = TcpListener::bind(("127.0.0.1", Config::port(0))).unwrap();
        // It is refused by the other side.
        let mut beta = Daemon::start(world, &Config::beta(world));
        let (mut fake, hello) = Fake::accept(&listener);
        assert_eq!((hello.identity.node.as_str(), hello.held), ("beta", None));
        let text = format!("the peer speaks {PROTOCOL} of the protocol, this node {LATER}");
        fake.send(&Message::Refuse(Refuse { code: 1, text: text.clone() }));
        beta.must_fail(DaemonExit::Peer, &[&text]);
        // It refuses of itself.
        let mut beta = Daemon::start(world, &Config::beta(world));
        let (mut fake, hello) = Fake::accept(&listener);
        let identity = Identity { node: "alpha".into(), protocol: LATER, ..hello.identity };
        fake.send(&Message::Welcome(Welcome { identity, pairing: 1, resume_from: None }));
        beta.must_fail(DaemonExit::Peer, &[&format!("speaks {LATER}"), &format!("this node {PROTOCOL}")]);
        // So is another format of what it would send.
        let mut beta = Daemon::start(world, &Config::beta(world));
        let (mut fake, hello) = Fake::accept(&listener);
        let identity = as_primary(&hello.identity, "format of the machine's state", |fact| {
            *fact = Fact::versions(fact.name.clone(), LATER);
        });
        fake.send(&Message::Welcome(Welcome { identity, pairing: 1, resume_from: None }));
        let says = format!("format of the machine's state: alpha has {LATER}, beta has version");
        beta.must_fail(DaemonExit::Peer, &[&says]);
    });
}

#[test]
fn a_backup_that_would_boot_another_guest_is_refused() {
    World::run("a_backup_that_would_boot_another_guest_is_refused", |world| {
        let mut alpha = Daemon::start(world, &Config::alpha(world));
        alpha.wait_until(Role::Primary, State::Solo);
        let elsewhere = vec![toml::Value::from("10.77.0.3")];
        let mut beta = Daemon::start(world, &Config::beta(world).with("machine.net.addresses", elsewhere));
        beta.must_fail(DaemonExit::Peer, &["machine.net.addresses (", "ip=10.77.0.2/24", "ip=10.77.0.3/24"]);
        alpha.wait_until(Role::Primary, State::Solo);
    });
}

#[test]
fn images_that_differ_in_one_byte_are_told_on_both_hosts_by_file() {
    World::run("images_that_differ_in_one_byte_are_told_on_both_hosts_by_file", |world| {
        let image = |name: &str, byte| {
            let mut bytes = vec![0; 8192];
            bytes[5000] = byte;
            world.file(name, bytes).display().to_string()
        };
        let (alphas, betas) = (image("alphas.img", 1), image("betas.img", 2));
        let mut alpha = Daemon::start(world, &disk(Config::alpha(world), &alphas));
        let mut beta = Daemon::start(world, &disk(Config::beta(world), &betas));
        beta.must_fail(DaemonExit::Peer, &["disk 1: ", &alphas, &betas, "8192 bytes"]);
        alpha.wait_for("telling the operator", |status| {
            let told = status.peer.trouble.as_deref().unwrap_or_default();
            told.starts_with("disk 1: beta has ") && told.contains(&betas)
        });
        assert!(alpha.ctl(&["status"]).stdout.contains(&betas));
        // With the same content it is welcome, wherever that lies.
        let _beta = Daemon::start(world, &disk(Config::beta(world), &image("copy.img", 1)));
        alpha.wait_until(Role::Primary, State::Protected);
    });
}

#[test]
fn a_large_image_does_not_delay_the_boot_and_only_then_is_compared() {
    World::run("a_large_image_does_not_delay_the_boot_and_only_then_is_compared", |world| {
        // Sparse: it takes no room here, and still has to be read.
        let image = world.file("large.img", "");
        std::fs::File::options().write(true).open(&image).unwrap().set_len(2 << 30).unwrap();
        let image = image.display().to_string();
        let mut alpha = Daemon::start(world, &disk(Config::alpha(world), &image));
        alpha.wait_until(Role::Primary, State::Solo);
        assert_eq!(call("PING"), "PONG");
        let mut beta = Daemon::start(world, &disk(Config::beta(world), &image));
        beta.wait_for("reading", |status| {
            let trouble = status.peer.trouble.as_deref().unwrap_or_default();
            trouble.contains("cannot compare its files") && trouble.contains(&format!("reading {image}"))
        });
        alpha.wait_until(Role::Primary, State::Protected);
    });
}

fn disk(config: Config, image: &str) -> Config {
    let disk = toml::Table::from_iter([("image".into(), image.into()), ("read_only".into(), true.into())]);
    config.with("machine.disk", vec![toml::Value::Table(disk)])
}

#[test]
fn a_build_whose_engine_could_behave_differently_is_refused_from_both_sides() {
    const NAME: &str = "a_build_whose_engine_could_behave_differently_is_refused_from_both_sides";
    World::run_on(Engine::Soft, NAME, |world| {
        let replay = |config: Config| config.with("replication.mode", "replay");
        let says = ["build of the engine `soft`", "install the same ftd on both"];
        // The other build as the primary.
        let listener = TcpListener::bind(("127.0.0.1", Config::port(0))).unwrap();
        let mut beta = Daemon::start(world, &replay(Config::beta(world)));
        let (mut fake, hello) = Fake::accept(&listener);
        let other = |fact: &mut Fact| *fact = Fact::equal(fact.name.clone(), "another build");
        let identity = as_primary(&hello.identity, "engine `soft`", other);
        fake.send(&Message::Welcome(Welcome { identity: identity.clone(), pairing: 1, resume_from: None }));
        beta.must_fail(DaemonExit::Peer, &[says[0], says[1], "another build"]);
        drop(listener);
        // And as the backup.
        let mut alpha = Daemon::start(world, &replay(Config::alpha(world)));
        alpha.wait_until(Role::Primary, State::Solo);
        let mut fake = Fake::dial(0);
        let identity = Identity { node: "beta".into(), peer: "alpha".into(), ..identity };
        fake.send(&Message::Hello(Hello { identity, held: None, pulse: 1 }));
        let refusal = fake.refusal();
        assert!(is_permanent(refusal.code), "{refusal:?}");
        assert!(says.iter().all(|text| refusal.text.contains(text)), "{refusal:?}");
        alpha.wait_for_log(&refusal.text);
        alpha.wait_until(Role::Primary, State::Solo);
    });
}

#[test]
fn frames_of_another_version_are_refused_by_name() {
    World::run("frames_of_another_version_are_refused_by_name", |world| {
        let mut alpha = Daemon::start(world, &Config::alpha(world));
        alpha.wait_until(Role::Primary, State::Solo);
        let mut hello = hello_bytes(identity("web", "beta", PROTOCOL));
        hello[4..6].copy_from_slice(&(VERSION + 1).to_le_bytes());
        let mut stream = TcpStream::connect(("127.0.0.1", Config::port(0))).unwrap();
        stream.write_all(&hello).unwrap();
        // It is told, whatever it makes of that, and whatever it had sent besides.
        let refusal = Fake::new(stream.try_clone().unwrap()).refusal();
        assert!(is_permanent(refusal.code), "{refusal:?}");
        alpha.wait_for_log(&refusal.text);
        alpha.wait_until(Role::Primary, State::Solo);
    });
}

#[test]
fn a_backup_whose_primary_speaks_other_frames_ends_and_says_so() {
    World::run("a_backup_whose_primary_speaks_other_frames_ends_and_says_so", |world| {
        let listener = TcpListener::bind(("127.0.0.1", Config::port(0))).unwrap();
        let mut beta = Daemon::start(world, &Config::beta(world));
        let mut stream = listener.accept().unwrap().0;
        let mut reply = hello_bytes(identity("web", "alpha", PROTOCOL));
        reply[4..6].copy_from_slice(&(VERSION + 1).to_le_bytes());
        stream.write_all(&reply).unwrap();
        let theirs = format!("protocol version {}", VERSION + 1);
        beta.must_fail(DaemonExit::Peer, &[&theirs, "install the same version"]);
    });
}

fn hello_bytes(identity: Identity) -> Vec<u8> {
    let mut writer = FrameWriter::new(Vec::new(), vm_id("web"), 1);
    Message::Hello(Hello { identity, held: None, pulse: 1 }).send(0, &mut writer).unwrap();
    writer.into_inner()
}

/// Of the logs of both nodes about more than a thousand connections.
const STRANGERS_LINES_MAX: usize = 60;

#[test]
fn strangers_at_the_replication_ports_disturb_nobody() {
    World::run("strangers_at_the_replication_ports_disturb_nobody", |world| {
        let mut pair = Pair::protected(world);
        let generation = pair.alpha.status().expect("it answers").generation;
        let traffic = Traffic::start();
        let lines = |pair: &Pair| pair.alpha.log().lines().count() + pair.beta.log().lines().count();
        let lines_before = lines(&pair);
        let mut noise = vec![0; 1 << 20];
        SmallRng::seed_from_u64(7).fill_bytes(&mut noise);
        let hello = hello_bytes(identity("web", "beta", PROTOCOL));
        let mut kept = Vec::new();
        for port in [Config::port(0), Config::port(1)] {
            let connect = || TcpStream::connect(("127.0.0.1", port)).unwrap();
            // Garbage, which is cut off at any byte.
            for _ in 0..20 {
                let _ = connect().write_all(&noise);
            }
            // Half a handshake.
            for bytes in [1, 20, 48, hello.len() - 1] {
                let mut stream = connect();
                stream.write_all(&hello[..bytes]).unwrap();
                kept.push(stream);
            }
            // Nothing at all.
            kept.extend((0..40).map(|_| connect()));
            // A flood.
            for _ in 0..500 {
                drop(connect());
            }
        }
        traffic.goes_on();
        pair.wait_protected();
        assert_eq!(pair.alpha.status().expect("it answers").generation, generation);
        let told = lines(&pair) - lines_before;
        assert!((1..=STRANGERS_LINES_MAX).contains(&told), "{told} lines:\n{}", pair.alpha.log());

        // The real peer finds its way in past those that still stand in the door.
        pair.beta.kill();
        pair.alpha.wait_until(Role::Primary, State::Solo);
        pair.beta = Daemon::start(world, &pair.beta_config);
        pair.wait_protected();
        // Whoever said nothing was shown out.
        for stream in &mut kept {
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            assert!(!matches!(stream.read(&mut [0; 16]), Ok(1..)), "a stranger was answered");
        }
        traffic.goes_on();
        traffic.must_have_lost_nothing();
    });
}

#[test]
fn a_backup_that_falls_silent_or_says_what_cannot_be_is_given_up() {
    World::run("a_backup_that_falls_silent_or_says_what_cannot_be_is_given_up", |world| {
        // What the real backup would say of itself.
        let listener = TcpListener::bind(("127.0.0.1", Config::port(0))).unwrap();
        let mut beta = Daemon::start(world, &Config::beta(world));
        let (_, hello) = Fake::accept(&listener);
        beta.kill();
        drop(listener);

        let mut alpha = Daemon::start(world, &Config::alpha(world));
        alpha.wait_until(Role::Primary, State::Solo);
        let traffic = Traffic::start();
        let (_silent, _pulse) = Fake::dial_twice(0, hello.clone());
        alpha.wait_until(Role::Primary, State::Resyncing);
        let status = alpha.wait_until(Role::Primary, State::Solo);
        assert!(status.detail.contains("silent for"), "{status:?}");

        // A pulse alone is no backup, however well it beats.
        let (_stuck, pulse) = Fake::dial_twice(0, hello.clone());
        pulse.answer_heartbeats();
        alpha.wait_until(Role::Primary, State::Resyncing);
        let status = alpha.wait_until(Role::Primary, State::Solo);
        assert!(status.detail.contains("it lives, but nothing else came"), "{status:?}");

        // Nor is a stream without one.
        Fake::dial(0).send(&Message::Hello(hello.clone()));
        alpha.wait_for_log("its second connection, for heartbeats, did not come");

        let (mut liar, _pulse) = Fake::dial_twice(0, hello.clone());
        alpha.wait_until(Role::Primary, State::Resyncing);
        liar.send(&Message::Ack(Ack { epoch: 1 << 40, stamp_us: 0 }));
        let status = alpha.wait_until(Role::Primary, State::Solo);
        assert!(status.detail.contains("epoch 1099511627776"), "{status:?}");

        // It tells of memory that it was not asked about yet.
        let (mut liar, _pulse) = Fake::dial_twice(0, hello.clone());
        alpha.wait_until(Role::Primary, State::Resyncing);
        liar.writer.speak(PROTOCOL.newest);
        let hashes = vec![[0; 16]];
        liar.send(&Message::PageHashes(PageHashes { first: 7, runs: vec![HashRun { holes: 0, hashes }] }));
        let status = alpha.wait_until(Role::Primary, State::Solo);
        assert!(status.detail.contains("tells of its page 7, where page 0 was due"), "{status:?}");

        // The real one is welcome all the same.
        let _beta = Daemon::start(world, &Config::beta(world));
        alpha.wait_until(Role::Primary, State::Protected);
        assert_eq!(call("PING"), "PONG");
        traffic.must_have_lost_nothing();
    });
}
