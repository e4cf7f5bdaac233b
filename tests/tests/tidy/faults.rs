//! `docs/faults.md` promises nothing that no test shows, and every fault script stands in it.

use crate::tree::{Breach, SourceFile, file, files, must_be_empty};

const PAGE: &str = "docs/faults.md";
const COLUMNS: usize = 4;

/// The cells of a table's row; none of a heading, a rule, or a line of text.
fn cells(line: &str) -> Option<Vec<&str>> {
    let row = line.strip_prefix('|')?.strip_suffix('|')?;
    let cells: Vec<_> = row.split('|').map(str::trim).collect();
    (cells[0] != "fault" && !cells[0].starts_with("---")).then_some(cells)
}

/// The words between backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Whether a proof is there: a script, or a test as `file.rs: name`.
fn exists(proof: &str, files: &[SourceFile]) -> bool {
    let (path, test) = proof.split_once(": ").map_or((proof, None), |(path, test)| (path, Some(test)));
    let named = |file: &SourceFile| match test {
        Some(test) => file.code.text.contains(&format!("fn {test}(")),
        None => file.path.starts_with("scripts/"),
    };
    files.iter().any(|file| file.path == path && named(file))
}

fn unproven(page: &SourceFile, files: &[SourceFile]) -> Vec<Breach> {
    let mut found = Vec::new();
    for (number, line) in page.lines() {
        let Some(cells) = cells(line) else { continue };
        if cells.len() != COLUMNS || cells.iter().any(|cell| cell.is_empty()) {
            found.push(page.breach(number, format!("a row has {COLUMNS} cells, none of them empty")));
            continue;
        }
        if quoted(cells[3]).next().is_none() {
            found.push(page.breach(number, "nothing shows it"));
        }
        for proof in quoted(cells[3]).filter(|proof| !exists(proof, files)) {
            found.push(page.breach(number, format!("there is no {proof}")));
        }
    }
    let scripts = files.iter().filter(|file| {
        file.path.strip_prefix("scripts/faults/").is_some_and(|name| !name.contains(['.', '/']))
    });
    for script in scripts.filter(|script| !page.text.contains(&format!("`{}`", script.path))) {
        found.push(script.breach(1, format!("{PAGE} does not say what this fault comes to")));
    }
    found
}

#[test]
fn every_promise_about_a_fault_is_shown_by_a_test_and_every_fault_script_keeps_one() {
    must_be_empty(&unproven(file(PAGE), files()));
}

#[test]
fn a_promise_without_a_test_and_a_fault_without_a_promise_are_found() {
    let rows = "| fault | sees | VM | shown by |\n|---|---|---|---|\n| a | b | c | `scripts/faults/kill` |\n";
    let files = |rows: &str| {
        vec![
            SourceFile::new(PAGE, rows),
            SourceFile::new("scripts/faults/kill", "#!/usr/bin/env bash\n"),
            SourceFile::new("tests/e2e/loss.rs", "fn survives() {}\n// fn never() {}"),
        ]
    };
    let breaches = |more: &str| {
        let files = files(&format!("{rows}{more}"));
        unproven(&files[0], &files).len()
    };
    assert_eq!(breaches("| a | b | c | `tests/e2e/loss.rs: survives` |\n"), 0);
    assert_eq!(breaches("| a | b | c | `tests/e2e/loss.rs: never` |\n"), 1);
    assert_eq!(breaches("| a | b | c | it is so |\n| a | | c | `scripts/faults/kill` |\n| a | b |\n"), 3);
    let files = files("no table");
    assert_eq!(unproven(&files[0], &files).len(), 1);
}
