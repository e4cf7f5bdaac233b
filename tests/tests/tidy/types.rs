//! One word, one type: a public name means the same wherever it is read.

use std::collections::BTreeMap;

use crate::source::identifier;
use crate::tree::{Breach, SourceFile, files, must_be_empty};

/// Programs of their own, outside the workspace: nobody can import a type from them.
const GUESTS: [&str; 2] = ["vm/guest/", "scripts/guest/"];

/// The public types of a file, with their positions.
fn types(file: &SourceFile) -> Vec<(String, usize)> {
    let code = file.code.without_tests();
    let mut found = Vec::new();
    for (at, word) in code.match_indices("pub ") {
        let item = code[at + word.len()..].trim_start_matches("unsafe ");
        let kind = identifier(item);
        if matches!(kind, "struct" | "enum" | "union" | "trait" | "type") {
            let name = identifier(item[kind.len()..].trim_start());
            // A macro's name is a variable.
            if !name.is_empty() {
                found.push((name.to_owned(), at));
            }
        }
    }
    found
}

fn types_of_the_same_name(files: &[SourceFile]) -> Vec<Breach> {
    let mut places = BTreeMap::<_, Vec<_>>::new();
    for file in files.iter().filter(|file| !GUESTS.iter().any(|guest| file.path.starts_with(guest))) {
        for (name, at) in types(file) {
            places.entry(name).or_default().push((file, file.code.line_of(at)));
        }
    }
    places.retain(|_, places| places.len() > 1);
    let mut found = Vec::new();
    for (name, places) in places {
        let text = format!("another type is called {name} too");
        found.extend(places.iter().map(|(file, line)| file.breach(*line, text.clone())));
    }
    found
}

#[test]
fn the_name_of_a_public_type_is_its_own_in_the_whole_workspace() {
    must_be_empty(&types_of_the_same_name(files()));
}

#[test]
fn a_name_that_is_taken_is_found() {
    let planted = [
        SourceFile::new(
            "a/src/b.rs",
            "pub struct Link;\npub enum Own {}\npub(crate) struct Mode;\npub unsafe trait T {}",
        ),
        SourceFile::new(
            "c/src/d.rs",
            "mod inner { pub type Link = u8; }\npub struct Mode;\n#[cfg(test)] mod t { pub struct Own; }",
        ),
        SourceFile::new("vm/guest/src/e.rs", "pub struct T;"),
    ];
    assert_eq!(types_of_the_same_name(&planted).len(), 2);
}
