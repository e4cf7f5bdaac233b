//! Signals: SIGTERM and SIGINT ask the daemon to stop, SIGHUP to read its configuration again.

use super::wish::Wish;
use crate::exit::DaemonExit;
use crate::host::Log;
use crate::outlet::Outlet;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// SIGTERM and SIGINT ask for an orderly stop; a second one does not wait for it.
pub async fn stop_on_signals(wishes: Outlet<Wish>, log: Log) {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::warn!("cannot handle signals: SIGTERM will end this daemon at once, without moving the VM");
        return;
    };
    let mut asked = false;
    loop {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        if std::mem::replace(&mut asked, true) {
            tracing::warn!("asked to stop a second time: ending at once");
            log.drain();
            std::process::exit(i32::from(DaemonExit::Failure as u8));
        }
        tracing::info!("asked to stop by a signal");
        if wishes.tell(Wish::Stop).is_err() {
            tracing::debug!("the daemon is already ending");
        }
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
