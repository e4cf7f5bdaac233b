//! A pair whose arbiter is three services, of which two decide.

use crate::fixture::{Daemon, Pair, Traffic, World, binary};
use ftd::control::api::{Role, State, Status};
use ftd::exit::DaemonExit;
use nix::sys::signal::Signal;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const ADDRESSES: [&str; 3] = ["127.0.0.1:7390", "127.0.0.1:7391", "127.0.0.1:7392"];
const PATIENCE: Duration = Duration::from_secs(60);

/// Three times `ftd arbiter`, each over a store of its own.
struct Services {
    stores: [PathBuf; 3],
    running: [Option<Child>; 3],
}

impl Services {
    fn found(world: &World) -> Self {
        let stores = [0, 1, 2].map(|member| world.path(format!("cells-{member}")));
        let mut services = Self { stores, running: [None, None, None] };
        for member in 0..3 {
            let created = services.command(member).arg("--create").output().expect("it can be started");
            assert!(created.status.success(), "{created:?}");
            services.start(member);
        }
        services
    }

    fn command(&self, member: usize) -> Command {
        let mut command = Command::new(binary("ftd"));
        command.arg("arbiter").arg("--store").arg(&self.stores[member]).stdin(Stdio::null());
        command.args(["--listen", ADDRESSES[member]]);
        command.args(ADDRESSES.iter().flat_map(|address| ["--member", address]));
        // SAFETY: between fork and exec only prctl(2) is called, which is a plain system call.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        command
    }

    fn start(&mut self, member: usize) {
        let mut child = self.command(member).spawn().expect("it can be started");
        let began = Instant::now();
        while TcpStream::connect(ADDRESSES[member]).is_err() {
            assert!(child.try_wait().unwrap().is_none() && began.elapsed() < PATIENCE, "it does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.running[member] = Some(child);
    }

    fn kill(&mut self, member: usize) {
        if let Some(mut child) = self.running[member].take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// What `ftctl arbiter` says of a member.
    fn ctl(&self, member: usize, arguments: &[&str]) -> String {
        let mut command = Command::new(binary("ftctl"));
        command.arg("arbiter").args(arguments).args(["--address", ADDRESSES[member]]);
        String::from_utf8(command.output().expect("it can be started").stdout).unwrap()
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        (0..3).for_each(|member| self.kill(member));
    }
}

fn protected(world: &World) -> Pair {
    Pair::protected_with(world, |config| {
        let addresses: Vec<toml::Value> = ADDRESSES.map(Into::into).into();
        config.without("arbiter").with("arbiter.kind", "service").with("arbiter.addresses", addresses)
    })
}

/// A host says which one of the three is away, that the two others are there, and what the loss of one more means.
fn warns_of(daemon: &mut Daemon, away: usize) {
    let told = daemon.wait_for("one service is away", |Status { arbiter, .. }| {
        let is_as_it_is = |(nth, address): (usize, &str)| {
            let member = arbiter.members.get(nth).filter(|member| member.address.to_string() == address);
            member.is_some_and(|member| member.trouble.is_some() == (nth == away))
        };
        ADDRESSES.into_iter().enumerate().all(is_as_it_is)
    });
    assert!(told.arbiter.reachable, "{told:?}");
    let (shown, metrics) = (daemon.ctl(&["status"]).stdout, daemon.ctl(&["metrics"]).stdout);
    let warning = format!("WARNING: {}, one of 3, away for ", ADDRESSES[away]);
    assert!(shown.contains(&warning) && shown.contains("with one more away no host takes over"), "{shown}");
    assert_eq!(shown.matches("one of 3, away").count(), 1, "{shown}");
    for (nth, address) in ADDRESSES.iter().enumerate() {
        let (node, answers) = (&told.node, u8::from(nth != away));
        let sample = format!(
            "ftd_arbiter_member_answers{{vm=\"web\",node=\"{node}\",member=\"{address}\"}} {answers}\n"
        );
        assert!(metrics.contains(&sample), "{metrics}");
    }
}

/// For some seconds it does not go on.
fn waits(daemon: &mut Daemon) {
    daemon.wait_until(Role::Backup, State::Waiting);
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(3) {
        let status = daemon.status().expect("it runs");
        assert_eq!(status.role, Role::Backup, "{status:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn with_one_of_three_services_lost_a_pair_stays_protected_and_survives_the_loss_of_a_host() {
    let name = "with_one_of_three_services_lost_a_pair_stays_protected_and_survives_the_loss_of_a_host";
    World::run(name, |world| {
        let mut services = Services::found(world);
        let mut pair = protected(world);
        let status = pair.alpha.ctl(&["status"]).stdout;
        assert!(
            status.contains("services 127.0.0.1:7390 127.0.0.1:7391 127.0.0.1:7392, answers"),
            "{status}"
        );
        let traffic = Traffic::start();

        services.kill(0);
        let since = Instant::now();
        // Longer than an arbiter may be silent.
        while since.elapsed() < Duration::from_secs(12) {
            let status = pair.alpha.status().expect("it runs");
            assert_eq!(status.state, State::Protected, "{status:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
        warns_of(&mut pair.alpha, 0);
        warns_of(&mut pair.beta, 0);
        pair.alpha.kill();
        pair.beta.wait_until(Role::Primary, State::Solo);
        traffic.goes_on();
        let cells = services.ctl(1, &["list"]);
        assert!(
            cells.starts_with("a member of 127.0.0.1:7390 127.0.0.1:7391 127.0.0.1:7392, of which 2"),
            "{cells}"
        );
        assert!(
            cells.contains("web: cell ") && cells.contains("owner beta, no standby; accepted in"),
            "{cells}"
        );
        let history = services.ctl(1, &["history", "web"]);
        assert!(history.lines().count() >= 3 && history.contains("owner alpha, standby beta"), "{history}");

        // The lost one comes back with a store of what the others have.
        std::fs::remove_file(&services.stores[0]).unwrap();
        let kept = world.path("kept").display().to_string();
        assert!(services.ctl(1, &["backup", &kept]).contains("1 cells, as this member"));
        let restored = services.command(0).args(["--restore", &kept]).output().unwrap();
        assert_eq!(restored.status.code(), Some(DaemonExit::Usage as i32), "{restored:?}");
        let rejoined = services.command(0).arg("--rejoin").output().unwrap();
        assert!(rejoined.status.success(), "{rejoined:?}");
        services.start(0);
        services.kill(1);
        pair.alpha = Daemon::start(world, &pair.alpha_config);
        pair.wait_protected_the_other_way_round();
        warns_of(&mut pair.beta, 1);
        assert!(services.ctl(0, &["show", "web"]).contains("owner beta, standby alpha"));
        traffic.goes_on();
        traffic.must_have_lost_nothing();
    });
}

#[test]
fn with_two_of_three_services_lost_a_pair_is_degraded_and_no_host_takes_over_before_one_is_back() {
    let name = "with_two_of_three_services_lost_a_pair_is_degraded_and_no_host_takes_over_before_one_is_back";
    World::run(name, |world| {
        let mut services = Services::found(world);
        let mut pair = protected(world);
        let traffic = Traffic::start();
        services.kill(0);
        services.kill(2);
        pair.alpha.wait_until(Role::Primary, State::Degraded);
        traffic.goes_on();
        services.start(2);
        pair.wait_protected();
        traffic.goes_on();

        services.kill(1);
        pair.alpha.wait_until(Role::Primary, State::Degraded);
        pair.alpha.kill();
        waits(&mut pair.beta);
        services.start(0);
        pair.beta.wait_until(Role::Primary, State::Solo);
        traffic.goes_on();
        traffic.must_have_lost_nothing();
    });
}

#[test]
fn a_host_with_another_list_of_services_is_refused_and_the_pair_is_not_called_protected() {
    let name = "a_host_with_another_list_of_services_is_refused_and_the_pair_is_not_called_protected";
    World::run(name, |world| {
        let _services = Services::found(world);
        let mut pair = protected(world);
        pair.beta.kill();
        let some: Vec<toml::Value> = vec![ADDRESSES[0].into(), ADDRESSES[1].into()];
        pair.beta_config = pair.beta_config.clone().with("arbiter.addresses", some);
        let says = [
            "it keeps cells together with others than this node's arbiter.addresses say: 127.0.0.1:7390 127.0.0.1:7391",
            "both nodes and all members must have the same list",
        ];
        Daemon::start_with(world, &pair.beta_config, &[], &[]).must_fail(DaemonExit::Arbiter, &says);
        pair.alpha.wait_until(Role::Primary, State::Solo);
    });
}
