//! Words that stand in no file: the name of a developer's machine, the places of its files, and marks of unfinished
//! code.

use crate::tree::{Breach, SourceFile, file, files, must_be_empty};

/// Parts of addresses and paths that hold on one machine, or on somebody's network, alone. In pieces, since this file
/// is looked at as well.
const OF_ONE_MACHINE: [&str; 7] = [
    concat!("index.", "crates"),
    concat!("static.", "crates"),
    concat!("crates", ".io/"),
    concat!("CARGO_", "REGISTRIES"),
    concat!("/ho", "me/"),
    concat!("/ro", "ot/."),
    concat!("file:", "///"),
];
/// Cargo names the registry in its own.
const EXEMPT: [&str; 2] = ["Cargo.lock", "vm/guest/Cargo.lock"];
/// What Cargo.lock names as the source of a crate.
const REGISTRY: &str = concat!("source = \"registry+https://github.com/rust-lang/crates", ".io-index\"");

fn words_of_one_machine(files: &[SourceFile]) -> Vec<Breach> {
    let mut found = Vec::new();
    for file in files.iter().filter(|file| !EXEMPT.contains(&file.path.as_str())) {
        for (number, line) in file.lines() {
            for word in OF_ONE_MACHINE {
                // A path is absolute where no word and no variable comes before it.
                let absolute = |(at, _): (usize, &str)| {
                    !word.starts_with('/')
                        || !line[..at].ends_with(|c: char| c.is_alphanumeric() || "_}./-".contains(c))
                };
                if line.match_indices(word).any(absolute) {
                    found.push(file.breach(number, format!("\"{word}\" in: {}", line.trim())));
                }
            }
        }
    }
    found
}

fn other_registries(lock: &SourceFile) -> Vec<Breach> {
    let sources = lock.lines().filter(|(_, line)| line.starts_with("source = ") && *line != REGISTRY);
    sources.map(|(number, line)| lock.breach(number, line)).collect()
}

fn unfinished(files: &[SourceFile]) -> Vec<Breach> {
    let mut found = Vec::new();
    for file in files {
        for word in ["todo", "unimplemented", "dbg"] {
            let calls = file.code.words(word).filter(|at| file.code.text[at + word.len()..].starts_with('!'));
            found.extend(calls.map(|at| file.breach(file.code.line_of(at), format!("{word}!"))));
        }
    }
    found
}

#[test]
fn no_file_tells_where_it_was_written() {
    must_be_empty(&words_of_one_machine(files()));
}

#[test]
fn every_crate_comes_from_the_public_registry() {
    must_be_empty(&other_registries(file("Cargo.lock")));
    must_be_empty(&other_registries(file("vm/guest/Cargo.lock")));
}

#[test]
fn no_code_is_left_for_later() {
    must_be_empty(&unfinished(files()));
}

#[test]
fn a_word_of_one_machine_is_found() {
    for word in OF_ONE_MACHINE {
        assert!(
            !words_of_one_machine(&[SourceFile::new("a.md", &format!("see {word}x"))]).is_empty(),
            "{word}"
        );
    }
    assert_eq!(words_of_one_machine(&[SourceFile::new("a.sh", concat!("mount $dir/ho", "me/x"))]), []);
}

#[test]
fn another_registry_is_found() {
    let lock = format!("{REGISTRY}\nsource = \"registry+https://mirror/index\"\n");
    assert_eq!(other_registries(&SourceFile::new("Cargo.lock", &lock)).len(), 1);
}

#[test]
fn code_for_later_is_found() {
    let planted =
        "fn a() { todo!() }\nfn b() { unimplemented!(\"c\") }\ndbg!(d);\n// todo!()\nlet todo = !e;\n";
    assert_eq!(unfinished(&[SourceFile::new("a.rs", planted)]).len(), 3);
}
