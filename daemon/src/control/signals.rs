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
/// possible is tried again until it is, and the log says why not yet. When the host goes down, it is tried for as long
/// as the host leaves time; then the process dies with it, and the backup goes on with the VM. Only a VM that nobody
/// else could go on with is asked to power off. A second SIGINT, from a terminal, ends at once.
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
    let mut vm = Leave::Move;
    let mut is_deaf = false;
    loop {
        let (done, outcome) = oneshot::channel();
        let reply = Box::new(move |result| drop(done.send(result)));
        if wishes.tell(Wish::Stop { vm, reply }).is_err() {
            return;
        }
        let Ok(Err(refused)) = outcome.await else { return };
        let state = tokio::task::spawn_blocking(host_goes_down).await.unwrap_or(Ok(false));
        let goes_down = state.unwrap_or_else(|why| {
            if !is_deaf {
                tracing::warn!(
                    "cannot ask systemd whether this host goes down; taking it that it stays: {why}"
                );
                is_deaf = true;
            }
            false
        });
        if goes_down {
            vm = Leave::HostDown { within_us: GOING_DOWN.as_micros() as u64 };
        }
        let line = why_not_yet(&refused, goes_down);
        if line != said {
            tracing::error!("{line}");
            said = line;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// For the log.
fn why_not_yet(refused: &WishError, goes_down: bool) -> String {
    match (goes_down, refused) {
        (true, WishError::Refused(RequestRefusal::WouldEnd)) => {
            "this host goes down, and no backup could go on with the VM: unless one can within two seconds, its guest \
             is asked to power off"
                .into()
        }
        (true, why) => format!(
            "this host goes down and the VM is still here: {why}. The stop is tried again for as long as the host \
             leaves time; then the other host goes on with what it holds"
        ),
        (false, why) => format!("cannot stop: {why}. The VM goes on here, and moves as soon as it can"),
    }
}

/// Whether systemd is taking the host down: a VM that stays here ends with it. An error where systemd cannot be asked.
fn host_goes_down() -> Result<bool, String> {
    let asked = Command::new("systemctl").arg("is-system-running").output().map_err(|e| e.to_string())?;
    let (state, complaint) = (asked.stdout.trim_ascii(), asked.stderr.trim_ascii());
    // It has a word for each state, `offline` where another init has the host; these where systemd is silent.
    match state {
        b"" | b"unknown" => Err(String::from_utf8_lossy(complaint).into_owned()),
        state => Ok(state == b"stopping"),
    }
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
