//! Boot Loader Specification, type 1: a file for each entry, as systemd-boot has them, and Fedora's GRUB.

use super::grub::environment;
use super::{Chosen, glob, readable, text_of, version};
use crate::volume::{Files, Volume};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Where entries are, and the configuration beside them.
const PLACES: [&str; 2] = ["/loader", "/boot/loader"];
/// Where GRUB keeps what it remembers.
const ENVIRONMENTS: [&str; 4] =
    ["/grub2/grubenv", "/boot/grub2/grubenv", "/grub/grubenv", "/boot/grub/grubenv"];
/// Entries that are read at most.
const ENTRIES_MAX: usize = 1000;

/// An entry as its file says.
struct Entry {
    /// Its file's name, without the counter of boots and `.conf`.
    id: String,
    /// The counter of boots says that it failed too often.
    is_bad: bool,
    keys: BTreeMap<String, String>,
    initrds: Vec<String>,
}

impl Entry {
    fn parse(name: &str, text: &str) -> Self {
        let name = name.strip_suffix(".conf").unwrap_or(name);
        // NAME+LEFT or NAME+LEFT-DONE
        let counter = name.rsplit_once('+').and_then(|(id, counter)| {
            let mut parts = counter.splitn(2, '-').map(str::parse::<u32>);
            let left = parts.next()?.ok()?;
            parts.next().is_none_or(|done| done.is_ok()).then_some((id, left))
        });
        let (id, left) = counter.map_or((name, None), |(id, left)| (id, Some(left)));
        let (mut keys, mut initrds) = (BTreeMap::<String, String>::new(), Vec::new());
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            let Some((key, value)) = line.split_once(char::is_whitespace) else { continue };
            let value = value.trim();
            match key {
                "initrd" => initrds.extend(value.split_whitespace().map(str::to_owned)),
                // The lines of options are one line.
                "options" => {
                    let options = keys.entry(key.into()).or_default();
                    options.push(' ');
                    options.push_str(value);
                }
                _ => drop(keys.insert(key.into(), value.into())),
            }
        }
        Self { id: id.into(), is_bad: left == Some(0), keys, initrds }
    }

    fn key(&self, key: &str) -> &str {
        self.keys.get(key).map_or("", String::as_str)
    }

    /// Which one comes first in the menu.
    fn order(&self, other: &Self) -> Ordering {
        let has_no_key = |entry: &Self| entry.key("sort-key").is_empty();
        let by_key = || match has_no_key(self) || has_no_key(other) {
            true => has_no_key(self).cmp(&has_no_key(other)),
            false => self
                .key("sort-key")
                .cmp(other.key("sort-key"))
                .then_with(|| self.key("machine-id").cmp(other.key("machine-id")))
                .then_with(|| version::compare(other.key("version"), self.key("version"))),
        };
        self.is_bad.cmp(&other.is_bad).then_with(by_key).then_with(|| version::compare(&other.id, &self.id))
    }

    /// Why it cannot be booted here.
    fn unfit(&self) -> Option<&'static str> {
        let architecture = self.key("architecture");
        if !architecture.is_empty() && !architecture.eq_ignore_ascii_case("x64") {
            return Some("it is for another architecture");
        }
        self.key("linux").is_empty().then_some("it names no kernel (no line \"linux\")")
    }
}

/// The entry that is the disk's default; none: there is none. Why others are left out is noted.
pub(super) fn choose(volumes: &[Volume], unusable: &mut Vec<String>) -> Option<Chosen> {
    for (index, volume, files) in readable(volumes) {
        for place in PLACES {
            let names = files.list(&format!("{place}/entries")).unwrap_or_default();
            let mut entries = Vec::new();
            for name in names.iter().filter(|name| name.ends_with(".conf")).take(ENTRIES_MAX) {
                let path = format!("{place}/entries/{name}");
                let Some(text) = text_of(files, &path) else { continue };
                let entry = Entry::parse(name, &text);
                match entry.unfit() {
                    Some(why) => unusable.push(format!("{path} of {volume}: {why}")),
                    None => entries.push((path, entry)),
                }
            }
            entries.sort_by(|(_, one), (_, other)| one.order(other));
            let remembered = ENVIRONMENTS.iter().find_map(|path| files.read(path, 1 << 16).ok());
            let remembered = remembered.map(|bytes| environment(&bytes)).unwrap_or_default();
            let wished = [
                text_of(files, &format!("{place}/loader.conf")).and_then(|text| default_of(&text)),
                remembered.get("saved_entry").cloned(),
            ];
            let is_wished = |entry: &Entry, wish: &str| {
                glob::matches(wish, &entry.id) || glob::matches(wish, &format!("{}.conf", entry.id))
            };
            let found = wished
                .iter()
                .flatten()
                .find_map(|wish| entries.iter().find(|(_, entry)| is_wished(entry, wish)))
                .or(entries.first());
            if let Some((path, entry)) = found {
                return Some(chosen(index, volume, files, path, entry, &remembered));
            }
        }
    }
    None
}

/// `default PATTERN` of loader.conf. The last one counts.
fn default_of(text: &str) -> Option<String> {
    let value = |line: &str| {
        let (key, value) = line.trim().split_once(char::is_whitespace)?;
        (key == "default").then(|| value.trim().to_owned())
    };
    text.lines().filter_map(value).next_back()
}

fn chosen(
    index: usize,
    volume: &Volume,
    files: &dyn Files,
    path: &str,
    entry: &Entry,
    remembered: &BTreeMap<String, String>,
) -> Chosen {
    // Paths begin at the root of the file system; GRUB's entries have such that begin below /boot.
    let place = |path: &str| {
        let path = format!("/{}", path.trim_start_matches('/'));
        let below = format!("/boot{path}");
        if !files.has(&path) && files.has(&below) { below } else { path }
    };
    let expand = |word: &str| match word.strip_prefix('$') {
        Some(name) => remembered.get(name).cloned().unwrap_or_default(),
        None => word.to_owned(),
    };
    let options: Vec<String> = entry.key("options").split_whitespace().map(expand).collect();
    let initrds = entry.initrds.iter().filter(|path| !path.starts_with('$')).map(|path| place(path));
    Chosen {
        title: if entry.key("title").is_empty() { entry.id.clone() } else { entry.key("title").into() },
        found_in: format!("{path} of {volume}"),
        volume: index,
        kernel: place(entry.key("linux")),
        initrds: initrds.collect(),
        cmdline: options.join(" "),
    }
}
