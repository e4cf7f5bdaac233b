//! It does what it says it did, and nothing else.

use super::disk::Disk;
use super::request::answer;
use super::work::{EXTENT_BYTES, Figures};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

const EXTENTS: u64 = 10;

/// An empty disk, and its file.
fn disk() -> (Disk, File) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(EXTENTS * EXTENT_BYTES).unwrap();
    (Disk::of(file.try_clone().unwrap()).unwrap(), file)
}

/// In which blocks of this size there is something.
fn written(file: &File, block_bytes: u64) -> Vec<u64> {
    let mut block = vec![0; block_bytes as usize];
    let mut is_written = |number: &u64| {
        file.read_exact_at(&mut block, number * block_bytes).unwrap();
        block.iter().any(|byte| *byte != 0)
    };
    (0..EXTENTS * EXTENT_BYTES / block_bytes).filter(|number| is_written(number)).collect()
}

fn figures(disk: &Disk, load: &str) -> serde_json::Value {
    serde_json::from_str(&answer(disk, load).unwrap()).unwrap()
}

#[test]
fn a_load_counts_what_it_has_done() {
    let (disk, file) = disk();
    let told = figures(&disk, "LOAD read random 4096 8 20\n");
    assert!(told["requests"].as_u64().unwrap() > 0);
    assert!(written(&file, EXTENT_BYTES).is_empty(), "it wrote when it was to read");

    let told = figures(&disk, "LOAD flushed-write random 4096 1 20");
    let requests = told["requests"].as_u64().unwrap();
    assert_eq!(told["bytes"].as_u64(), Some(4096 * requests));
    assert!(told["us"].as_u64().unwrap() >= 20_000);
    // Two may be in one place.
    assert!((1..=requests).contains(&(written(&file, 4096).len() as u64)));
}

#[test]
fn sequential_requests_follow_each_other_and_begin_again_at_the_end() {
    let (disk, file) = disk();
    let requests = figures(&disk, "LOAD write sequential 1048576 3 1")["requests"].as_u64().unwrap();
    assert_eq!(written(&file, EXTENT_BYTES), (0..requests.min(EXTENTS)).collect::<Vec<_>>());
}

#[test]
fn a_touch_changes_as_many_extents_as_it_was_told_each_time_anew() {
    let (disk, file) = disk();
    assert_eq!(answer(&disk, "TOUCH 0").unwrap(), "TOUCHED 0");
    assert!(written(&file, EXTENT_BYTES).is_empty());
    answer(&disk, "TOUCH 3").unwrap();
    assert_eq!(written(&file, EXTENT_BYTES), [0, 3, 6]);
    answer(&disk, "TOUCH 10").unwrap();
    assert_eq!(written(&file, EXTENT_BYTES), (0..EXTENTS).collect::<Vec<_>>());
    let content = || {
        let mut bytes = vec![0; (EXTENTS * EXTENT_BYTES) as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    let before = content();
    answer(&disk, "TOUCH 10").unwrap();
    let after = content();
    let extents = before.chunks(EXTENT_BYTES as usize).zip(after.chunks(EXTENT_BYTES as usize));
    assert!(extents.into_iter().all(|(before, after)| before != after));
}

#[test]
fn figures_are_medians_of_sorted_times() {
    let figures = Figures {
        prepared: Duration::from_micros(70),
        took: Duration::from_micros(900),
        block_bytes: 4096,
        times_us: (0..=200).collect(),
    };
    let text = concat!(
        r#"{"requests":201,"bytes":823296,"prepared_us":70,"us":900,"#,
        r#""p50_us":100,"p99_us":198,"max_us":200}"#
    );
    assert_eq!(figures.to_string(), text);
    assert_eq!(Figures { times_us: Vec::new(), ..figures }.at(99), 0);
}

#[test]
fn what_cannot_be_done_is_said() {
    let (disk, _file) = disk();
    for (request, why) in [
        ("TOUCH 11", "the disk has 10 extents"),
        ("TOUCH all", "no number"),
        ("LOAD write random 4095 1 10", "no such load"),
        ("LOAD write random 2097152 1 10", "no such load"),
        ("LOAD write random 4096 9 10", "no such load"),
        ("LOAD write random 4096 0 10", "no such load"),
        ("LOAD write backwards 4096 1 10", "no such load"),
        ("LOAD erase random 4096 1 10", "no such load"),
        ("LOAD write random 4096 1", "no such request"),
        ("", "no such request"),
    ] {
        assert_eq!(answer(&disk, request), Err(why.to_owned()), "{request}");
    }
    let file = tempfile::tempfile().unwrap();
    let empty = Disk::of(file).unwrap();
    assert!(answer(&empty, "LOAD read random 4096 1 10").unwrap_err().contains("smaller"));
}
