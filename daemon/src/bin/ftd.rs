//! The daemon.

use anyhow::Context;
use clap::{Parser, Subcommand};
use ft_checkpoint::wire::handshake::PROTOCOL;
use ft_checkpoint::wire::message::Identity;
use ftd::arbiter::FileArbiter;
use ftd::config::{Config, OnReset, StartAs};
use ftd::replica::{Parts, Replica, Window, prepare_host};
use ftd::role::{self, Policy};
use ftd::telemetry::Telemetry;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}
#[derive(Subcommand)]
enum Cmd {
    Run { #[arg(long)] config: PathBuf, #[arg(long)] fresh: bool },
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_env_filter("debug").with_writer(std::io::stderr).init();
    let Cmd::Run { config, fresh } = Cli::parse().command;
    let config = Config::load(&config)?;
    let r = &config.replication;
    let (host, _console) = prepare_host(&config)?;
    let listener = std::net::TcpListener::bind(r.listen).context("bind")?;
    let cpu = ft_vm::machine::host_cpu_profile()?;
    let ms = |ms: u64| ms * 1000;
    let parts = Parts {
        policy: Policy {
            node: config.node.to_string(),
            peer: config.peer.node.to_string(),
            start_as: match config.start_as { StartAs::Primary => role::StartAs::Primary, StartAs::Backup => role::StartAs::Backup },
            fresh,
            restart_on_reset: config.machine.on_reset == OnReset::Restart,
            lease_us: ms(r.lease_ms),
            failure_timeout_us: ms(r.failure_timeout_ms),
            takeover_delay_us: ms(r.takeover_delay_ms),
            heartbeat_us: ms(r.heartbeat_ms),
            arbiter_retry_us: 200_000,
            patience_us: 10_000_000,
            nonce: std::process::id() as u64 * 77777,
        },
        pipeline_depth: r.pipeline_depth,
        inflight_bytes: (r.inflight_mib as usize) << 20,
        epoch: Duration::from_millis(r.epoch_ms),
        shadow_bytes: (r.shadow_mib as usize) << 20,
        peer_address: config.peer.address.to_string(),
        listener,
        identity: Identity {
            protocol: PROTOCOL,
            vm: config.vm.to_string(),
            node: config.node.to_string(),
            generation: 0,
            spec: vec![],
            cpu: serde_json::to_vec(&cpu)?,
            features: 0,
        },
        host,
        arbiter: Box::new(FileArbiter::new(&config.arbiter.path, config.vm.as_str())),
        inputs: std::sync::mpsc::channel(),
        window: Arc::new(Window::default()),
        telemetry: Arc::new(Telemetry::default()),
    };
    let t = Arc::clone(&parts.telemetry);
    std::thread::spawn(move || loop {
        std::thread::sleep(Duration::from_secs(1));
        eprintln!("epoch {} acked {} rate {:.0} pause {:?} dirty {:?} enc {:?} ratio {:.1} stop {:?} harv {:?} capt {:?} copy {:?}", t.epoch(), t.acked_epoch(), t.checkpoints_per_s(), t.pause_us.percentiles(), t.dirty_pages.percentiles(), t.encode_us.percentiles(), t.compression_ratio(),t.stop_us.percentiles(),t.harvest_us.percentiles(),t.capture_us.percentiles(),t.copy_us.percentiles());
    });
    let exit = Replica::run(parts)?;
    eprintln!("{exit:?}");
    Ok(())
}
