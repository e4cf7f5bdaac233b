//! Replay mode's epochs: the log arrives as it was sent, in order and whole, or an error names the fault and the held
//! state stays.

use crate::support::{self, Backup, FeedError, Primary, frames, stream};
use ft_checkpoint::encoder::LOG_BYTES_MAX;
use ft_checkpoint::receiver::{Limits, ReceiveError};
use ft_checkpoint::wire::frame::PAYLOAD_BYTES_MAX;
use ft_checkpoint::wire::message::{EpochEnd, LogEnd, Mode};
use ft_checkpoint::wire::{FrameError, FrameType, Message, WireSink};

/// A pair in replay mode that has its first checkpoint, and the bytes of the next epoch, which are not sent yet.
fn pair(log: &[u8]) -> (Primary, Backup, Vec<u8>) {
    let mut primary = Primary::new(1, 0);
    let mut backup = Backup::of_mode(Limits::of_memory(4096), Mode::Replay);
    assert_eq!(backup.feed_all(&primary.protect(9)), [1]);
    let next = stream(|out| primary.log(log, out));
    (primary, backup, next)
}

fn refused(backup: &mut Backup, bytes: &[u8]) -> ReceiveError {
    match backup.feed(bytes) {
        (sealed, FeedError::Receive(error)) if sealed.is_empty() => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_log_of_any_length_arrives_as_it_was_sent() {
    for length in [0, 1, 700, 256 << 10, (256 << 10) + 1, 3 << 20] {
        let log: Vec<u8> = (0..length).map(|at: u32| (at / 3) as u8).collect();
        let (mut primary, mut backup, next) = pair(&log);
        let state = backup.receiver.sealed_state().unwrap().to_vec();
        assert_eq!(backup.feed_all(&next), [2]);
        assert_eq!(backup.feed_all(&stream(|out| primary.log(b"more", out))), [3]);
        assert!(backup.log == [&log[..], b"more"].concat(), "{length} bytes");
        assert_eq!(
            backup.receiver.sealed_state().unwrap(),
            state,
            "the machine that executes it has the state"
        );
    }
}

#[test]
fn after_a_reconnect_the_log_goes_on_where_it_was() {
    let (mut primary, mut backup, next) = pair(b"second");
    backup.feed_all(&next);
    primary.log(b"third", &mut support::writer());
    let again = stream(|out| {
        for epoch in primary.owed.resume(2).unwrap() {
            epoch.send(out).unwrap();
        }
    });
    assert_eq!(backup.feed_all(&again), [3]);
    assert_eq!(backup.log, b"secondthird");
}

#[test]
fn a_log_cut_anywhere_is_not_sealed_and_comes_again() {
    let (_, mut backup, next) = pair(b"the log of an epoch");
    for cut in 0..next.len() {
        let (sealed, _) = backup.feed(&next[..cut]);
        assert_eq!((sealed.len(), backup.held_epoch()), (0, Some(1)), "cut at {cut}");
    }
    assert_eq!(backup.feed_all(&next), [2]);
}

#[test]
fn every_flipped_bit_of_a_log_is_refused() {
    let (_, mut backup, next) = pair(b"the log of an epoch");
    let mut damaged = next.clone();
    for bit in 0..8 * next.len() {
        damaged[bit / 8] ^= 1 << (bit % 8);
        let (sealed, end) = backup.feed(&damaged);
        assert_eq!((sealed.len(), backup.held_epoch()), (0, Some(1)), "bit {bit}: {end:?}");
        assert!(!matches!(end, FeedError::Frame(FrameError::Closed)), "bit {bit}");
        damaged[bit / 8] ^= 1 << (bit % 8);
    }
    assert_eq!(backup.feed_all(&next), [2]);
}

#[test]
fn what_is_out_of_place_is_named() {
    let (mut primary, mut backup, next) = pair(b"log");
    let says = |backup: &mut Backup, epoch, messages: &[Message<'_>]| {
        let bytes = stream(|out| messages.iter().for_each(|message| message.write(epoch, out).unwrap()));
        refused(backup, &bytes).to_string()
    };
    let end = Message::LogEnd(LogEnd { digest: 0, stamp_us: 0 }, b"c");
    let page_end = Message::EpochEnd(EpochEnd { digest: 0, stamp_us: 0, samples: Vec::new() });
    let part = vec![0; PAYLOAD_BYTES_MAX];
    for (epoch, messages, what) in [
        (3, vec![end.clone()], "epoch 3 where 2 was due"),
        (1, vec![Message::Log(b"ab")], "epoch 1 where 2 was due"),
        (
            2,
            vec![Message::Log(&part); LOG_BYTES_MAX / PAYLOAD_BYTES_MAX + 1],
            "bytes of log 68157440, at most 67108864",
        ),
        (2, vec![Message::Log(b"ab"), end.clone()], "digest"),
        (2, vec![Message::Log(b"ab"), Message::Pages(b"")], "Pages inside an epoch"),
        (2, vec![Message::Log(b"ab"), page_end.clone()], "EpochEnd inside an epoch"),
        (2, vec![page_end], "EpochEnd outside an epoch"),
    ] {
        let said = says(&mut backup, epoch, &messages);
        assert!(said.contains(what), "{said}");
        assert_eq!(backup.held_epoch(), Some(1));
    }
    // Another log under the same digest, and an epoch that is missing.
    let mut meddled = frames(&next);
    assert_eq!(
        meddled.iter().map(|frame| frame.0).collect::<Vec<_>>(),
        [FrameType::LogEnd],
        "one frame will do"
    );
    *meddled[0].2.last_mut().unwrap() ^= 1;
    let bytes =
        stream(|out| meddled.iter().for_each(|(kind, epoch, p)| out.frame(*kind, *epoch, p).unwrap()));
    assert!(matches!(refused(&mut backup, &bytes), ReceiveError::Digest { epoch: 2, .. }));
    let third = stream(|out| primary.log(b"third", out));
    assert!(matches!(refused(&mut backup, &third), ReceiveError::Epoch { theirs: 3, ours: 2 }));
    // Pages where the log is due: the machine has gone on.
    let checkpoint = stream(|out| primary.checkpoint(out).unwrap());
    assert!(refused(&mut backup, &checkpoint).to_string().contains("EpochBegin where the log is due"));
    assert_eq!(backup.feed_all(&next), [2]);
}

#[test]
fn checkpoint_mode_takes_no_log_and_a_log_needs_its_checkpoint() {
    let (_, _, next) = pair(b"log");
    let mut backup = Backup::unlimited();
    backup.feed_all(&Primary::new(1, 0).protect(9));
    assert!(refused(&mut backup, &next).to_string().contains("LogEnd in checkpoint mode"));
    let mut empty = Backup::of_mode(Limits::of_memory(4096), Mode::Replay);
    assert!(refused(&mut empty, &next).to_string().contains("LogEnd before a checkpoint"));
}
