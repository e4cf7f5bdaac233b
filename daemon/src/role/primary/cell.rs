//! The primary's requests to the cell, and the consequences of their answers.

use super::ending::End;
use super::switchover::Then;
use super::{Pair, Primary};
use crate::role::arbitration::Settled;
use crate::role::backup::Backup;
use crate::role::command::{Command, Exit};
use crate::role::core::{Core, Next};
use crate::role::request::RequestRefusal;
use ft_arbiter::{Cell, Standby};

impl Primary {
    /// What the state wants of the arbiter.
    pub(in crate::role) fn pursue(&mut self, core: &mut Core) {
        let me = Some(core.policy.node.clone());
        let (owner, standby) = match (&self.ending, self.pair) {
            (Some(End::Exit(_)), _) => (None, None),
            (Some(End::Reboot), _) => (me, None),
            (None, Pair::Enlisting { pairing }) => {
                (me, Some(Standby { node: core.policy.peer.clone(), pairing }))
            }
            (None, Pair::Alone { .. } | Pair::Confirming { .. }) => (me, None),
            _ => return,
        };
        let Cell { id, generation, .. } = self.cell;
        core.ask_set(Some(generation), Cell { id, generation: generation + 1, owner, standby });
    }

    /// What the cell says, though nothing was asked of it: it is looked at every few seconds.
    pub(in crate::role) fn on_cell(&mut self, core: &mut Core, found: Option<Cell>) -> Option<Next> {
        match found {
            // Nobody but this node sets a cell that it owns, as long as it has the VM.
            Some(cell) if cell.generation > self.cell.generation => self.on_lost(core, Some(cell)),
            _ => {
                self.freeze_if_proven(core);
                None
            }
        }
    }

    pub(in crate::role) fn on_settled(&mut self, core: &mut Core, settled: Settled) -> Option<Next> {
        match settled {
            Settled::Won(cell) => self.on_won(core, cell),
            Settled::Lost(cell) => self.on_lost(core, cell),
            Settled::NotAttempted(why) => {
                match (self.pair, &self.link) {
                    (Pair::Enlisting { .. }, None) => self.go_solo(core),
                    (Pair::Rejoined { pairing }, _) => self.pair = Pair::Protected { pairing },
                    _ => {}
                }
                self.why = format!("the arbiter does not answer: {why}");
                None
            }
        }
    }

    fn on_won(&mut self, core: &mut Core, cell: Cell) -> Option<Next> {
        let standby = cell.standby.as_ref().map(|standby| standby.pairing);
        let released = cell.owner.is_none();
        self.cell = cell;
        if let Some(pairing) = standby {
            match (&self.link, self.pair) {
                (Some(link), Pair::Enlisting { pairing: ours }) if ours == pairing => {
                    self.pair = Pair::Protected { pairing };
                    self.why = "in step".into();
                    core.attempts.reach_protection(core.now);
                    core.begin_proof();
                    core.out.push(Command::SendPaired {
                        conn: link.hearing.conn,
                        generation: self.cell.generation,
                    });
                }
                // It was lost while the cell was being asked to name it; now the cell does.
                _ => self.pair = Pair::Alone { pairing },
            }
            return None;
        }
        if released {
            let end = self.ending.take();
            self.say_bye(core, "the VM has ended");
            core.out.push(Command::EndPairing);
            core.out.push(Command::StopVm);
            let exit = match end {
                Some(End::Exit(exit)) => exit,
                _ => Exit::Stopped("the VM was shut down".into()),
            };
            return Some(Next::Ended(exit));
        }
        if let Pair::Confirming { former: Some(conn), .. } = self.pair {
            core.out.push(Command::SendTookOver { conn, generation: self.cell.generation });
            core.drop_link(conn);
        }
        if self.ending == Some(End::Reboot) {
            self.ending = None;
            return self.reboot(core);
        }
        // We are alone, by the cell. A peer that is still connected is a stranger now.
        if let Some(link) = self.link.take() {
            core.drop_link(link.hearing.conn);
        }
        self.go_solo(core);
        None
    }

    fn on_lost(&mut self, core: &mut Core, cell: Option<Cell>) -> Option<Next> {
        if self.may_take_back(core, cell.as_ref()) {
            return None;
        }
        core.out.push(Command::StopVm);
        core.out.push(Command::EndPairing);
        if let Some(link) = self.link.take() {
            core.drop_link(link.hearing.conn);
        }
        if let Pair::Confirming { former, .. } = self.pair {
            former.into_iter().for_each(|conn| core.drop_link(conn));
            return Some(Next::Backup(Backup::new("the former primary took the VM back")));
        }
        let owner = cell.as_ref().and_then(|cell| cell.owner.clone());
        if self.has_offered() && owner.as_deref() == Some(&core.policy.peer) {
            if self.answer_switchover(core, Ok(())) == Some(Then::Stop) {
                return Some(Next::Ended(Exit::Stopped(format!("the VM moved to {}", core.policy.peer))));
            }
            return Some(Next::Backup(Backup::new("handed the VM over")));
        }
        self.answer_switchover(core, Err(RequestRefusal::LostArbitration));
        let says = cell.as_ref().map_or("is empty".into(), |cell| format!("says {cell}"));
        Some(core.fence(format!(
            "lost the arbitration: this node owned generation {}, the cell {says}",
            self.cell.generation
        )))
    }
}
