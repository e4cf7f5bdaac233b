//! `FT_FUZZ_TARGET=NAME ft-fuzz [OPTIONS OF LIBFUZZER] CORPUS...` fuzzes one target, `ft-fuzz -- seeds DIRECTORY`
//! writes the seeds of all, `ft-fuzz -- list` names them. `scripts/fuzz` calls it.
#![no_main]

use ft_fuzz::{FuzzTarget, TARGETS, target};
use libfuzzer_sys::fuzz_target;
use std::path::Path;
use std::process::exit;
use std::sync::OnceLock;

static CHOSEN: OnceLock<&'static FuzzTarget> = OnceLock::new();

fn fail(text: impl std::fmt::Display) -> ! {
    eprintln!("ft-fuzz: {text}");
    exit(2)
}

fn write_seeds(directory: &Path) -> std::io::Result<()> {
    for target in TARGETS {
        let directory = directory.join(target.name);
        std::fs::create_dir_all(&directory)?;
        for (number, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(directory.join(format!("seed-{number}")), seed)?;
        }
    }
    Ok(())
}

/// What is asked for instead of fuzzing, if anything is.
fn asked() {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--").skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => {}
        (Some("list"), None) => {
            TARGETS.iter().for_each(|target| println!("{}", target.name));
            exit(0)
        }
        (Some("seeds"), Some(directory)) => match write_seeds(Path::new(&directory)) {
            Ok(()) => exit(0),
            Err(e) => fail(format_args!("{directory}: {e}")),
        },
        _ => fail("after -- comes `list` or `seeds DIRECTORY`"),
    }
}

fuzz_target!(
    init: {
        asked();
        let name = std::env::var("FT_FUZZ_TARGET").unwrap_or_else(|_| fail("FT_FUZZ_TARGET names no target"));
        let chosen = target(&name).unwrap_or_else(|| fail(format_args!("there is no target {name}")));
        let _ = CHOSEN.set(chosen);
    },
    |input: &[u8]| {
        if let Some(target) = CHOSEN.get() {
            (target.run)(input);
        }
    }
);
