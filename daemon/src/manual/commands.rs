//! A program's pages: one for itself, and one for each of its subcommands, as `man ftd-disk-import`.

use super::{COMMANDS, FORMATS, MANUAL, SOURCE, see_also, unbroken};
use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};
use std::io;
use std::path::Path;

/// The pages that each page of a command points to, besides the page of its program.
const RELATED: [(&str, &str); 4] =
    [("ftd", COMMANDS), ("ftctl", COMMANDS), ("ftd.toml", FORMATS), ("ftd-arbiter.toml", FORMATS)];

/// Writes `PROGRAM.8`, and `PROGRAM-SUBCOMMAND.8` for every subcommand that is not hidden, into a directory that is
/// there. What follows the program's help is taken for its exit codes. The date is as `2026-01-31`.
pub fn write_command_pages(program: Command, date: &str, directory: &Path) -> io::Result<()> {
    let mut program = in_one_paragraph(program.disable_help_subcommand(true));
    program.build();
    write_pages(&program, date, directory)
}

/// A page cannot have an empty line in the help of an option. The first paragraph of help has no full stop.
fn in_one_paragraph(command: Command) -> Command {
    command
        .mut_args(|arg| match arg.get_long_help() {
            Some(help) => {
                let help = help.to_string().replace(".\n\n", "\n\n").replace("\n\n", ". ");
                arg.long_help(help)
            }
            None => arg,
        })
        .mut_subcommands(in_one_paragraph)
}

fn write_pages(command: &Command, date: &str, directory: &Path) -> io::Result<()> {
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        write_pages(subcommand, date, directory)?;
    }
    let man = Man::new(command.clone()).section(COMMANDS).date(date).source(SOURCE).manual(MANUAL);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    unbroken(&mut Roff::new()).to_writer(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.get_subcommands().any(|subcommand| !subcommand.is_hide_set()) {
        man.render_subcommands_section(&mut page)?;
    }
    if let Some(codes) = command.get_after_help() {
        exit_status(&codes.to_string()).to_writer(&mut page)?;
    }
    let name = command.get_display_name().unwrap_or(command.get_name());
    let others: Vec<_> = RELATED.into_iter().filter(|(other, _)| *other != name).collect();
    see_also(&others).to_writer(&mut page)?;
    std::fs::write(directory.join(man.get_filename()), page)
}

/// Of lines `  CODE: meaning`; others, as their heading, are left out.
fn exit_status(codes: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in codes.lines().filter_map(|line| line.strip_prefix("  ")?.split_once(": ")) {
        roff.control("TP", ["4"]).text([roman(code)]).text([roman(meaning)]);
    }
    roff
}
