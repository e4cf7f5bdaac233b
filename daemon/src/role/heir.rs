//! The heir: the cell is its own, and what it sealed is to become a running VM. A restore that fails loses nothing: the
//! state is kept, and the heir tries again on a fresh machine, with growing pauses, for as long as it takes. Meanwhile
//! the state is written to disk (`saving`): a process that starts later is the heir again, of that image.
//!
//! In a switchover the cell goes on naming the former primary as standby until the VM runs here. So the one that still
//! holds the frozen VM takes it back by the cell when it is told of the failure, or hears nothing for too long; the
//! heir finds that in the cell, and follows.

mod saving;

use self::saving::Saving;
use super::arbitration::Settled;
use super::backup::Backup;
use super::bereft::Bereft;
use super::command::{Command, Exit, Succession};
use super::core::{Core, Next};
use super::event::{ConnId, Event, Held, ImageTrouble, Micros};
use super::primary::Primary;
use super::request::{Leave, RequestRefusal};
use super::saved::{OnDisk, Saved};
use ft_arbiter::Cell;

/// The longest pause between two attempts, in intervals between two attempts at the arbiter.
const PAUSE_MAX: Micros = 25;

/// A node that owns the VM and does not run it yet.
#[derive(Clone, Debug)]
pub(super) struct Heir {
    /// The cell as we won it.
    cell: Cell,
    held: Held,
    succession: Succession,
    /// The connection to the former primary, if there is one.
    former: Option<ConnId>,
    step: Step,
    failures: u32,
    why: String,
    saving: Saving,
    /// The state is in this image on disk, and not in memory yet.
    unread: Option<Saved>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The state is coming into memory from the disk.
    Reading,
    /// The machine is taking the state.
    Resuming,
    /// It did not; the next attempt comes then.
    Resting { until: Micros },
}

impl Heir {
    /// Has won `cell`, and begins.
    pub(super) fn new(
        core: &mut Core,
        cell: Cell,
        held: Held,
        succession: Succession,
        former: Option<ConnId>,
    ) -> Self {
        // It may have been read as ours, rather than won: that is recorded before anything is done by it.
        core.act_on(cell.id, cell.generation);
        let mut heir = Self {
            cell,
            held,
            succession,
            former,
            step: Step::Resuming,
            failures: 0,
            why: String::new(),
            saving: Saving::NotYet,
            unread: None,
        };
        heir.resume(core);
        heir
    }

    /// Owns `cell`, and has the state that it won it for on disk.
    pub(super) fn of_image(core: &mut Core, cell: Cell, image: Saved) -> Self {
        let mut heir = Self::with_image(cell, image);
        heir.resume(core);
        heir
    }

    /// Has run the VM from an image, and the machine failed. Nothing has left it: the image is as good as before, and
    /// is tried again after the longest pause.
    pub(super) fn back_to_image(core: &Core, cell: Cell, image: Saved, why: String) -> Self {
        let mut heir = Self::with_image(cell, image);
        heir.step = Step::Resting { until: core.now + heir.pause_us_max(core) };
        (heir.failures, heir.why) = (1, why);
        heir
    }

    fn with_image(cell: Cell, image: Saved) -> Self {
        Self {
            cell,
            held: image.held,
            succession: Succession::Image,
            former: None,
            step: Step::Reading,
            failures: 0,
            why: String::new(),
            saving: Saving::Done,
            unread: Some(image),
        }
    }

    /// The image on disk is all that it has.
    pub(super) fn is_unread(&self) -> bool {
        self.unread.is_some()
    }

    fn resume(&mut self, core: &mut Core) {
        if let Some(image) = self.unread {
            self.step = Step::Reading;
            core.out.push(Command::ReadImage(image));
            return;
        }
        self.step = Step::Resuming;
        core.out.push(Command::TakeOver {
            epoch: self.held.epoch,
            generation: self.cell.generation,
            succession: self.succession,
        });
    }

    pub(super) fn on_event(&mut self, core: &mut Core, event: Event) -> Option<Next> {
        match event {
            Event::TookOver => {
                core.stay(&RequestRefusal::TookOver);
                let (cell, former) = (self.cell.clone(), self.former.take());
                return Some(Next::Primary(match self.succession {
                    Succession::Failover => {
                        former.into_iter().for_each(|conn| core.drop_link(conn));
                        Primary::solo(cell, "took over")
                    }
                    Succession::Switchover | Succession::Image => {
                        core.arbiter.hurry();
                        Primary::confirming(cell, self.held.pairing, former)
                    }
                }));
            }
            Event::TakeOverFailed(why) => self.on_failure(core, why),
            Event::ImageRead if self.step == Step::Reading => {
                self.unread = None;
                match core.stop_requested {
                    true => self.save_and_rest(core),
                    false => self.resume(core),
                }
            }
            Event::ImageUnread(ImageTrouble::ForNow(why)) if self.step == Step::Reading => {
                self.on_failure(core, format!("the image on disk cannot be read: {why}"));
            }
            Event::ImageUnread(ImageTrouble::Unfit(why)) if self.step == Step::Reading => {
                let (cell, generation) = (Some(self.cell.id), self.cell.generation);
                return Some(self.leave_image(core, OnDisk::Unfit { cell, generation, why }));
            }
            Event::ImageUnread(ImageTrouble::ForGood(why)) if self.step == Step::Reading => {
                return Some(self.leave_image(core, OnDisk::Unusable(why)));
            }
            Event::ImageProgress { generation, percent } if generation == self.cell.generation => {
                self.on_progress(percent);
            }
            Event::ImageSaved { generation } if generation == self.cell.generation => {
                return self.on_saved(core);
            }
            Event::ImageUnsaved { generation, why } if generation == self.cell.generation => {
                self.on_unsaved(core, why);
            }
            Event::Tick => {
                self.save_if_due(core);
                // One that is to stop has its state written, and tries no machine any more.
                if let Step::Resting { until } = self.step
                    && core.now >= until
                    && (self.is_unread() || !core.stop_requested)
                {
                    self.resume(core);
                }
            }
            Event::PeerGone { conn, .. } if self.former == Some(conn) => self.former = None,
            Event::PeerHello { conn, .. } => {
                core.out.push(Command::Refuse { conn, why: "the VM is still being restored here".into() });
            }
            Event::SwitchoverRequested { request, .. } => core.refuse(request, RequestRefusal::NotRunning),
            Event::StopRequested { request, vm: Leave::Move | Leave::HostDown { .. } } => {
                return self.on_stop(core, request);
            }
            // Only the operator's word gives up what may be the last copy.
            Event::StopRequested { request, vm: Leave::PowerOff { .. } } => {
                core.leave(request);
                core.out.push(Command::Discard);
                let mut primary = Primary::solo(self.cell.clone(), "powered off while it was being restored");
                primary.shut_down(core, "powered off while it was being restored");
                return Some(Next::Primary(primary));
            }
            _ => {}
        }
        None
    }

    fn on_failure(&mut self, core: &mut Core, why: String) {
        self.failures += 1;
        let pause = core.policy.arbiter_retry_us << (self.failures - 1).min(16);
        self.step = Step::Resting { until: core.now + pause.min(self.pause_us_max(core)) };
        self.turn_former_away(core, &format!("the VM cannot be resumed there: {why}"));
        self.why = why;
    }

    /// The image stays on disk, for people.
    fn leave_image(&self, core: &mut Core, is: OnDisk) -> Next {
        core.on_disk = is;
        let why = core.on_disk.why_not_for(&self.cell);
        Next::Bereft(Bereft::new(core, self.cell.clone(), why))
    }

    /// What an image of it is.
    fn saved(&self) -> Saved {
        Saved { cell: self.cell.id, generation: self.cell.generation, held: self.held }
    }

    fn pause_us_max(&self, core: &Core) -> Micros {
        core.policy.arbiter_retry_us * PAUSE_MAX
    }

    /// The former primary, which still holds the VM, is to go on with it.
    fn turn_former_away(&mut self, core: &mut Core, why: &str) {
        if let Some(conn) = self.former.take() {
            core.out.push(Command::SendBye { conn, why: why.into() });
            core.drop_link(conn);
        }
    }

    /// Between two attempts it looks whether the VM went on elsewhere.
    pub(super) fn pursue(&mut self, core: &mut Core) {
        if matches!(self.step, Step::Resting { .. }) {
            core.arbiter.wait_until(core.now + core.policy.arbiter_retry_us);
            core.ask_read();
        }
    }

    pub(super) fn on_cell(&mut self, core: &mut Core, answer: Result<Option<Cell>, String>) -> Option<Next> {
        let cell = answer.ok()??;
        if cell.generation <= self.cell.generation {
            return None;
        }
        if cell.owner.as_deref() == Some(&core.policy.node) {
            self.move_on(cell);
            return None;
        }
        core.out.push(Command::Discard);
        self.former.take().into_iter().for_each(|conn| core.drop_link(conn));
        let why = match cell.owner {
            Some(_) => "the former primary took the VM back",
            None => "the VM has ended",
        };
        match core.stop_requested {
            true => Some(Next::Ended(Exit::Stopped(why.into()))),
            false => Some(Next::Backup(Backup::new(why))),
        }
    }

    pub(super) fn on_settled(&mut self, core: &mut Core, settled: Settled) -> Option<Next> {
        match settled {
            Settled::Won(cell) => self.on_cell(core, Ok(Some(cell))),
            Settled::Lost(cell) => self.on_cell(core, Ok(cell)),
            Settled::NotAttempted(_) => None,
        }
    }

    /// The cell has moved past the image after all: by the request of the machine that ran from it and failed before it
    /// knew. It showed nothing, so this process, and no other, still goes on from there.
    fn move_on(&mut self, cell: Cell) {
        self.cell = cell;
        self.succession = Succession::Failover;
        self.saving = Saving::NotYet;
    }

    pub(super) fn detail(&self) -> String {
        let Held { epoch, .. } = self.held;
        let times = match self.failures {
            0 if self.unread.is_some() => {
                return format!("reading the VM's state of epoch {epoch} from the image on disk");
            }
            0 => return format!("resuming the VM from epoch {epoch}"),
            1 => String::new(),
            n => format!(" {n} times"),
        };
        let where_it_is = self.whereabouts();
        format!("resuming the VM from epoch {epoch} failed{times}, {where_it_is}; trying again: {}", self.why)
    }
}
