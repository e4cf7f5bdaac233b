//! Every constant that is a version or a magic number stands in docs/formats.md: in a row of a table with its file, and
//! with its value where that is a number of ours.

use crate::source::identifier;
use crate::tree::{Breach, SourceFile, file, files, must_be_empty};

const DOCUMENT: &str = "docs/formats.md";
/// What the name of such a constant has in it.
const MARKS: [&str; 5] = ["VERSION", "PROTOCOL", "SCHEMA", "MAGIC", "FINGERPRINT"];

fn undocumented(files: &[SourceFile], document: &SourceFile) -> Vec<Breach> {
    let rows: Vec<Vec<&str>> = document
        .lines()
        .filter(|(_, line)| line.starts_with('|'))
        .map(|(_, line)| line.split('|').map(str::trim).collect())
        .collect();
    let mut found = Vec::new();
    for file in files.iter().filter(|file| file.is_rust() && !file.is_test()) {
        for at in file.code.words("const") {
            let rest = file.code.text[at..].trim_start_matches("const").trim_start();
            let name = identifier(rest);
            if !MARKS.iter().any(|mark| name.contains(mark)) {
                continue;
            }
            let (name_cell, path_cell) = (format!("`{name}`"), format!("`{}`", file.path));
            let row = rows.iter().find(|row| {
                row.contains(&path_cell.as_str())
                    && row.iter().any(|cell| cell.split(", ").any(|one| one == name_cell))
            });
            let declared =
                rest.split(';').next().and_then(|text| text.split_once(" = ")).map(|(_, value)| value);
            // What a feature for tests adds to it does not count.
            let declared: Option<u64> = declared.and_then(|value| value.split(' ').next()?.parse().ok());
            let documented = row.and_then(|row| row.iter().find_map(|cell| cell.parse().ok()));
            if row.is_none() {
                found.push(file.breach(file.code.line_of(at), format!("{DOCUMENT} has no row for {name}")));
            } else if documented.is_some() && documented != declared {
                let told = format!("{name} is {declared:?}, {DOCUMENT} says {documented:?}");
                found.push(file.breach(file.code.line_of(at), told));
            }
        }
    }
    found
}

#[test]
fn every_version_constant_stands_in_the_formats_with_its_value() {
    let document = file(DOCUMENT);
    assert!(!undocumented(files(), &SourceFile::new(DOCUMENT, "")).is_empty(), "no constants are found");
    must_be_empty(&undocumented(files(), document));
}

#[test]
fn a_version_that_is_not_told_or_told_wrongly_is_found() {
    let files = [
        SourceFile::new("a.rs", "pub const VERSION: u16 = 3;\nconst MAGIC: [u8; 2] = *b\"FL\";\n"),
        SourceFile::new("b.rs", "const LOG_VERSION: u8 = 1;\nconst OTHER: u8 = 1;\n"),
    ];
    let document = "| a | `VERSION`, `MAGIC` | 4 | `a.rs` |\n| b | `VERSION` | 1 | `b.rs` |\n";
    let found = undocumented(&files, &SourceFile::new(DOCUMENT, document));
    let places: Vec<_> = found.iter().map(|found| (found.path.as_str(), found.line)).collect();
    assert_eq!(places, [("a.rs", 1), ("a.rs", 2), ("b.rs", 1)]);
    let document = "| a | `VERSION` | 3 | `a.rs` |\n| a | `MAGIC` | `FL` | `a.rs` |\n\
                    | b | `LOG_VERSION` | 1 | `b.rs` |\n";
    assert_eq!(undocumented(&files, &SourceFile::new(DOCUMENT, document)), []);
}
