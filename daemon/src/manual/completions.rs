//! The shells' completions of a program.

use clap::Command;
use clap_complete::Shell;

/// The script that completes a program's subcommands and options in a shell. Hidden subcommands are not offered.
pub fn completion_script(name: &'static str, program: &Command, shell: Shell) -> String {
    let mut shown = Command::new(name)
        .version(env!("CARGO_PKG_VERSION"))
        .args(program.get_arguments())
        .subcommands(program.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()));
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut shown, name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}
