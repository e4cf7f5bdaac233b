//! Replay mode, and the engine that it needs: the promises of checkpoint mode, kept by executing twice.

use crate::fixture::{Config, Daemon, Engine, Pair, Traffic, World, call};
use ft_checkpoint::wire::message::Mode;
use ft_vm::spec::EngineKind;
use ftd::control::api::{Role, State, Status};
use ftd::exit::DaemonExit;

fn replay(config: Config) -> Config {
    config.with("replication.mode", "replay")
}

fn checkpoints(config: Config) -> Config {
    config.with("replication.mode", "checkpoint")
}

fn on_kvm(config: Config) -> Config {
    config.with("machine.engine", Engine::Kvm.name())
}

#[test]
fn a_vm_that_is_replayed_survives_the_loss_of_its_host_again_and_again() {
    World::run_on(
        Engine::Soft,
        "a_vm_that_is_replayed_survives_the_loss_of_its_host_again_and_again",
        |world| {
            let mut pair = Pair::protected_with(world, replay);
            let traffic = Traffic::start();
            assert_eq!(call("LOAD 200 64 random"), "OK");
            traffic.goes_on();
            pair.alpha.kill();
            let status = pair.beta.wait_until(Role::Primary, State::Solo);
            assert!(status.take_over.is_some(), "{status:?}");
            traffic.goes_on();
            pair.alpha = Daemon::start(world, &pair.alpha_config);
            pair.wait_protected_the_other_way_round();
            traffic.goes_on();
            pair.beta.kill();
            pair.alpha.wait_until(Role::Primary, State::Solo);
            traffic.goes_on();
            traffic.must_have_lost_nothing();
        },
    );
}

#[test]
fn a_replayed_vm_moves_on_request_there_and_back() {
    World::run_on(Engine::Soft, "a_replayed_vm_moves_on_request_there_and_back", |world| {
        let mut pair = Pair::protected_with(world, replay);
        let traffic = Traffic::start();
        let output = pair.alpha.ctl(&["failover", "--yes"]);
        assert_eq!(output.code, 0, "{output:?}");
        pair.wait_protected_the_other_way_round();
        traffic.goes_on();
        let output = pair.beta.ctl(&["failover", "--yes"]);
        assert_eq!(output.code, 0, "{output:?}");
        pair.wait_protected();
        traffic.goes_on();
        traffic.must_have_lost_nothing();
    });
}

#[test]
fn a_lost_backup_of_a_replayed_vm_is_replaced() {
    World::run_on(Engine::Soft, "a_lost_backup_of_a_replayed_vm_is_replaced", |world| {
        let mut pair = Pair::protected_with(world, replay);
        let traffic = Traffic::start();
        pair.beta.kill();
        pair.alpha.wait_until(Role::Primary, State::Solo);
        traffic.goes_on();
        pair.beta = Daemon::start(world, &pair.beta_config);
        pair.wait_protected();
        traffic.goes_on();
        traffic.must_have_lost_nothing();
    });
}

#[test]
fn the_status_of_replay_mode_says_how_far_the_backup_is() {
    World::run_on(Engine::Soft, "the_status_of_replay_mode_says_how_far_the_backup_is", |world| {
        let mut pair = Pair::protected_with(world, replay);
        let traffic = Traffic::start();
        traffic.goes_on();
        let count = |status: &Status| status.replay.as_ref().map_or(0, |replay| replay.count);
        let before = count(&pair.alpha.status().expect("it answers"));
        let status = pair.alpha.wait_for("the log to go on", |status| count(status) > before);
        assert_eq!((status.mode, status.engine), (Mode::Replay, EngineKind::Soft));
        pair.beta.wait_for("the backup to come after", |status| count(status) > before);
        let status = pair.alpha.wait_for("log", |status| {
            status.replay.as_ref().is_some_and(|replay| replay.log_bytes_per_s > 0.0)
        });
        let replay = status.replay.expect("it is replay mode");
        assert_eq!((replay.divergences, replay.last_divergence), (0, None));
        let shown = pair.alpha.ctl(&["status"]);
        assert!(shown.stdout.contains("replay, engine soft"), "{shown:?}");
        traffic.must_have_lost_nothing();
    });
}

#[test]
fn a_backup_that_diverges_is_found_out_and_replaced_by_a_full_copy() {
    const NAME: &str = "a_backup_that_diverges_is_found_out_and_replaced_by_a_full_copy";
    if std::env::var_os("FTD_WRONG").is_none() {
        eprintln!("SKIPPED {NAME}: FTD_WRONG names no ftd built with --features misreplay");
        return;
    }
    World::run_on(Engine::Soft, NAME, |world| {
        let (alpha_config, beta_config) = (replay(Config::alpha(world)), replay(Config::beta(world)));
        let mut alpha = Daemon::start(world, &alpha_config);
        let misreplaying = ["sh", "-c", "shift; exec \"$FTD_WRONG\" \"$@\"", "-"];
        let mut beta = Daemon::start_with(world, &beta_config, &misreplaying, &[]);
        alpha.wait_until(Role::Primary, State::Protected);
        // Its 20th frame is executed wrongly.
        let traffic = Traffic::start();
        let divergences = |status: &Status| status.replay.as_ref().map_or(0, |replay| replay.divergences);
        for (daemon, role) in [(&mut alpha, Role::Primary), (&mut beta, Role::Backup)] {
            let status = daemon.wait_for("the divergence to be found", |status| divergences(status) > 0);
            let last = status.replay.and_then(|replay| replay.last_divergence).expect("it was counted");
            assert!(status.role == role && last.count > 0 && !last.what.is_empty(), "{last:?}");
        }
        alpha.wait_for_log("the backup diverged at instruction");
        // A full copy follows, as often as it diverges again; nobody outside notices.
        alpha.wait_for("another full copy", |status| divergences(status) > 1);
        beta.kill();
        alpha.wait_until(Role::Primary, State::Solo);
        let mut beta = Daemon::start(world, &beta_config);
        alpha.wait_until(Role::Primary, State::Protected);
        traffic.goes_on();
        alpha.kill();
        beta.wait_until(Role::Primary, State::Solo);
        traffic.goes_on();
        traffic.must_have_lost_nothing();
    });
}

#[test]
fn the_engine_in_software_is_protected_by_checkpoints_too() {
    World::run_on(Engine::Soft, "the_engine_in_software_is_protected_by_checkpoints_too", |world| {
        let mut pair = Pair::protected_with(world, checkpoints);
        let traffic = Traffic::start();
        traffic.goes_on();
        pair.alpha.kill();
        pair.beta.wait_until(Role::Primary, State::Solo);
        traffic.goes_on();
        traffic.must_have_lost_nothing();
    });
}

#[test]
fn what_replay_mode_cannot_do_is_refused_by_name() {
    World::run_on(Engine::Soft, "what_replay_mode_cannot_do_is_refused_by_name", |world| {
        let alpha = || Config::alpha(world);
        for (config, says) in [
            (on_kvm(replay(alpha())), "machine.engine = kvm"),
            (alpha().with("machine.vcpus", 2), "machine.vcpus = 2"),
            (replay(alpha()).with("machine.vcpus", 2), "machine.vcpus = 2"),
            (replay(alpha()).with("replay.batch_bytes", 1), "batch_bytes"),
        ] {
            Daemon::start(world, &config).must_fail(DaemonExit::Usage, &[says]);
        }
        assert!(!world.path("arbiter/web.cell").exists(), "the cell says that the VM runs");
    });
}

#[test]
fn a_backup_of_another_mode_ends_and_says_which() {
    World::run_on(Engine::Soft, "a_backup_of_another_mode_ends_and_says_which", |world| {
        let mut alpha = Daemon::start(world, &replay(Config::alpha(world)));
        alpha.wait_until(Role::Primary, State::Solo);
        let mut beta = Daemon::start(world, &checkpoints(Config::beta(world)));
        beta.must_fail(DaemonExit::Peer, &["replication.mode: beta has checkpoint, alpha has replay"]);
        alpha.wait_until(Role::Primary, State::Solo);
    });
}

#[test]
fn a_backup_of_another_engine_ends_and_says_so() {
    World::run_on(Engine::Kvm, "a_backup_of_another_engine_ends_and_says_so", |world| {
        let mut alpha = Daemon::start(world, &Config::alpha(world));
        alpha.wait_until(Role::Primary, State::Solo);
        let soft = Config::beta(world).with("machine.engine", Engine::Soft.name());
        Daemon::start(world, &soft)
            .must_fail(DaemonExit::Peer, &["machine.engine: beta has soft, alpha has kvm"]);
        alpha.wait_until(Role::Primary, State::Solo);
    });
}
