//! A stream that is cut, damaged, reordered or made up leaves the backup at its last sealed checkpoint, and is refused
//! by an error that names the damage.

use crate::support::{self, Backup, FeedError, Primary, assert_same_memory, frames, stream, writer};
use ft_checkpoint::bench_support::Noise;
use ft_checkpoint::receiver::{Limits, ReceiveError};
use ft_checkpoint::wire::message::{CopyBegin, EpochBegin};
use ft_checkpoint::wire::{FrameError, FrameReader, FrameType, Message, WireSink};

/// A pair at its first sealed checkpoint, and the stream of the next one, which is small but has every part.
fn pair() -> (Primary, Backup, Vec<u8>) {
    let mut primary = Primary::new(1, 16 << 20);
    let mut backup = Backup::unlimited();
    primary.state = vec![3; 5000];
    primary.write(2, &[1; 4096]);
    primary.write(30, &[7; 4096]);
    backup.feed_all(&primary.protect(9));
    // A delta, a new page, a zero one and one that is the same.
    let mut touched = [1; 4096];
    touched[70] = 2;
    primary.write(2, &touched);
    primary.write(5, &[9; 4096]);
    primary.write(9, &[0; 4096]);
    primary.write(30, &[7; 4096]);
    primary.state[4000] = 9;
    let next = stream(|out| primary.checkpoint(out).unwrap());
    let kinds: Vec<_> = frames(&next).iter().map(|frame| frame.0).collect();
    assert_eq!(kinds, [FrameType::EpochBegin, FrameType::Pages, FrameType::State, FrameType::EpochEnd]);
    (primary, backup, next)
}

#[test]
fn an_epoch_cut_at_any_byte_leaves_the_last_sealed_one() {
    let (primary, mut backup, next) = pair();
    for cut in 0..next.len() {
        let (sealed, end) = backup.feed(&next[..cut]);
        assert_eq!((sealed.len(), backup.held_epoch()), (0, Some(1)), "cut at {cut}");
        assert!(
            matches!(end, FeedError::Frame(FrameError::Closed | FrameError::Truncated { .. })),
            "cut at {cut}: {end:?}"
        );
    }
    assert_eq!(backup.feed_all(&next), [2], "and the whole of it still fits");
    let mut image = backup.receiver.into_sealed().ok().unwrap();
    image.apply_all();
    assert!(image.state == primary.state);
    assert_same_memory(&primary.view, image.image.view(), "after all the cuts");
}

#[test]
fn a_copy_cut_at_any_byte_leaves_nothing() {
    let mut primary = Primary::new(1, 0);
    let copy = primary.protect(9);
    let mut backup = Backup::unlimited();
    // Every byte of the first frames, a sample of the pages' (which decode only when all are there) and of the epoch.
    let border = copy.len() - 400;
    for cut in (0..copy.len()).filter(|cut| *cut < 200 || cut % 1009 == 0 || (*cut > border && cut % 40 == 0))
    {
        let (sealed, _) = backup.feed(&copy[..cut]);
        assert_eq!((sealed.len(), backup.held_epoch()), (0, None), "cut at {cut}");
    }
    assert!(backup.receiver.into_sealed().is_err(), "nothing to take over with");
    let mut backup = Backup::unlimited();
    assert_eq!(backup.feed_all(&copy), [1]);
}

#[test]
fn every_flipped_bit_is_refused_by_name() {
    let (_, mut backup, next) = pair();
    let mut damaged = next.clone();
    for at in 0..next.len() {
        for bit in 0..8 {
            damaged[at] ^= 1 << bit;
            let (sealed, end) = backup.feed(&damaged);
            assert_eq!((sealed.len(), backup.held_epoch()), (0, Some(1)), "bit {bit} of byte {at}");
            let FeedError::Frame(error) = end else { panic!("bit {bit} of byte {at}: {end:?}") };
            assert!(
                matches!(
                    error,
                    FrameError::BadMagic(_)
                        | FrameError::Version { .. }
                        | FrameError::TooLong { .. }
                        | FrameError::BadCrc { .. }
                        | FrameError::Truncated { .. }
                ),
                "bit {bit} of byte {at}: {error}"
            );
            damaged[at] ^= 1 << bit;
        }
    }
    assert_eq!(backup.feed_all(&next), [2]);
}

#[test]
fn a_missing_repeated_or_reordered_frame_is_refused() {
    let (_, mut backup, next) = pair();
    let mut pieces = Vec::new();
    let mut rest = &next[..];
    while !rest.is_empty() {
        let length = 48 + u32::from_le_bytes(rest[40..44].try_into().unwrap()) as usize;
        let (piece, after) = rest.split_at(length);
        pieces.push(piece);
        rest = after;
    }
    let n = pieces.len();
    let all = 0..n;
    let without = |gone| all.clone().filter(move |i| *i != gone).collect::<Vec<_>>();
    let twice = |again| all.clone().flat_map(move |i| vec![i; 1 + usize::from(i == again)]).collect();
    let swapped = |i: usize| {
        let mut order: Vec<usize> = all.clone().collect();
        order.swap(i, i + 1);
        order
    };
    let orders = (0..n - 1).map(without).chain((0..n - 1).map(twice)).chain((0..n - 1).map(swapped));
    for order in orders {
        let bytes: Vec<u8> = order.iter().flat_map(|i| pieces[*i]).copied().collect();
        let (sealed, end) = backup.feed(&bytes);
        assert!(matches!(end, FeedError::Frame(FrameError::BadSequence { .. })), "{order:?}: {end:?}");
        assert_eq!((sealed.len(), backup.held_epoch()), (0, Some(1)));
    }
}

/// The frame layer's checks are passed and the content is wrong: a mistake of the sender's, or damage before its CRC.
#[test]
fn wrong_content_in_good_frames_is_never_sealed() {
    let (mut primary, mut backup, next) = pair();
    let good = frames(&next);
    let mut noise = Noise::new(4);
    let mut refused = 0;
    for _ in 0..1200 {
        let mut bad = good.clone();
        let frame = noise.below(bad.len());
        let payload = &mut bad[frame].2;
        match noise.below(4) {
            0 => payload.truncate(noise.below(payload.len())),
            1 => payload.push(noise.next_u64() as u8),
            _ => {
                let at = noise.below(payload.len());
                payload[at] ^= 1 << noise.below(8);
            }
        }
        let bytes = stream(|out| {
            for (kind, epoch, payload) in &bad {
                out.frame(*kind, *epoch, payload).unwrap();
            }
        });
        backup.receiver.connected(support::GENERATION);
        let mut reader = FrameReader::new(&bytes[..]);
        let mut error = None;
        while let (Ok(frame), None) = (reader.read(), &error) {
            error = backup.receiver.on_frame(&frame).err();
        }
        if error.is_some() {
            refused += 1;
            assert_eq!(backup.held_epoch(), Some(1));
        } else {
            // The damage happened to decode to the same (or was in the stamp).
            let mut sealed = backup.receiver.into_sealed().ok().unwrap();
            sealed.apply_all();
            assert!(sealed.state == primary.state);
            assert_same_memory(&primary.view, sealed.image.view(), "though it was sealed");
            (primary, backup, _) = pair();
        }
    }
    assert!(refused > 1000, "{refused}");
}

#[test]
fn what_does_not_fit_the_pairing_is_refused_by_name() {
    fn refusal(backup: &mut Backup, send: impl FnOnce(&mut dyn FnMut(u64, Message<'_>))) -> ReceiveError {
        let bytes = stream(|out| send(&mut |epoch, message| message.write(epoch, out).unwrap()));
        match backup.feed(&bytes).1 {
            FeedError::Receive(error) => error,
            FeedError::Frame(error) => panic!("{error}"),
        }
    }
    let begin = |pairing, pages, state_bytes| Message::EpochBegin(EpochBegin { pairing, pages, state_bytes });
    let (_, mut backup, _) = pair();
    let b = &mut backup;
    assert!(matches!(refusal(b, |s| s(2, begin(8, 1, 1))), ReceiveError::Pairing { theirs: 8, ours: 9 }));
    assert!(matches!(refusal(b, |s| s(1, begin(9, 1, 1))), ReceiveError::Epoch { theirs: 1, ours: 2 }));
    assert!(matches!(refusal(b, |s| s(3, begin(9, 1, 1))), ReceiveError::Epoch { theirs: 3, ours: 2 }));
    assert!(matches!(refusal(b, |s| s(2, begin(9, 5000, 1))), ReceiveError::TooMuch { max: 4096, .. }));
    assert!(matches!(refusal(b, |s| s(2, begin(9, 1, u32::MAX))), ReceiveError::TooMuch { .. }));
    assert!(matches!(refusal(b, |s| s(2, Message::Pages(&[]))), ReceiveError::Unexpected { .. }));
    assert!(matches!(refusal(b, |s| s(0, Message::CopyPages(&[]))), ReceiveError::Unexpected { .. }));
    let zero_page = |page: u32| [&page.to_le_bytes()[..], &[0, 0]].concat();
    let pages = |b: &mut Backup, batch: Vec<u8>| {
        refusal(b, |s| {
            s(2, begin(9, 2, 0));
            s(2, Message::Pages(&batch));
        })
    };
    assert!(matches!(pages(b, zero_page(4096)), ReceiveError::PageIndex { page: 4096, .. }));
    assert!(matches!(pages(b, zero_page(7).repeat(2)), ReceiveError::PageIndex { page: 7, .. }));
    let three = [zero_page(1), zero_page(2), zero_page(3)].concat();
    assert!(matches!(pages(b, three), ReceiveError::Count { received: 3, announced: 2, .. }));
    let inside = refusal(b, |s| {
        s(2, begin(9, 0, 0));
        s(2, begin(9, 0, 0));
    });
    assert!(matches!(inside, ReceiveError::Unexpected { when: "inside an epoch", .. }));
    let raised = refusal(b, |s| s(0, Message::Paired { generation: 99 }));
    assert!(matches!(raised, ReceiveError::Generation { theirs: 99, .. }), "not its frame's generation");
    assert_eq!(b.held_epoch(), Some(1));

    let other_size = Message::CopyBegin(CopyBegin { pairing: 1, total_pages: 9 });
    assert!(matches!(refusal(b, |s| s(0, other_size)), ReceiveError::MemorySize { theirs: 9, ours: 4096 }));
    assert_eq!(b.held_epoch(), Some(1), "a copy that cannot be does not cost what is held");
    let early = refusal(b, |s| {
        s(0, Message::CopyBegin(CopyBegin { pairing: 1, total_pages: 4096 }));
        s(0, Message::CopyPages(&zero_page(0)));
        s(1, begin(1, 0, 0));
    });
    assert!(matches!(early, ReceiveError::CopyIncomplete { received: 1, total: 4096 }));
    assert_eq!(b.held_epoch(), None);
}

#[test]
fn a_delta_against_what_was_never_sent_is_refused() {
    let mut backup = Backup::unlimited();
    let same_page_5 = [5, 0, 0, 0, 0, 1 << 5];
    let bytes = stream(|out| {
        Message::CopyBegin(CopyBegin { pairing: 1, total_pages: 4096 }).write(0, out).unwrap();
        Message::CopyPages(&same_page_5).write(0, out).unwrap();
    });
    assert!(matches!(backup.feed(&bytes).1, FeedError::Receive(ReceiveError::Page { epoch: 0, .. })));
}

#[test]
fn a_generation_rises_only_with_the_message_that_says_so() {
    let (mut primary, mut backup, next) = pair();
    let good = frames(&next);
    let send = |announced: bool| {
        let mut out = writer();
        out.set_generation(support::GENERATION + 1);
        if announced {
            Message::Paired { generation: support::GENERATION + 1 }.write(0, &mut out).unwrap();
        }
        for (kind, epoch, payload) in &good {
            out.frame(*kind, *epoch, payload).unwrap();
        }
        out.flush().unwrap();
        out.into_inner()
    };
    let (_, end) = backup.feed(&send(false));
    assert!(
        matches!(end, FeedError::Receive(ReceiveError::Generation { theirs: 4, ours: 3, .. })),
        "{end:?}"
    );
    assert_eq!(backup.feed_all(&send(true)), [2]);
    primary.owed.ack(2).unwrap();
}

#[test]
fn the_bound_on_a_checkpoint_holds() {
    let mut primary = Primary::new(1, 0);
    let mut backup = Backup::new(Limits { epoch_pages: 10, backlog_pages: 10 });
    backup.feed_all(&primary.protect(9));
    primary.dirty.extend(0..11);
    let (_, end) = backup.feed(&stream(|out| primary.checkpoint(out).unwrap()));
    assert!(matches!(
        end,
        FeedError::Receive(ReceiveError::TooMuch { what: "pages", announced: 11, max: 10, .. })
    ));
}
