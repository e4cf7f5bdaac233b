use super::*;
use proptest::prelude::*;

const ALL_SENDS: Sends = Sends { checksum: true, tso4: true, tso6: true, ecn: true };
const ALL_TAKES: Offloads = Offloads { checksum: true, tso4: true, tso6: true, ecn: true };

/// A TCP segment with so many bytes of payload, behind so many VLAN tags; where its TCP header begins.
fn segment(is_v6: bool, tags: usize, payload: usize) -> (Vec<u8>, u16) {
    let mut frame = vec![2; 12];
    (0..tags).for_each(|_| frame.extend([0x81, 0, 0, 5]));
    if is_v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 6, 64]);
        frame.extend([0xfd; 32]);
    } else {
        frame.extend([8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0]);
        frame.extend([10; 8]);
    }
    let start = frame.len() as u16;
    frame.extend([0; 12]);
    frame.extend([0x80, 0x10]);
    frame.extend([0; 18]);
    frame.extend(vec![7; payload]);
    (frame, start)
}

fn asks(gso_type: u8, csum_start: u16) -> Header {
    Header { flags: NEEDS_CSUM, gso_type, hdr_len: 0, gso_size: 1448, csum_start, csum_offset: 16 }
}

#[test]
fn a_segment_is_told_of_as_it_is_whatever_the_guest_says_of_its_headers() {
    for (is_v6, gso_type) in [(false, GSO_TCPV4), (true, GSO_TCPV6), (false, GSO_TCPV4 | GSO_ECN)] {
        for tags in 0..3 {
            let (frame, start) = segment(is_v6, tags, 60_000);
            let lies = Header { hdr_len: 3, flags: 0xff, ..asks(gso_type, start) };
            let told = Header { hdr_len: start + 32, ..asks(gso_type, start) };
            assert_eq!(lies.outgoing(&frame, ALL_SENDS), Ok(Some(told)), "{is_v6} {tags}");
        }
    }
}

#[test]
fn a_segment_whose_header_does_not_fit_it_is_no_frame() {
    let (frame, start) = segment(false, 0, 3000);
    let good = asks(GSO_TCPV4, start);
    assert!(good.outgoing(&frame, ALL_SENDS).unwrap().is_some());
    let bad = [
        ("another protocol", Header { gso_type: GSO_TCPV6, ..good }),
        ("no checksum", Header { flags: 0, ..good }),
        ("the checksum of something else", Header { csum_offset: 6, ..good }),
        ("TCP begins elsewhere", Header { csum_start: start + 1, ..good }),
        ("beyond the frame", Header { csum_start: u16::MAX, ..good }),
        ("frames of nothing", Header { gso_size: 0, ..good }),
        ("thousands of frames", Header { gso_size: 47, ..good }),
        ("frames that no card takes", Header { gso_size: 9200, ..good }),
    ];
    for (what, header) in bad {
        assert_eq!(header.outgoing(&frame, ALL_SENDS), Ok(None), "{what}");
    }
    let damaged = |at: usize, byte: u8| {
        let mut frame = frame.clone();
        frame[at] = byte;
        good.outgoing(&frame, ALL_SENDS)
    };
    assert_eq!(damaged(23, 17), Ok(None), "UDP");
    assert_eq!(damaged(14, 0x46), Ok(None), "IPv4 options");
    assert_eq!(damaged(usize::from(start) + 12, 0x40), Ok(None), "a TCP header of 16 bytes");
    assert_eq!(good.outgoing(&frame[..usize::from(start) + 32], ALL_SENDS), Ok(None), "no payload");
    assert_eq!(good.outgoing(&segment(false, 0, 66_000).0, ALL_SENDS), Ok(None), "too long");
}

#[test]
fn what_was_not_negotiated_breaks_the_rules() {
    let (frame, start) = segment(false, 0, 1000);
    let (v6, _) = segment(true, 0, 1000);
    for (header, frame, sends) in [
        (Header { gso_type: GSO_NONE, ..asks(0, start) }, &frame, Sends::default()),
        (asks(GSO_TCPV4, start), &frame, Sends { tso4: false, ..ALL_SENDS }),
        (asks(GSO_TCPV6, start + 20), &v6, Sends { tso6: false, ..ALL_SENDS }),
        (asks(GSO_TCPV4 | GSO_ECN, start), &frame, Sends { ecn: false, ..ALL_SENDS }),
        (asks(3, start), &frame, ALL_SENDS),
        (asks(5, start), &frame, ALL_SENDS),
        (asks(GSO_ECN, start), &frame, ALL_SENDS),
    ] {
        assert_eq!(header.outgoing(frame, sends), Err(Malformed::Offload), "{header:?}");
    }
}

#[test]
fn features_without_the_checksum_that_they_require_count_for_nothing() {
    let segments = FEATURES & !(1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_GUEST_CSUM);
    let (sends, takes) = negotiated(segments);
    assert!(!(sends.tso4 || sends.tso6 || takes.tso4 || takes.tso6));
    assert_eq!(negotiated(FEATURES), (ALL_SENDS, ALL_TAKES));
}

#[test]
fn a_driver_gets_only_what_it_takes() {
    let (frame, start) = segment(false, 0, 3000);
    let partial = asks(GSO_NONE, start);
    let whole = asks(GSO_TCPV4, start);
    let only_checksum = Offloads { checksum: true, ..Offloads::default() };
    assert_eq!(partial.incoming(&frame, only_checksum), Some(partial));
    assert_eq!(partial.incoming(&frame, Offloads::default()), None);
    assert_eq!(whole.incoming(&frame, ALL_TAKES), Some(whole));
    assert_eq!(whole.incoming(&frame, only_checksum), None);
    assert_eq!(asks(GSO_TCPV4 | GSO_ECN, start).incoming(&frame, Offloads { ecn: false, ..ALL_TAKES }), None);
    let valid = Header { flags: DATA_VALID, ..Header::default() };
    assert_eq!(valid.incoming(&frame, only_checksum), Some(valid));
    assert_eq!(valid.incoming(&frame, Offloads::default()), Some(Header::default()));
    assert_eq!(Header::default().incoming(&[0; FRAME_BYTES_MAX + 1], ALL_TAKES), None);
}

fn any_header() -> impl Strategy<Value = Header> {
    let gso_type = prop_oneof![Just(0), Just(1), Just(4), Just(0x81), any::<u8>()];
    let start = prop_oneof![Just(34), Just(38), Just(54), any::<u16>()];
    let offset = prop_oneof![Just(16u16), any::<u16>()];
    let header = (any::<u8>(), gso_type, any::<u16>(), any::<u16>(), start, offset);
    header.prop_map(|(flags, gso_type, hdr_len, gso_size, csum_start, csum_offset)| Header {
        flags,
        gso_type,
        hdr_len,
        gso_size,
        csum_start,
        csum_offset,
    })
}

proptest! {
    #[test]
    fn a_header_is_its_bytes(header in any_header(), buffers in any::<u16>()) {
        let bytes = header.bytes(buffers);
        prop_assert_eq!(Header::read(&bytes), header);
        prop_assert_eq!(&bytes[10..], &buffers.to_le_bytes());
    }

    /// Whatever a guest says of whatever frame: what the host is told names places within the frame, and what is to be
    /// cut is cut into frames that a card takes, of which there are not too many.
    #[test]
    fn what_the_host_is_told_fits_the_frame(
        header in any_header(),
        noise in prop::collection::vec(any::<u8>(), 0..200),
        shape in prop::option::of((any::<bool>(), 0..3usize, 0..66_000usize)),
        damage in prop::option::of((0..80usize, any::<u8>())),
    ) {
        let mut frame = shape.map_or(noise, |(is_v6, tags, payload)| segment(is_v6, tags, payload).0);
        if let Some((at, byte)) = damage && at < frame.len() {
            frame[at] = byte;
        }
        let _ = header.outgoing(&frame, Sends::default());
        if let Ok(Some(told)) = header.outgoing(&frame, ALL_SENDS) {
            let (start, offset) = (usize::from(told.csum_start), usize::from(told.csum_offset));
            if told.flags == 0 {
                prop_assert_eq!(told, Header::default());
            } else {
                prop_assert_eq!(told.flags, NEEDS_CSUM);
                prop_assert!(start >= FRAME_BYTES_MIN && start + offset + 2 <= frame.len());
            }
            if told.gso_type == GSO_NONE {
                prop_assert!(frame.len() <= FRAME_BYTES_MAX && told.gso_size == 0);
            } else {
                let headers = usize::from(told.hdr_len);
                prop_assert!(headers > start + offset + 2 && headers < frame.len());
                prop_assert!(headers + usize::from(told.gso_size) <= FRAME_BYTES_MAX);
                prop_assert!((frame.len() - headers).div_ceil(told.gso_size.into()) <= 1400);
            }
        }
        if let Some(told) = header.incoming(&frame, ALL_TAKES) {
            prop_assert!(frame.len() <= SEGMENT_BYTES_MAX);
            prop_assert!(told.flags & NEEDS_CSUM == 0 || told.has_checksum_in(&frame));
        }
        if let Some(told) = header.incoming(&frame, Offloads::default()) {
            prop_assert_eq!((told.flags, told.gso_type), (0, GSO_NONE));
        }
    }
}
