//! A pair whose arbiter is a service.

use crate::fixture::{Daemon, Pair, Traffic, World, binary};
use ftd::control::api::{Role, State};
use ftd::exit::DaemonExit;
use nix::sys::signal::Signal;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const ADDRESS: &str = "127.0.0.1:7390";
const PATIENCE: Duration = Duration::from_secs(60);

/// `ftd arbiter` over a store of the test.
struct Service {
    store: PathBuf,
    child: Child,
}

impl Service {
    fn found(world: &World) -> Self {
        let store = world.path("cells");
        let created = command(&store).arg("--create").status().expect("the program can be started");
        assert!(created.success(), "{created:?}");
        Self { child: spawn(&store), store }
    }

    fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it is a child");
    }

    fn start_again(&mut self) {
        self.child = spawn(&self.store);
    }

    /// What `ftctl arbiter` says.
    fn ctl(&self, arguments: &[&str]) -> String {
        let output = Command::new(binary("ftctl")).arg("arbiter").args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(store: &PathBuf) -> Command {
    let mut command = Command::new(binary("ftd"));
    command.arg("arbiter").arg("--store").arg(store).stdin(Stdio::null());
    // SAFETY: between fork and exec only prctl(2) is called, which is a plain system call.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
    command
}

/// Starts it, and waits until it listens.
fn spawn(store: &PathBuf) -> Child {
    let mut child = command(store).arg("--listen").arg(ADDRESS).spawn().expect("the program can be started");
    let began = Instant::now();
    while TcpStream::connect(ADDRESS).is_err() {
        assert!(child.try_wait().unwrap().is_none() && began.elapsed() < PATIENCE, "it does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    child
}

#[test]
fn a_pair_with_a_service_for_its_arbiter_survives_the_loss_of_a_host_and_of_the_service_itself() {
    let name = "a_pair_with_a_service_for_its_arbiter_survives_the_loss_of_a_host_and_of_the_service_itself";
    World::run(name, |world| {
        let mut service = Service::found(world);
        let mut pair = Pair::protected_with(world, |config| {
            config.without("arbiter").with("arbiter.kind", "service").with("arbiter.address", ADDRESS)
        });
        let status = pair.alpha.ctl(&["status"]).stdout;
        assert!(status.contains("service 127.0.0.1:7390, answers"), "{status}");
        // A second one is refused, and harms nobody.
        let second = command(&service.store).arg("--listen").arg("127.0.0.1:7391").output().unwrap();
        assert_eq!(second.status.code(), Some(DaemonExit::InUse as i32), "{second:?}");
        let traffic = Traffic::start();

        // Away for a moment, in step: it is told, and forgotten when it is back.
        service.kill();
        pair.alpha.wait_until(Role::Primary, State::Degraded);
        service.start_again();
        pair.wait_protected();
        traffic.goes_on();

        // Away when a host is lost: nobody goes on before it is back.
        service.kill();
        pair.alpha.wait_until(Role::Primary, State::Degraded);
        pair.alpha.kill();
        let waited = Instant::now();
        pair.beta.wait_until(Role::Backup, State::Waiting);
        while waited.elapsed() < Duration::from_secs(2) {
            let status = pair.beta.status().expect("it runs");
            assert_eq!(status.role, Role::Backup, "{status:?}");
        }
        service.start_again();
        pair.beta.wait_until(Role::Primary, State::Solo);
        traffic.goes_on();
        let cells = service.ctl(&["list"]);
        assert!(cells.starts_with("web: cell ") && cells.contains("owner beta, no standby"), "{cells}");
        let history = service.ctl(&["history", "web"]);
        assert!(history.lines().count() >= 3 && history.contains("owner alpha, standby beta"), "{history}");

        // Kept, and made a store of again, which has the same cell.
        let kept = world.path("kept").display().to_string();
        assert!(service.ctl(&["backup", &kept]).contains("1 cells"));
        service.kill();
        std::fs::remove_file(&service.store).unwrap();
        let restored = command(&service.store).args(["--restore", &kept]).output().unwrap();
        assert!(restored.status.success(), "{restored:?}");
        service.start_again();
        assert_eq!(service.ctl(&["list"]), cells);

        pair.alpha = Daemon::start(world, &pair.alpha_config);
        pair.wait_protected_the_other_way_round();
        traffic.goes_on();
        traffic.must_have_lost_nothing();
    });
}

#[test]
fn a_store_that_is_a_link_is_served_where_it_lies() {
    World::run("a_store_that_is_a_link_is_served_where_it_lies", |world| {
        let mut service = Service::found(world);
        service.kill();
        let elsewhere = world.path("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        std::fs::rename(&service.store, elsewhere.join("cells")).unwrap();
        std::os::unix::fs::symlink(elsewhere.join("cells"), &service.store).unwrap();
        service.start_again();
        assert_eq!(service.ctl(&["list"]), "");
    });
}
