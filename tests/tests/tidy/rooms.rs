//! The direction of dependencies between crates, and between the rooms of the daemon.

use crate::imports::Crate;
use crate::tree::{Breach, SourceFile, file, files, must_be_empty};

/// Each crate's manifest, and the workspace's crates that it may stand on.
const CRATES: [(&str, &[&str]); 13] = [
    ("vm/confine/Cargo.toml", &[]),
    ("vm/ram/Cargo.toml", &[]),
    ("vm/cpu/Cargo.toml", &["ft-ram"]),
    ("vm/disk/Cargo.toml", &["ft-confine"]),
    ("vm/image/Cargo.toml", &[]),
    ("vm/Cargo.toml", &["ft-confine", "ft-ram", "ft-cpu", "ft-disk"]),
    ("netbuf/Cargo.toml", &[]),
    ("checkpoint/mirror/Cargo.toml", &[]),
    ("checkpoint/Cargo.toml", &["ft-confine", "ft-ram", "ft-vm", "ft-mirror"]),
    ("tests/history/Cargo.toml", &[]),
    ("daemon/tls/Cargo.toml", &[]),
    ("daemon/arbiter/Cargo.toml", &["ft-tls"]),
    (
        "daemon/Cargo.toml",
        &[
            "ft-tls",
            "ft-arbiter",
            "ft-confine",
            "ft-ram",
            "ft-disk",
            "ft-image",
            "ft-vm",
            "ft-checkpoint",
            "ft-mirror",
            "ft-netbuf",
        ],
    ),
];
/// Rooms that know nothing of the executor, which wraps them.
const BELOW_THE_EXECUTOR: [&str; 5] = ["host", "keeper", "observe", "peer", "role"];
/// What the core would do I/O with, or wait with.
const IO: [&str; 6] = ["std::fs", "std::io", "std::net", "std::thread", "std::process", "tokio"];

fn wrong_dependencies(manifest: &SourceFile, allowed: &[&str]) -> Vec<Breach> {
    let mut section = "";
    let mut found = Vec::new();
    for (number, line) in manifest.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        }
        let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
        // A crate's own tests may turn on its features.
        let is_ours = name.starts_with("ft-") || name == "ftd";
        if section == "dependencies" && is_ours && !allowed.contains(&name) {
            found.push(manifest.breach(number, format!("must not depend on {name}")));
        }
    }
    found
}

fn imports_of_the_executor(files: &[SourceFile]) -> Vec<Breach> {
    let edges = Crate::new(files, "daemon/src/").edges();
    let is_below =
        |path: &str| BELOW_THE_EXECUTOR.iter().any(|room| path.starts_with(&format!("daemon/src/{room}/")));
    edges
        .into_iter()
        .filter(|edge| is_below(&edge.from) && edge.to.starts_with("daemon/src/replica/"))
        .map(|edge| Breach { path: edge.from, line: edge.line, text: format!("imports from {}", edge.to) })
        .collect()
}

fn io_of_the_core(files: &[SourceFile]) -> Vec<Breach> {
    let mut found = Vec::new();
    for file in files.iter().filter(|file| file.path.starts_with("daemon/src/role/")) {
        for (number, line) in file.code.lines() {
            let used = IO.iter().filter(|name| line.contains(*name));
            found.extend(used.map(|name| file.breach(number, format!("{name} in the core"))));
        }
    }
    found
}

#[test]
fn dependencies_between_crates_point_one_way() {
    for (path, allowed) in CRATES {
        must_be_empty(&wrong_dependencies(file(path), allowed));
    }
    // A crate that is not in the table is asked nothing.
    let manifests = files().iter().filter(|file| file.name() == "Cargo.toml").map(|file| file.path.as_str());
    let asked = |path: &&str| CRATES.iter().any(|(asked, _)| asked == path);
    let unasked: Vec<_> = manifests.filter(|path| !asked(path)).collect();
    assert_eq!(unasked, ["Cargo.toml", "tests/Cargo.toml", "tests/fuzz/Cargo.toml", "vm/guest/Cargo.toml"]);
}

#[test]
fn no_room_of_the_daemon_imports_from_the_executor() {
    for room in BELOW_THE_EXECUTOR {
        file(&format!("daemon/src/{room}/mod.rs"));
    }
    must_be_empty(&imports_of_the_executor(files()));
}

#[test]
fn the_protocol_core_does_no_io() {
    must_be_empty(&io_of_the_core(files()));
}

#[test]
fn a_wrong_dependency_is_found() {
    let planted = "[dependencies]\nft-ram.workspace = true\nft-vm = { path = \"..\" }\nserde = \"1\"\n\
                   [dev-dependencies]\nft-vm.workspace = true\n";
    let lines: Vec<_> = wrong_dependencies(&SourceFile::new("a/Cargo.toml", planted), &["ft-ram"])
        .iter()
        .map(|breach| breach.line)
        .collect();
    assert_eq!(lines, [3]);
}

#[test]
fn an_import_of_the_executor_is_found() {
    let planted = [
        SourceFile::new("daemon/src/peer/link.rs", "\nuse crate::replica::Input;\n"),
        SourceFile::new("daemon/src/daemon.rs", "use crate::replica::Input;\n"),
        SourceFile::new("daemon/src/replica/mod.rs", "pub struct Input;\n"),
    ];
    let found = imports_of_the_executor(&planted);
    assert_eq!(
        found.iter().map(|found| (found.path.as_str(), found.line)).collect::<Vec<_>>(),
        [("daemon/src/peer/link.rs", 2)]
    );
}

#[test]
fn io_in_the_core_is_found() {
    let planted = "use std::time::Duration;\nuse std::fs::File; // std::net\n";
    assert_eq!(io_of_the_core(&[SourceFile::new("daemon/src/role/a.rs", planted)]).len(), 1);
}
