//! Tells the network where the VM lives now: when it begins to run on a host, by a boot or a take-over, switches must
//! learn another port for its MAC address, and neighbours must not wait for their caches to expire.
//!
//! RARP for the MAC alone (as hypervisors send after a migration: no address is needed), gratuitous ARP as request
//! and as reply for each IPv4 address (RFC 5227 §3; some stacks listen to one form only), and an unsolicited neighbour
//! advertisement for each IPv6 address (RFC 4861 §7.2.6).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const BROADCAST: [u8; 6] = [0xff; 6];
/// Shortest Ethernet frame, without its checksum.
const FRAME_BYTES_MIN: usize = 60;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_RARP: u16 = 0x8035;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
const RARP_REQUEST: u16 = 3;
const ICMPV6: u8 = 58;

/// The frames that announce one VM. Send them at once when it runs, and a few times more some hundred
/// milliseconds apart, since each may be lost; through the VM's output buffer, not the TAP, so that a replica that may
/// not speak does not announce itself either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    frames: Vec<Vec<u8>>,
}

impl Announcement {
    /// The announcement of a VM with this MAC and these addresses.
    #[must_use]
    pub fn new(mac: [u8; 6], addresses: &[IpAddr]) -> Self {
        let mut frames = vec![arp(ETHERTYPE_RARP, RARP_REQUEST, mac, mac, [Ipv4Addr::UNSPECIFIED; 2])];
        for address in addresses {
            match *address {
                IpAddr::V4(ip) => {
                    frames.push(arp(ETHERTYPE_ARP, ARP_REQUEST, mac, [0; 6], [ip; 2]));
                    frames.push(arp(ETHERTYPE_ARP, ARP_REPLY, mac, BROADCAST, [ip; 2]));
                }
                IpAddr::V6(ip) => frames.push(neighbour_advertisement(mac, ip)),
            }
        }
        Self { frames }
    }

    /// The frames in the order of sending.
    #[must_use]
    pub fn frames(&self) -> &[Vec<u8>] {
        &self.frames
    }
}

fn ethernet(to: [u8; 6], from: [u8; 6], ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(128);
    frame.extend(to);
    frame.extend(from);
    frame.extend(ethertype.to_be_bytes());
    frame
}

/// An ARP or RARP broadcast over Ethernet and IPv4 (RFC 826, RFC 903).
fn arp(ethertype: u16, operation: u16, sender: [u8; 6], target: [u8; 6], ips: [Ipv4Addr; 2]) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, sender, ethertype);
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    frame.extend(sender);
    frame.extend(ips[0].octets());
    frame.extend(target);
    frame.extend(ips[1].octets());
    frame.resize(FRAME_BYTES_MIN.max(frame.len()), 0);
    frame
}

/// To all nodes: this address has that MAC, forget what you knew (override flag).
fn neighbour_advertisement(mac: [u8; 6], ip: Ipv6Addr) -> Vec<u8> {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const ADVERTISEMENT: u8 = 136;
    const OVERRIDE: u8 = 0x20;
    const TARGET_LINK_LAYER_ADDRESS: u8 = 2;
    let mut message = vec![ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
    message.extend(ip.octets());
    message.extend([TARGET_LINK_LAYER_ADDRESS, 1]);
    message.extend(mac);
    let checksum = icmpv6_checksum(ip, ALL_NODES, &message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());

    let mut frame = ethernet([0x33, 0x33, 0, 0, 0, 1], mac, ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((message.len() as u16).to_be_bytes());
    // The hop limit of 255 proves to the receiver that no router forwarded it.
    frame.extend([ICMPV6, 255]);
    frame.extend(ip.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

/// RFC 4443 §2.3: over the pseudo-header and the message with its checksum field zero.
fn icmpv6_checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let mut pseudo = Vec::with_capacity(40 + message.len());
    pseudo.extend(from.octets());
    pseudo.extend(to.octets());
    pseudo.extend((message.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, ICMPV6]);
    pseudo.extend(message);
    let mut sum: u32 = pseudo
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0xaa, 0xbb, 0xcc];

    #[test]
    fn rarp_announces_the_mac_without_any_address() {
        let frames = Announcement::new(MAC, &[]);
        let expected = [
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0xaa, 0xbb, 0xcc, 0x80, 0x35][..],
            &[0, 1, 8, 0, 6, 4, 0, 3, 0x52, 0x54, 0, 0xaa, 0xbb, 0xcc, 0, 0, 0, 0],
            &[0x52, 0x54, 0, 0xaa, 0xbb, 0xcc, 0, 0, 0, 0],
            &[0; 18],
        ]
        .concat();
        assert_eq!(frames.frames(), [expected]);
    }

    #[test]
    fn gratuitous_arp_comes_as_request_and_as_reply() {
        let all = Announcement::new(MAC, &["10.0.0.5".parse().unwrap()]);
        let [_, request, reply] = all.frames() else { panic!("three frames, got {all:?}") };
        let ethernet = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0xaa, 0xbb, 0xcc, 0x08, 0x06];
        let sender = [0x52, 0x54, 0, 0xaa, 0xbb, 0xcc, 10, 0, 0, 5];
        let expected = |operation: u8, target: [u8; 6]| {
            [&ethernet[..], &[0, 1, 8, 0, 6, 4, 0, operation], &sender, &target, &[10, 0, 0, 5], &[0; 18]]
                .concat()
        };
        assert_eq!(*request, expected(1, [0; 6]));
        assert_eq!(*reply, expected(2, [0xff; 6]));
    }

    #[test]
    fn ipv6_is_announced_by_an_advertisement_whose_checksum_verifies() {
        let ip: Ipv6Addr = "fe80::5054:ff:feaa:bbcc".parse().unwrap();
        let all = Announcement::new(MAC, &[ip.into()]);
        let frame = &all.frames()[1];
        assert_eq!(frame.len(), 14 + 40 + 32);
        assert_eq!(&frame[..14], [0x33, 0x33, 0, 0, 0, 1, 0x52, 0x54, 0, 0xaa, 0xbb, 0xcc, 0x86, 0xdd]);
        assert_eq!(&frame[14..22], [0x60, 0, 0, 0, 0, 32, 58, 255]);
        assert_eq!(frame[22..38], ip.octets());
        assert_eq!(&frame[54..56], [136, 0]);
        assert_eq!(frame[58], 0x20);
        assert_eq!(frame[62..78], ip.octets());
        assert_eq!(frame[78..86], [2, 1, 0x52, 0x54, 0, 0xaa, 0xbb, 0xcc]);
        // Summed over a message that carries its checksum, the complement is zero.
        assert_eq!(icmpv6_checksum(ip, "ff02::1".parse().unwrap(), &frame[54..]), 0);
    }
}
