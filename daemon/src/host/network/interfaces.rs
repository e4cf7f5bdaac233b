//! The interfaces of this host's network namespace, as the kernel lists them over rtnetlink(7). Not from sysfs, which
//! shows the namespace that it was mounted in.

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address; empty if it has none.
    pub mac: Vec<u8>,
    /// Longest packet.
    pub mtu: u32,
    /// Whether the administrator has it up.
    pub is_up: bool,
    /// Whether the cable is in.
    pub has_carrier: bool,
    /// The bridge that it is a port of.
    pub master: Option<u32>,
    /// What it is.
    pub kind: Kind,
}

/// Kinds of interfaces, as far as they matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A bridge of the kernel.
    Bridge,
    /// TUN or TAP: the card of some VM.
    Tap,
    /// One end of a cable in memory, to a container most likely.
    Veth,
    /// A card, a bond, a VLAN.
    Other,
}

/// Lists them.
pub async fn list(handle: &rtnetlink::Handle) -> Result<Vec<Interface>, rtnetlink::Error> {
    handle.link().get().execute().map_ok(interface).try_collect().await
}

fn interface(message: LinkMessage) -> Interface {
    let flags = message.header.flags;
    let mut interface = Interface {
        index: message.header.index,
        name: String::new(),
        mac: Vec::new(),
        mtu: 0,
        is_up: flags.contains(LinkFlags::Up),
        has_carrier: flags.contains(LinkFlags::LowerUp),
        master: None,
        kind: Kind::Other,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name = name,
            LinkAttribute::Address(mac) => interface.mac = mac,
            LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
            LinkAttribute::Controller(index) => interface.master = Some(index),
            LinkAttribute::LinkInfo(infos) => interface.kind = kind(&infos),
            _ => {}
        }
    }
    interface
}

fn kind(infos: &[LinkInfo]) -> Kind {
    let kind = infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    match kind {
        Some(InfoKind::Bridge) => Kind::Bridge,
        Some(InfoKind::Tun) => Kind::Tap,
        Some(InfoKind::Veth) => Kind::Veth,
        _ => Kind::Other,
    }
}
