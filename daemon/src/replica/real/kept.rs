//! The VM's memory that this node still has when it holds nothing of the VM any more: that of a former primary, of a
//! backup whose state was given up, of a copy that broke off. The next copy comes into it, and what has not changed is
//! not sent. It is no state of the VM: nothing goes on from it. So it is given up for whatever needs its room: a guest
//! that is to boot, a host that is short of memory. A VM that is over needs none.

use crate::errand::Errand;
use crate::host::Shortage;
use crate::peer::TellLack;
use ft_arbiter::Cell;
use ft_ram::GuestRam;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the last users of a machine that is gone may take to let go of its memory: some milliseconds, more on a
/// busy host.
const LET_GO_WITHIN: Duration = Duration::from_secs(1);
/// Between two looks whether they have.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// Tells what this host lacks to receive a copy of the VM, beside memory of it that is here, of which the kernel holds
/// so many bytes.
pub type TellLackBeside = Box<dyn Fn(Option<u64>) -> Option<Shortage> + Send + Sync>;

/// See the module.
#[derive(Clone, Default)]
pub(super) struct Kept(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    ram: Option<GuestRam>,
    /// Nobody owns the VM.
    is_over: bool,
}

impl Kept {
    /// Nothing yet; and what tells what this host lacks, with regard to what is kept then. A handshake asks, which is
    /// confined, and the answer is in files.
    pub(super) fn beside(lacks: TellLackBeside) -> std::io::Result<(Self, TellLack)> {
        let kept = Self::default();
        let now = kept.clone();
        Ok((kept, Errand::start("ftd-lacks", move || now.shortage(&lacks))?.into_fn()))
    }

    /// A machine is gone, and this memory is left of it.
    pub(super) fn keep(&self, ram: GuestRam) {
        let mut inner = self.0.lock();
        if !inner.is_over {
            inner.ram = Some(ram);
        }
    }

    /// The memory, for a copy that begins. What somebody still reads or writes is not there for that; who is just
    /// letting go of it (a frame that was on its way to the guest, a thread that ends) is waited for.
    pub(super) fn take(&self) -> Option<GuestRam> {
        let ram = self.0.lock().ram.take()?;
        let since = Instant::now();
        while !ram.is_sole() {
            if since.elapsed() >= LET_GO_WITHIN {
                tracing::warn!(
                    "the VM's memory of before is still in use here, and all of it will be copied"
                );
                return None;
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        Some(ram)
    }

    /// Its room is needed.
    pub(super) fn give_up(&self) {
        self.0.lock().ram = None;
    }

    /// The arbiter has answered.
    pub(super) fn note_cell(&self, cell: Option<&Cell>) {
        let mut inner = self.0.lock();
        inner.is_over = cell.is_some_and(|cell| cell.owner.is_none());
        if inner.is_over {
            inner.ram = None;
        }
    }

    /// What this host lacks to receive a copy. Memory that is in the way of it is given up.
    fn shortage(&self, lacks: &TellLackBeside) -> Option<Shortage> {
        let held = self.0.lock().ram.as_ref().map(|ram| ram.held_bytes().unwrap_or(0));
        let lack = lacks(held)?;
        if held.is_none() {
            return Some(lack);
        }
        tracing::info!("the VM's memory of before is given up here, and all of it will be copied: {lack}");
        self.give_up();
        lacks(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ft_arbiter::CellId;

    fn keeping() -> Kept {
        let kept = Kept::default();
        kept.keep(GuestRam::new(16 << 20).unwrap());
        kept
    }

    fn owned_by(owner: Option<&str>) -> Cell {
        Cell { id: CellId(1), generation: 2, owner: owner.map(str::to_owned), standby: None }
    }

    #[test]
    fn memory_that_somebody_still_uses_is_not_received_into() {
        let kept = keeping();
        assert!(kept.take().is_some());
        assert!(kept.take().is_none());
        let ram = GuestRam::new(16 << 20).unwrap();
        let view = ram.view().unwrap();
        kept.keep(ram);
        assert!(kept.take().is_none(), "something still looks at it");
        drop(view);
        assert!(kept.take().is_none());
    }

    #[test]
    fn who_is_just_letting_go_of_memory_is_waited_for() {
        let kept = keeping();
        let view = kept.0.lock().ram.as_ref().unwrap().view().unwrap();
        let (began, begins) = std::sync::mpsc::channel();
        let user = std::thread::spawn(move || {
            began.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(50));
            drop(view);
        });
        begins.recv().unwrap();
        assert!(kept.take().is_some(), "all of the VM's memory would be copied");
        user.join().unwrap();
    }

    #[test]
    fn a_host_that_is_short_of_memory_keeps_none_and_receives_all_anew() {
        let short = |left, need| Some(Shortage::Host { left, need });
        // It has room for one, and a half is held of what is kept.
        let kept = keeping();
        kept.0.lock().ram.as_ref().unwrap().view().unwrap().write_page(1, &[1; 4096]);
        let lacks: TellLackBeside = Box::new(move |kept| if kept.is_some() { short(1, 2) } else { None });
        assert_eq!(kept.shortage(&lacks), None);
        assert!(kept.take().is_none(), "it was in the way");
        // Without it, too, there is not enough.
        let kept = keeping();
        let lacks: TellLackBeside = Box::new(move |kept| short(u64::from(kept.is_some()), 5));
        assert_eq!(kept.shortage(&lacks), short(0, 5));
        // It is in nobody's way.
        let kept = keeping();
        let lacks: TellLackBeside = Box::new(move |kept| if kept.is_some() { None } else { short(1, 2) });
        assert_eq!(kept.shortage(&lacks), None);
        assert!(kept.take().is_some());
    }

    #[test]
    fn nothing_is_kept_of_a_vm_that_is_over() {
        let kept = keeping();
        kept.note_cell(Some(&owned_by(Some("beta"))));
        kept.note_cell(None);
        kept.note_cell(Some(&owned_by(None)));
        assert!(kept.take().is_none());
        kept.keep(GuestRam::new(16 << 20).unwrap());
        assert!(kept.take().is_none());
        kept.note_cell(Some(&owned_by(Some("beta"))));
        kept.keep(GuestRam::new(16 << 20).unwrap());
        assert!(kept.take().is_some());
    }
}
