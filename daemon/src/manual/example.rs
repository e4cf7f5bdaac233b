//! A configuration's page, made from its explained example.

use super::{COMMANDS, FORMATS, MANUAL, SOURCE, see_also, unbroken};
use clap_mangen::roff::{Roff, bold, roman};
use std::io;
use std::path::Path;

/// A configuration file, as its example explains it.
pub struct Example {
    /// Of its page, in section 5.
    pub title: &'static str,
    /// What the file is, in a line.
    pub about: &'static str,
    /// The example.
    pub text: &'static str,
}

/// Every configuration that ftd reads.
pub const EXAMPLES: [Example; 2] = [
    Example {
        title: "ftd.toml",
        about: "configuration of one protected VM on one node",
        text: include_str!("../../../scripts/systemd/ftd.example.toml"),
    },
    Example {
        title: "ftd-arbiter.toml",
        about: "configuration of the arbiter's service",
        text: include_str!("../../../scripts/systemd/ftd-arbiter.example.toml"),
    },
];

/// Writes `TITLE.5` for each of them into a directory that is there. The date is as `2026-01-31`.
pub fn write_configuration_pages(date: &str, directory: &Path) -> io::Result<()> {
    EXAMPLES.iter().try_for_each(|example| {
        std::fs::write(directory.join(format!("{}.{FORMATS}", example.title)), example_page(example, date))
    })
}

/// What a line of an example is.
enum ExampleLine<'a> {
    Empty,
    /// Without the `#` and the blank after it.
    Text(&'a str),
    /// `[section]`, also one that is commented out.
    Section(&'a str),
    /// `key = value`, `#key = value` (its default) or `# key = value` (an example).
    Key(&'a str),
}

impl<'a> ExampleLine<'a> {
    fn of(line: &'a str) -> Self {
        let line = line.trim_end();
        let comment = line.strip_prefix('#').map(|text| text.strip_prefix(' ').unwrap_or(text));
        let said = comment.unwrap_or(line);
        let key = said.split_once(" = ").map(|(key, _)| key);
        let is_key =
            |key: &str| !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || "._".contains(c));
        match comment {
            _ if line.is_empty() => Self::Empty,
            _ if said.starts_with('[') && said.ends_with(']') => Self::Section(said),
            _ if key.is_some_and(is_key) => Self::Key(line),
            Some(text) => Self::Text(text),
            None => Self::Key(line),
        }
    }
}

/// A configuration's page in roff, with the example's comments word for word: a comment belongs to the keys or to the
/// section that follow it at once, else it stands alone. Lines that are indented in a comment stay lines. The date is
/// as `2026-01-31`.
pub fn example_page(example: &Example, date: &str) -> String {
    let Example { title, about, text } = example;
    let mut page = ExamplePage { roff: Roff::new(), at_heading: true, text: Vec::new(), keys: Vec::new() };
    page.roff.control("TH", [title, FORMATS, date, SOURCE, MANUAL]);
    unbroken(&mut page.roff).control("SH", ["NAME"]).text([roman(format!("{title} - {about}"))]);
    page.roff.control("SH", ["DESCRIPTION"]);
    text.lines().map(ExampleLine::of).for_each(|line| page.add(line));
    page.end_entry();
    page.roff.extend([see_also(&[("ftd", COMMANDS), ("ftctl", COMMANDS)])]);
    page.roff.render()
}

/// A page that is being made, and the entry under way: its text, then its keys.
struct ExamplePage<'a> {
    roff: Roff,
    /// Nothing has followed the last heading yet.
    at_heading: bool,
    text: Vec<&'a str>,
    keys: Vec<&'a str>,
}

impl<'a> ExamplePage<'a> {
    fn add(&mut self, line: ExampleLine<'a>) {
        // What comes after a key begins anew, but for another key.
        if !self.keys.is_empty() && !matches!(line, ExampleLine::Key(_)) {
            self.end_entry();
        }
        match line {
            ExampleLine::Empty => self.end_entry(),
            ExampleLine::Text(text) => self.text.push(text),
            ExampleLine::Key(key) => self.keys.push(key),
            ExampleLine::Section(section) => {
                self.roff.control("SH", [section]);
                self.at_heading = true;
                self.end_entry();
            }
        }
    }

    fn end_entry(&mut self) {
        let (text, keys) = (std::mem::take(&mut self.text), std::mem::take(&mut self.keys));
        for (at, key) in keys.iter().enumerate() {
            match (text.is_empty(), at) {
                // Keys without a text have nothing that could stand beside them.
                (true, 0) => self.paragraph("PP"),
                (true, _) => self.roff.control("br", []),
                (false, 0) => self.roff.control("TP", []),
                (false, _) => self.roff.control("TQ", []),
            };
            self.roff.text([bold(*key)]);
        }
        for (at, paragraph) in text.split(|line| line.is_empty()).enumerate() {
            match (keys.is_empty(), at) {
                _ if paragraph.is_empty() => continue,
                (true, _) => self.paragraph("PP"),
                (false, 0) => &mut self.roff,
                (false, _) => self.roff.control("IP", []),
            };
            for line in paragraph {
                // A blank at its beginning gives a line to itself.
                self.roff.text([roman(*line)]);
            }
        }
        self.at_heading &= text.is_empty() && keys.is_empty();
    }

    /// A heading begins a paragraph by itself.
    fn paragraph(&mut self, with: &str) -> &mut Roff {
        if std::mem::take(&mut self.at_heading) { &mut self.roff } else { self.roff.control(with, []) }
    }
}
