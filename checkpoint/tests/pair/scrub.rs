//! A page that is another one on the two nodes is found by name within one pass, whatever the stream's digest says, and
//! no page that is the same is ever suspected (`history` scrubs all along).

use crate::support::{Backup, FeedError, Primary, stream};
use ft_checkpoint::bench_support::structured_page;
use ft_checkpoint::page::Page;
use ft_checkpoint::receiver::ReceiveError;
use ft_checkpoint::scrub::{SAMPLES, SAMPLES_MAX, Sample};
use ft_checkpoint::wire::frame::NoSink;
use ft_ram::PageIndex;

const PAGE: PageIndex = 1234;

fn pair() -> (Primary, Backup) {
    let mut primary = Primary::new(3, 1 << 20);
    let mut backup = Backup::unlimited();
    backup.feed_all(&primary.protect(9));
    (primary, backup)
}

/// Checkpoints of a guest that leaves [`PAGE`] alone, until one is refused: the page that is named, and after how many.
fn page_found(primary: &mut Primary, backup: &mut Backup) -> (PageIndex, usize) {
    let applier = backup.receiver.applier();
    let whole_pass = primary.view.pages() as usize / SAMPLES + 1;
    for checkpoints in 1..=whole_pass {
        primary.run(0, 1);
        primary.write((PAGE + checkpoints as PageIndex) % 1000, &[checkpoints as u8; 4096]);
        let held = backup.held_epoch();
        let (sealed, end) = backup.feed(&stream(|out| primary.checkpoint(out).unwrap()));
        while applier.apply_next().is_some() {}
        if let FeedError::Receive(ReceiveError::Scrub { epoch, page, .. }) = end {
            assert_eq!((sealed.len(), backup.held_epoch(), epoch), (0, held, primary.epoch), "never acked");
            return (page, checkpoints);
        }
        assert_eq!(sealed, [primary.epoch]);
    }
    panic!("not found in {whole_pass} checkpoints");
}

#[test]
fn a_page_that_changed_without_being_dirty_is_found() {
    let (mut primary, mut backup) = pair();
    primary.view.write_page(PAGE, &[9; 4096]);
    assert_eq!(page_found(&mut primary, &mut backup).0, PAGE);
}

#[test]
fn a_page_that_was_applied_wrongly_is_found() {
    let (mut primary, mut backup) = pair();
    let mut content: Page = [5; 4096];
    primary.write(PAGE, &content);
    backup.feed_all(&stream(|out| primary.checkpoint(out).unwrap()));
    while backup.receiver.applier().apply_next().is_some() {}
    content[77] ^= 4;
    backup.ram.view().unwrap().write_page(PAGE, &content);
    assert_eq!(page_found(&mut primary, &mut backup).0, PAGE);
}

#[test]
fn more_samples_than_any_primary_sends_and_pages_beyond_the_memory_are_refused() {
    for (samples, says) in [
        (vec![Sample { page: 1, hash: 0 }; SAMPLES_MAX + 1], "epoch 2: samples 65, at most 64"),
        (vec![Sample { page: 4096, hash: 0 }], "epoch 2: page 4096 is out of order or outside the memory"),
    ] {
        let (mut primary, mut backup) = pair();
        primary.samples = samples;
        let (sealed, end) = backup.feed(&stream(|out| primary.checkpoint(out).unwrap()));
        let FeedError::Receive(error) = end else { panic!("{end:?}") };
        assert!(sealed.is_empty() && error.to_string().starts_with(says), "{error}");
    }
}

#[test]
fn a_delta_against_a_wrong_page_is_the_streams_fault_once_and_the_bases_fault_twice() {
    let (mut primary, mut backup) = pair();
    let mut content: Page = structured_page(7);
    primary.write(PAGE, &content);
    backup.feed_all(&stream(|out| primary.checkpoint(out).unwrap()));
    while backup.receiver.applier().apply_next().is_some() {}
    let mut wrong = content;
    wrong[77] ^= 4;
    backup.ram.view().unwrap().write_page(PAGE, &wrong);
    content[200] ^= 1;
    primary.write(PAGE, &content);
    primary.checkpoint(&mut NoSink).unwrap();
    for says in ["the digest is", "a page held here is wrong"] {
        let held = backup.held_epoch().unwrap();
        let lacking = primary.owed.resume(held).unwrap();
        let (sealed, end) = backup.feed(&stream(|out| lacking.iter().for_each(|c| c.send(out).unwrap())));
        let FeedError::Receive(error) = end else { panic!("{end:?}") };
        assert!(sealed.is_empty() && error.to_string().contains(says), "{error}");
        assert_eq!(error.is_distrust(), says.contains("held here"));
    }
}
