//! The repository's files: those that git knows or would add, or, in a copy without git, all but what a build makes.

use std::fmt::{self, Display};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use crate::source::Code;

/// A text file of the repository.
pub struct SourceFile {
    /// From the repository's root, with slashes.
    pub path: String,
    pub text: String,
    /// Of Rust files the code alone; of others nothing.
    pub code: Code,
}

impl SourceFile {
    pub fn new(path: &str, text: &str) -> Self {
        let code = if path.ends_with(".rs") { Code::of(text) } else { Code::default() };
        Self { path: path.into(), text: text.into(), code }
    }

    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    pub fn is_markdown(&self) -> bool {
        self.path.ends_with(".md")
    }

    pub fn is_toml(&self) -> bool {
        self.path.ends_with(".toml")
    }

    pub fn is_shell(&self) -> bool {
        self.path.ends_with(".sh")
            || self.text.starts_with("#!/bin/sh")
            || self.text.starts_with("#!/usr/bin/env bash")
    }

    /// Whether it is compiled for tests alone.
    pub fn is_test(&self) -> bool {
        self.path.split('/').any(|part| matches!(part, "tests" | "tests.rs" | "benches"))
    }

    /// The last part of its path.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// The lines with their numbers, from 1.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.text.lines())
    }

    /// A breach at a line of this file.
    pub fn breach(&self, line: usize, text: impl Into<String>) -> Breach {
        Breach { path: self.path.clone(), line, text: text.into() }
    }
}

/// A place that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    pub path: String,
    pub line: usize,
    pub text: String,
}

impl Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.text)
    }
}

/// Where the repository begins.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository").to_owned()
}

/// All text files of the repository.
pub fn files() -> &'static [SourceFile] {
    static FILES: LazyLock<Vec<SourceFile>> = LazyLock::new(|| {
        let root = root();
        let mut paths = known_to_git(&root).unwrap_or_else(|| {
            let mut paths = Vec::new();
            walk(&root, "", &mut paths);
            paths
        });
        paths.sort();
        let read = |path: &String| Some(SourceFile::new(path, &fs::read_to_string(root.join(path)).ok()?));
        let files: Vec<_> = paths.iter().filter_map(read).collect();
        assert!(files.len() > 100, "the repository's files are not found below {}", root.display());
        files
    });
    &FILES
}

/// The file at this path.
pub fn file(path: &str) -> &'static SourceFile {
    files().iter().find(|file| file.path == path).unwrap_or_else(|| panic!("{path} is not there"))
}

/// Fails with a list of all breaches.
#[track_caller]
pub fn must_be_empty(breaches: &[Breach]) {
    let list: String = breaches.iter().flat_map(|breach| ["\n  ".into(), breach.to_string()]).collect();
    assert!(breaches.is_empty(), "{} breaches:{list}", breaches.len());
}

fn known_to_git(root: &Path) -> Option<Vec<String>> {
    // A copy may lie in somebody else's repository.
    root.join(".git").exists().then_some(())?;
    let output = Command::new("git")
        .args(["-c", "safe.directory=*", "-C"])
        .arg(root)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .ok()?;
    let names = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    Some(names.split_terminator('\0').map(str::to_owned).collect())
}

fn walk(directory: &Path, prefix: &str, paths: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && !matches!(name.as_str(), "target" | ".git") => {
                walk(&entry.path(), &format!("{path}/"), paths);
            }
            Ok(kind) if kind.is_file() => paths.push(path),
            _ => {}
        }
    }
}

#[test]
fn a_copy_without_git_has_the_same_files() {
    let Some(mut known) = known_to_git(&root()) else { return };
    known.retain(|path| root().join(path).is_file());
    let mut walked = Vec::new();
    walk(&root(), "", &mut walked);
    let missed: Vec<_> = known.iter().filter(|path| !walked.contains(path)).collect();
    assert!(missed.is_empty(), "{missed:?}");
}
