//! What goes with both programs where they are installed: the manual pages, of their configurations as well, and the
//! shells' completions. Nothing is written for these alone: a command's page says what its `--help` says, and a
//! configuration's page what its example says.

mod commands;
mod completions;
mod example;

pub use commands::write_command_pages;
pub use completions::completion_script;
pub use example::{EXAMPLES, Example, example_page, write_configuration_pages};

use clap_mangen::roff::{Roff, bold, roman};

/// The section of commands that administer a system.
const COMMANDS: &str = "8";
/// The section of file formats.
const FORMATS: &str = "5";
/// What stands at the foot of each page.
const SOURCE: &str = concat!("ftd ", env!("CARGO_PKG_VERSION"));
const MANUAL: &str = "ftd";

/// Keys and options are broken nowhere, so that they can be searched for, and lines are not stretched.
fn unbroken(roff: &mut Roff) -> &mut Roff {
    roff.control("nh", []).control("ad", ["l"])
}

/// The last section of a page: names of others, each with its section.
fn see_also(pages: &[(&str, &str)]) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    let mut line = Vec::new();
    for (at, (name, section)) in pages.iter().enumerate() {
        let between = if at == 0 { "" } else { ", " };
        line.extend([roman(between), bold(*name), roman(format!("({section})"))]);
    }
    roff.text(line);
    roff
}
