//! The manual pages and the completions, as the installed programs make them.

use ftd::manual::{EXAMPLES, Example, example_page};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

const PROGRAMS: [(&str, &str); 2] =
    [("ftd", env!("CARGO_BIN_EXE_ftd")), ("ftctl", env!("CARGO_BIN_EXE_ftctl"))];
const DATE: &str = "2026-01-31";

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).stdin(Stdio::null()).output().unwrap()
}

fn says(program: &str, args: &[&str]) -> String {
    let output = run(program, args);
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Both programs' pages.
fn pages() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (_, program) in PROGRAMS {
        says(program, &["manual", directory.path().to_str().unwrap(), DATE]);
    }
    directory
}

/// What a page says, without the marks of roff.
fn unmarked(page: &str) -> String {
    let lines = page.lines().filter(|line| !line.starts_with(['.', '\'']) || line.starts_with(".SH"));
    let text: Vec<_> = lines
        .map(|line| match line.strip_prefix(".SH ") {
            Some(heading) => heading.trim_matches('"'),
            None => line,
        })
        .collect();
    let marks = [
        ("\\fB", ""),
        ("\\fI", ""),
        ("\\fR", ""),
        ("\\-", "-"),
        ("\\*(Aq", "'"),
        ("\\&", ""),
        ("\\\\", "\\"),
    ];
    marks.iter().fold(text.join("\n"), |text, (mark, plain)| text.replace(mark, plain))
}

/// Every command that the program's help leads to, from `words` on, with its help.
fn commands(program: &str, words: &[&str]) -> Vec<(String, String)> {
    let help = says(program, &[words, &["--help"]].concat());
    let listed = help.split("\nCommands:\n").nth(1).unwrap_or_default();
    let names = listed.lines().take_while(|line| line.starts_with("  "));
    // A name has two blanks before it, what continues its text more.
    let names =
        names.filter(|line| !line.starts_with("   ")).map(|line| line.split_whitespace().next().unwrap());
    let mut found = vec![(words.join("-"), help.clone())];
    for name in names.filter(|name| *name != "help") {
        found.extend(commands(program, &[words, &[name]].concat()));
    }
    found
}

#[test]
fn every_command_has_a_page_with_all_of_its_options_and_codes() {
    let directory = pages();
    let mut expected: BTreeSet<String> =
        EXAMPLES.iter().map(|example| format!("{}.5", example.title)).collect();
    for (name, program) in PROGRAMS {
        for (words, help) in commands(program, &[]) {
            let file =
                [name, &words].iter().filter(|word| !word.is_empty()).copied().collect::<Vec<_>>().join("-");
            let file = format!("{file}.8");
            let page = unmarked(&fs::read_to_string(directory.path().join(&file)).expect(&file));
            let options = help.split_whitespace().filter(|word| word.starts_with("--"));
            for option in options.map(|word| word.trim_end_matches(|c: char| !c.is_ascii_lowercase())) {
                assert!(page.contains(option), "{file} does not have {option}:\n{page}");
            }
            if words.is_empty() {
                let codes = help.split("\nExit codes:\n").nth(1).unwrap();
                let meanings: Vec<_> = codes.split_whitespace().filter(|word| !word.ends_with(':')).collect();
                let page: Vec<_> = page.split_whitespace().collect();
                assert!(meanings.iter().all(|word| page.contains(word)), "{file}: {meanings:?}");
                assert!(page.contains(&"STATUS"), "{file}");
            }
            expected.insert(file);
        }
    }
    let written =
        fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(written.collect::<BTreeSet<_>>(), expected);
    for page in ["ftd-run.8", "ftd-disk-import.8", "ftctl-arbiter-list.8"] {
        assert!(expected.contains(page), "{page}");
    }
}

#[test]
fn a_configurations_page_says_what_its_example_says_word_for_word() {
    let directory = pages();
    for Example { title, about, text } in EXAMPLES {
        let marked = fs::read_to_string(directory.path().join(format!("{title}.5"))).unwrap();
        let page = unmarked(&marked);
        assert!(page.contains(&format!("NAME\n{title} - {about}\n")), "{page}");
        let sorted = |text: &str| {
            let mut words: Vec<_> = text
                .split_whitespace()
                .map(|word| word.trim_matches(['#', '"']))
                .map(str::to_owned)
                .collect();
            words.retain(|word| !word.is_empty());
            words.sort();
            words
        };
        let body = page.split("\nDESCRIPTION\n").nth(1).unwrap().split("\nSEE ALSO").next().unwrap();
        assert_eq!(sorted(body), sorted(text), "{title}");
        let bold: Vec<_> = marked.lines().filter(|line| line.starts_with("\\fB")).map(unmarked).collect();
        let is_key = |line: &&str| {
            let line = line.strip_prefix('#').unwrap_or(line).trim_start();
            line.split_once(" = ").is_some_and(|(key, _)| !key.contains([' ', '"']))
        };
        let keys: Vec<_> = text.lines().filter(is_key).collect();
        assert!(keys.len() > 2, "{title}: {keys:?}");
        assert_eq!(&bold[..keys.len()], keys, "{title}");
    }
}

/// A comment comes after its keys, keys of one comment share it, and what stands alone is a paragraph.
#[test]
fn a_comment_belongs_to_the_keys_that_follow_it() {
    let text = "# About all.\n\n# Of both.\n#one = 1\n# two = 2\n\n# Of the part.\n[part]\nthree = 3\n";
    let page = example_page(&Example { title: "t.toml", about: "a test", text }, DATE);
    let body = page.split(".SH DESCRIPTION\n").nth(1).unwrap().split(".SH \"SEE").next().unwrap();
    let wanted = "About all.\n.TP\n\\fB#one = 1\\fR\n.TQ\n\\fB# two = 2\\fR\nOf both.\n.SH [part]\nOf the part.\n.PP\n\
                  \\fBthree = 3\\fR\n";
    assert_eq!(body, wanted);
}

/// The complaints of a formatter about a page; none where it is not installed.
fn complaints(formatter: &str, args: &[&str], page: &Path) -> String {
    let run = Command::new(formatter)
        .args(args)
        .arg(page)
        .envs([("LC_ALL", "C.UTF-8"), ("MANROFFSEQ", ""), ("MANWIDTH", "80")])
        .stdin(Stdio::null())
        .output();
    match run {
        Ok(Output { stdout, stderr, .. }) => {
            let lines = [stderr, if formatter == "mandoc" { stdout } else { Vec::new() }].concat();
            String::from_utf8_lossy(&lines).into_owned()
        }
        Err(_) => {
            println!("SKIPPED {formatter} is not installed");
            String::new()
        }
    }
}

fn lint(page: &Path) -> String {
    let of_man = complaints("man", &["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"], page);
    let of_mandoc = complaints("mandoc", &["-T", "lint", "-W", "warning"], page);
    // clap_mangen sets possible values apart by more breaks than are needed.
    let of_mandoc = of_mandoc.lines().filter(|line| !line.contains("skipping paragraph macro: br"));
    of_man + &of_mandoc.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_formatters_have_no_complaint_about_any_page() {
    let directory = pages();
    for page in fs::read_dir(&directory).unwrap() {
        let page = page.unwrap().path();
        assert_eq!(page.extension().map(OsStr::len), Some(1), "{page:?}");
        assert_eq!(lint(&page), "", "{page:?}");
    }
}

#[test]
fn a_page_of_a_directory_that_is_not_there_is_refused() {
    for (name, program) in PROGRAMS {
        let output = run(program, &["manual", "/nowhere/at/all", DATE]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).starts_with(&format!("{name}: ")), "{output:?}");
    }
}

#[test]
fn every_shell_completes_the_subcommands_that_help_shows() {
    for (name, program) in PROGRAMS {
        assert_eq!(says(program, &["--version"]), format!("{name} {}\n", env!("CARGO_PKG_VERSION")));
        for shell in ["bash", "zsh", "fish"] {
            let script = says(program, &["completions", shell]);
            assert!(script.contains("help") && script.contains("version"), "{name} {shell}");
            let shown = commands(program, &[]);
            assert!(shown.len() > 10, "{name}: {shown:?}");
            for last in shown.iter().filter_map(|(words, _)| words.rsplit('-').next()) {
                assert!(script.contains(last), "{name} {shell} does not complete {last}");
            }
            for hidden in ["read-image", "lifeline", "manual"] {
                assert!(!script.contains(hidden), "{name} {shell} completes {hidden}");
            }
        }
    }
}

proptest! {
    /// Whatever an example says, nothing of it is taken for a request of roff, and nothing is lost.
    #[test]
    fn no_text_of_an_example_becomes_a_request(lines in prop::collection::vec("#? ?[\\[.'a-z=\\\\\" -]{0,12}", 0..12)) {
        let text: &'static str = lines.join("\n").leak();
        let page = example_page(&Example { title: "t.toml", about: "a test", text }, DATE);
        let requests = [".ie", ".el", ".TH", ".nh", ".ad", ".SH", ".PP", ".TP", ".TQ", ".IP", ".br"];
        for line in page.lines().filter(|line| line.starts_with(['.', '\''])) {
            prop_assert!(requests.iter().any(|request| line.split(' ').next() == Some(request)), "{line}");
        }
        let letters = |text: &str| text.chars().filter(char::is_ascii_lowercase).count();
        let around = letters(&unmarked(&example_page(&Example { title: "t.toml", about: "a test", text: "" }, DATE)));
        prop_assert_eq!(letters(&unmarked(&page)), around + letters(text), "{}", page);
    }
}
