//! The imports of a Rust file from its own crate: the files that its paths lead to. A name that a `mod.rs` only passes
//! on leads to the file that defines it.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Code, is_word};
use crate::tree::SourceFile;

/// Modules of one crate, each by its path from the crate's root.
pub struct Crate<'a> {
    modules: BTreeMap<Vec<String>, Module<'a>>,
}

struct Module<'a> {
    file: &'a SourceFile,
    paths: Vec<Import>,
}

/// A path in a file.
struct Import {
    position: usize,
    path: Vec<String>,
    /// It only passes the name on.
    is_public: bool,
}

/// An import of one file from another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edge {
    pub from: String,
    pub to: String,
    pub line: usize,
}

impl<'a> Crate<'a> {
    /// The crate whose sources begin with `src`, without its tests and programs.
    pub fn new(files: &'a [SourceFile], src: &str) -> Self {
        let mut modules = BTreeMap::new();
        for file in files.iter().filter(|file| file.is_rust() && !file.is_test()) {
            let Some(inner) = file.path.strip_prefix(src).filter(|inner| !inner.starts_with("bin/")) else {
                continue;
            };
            let mut path: Vec<_> = inner.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
            if matches!(path.last().map(String::as_str), Some("mod" | "lib" | "main")) {
                path.pop();
            }
            let code = file.code.without_tests();
            modules.insert(path, Module { file, paths: paths(&code) });
        }
        Self { modules }
    }

    /// All imports between files, each pair once.
    pub fn edges(&self) -> Vec<Edge> {
        let mut edges = BTreeMap::new();
        for (at, module) in &self.modules {
            for import in &module.paths {
                let Some(path) = self.absolute(at, &import.path) else { continue };
                let Some((to, file)) = self.leads_to(&path, &mut BTreeSet::new()) else { continue };
                let passes_on = import.is_public && to.starts_with(at);
                if to != at && !passes_on {
                    let line = module.file.code.line_of(import.position);
                    edges.entry((module.file.path.clone(), file.path.clone())).or_insert(line);
                }
            }
        }
        edges.into_iter().map(|((from, to), line)| Edge { from, to, line }).collect()
    }

    /// A path of module `at`, from the crate's root; nothing if it leads to another crate.
    fn absolute(&self, at: &[String], path: &[String]) -> Option<Vec<String>> {
        let mut base = at.to_vec();
        let mut rest = path;
        match rest.first()?.as_str() {
            "crate" => {
                base.clear();
                rest = &rest[1..];
            }
            "self" => rest = &rest[1..],
            "super" => {
                while rest.first().is_some_and(|part| part == "super") {
                    base.pop()?;
                    rest = &rest[1..];
                }
            }
            // A child by its name alone.
            child => {
                let child: Vec<_> = at.iter().cloned().chain([child.to_owned()]).collect();
                self.modules.get(&child)?;
            }
        }
        base.extend(rest.iter().cloned());
        Some(base)
    }

    /// The module that defines what `path` names.
    fn leads_to(
        &self,
        path: &[String],
        seen: &mut BTreeSet<Vec<String>>,
    ) -> Option<(&Vec<String>, &SourceFile)> {
        if !seen.insert(path.to_vec()) {
            return None;
        }
        let length = (0..=path.len()).rev().find(|length| self.modules.contains_key(&path[..*length]))?;
        let (at, module) = self.modules.get_key_value(&path[..length])?;
        if let Some(name) = path.get(length) {
            for import in
                module.paths.iter().filter(|import| import.is_public && import.path.last() == Some(name))
            {
                let passed_on = self.absolute(at, &import.path);
                if let Some(found) = passed_on.and_then(|path| self.leads_to(&path, seen)) {
                    return Some(found);
                }
            }
        }
        Some((at, module.file))
    }
}

/// Every path in a code: those of `use`, each branch of a tree one, and others that begin with crate, self or super.
fn paths(text: &str) -> Vec<Import> {
    let code = Code::of(text);
    let mut found = Vec::new();
    let mut rest = text.to_owned();
    for at in code.words("use") {
        let Some(length) = text[at..].find(';') else { continue };
        // "pub", or "pub(...)".
        let is_public = text[..at].trim_end().ends_with(')') || text[..at].trim_end().ends_with("pub");
        let tree: String = text[at + 3..at + length].split_whitespace().collect::<Vec<_>>().join(" ");
        let mut branches = Vec::new();
        expand(&tree, &[], &mut branches);
        found.extend(branches.into_iter().map(|path| Import { position: at, path, is_public }));
        rest.replace_range(at..at + length, &" ".repeat(length));
    }
    for root in ["crate", "self", "super"] {
        for at in Code::of(&rest).words(root) {
            let is_start = !rest[..at].ends_with("::");
            let length =
                rest[at..].bytes().position(|byte| !is_word(byte) && byte != b':').unwrap_or(rest.len() - at);
            let word = &rest[at..at + length];
            if is_start && word.contains("::") {
                let path = word.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect();
                found.push(Import { position: at, path, is_public: false });
            }
        }
    }
    found
}

/// The branches of a tree of imports: `a::{b, c::d}` is a::b and a::c::d.
fn expand(tree: &str, prefix: &[String], branches: &mut Vec<Vec<String>>) {
    let tree = tree.trim();
    let (head, inner) = match tree.find('{') {
        Some(open) => (&tree[..open], tree[open + 1..].strip_suffix('}')),
        None => (tree.split(" as ").next().unwrap_or(tree), None),
    };
    let parts = head.split("::").map(str::trim).filter(|part| !part.is_empty() && *part != "*");
    let mut path: Vec<_> = prefix.iter().cloned().chain(parts.map(str::to_owned)).collect();
    let Some(inner) = inner else {
        if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        branches.push(path);
        return;
    };
    let mut depth = 0;
    let split = |c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    };
    for branch in inner.split(split).filter(|branch| !branch.trim().is_empty()) {
        expand(branch, &path, branches);
    }
}

#[test]
fn trees_of_imports_are_expanded() {
    let mut branches = Vec::new();
    expand("super::{a::{self, B as C}, d::*, E}", &[], &mut branches);
    let branches: Vec<_> = branches.iter().map(|path| path.join("::")).collect();
    assert_eq!(branches, ["super::a", "super::a::B", "super::d", "super::E"]);
}

#[test]
fn a_name_that_is_passed_on_leads_to_its_file() {
    let files = [
        SourceFile::new("a/src/lib.rs", "pub mod r;\nuse r::X;\n"),
        SourceFile::new("a/src/r/mod.rs", "mod x;\nmod y;\npub use x::{W, X};\n"),
        SourceFile::new(
            "a/src/r/x.rs",
            "pub struct W;\npub struct X;\n#[cfg(test)]\nmod tests { use super::super::y::Y; }\n",
        ),
        SourceFile::new("a/src/r/y.rs", "use super::X;\nfn f() {\n    crate::r::W;\n    self::Y;\n}\n"),
        SourceFile::new("a/src/r/z.rs", "fn f() { super::y::Y::new(); }\n"),
    ];
    let edges: Vec<_> =
        Crate::new(&files, "a/src/").edges().into_iter().map(|edge| (edge.from, edge.to)).collect();
    let edge = |from: &str, to: &str| (format!("a/src/{from}.rs"), format!("a/src/{to}.rs"));
    assert_eq!(edges, [edge("lib", "r/x"), edge("r/y", "r/x"), edge("r/z", "r/y")]);
}
