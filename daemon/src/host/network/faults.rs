//! What is wrong with the way from the VM's card to the network, judged from a list of the host's interfaces.

use super::interfaces::{Interface, Kind};
use crate::config::Mac;
use std::fmt;

/// The way as the configuration has it.
#[derive(Clone, Debug)]
pub struct Cable {
    /// The TAP's name.
    pub tap: String,
    /// The VM's own MAC address.
    pub mac: Mac,
    /// The card's MTU.
    pub mtu: u16,
    /// The interface that leads to the network, if the configuration names it.
    pub uplink: Option<String>,
    /// Whether the VM counts as cut off when this card reaches nobody.
    pub counts: bool,
    /// Whether the card tells the guest so.
    pub tells: bool,
}

/// Something that is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkFault {
    /// There is no TAP.
    Gone {
        /// Its name.
        tap: String,
    },
    /// The TAP has another name than the configuration says.
    Renamed {
        /// The name in the configuration.
        tap: String,
        /// The name that it has.
        now: String,
    },
    /// The TAP, its bridge or the uplink is not up.
    Down {
        /// Which.
        interface: String,
    },
    /// The TAP is a port of no bridge.
    Unbridged {
        /// Its name.
        tap: String,
    },
    /// The uplink that the configuration names does not exist.
    NoUplink {
        /// Its name.
        uplink: String,
    },
    /// No cable is in.
    NoCarrier {
        /// The interfaces that lead to the network.
        uplinks: Vec<String>,
    },
    /// An interface of the host has the VM's address: its bridge keeps the VM's frames to itself.
    SameMac {
        /// The interface.
        interface: String,
        /// The address.
        mac: Mac,
    },
    /// An interface on the way does not carry what the card sends and is sent.
    Narrow {
        /// The TAP, its bridge or an uplink.
        interface: String,
        /// Its MTU.
        mtu: u32,
        /// The card's.
        card_mtu: u16,
    },
    /// Frames longer than the card's are lost between the TAP and its bridge.
    Mtu {
        /// The TAP.
        tap: String,
        /// Its MTU.
        tap_mtu: u32,
        /// The bridge.
        bridge: String,
        /// Its MTU.
        bridge_mtu: u32,
    },
}

impl NetworkFault {
    /// Whether nobody beyond this host reaches the VM because of it.
    #[must_use]
    pub fn cuts_off(&self) -> bool {
        match self {
            Self::Gone { .. }
            | Self::Down { .. }
            | Self::Unbridged { .. }
            | Self::NoUplink { .. }
            | Self::NoCarrier { .. }
            | Self::SameMac { .. } => true,
            Self::Renamed { .. } | Self::Narrow { .. } | Self::Mtu { .. } => false,
        }
    }
}

impl fmt::Display for NetworkFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone { tap } => write!(
                f,
                "there is no TAP {tap}, so no frame reaches the VM or leaves it here (make it: ip tuntap add dev \
                 {tap} mode tap; then put it on its bridge)"
            ),
            Self::Renamed { tap, now } => write!(f, "the TAP {tap} is called {now} now"),
            Self::Down { interface } => {
                write!(f, "{interface} is down (ip link set dev {interface} up)")
            }
            Self::Unbridged { tap } => write!(
                f,
                "the TAP {tap} is on no bridge, so nobody beyond this host reaches the VM here (ip link set dev {tap} \
                 master BRIDGE)"
            ),
            Self::NoUplink { uplink } => {
                write!(f, "there is no interface {uplink}, which machine.net.uplink names")
            }
            Self::NoCarrier { uplinks } => write!(f, "no carrier on {}", uplinks.join(", ")),
            Self::SameMac { interface, mac } => write!(
                f,
                "{interface} on this host has the VM's MAC address {mac}, so the VM's frames end there (give \
                 {interface} another address)"
            ),
            Self::Narrow { interface, mtu, card_mtu } => write!(
                f,
                "the MTU of {interface} is {mtu}, that of the VM's card (machine.net.mtu) is {card_mtu}: its longer \
                 frames are lost there (ip link set dev {interface} mtu {card_mtu}; or a smaller machine.net.mtu, on \
                 both nodes)"
            ),
            Self::Mtu { tap, tap_mtu, bridge, bridge_mtu } => write!(
                f,
                "the MTU of {tap} is {tap_mtu}, that of its bridge {bridge} is {bridge_mtu}: longer frames are lost \
                 between them"
            ),
        }
    }
}

/// Judges. `attached` is the name of the TAP that frames go to, if there is one.
#[must_use]
pub fn faults(cable: &Cable, attached: Option<&str>, interfaces: &[Interface]) -> Vec<NetworkFault> {
    let mut found = Vec::new();
    let named = |name: &str| interfaces.iter().find(|interface| interface.name == name);
    found.extend(
        interfaces
            .iter()
            .filter(|interface| interface.mac == cable.mac.0)
            .map(|interface| NetworkFault::SameMac { interface: interface.name.clone(), mac: cable.mac }),
    );
    let Some(tap) = attached.and_then(named) else {
        found.push(NetworkFault::Gone { tap: cable.tap.clone() });
        return found;
    };
    if tap.name != cable.tap {
        found.push(NetworkFault::Renamed { tap: cable.tap.clone(), now: tap.name.clone() });
    }
    let down = |interface: &Interface| {
        (!interface.is_up).then(|| NetworkFault::Down { interface: interface.name.clone() })
    };
    found.extend(down(tap));
    let bridge = tap.master.and_then(|index| interfaces.iter().find(|interface| interface.index == index));
    let uplinks: Vec<&Interface> = match (&cable.uplink, bridge) {
        (Some(name), _) => match named(name) {
            Some(uplink) => vec![uplink],
            None => {
                found.push(NetworkFault::NoUplink { uplink: name.clone() });
                Vec::new()
            }
        },
        (None, Some(bridge)) => uplinks_of(bridge, interfaces),
        (None, None) => Vec::new(),
    };
    let way = std::iter::once(tap).chain(bridge).chain(uplinks.iter().copied());
    let narrow: Vec<_> = way.filter(|interface| interface.mtu < u32::from(cable.mtu)).collect();
    found.extend(narrow.iter().map(|interface| NetworkFault::Narrow {
        interface: interface.name.clone(),
        mtu: interface.mtu,
        card_mtu: cable.mtu,
    }));
    match bridge {
        Some(bridge) => {
            // Other kinds, Open vSwitch for one, are never up themselves.
            found.extend(down(bridge).filter(|_| bridge.kind == Kind::Bridge));
            if tap.mtu != bridge.mtu && narrow.is_empty() {
                found.push(NetworkFault::Mtu {
                    tap: tap.name.clone(),
                    tap_mtu: tap.mtu,
                    bridge: bridge.name.clone(),
                    bridge_mtu: bridge.mtu,
                });
            }
        }
        None => found.push(NetworkFault::Unbridged { tap: tap.name.clone() }),
    }
    if !uplinks.is_empty() && uplinks.iter().all(|uplink| !uplink.has_carrier) {
        let uplinks = uplinks.iter().map(|uplink| uplink.name.clone()).collect();
        found.push(NetworkFault::NoCarrier { uplinks });
    }
    found
}

/// The ports that lead out of the host: cards, or, where the bridge has none, cables to another namespace. A bridge
/// without either is one that the host itself routes from.
fn uplinks_of<'a>(bridge: &Interface, interfaces: &'a [Interface]) -> Vec<&'a Interface> {
    let ports = |kind| {
        let is_port =
            |interface: &&Interface| interface.master == Some(bridge.index) && interface.kind == kind;
        interfaces.iter().filter(is_port).collect::<Vec<_>>()
    };
    let cards = ports(Kind::Other);
    if cards.is_empty() { ports(Kind::Veth) } else { cards }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 1, 2, 3]);

    fn cable() -> Cable {
        Cable { tap: "vm".into(), mac: MAC, mtu: 1500, uplink: None, counts: true, tells: false }
    }

    fn interface(index: u32, name: &str, kind: Kind, master: Option<u32>) -> Interface {
        let mac = vec![2, 0, 0, 0, 0, index as u8];
        Interface { index, name: name.into(), mac, mtu: 1500, is_up: true, has_carrier: true, master, kind }
    }

    /// A host as it should be: a bridge with a card, the VM's TAP, another VM's and a container's.
    fn host() -> Vec<Interface> {
        vec![
            interface(1, "lo", Kind::Other, None),
            interface(2, "eth0", Kind::Other, Some(3)),
            interface(3, "lan", Kind::Bridge, None),
            interface(4, "vm", Kind::Tap, Some(3)),
            interface(5, "vm2", Kind::Tap, Some(3)),
            interface(6, "box", Kind::Veth, Some(3)),
        ]
    }

    fn found(cable: &Cable, change: impl FnOnce(&mut Vec<Interface>)) -> Vec<NetworkFault> {
        let mut interfaces = host();
        change(&mut interfaces);
        faults(cable, Some("vm"), &interfaces)
    }

    #[test]
    fn each_fault_is_found_and_a_host_as_it_should_be_has_none() {
        assert_eq!(found(&cable(), |_| {}), []);
        assert_eq!(
            found(&cable(), |all| all[3].master = None),
            [NetworkFault::Unbridged { tap: "vm".into() }]
        );
        assert_eq!(
            found(&cable(), |all| all[3].is_up = false),
            [NetworkFault::Down { interface: "vm".into() }]
        );
        assert_eq!(
            found(&cable(), |all| all[2].is_up = false),
            [NetworkFault::Down { interface: "lan".into() }]
        );
        assert_eq!(
            found(&cable(), |all| all[1].has_carrier = false),
            [NetworkFault::NoCarrier { uplinks: vec!["eth0".into()] }],
            "another VM and a container lead nowhere"
        );
        assert_eq!(
            found(&cable(), |all| all[2].mac = MAC.0.to_vec()),
            [NetworkFault::SameMac { interface: "lan".into(), mac: MAC }]
        );
        let mtu =
            NetworkFault::Mtu { tap: "vm".into(), tap_mtu: 1500, bridge: "lan".into(), bridge_mtu: 9000 };
        assert_eq!(found(&cable(), |all| all[2].mtu = 9000), [mtu]);
        assert_eq!(faults(&cable(), None, &host()), [NetworkFault::Gone { tap: "vm".into() }]);
        let renamed = NetworkFault::Renamed { tap: "vm".into(), now: "vm2".into() };
        assert_eq!(faults(&cable(), Some("vm2"), &host()), [renamed]);
    }

    #[test]
    fn an_interface_that_carries_less_than_the_card_sends_is_named() {
        let jumbo = Cable { mtu: 9000, ..cable() };
        let set = |mtus: [(usize, u32); 3]| {
            found(&jumbo, |all| mtus.iter().for_each(|&(index, mtu)| all[index].mtu = mtu))
        };
        let narrow =
            |interface: &str| NetworkFault::Narrow { interface: interface.into(), mtu: 1500, card_mtu: 9000 };
        assert_eq!(set([(1, 9000), (2, 9000), (3, 9000)]), []);
        assert_eq!(set([(1, 9000), (2, 1500), (3, 9198)]), [narrow("lan")]);
        assert_eq!(set([(1, 1500), (2, 9000), (3, 9000)]), [narrow("eth0")]);
        assert_eq!(set([(1, 1500), (2, 1500), (3, 1500)]), ["vm", "lan", "eth0"].map(narrow));
        assert!(!narrow("lan").cuts_off());
    }

    #[test]
    fn the_uplink_is_the_one_named_or_the_bridges_cards_or_else_its_cables() {
        let named = Cable { uplink: Some("eth1".into()), ..cable() };
        assert_eq!(found(&named, |_| {}), [NetworkFault::NoUplink { uplink: "eth1".into() }]);
        let dead = |all: &mut Vec<Interface>| {
            all.push(Interface { has_carrier: false, ..interface(7, "eth1", Kind::Other, None) })
        };
        assert_eq!(found(&named, dead), [NetworkFault::NoCarrier { uplinks: vec!["eth1".into()] }]);
        assert_eq!(
            found(&cable(), |all| {
                all[1].master = None;
                all[5].has_carrier = false;
            }),
            [NetworkFault::NoCarrier { uplinks: vec!["box".into()] }]
        );
        let alone =
            |all: &mut Vec<Interface>| all.retain(|one| !["eth0", "box"].contains(&one.name.as_str()));
        assert_eq!(found(&cable(), alone), [], "the host itself routes");
    }
}
