//! `unsafe` says why it is sound. Clippy checks blocks. This file checks that every crate asks clippy to, and that an
//! `unsafe impl`, an `unsafe fn` and an `unsafe trait` say why.

use crate::tree::{Breach, SourceFile, files, must_be_empty};

/// The comments and attributes right above a line.
fn above(file: &SourceFile, line: usize) -> String {
    let lines: Vec<_> = file.text.lines().take(line - 1).collect();
    let is_above = |line: &&&str| line.trim_start().starts_with("//") || line.trim_start().starts_with('#');
    lines.iter().rev().take_while(is_above).map(|line| format!("{line}\n")).collect()
}

fn unsound_items(files: &[SourceFile]) -> Vec<Breach> {
    let mut found = Vec::new();
    for file in files {
        for at in file.code.words("unsafe") {
            let item = crate::source::identifier(file.code.text[at + 6..].trim_start());
            let line = file.code.line_of(at);
            let starts_line =
                file.text.lines().nth(line - 1).is_some_and(|line| !line.trim_start().starts_with("type"));
            let says = match item {
                "impl" => "SAFETY:",
                "fn" | "trait" => "# Safety",
                _ => continue,
            };
            // Without a name it is the type of a function.
            let is_type = item == "fn"
                && file.code.text[at..].trim_start_matches("unsafe").trim_start()[2..].starts_with('(');
            if starts_line && !is_type && !above(file, line).contains(says) {
                found.push(file.breach(line, format!("unsafe {item} without \"{says}\"")));
            }
        }
    }
    found
}

/// Crates that clippy does not ask for the reasons of their unsafe blocks.
fn unasked_crates(files: &[SourceFile]) -> Vec<Breach> {
    let manifests = files.iter().filter(|file| file.name() == "Cargo.toml");
    let asks = |file: &&SourceFile| {
        file.text.contains("[lints]\nworkspace = true") || file.text.contains("undocumented_unsafe_blocks = ")
    };
    manifests
        .filter(|file| !asks(file))
        .map(|file| file.breach(1, "neither takes the workspace's lints nor has undocumented_unsafe_blocks"))
        .collect()
}

#[test]
fn every_unsafe_item_says_why_it_is_sound() {
    must_be_empty(&unsound_items(files()));
}

#[test]
fn every_crate_asks_clippy_for_the_reasons_of_unsafe_blocks() {
    must_be_empty(&unasked_crates(files()));
}

#[test]
fn an_unsafe_item_without_a_reason_is_found() {
    let planted = "unsafe impl Send for A {}\n// SAFETY: plain data.\nunsafe impl Sync for A {}\n\
                   /// Does.\n///\n/// # Safety\n/// Once.\n#[inline]\npub unsafe fn a() {}\n\
                   /// Does.\nunsafe fn b() {}\n\
                   type C = unsafe fn(u8);\nlet d = unsafe { e() };\n";
    let lines: Vec<_> =
        unsound_items(&[SourceFile::new("a.rs", planted)]).iter().map(|breach| breach.line).collect();
    assert_eq!(lines, [1, 11]);
}

#[test]
fn a_crate_that_is_not_asked_is_found() {
    assert_eq!(unasked_crates(&[SourceFile::new("a/Cargo.toml", "[package]\n")]).len(), 1);
}
