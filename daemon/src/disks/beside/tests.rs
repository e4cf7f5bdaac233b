//! What an earlier process left is found, what is missing is made, and what is wrong is said by name.

use super::*;
use crate::disks::{Claim, Ground, Unfit};
use ft_arbiter::CellId;
use ft_mirror::{CellView, Change, Foreign, Holder, Judgement};
use std::fs;
use std::os::unix::fs::FileExt;

const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 5 * MIB + 512;
const CELL: CellId = CellId(9);
const SEALED: SealedEpoch = SealedEpoch { pairing: 5, epoch: 7 };
const FOLLOWS: History = History::Follows { pairing: 5, named_in: Some(2) };

struct Node {
    directory: tempfile::TempDir,
    config: Config,
}

impl Node {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let example = include_str!("../../../../scripts/systemd/ftd.example.toml");
        let mut config = Config::parse(example, Path::new("ftd.toml")).unwrap();
        config.state_dir = directory.path().join("state");
        config.replication.journal_mib = 1;
        let image = directory.path().join("disk.img");
        File::create(&image).unwrap().set_len(DISK_BYTES).unwrap();
        config.machine.disks = [true, false]
            .map(|read_only| DiskConfig {
                image: image.clone(),
                read_only,
                base: None,
                io_engine: Default::default(),
                on_io_error: Default::default(),
            })
            .into();
        Self { directory, config }
    }

    fn open(&self) -> Beside {
        Beside::open(&self.config).unwrap().unwrap()
    }

    fn refused(&self) -> String {
        Beside::open(&self.config).err().expect("it should be refused").to_string()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.config.state_dir.join("disks").join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.config.state_dir.join("disks")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn flip(&self, name: &str, at: u64) {
        let file = fs::OpenOptions::new().read(true).write(true).open(self.file(name)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    }

    fn cut(&self, name: &str) {
        let file = fs::OpenOptions::new().write(true).open(self.file(name)).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    }
}

/// The second disk of the configuration.
const DISK: u16 = 1;

fn set(beside: &Beside) -> Vec<u64> {
    beside.intents().set(DISK)
}

/// Both images are the same, durably.
fn clear(beside: &Beside) {
    let (tells, cleared) = std::sync::mpsc::channel();
    let tells = Mutex::new(tells);
    beside.intents().on_ready(Some(Arc::new(move || {
        let _ = tells.lock().send(());
    })));
    beside.intents().same(SEALED.pairing);
    cleared.recv().unwrap();
}

fn owned(generation: u64) -> Option<CellView> {
    Some(CellView { cell: CELL.0, generation, holder: Holder::This })
}

#[test]
fn what_one_process_wrote_the_next_one_finds() {
    let node = Node::new();
    let beside = node.open();
    assert_eq!(set(&beside), [0, 1, 2, 3, 4, 5], "nothing is known of a new image");
    assert_eq!(beside.stamps().say(), [None]);
    beside.stamps().write(CELL, FOLLOWS).unwrap();
    clear(&beside);
    beside.journal().lock().seal(SEALED).unwrap();
    drop(beside);
    let beside = node.open();
    let verdict = Judgement::RightOnceCarriedOut { pairing: SEALED.pairing };
    assert_eq!(beside.stamps().judge(owned(3))[0].verdict, verdict);
    assert_eq!(beside.intents().map(DISK), (Some(SEALED.pairing), Vec::new()));
    assert_eq!(beside.journal().lock().sealed(), Some(SEALED));
    assert_eq!(node.names(), ["2.intent", "2.stamp", "journal"]);
    let allocated = |name: &str| {
        use std::os::unix::fs::MetadataExt;
        let metadata = fs::metadata(node.file(name)).unwrap();
        metadata.blocks() * 512 >= metadata.len()
    };
    assert!(node.names().iter().all(|name| allocated(name)), "no room is taken later");
}

#[test]
fn a_vm_without_writable_disks_has_nothing_beside_them() {
    let mut node = Node::new();
    node.config.machine.disks.truncate(1);
    assert!(Beside::open(&node.config).unwrap().is_none());
    assert!(!node.config.state_dir.exists());
}

#[test]
fn a_journal_or_stamp_that_was_cut_or_damaged_is_said_with_what_to_do() {
    let node = Node::new();
    node.open().stamps().write(CELL, History::Ran { generation: 3 }).unwrap();
    node.flip("2.stamp", 20);
    drop(node.open());
    for slot in 0..2 {
        node.flip("2.stamp", 4096 * slot + 20);
    }
    let text = node.refused();
    assert!(text.contains("/2.stamp: is damaged") && text.contains("ftd disk adopt"), "{text}");
    node.cut("2.stamp");
    assert!(node.refused().contains("2.stamp: has 8191 bytes"), "{}", node.refused());
    fs::remove_file(node.file("2.stamp")).unwrap();
    node.open().stamps().write(CELL, FOLLOWS).unwrap();
    node.cut("journal");
    let text = node.refused();
    assert!(text.contains("/journal: is a journal of") && text.contains("move it away"), "{text}");
    for slot in 0..2 {
        node.flip("journal", 4096 * slot + 20);
    }
    assert!(node.refused().contains("is no journal of ftd"));
}

#[test]
fn a_damaged_journal_that_no_image_needs_is_begun_anew() {
    for history in [History::Ran { generation: 3 }, History::Mixed { pairing: 6 }] {
        let node = Node::new();
        node.open().stamps().write(CELL, history).unwrap();
        for slot in 0..2 {
            node.flip("journal", 4096 * slot + 20);
        }
        assert_eq!(crate::disks::look(&node.config).unwrap().journal, None);
        assert_eq!(node.open().journal().lock().waiting(), 0, "{history:?}");
        assert!(node.open().journal().lock().free() > MIB / 2);
    }
}

#[test]
fn a_damaged_map_costs_a_comparison_and_hides_nothing() {
    let node = Node::new();
    let clear_all = || {
        let beside = node.open();
        beside.stamps().write(CELL, History::Ran { generation: 3 }).unwrap();
        clear(&beside);
    };
    let all_set = || assert_eq!(set(&node.open()).len(), 6);
    for at in [9, 5000] {
        clear_all();
        assert_eq!(set(&node.open()).len(), 0);
        node.flip("2.intent", at);
        all_set();
    }
    clear_all();
    fs::remove_file(node.file("2.intent")).unwrap();
    all_set();
    clear_all();
    node.cut("2.intent");
    all_set();
}

#[test]
fn an_image_that_was_shrunken_or_exchanged_is_not_taken_for_the_stamps() {
    let mut node = Node::new();
    let beside = node.open();
    beside.stamps().write(CELL, History::Ran { generation: 3 }).unwrap();
    clear(&beside);
    drop(beside);
    let image = node.config.machine.disks[1].image.clone();
    File::options().write(true).open(&image).unwrap().set_len(2 * MIB).unwrap();
    let beside = node.open();
    let why = Foreign::Size { stamped: DISK_BYTES, now: 2 * MIB };
    assert_eq!(beside.stamps().judge(owned(3))[0].verdict, Judgement::Foreign(why));
    assert_eq!(set(&beside), [0, 1], "everything may differ");
    drop(beside);
    let other = node.directory.path().join("other.img");
    File::create(&other).unwrap().set_len(DISK_BYTES).unwrap();
    node.config.machine.disks[1].image = other;
    let beside = node.open();
    assert_eq!(beside.stamps().judge(owned(3))[0].verdict, Judgement::Foreign(Foreign::Image));
    assert_eq!(set(&beside).len(), 6);
    fs::remove_file(image).unwrap();
    node.config.machine.disks.remove(0);
    node.config.machine.disks[0].image = node.directory.path().join("nowhere");
    assert!(node.refused().contains("/nowhere: No such file"), "{}", node.refused());
}

#[test]
fn an_image_that_follows_is_nobodys_without_its_journal() {
    let node = Node::new();
    node.open().stamps().write(CELL, FOLLOWS).unwrap();
    assert_eq!(
        node.open().stamps().judge(owned(3))[0].verdict,
        Judgement::RightOnceCarriedOut { pairing: 5 }
    );
    fs::remove_file(node.file("journal")).unwrap();
    assert_eq!(node.open().stamps().judge(owned(3))[0].verdict, Judgement::Nobodys { pairing: 5 });
}

#[test]
fn a_journal_gets_another_size_when_nothing_in_it_waits() {
    let mut node = Node::new();
    let beside = node.open();
    beside.stamps().write(CELL, FOLLOWS).unwrap();
    let mut journal = beside.journal().lock();
    journal.append(&Change::write(1, 0, b"data")).unwrap();
    journal.seal(SEALED).unwrap();
    drop(journal);
    drop(beside);
    node.config.replication.journal_mib = 2;
    let text = node.refused();
    assert!(text.contains("it has 1 MiB and is to have 2") && text.contains("104 bytes in it"), "{text}");
    node.config.replication.journal_mib = 1;
    let beside = node.open();
    let mut journal = beside.journal().lock();
    journal.apply(u64::MAX, |_| std::io::Result::Ok(())).unwrap();
    journal.release().unwrap();
    drop(journal);
    drop(beside);
    node.config.replication.journal_mib = 2;
    for _ in 0..2 {
        let beside = node.open();
        let journal = beside.journal().lock();
        assert_eq!((journal.sealed(), journal.applied(), journal.waiting()), (Some(SEALED), Some(SEALED), 0));
        assert!(journal.free() > MIB);
    }
}

#[test]
fn a_full_file_system_is_said_and_nothing_half_is_left() {
    let mut node = Node::new();
    // More than any file system takes.
    node.config.replication.journal_mib = 1 << 42;
    let text = node.refused();
    assert!(text.contains("/journal: it takes") && text.contains("MiB left: make room"), "{text}");
    assert!(!node.names().iter().any(|name| name.starts_with("journal")), "{:?}", node.names());
}

fn cell(generation: u64, owner: Option<&str>) -> ft_arbiter::Cell {
    ft_arbiter::Cell { id: CELL, generation, owner: owner.map(str::to_owned), standby: None }
}

/// The cell as it changed before this node's eyes.
fn ground(cells: &[ft_arbiter::Cell]) -> Ground {
    let mut ground = Ground::default();
    ground.note(None);
    cells.iter().for_each(|cell| ground.note(Some(cell)));
    ground
}

#[test]
fn a_vm_boots_from_images_that_are_right_and_from_no_others() {
    let node = Node::new();
    let beside = node.open();
    let stamps = beside.stamps();
    let claim = |cells: &[ft_arbiter::Cell]| ground(cells).claim(stamps, "alpha");
    assert_eq!(claim(&[cell(1, Some("alpha"))]), Ok(Claim::AtOnce), "the VM is new");
    assert_eq!(claim(&[cell(1, None), cell(2, Some("alpha"))]), Ok(Claim::AtOnce));
    assert_eq!(claim(&[cell(1, Some("beta"))]), Err(Unfit::Unseen));
    stamps.write(CELL, History::Ran { generation: 4 }).unwrap();
    let own = |generation| [cell(generation - 1, Some("alpha")), cell(generation, Some("alpha"))];
    for generation in [4, 5, 6] {
        assert_eq!(claim(&own(generation)), Ok(Claim::AtOnce), "{generation}");
    }
    let text = claim(&own(7)).unwrap_err().to_string();
    assert!(text.contains("disk.img: it is stale: the VM ran from it in generation 4"), "{text}");
    assert!(text.contains("ftd disk adopt"), "{text}");
    let from_beta = claim(&[cell(5, Some("beta")), cell(6, Some("alpha"))]).unwrap_err().to_string();
    assert!(from_beta.contains("it is behind"), "{from_beta}");
    assert_eq!(claim(&[cell(3, Some("alpha")), cell(6, Some("alpha"))]), Err(Unfit::Unseen));
    stamps.write(CELL, History::Follows { pairing: 5, named_in: Some(5) }).unwrap();
    assert_eq!(claim(&own(7)), Ok(Claim::OnceCarriedOut));
    let text = claim(&own(6)).unwrap_err().to_string();
    assert!(text.contains("it is stale: it follows the peer's, in pairing 0000000000000005"), "{text}");
}

#[test]
fn the_stamps_follow_the_cell_as_long_as_the_vm_runs_here() {
    let node = Node::new();
    let beside = node.open();
    let stamps = beside.stamps();
    let history = || stamps.say()[0].map(|stamp| stamp.history);
    stamps.owned(CELL, 3).unwrap();
    assert_eq!(history(), None);
    stamps.write(CELL, History::Ran { generation: 3 }).unwrap();
    stamps.owned(CELL, 4).unwrap();
    assert_eq!(history(), Some(History::Ran { generation: 4 }));
    let ways: [&dyn Fn(); 2] =
        [&|| stamps.rest(), &|| stamps.write(CELL, History::Mixed { pairing: 5 }).unwrap()];
    for ends in ways {
        ends();
        let before = history();
        stamps.owned(CELL, 9).unwrap();
        assert_eq!(history(), before, "a late word of the cell changes nothing");
    }
}

#[test]
fn what_a_journal_holds_is_dropped_once_the_vm_ran_from_the_images_or_they_are_mixed() {
    for history in [History::Ran { generation: 3 }, History::Mixed { pairing: 6 }] {
        let node = Node::new();
        let beside = node.open();
        beside.stamps().write(CELL, FOLLOWS).unwrap();
        beside.journal().lock().append(&Change::write(1, 0, b"old")).unwrap();
        beside.journal().lock().seal(SEALED).unwrap();
        beside.stamps().write(CELL, history).unwrap();
        drop(beside);
        let beside = node.open();
        let journal = beside.journal().lock();
        assert_eq!((journal.waiting(), journal.sealed()), (0, None), "{history:?}");
    }
}
