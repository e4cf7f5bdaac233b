//! What one of several services keeps: what it has promised and accepted, which is not always what a majority has.

use super::{CellsAction, change, json_line, keep, no_answer, now_unix_ms};
use crate::{End, print};
use ft_arbiter::majority::{MemberSet, Register};
use ft_arbiter::service::{CellBackup, Listed, ListedRegister, ServiceDesk};
use ftd::exit::CtlExit;
use serde_json::json;

/// Carries out an action on a member that keeps these.
pub(super) fn show(
    set: &MemberSet,
    registers: &[ListedRegister],
    desk: &mut ServiceDesk,
    action: &CellsAction,
    json: bool,
) -> Result<CtlExit, End> {
    let with_set = |key: &str, what: serde_json::Value| json_line("member", &json!({ "of": set, key: what }));
    let text = match action {
        CellsAction::List if json => with_set("registers", json!(registers)),
        CellsAction::List => {
            let head = format!("a member of {set}, of which {} decide\n", set.majority());
            std::iter::once(head).chain(registers.iter().map(line)).collect()
        }
        CellsAction::Show { name } => {
            let found = registers.iter().find(|listed| listed.vm == name.as_str());
            let Some(listed) = found else {
                return Err(End::Arbiter(format!("this member has no cell of '{name}'"), CtlExit::Failure));
            };
            if json { with_set("register", json!(listed)) } else { line(listed) }
        }
        CellsAction::History { name } => {
            let changes = desk.history(name.as_str()).map_err(no_answer)?;
            if json { json_line("changes", &changes) } else { changes.iter().map(change).collect() }
        }
        CellsAction::Backup { file } => {
            let backup = CellBackup::of(registers.iter().filter_map(accepted).collect(), now_unix_ms())
                .map_err(|e| End::Arbiter(e.to_string(), CtlExit::Failure))?;
            keep(file, &backup.encode())?;
            format!("{}: {} cells, as this member has accepted them\n", file.display(), backup.cells.len())
        }
    };
    print(&text)
}

/// The cell as this member has accepted it; none if it was never set there.
fn accepted(ListedRegister { vm, register, damage }: &ListedRegister) -> Option<Listed> {
    let set = |register: &Register| Some(register.accepted.clone()?.value?.cell);
    let cell = register.as_ref().and_then(set);
    (cell.is_some() || damage.is_some()).then(|| Listed { vm: vm.clone(), cell, damage: damage.clone() })
}

fn line(listed: &ListedRegister) -> String {
    let vm = &listed.vm;
    let Some(Register { promised, accepted }) = &listed.register else {
        return format!("{vm}: damaged: {}\n", listed.damage.as_deref().unwrap_or("nothing is known"));
    };
    let has = match accepted {
        None => "has accepted nothing yet".to_owned(),
        Some(accepted) => match &accepted.value {
            Some(set) => format!("cell {}: {}; accepted in round {}", set.cell.id, set.cell, accepted.ballot),
            None => format!("was never set; accepted in round {}", accepted.ballot),
        },
    };
    match promised {
        Some(promised) if accepted.as_ref().map(|accepted| accepted.ballot) != Some(*promised) => {
            format!("{vm}: {has}; has promised to take part in no round before {promised}\n")
        }
        _ => format!("{vm}: {has}\n"),
    }
}
