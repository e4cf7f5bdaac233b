//! `ftctl arbiter`: the cells in an arbiter's service, without any daemon of a VM.

mod member;

use super::reach::credentials;
use super::{End, print};
use clap::{Args, Subcommand};
use ft_arbiter::service::{
    ARBITER_NAME, ARBITER_PORT, CellBackup, CellChange, Listed, ServiceDesk, ServicePace, ServicePlace,
};
use ft_arbiter::{ArbiterError, Trouble};
use ft_tls::Protection;
use ftd::clock::utc;
use ftd::config::{Name, ServedConfig};
use ftd::control::api::STATUS_SCHEMA;
use ftd::exit::CtlExit;
use serde_json::json;
use std::fs::File;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Where the service is.
#[derive(Args)]
pub struct CellsTarget {
    /// Where the service listens; 127.0.0.1:7390 unless given
    #[arg(long, global = true, value_name = "ADDRESS", conflicts_with = "config")]
    address: Option<SocketAddr>,
    /// The service's configuration, on its own host
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The name in the service's certificate
    #[arg(long, global = true, value_name = "NAME", default_value = ARBITER_NAME)]
    arbiter_name: String,
}

/// What is shown.
#[derive(Subcommand)]
pub enum CellsAction {
    /// Show the cells of all VMs
    List,
    /// Show one VM's cell
    Show {
        /// The VM
        name: Name,
    },
    /// Keep the cells of all VMs in a file, of which ftd arbiter --restore makes a store
    Backup {
        /// The file; one that is there is replaced
        file: PathBuf,
    },
    /// Show the last changes of one VM's cell, the oldest first, with the service's time of each
    History {
        /// The VM
        name: Name,
    },
}

/// Carries it out, with the certificate in `keys` if there is one.
pub fn run(
    target: &CellsTarget,
    keys: Option<&Path>,
    action: &CellsAction,
    json: bool,
) -> Result<CtlExit, End> {
    let address = match &target.config {
        Some(file) => ServedConfig::load(file).map_err(|e| End::Unconfirmed(e.to_string().into()))?.listen,
        None => target.address.unwrap_or((Ipv4Addr::LOCALHOST, ARBITER_PORT).into()),
    };
    let protection = match keys {
        Some(directory) => Protection::Tls(credentials(directory)?.into()),
        None => Protection::None,
    };
    let place = ServicePlace { address, name: target.arbiter_name.clone(), protection };
    let mut desk = ServiceDesk::new(place, ServicePace::default());
    if let Some((set, registers)) = desk.registers().map_err(no_answer)? {
        return member::show(&set, &registers, &mut desk, action, json);
    }
    let text = match action {
        CellsAction::List => {
            let cells = desk.list().map_err(no_answer)?;
            if json { json_line("cells", &cells) } else { cells.iter().map(line).collect() }
        }
        CellsAction::Backup { file } => {
            let backup = CellBackup::of(desk.list().map_err(no_answer)?, now_unix_ms())
                .map_err(|e| End::Arbiter(e.to_string(), CtlExit::Failure))?;
            keep(file, &backup.encode())?;
            format!("{}: {} cells\n", file.display(), backup.cells.len())
        }
        CellsAction::Show { name } => {
            let cells = desk.list().map_err(no_answer)?;
            let Some(listed) = cells.iter().find(|listed| listed.vm == name.as_str()) else {
                return Err(End::Arbiter(format!("there is no cell of '{name}'"), CtlExit::Failure));
            };
            if json { json_line("cell", listed) } else { line(listed) }
        }
        CellsAction::History { name } => {
            let changes = desk.history(name.as_str()).map_err(no_answer)?;
            if json { json_line("changes", &changes) } else { changes.iter().map(change).collect() }
        }
    };
    print(&text)
}

fn now_unix_ms() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_millis() as u64
}

/// Writes a file in the place of one that may be there, whole or not at all.
fn keep(file: &Path, content: &[u8]) -> io::Result<()> {
    let mut new = file.as_os_str().to_owned();
    new.push(".new");
    let mut opened = File::create(&new)?;
    opened.write_all(content)?;
    opened.sync_all()?;
    std::fs::rename(&new, file)
}

fn json_line(key: &str, what: &impl serde::Serialize) -> String {
    format!("{}\n", json!({ "schema": STATUS_SCHEMA, key: what }))
}

fn line(listed: &Listed) -> String {
    match (&listed.cell, &listed.damage) {
        (Some(cell), _) => format!("{}: cell {}: {cell}\n", listed.vm, cell.id),
        (None, damage) => {
            format!("{}: damaged: {}\n", listed.vm, damage.as_deref().unwrap_or("nothing is known"))
        }
    }
}

fn change(change: &CellChange) -> String {
    format!("{}  {}\n", utc(change.at_unix_ms), change.cell)
}

fn no_answer(e: ArbiterError) -> End {
    let exit = match e.trouble {
        Trouble::Refused { .. } => CtlExit::Refused,
        _ => CtlExit::Unreachable,
    };
    End::Arbiter(e.to_string(), exit)
}
