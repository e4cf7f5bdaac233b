//! A path that a comment or a document names exists: a file that moves takes its mentions along.

use std::collections::HashSet;

use crate::tree::{Breach, SourceFile, files, must_be_empty};

/// A name that ends so is a file's.
const EXTENSIONS: [&str; 7] = [".rs", ".sh", ".toml", ".md", ".jq", ".service", ".json"];

/// The lines of a file with what of each is no code: of Markdown all, else the comment.
fn comments(file: &SourceFile) -> Vec<(usize, &str)> {
    if file.is_rust() {
        (1..).zip(file.code.comments.lines()).collect()
    } else if file.is_markdown() {
        file.lines().collect()
    } else {
        file.lines().map(|(number, line)| (number, after_hash(line))).collect()
    }
}

/// The comment of a line of shell or TOML: its mark begins the line or stands after a space.
fn after_hash(line: &str) -> &str {
    let mut marks = line.match_indices('#').map(|(at, _)| at);
    marks.find(|at| *at == 0 || line[..*at].ends_with(' ')).map_or("", |at| &line[at..])
}

/// The words of a comment that may be paths.
fn words(comment: &str) -> impl Iterator<Item = &str> {
    let parts = |c: char| !(c.is_ascii_alphanumeric() || "_./-:<>*{}$@~".contains(c));
    comment.split(parts).map(|word| word.trim_end_matches(['.', ':', '/'])).filter(|word| !word.is_empty())
}

/// What the paths of the repository are compared with.
struct Known<'a> {
    files: HashSet<&'a str>,
    directories: HashSet<&'a str>,
    /// First parts of all paths that have a second.
    tops: HashSet<&'a str>,
}

impl<'a> Known<'a> {
    fn new(files: &'a [SourceFile]) -> Self {
        let paths = || files.iter().map(|file| file.path.as_str());
        let directories = |path: &'a str| path.match_indices('/').map(move |(at, _)| &path[..at]);
        Self {
            files: paths().collect(),
            directories: paths().flat_map(directories).collect(),
            tops: paths().filter_map(|path| Some(path.split_once('/')?.0)).collect(),
        }
    }

    /// Whether a word of a comment names something of the repository that is not there.
    fn is_broken(&self, word: &str) -> bool {
        // Elsewhere, a pattern, or a path of a program.
        if word.starts_with(['/', '.', '-', '~'])
            || word.contains("::")
            || word.contains(['<', '*', '{', '$', ':', '@'])
        {
            return false;
        }
        if self.files.contains(word) || self.directories.contains(word) {
            return false;
        }
        if EXTENSIONS.iter().any(|extension| word.ends_with(extension)) {
            // Named from its crate or its folder.
            let end = format!("/{word}");
            // A configuration, or its manual page, by the name that it has where it is installed.
            let example =
                word.strip_suffix(".toml").map_or(end.clone(), |name| format!("/{name}.example.toml"));
            return !self.files.iter().any(|path| path.ends_with(&end) || path.ends_with(&example));
        }
        word.split_once('/').is_some_and(|(top, _)| self.tops.contains(top))
    }
}

fn broken_paths(files: &[SourceFile]) -> Vec<Breach> {
    let known = Known::new(files);
    let mut found = Vec::new();
    for file in files {
        if !(file.is_rust() || file.is_shell() || file.is_markdown() || file.is_toml()) {
            continue;
        }
        for (number, comment) in comments(file) {
            let broken = words(comment).filter(|word| known.is_broken(word));
            found.extend(broken.map(|word| file.breach(number, format!("there is no {word}"))));
        }
    }
    found
}

/// The targets of Markdown's links that are no addresses, relative to the file.
fn broken_links(files: &[SourceFile]) -> Vec<Breach> {
    let known = Known::new(files);
    let mut found = Vec::new();
    for file in files.iter().filter(|file| file.is_markdown()) {
        for (number, line) in file.lines() {
            for target in line.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
                if target.is_empty() || target.contains("://") {
                    continue;
                }
                let mut parts: Vec<_> = file.path.split('/').collect();
                parts.pop();
                for part in target.trim_end_matches('/').split('/') {
                    match part {
                        "." => {}
                        ".." => drop(parts.pop()),
                        _ => parts.push(part),
                    }
                }
                let path = parts.join("/");
                if !known.files.contains(path.as_str()) && !known.directories.contains(path.as_str()) {
                    found.push(file.breach(number, format!("the link's target {target} is not there")));
                }
            }
        }
    }
    found
}

#[test]
fn every_path_named_in_a_comment_or_a_document_exists() {
    must_be_empty(&broken_paths(files()));
}

#[test]
fn every_link_of_a_document_has_its_target() {
    must_be_empty(&broken_links(files()));
}

#[test]
fn a_broken_path_is_found() {
    let planted = [
        SourceFile::new(
            "vm/a.rs",
            "//! See `vm/b/gone.rs`, vm/a.rs, `a.rs`.\nlet x = \"vm/code.rs\"; // vm/gone\n",
        ),
        SourceFile::new("b.sh", "#!/bin/sh\ncat vm/x # gone.sh, but not ./gone.sh nor vm/$name\n"),
        SourceFile::new("c.md", "The file `vm/gone/d.toml`. Its manual is at https://a/vm/e.rs.\n"),
        SourceFile::new("vm/f.example.toml", "# f.toml, but not g.toml\n"),
    ];
    let lines: Vec<_> = broken_paths(&planted).iter().map(|found| (found.path.clone(), found.line)).collect();
    let found = [("vm/a.rs", 1), ("vm/a.rs", 2), ("b.sh", 2), ("c.md", 1), ("vm/f.example.toml", 1)];
    assert_eq!(lines, found.map(|(path, line)| (path.to_owned(), line)));
}

#[test]
fn a_broken_link_is_found() {
    let planted = [
        SourceFile::new(
            "docs/a.md",
            "[b](b.md), [c](../c.md#part), [d](#here), [e](https://e), [f](../f.md)\n",
        ),
        SourceFile::new("c.md", ""),
    ];
    assert_eq!(broken_links(&planted).len(), 2);
}
