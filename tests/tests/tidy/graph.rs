//! No circles: of the files of a room, some come first and need none of the others.

use std::collections::BTreeSet;

use crate::imports::{Crate, Edge};
use crate::tree::{Breach, SourceFile, files, must_be_empty};

/// Folders whose files import one another in one direction: each once was a circle.
const ORDERED: [(&str, &str); 2] =
    [("daemon/src/", "daemon/src/replica/"), ("vm/src/", "vm/src/engine/kvm/")];

/// The imports that are part of a circle.
fn circles(edges: &[Edge]) -> Vec<&Edge> {
    let reaches = |from: &str, to: &str| {
        let mut seen = BTreeSet::from([from]);
        let mut waiting = vec![from];
        while let Some(at) = waiting.pop() {
            for edge in edges.iter().filter(|edge| edge.from == at) {
                if seen.insert(&edge.to) {
                    waiting.push(&edge.to);
                }
            }
        }
        seen.contains(to)
    };
    edges.iter().filter(|edge| reaches(&edge.to, &edge.from)).collect()
}

fn circles_in(files: &[SourceFile], src: &str, folder: &str) -> Vec<Breach> {
    let mut edges = Crate::new(files, src).edges();
    edges.retain(|edge| edge.from.starts_with(folder) && edge.to.starts_with(folder));
    let breach = |edge: &&Edge| Breach {
        path: edge.from.clone(),
        line: edge.line,
        text: format!("part of a circle: imports from {}", edge.to),
    };
    circles(&edges).iter().map(breach).collect()
}

#[test]
fn imports_go_in_no_circle() {
    for (src, folder) in ORDERED {
        assert!(files().iter().any(|file| file.path.starts_with(folder)), "there is no {folder}");
        must_be_empty(&circles_in(files(), src, folder));
    }
}

#[test]
fn a_circle_is_found() {
    let planted = [
        SourceFile::new("a/src/r/x.rs", "use super::y::Y;\n"),
        SourceFile::new("a/src/r/y.rs", "use crate::r::z::Z;\n"),
        SourceFile::new("a/src/r/z.rs", "\nfn f(x: super::x::X) {}\n"),
        SourceFile::new("a/src/r/mod.rs", "use x::X;\n"),
    ];
    let found: Vec<_> = circles_in(&planted, "a/src/", "a/src/r/").iter().map(|found| found.line).collect();
    assert_eq!(found, [1, 1, 2]);
}
