//! Signals: SIGTERM and SIGINT ask the daemon to stop, SIGHUP to read its configuration again.

use super::wish::{Wish, WishError};
use crate::exit::DaemonExit;
use crate::host::Log;
use crate::outlet::Outlet;
use crate::role::{Leave, RequestRefusal};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// A stop that was refused is tried again this often.
const AGAIN: Duration = Duration::from_secs(2);

/// How long a guest has to power off on a host that goes down.
const GOING_DOWN: Duration = Duration::from_secs(30);

/// SIGTERM and SIGINT ask for an orderly stop: a VM moves first. A signal cannot be refused, so a stop that is not
/// possible is tried again until it is, and the log says why not yet. A second SIGINT, from a terminal, ends at once.
pub async fn stop_on_signals(wishes: Outlet<Wish>, log: Log) {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::warn!("cannot handle signals: SIGTERM will end this daemon at once, without moving the VM");
        return;
    };
    tokio::select! {
        _ = term.recv() => tracing::info!("asked to stop by SIGTERM"),
        _ = int.recv() => tracing::info!("asked to stop by SIGINT"),
    }
    tokio::select! {
        () = leave(wishes) => {}
        _ = int.recv() => {
            tracing::warn!("asked to stop a second time: ending at once");
            log.drain();
            std::process::exit(i32::from(DaemonExit::Failure as u8));
        }
    }
}

/// Asks until it is done, or the daemon ends.
async fn leave(wishes: Outlet<Wish>) {
    let mut said = String::new();
    let mut next = Leave::Move;
    loop {
        let vm = std::mem::replace(&mut next, Leave::Move);
        let (done, outcome) = oneshot::channel();
        let reply = Box::new(move |result| drop(done.send(result)));
        if wishes.tell(Wish::Stop { vm, reply }).is_err() {
            return;
        }
        let Ok(Err(why)) = outcome.await else { return };
        // A guest that does not run cannot power off, and its state is not given up because of that.
        let stands_still = matches!(why, WishError::Refused(RequestRefusal::Unsaved(_)));
        let why = why.to_string();
        if !stands_still && tokio::task::spawn_blocking(host_goes_down).await.unwrap_or(false) {
            tracing::error!(
                "this host goes down and the VM cannot move: {why}. Its guest is asked to power off"
            );
            next = Leave::PowerOff { within_us: GOING_DOWN.as_micros() as u64 };
        } else if why != said {
            tracing::error!("cannot stop: {why}. The VM goes on here, and moves as soon as it can");
            said = why;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Whether systemd is taking the host down: a VM that stays here ends with it.
fn host_goes_down() -> bool {
    let state = Command::new("systemctl").arg("is-system-running").output();
    state.is_ok_and(|output| output.stdout.trim_ascii() == b"stopping")
}

/// SIGHUP has `reload` run. Without a handler it would end the daemon, and the VM with it.
pub async fn reload_on_signals(reload: Arc<dyn Fn() + Send + Sync>) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else {
        tracing::warn!("cannot handle SIGHUP: it will end this daemon at once");
        return;
    };
    while hangup.recv().await.is_some() {
        reload();
    }
}
