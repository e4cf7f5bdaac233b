//! Attributes that silence: no lint is off for a module or a crate, none is off without a reason, and no test is.
//!
//! Two programs share files with one another and with the host, and leave some of them unused. What a program leaves
//! unused can be said at its `mod` alone, so there an `expect` may stand: it is an error itself when all is used.

use crate::tree::{Breach, SourceFile, files, must_be_empty};

/// The programs that share files.
const SHARING: [&str; 2] = ["scripts/guest/service/main.rs", "vm/guest/src/main.rs"];

/// The text of each attribute of these names, with its position: `#[name...]`, up to its closing bracket.
fn attributes<'a>(file: &'a SourceFile, names: &'a [&str]) -> impl Iterator<Item = (usize, &'a str)> {
    let code = &file.code.text;
    let starts = code.match_indices('#').map(|(at, _)| at).filter(move |at| {
        let rest = code[at + 1..].trim_start_matches('!').strip_prefix('[').unwrap_or_default();
        names.iter().any(|name| crate::source::identifier(rest) == *name)
    });
    starts.filter_map(move |at| {
        let mut depth = 0;
        let length = code[at..].find(|c| {
            depth += i32::from(c == '[') - i32::from(c == ']');
            c == ']' && depth == 0
        })?;
        // Of the file, not of the code: a reason is a string.
        Some((at, &file.text[at..=at + length]))
    })
}

/// The first word of the item that an attribute stands on.
fn item_after(file: &SourceFile, end: usize) -> &str {
    let mut rest = file.code.text[end..].trim_start();
    while rest.starts_with('#') {
        rest = rest.split_once(']').map_or("", |(_, after)| after).trim_start();
    }
    let rest = rest.strip_prefix("pub").map_or(rest, |after| after.trim_start());
    let rest = if rest.starts_with('(') { rest.split_once(')').map_or("", |(_, after)| after) } else { rest };
    crate::source::identifier(rest.trim_start())
}

fn blanket_allows(files: &[SourceFile]) -> Vec<Breach> {
    let mut found = Vec::new();
    for file in files {
        for (at, attribute) in attributes(file, &["allow", "expect"]) {
            let shares = SHARING.contains(&file.path.as_str()) && attribute.starts_with("#[expect(");
            let is_blanket = attribute.starts_with("#!") || item_after(file, at + attribute.len()) == "mod";
            if is_blanket && !shares {
                found.push(file.breach(file.code.line_of(at), attribute));
            }
        }
    }
    found
}

fn unreasoned(files: &[SourceFile]) -> Vec<Breach> {
    let mut found = Vec::new();
    for file in files {
        for (at, attribute) in attributes(file, &["allow", "expect", "ignore"]) {
            let has_reason = attribute.contains("reason = \"") || attribute.starts_with("#[ignore = \"");
            if !has_reason {
                found.push(file.breach(file.code.line_of(at), attribute));
            }
        }
    }
    found
}

#[test]
fn no_lint_is_off_for_a_module_or_a_crate() {
    must_be_empty(&blanket_allows(files()));
}

#[test]
fn no_lint_and_no_test_is_off_without_a_reason() {
    must_be_empty(&unreasoned(files()));
}

#[test]
fn a_blanket_allow_is_found() {
    for planted in [
        "#![allow(dead_code, reason = \"\")]",
        "#[allow(unused)]\nmod a;",
        "#[allow(\n    dead_code,\n)]\n#[cfg(unix)]\npub(crate) mod a {}",
    ] {
        assert_eq!(blanket_allows(&[SourceFile::new("a.rs", planted)]).len(), 1, "{planted}");
    }
    assert_eq!(
        blanket_allows(&[SourceFile::new("a.rs", "#[allow(dead_code)]\nfn mod_a() {} // #![allow(a)]")]),
        []
    );
}

#[test]
fn an_allow_without_a_reason_is_found() {
    let planted = "#[ignore]\n#[ignore = \"takes minutes\"]\n#[allow(dead_code)]\n\
                   #[allow(unused, reason = \"held\")]\n";
    let lines: Vec<_> =
        unreasoned(&[SourceFile::new("a.rs", planted)]).iter().map(|breach| breach.line).collect();
    assert_eq!(lines, [1, 3]);
}
