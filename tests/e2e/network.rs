//! The VM's network on its hosts.

use crate::disks::Shell;
use crate::fixture::{
    Config, Daemon, Engine, PATIENCE, Pair, Traffic, World, call, eventually, linux, vm_address,
};
use ft_tests::kv::connection::Connection;
use ftd::control::api::{Role, State, Status};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

#[test]
fn a_vm_that_last_ran_elsewhere_is_reached_as_soon_as_it_boots() {
    World::run("a_vm_that_last_ran_elsewhere_is_reached_as_soon_as_it_boots", |world| {
        world.remember_vm_elsewhere();
        let mut alpha = Daemon::start(world, &Config::alpha(world));
        alpha.wait_until(Role::Primary, State::Solo);
        assert_eq!(call("PING"), "PONG");
    });
}

#[test]
fn a_tap_that_is_taken_off_its_bridge_or_deleted_is_told_and_attached_to_again_when_it_is_back() {
    World::run(
        "a_tap_that_is_taken_off_its_bridge_or_deleted_is_told_and_attached_to_again_when_it_is_back",
        |world| {
            let mut pair = Pair::protected(world);
            let traffic = Traffic::start();
            let says = |daemon: &Daemon, code: i32, what: &str| {
                let told = || Some(daemon.ctl(&["status"])).filter(|output| output.code == code);
                let told = eventually(what, told, || daemon.log());
                assert!(told.stdout.contains(what), "{told:?}");
            };
            // On the backup nobody else would notice.
            world.ip("link set dev vm-beta nomaster");
            says(&pair.beta, 3, "vm-beta is on no bridge");
            world.ip("link set dev vm-beta master lan");
            says(&pair.beta, 0, "vm-beta, well");

            world.ip("link delete dev vm-alpha");
            says(&pair.alpha, 3, "there is no TAP vm-alpha");
            world.ip("tuntap add dev vm-alpha mode tap");
            world.ip("link set dev vm-alpha master lan up");
            says(&pair.alpha, 0, "vm-alpha, well");
            traffic.goes_on();
            // Once each, however long it lasted.
            assert_eq!(pair.alpha.log().matches("there is no TAP").count(), 1, "{}", pair.alpha.log());
            pair.wait_protected();
            traffic.must_have_lost_nothing();
        },
    );
}

#[test]
fn a_vm_whose_host_loses_its_network_moves_to_the_other_where_the_operator_wishes_so() {
    World::run(
        "a_vm_whose_host_loses_its_network_moves_to_the_other_where_the_operator_wishes_so",
        |world| {
            let mut pair =
                Pair::protected_with(world, |config| config.with("machine.net.on_uplink_loss", "switchover"));
            let traffic = Traffic::start();
            // Not where it would be no better.
            world.ip("link set dev vm-beta nomaster");
            let beta_is_cut = |status: &Status| {
                let network = status.network.as_ref().expect("the VM has a card");
                network
                    .peer_trouble
                    .as_ref()
                    .is_some_and(|trouble| trouble.contains("vm-beta is on no bridge"))
            };
            pair.alpha.wait_for("told by beta", beta_is_cut);
            assert_eq!(pair.alpha.ctl(&["status"]).code, 3, "the backup could not be reached");
            world.ip("link set dev vm-alpha nomaster");
            pair.alpha.wait_for_log("the TAP vm-alpha is on no bridge");
            pair.alpha.wait_until(Role::Primary, State::Protected);
            world.ip("link set dev vm-beta master lan");
            pair.wait_protected_the_other_way_round();
            traffic.goes_on();
            traffic.must_have_lost_nothing();
        },
    );
}

/// Hears ARP in this network, from now on.
struct Arp(OwnedFd);

impl Arp {
    fn listen() -> Self {
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let protocol = i32::from((libc::ETH_P_ARP as u16).to_be());
        // SAFETY: no pointer is passed; the descriptor returned is owned by nobody else.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, protocol) };
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: it was just opened.
        Self(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Somebody has told whoever listens that this address is its own.
    fn has_announced(&self, address: [u8; 4]) -> bool {
        let mut frame = [0_u8; 64];
        loop {
            // SAFETY: pointer and length are those of the array.
            let bytes = unsafe { libc::recv(self.0.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
            if bytes < 42 {
                return false;
            }
            if frame[28..32] == address && frame[38..42] == address {
                return true;
            }
        }
    }
}

#[test]
fn a_linux_guest_that_is_taken_over_announces_its_own_addresses() {
    const NAME: &str = "a_linux_guest_that_is_taken_over_announces_its_own_addresses";
    let Some(linux) = linux(NAME) else { return };
    // Where the host emulates KVM, a kernel that boots in epochs takes minutes.
    World::run_on(Engine::Soft, NAME, move |world| {
        // ftd knows of no address: what it announces is the MAC address alone.
        let change = |config| linux(config).with("machine.net.addresses", Vec::<toml::Value>::new());
        let mut pair = Pair::protected_with(world, change);
        let answers = || TcpStream::connect_timeout(&vm_address(), PATIENCE).ok();
        eventually("the guest is up", answers, || "it is not".into());
        let arp = Arp::listen();
        pair.alpha.kill();
        pair.beta.wait_until(Role::Primary, State::Solo);
        let announced = || arp.has_announced([10, 77, 0, 2]).then_some(());
        eventually("the guest's announcement", announced, || pair.beta.log());
    });
}

#[test]
fn a_linux_guest_with_two_cards_keeps_the_connections_over_both() {
    const NAME: &str = "a_linux_guest_with_two_cards_keeps_the_connections_over_both";
    let Some(linux) = linux(NAME) else { return };
    World::run_on(Engine::Soft, NAME, move |world| {
        world.ip("link add name back type bridge stp_state 0 forward_delay 0 mcast_snooping 0");
        world.ip("address add 10.78.0.100/24 dev back");
        world.ip("link set dev back up");
        for tap in ["back-alpha", "back-beta"] {
            world.ip(&format!("tuntap add dev {tap} mode tap"));
            world.ip(&format!("link set dev {tap} master back up"));
        }
        let change = |config: Config| {
            let tap = format!("back-{}", config.node);
            linux(config).with_card(&tap, "52:54:00:78:00:02", "10.78.0.2")
        };
        let mut pair = Pair::protected_with(world, change);
        let mut shell = Shell::on(&pair.alpha);
        shell.line("guest: userland is up");
        shell.does("ip address add 10.78.0.2/24 dev eth1 && ip link set eth1 up", "second");
        let mut lines = [vm_address(), SocketAddr::from(([10, 78, 0, 2], 7777))].map(|address| {
            let opened = || Connection::open(address, PATIENCE).ok();
            eventually("the guest answers on each of its cards", opened, || pair.alpha.log())
        });
        let [front, back] = &mut lines;
        assert_eq!(front.call("SET front 1", PATIENCE).unwrap(), "OK");
        assert_eq!(back.call("SET back 2", PATIENCE).unwrap(), "OK");

        pair.alpha.kill();
        pair.beta.wait_until(Role::Primary, State::Solo);
        assert_eq!(back.call("GET front", PATIENCE).unwrap(), "VALUE 1");
        assert_eq!(front.call("GET back", PATIENCE).unwrap(), "VALUE 2");
        // Each way is watched.
        world.ip("link set dev back-beta nomaster");
        let says = || {
            Some(pair.beta.ctl(&["status"]))
                .filter(|output| output.stdout.contains("back-beta is on no bridge"))
        };
        eventually("the second card's way is watched", says, || pair.beta.log());
    });
}

#[test]
fn a_linux_guest_sees_no_link_while_its_card_reaches_nobody_and_one_where_it_is_taken_over() {
    const NAME: &str =
        "a_linux_guest_sees_no_link_while_its_card_reaches_nobody_and_one_where_it_is_taken_over";
    let Some(linux) = linux(NAME) else { return };
    World::run_on(Engine::Soft, NAME, move |world| {
        let mut pair = Pair::protected_with(world, |config| linux(config).with("machine.net.link", "uplink"));
        let until = |shell: &mut Shell, up: bool, word: &str| {
            let other = u8::from(!up);
            shell.does(
                &format!("while [ $(cat /sys/class/net/eth0/carrier) = {other} ]; do sleep 0.1; done"),
                word,
            );
        };
        let mut shell = Shell::on(&pair.alpha);
        shell.line("guest: userland is up");
        until(&mut shell, true, "first");
        world.ip("link set dev vm-alpha nomaster");
        until(&mut shell, false, "cut");
        world.ip("link set dev vm-alpha master lan");
        until(&mut shell, true, "back");
        world.ip("link set dev vm-alpha nomaster");
        until(&mut shell, false, "cut-again");
        pair.wait_committed();
        pair.alpha.kill();
        pair.beta.wait_until(Role::Primary, State::Solo);
        until(&mut Shell::on(&pair.beta), true, "there");
    });
}
