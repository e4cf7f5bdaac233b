//! Errors have types: text is made where it is shown. An error that stays in its file may be text at once.

use crate::tree::{Breach, SourceFile, files, must_be_empty};

/// Where text is no error: the libraries and the daemon, but not the front ends and what is compiled for tests alone.
fn is_bound(file: &SourceFile) -> bool {
    let crates = [
        "checkpoint/src/",
        "daemon/arbiter/src/",
        "daemon/src/",
        "netbuf/src/",
        "vm/cpu/src/",
        "vm/disk/src/",
        "vm/image/src/",
        "vm/ram/src/",
        "vm/src/",
    ];
    crates.iter().any(|path| file.path.starts_with(path)) && !file.path.contains("/bin/") && !file.is_test()
}

/// Positions of `Result<..., String>` in a text.
fn results_of_text(code: &str) -> Vec<usize> {
    let mut found = Vec::new();
    for (at, word) in code.match_indices("Result<") {
        let mut depth = 0;
        let inner = &code[at + word.len() - 1..];
        let end = inner.bytes().enumerate().position(|(index, byte)| {
            depth += i32::from(byte == b'<') - i32::from(byte == b'>' && inner.as_bytes()[index - 1] != b'-');
            depth == 0
        });
        let arguments = end.map_or("", |end| inner[1..end].trim_end_matches([',', ' ', '\n']));
        if arguments.strip_suffix("String").is_some_and(|ok| ok.trim_end().ends_with(',')) {
            found.push(at);
        }
    }
    found
}

/// Whether what stands at `position` is seen in its own file or folder alone: the signature or body of a function that
/// is not public. A method of a trait is as public as the trait.
fn is_private(code: &str, position: usize) -> bool {
    let before = &code[..position];
    let item = before.rfind(['}', ';', '{']).map_or(0, |at| at + 1);
    let head = &before[item..];
    let Some(at) = head.find("fn ") else { return false };
    let visibility = head[..at].trim();
    let visibility = visibility.rsplit(']').next().unwrap_or(visibility).trim();
    let in_trait = before.rfind("trait ").is_some_and(|at| !before[at..].contains("\n}"));
    let in_impl_of_trait = before.rfind("\nimpl").is_some_and(|at| {
        let head = before[at..].split('{').next().unwrap_or_default();
        !before[at..].contains("\n}") && head.contains(" for ")
    });
    !in_trait && !in_impl_of_trait && (!visibility.starts_with("pub") || visibility.starts_with("pub(super)"))
}

fn errors_of_text(files: &[SourceFile]) -> Vec<Breach> {
    let mut found = Vec::new();
    for file in files.iter().filter(|file| is_bound(file)) {
        let code = file.code.without_tests();
        for at in results_of_text(&code).into_iter().filter(|at| !is_private(&code, *at)) {
            found.push(file.breach(file.code.line_of(at), "an error that is a String"));
        }
    }
    found
}

#[test]
fn no_error_is_a_string_across_a_border() {
    must_be_empty(&errors_of_text(files()));
}

#[test]
fn an_error_that_is_a_string_is_found() {
    let planted = "pub fn a() -> Result<(), String> {}\nfn b() -> Result<u8, String> {}\n\
                   pub enum E {\n    F(Result<Vec<u8>, String>),\n}\npub fn c() -> Result<String, Error> {}\n\
                   pub trait T {\n    fn d(\n        self,\n    ) -> Result<(), String>;\n}\n\
                   fn e() -> Result<(), String> {}\n";
    let lines = |path| -> Vec<_> {
        errors_of_text(&[SourceFile::new(path, planted)]).iter().map(|breach| breach.line).collect()
    };
    assert_eq!(lines("daemon/src/a.rs"), [1, 4, 10]);
    assert_eq!(lines("daemon/src/bin/a.rs"), [0; 0]);
}
