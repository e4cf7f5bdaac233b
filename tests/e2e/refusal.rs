//! What cannot work is refused at the start, before the VM runs: one clear message, and an exit code that tells where
//! to look.

use crate::fixture::{Config, Daemon, Engine, Pair, World, call};
use ft_vm::machine::cpu_profile;
use ft_vm::spec::CpuModel;
use ftd::control::api::{Role, State};
use ftd::exit::DaemonExit;
use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

/// alpha, changed, started by way of `by`, ends with this code and a message that has these texts.
fn refused(
    name: &str,
    change: impl FnOnce(&World, Config) -> Config + Send + 'static,
    by: &'static [&'static str],
    code: DaemonExit,
    says: &'static [&'static str],
) {
    World::run(name, move |world| {
        refused_in(world, &change(world, Config::alpha(world)), by, code, says);
    });
}

fn refused_in(world: &World, config: &Config, by: &[&str], code: DaemonExit, says: &[&str]) {
    Daemon::start_with(world, config, by, &[]).must_fail(code, says);
    assert!(!world.path("arbiter/web.cell").exists(), "the cell says that the VM runs");
}

const NO_DEVICES: &[&str] = &["unshare", "-m", "sh", "-c", "mount -t tmpfs none /dev && exec \"$@\"", "-"];
const ONLY_TUN: &[&str] = &[
    "unshare",
    "-m",
    "sh",
    "-c",
    "mount -t tmpfs none /dev && mkdir /dev/net && mknod /dev/net/tun c 10 200 && exec \"$@\"",
    "-",
];
const NULL_AS_KVM: &[&str] =
    &["unshare", "-m", "sh", "-c", "mount --bind /dev/null /dev/kvm && exec \"$@\"", "-"];
const NO_NETWORK_RIGHTS: &[&str] = &["setpriv", "--bounding-set=-net_admin"];
const NO_RIGHT_TO_FOREIGN_FILES: &[&str] = &["setpriv", "--bounding-set=-dac_override,-dac_read_search"];

#[test]
fn a_host_without_kvm() {
    World::run_on(Engine::Kvm, "a_host_without_kvm", |world| {
        let says = ["/dev/kvm: No such file", "engine = \"soft\""];
        refused_in(world, &Config::alpha(world), NO_DEVICES, DaemonExit::Host, &says);
    });
}

#[test]
fn a_host_without_kvm_is_enough_for_the_engine_in_software() {
    World::run_on(Engine::Soft, "a_host_without_kvm_is_enough_for_the_engine_in_software", |world| {
        let mut alpha = Daemon::start_with(world, &Config::alpha(world), ONLY_TUN, &[]);
        alpha.wait_until(Role::Primary, State::Solo);
        assert_eq!(call("PING"), "PONG");
    });
}

#[test]
fn a_kvm_that_is_none() {
    World::run_on(Engine::Kvm, "a_kvm_that_is_none", |world| {
        refused_in(world, &Config::alpha(world), NULL_AS_KVM, DaemonExit::Host, &["/dev/kvm"]);
    });
}

#[test]
fn a_host_that_cannot_show_the_processor() {
    World::run_on(Engine::Kvm, "a_host_that_cannot_show_the_processor", |world| {
        let config = Config::alpha(world).with("machine.cpu", "x86-64-v3");
        match cpu_profile(CpuModel::X86_64V3) {
            Ok(_) => {
                let mut alpha = Daemon::start(world, &config);
                alpha.wait_until(Role::Primary, State::Solo);
                assert_eq!(call("PING"), "PONG");
            }
            Err(_) => {
                let says = ["machine: cpu = \"x86-64-v3\"", "cannot show it", "lower level"];
                refused_in(world, &config, &[], DaemonExit::Host, &says);
            }
        }
    });
}

#[test]
fn a_node_of_memory_that_the_host_does_not_have() {
    let change = |_: &World, config: Config| config.with("machine.numa_node", 999);
    let says = &["machine, its memory: this host has no node 999 with memory; it has: "];
    refused("a_node_of_memory_that_the_host_does_not_have", change, &[], DaemonExit::Host, says);
}

#[test]
fn no_right_to_make_a_tap() {
    let change = |_: &World, config: Config| config.with("machine.net.tap", "vm-new");
    let says = &["machine.net.tap", "'vm-new' is not there", "ip tuntap add vm-new mode tap user root"];
    refused("no_right_to_make_a_tap", change, NO_NETWORK_RIGHTS, DaemonExit::Host, says);
}

#[test]
fn a_port_that_is_in_use() {
    World::run("a_port_that_is_in_use", |world| {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        for key in ["replication.listen", "metrics.listen"] {
            let config = Config::alpha(world).with(key, address.as_str());
            Daemon::start(world, &config).must_fail(DaemonExit::InUse, &[key, &address, "in use"]);
        }
    });
}

#[test]
fn a_tap_that_is_in_use() {
    World::run("a_tap_that_is_in_use", |world| {
        let mut other = Daemon::start(world, &Config::alpha(world));
        other.wait_until(Role::Primary, State::Solo);
        let config = Config::beta(world).with("machine.net.tap", "vm-alpha");
        Daemon::start(world, &config).must_fail(DaemonExit::InUse, &["machine.net.tap", "vm-alpha"]);
    });
}

#[test]
fn a_kernel_that_is_missing() {
    let change = |_: &World, config: Config| {
        config.with("machine.guest", "linux").with("machine.kernel", "/nowhere/vmlinuz")
    };
    let says = &["machine.kernel = /nowhere/vmlinuz", "No such file"];
    refused("a_kernel_that_is_missing", change, &[], DaemonExit::Host, says);
}

#[test]
fn a_kernel_that_may_not_be_read() {
    let change = |world: &World, config: Config| {
        let kernel = world.file("vmlinuz", "secret");
        fs::set_permissions(&kernel, Permissions::from_mode(0o000)).unwrap();
        config.with("machine.guest", "linux").with("machine.kernel", kernel.to_str().unwrap())
    };
    let says = &["machine.kernel = ", "vmlinuz: cannot be read: Permission denied"];
    refused("a_kernel_that_may_not_be_read", change, NO_RIGHT_TO_FOREIGN_FILES, DaemonExit::Host, says);
}

#[test]
fn a_kernel_that_is_none() {
    let change = |world: &World, config: Config| {
        let kernel = world.file("vmlinuz", "this is a letter to my aunt\n".repeat(1000));
        config.with("machine.guest", "linux").with("machine.kernel", kernel.to_str().unwrap())
    };
    refused("a_kernel_that_is_none", change, &[], DaemonExit::Host, &["machine.kernel", "vmlinuz"]);
}

#[test]
fn a_program_that_is_none() {
    let change = |world: &World, config: Config| {
        let kernel = world.file("program", "\x7fELF, it says, but it is none");
        config.with("machine.guest", "freestanding").with("machine.kernel", kernel.to_str().unwrap())
    };
    refused("a_program_that_is_none", change, &[], DaemonExit::Host, &["machine.kernel", "program"]);
}

#[test]
fn a_disk_image_that_is_missing_or_has_no_whole_sectors() {
    World::run("a_disk_image_that_is_missing_or_has_no_whole_sectors", |world| {
        let odd = world.file("odd.img", [0; 700]);
        for (image, says) in
            [("/nowhere/disk.img", "No such file"), (odd.to_str().unwrap(), "multiple of 512")]
        {
            let config = disk(Config::alpha(world), image, true);
            Daemon::start(world, &config).must_fail(DaemonExit::Host, &["machine.disk.image", image, says]);
        }
    });
}

fn disk(config: Config, image: &str, read_only: bool) -> Config {
    config.with("machine.disk", vec![toml::Value::Table(disk_table(image, read_only))])
}

fn disk_table(image: &str, read_only: bool) -> toml::Table {
    toml::Table::from_iter([("image".into(), image.into()), ("read_only".into(), read_only.into())])
}

#[test]
fn in_replay_mode_a_disk_that_reports_its_errors_is_refused_by_its_name() {
    World::run("in_replay_mode_a_disk_that_reports_its_errors_is_refused_by_its_name", |world| {
        let image = world.file("root.img", [0; 8192]);
        let image = image.to_str().unwrap();
        let says = ["machine.disk.on_io_error = report", image, "must be \"stop\" or \"switchover\""];
        let mut reports = disk_table(image, false);
        reports.insert("on_io_error".into(), "report".into());
        let config = Config::alpha(world).with("machine.disk", vec![toml::Value::Table(reports)]);
        let config = config.with("replication.mode", "replay");
        Daemon::start(world, &config.with("machine.engine", "soft")).must_fail(DaemonExit::Usage, &says);
        Pair::protected_with(world, |config| disk(config, image, true));
    });
}

#[test]
fn memory_sizes_that_no_machine_has() {
    World::run("memory_sizes_that_no_machine_has", |world| {
        for (mib, says) in [(0, "16"), (15, "16"), (17, "even"), (1 << 30, "1048576")] {
            let config = Config::alpha(world).with("machine.memory_mib", mib);
            let key = format!("machine.memory_mib = {mib}");
            Daemon::start(world, &config).must_fail(DaemonExit::Usage, &[&key, says]);
        }
    });
}

#[test]
fn a_memory_too_small_for_what_boots() {
    let change = |world: &World, config: Config| {
        let initrd = world.file("initrd", vec![0; 40 << 20]);
        let kernel = std::env::var("FTD_TEST_KERNEL").unwrap_or_default();
        config
            .with("machine.guest", "linux")
            .with("machine.kernel", kernel)
            .with("machine.initrd", initrd.to_str().unwrap())
    };
    if std::env::var_os("FTD_TEST_KERNEL").is_none() {
        eprintln!("SKIPPED a_memory_too_small_for_what_boots: FTD_TEST_KERNEL names no kernel");
        return;
    }
    refused("a_memory_too_small_for_what_boots", change, &[], DaemonExit::Host, &["initramfs does not fit"]);
}

#[test]
fn an_unknown_key() {
    let change = |_: &World, config: Config| config.with("replication.epoch_msec", 5);
    let says = &["alpha.toml", "unknown field", "epoch_msec"];
    refused("an_unknown_key", change, &[], DaemonExit::Usage, says);
}

#[test]
fn a_second_daemon_for_the_same_vm() {
    World::run("a_second_daemon_for_the_same_vm", |world| {
        let config = Config::alpha(world);
        let mut first = Daemon::start(world, &config);
        first.wait_until(Role::Primary, State::Solo);
        Daemon::start(world, &config).must_fail(DaemonExit::InUse, &["alpha-state", "already runs"]);
        // Not even with a directory of its own.
        let apart = config.with("state_dir", world.path("elsewhere").to_str().unwrap());
        Daemon::start(world, &apart).must_fail(DaemonExit::InUse, &["in use"]);
        assert!(first.is_running());
        assert_eq!(first.ctl(&["status"]).code, 3, "the first one's socket was taken away");
    });
}

#[test]
fn an_arbiter_that_is_not_mounted_or_not_writable() {
    World::run("an_arbiter_that_is_not_mounted_or_not_writable", |world| {
        let absent = world.path("not-mounted/web.cell").display().to_string();
        let config = Config::alpha(world).with("arbiter.path", absent.as_str());
        Daemon::start(world, &config).must_fail(DaemonExit::Arbiter, &[&absent, "No such file"]);
        world.mount_arbiter("ro,size=64k");
        let says = ["arbiter/web.cell", "Read-only file system"];
        Daemon::start(world, &Config::alpha(world)).must_fail(DaemonExit::Arbiter, &says);
    });
}

#[test]
fn an_arbiter_on_a_full_disk() {
    World::run("an_arbiter_on_a_full_disk", |world| {
        world.mount_arbiter("size=64k");
        world.fill_arbiter();
        let says = ["arbiter/web.cell", "No space left"];
        Daemon::start(world, &Config::alpha(world)).must_fail(DaemonExit::Arbiter, &says);
    });
}

#[test]
fn a_cell_of_another_vm() {
    World::run("a_cell_of_another_vm", |world| {
        let mut other = Daemon::start(world, &Config::alpha(world));
        other.wait_until(Role::Primary, State::Solo);
        let config = Config::beta(world).with("vm", "db");
        Daemon::start(world, &config).must_fail(DaemonExit::Arbiter, &["web", "db"]);
        assert!(other.is_running());
    });
}

#[test]
fn a_control_socket_where_there_is_a_file() {
    World::run("a_control_socket_where_there_is_a_file", |world| {
        let path = world.file("alpha.sock", "precious");
        Daemon::start(world, &Config::alpha(world))
            .must_fail(DaemonExit::Host, &["alpha.sock", "not a socket"]);
        assert_eq!(fs::read_to_string(path).unwrap(), "precious");
    });
}
