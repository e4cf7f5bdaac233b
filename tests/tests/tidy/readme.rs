//! README's tables that come from the bench stand between marks, so that `scripts/bench --write-readme` fills them in.

use crate::tree::{Breach, SourceFile, file, must_be_empty};

const WRITER: &str = "scripts/lib/bench-readme.sh";

/// The tables that the bench writes: each is named in a call of `bench_readme_replace`.
fn written_tables(script: &str) -> Vec<&str> {
    let calls = script.split("bench_readme_replace ").skip(1);
    let names = calls.filter_map(|rest| rest.split_whitespace().next());
    names.filter(|name| name.bytes().all(|byte| byte.is_ascii_lowercase())).collect()
}

fn unmarked_tables(readme: &SourceFile, tables: &[&str]) -> Vec<Breach> {
    let mut found = Vec::new();
    let lines_with = |mark: &str| -> Vec<_> {
        readme.lines().filter(|(_, line)| *line == mark).map(|(number, _)| number).collect()
    };
    for table in tables {
        let begin = lines_with(&format!("<!-- bench: begin {table} -->"));
        let end = lines_with(&format!("<!-- bench: end {table} -->"));
        let (&[begin], &[end]) = (begin.as_slice(), end.as_slice()) else {
            found.push(readme.breach(1, format!("the marks of table {table} are not there once each")));
            continue;
        };
        let rows =
            readme.lines().filter(|(number, line)| (begin..end).contains(number) && line.starts_with('|'));
        if rows.count() < 3 {
            found.push(readme.breach(begin, format!("no table between the marks of {table}")));
        }
    }
    for (number, line) in readme.lines().filter(|(_, line)| line.starts_with("<!-- bench: ")) {
        if !tables.iter().any(|table| line.ends_with(&format!(" {table} -->"))) {
            found.push(readme.breach(number, format!("a mark of no table of the bench: {line}")));
        }
    }
    found
}

#[test]
fn the_tables_that_the_bench_measures_carry_its_marks() {
    let tables = written_tables(&file(WRITER).text);
    assert!(tables.len() >= 3, "{WRITER} writes {tables:?}");
    must_be_empty(&unmarked_tables(file("README.md"), &tables));
}

#[test]
fn a_table_without_marks_is_found() {
    let marked = |name: &str| {
        format!("<!-- bench: begin {name} -->\n| a |\n|---|\n| 1 |\n<!-- bench: end {name} -->\n")
    };
    let tables = written_tables("replace() { bench_readme_replace main x | bench_readme_replace soft y; }\n");
    assert_eq!(tables, ["main", "soft"]);
    let check = |text: String| unmarked_tables(&SourceFile::new("README.md", &text), &tables).len();
    assert_eq!(check(marked("main") + &marked("soft")), 0);
    assert_eq!(check(marked("main")), 1);
    assert_eq!(check(marked("main") + &marked("soft") + &marked("soft")), 1);
    assert_eq!(check(marked("main") + &marked("soft") + &marked("old")), 2);
    assert_eq!(check(marked("main") + &marked("soft").replace('|', "-")), 1);
}
