//! What may be reached by name: files, programs, ports. It is the kernel's Landlock that refuses, whichever call asks:
//! where a filter of calls has a hole, this is behind it. A kernel before 5.13, or one without it, refuses nothing so.

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr,
    RulesetError, RulesetStatus, path_beneath_rules,
};
use std::path::Path;

/// What is refused where the kernel knows it: Linux 6.10 knows all of it.
const KNOWN: ABI = ABI::V5;

fn ruleset(reach: BitFlags<AccessNet>) -> Result<RulesetCreated, RulesetError> {
    Ruleset::default().handle_access(AccessFs::from_all(KNOWN))?.handle_access(reach)?.create()
}

fn restrict(rules: RulesetCreated) -> Result<bool, RulesetError> {
    Ok(rules.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
}

/// The calling thread, and those that it starts, reach nothing that they have no descriptor of. False where the kernel
/// has no Landlock.
pub(crate) fn nothing() -> Result<bool, RulesetError> {
    restrict(ruleset(AccessNet::from_all(KNOWN))?)
}

/// The calling thread, and those that it starts, read every file that their user may, change those below these
/// directories alone, start no program and connect to nobody. False where the kernel has no Landlock.
///
/// # Errors
///
/// Where the kernel refuses what it has said that it can do.
pub fn serve_from(directories: &[&Path]) -> Result<bool, RulesetError> {
    let reads = AccessFs::ReadFile | AccessFs::ReadDir;
    let writes = AccessFs::from_all(KNOWN) & !AccessFs::Execute;
    let rules = ruleset(AccessNet::ConnectTcp.into())?
        .add_rules(path_beneath_rules(["/"], reads))?
        .add_rules(path_beneath_rules(directories, writes))?;
    restrict(rules)
}
