//! The window through which other threads see the executor. Each view has an age: what nobody renews is old news.

use super::service::Declared;
use crate::host::NetworkTrouble;
use crate::role::View;
use ft_arbiter::majority::MemberRoll;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// See the module.
#[derive(Default)]
pub struct Window {
    view: Mutex<Option<Aged<View>>>,
    peer: Mutex<Aged<PeerView>>,
    network: Mutex<Aged<Option<String>>>,
    peer_network: Mutex<Aged<Option<String>>>,
    arbiter_silent: AtomicBool,
    arbiter_hangs: Arc<AtomicU64>,
    arbiter_members: MemberRoll,
    /// The declared service, once it is another than configured at start.
    declared: Mutex<Option<Declared>>,
}

/// Something, and since when it is so.
#[derive(Clone, Debug)]
pub struct Aged<T> {
    /// It.
    pub what: T,
    since: Instant,
}

impl<T> Aged<T> {
    fn now(what: T) -> Self {
        Self { what, since: Instant::now() }
    }

    /// How long it has been so.
    pub fn age(&self) -> Duration {
        self.since.elapsed()
    }
}

impl<T: Default> Default for Aged<T> {
    fn default() -> Self {
        Self::now(T::default())
    }
}

/// The connection to the peer as `status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerView {
    /// Whether there is a connection.
    pub connected: bool,
    /// Where its other end really is.
    pub from: Option<SocketAddr>,
    /// What the last attempt came to, when there is none.
    pub trouble: Option<String>,
}

impl Window {
    /// The core's view of itself, and how old it is: the executor renews it many times a second.
    pub fn view(&self) -> Option<Aged<View>> {
        self.view.lock().clone()
    }

    /// Shows another view; returns the one before.
    pub fn show(&self, view: View) -> Option<View> {
        self.view.lock().replace(Aged::now(view)).map(|before| before.what)
    }

    /// As if the view had been shown so much earlier.
    #[cfg(test)]
    pub(super) fn age_view(&self, by: Duration) {
        if let Some(shown) = &mut *self.view.lock() {
            shown.since = shown.since.checked_sub(by).expect("a host that has been up for so long");
        }
    }

    /// The connection to the peer, and since when there is, or is not, one.
    pub fn peer(&self) -> Aged<PeerView> {
        self.peer.lock().clone()
    }

    /// There is a connection to the peer.
    pub fn show_connected(&self, from: Option<SocketAddr>) {
        self.show_peer(PeerView { connected: true, from, trouble: None });
    }

    /// There is none, and this is what became of the last one, or of the last attempt.
    pub fn show_disconnected(&self, trouble: Option<String>) {
        self.show_peer(PeerView { connected: false, from: None, trouble });
    }

    fn show_peer(&self, view: PeerView) {
        let mut peer = self.peer.lock();
        let is_same = peer.what.connected == view.connected && peer.what.from == view.from;
        let since = if is_same { peer.since } else { Instant::now() };
        *peer = Aged { what: view, since };
    }

    /// What is wrong with the VM's network on this host, if anything, and since when.
    pub fn network(&self) -> Aged<Option<String>> {
        self.network.lock().clone()
    }

    /// The VM's network on this host is so now.
    pub fn show_network(&self, trouble: &NetworkTrouble) {
        *self.network.lock() = Aged::now((!trouble.is_none()).then(|| trouble.to_string()));
    }

    /// A node that asked to pair does not fit. While there is a connection, it disturbs nobody.
    pub fn show_turned_away(&self, why: String) {
        let mut peer = self.peer.lock();
        if !peer.what.connected {
            peer.what.trouble = Some(why);
        }
    }

    /// What the peer says is wrong with the VM's network on its host, and since when it says so.
    pub fn peer_network(&self) -> Aged<Option<String>> {
        self.peer_network.lock().clone()
    }

    /// The peer says so.
    pub fn show_peer_network(&self, trouble: Option<String>) {
        *self.peer_network.lock() = Aged::now(trouble);
    }

    /// The declared service, if it changed since the start.
    pub fn declared(&self) -> Option<Declared> {
        *self.declared.lock()
    }

    /// Another service is declared.
    pub fn declare(&self, service: Declared) {
        *self.declared.lock() = Some(service);
    }

    /// Whether the arbiter answered the last request.
    pub fn is_arbiter_reachable(&self) -> bool {
        !self.arbiter_silent.load(Ordering::Relaxed)
    }

    /// Calls on the arbiter that were left behind and have not returned.
    pub fn arbiter_hangs(&self) -> &Arc<AtomicU64> {
        &self.arbiter_hangs
    }

    /// How each of several services that keep the cell answers.
    pub fn arbiter_members(&self) -> &MemberRoll {
        &self.arbiter_members
    }

    /// Whether the arbiter answered the request just made.
    pub fn show_arbiter(&self, answered: bool) {
        self.arbiter_silent.store(!answered, Ordering::Relaxed);
    }
}
