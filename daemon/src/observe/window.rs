//! The window through which other threads see the executor.

use crate::role::View;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// See the module.
#[derive(Default)]
pub struct Window {
    view: Mutex<Option<View>>,
    peer: Mutex<PeerView>,
    arbiter_silent: AtomicBool,
}

/// The connection to the peer as `status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerView {
    /// Whether there is a connection.
    pub connected: bool,
    /// What the last attempt came to, when there is none.
    pub trouble: Option<String>,
}

impl Window {
    /// The core's view of itself.
    pub fn view(&self) -> Option<View> {
        self.view.lock().clone()
    }

    /// Shows another view; returns the one before.
    pub fn show(&self, view: View) -> Option<View> {
        self.view.lock().replace(view)
    }

    /// The connection to the peer.
    pub fn peer(&self) -> PeerView {
        self.peer.lock().clone()
    }

    /// There is a connection to the peer.
    pub fn show_connected(&self) {
        *self.peer.lock() = PeerView { connected: true, trouble: None };
    }

    /// There is none, and this is what became of the last one, or of the last attempt.
    pub fn show_disconnected(&self, trouble: Option<String>) {
        *self.peer.lock() = PeerView { connected: false, trouble };
    }

    /// A node that asked to pair does not fit. While there is a connection, it disturbs nobody.
    pub fn show_turned_away(&self, why: String) {
        let mut peer = self.peer.lock();
        if !peer.connected {
            peer.trouble = Some(why);
        }
    }

    /// Whether the arbiter answered the last request.
    pub fn is_arbiter_reachable(&self) -> bool {
        !self.arbiter_silent.load(Ordering::Relaxed)
    }

    /// Whether the arbiter answered the request just made.
    pub fn show_arbiter(&self, answered: bool) {
        self.arbiter_silent.store(!answered, Ordering::Relaxed);
    }
}
