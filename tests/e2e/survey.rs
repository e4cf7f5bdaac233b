//! What lies between the two hosts, as `ftd check-config` tells it when the peer answers.

use crate::fixture::{Config, Daemon, Engine, Pair, Traffic, World, binary};
use ft_checkpoint::wire::message::{Fact, Survey};
use ft_checkpoint::wire::{FrameReader, FrameWriter, Message, vm_id};
use ftd::control::api::{Role, State};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

/// What `ftd check-config` prints. It must call the host fine.
fn checked(world: &World, config: &Config) -> String {
    let file = world.file("checked.toml", config.text());
    let output = Command::new(binary("ftd")).args(["check-config", "--config"]).arg(&file).output();
    let output = output.expect("ftd can be run");
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && text.contains("checked.toml: fine"), "{text}");
    text
}

/// What the daemon that listens there says when it is asked.
fn asked(index: usize) -> Box<Survey> {
    let stream = TcpStream::connect(("127.0.0.1", Config::port(index))).unwrap();
    let mut writer = FrameWriter::new(stream.try_clone().unwrap(), vm_id("web"), 0);
    Message::Survey(None).send(0, &mut writer).unwrap();
    match Message::decode(&FrameReader::new(stream).read().unwrap()).unwrap() {
        Message::Survey(Some(survey)) => survey,
        other => panic!("no survey: {other:?}"),
    }
}

#[test]
fn check_config_shows_the_processor_and_warns_of_more_vcpus_than_the_host_has() {
    const NAME: &str = "check_config_shows_the_processor_and_warns_of_more_vcpus_than_the_host_has";
    World::run_on(Engine::Kvm, NAME, |world| {
        let here = std::thread::available_parallelism().unwrap().get();
        let text = checked(world, &Config::beta(world));
        assert!(text.contains("beta: the guest's processor is \"host\": "), "{text}");
        assert!(!text.contains("machine.vcpus"), "{text}");
        let text = checked(world, &Config::beta(world).with("machine.vcpus", 64));
        let says = format!("warning: machine.vcpus = 64: ftd has {here} processors on this host");
        assert_eq!(text.contains(&says), here < 64, "{text}");
    });
}

#[test]
fn check_config_warns_of_what_lies_between_the_hosts_and_a_silent_peer_is_no_failure() {
    const NAME: &str = "check_config_warns_of_what_lies_between_the_hosts_and_a_silent_peer_is_no_failure";
    World::run(NAME, |world| {
        let text = checked(world, &Config::beta(world));
        let silent = format!("the peer does not answer at 127.0.0.1:{}: not compared", Config::port(0));
        assert!(text.contains(&silent) && !text.contains("warning"), "{text}");

        let mut alpha = Daemon::start(world, &Config::alpha(world));
        alpha.wait_until(Role::Primary, State::Solo);
        let text = checked(world, &Config::beta(world));
        assert!(text.contains("alpha: fits this host") && !text.contains("warning"), "{text}");
        let text = checked(world, &Config::beta(world).with("machine.memory_mib", 64));
        assert!(text.contains("will not pair: machine.memory_mib: alpha has 32, beta has 64"), "{text}");
        let text = checked(world, &Config::beta(world).with("peer.node", "gamma"));
        assert!(text.contains("will not pair: node alpha asked to pair with node beta"), "{text}");

        // A peer like alpha on another host: another release, another time of day, no memory, another link.
        let mut survey = asked(0);
        drop(alpha);
        survey.release = "99.1.2".into();
        survey.clock_us += 3_600_000_000;
        survey.lacks = Some("its host is small".into());
        survey.mtu = survey.mtu.map(|mtu| mtu - 1);
        assert!(survey.mtu.is_some());
        survey.identity.facts.retain(|fact: &Fact| fact.name != "machine.vcpus");
        let listener = TcpListener::bind(("127.0.0.1", Config::port(0))).unwrap();
        let answering = std::thread::spawn(move || {
            let stream = listener.accept().unwrap().0;
            let mut writer = FrameWriter::new(stream.try_clone().unwrap(), vm_id("web"), 1);
            let mut reader = FrameReader::new(stream);
            assert_eq!(Message::decode(&reader.read().unwrap()).unwrap(), Message::Survey(None));
            Message::Survey(Some(survey)).send(0, &mut writer).unwrap();
        });
        let text = checked(world, &Config::beta(world));
        answering.join().unwrap();
        for says in [
            "will not pair: machine.vcpus: beta has 1, alpha has none",
            "and 99.1.2 on alpha",
            "the clock of alpha's host is 3",
            "node alpha cannot be the backup: its host is small",
            "the MTU of the link is ",
        ] {
            assert!(text.contains(says), "{says}: {text}");
        }
    });
}

#[test]
fn check_config_warns_of_a_tap_that_leads_nowhere() {
    World::run("check_config_warns_of_a_tap_that_leads_nowhere", |world| {
        let warning = "ftd: warning: machine.net: the TAP vm-beta is on no bridge";
        assert!(!checked(world, &Config::beta(world)).contains("warning"));
        world.ip("link set dev vm-beta nomaster");
        let text = checked(world, &Config::beta(world));
        assert!(text.lines().any(|line| line.starts_with(warning)), "{text}");
        world.ip("link delete dev vm-beta");
        let text = checked(world, &Config::beta(world));
        assert!(text.contains("ftd: warning: machine.net: there is no TAP vm-beta"), "{text}");
    });
}

#[test]
fn check_config_beside_the_running_pair_says_that_it_runs_and_asks_the_peer() {
    World::run("check_config_beside_the_running_pair_says_that_it_runs_and_asks_the_peer", |world| {
        let mut pair = Pair::protected(world);
        let before = pair.alpha.status().expect("it answers");
        for (config, peer) in [(Config::alpha(world), "beta"), (Config::beta(world), "alpha")] {
            let text = checked(world, &config);
            for says in ["the VM's daemon runs on this host (process ", "not checked: replication.listen"] {
                assert!(text.contains(says), "{says}: {text}");
            }
            assert!(text.contains(&format!("{peer}: fits this host")), "{text}");
            assert!(!text.contains("warning"), "{text}");
        }
        pair.wait_protected();
        assert_eq!(pair.alpha.status().expect("it answers").generation, before.generation);
    });
}

#[test]
fn whoever_asks_a_protected_pair_what_its_hosts_are_disturbs_nothing() {
    World::run("whoever_asks_a_protected_pair_what_its_hosts_are_disturbs_nothing", |world| {
        let mut pair = Pair::protected(world);
        let before = pair.alpha.status().expect("it answers");
        let traffic = Traffic::start();
        for _ in 0..20 {
            for (index, node) in ["alpha", "beta"].into_iter().enumerate() {
                let survey = asked(index);
                assert_eq!((&*survey.identity.node, survey.lacks), (node, None));
            }
        }
        traffic.goes_on();
        pair.wait_protected();
        let after = pair.alpha.status().expect("it answers");
        assert_eq!((after.generation, after.peer.from), (before.generation, before.peer.from));
        traffic.must_have_lost_nothing();
    });
}
