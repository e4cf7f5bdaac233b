//! The header before every frame (virtio 1.2 §5.1.6): what the sender left to be done to it. A checksum may be missing
//! whose place is told, and a TCP segment of up to 64 KiB may have to be cut into frames.
//!
//! What the guest says is compared with the frame itself, and the host is told what was found: a field that matters
//! agrees with the frame, and one that does not is zero. So nothing in the host's kernel depends on a guest's word.

use super::super::Malformed;
use crate::devices::host::{FRAME_BYTES_MAX, NET_HEADER_BYTES, Offloads, SEGMENT_BYTES_MAX};
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

/// All that is about offloads.
pub(super) const FEATURES: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN;

const NEEDS_CSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const DATA_VALID: u8 = VIRTIO_NET_HDR_F_DATA_VALID as u8;
const GSO_NONE: u8 = VIRTIO_NET_HDR_GSO_NONE as u8;
const GSO_TCPV4: u8 = VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const GSO_TCPV6: u8 = VIRTIO_NET_HDR_GSO_TCPV6 as u8;
const GSO_ECN: u8 = VIRTIO_NET_HDR_GSO_ECN as u8;

/// Ethernet header without payload.
const FRAME_BYTES_MIN: usize = 14;
/// The least payload that a frame of a segment is to have: the least that Linux sends itself. A segment must not become
/// tens of thousands of frames.
const GSO_BYTES_MIN: u16 = 48;
/// Where a TCP header has its checksum.
const TCP_CHECKSUM: u16 = 16;

/// What the driver leaves to the device in frames that it sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sends {
    checksum: bool,
    tso4: bool,
    tso6: bool,
    ecn: bool,
}

/// What these negotiated features mean for frames of the guest's, and for frames to it.
pub(super) fn negotiated(features: u64) -> (Sends, Offloads) {
    let has = |bit: u32| features & 1 << bit != 0;
    let (checksum, guest_checksum) = (has(VIRTIO_NET_F_CSUM), has(VIRTIO_NET_F_GUEST_CSUM));
    // Each of the others requires the checksum (virtio 1.2 §5.1.3.1).
    let sends = Sends {
        checksum,
        tso4: checksum && has(VIRTIO_NET_F_HOST_TSO4),
        tso6: checksum && has(VIRTIO_NET_F_HOST_TSO6),
        ecn: has(VIRTIO_NET_F_HOST_ECN),
    };
    let takes = Offloads {
        checksum: guest_checksum,
        tso4: guest_checksum && has(VIRTIO_NET_F_GUEST_TSO4),
        tso6: guest_checksum && has(VIRTIO_NET_F_GUEST_TSO6),
        ecn: has(VIRTIO_NET_F_GUEST_ECN),
    };
    (sends, takes)
}

/// `virtio_net_hdr`, without the number of buffers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Header {
    pub(super) fn read(bytes: &[u8; NET_HEADER_BYTES]) -> Self {
        let &[flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, ..] = bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
        }
    }

    /// With the number of buffers that the frame is in.
    pub(super) fn bytes(self, buffers: u16) -> [u8; NET_HEADER_BYTES] {
        let Self { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset } = self;
        let mut bytes = [0; NET_HEADER_BYTES];
        (bytes[0], bytes[1]) = (flags, gso_type);
        let words = [hdr_len, gso_size, csum_start, csum_offset, buffers];
        for (place, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn needs_checksum(&self) -> bool {
        self.flags & NEEDS_CSUM != 0
    }

    /// Whether the place of the missing checksum lies within the frame, behind its Ethernet header.
    fn has_checksum_in(&self, frame: &[u8]) -> bool {
        let start = usize::from(self.csum_start);
        start >= FRAME_BYTES_MIN && start + usize::from(self.csum_offset) + 2 <= frame.len()
    }

    /// What the host is told of a frame that the guest sends; none if the frame is none that a card sends, or if the
    /// header does not fit it. What was not negotiated breaks the rules.
    pub(super) fn outgoing(self, frame: &[u8], sends: Sends) -> Result<Option<Self>, Malformed> {
        if self.needs_checksum() && !sends.checksum {
            return Err(Malformed::Offload);
        }
        if self.gso_type == GSO_NONE {
            let sound = (FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&frame.len());
            return Ok(match self.needs_checksum() {
                false => sound.then(Self::default),
                true => (sound && self.has_checksum_in(frame)).then(|| {
                    let Self { csum_start, csum_offset, .. } = self;
                    Self { flags: NEEDS_CSUM, csum_start, csum_offset, ..Self::default() }
                }),
            });
        }
        let negotiated = match self.gso_type & !GSO_ECN {
            GSO_TCPV4 => sends.tso4,
            GSO_TCPV6 => sends.tso6,
            _ => false,
        };
        if !negotiated || self.gso_type & GSO_ECN != 0 && !sends.ecn {
            return Err(Malformed::Offload);
        }
        Ok(self.segment(frame))
    }

    /// The header of a TCP segment that is to be cut, if it is one.
    fn segment(self, frame: &[u8]) -> Option<Self> {
        let Self { gso_type, gso_size, csum_start, csum_offset, .. } = self;
        let start = usize::from(csum_start);
        let is_tcp = match gso_type & !GSO_ECN {
            GSO_TCPV4 => tcp_over_ipv4(frame)? == start,
            _ => is_tcp_over_ipv6(frame, start)?,
        };
        let data_offset = frame.get(start + 12)? >> 4;
        let tcp_bytes = usize::from(data_offset) * 4;
        let headers = start + tcp_bytes;
        let sound = is_tcp
            && self.needs_checksum()
            && csum_offset == TCP_CHECKSUM
            && tcp_bytes >= 20
            && headers < frame.len()
            && frame.len() <= SEGMENT_BYTES_MAX
            && gso_size >= GSO_BYTES_MIN
            && headers + usize::from(gso_size) <= FRAME_BYTES_MAX;
        let hdr_len = u16::try_from(headers).ok().filter(|_| sound)?;
        Some(Self { flags: NEEDS_CSUM, gso_type, hdr_len, gso_size, csum_start, csum_offset })
    }

    /// What the guest is told of a frame for it; none if the frame is not for a driver that takes these.
    pub(super) fn incoming(self, frame: &[u8], takes: Offloads) -> Option<Self> {
        if self.needs_checksum() && !(takes.checksum && self.has_checksum_in(frame)) {
            return None;
        }
        let (bytes_max, taken) = match self.gso_type & !GSO_ECN {
            GSO_NONE => (FRAME_BYTES_MAX, self.gso_type == GSO_NONE),
            GSO_TCPV4 => (SEGMENT_BYTES_MAX, takes.tso4),
            GSO_TCPV6 => (SEGMENT_BYTES_MAX, takes.tso6),
            _ => return None,
        };
        if !taken || frame.len() > bytes_max || self.gso_type & GSO_ECN != 0 && !takes.ecn {
            return None;
        }
        // That a checksum was verified is said only to a driver that knows of checksums.
        let known = if takes.checksum { NEEDS_CSUM | DATA_VALID } else { 0 };
        Some(Self { flags: self.flags & known, ..self })
    }
}

/// What Ethernet carries, behind at most two VLAN tags: its protocol and where it begins.
fn payload(frame: &[u8]) -> Option<(u16, usize)> {
    let mut at = 12;
    for _ in 0..3 {
        let protocol = u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]);
        if !matches!(protocol, 0x8100 | 0x88a8) {
            return Some((protocol, at + 2));
        }
        at += 4;
    }
    None
}

/// Where the TCP header of a frame with IPv4 begins.
fn tcp_over_ipv4(frame: &[u8]) -> Option<usize> {
    let (0x0800, ip) = payload(frame)? else { return None };
    let first = *frame.get(ip)?;
    let bytes = usize::from(first & 0xf) * 4;
    let is_tcp = first >> 4 == 4 && bytes >= 20 && *frame.get(ip + 9)? == 6;
    is_tcp.then_some(ip + bytes)
}

/// Whether a frame with IPv6 has its TCP header there: behind the IPv6 header at once, or behind others of IPv6.
fn is_tcp_over_ipv6(frame: &[u8], start: usize) -> Option<bool> {
    let (0x86dd, ip) = payload(frame)? else { return None };
    let behind = ip + 40;
    let next = *frame.get(ip + 6)?;
    Some(frame[ip] >> 4 == 6 && if next == 6 { start == behind } else { start > behind })
}

#[cfg(test)]
mod tests;
