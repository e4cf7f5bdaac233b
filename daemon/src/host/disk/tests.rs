//! The operator is told what an image is, and his word is taken where no other node has the VM.

use super::*;
use crate::config::DiskConfig;
use crate::disks::Beside;
use ft_arbiter::{Cell, CellId, Outcome};
use ft_mirror::History;
use std::fs::File;
use std::path::Path;

const CELL: CellId = CellId(9);

fn node(base: &Path) -> Config {
    let text = format!(
        "vm = \"web\"\nnode = \"alpha\"\nstart_as = \"primary\"\nstate_dir = \"{0}/alpha\"\n\
         peer = {{ node = \"beta\", address = \"127.0.0.1:1\" }}\narbiter = {{ path = \"{0}/cell\" }}",
        base.display()
    );
    let mut config = Config::parse(&text, Path::new("test.toml")).unwrap();
    let image = base.join("disk.img");
    File::create(&image).unwrap().set_len(2 << 20).unwrap();
    let (io_engine, on_io_error) = Default::default();
    config.machine.disks = vec![DiskConfig { image, base: None, read_only: false, io_engine, on_io_error }];
    config.replication.journal_mib = 1;
    config
}

fn set_cell(config: &Config, owners: &[Option<&str>]) {
    for (generation, owner) in (1..).zip(owners) {
        let before = Some(generation - 1).filter(|generation| *generation != 0);
        let cell = Cell { id: CELL, generation, owner: owner.map(str::to_owned), standby: None };
        assert!(matches!(
            config.arbiter(&config.trust().unwrap()).compare_and_set(before, cell),
            Outcome::Won(_)
        ));
    }
}

fn stamp(config: &Config, history: History) {
    Beside::open(config).unwrap().unwrap().stamps().write(CELL, history).unwrap();
}

fn verdict(config: &Config) -> String {
    let status = DiskStatus::look(config).unwrap();
    let json = status.json();
    assert!(status.text().contains(json["disks"][0]["says"].as_str().unwrap()), "{}", status.text());
    json["disks"][0]["verdict"].as_str().unwrap().to_owned()
}

#[test]
fn an_image_is_told_for_what_it_is_and_adopted() {
    let base = tempfile::tempdir().unwrap();
    let config = node(base.path());
    assert_eq!(verdict(&config), "new");
    set_cell(&config, &[Some("alpha"), Some("beta"), Some("alpha")]);
    stamp(&config, History::Ran { generation: 1 });
    assert_eq!(verdict(&config), "stale");
    assert!(!DiskStatus::look(&config).unwrap().is_well());
    let were = adopt(&config).unwrap();
    assert!(were[0].verdict.to_string().contains("stale"), "{were:?}");
    assert_eq!(verdict(&config), "right");
    let status = DiskStatus::look(&config).unwrap();
    assert!(status.is_well() && status.text().contains("2 MiB may differ"), "{}", status.text());
    stamp(&config, History::Mixed { pairing: 5 });
    assert_eq!(verdict(&config), "nobodys");
    adopt(&config).unwrap();
    assert_eq!(verdict(&config), "right");
}

#[test]
fn nothing_is_adopted_while_another_node_has_the_vm_or_the_daemon_runs() {
    let base = tempfile::tempdir().unwrap();
    let config = node(base.path());
    set_cell(&config, &[Some("beta")]);
    assert_eq!(verdict(&config), "behind");
    let refused = adopt(&config).unwrap_err();
    assert_eq!(refused.exit(), DaemonExit::Failure);
    assert!(refused.to_string().contains("node beta has the VM"), "{refused}");
    let _daemon = InstanceLock::acquire(&config.state_dir).unwrap();
    assert_eq!(adopt(&config).unwrap_err().exit(), DaemonExit::InUse);
    assert!(DiskStatus::look(&config).unwrap().text().contains("the daemon runs"));
}

#[test]
fn without_a_cell_an_adopted_image_is_new() {
    let base = tempfile::tempdir().unwrap();
    let config = node(base.path());
    stamp(&config, History::Ran { generation: 4 });
    assert_eq!(verdict(&config), "foreign");
    adopt(&config).unwrap();
    assert_eq!(verdict(&config), "new");
}

#[test]
fn of_an_overlay_it_is_said_what_it_has_and_what_lies_under_it() {
    let base = tempfile::tempdir().unwrap();
    let mut config = node(base.path());
    let golden = base.path().join("golden.img");
    std::fs::rename(&config.machine.disks[0].image, &golden).unwrap();
    config.machine.disks[0].base = Some(golden.clone());
    let made = create_overlay(&config, 1, Some(3), &mut |_, _| ()).unwrap();
    let image = crate::disks::open_image(&config, 0, &config.machine.disks[0]).unwrap();
    let store = Box::new(ft_disk::ImageStore::new(image, Default::default()));
    let mut queue = ft_disk::Store::start(store, "disk", ft_disk::Completion::AtOnce).unwrap();
    let zeroes = ft_disk::Io::WriteZeroes { offset: 0, bytes: 2 << 20, unmap: ft_disk::Unmap::May };
    queue.submit(ft_disk::IoOrder { tag: 0, io: zeroes }).unwrap().result.unwrap();
    let status = DiskStatus::look(&config).unwrap();
    let says = format!("2 MiB of it over base {}; 2 MiB may differ from the peer's", golden.display());
    assert!(status.text().contains(&says), "{}", status.text());
    let json = &status.json()["disks"][0];
    assert_eq!((&json["bytes"], &json["base"]["bytes"]), (&(3 << 20).into(), &(2 << 20).into()));
    assert_eq!(json["base"]["present_bytes"], 2 << 20);
    assert_eq!(json["base"]["hash"], *made.base);
}
