//! One captured Ethernet frame: enough of the headers to name its kind and its place in a TCP stream.
//!
//! The bytes are untrusted and may be cut short by the capture's snap length; nothing beyond the headers is read.

use std::net::{Ipv4Addr, SocketAddrV4};

use serde::{Deserialize, Serialize};

/// Bytes of a frame that are enough for every header [`parse`] looks at (Ethernet, IPv4 with options, TCP).
pub const SNAP_BYTES: usize = 14 + 60 + 20;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_RARP: u16 = 0x8035;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MacAddress(pub [u8; 6]);

impl std::str::FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            *octet = parts
                .next()
                .filter(|part| part.len() == 2)
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| format!("`{text}` is not a MAC address such as 52:54:00:12:34:56"))?;
        }
        match parts.next() {
            None => Ok(Self(octets)),
            Some(_) => Err(format!("`{text}` has more than six octets")),
        }
    }
}

/// The kind of a frame, as far as the speakers' record tells them apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrameKind {
    /// An ARP request or reply.
    Arp,
    /// An ARP packet whose sender and target address are equal: "I am here now".
    ArpAnnouncement,
    /// Reverse ARP, the announcement of a MAC alone.
    Rarp,
    /// A TCP segment over IPv4.
    Tcp,
    /// Any other IPv4 packet.
    Ipv4,
    /// Any IPv6 packet.
    Ipv6,
    /// Nothing a guest of the tests, or an announcement, should send.
    Other,
}

/// One TCP segment's place in its stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// The VM's port.
    pub local_port: u16,
    /// The other end.
    pub peer: SocketAddrV4,
    /// Sequence number of the first byte.
    pub seq: u32,
    /// Sequence number after the last byte, SYN and FIN counted.
    pub seq_end: u32,
    /// The acknowledgement number, where the segment carries one.
    pub ack: Option<u32>,
    /// It opens a connection.
    pub syn: bool,
    /// It resets one.
    pub rst: bool,
}

/// A frame as far as it was understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EthernetFrame {
    /// Source address.
    pub source: MacAddress,
    /// What it is.
    pub kind: FrameKind,
    /// Set when the frame is a TCP segment whose header was captured whole.
    pub segment: Option<Segment>,
}

/// Reads the headers of a frame; `None` when it is too short to have a source.
pub fn parse(bytes: &[u8]) -> Option<EthernetFrame> {
    let source = MacAddress(bytes.get(6..12)?.try_into().ok()?);
    let payload = bytes.get(14..)?;
    let mut segment = None;
    let kind = match be16(bytes, 12)? {
        ETHERTYPE_ARP if payload.get(14..18).is_some_and(|sender| payload.get(24..28) == Some(sender)) => {
            FrameKind::ArpAnnouncement
        }
        ETHERTYPE_ARP => FrameKind::Arp,
        ETHERTYPE_RARP => FrameKind::Rarp,
        ETHERTYPE_IPV6 => FrameKind::Ipv6,
        ETHERTYPE_IPV4 if payload.get(9) == Some(&6) => {
            segment = parse_segment(payload);
            FrameKind::Tcp
        }
        ETHERTYPE_IPV4 => FrameKind::Ipv4,
        _ => FrameKind::Other,
    };
    Some(EthernetFrame { source, kind, segment })
}

fn parse_segment(ip: &[u8]) -> Option<Segment> {
    let ip_header_bytes = usize::from(ip.first()? & 0x0f) * 4;
    let total_bytes = usize::from(be16(ip, 2)?);
    let fragment_offset = be16(ip, 6)? & 0x1fff;
    if ip_header_bytes < 20 || fragment_offset != 0 {
        return None;
    }
    let destination: [u8; 4] = ip.get(16..20)?.try_into().ok()?;
    let tcp = ip.get(ip_header_bytes..)?;
    if tcp.len() < 20 {
        return None;
    }
    let tcp_header_bytes = usize::from(tcp.get(12)? >> 4) * 4;
    let data_bytes = total_bytes.checked_sub(ip_header_bytes)?.checked_sub(tcp_header_bytes)?;
    let flags = *tcp.get(13)?;
    let (fin, syn, rst, ack) = (flags & 0x01 != 0, flags & 0x02 != 0, flags & 0x04 != 0, flags & 0x10 != 0);
    let seq = be32(tcp, 4)?;
    let length = u32::try_from(data_bytes).ok()? + u32::from(syn) + u32::from(fin);
    Some(Segment {
        local_port: be16(tcp, 0)?,
        peer: SocketAddrV4::new(Ipv4Addr::from(destination), be16(tcp, 2)?),
        seq,
        seq_end: seq.wrapping_add(length),
        ack: if ack { Some(be32(tcp, 8)?) } else { None },
        syn,
        rst,
    })
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Whether sequence number `a` lies before `b` (RFC 9293 §3.4: comparison modulo 2^32).
pub fn seq_before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) > i32::MAX as u32
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) const VM: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 1]);

    pub(crate) fn tcp_frame(flags: u8, seq: u32, ack: u32, data_bytes: u16) -> Vec<u8> {
        let mut bytes = vec![0xff; 6];
        bytes.extend(VM.0);
        bytes.extend(ETHERTYPE_IPV4.to_be_bytes());
        let mut ip = [0; 20];
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&(40 + data_bytes).to_be_bytes());
        ip[9] = 6;
        ip[12..16].copy_from_slice(&[10, 77, 0, 2]);
        ip[16..20].copy_from_slice(&[10, 77, 0, 100]);
        bytes.extend(ip);
        let mut tcp = [0; 20];
        tcp[0..2].copy_from_slice(&7777u16.to_be_bytes());
        tcp[2..4].copy_from_slice(&40000u16.to_be_bytes());
        tcp[4..8].copy_from_slice(&seq.to_be_bytes());
        tcp[8..12].copy_from_slice(&ack.to_be_bytes());
        tcp[12] = 5 << 4;
        tcp[13] = flags;
        bytes.extend(tcp);
        bytes
    }

    fn arp(sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let mut bytes = vec![0xff; 6];
        bytes.extend(VM.0);
        bytes.extend(ETHERTYPE_ARP.to_be_bytes());
        bytes.extend([0, 1, 8, 0, 6, 4, 0, 1]);
        bytes.extend(VM.0);
        bytes.extend(sender);
        bytes.extend([0; 6]);
        bytes.extend(target);
        bytes
    }

    #[test]
    fn a_segment_is_placed_in_its_stream() {
        let frame = parse(&tcp_frame(0x18, u32::MAX, 77, 10)).unwrap();
        assert_eq!((frame.source, frame.kind), (VM, FrameKind::Tcp));
        let segment = frame.segment.unwrap();
        assert_eq!((segment.local_port, segment.peer), (7777, "10.77.0.100:40000".parse().unwrap()));
        assert_eq!((segment.seq, segment.seq_end, segment.ack), (u32::MAX, 9, Some(77)));
    }

    #[test]
    fn syn_counts_as_one_sequence_number() {
        let segment = parse(&tcp_frame(0x12, 5, 6, 0)).unwrap().segment.unwrap();
        assert!(segment.syn);
        assert_eq!(segment.seq_end, 6);
    }

    #[test]
    fn an_announcement_is_told_from_a_question() {
        assert_eq!(parse(&arp([10, 0, 0, 1], [10, 0, 0, 1])).unwrap().kind, FrameKind::ArpAnnouncement);
        assert_eq!(parse(&arp([10, 0, 0, 1], [10, 0, 0, 2])).unwrap().kind, FrameKind::Arp);
    }

    #[test]
    fn a_mac_is_six_octets() {
        assert_eq!("52:54:00:00:00:01".parse(), Ok(VM));
        for wrong in ["", "52:54:00:00:00", "52:54:00:00:00:01:02", "52:54:00:00:00:1", "gg:54:00:00:00:01"] {
            assert!(wrong.parse::<MacAddress>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn sequence_order_survives_the_wrap() {
        assert!(seq_before(u32::MAX, 3));
        assert!(!seq_before(3, u32::MAX));
        assert!(!seq_before(7, 7));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn any_cut_of_a_segment_is_read_without_panic(cut in 0usize..54, flags: u8, data in 0u16..1460) {
            let frame = parse(&tcp_frame(flags, 1, 2, data)[..cut]);
            prop_assert!(frame.is_none_or(|frame| frame.segment.is_none()));
        }
    }
}
