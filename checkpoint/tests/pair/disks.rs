//! The backup's disk at a seal is the primary's at that epoch's end, whatever was lost and sent again on the way, and
//! what is no change of its disks is refused by name.

use crate::support::{GENERATION, Primary, RAM_BYTES, SentFrame, VM, frames, stream, writer};
use ft_checkpoint::bench_support::Noise;
use ft_checkpoint::encoder::EncodedCheckpoint;
use ft_checkpoint::receiver::{Limits, ReceiveError, Received, Receiver};
use ft_checkpoint::wire::disk::{self, DATA_BYTES_MAX};
use ft_checkpoint::wire::frame::NoSink;
use ft_checkpoint::wire::message::{Compare, CopyBegin, Mode};
use ft_checkpoint::wire::{FrameError, FrameReader, FrameType, Message, SharedPayload, WireSink};
use ft_mirror::{Change, Extent, Journal, MemoryMedium, SealedEpoch, Space};
use ft_ram::GuestRam;
use std::convert::Infallible;
use std::sync::Arc;

const DISK_BYTES: u64 = 2 << 20;
const PAIRING: u64 = 9;

fn carry_out(change: &Change<'_>, image: &mut [u8]) {
    let Extent { bytes, .. } = change.extent();
    let there = &mut image[bytes.start as usize..bytes.end as usize];
    match change {
        Change::Write { data, .. } => there.copy_from_slice(data),
        Change::Zeroes { .. } | Change::Discard { .. } => there.fill(0),
    }
}

/// A primary with a disk.
struct Writer {
    primary: Primary,
    image: Vec<u8>,
    /// As of each epoch.
    images: Vec<(u64, Vec<u8>)>,
    open: Vec<SharedPayload>,
}

impl Writer {
    fn new(seed: u64) -> Self {
        let image = vec![0; DISK_BYTES as usize];
        Self { primary: Primary::new(seed, 0), image, images: Vec::new(), open: Vec::new() }
    }

    fn protect(&mut self) -> Vec<u8> {
        let bytes = self.primary.protect(PAIRING);
        self.images.push((self.primary.epoch, self.image.clone()));
        bytes
    }

    fn change(&mut self, change: &Change<'_>, out: &mut impl WireSink) {
        carry_out(change, &mut self.image);
        for piece in disk::pieces(change) {
            let payload = Arc::new(disk::encode(&piece));
            self.primary.encoder.change(&payload);
            out.shared(FrameType::Disk, self.primary.epoch + 1, &payload).unwrap();
            self.open.push(payload);
        }
    }

    /// Changes of all kinds and lengths.
    fn run(&mut self, changes: usize, out: &mut impl WireSink) {
        for _ in 0..changes {
            let noise = &mut self.primary.noise;
            let longest = [2, 2, 40, 1200][noise.below(4)];
            let sectors = 1 + noise.below(longest);
            let at = 512 * noise.below(DISK_BYTES as usize / 512 + 1 - sectors) as u64;
            let (byte, kind) = (noise.next_u64() as u8, noise.below(5));
            let extent = Extent { disk: 1, bytes: at..at + 512 * sectors as u64 };
            match kind {
                0 => self.change(&Change::Zeroes { extent, space: Space::Keep }, out),
                1 => self.change(&Change::Zeroes { extent, space: Space::May }, out),
                _ => self.change(&Change::write(1, at, &vec![byte; 512 * sectors]), out),
            }
        }
    }

    fn checkpoint(&mut self, out: &mut impl WireSink) {
        let mut reuse = EncodedCheckpoint::default();
        reuse.ahead(std::mem::take(&mut self.open));
        self.primary.checkpoint_into(reuse, out).unwrap();
        self.images.push((self.primary.epoch, self.image.clone()));
    }

    fn epoch(&mut self, changes: usize) -> Vec<u8> {
        stream(|out| {
            self.run(changes, out);
            self.checkpoint(out);
        })
    }
}

/// A backup with its image, and the journal before it.
struct Mirror {
    receiver: Receiver,
    journal: Journal<MemoryMedium>,
    image: Vec<u8>,
    taken: usize,
}

#[derive(Debug)]
enum End {
    Cut(FrameError),
    Refused(ReceiveError),
}

impl Mirror {
    fn new() -> Self {
        Self::of_mode(Mode::Checkpoint)
    }

    fn of_mode(mode: Mode) -> Self {
        let view = GuestRam::new(RAM_BYTES).unwrap().view().unwrap();
        let receiver = Receiver::of_mode(view, Limits::of_memory(4096), mode).with_disks(vec![0, DISK_BYTES]);
        let journal = Journal::create(MemoryMedium::new(16 << 20), 1).unwrap();
        Self { receiver, journal, image: vec![0; DISK_BYTES as usize], taken: 0 }
    }

    fn feed(&mut self, bytes: &[u8]) -> (Vec<u64>, End) {
        let mut reader = FrameReader::new(bytes);
        reader.expect(VM, GENERATION);
        self.receiver.connected(GENERATION);
        self.journal.drop_unsealed().unwrap();
        let mut sealed = Vec::new();
        loop {
            let frame = match reader.read() {
                Ok(frame) => frame,
                Err(error) => return (sealed, End::Cut(error)),
            };
            match self.receiver.on_frame(&frame) {
                Ok(Received::Change(change)) => {
                    self.taken += 1;
                    self.journal.append(&change).unwrap();
                }
                Ok(Received::Sealed { pairing, epoch, .. }) => {
                    self.journal.seal(SealedEpoch { pairing, epoch }).unwrap();
                    sealed.push(epoch);
                }
                Ok(_) => {}
                Err(error) => return (sealed, End::Refused(error)),
            }
        }
    }

    fn feed_all(&mut self, bytes: &[u8]) -> Vec<u64> {
        let (sealed, end) = self.feed(bytes);
        assert!(matches!(end, End::Cut(FrameError::Closed)), "{end:?}");
        sealed
    }

    fn refuses(&mut self, messages: &[(u64, Message<'_>)]) -> String {
        let bytes =
            stream(|out| messages.iter().for_each(|(epoch, message)| message.write(*epoch, out).unwrap()));
        match self.feed(&bytes) {
            (sealed, End::Refused(error)) if sealed.is_empty() => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    /// The image as a take-over finds it.
    fn carried_out(&mut self) -> &[u8] {
        self.journal.drop_unsealed().unwrap();
        self.journal.sync().unwrap();
        let image = &mut self.image;
        let into = |change: &Change<'_>| -> Result<(), Infallible> {
            carry_out(change, image);
            Ok(())
        };
        self.journal.apply(u64::MAX, into).unwrap();
        self.journal.release().unwrap();
        &self.image
    }
}

fn pair(seed: u64) -> (Writer, Mirror) {
    let (mut writer, mut mirror) = (Writer::new(seed), Mirror::new());
    assert_eq!(mirror.feed_all(&writer.protect()), [1]);
    (writer, mirror)
}

fn history(seed: u64) {
    let mut noise = Noise::new(seed);
    let (mut writer, mut mirror) = pair(seed);
    for _ in 0..15 {
        writer.primary.run(10, 100);
        let changes = noise.below(25);
        // What the connection takes is cut somewhere, or the epoch is made while there is none.
        let bytes = match noise.below(3) {
            0 => {
                writer.run(changes, &mut NoSink);
                writer.checkpoint(&mut NoSink);
                Vec::new()
            }
            1 => writer.epoch(changes),
            _ => {
                let whole = writer.epoch(changes);
                whole[..noise.below(whole.len() + 1)].to_vec()
            }
        };
        if writer.primary.owed.in_flight() == 1 {
            mirror.feed(&bytes);
        }
        let held = mirror.receiver.held().unwrap().epoch;
        let lacking = writer.primary.owed.resume(held).unwrap();
        if noise.below(3) != 0 {
            let again = stream(|out| lacking.iter().for_each(|checkpoint| checkpoint.send(out).unwrap()));
            let end = if noise.below(3) == 0 { noise.below(again.len() + 1) } else { again.len() };
            mirror.feed(&again[..end]);
        }
        let held = mirror.receiver.held().unwrap().epoch;
        let (_, image) = writer.images.iter().find(|(epoch, _)| *epoch == held).unwrap();
        assert!(mirror.carried_out() == image, "seed {seed}, epoch {held}");
    }
}

#[test]
fn the_disk_is_that_of_the_last_seal_whatever_is_lost() {
    (0..10).for_each(history);
}

#[test]
fn an_epoch_with_changes_cut_at_any_frame_and_byte_leaves_the_last_seal() {
    let (mut writer, mut mirror) = pair(3);
    let before = writer.image.clone();
    let next = stream(|out| {
        writer.change(&Change::write(1, 4096, &[7; 1024]), out);
        writer.change(&Change::Zeroes { extent: Extent { disk: 1, bytes: 0..512 }, space: Space::May }, out);
        writer.checkpoint(out);
    });
    let kinds: Vec<_> = frames(&next).iter().map(|frame| frame.0).collect();
    assert_eq!(kinds[..3], [FrameType::Disk, FrameType::Disk, FrameType::EpochBegin]);
    for cut in 0..next.len() {
        let (sealed, _) = mirror.feed(&next[..cut]);
        assert!(sealed.is_empty(), "cut at {cut}");
    }
    assert!(mirror.carried_out() == before);
    mirror.taken = 0;
    assert_eq!(mirror.feed_all(&next), [2]);
    assert_eq!(mirror.taken, 2);
    assert!(mirror.carried_out() == writer.image);
}

#[test]
fn a_change_that_is_lost_swapped_or_another_is_found_by_the_digest() {
    let (mut writer, mut mirror) = pair(4);
    let next = stream(|out| {
        writer.change(&Change::write(1, 0, &[1; 512]), out);
        writer.change(&Change::write(1, 512, &[2; 512]), out);
        writer.checkpoint(out);
    });
    let good = frames(&next);
    let damage: [fn(&mut Vec<SentFrame>); 5] = [
        |frames| drop(frames.remove(0)),
        |frames| frames.swap(0, 1),
        |frames| frames.insert(0, frames[0].clone()),
        |frames| frames[1].2[30] ^= 1,
        |frames| frames[0].2[5] = 2,
    ];
    for damage in damage {
        let mut bad = good.clone();
        damage(&mut bad);
        let mut out = writer_of(&bad);
        let (sealed, end) = mirror.feed(&std::mem::take(&mut out));
        assert!(sealed.is_empty(), "{end:?}");
        let End::Refused(ReceiveError::Digest { epoch: 2, .. } | ReceiveError::Base { epoch: 2, .. }) = end
        else {
            panic!("{end:?}")
        };
    }
    assert_eq!(mirror.feed_all(&next), [2]);
    assert!(mirror.carried_out() == writer.image);
}

fn writer_of(frames: &[SentFrame]) -> Vec<u8> {
    let mut out = writer();
    frames.iter().for_each(|(kind, epoch, payload)| out.frame(*kind, *epoch, payload).unwrap());
    out.flush().unwrap();
    out.into_inner()
}

#[test]
fn what_is_no_change_of_these_disks_is_refused_by_name() {
    let (_, mut mirror) = pair(5);
    let data = vec![0; 512];
    let at = |disk, offset| Message::Disk(Change::write(disk, offset, &data));
    let zeroes =
        |bytes| Message::Disk(Change::Zeroes { extent: Extent { disk: 1, bytes }, space: Space::Keep });
    for (epoch, message, what) in [
        (2, at(2, 0), "a change of bytes 0 to 512 of disk 3, of which there is none"),
        (2, at(0, 0), "of disk 1, which is read only"),
        (2, at(1, DISK_BYTES), "of disk 2, beyond its end"),
        (2, at(1, DISK_BYTES - 511), "beyond its end"),
        (2, at(1, 7), "not in whole sectors"),
        (2, Message::Disk(Change::write(1, 0, &data[..100])), "not in whole sectors"),
        (2, zeroes(512..512), "not in whole sectors"),
        (2, zeroes(0..u64::MAX), "beyond its end"),
        (1, at(1, 0), "epoch 1 where 2 was due"),
        (3, at(1, 0), "epoch 3 where 2 was due"),
        (0, at(1, 0), "epoch 0 where 2 was due"),
    ] {
        let said = mirror.refuses(&[(epoch, message)]);
        assert!(said.contains(what), "{said}");
        assert_eq!(mirror.receiver.held().unwrap().epoch, 1);
    }
    let (mut writer, _) = pair(6);
    let begin = frames(&writer.epoch(0)).remove(0);
    let mut mixed = vec![begin];
    mixed.push((FrameType::Disk, 2, disk::encode(&Change::write(1, 0, &data))));
    let (_, end) = mirror.feed(&writer_of(&mixed));
    assert!(matches!(end, End::Refused(ReceiveError::Unexpected { when: "inside an epoch", .. })), "{end:?}");
    let compare = |disk, extent| Message::Compare(Compare { disk, extent, hash: [0; 32] });
    assert!(mirror.refuses(&[(1, compare(1, 0))]).contains("epoch 1 where 2 was due"));
    assert!(mirror.refuses(&[(2, compare(0, 0))]).contains("read only"));
    assert!(Mirror::new().refuses(&[(2, compare(1, 0))]).contains("Compare without a copy"));
    let mut replaying = Mirror::of_mode(Mode::Replay);
    assert_eq!(replaying.feed_all(&Writer::new(5).protect()), [1]);
    for message in [compare(1, 0), at(1, 0)] {
        assert!(replaying.refuses(&[(2, message)]).contains("behind a copy in replay mode"));
    }
    let begin = || (0, Message::CopyBegin(CopyBegin { pairing: 1, total_pages: 4096 }));
    let mut copying = Mirror::new();
    for (disk, extent, what) in [(0, 0, "read only"), (2, 0, "there is none"), (1, 2, "beyond its end")] {
        assert!(copying.refuses(&[begin(), (0, compare(disk, extent))]).contains(what));
    }
    assert!(copying.refuses(&[begin(), (1, at(1, 0)), (0, at(1, 0))]).contains("epoch 0 where 1 was due"));
    assert!(Mirror::new().refuses(&[(1, at(1, 0))]).contains("Disk without a copy"));
}

#[test]
fn a_payload_that_is_no_change_is_malformed() {
    let (_, mut mirror) = pair(7);
    let good = disk::encode(&Change::write(1, 0, &[3; 512]));
    let with = |at: usize, byte: u8| {
        let mut bad = good.clone();
        bad[at] = byte;
        bad
    };
    let huge = disk::encode(&Change::write(1, 0, &vec![0; DATA_BYTES_MAX + 512]));
    let short = good[..19].to_vec();
    for bad in [with(0, 0), with(0, 5), with(0, 2), with(1, 1), with(13, 9), with(12, 1), huge, short] {
        let (_, end) = mirror.feed(&writer_of(&[(FrameType::Disk, 2, bad)]));
        assert!(matches!(end, End::Refused(ReceiveError::Frame(FrameError::Malformed { .. }))), "{end:?}");
    }
}
