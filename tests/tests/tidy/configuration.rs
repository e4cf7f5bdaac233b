//! The example of the configuration has every key that the daemon takes: `#key = value` where there is a default,
//! `# key = value` where none is needed and there is none. That the defaults are the true ones is a test of the daemon,
//! which reads the example with and without them.

use std::collections::BTreeMap;

use crate::source::identifier;
use crate::tree::{Breach, SourceFile, file, files, must_be_empty};

const EXAMPLE: &str = "scripts/systemd/ftd.example.toml";
/// The structure that is the whole file.
const WHOLE: &str = "Config";

/// How a key stands in the example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `key = value`
    Given,
    /// `#key = value`
    Default,
    /// `# key = value`
    Optional,
}

/// A field of a structure of the configuration.
struct Field {
    key: String,
    kind: String,
    has_default: bool,
    file: String,
    line: usize,
}

/// The structures that are read from the file, by name: those that refuse unknown keys.
fn sections(files: &[SourceFile]) -> BTreeMap<String, Vec<Field>> {
    let mut sections = BTreeMap::new();
    for file in files.iter().filter(|file| file.path.starts_with("daemon/src/config") && !file.is_test()) {
        for (at, _) in file.text.match_indices("deny_unknown_fields") {
            let Some(start) = file.code.text[at..].find("struct ") else { continue };
            let name = identifier(&file.code.text[at + start + 7..]);
            let all_default =
                file.text[at..at + start].split(')').next().is_some_and(|rest| rest.contains("default"));
            let Some(body) = file.code.braces(at + start) else { continue };
            sections.insert(name.to_owned(), fields(file, body.start + 1, body.end - 1, all_default));
        }
    }
    sections
}

fn fields(file: &SourceFile, start: usize, end: usize, all_default: bool) -> Vec<Field> {
    let mut fields = Vec::new();
    let mut attributes = String::new();
    let mut at = start;
    for line in file.text[start..end].split_inclusive('\n') {
        let trimmed = line.trim();
        if trimmed.starts_with("#[") {
            attributes += trimmed;
        } else if let Some((name, kind)) =
            trimmed.strip_prefix("pub ").and_then(|field| field.split_once(": "))
        {
            // A key that a build for tests has besides is nobody's.
            if attributes.contains("cfg(feature") {
                attributes.clear();
                at += line.len();
                continue;
            }
            let renamed = attributes.split_once("rename = \"").and_then(|(_, rest)| rest.split('"').next());
            fields.push(Field {
                key: renamed.unwrap_or(name).to_owned(),
                kind: kind.trim_end_matches(',').to_owned(),
                has_default: all_default || attributes.contains("default"),
                file: file.path.clone(),
                line: file.code.line_of(at + line.len() - line.trim_start().len()),
            });
            attributes.clear();
        }
        at += line.len();
    }
    fields
}

/// The keys of the example, each with its section, as `section.key`.
fn example_keys(example: &str) -> BTreeMap<String, Form> {
    let mut keys = BTreeMap::new();
    let mut section = String::new();
    for line in example.lines() {
        let (form, rest) = match line.strip_prefix('#') {
            None => (Form::Given, line),
            Some(rest) => match rest.strip_prefix(' ') {
                None => (Form::Default, rest),
                Some(rest) => (Form::Optional, rest),
            },
        };
        if let Some(name) = rest.strip_prefix('[').filter(|name| name.ends_with(']')) {
            section = name.trim_matches(['[', ']']).to_owned() + ".";
        } else if let Some((key, _)) = rest.split_once(" = ")
            && identifier(key) == key
        {
            keys.insert(format!("{section}{key}"), form);
        }
    }
    keys
}

fn missing_keys(files: &[SourceFile], example: &str) -> Vec<Breach> {
    let sections = sections(files);
    let mut keys = example_keys(example);
    let mut found = Vec::new();
    let mut waiting = vec![(String::new(), WHOLE)];
    while let Some((prefix, name)) = waiting.pop() {
        for field in sections.get(name).into_iter().flatten() {
            let key = format!("{prefix}{}", field.key);
            let inner = field.kind.rsplit('<').next().unwrap_or_default().trim_end_matches('>');
            if sections.contains_key(inner) {
                waiting.push((key + ".", inner));
                continue;
            }
            let is_option = field.kind.starts_with("Option<");
            let form = keys.remove(&key);
            let is_right = match form {
                None => false,
                Some(Form::Default) => field.has_default && !is_option,
                Some(Form::Optional) => is_option || prefix == "machine.disk.",
                // An example of an own value says no default.
                Some(Form::Given) => is_option || !field.has_default || field.kind.starts_with("Vec<"),
            };
            if !is_right {
                let text = format!("{key} stands in the example as {form:?}");
                found.push(Breach { path: field.file.clone(), line: field.line, text });
            }
        }
    }
    let unknown =
        |(key, _)| Breach { path: EXAMPLE.into(), line: 1, text: format!("the daemon has no key {key}") };
    found.extend(keys.into_iter().map(unknown));
    found
}

#[test]
fn every_key_of_the_configuration_stands_in_the_example() {
    assert!(sections(files()).len() >= 9, "the structures of the configuration are not found");
    must_be_empty(&missing_keys(files(), &file(EXAMPLE).text));
}

#[test]
fn a_key_that_the_example_lacks_is_found() {
    let planted = "#[derive(Deserialize)]\n\
                   #[serde(deny_unknown_fields)]\npub struct Config {\n    /// A.\n    pub a: u8,\n\
                   \x20   pub b: BConfig,\n}\n#[serde(deny_unknown_fields, default)]\npub struct BConfig {\n\
                   \x20   pub c: u8,\n    pub d: Option<u8>,\n    #[serde(rename = \"f\")]\n    pub e: Vec<u8>,\n}\n";
    let check = |example: &str| -> Vec<_> {
        let files = [SourceFile::new("daemon/src/config.rs", planted)];
        missing_keys(&files, example).iter().map(|breach| breach.line).collect()
    };
    assert_eq!(check("a = 1\n[b]\n#c = 2\n# d = 3\n#f = []\n"), [0; 0]);
    assert_eq!(check("a = 1\n[b]\n# d = 3\n#f = []\n"), [10], "none");
    assert_eq!(check("a = 1\n[b]\n# c = 2\n# d = 3\n#f = []\n"), [10], "no default");
    assert_eq!(check("a = 1\n#c = 2\n[b]\n# d = 3\n#f = []\n"), [10, 1], "in another section");
    assert_eq!(check("a = 1\n[b]\n#c = 2\n# d = 3\n#f = []\n#g = 1\n"), [1], "one too many");
}
