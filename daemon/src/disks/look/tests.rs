//! What a configuration's images are is said before the VM runs, and nothing is changed by looking.

use super::*;
use crate::config::DiskConfig;
use crate::disks::Beside;
use ft_arbiter::CellId;
use ft_mirror::History;
use std::fs;

struct Node {
    directory: tempfile::TempDir,
    config: Config,
}

impl Node {
    /// A node with these images, of which so many can only be read.
    fn new(images: &[&str], read_only: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let example = include_str!("../../../../scripts/systemd/ftd.example.toml");
        let mut config = Config::parse(example, Path::new("ftd.toml")).unwrap();
        config.state_dir = directory.path().join("state");
        config.replication.journal_mib = 1;
        let disk = |(at, name): (usize, &&str)| DiskConfig {
            image: directory.path().join(name),
            read_only: at < read_only,
            base: None,
            io_engine: Default::default(),
            on_io_error: Default::default(),
        };
        config.machine.disks = images.iter().enumerate().map(disk).collect();
        fs::write(directory.path().join("a"), [0; 4096]).unwrap();
        fs::write(directory.path().join("b"), [0; 4096]).unwrap();
        fs::hard_link(directory.path().join("a"), directory.path().join("link")).unwrap();
        Self { directory, config }
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.directory.path().join(name), bytes).unwrap();
    }

    fn refused(&self) -> String {
        check(&self.config).unwrap_err().to_string()
    }
}

#[test]
fn two_disks_with_one_file_are_refused_unless_both_only_read() {
    for (images, read_only, is_refused) in [
        (["a", "b"], 0, false),
        (["a", "link"], 0, true),
        (["a", "link"], 1, true),
        (["a", "link"], 2, false),
        (["a", "a"], 1, true),
    ] {
        let node = Node::new(&images, read_only);
        match is_refused {
            true => assert!(node.refused().contains("are one and the same"), "{}", node.refused()),
            false => check(&node.config).unwrap(),
        }
    }
}

#[test]
fn a_container_is_refused_unless_a_guest_may_have_written_it() {
    let qcow2 = [&b"QFI\xfb"[..], &[0; 508]].concat();
    for read_only in [0, 1] {
        let node = Node::new(&["a"], read_only);
        node.write("a", &qcow2);
        assert!(node.refused().contains("it is a qcow2 file"), "{}", node.refused());
    }
    let node = Node::new(&["a"], 0);
    let beside = Beside::open(&node.config).unwrap().unwrap();
    beside.stamps().write(CellId(9), History::Ran { generation: 1 }).unwrap();
    drop(beside);
    fs::OpenOptions::new()
        .write(true)
        .open(node.directory.path().join("a"))
        .and_then(|file| std::os::unix::fs::FileExt::write_all_at(&file, b"QFI\xfb", 0))
        .unwrap();
    check(&node.config).unwrap();
    node.write("a", &[0; 512]);
    let text = node.refused();
    assert!(text.contains("it had 4096 bytes when ftd last used it, and has 512"), "{text}");
}

#[test]
fn looking_makes_nothing() {
    let node = Node::new(&["a"], 0);
    let seen = look(&node.config).unwrap();
    assert_eq!((seen.disks.len(), seen.disks[0].stamp, seen.journal), (1, None, None));
    check(&node.config).unwrap();
    assert!(!node.config.state_dir.exists());
    let mut full = node.config.clone();
    full.replication.journal_mib = 1 << 42;
    assert!(check(&full).unwrap_err().to_string().contains("MiB left"));
    drop(Beside::open(&node.config).unwrap());
    let seen = look(&node.config).unwrap();
    assert_eq!(seen.journal.map(|journal| journal.waiting), Some(0));
}
