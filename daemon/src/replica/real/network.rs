//! The VM's way to the network, here and on the peer's host.

use super::RealHands;
use crate::host::NetworkTrouble;
use crate::keeper::Order;
use crate::role::ConnId;
use ft_checkpoint::wire::Message;
use ft_checkpoint::wire::message::Network;

/// Of the peer's words that people are shown.
const PEER_TEXT_CHARS_MAX: usize = 1000;

impl RealHands {
    /// The VM's way to the network on this host is another.
    pub(super) fn note_network(&mut self, trouble: &NetworkTrouble) {
        match (trouble.is_none(), self.network.trouble.is_empty()) {
            // What is seen first.
            (true, true) => {}
            (true, false) => tracing::info!("the VM's network is well on this host again"),
            (false, _) => tracing::warn!("the VM's network on this host: {trouble}"),
        }
        self.window.show_network(trouble);
        self.order(Order::ShowLinks(trouble.links().to_vec()));
        self.network = Network { is_cut_off: trouble.cuts_off(), trouble: trouble.to_string() };
        for link in self.links.values() {
            link.send(Message::Network(self.network.clone()));
        }
    }

    /// The VM's way to the network on the peer's host, as the peer says; false if it is no peer of ours.
    pub(super) fn note_peer_network(&self, conn: ConnId, network: Network) -> bool {
        if !self.links.contains_key(&conn) {
            return false;
        }
        let text: String =
            network.trouble.chars().filter(|c| !c.is_control()).take(PEER_TEXT_CHARS_MAX).collect();
        let before = self.window.peer_network().what;
        let now = (!text.is_empty()).then_some(text);
        if before != now {
            match &now {
                Some(trouble) => tracing::warn!("the VM's network on the peer's host: {trouble}"),
                None if before.is_some() => {
                    tracing::info!("the VM's network is well on the peer's host again")
                }
                None => {}
            }
            self.window.show_peer_network(now);
        }
        true
    }
}
