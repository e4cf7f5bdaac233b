//! Code fits on a screen: lines of 120 columns, functions of 100 lines, files of 600.

use crate::source::identifier;
use crate::tree::{Breach, SourceFile, files, must_be_empty};

const LINE_COLUMNS_MAX: usize = 120;
const FUNCTION_LINES_MAX: usize = 100;
const FILE_LINES_MAX: usize = 600;

fn long_lines(files: &[SourceFile]) -> Vec<Breach> {
    let mut found = Vec::new();
    for file in
        files.iter().filter(|file| file.is_rust() || file.is_shell() || file.is_markdown() || file.is_toml())
    {
        for (number, line) in file.lines() {
            let columns = line.chars().count();
            // Neither a row of a table nor an address can be broken.
            let unbroken = line.contains("://") || file.is_markdown() && line.starts_with('|');
            if columns > LINE_COLUMNS_MAX && !unbroken {
                found.push(file.breach(number, format!("{columns} columns")));
            }
        }
    }
    found
}

fn long_functions(files: &[SourceFile]) -> Vec<Breach> {
    let mut found = Vec::new();
    for file in files {
        let code = &file.code;
        for at in code.words("fn") {
            let name = identifier(code.text[at + 2..].trim_start());
            let Some(body) = code.braces(at).filter(|_| !name.is_empty()) else { continue };
            let first = code.line_of(at);
            let lines = code.line_of(body.end) - first + 1;
            if lines > FUNCTION_LINES_MAX {
                found.push(file.breach(first, format!("fn {name} has {lines} lines")));
            }
        }
    }
    found
}

fn long_files(files: &[SourceFile]) -> Vec<Breach> {
    let sources = files.iter().filter(|file| file.is_rust() || file.is_shell());
    let lines = |file: &SourceFile| file.text.lines().count();
    sources
        .filter(|file| lines(file) > FILE_LINES_MAX)
        .map(|file| file.breach(FILE_LINES_MAX + 1, format!("{} lines", lines(file))))
        .collect()
}

#[test]
fn no_line_is_longer_than_120_columns() {
    must_be_empty(&long_lines(files()));
}

#[test]
fn no_function_is_longer_than_100_lines() {
    must_be_empty(&long_functions(files()));
}

#[test]
fn no_file_is_longer_than_600_lines() {
    must_be_empty(&long_files(files()));
}

#[test]
fn a_long_line_is_found() {
    let long = format!("{}\n{}\n", "ä".repeat(120), "x".repeat(121));
    for path in ["a.rs", "a.sh", "a.md", "a.toml"] {
        assert_eq!(long_lines(&[SourceFile::new(path, &long)]).len(), 1, "{path}");
    }
    assert_eq!(long_lines(&[SourceFile::new("a.md", &format!("| {long}"))]).len(), 1);
}

#[test]
fn a_long_function_is_found() {
    let function =
        |lines: usize| format!("    pub fn deep() {{\n{}    }}\n", "        // {\n".repeat(lines - 2));
    assert_eq!(long_functions(&[SourceFile::new("a.rs", &function(100))]), []);
    assert_eq!(long_functions(&[SourceFile::new("a.rs", &function(101))]).len(), 1);
}

#[test]
fn a_long_file_is_found() {
    assert_eq!(long_files(&[SourceFile::new("a.rs", &"\n".repeat(600))]), []);
    assert_eq!(long_files(&[SourceFile::new("a.rs", &"\n".repeat(601))]).len(), 1);
    assert_eq!(
        long_files(&[SourceFile::new("a", &("#!/usr/bin/env bash\n".to_owned() + &"\n".repeat(600)))]).len(),
        1
    );
}
