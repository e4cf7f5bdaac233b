//! Moves frames from the TAP into the guest, and tries frames of the guest again that found no room. One thread serves
//! each machine in turn. While there is no machine, incoming frames are lost, as on a cable without a computer. A TAP
//! that is deleted is attached to again when it is back.

use crate::errand::Errand;
use ft_confine::ThreadKind;
use ft_netbuf::{Tap, Waker};
use ft_vm::devices::{Delivered, NetPort, PACKET_BYTES_MAX};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time that a frame waits for a guest without buffers or in a pause. After it the frame is lost, as with any card.
const PATIENCE: Duration = Duration::from_millis(500);

/// Between two attempts to attach to a TAP that was deleted.
const REATTACH_PAUSE: Duration = Duration::from_millis(100);

/// The port of the machine that runs now.
#[derive(Clone, Default)]
pub struct Socket(Arc<Mutex<Option<NetPort>>>);

impl Socket {
    /// Plugs the cable into this machine, or into none.
    pub fn plug(&self, port: Option<NetPort>) {
        *self.0.lock() = port;
    }

    fn port(&self) -> Option<NetPort> {
        self.0.lock().clone()
    }
}

/// Starts the threads; they live as long as the process.
pub fn start(tap: Arc<Tap>, socket: Socket) -> std::io::Result<Waker> {
    let waker = tap.waker();
    // With a capability, which the thread that reads frames has not.
    let of_attacher = Arc::clone(&tap);
    let attach = Errand::start("ftd-attach", move || of_attacher.reattach().is_ok())?;
    std::thread::Builder::new().name("ftd-tap".into()).spawn(move || {
        ft_confine::this_thread(ThreadKind::Frames);
        // A byte more than a frame has: one that is too long is seen to be, and lost, rather than cut.
        let mut buffer = vec![0; PACKET_BYTES_MAX + 1];
        let mut is_lost = false;
        loop {
            match tap.receive(&mut buffer) {
                Ok(Some(length)) => {
                    is_lost = false;
                    if let Some(port) = socket.port() {
                        deliver(&port, &buffer[..length], &socket);
                    }
                }
                Ok(None) => {
                    if let Some(port) = socket.port() {
                        port.resume_transmit();
                    }
                }
                Err(e) => {
                    if !std::mem::replace(&mut is_lost, true) {
                        tracing::warn!(tap = tap.name(), "cannot read frames from the TAP: {e}; trying on");
                    }
                    std::thread::sleep(REATTACH_PAUSE);
                    // As long as this fails nothing is better than before.
                    if attach.run() {
                        is_lost = false;
                        tracing::info!(tap = tap.name(), "attached to the TAP again");
                    }
                }
            }
        }
    })?;
    Ok(waker)
}

fn deliver(port: &NetPort, frame: &[u8], socket: &Socket) {
    let since = Instant::now();
    while matches!(port.deliver(frame), Delivered::NoBuffers | Delivered::Paused) {
        port.resume_transmit();
        if since.elapsed() > PATIENCE || socket.port().is_none() {
            return;
        }
        port.wait_for_buffers(Duration::from_millis(10));
    }
}
