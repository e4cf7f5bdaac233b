//! The network card: frames that no card sends, headers that lie, buffers that are none, and commands to nobody.

use crate::cases::Expected::{NeedsReset, Refused, Served, Survived};
use crate::cases::{Case, NET, deliver, negotiated, receives, started};
use crate::driver::{EVENT_IDX, Piece, Stage, WRITE};
use crate::vm::BUFFERS;
use ft_vm::devices::Delivered;

const RX: usize = 0;
const TX: usize = 1;
const CONTROL: usize = 2;

const CSUM: u64 = 1;
const HOST_TSO4: u64 = 1 << 11;
const MRG_RXBUF: u64 = 1 << 15;
const ANNOUNCE: u64 = 1 << 16 | 1 << 17 | 1 << 21;

/// Transmits these buffers, which begin with this header; the rest is what was there.
fn transmit(s: &mut Stage<'_>, header: &[u8], buffers: &[Piece]) {
    s.vm.poke(BUFFERS, &[0; 128]);
    s.vm.poke(BUFFERS, header);
    s.serve(TX, buffers);
}

/// Transmits 60 bytes behind this header.
fn behind(s: &mut Stage<'_>, header: [u8; 12]) {
    transmit(s, &header, &[(BUFFERS, 12 + 60, 0)]);
}

/// A header: flags, kind of segment, its headers' length and its size, and where the checksum is.
const fn header(flags: u8, kind: u8, [hdr_len, gso_size, start, offset]: [u16; 4]) -> [u8; 12] {
    let [h, g, s, o] =
        [hdr_len.to_le_bytes(), gso_size.to_le_bytes(), start.to_le_bytes(), offset.to_le_bytes()];
    [flags, kind, h[0], h[1], g[0], g[1], s[0], s[1], o[0], o[1], 0, 0]
}

/// Gives the card these receive buffers, each a chain, and has a frame of 60 bytes come in.
fn receive(s: &mut Stage<'_>, chains: &[&[Piece]]) {
    for chain in chains {
        s.offer(RX, chain);
    }
    s.notify(RX);
    // On the deterministic engine it is only taken in; there, what becomes of it is seen in the ring.
    let _ = deliver(s, &[7; 60]);
}

/// Sends a command of so many bytes, with so much room for the answer.
fn command(s: &mut Stage<'_>, bytes: &[u8], more: u32, room: u32) {
    s.vm.poke(BUFFERS, bytes);
    s.vm.poke(BUFFERS + 0x4_0000, &[0xee]);
    let bytes = bytes.len() as u32 + more;
    s.serve(CONTROL, &[(BUFFERS, bytes, 0), (BUFFERS + 0x4_0000, room, WRITE)]);
}

/// Sends a command that is answered so, in one byte.
fn answered(s: &mut Stage<'_>, bytes: &[u8], more: u32, answer: u8) {
    command(s, bytes, more, 1);
    assert_eq!(s.wait_used(CONTROL, 1)[0].1, 1);
    assert_eq!(s.vm.peek(BUFFERS + 0x4_0000, 1), [answer]);
}

pub const CASES: &[Case] = &[
    started("transmit into a buffer", NET, NeedsReset, |s| transmit(s, &[], &[(BUFFERS, 100, WRITE)])),
    started("frame, and a buffer to write", NET, NeedsReset, |s| {
        transmit(s, &[], &[(BUFFERS, 100, 0), (BUFFERS, 1, WRITE)]);
    }),
    started("half a header", NET, NeedsReset, |s| transmit(s, &[], &[(BUFFERS, 11, 0)])),
    started("nothing to transmit", NET, NeedsReset, |s| transmit(s, &[], &[(BUFFERS, 0, 0)])),
    started("header without a frame", NET, Refused, |s| transmit(s, &[], &[(BUFFERS, 12, 0)])),
    started("frame of 13 bytes", NET, Refused, |s| transmit(s, &[], &[(BUFFERS, 12 + 13, 0)])),
    started("frame of 14 bytes", NET, Served, |s| transmit(s, &[], &[(BUFFERS, 12 + 14, 0)])),
    started("longest frame", NET, Served, |s| transmit(s, &[], &[(BUFFERS, 12 + 9216, 0)])),
    started("frame one byte too long", NET, Refused, |s| transmit(s, &[], &[(BUFFERS, 12 + 9217, 0)])),
    started("frame of megabytes", NET, Refused, |s| transmit(s, &[], &[(BUFFERS, 7 << 20, 0)])),
    started("frame in a byte a descriptor", NET, Served, |s| {
        let pieces: [Piece; 7] = std::array::from_fn(|at| (BUFFERS + at as u64, 1, 0));
        transmit(s, &[], &[&pieces[..], &[(BUFFERS + 7, 65, 0)]].concat());
    }),
    started("checksum that was not negotiated", NET, NeedsReset, |s| {
        behind(s, header(1, 0, [0, 0, 34, 16]));
    }),
    started("segment that was not negotiated", NET, NeedsReset, |s| {
        behind(s, header(1, 1, [54, 536, 34, 16]))
    }),
    negotiated("segment of a kind that is none", NET, CSUM | HOST_TSO4, NeedsReset, |s| {
        behind(s, header(1, 0x77, [54, 536, 34, 16]));
    }),
    negotiated("segment over UDP", NET, CSUM | HOST_TSO4, NeedsReset, |s| {
        behind(s, header(1, 3, [54, 536, 34, 16]));
    }),
    negotiated("segment with ECN that was not negotiated", NET, CSUM | HOST_TSO4, NeedsReset, |s| {
        behind(s, header(1, 0x81, [54, 536, 34, 16]));
    }),
    negotiated("segment that is no TCP", NET, CSUM | HOST_TSO4, Refused, |s| {
        behind(s, header(1, 1, [54, 536, 34, 16]));
    }),
    negotiated("segment of pieces of one byte", NET, CSUM | HOST_TSO4, Refused, |s| {
        behind(s, header(1, 1, [54, 1, 34, 16]));
    }),
    negotiated("segment without headers", NET, CSUM | HOST_TSO4, Refused, |s| {
        behind(s, header(1, 1, [0; 4]))
    }),
    negotiated("segment of 70,000 bytes", NET, CSUM | HOST_TSO4, Refused, |s| {
        transmit(s, &header(1, 1, [54, 536, 34, 16]), &[(BUFFERS, 70_000, 0)]);
    }),
    negotiated("checksum behind the frame's end", NET, CSUM, Refused, |s| {
        behind(s, header(1, 0, [0, 0, 50, 9]))
    }),
    negotiated("checksum at 0xffff", NET, CSUM, Refused, |s| behind(s, header(1, 0, [0, 0, 0xffff, 0xffff]))),
    negotiated("checksum in the Ethernet header", NET, CSUM, Refused, |s| {
        behind(s, header(1, 0, [0, 0, 0, 0]))
    }),
    negotiated("checksum whose place is none of TCP's", NET, CSUM, Served, |s| {
        behind(s, header(1, 0, [0xffff, 0xffff, 14, 0]));
    }),
    started("flags that nobody knows, in a frame's header", NET, Served, |s| {
        behind(s, header(0xfe, 0, [1, 2, 3, 4]));
    }),
    negotiated("frames with events, all at once", NET, EVENT_IDX, Served, |s| {
        s.vm.poke(BUFFERS, &[0; 128]);
        for _ in 0..8 {
            s.offer(TX, &[(BUFFERS, 72, 0)]);
        }
        s.notify(TX);
    }),
    started("receive from a buffer", NET, NeedsReset, |s| receive(s, &[&[(BUFFERS, 2048, 0)]])),
    started("receive into a buffer behind one to read", NET, NeedsReset, |s| {
        receive(s, &[&[(BUFFERS, 16, 0), (BUFFERS, 2048, WRITE)]]);
    }),
    started("receive buffer shorter than the frame", NET, Refused, |s| {
        receive(s, &[&[(BUFFERS, 40, WRITE)]]);
        assert_eq!(s.wait_used(RX, 1), [(0, 0)], "given back empty");
        receives(s, &[9; 1000]);
    }),
    started("receive buffer of no bytes", NET, Refused, |s| {
        receive(s, &[&[(BUFFERS, 0, WRITE)]]);
        assert_eq!(s.wait_used(RX, 1), [(0, 0)]);
        receives(s, &[9; 1000]);
    }),
    started("receive buffer shorter than a header", NET, Refused, |s| {
        receive(s, &[&[(BUFFERS, 11, WRITE)]]);
        assert_eq!(s.wait_used(RX, 1), [(0, 0)]);
        receives(s, &[9; 1000]);
    }),
    started("receive buffer in a byte a descriptor", NET, Served, |s| {
        let mut pieces: Vec<Piece> = (0..7).map(|at| (BUFFERS + at, 1, WRITE)).collect();
        pieces.push((BUFFERS + 7, 2000, WRITE));
        receive(s, &[&pieces]);
        assert_eq!(s.wait_used(RX, 1), [(0, 72)]);
    }),
    negotiated("mergeable buffer shorter than a header", NET, MRG_RXBUF, NeedsReset, |s| {
        receive(s, &[&[(BUFFERS, 11, WRITE)], &[(BUFFERS, 2048, WRITE)]]);
    }),
    negotiated("mergeable buffers that hold no frame together", NET, MRG_RXBUF, Refused, |s| {
        // A queue full of them has no room for more.
        for _ in 0..8 {
            s.offer(RX, &[(BUFFERS, 12, WRITE)]);
        }
        s.notify(RX);
        let _ = deliver(s, &[7; 100]);
        assert!(s.wait_used(RX, 8)[..8].iter().all(|used| used.1 == 0));
        receives(s, &[9; 60]);
    }),
    negotiated("mergeable buffers of a few bytes more than a header", NET, MRG_RXBUF, Served, |s| {
        receive(s, &[&[(BUFFERS, 12, WRITE)], &[(BUFFERS + 64, 30, WRITE)], &[(BUFFERS + 128, 30, WRITE)]]);
        assert_eq!(s.wait_used(RX, 3).iter().map(|used| used.1).sum::<u32>(), 72);
        assert_eq!(s.vm.peek(BUFFERS + 10, 2), [3, 0], "the number of buffers");
    }),
    started("receive queue of which every entry is one chain", NET, Survived, |s| {
        let head = s.offer(RX, &[(BUFFERS, 2048, WRITE)]);
        (0..7).for_each(|_| s.offer_head(RX, head));
        s.notify(RX);
        for _ in 0..8 {
            assert_eq!(deliver(s, &[3; 60]), Delivered::Yes);
        }
        assert_eq!(s.wait_used(RX, 8).len(), 8);
    }),
    started("announcement that nobody asked for", NET, Served, |s| answered(s, &[3, 0], 0, 1)),
    negotiated("announcement that was negotiated", NET, ANNOUNCE, Served, |s| answered(s, &[3, 0], 0, 0)),
    negotiated("announcement with more behind it", NET, ANNOUNCE, Served, |s| {
        answered(s, &[3, 0], 60_000, 0)
    }),
    negotiated("announcement of another kind", NET, ANNOUNCE, Served, |s| answered(s, &[3, 1], 0, 1)),
    negotiated("command of no class", NET, ANNOUNCE, Served, |s| answered(s, &[0xff, 0xff], 0, 1)),
    negotiated("command that sets an address", NET, ANNOUNCE, Served, |s| {
        answered(s, &[1, 1, 2, 0, 0, 0, 0, 9], 0, 1)
    }),
    negotiated("command that sets queue pairs", NET, ANNOUNCE, Served, |s| {
        answered(s, &[4, 0, 0xff, 0xff], 0, 1)
    }),
    negotiated("command of megabytes", NET, ANNOUNCE, Served, |s| answered(s, &[0, 0], 7 << 20, 1)),
    negotiated("half a command", NET, ANNOUNCE, NeedsReset, |s| command(s, &[3], 0, 1)),
    negotiated("no command", NET, ANNOUNCE, NeedsReset, |s| command(s, &[], 0, 1)),
    negotiated("command without room for its answer", NET, ANNOUNCE, NeedsReset, |s| {
        command(s, &[3, 0], 0, 0)
    }),
    negotiated("answer without a command", NET, ANNOUNCE, NeedsReset, |s| {
        s.serve(CONTROL, &[(BUFFERS, 64, WRITE)]);
    }),
    negotiated("command with room for a longer answer", NET, ANNOUNCE, Served, |s| {
        command(s, &[3, 0], 0, 4096);
        assert_eq!(s.wait_used(CONTROL, 1)[0].1, 1);
    }),
];
