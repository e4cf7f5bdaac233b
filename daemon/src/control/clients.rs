//! The thread that serves clients of every kind: it reads what they send, and is confined. Whoever accepts a connection
//! gives it to this thread's runtime before anything is read from it.

use ft_confine::ThreadKind;
use std::future::pending;
use std::io;
use tokio::runtime::{Builder, Handle};

/// Starts the thread, which lives as long as the process; its runtime.
pub fn clients_thread() -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let clients = runtime.handle().clone();
    std::thread::Builder::new().name("ftd-clients".into()).spawn(move || {
        ft_confine::this_thread(ThreadKind::Control);
        runtime.block_on(pending::<()>());
    })?;
    Ok(clients)
}
