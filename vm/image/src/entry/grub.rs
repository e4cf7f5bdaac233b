//! The entry that GRUB would boot, by the grub.cfg of a distribution. Its language is a small shell: variables, tests,
//! `if`, loops and functions decide which entries there are, so it is executed, within bounds. Commands that have no
//! part in what is booted do nothing, and succeed.

mod parse;
mod run;
mod words;

use super::{BootSearchError, Chosen, readable, text_of};
use crate::volume::Volume;
use parse::Command;
use run::{Linux, Machine, MenuItem};
use std::collections::BTreeMap;

/// Where GRUB's own files are, in a root file system or in its /boot.
const PREFIXES: [&str; 4] = ["/boot/grub", "/boot/grub2", "/grub", "/grub2"];
/// Menus within menus.
const MENUS_MAX: usize = 8;

/// What GRUB remembers: the content of grubenv.
pub(super) fn environment(bytes: &[u8]) -> BTreeMap<String, String> {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once('=')).map(|(key, value)| (key.into(), value.into())).collect()
}

/// The default entry of the first grub.cfg; none: there is no such file, or it has no entry that boots Linux.
pub(super) fn choose(
    volumes: &[Volume],
    unusable: &mut Vec<String>,
) -> Result<Option<Chosen>, BootSearchError> {
    for (index, volume, files) in readable(volumes) {
        for prefix in PREFIXES {
            let path = format!("{prefix}/grub.cfg");
            let Some(text) = text_of(files, &path) else { continue };
            let found_in = format!("{path} of {volume}");
            let mut machine = Machine::new(volumes, index, prefix);
            let found = parse::parse(&text).and_then(|commands| boot(&mut machine, &commands));
            match found.map_err(|why| BootSearchError::Configuration(found_in.clone(), why))? {
                Some((title, Linux { volume, kernel, initrds, cmdline })) => {
                    return Ok(Some(Chosen { title, found_in, volume, kernel, initrds, cmdline }));
                }
                None => unusable.push(format!("{found_in} has no entry that boots Linux")),
            }
        }
    }
    Ok(None)
}

/// Executes the configuration and then the entry that it makes the default; its title, and what it boots.
fn boot(machine: &mut Machine<'_>, commands: &[Command]) -> Result<Option<(String, Linux)>, &'static str> {
    machine.run(commands)?;
    let mut wish = machine.variable("default").to_owned();
    let mut menu = machine.take_menu();
    let mut titles = Vec::new();
    for _ in 0..MENUS_MAX {
        let (first, rest) = wish.split_once('>').unwrap_or((&wish, ""));
        let Some(item) = pick(&menu, first) else { break };
        let (item, rest) = (item.clone(), rest.to_owned());
        titles.push(item.title.clone());
        machine.run_item(&item)?;
        if !item.is_menu {
            break;
        }
        (menu, wish) = (machine.take_menu(), rest);
    }
    Ok(machine.take_linux().map(|linux| (titles.join(" > "), linux)))
}

/// The entry with this number, id or title; the first one if there is none.
fn pick<'m>(menu: &'m [MenuItem], wish: &str) -> Option<&'m MenuItem> {
    let by_number = wish.parse::<usize>().ok().and_then(|number| menu.get(number));
    let by_name = || menu.iter().find(|item| item.id == wish || item.title == wish);
    by_number.or_else(by_name).or(menu.first())
}

/// What a text is parsed and executed to on a disk without anything.
#[cfg(test)]
pub(super) fn executed(text: &str) -> Result<Option<String>, &'static str> {
    let disk = crate::disk::Part::whole(Box::new(Vec::new()));
    let slices = crate::table::read(&disk).map_err(|_| "no disk")?;
    let volumes: Vec<Volume> = slices.into_iter().map(|slice| Volume::open(&disk, slice)).collect();
    let found = boot(&mut Machine::new(&volumes, 0, "/boot/grub"), &parse::parse(text)?)?;
    Ok(found.map(|(title, _)| title))
}
