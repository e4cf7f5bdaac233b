//! The backup's image and state at an epoch are the primary's memory and state at that epoch, for any history of the
//! guest and any number of lost connections.

use crate::support::{Backup, Primary, assert_same_memory, stream};
use ft_checkpoint::bench_support::Noise;
use ft_checkpoint::receiver::Limits;
use ft_checkpoint::wire::frame::NoSink;

fn history(seed: u64) {
    let mut noise = Noise::new(seed);
    let shadow_bytes = [0, 40 * 4096, 16 << 20][noise.below(3)];
    let mut primary = Primary::new(seed, shadow_bytes);
    primary.run(300, 4096);
    primary.dirty.clear();
    let limits = Limits { epoch_pages: 4096, backlog_pages: [50, 300, 4096][noise.below(3)] };
    let mut backup = Backup::new(limits);
    let applier = backup.receiver.applier();

    assert_eq!(backup.feed_all(&primary.protect(9)), [1]);
    primary.owed.ack(1).unwrap();
    for _ in 0..20 {
        let (writes, set) = (noise.below(120), [30, 200, 4096][noise.below(3)]);
        primary.run(writes, set);
        let connected = noise.below(4) != 0;
        if connected && primary.owed.in_flight() == 0 {
            let bytes = stream(|out| primary.checkpoint(out).unwrap());
            assert_eq!(backup.feed_all(&bytes), [primary.epoch]);
            primary.owed.ack(primary.epoch).unwrap();
        } else {
            // The channel is down: encoded, owed, sent again on the next connection.
            primary.checkpoint(&mut NoSink).unwrap();
            if connected {
                let held = backup.receiver.held().map_or(0, |held| held.epoch);
                let lacking = primary.owed.resume(held).unwrap();
                let bytes = stream(|out| lacking.iter().for_each(|c| c.send(out).unwrap()));
                assert_eq!(backup.feed_all(&bytes), (held + 1..=primary.epoch).collect::<Vec<_>>());
                primary.owed.ack(primary.epoch).unwrap();
            }
        }
        assert!(primary.encoder.shadow_bytes() <= shadow_bytes);
        let (checkpoints, pages) = backup.receiver.backlog();
        assert!(
            pages <= limits.backlog_pages || checkpoints == 1,
            "{checkpoints} checkpoints, {pages} pages"
        );
        for _ in 0..noise.below(3) {
            applier.apply_next();
        }
        if connected && noise.below(8) == 0 {
            while applier.apply_next().is_some() {}
            let view = backup.ram.view().unwrap();
            assert_same_memory(&primary.view, &view, &format!("seed {seed} epoch {}", primary.epoch));
        }
    }
    let lacking = primary.owed.resume(backup.held_epoch().unwrap_or_default()).unwrap();
    backup.feed_all(&stream(|out| lacking.iter().for_each(|c| c.send(out).unwrap())));
    let mut sealed = backup.receiver.into_sealed().ok().unwrap();
    assert_eq!((sealed.pairing, sealed.epoch), (9, primary.epoch));
    assert!(sealed.state == primary.state);
    sealed.apply_all();
    assert_same_memory(&primary.view, sealed.image.view(), &format!("seed {seed} at take-over"));
}

#[test]
fn the_image_equals_the_primarys_memory_at_every_epoch() {
    (0..8).for_each(history);
}

#[test]
fn a_second_copy_replaces_everything_that_was_held() {
    let mut primary = Primary::new(5, 1 << 20);
    let mut backup = Backup::unlimited();
    backup.feed_all(&primary.protect(1));
    for _ in 0..2 {
        primary.run(100, 500);
        backup.feed_all(&stream(|out| primary.checkpoint(out).unwrap()));
    }
    assert_eq!(backup.receiver.backlog().0, 3);

    // Another machine under the same name: nothing of the first may shine through.
    let mut other = Primary::new(6, 1 << 20);
    other.epoch = 40;
    assert_eq!(backup.feed_all(&other.protect(2)), [41]);
    assert_eq!(backup.receiver.backlog().0, 1, "the first machine's are gone");
    let mut sealed = backup.receiver.into_sealed().ok().unwrap();
    sealed.apply_all();
    assert_same_memory(&other.view, sealed.image.view(), "after the second copy");
}

#[test]
fn the_applier_may_run_beside_the_receiver() {
    let mut primary = Primary::new(8, 16 << 20);
    let mut backup = Backup::new(Limits { epoch_pages: 4096, backlog_pages: 600 });
    let applier = backup.receiver.applier();
    let worker = std::thread::spawn(move || applier.run());
    backup.feed_all(&primary.protect(9));
    for _ in 0..60 {
        primary.run(150, 400);
        backup.feed_all(&stream(|out| primary.checkpoint(out).unwrap()));
    }
    let mut sealed = backup.receiver.into_sealed().ok().unwrap();
    worker.join().unwrap();
    sealed.apply_all();
    assert_same_memory(&primary.view, sealed.image.view(), "at take-over");
}

#[test]
fn the_applier_ends_with_its_receiver() {
    let backup = Backup::unlimited();
    let applier = backup.receiver.applier();
    let worker = std::thread::spawn(move || applier.run());
    drop(backup);
    worker.join().unwrap();
}
