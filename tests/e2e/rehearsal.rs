//! "Protected" means that the backup has tried: a host whose kernel takes no state over is never said to protect a VM.

use crate::fixture::{Config, Daemon, Engine, Pair, Traffic, World, eventually};
use ftd::control::api::{Role, State, Status};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Loaded into a daemon: while the file FT_BREAKS exists, KVM_SET_LAPIC fails, which every restore needs.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>
int ioctl(int fd, unsigned long request, ...) {
    va_list arguments;
    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    const char *breaks = getenv("FT_BREAKS");
    if ((request & 0xffff) == 0xae8f && breaks && access(breaks, F_OK) == 0) {
        errno = EINVAL;
        return -1;
    }
    return ((int (*)(int, unsigned long, void *))dlsym(RTLD_NEXT, "ioctl"))(fd, request, argument);
}
"#;

/// Where a compiler made the shim; none where there is no compiler.
fn shim(world: &World) -> Option<String> {
    let (source, shim) = (world.file("shim.c", SHIM), world.path("shim.so"));
    let made = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&shim)
        .arg(source)
        .arg("-ldl")
        .status();
    made.is_ok_and(|status| status.success()).then(|| shim.display().to_string())
}

fn start_breakable(world: &World, config: &Config, shim: &str, breaks: &Path) -> Daemon {
    // The shim looks for a file, on a vCPU's thread.
    let config = config.clone().with("confinement", "none");
    let (shim, breaks) = (format!("LD_PRELOAD={shim}"), format!("FT_BREAKS={}", breaks.display()));
    Daemon::start_with(world, &config, &["env", &shim, &breaks], &[])
}

fn trouble(status: &Status) -> Option<&str> {
    status.rehearsal.as_ref()?.trouble.as_deref()
}

fn failures(daemon: &Daemon) -> u64 {
    let metrics = daemon.ctl(&["metrics"]).stdout;
    let line = metrics.lines().find(|line| line.starts_with("ftd_rehearsals_failed_total{"));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

#[test]
fn a_backup_whose_host_takes_no_state_never_protects_says_why_and_tries_again() {
    const NAME: &str = "a_backup_whose_host_takes_no_state_never_protects_says_why_and_tries_again";
    World::run_on(Engine::Kvm, NAME, |world| {
        let Some(shim) = shim(world) else { return eprintln!("SKIPPED {NAME}: no C compiler (cc)") };
        let breaks = world.path("breaks");
        let config = Config::beta(world).with("replication.rehearsal_s", 1);
        let mut beta = start_breakable(world, &config, &shim, &breaks);
        beta.wait_for("up", |_| true);
        fs::write(&breaks, "").unwrap();
        let mut alpha = Daemon::start(world, &Config::alpha(world));
        alpha.wait_until(Role::Primary, State::Solo);
        let traffic = Traffic::start();
        eventually("it tries again", || (failures(&beta) > 1).then_some(()), || beta.log());
        let status = beta.wait_for("telling why", |status| trouble(status).is_some());
        assert!(trouble(&status).is_some_and(|why| why.contains("KVM_SET_LAPIC")), "{status:?}");
        assert!(!alpha.log().contains("primary, protected"), "{}", alpha.log());
        alpha.wait_for("telling why", |status| status.detail.contains("could not go on on node beta"));
        traffic.goes_on();
        // Mended, it protects.
        fs::remove_file(&breaks).unwrap();
        alpha.wait_until(Role::Primary, State::Protected);
        let status = beta
            .wait_for("rehearsed", |status| status.rehearsal.as_ref().is_some_and(|r| r.age_us.is_some()));
        assert_eq!(trouble(&status), None);
        // What was proven once is kept when its host fails later; until it is proven again the pair is degraded.
        fs::write(&breaks, "").unwrap();
        for daemon in [&mut alpha, &mut beta] {
            let status = daemon.wait_for("degraded", |status| status.state == State::Degraded);
            let [lapse] = &status.lapses[..] else { panic!("{status:?}") };
            assert!(lapse.kind == "unfit" && lapse.what.contains("KVM_SET_LAPIC"), "{status:?}");
            assert!(lapse.what.contains("could not go on on beta"), "{status:?}");
        }
        assert!(trouble(&beta.wait_for("up", |_| true)).is_some_and(|why| why.contains("KVM_SET_LAPIC")));
        traffic.goes_on();
        fs::remove_file(&breaks).unwrap();
        alpha.wait_until(Role::Primary, State::Protected);
        let status = beta.wait_until(Role::Backup, State::Protected);
        assert_eq!(trouble(&status), None);
        traffic.goes_on();
        traffic.must_have_lost_nothing();
    });
}

#[test]
fn the_state_is_tried_again_and_again_while_the_vm_works() {
    World::run("the_state_is_tried_again_and_again_while_the_vm_works", |world| {
        let mut pair = Pair::protected_with(world, |config| config.with("replication.rehearsal_s", 1));
        let traffic = Traffic::start();
        let rehearsals = |daemon: &Daemon| {
            let metrics = daemon.ctl(&["metrics"]).stdout;
            let line =
                metrics.lines().find(|line| line.starts_with("ftd_rehearsals_total{")).map(str::to_owned);
            line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0u64)
        };
        eventually("five rehearsals", || (rehearsals(&pair.beta) >= 5).then_some(()), || pair.beta.log());
        pair.wait_protected();
        traffic.goes_on();
        traffic.must_have_lost_nothing();
    });
}
