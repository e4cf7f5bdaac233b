//! `ftd disk status`: each image of the VM on this node, what it is by the arbiter's cell, and what stands beside it.

use super::super::check::HostError;
use super::super::service::InstanceLock;
use super::DiskToolError;
use crate::config::Config;
use crate::disks::{self, DiskLook, Look, OverlayLook};
use ft_arbiter::Cell;
use ft_mirror::{Glance, History, Judgement};
use serde_json::{Value, json};
use std::fmt::Write;

/// See the module.
pub struct DiskStatus {
    vm: String,
    node: String,
    running: Option<String>,
    cell: Result<Option<Cell>, HostError>,
    look: Look,
}

impl DiskStatus {
    /// Looks; the daemon may run.
    pub fn look(config: &Config) -> Result<Self, DiskToolError> {
        Ok(Self {
            vm: config.vm.to_string(),
            node: config.node.to_string(),
            running: InstanceLock::holder(&config.state_dir),
            cell: config.read_cell(),
            look: disks::look(config)?,
        })
    }

    fn verdict(&self, disk: &DiskLook) -> Option<Judgement> {
        let cell = self.cell.as_ref().ok()?;
        Some(disk.verdict(cell.as_ref().map(|cell| disks::view(cell, &self.node))))
    }

    /// The images of which an operator has to decide something, or that cannot be judged.
    pub fn doubts(&self) -> impl Iterator<Item = String> {
        self.look.disks.iter().filter_map(|disk| {
            let image = disk.image.display();
            match self.verdict(disk) {
                None => Some(format!("disk image {image} cannot be judged without the arbiter's cell")),
                Some(verdict @ (Judgement::Stale(_) | Judgement::Nobodys { .. } | Judgement::Foreign(_))) => {
                    Some(format!("disk image {image}: {verdict}; ftd disk adopt would take it as it is"))
                }
                Some(_) => None,
            }
        })
    }

    /// Whether an operator has nothing to decide.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.doubts().next().is_none()
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("{} on {}: ", self.vm, self.node);
        let written = self.write(&mut text);
        debug_assert!(written.is_ok(), "a string takes everything");
        text
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        match &self.cell {
            Ok(Some(cell)) => writeln!(out, "the cell is in {cell}")?,
            Ok(None) => writeln!(out, "there is no cell yet")?,
            Err(why) => writeln!(out, "the cell cannot be read, so no image can be judged: {why}")?,
        }
        if let Some(process) = &self.running {
            writeln!(out, "the daemon runs (process {process}): figures may be of two moments")?;
        }
        if self.look.disks.is_empty() {
            return writeln!(out, "no disk is writable");
        }
        for disk in &self.look.disks {
            write!(out, "disk {}: {} ({} bytes)", disk.disk + 1, disk.image.display(), disk.of.disk_bytes)?;
            if let Some(verdict) = self.verdict(disk) {
                write!(out, ": {verdict}")?;
            }
            if let Some(overlay) = &disk.overlay {
                let mib = overlay.present_bytes().div_ceil(1 << 20);
                write!(out, "; {mib} MiB of it over base {}", overlay.base.display())?;
            }
            match disk.may_differ_bytes() {
                bytes if disk.map.is_none() && bytes == disk.of.disk_bytes => {
                    writeln!(out, "; all of it may differ from the peer's")?;
                }
                bytes => writeln!(out, "; {} MiB may differ from the peer's", bytes.div_ceil(1 << 20))?,
            }
        }
        match &self.look.journal {
            None => writeln!(out, "journal: none yet"),
            Some(Glance { sealed: None, .. }) => writeln!(out, "journal: empty"),
            Some(Glance { sealed: Some(sealed), waiting, .. }) => {
                writeln!(out, "journal: up to {sealed}; {waiting} bytes of it may not be in the images yet")
            }
        }
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let disk = |disk: &DiskLook| {
            let verdict = self.verdict(disk);
            json!({
                "disk": disk.disk + 1,
                "image": disk.image,
                "bytes": disk.of.disk_bytes,
                "base": disk.overlay.as_ref().map(base),
                "verdict": verdict.map(word),
                "says": verdict.map(|verdict| verdict.to_string()),
                "history": disk.stamp.map(|stamp| history(stamp.history)),
                "may_differ_bytes": disk.may_differ_bytes(),
            })
        };
        let journal = self.look.journal.map(|journal| {
            json!({
                "pairing": journal.sealed.map(|sealed| format!("{:016x}", sealed.pairing)),
                "epoch": journal.sealed.map(|sealed| sealed.epoch),
                "waiting_bytes": journal.waiting,
                "bytes": journal.ring_bytes,
            })
        });
        json!({
            "schema": 1,
            "vm": self.vm,
            "node": self.node,
            "daemon": self.running,
            "generation": self.cell.as_ref().ok().and_then(|cell| cell.as_ref().map(|cell| cell.generation)),
            "disks": self.look.disks.iter().map(disk).collect::<Vec<_>>(),
            "journal": journal,
        })
    }
}

fn base(overlay: &OverlayLook) -> Value {
    json!({
        "image": overlay.base,
        "bytes": overlay.facts.bytes,
        "hash": blake3::Hash::from(overlay.facts.hash).to_hex().to_string(),
        "present_bytes": overlay.present_bytes(),
    })
}

fn word(verdict: Judgement) -> &'static str {
    match verdict {
        Judgement::Right => "right",
        Judgement::RightOnceCarriedOut { .. } => "right_once_carried_out",
        Judgement::New => "new",
        Judgement::Stale(_) => "stale",
        Judgement::Nobodys { .. } => "nobodys",
        Judgement::Behind => "behind",
        Judgement::Foreign(_) => "foreign",
    }
}

fn history(history: History) -> Value {
    let pairing = |pairing: u64| format!("{pairing:016x}");
    match history {
        History::Ran { generation } => json!({ "ran": { "generation": generation } }),
        History::Follows { pairing: of, named_in } => {
            json!({ "follows": { "pairing": pairing(of), "named_in": named_in } })
        }
        History::Mixed { pairing: of } => json!({ "mixed": { "pairing": pairing(of) } }),
    }
}
