//! The full copy of a running guest: all of its memory once, then the pages that it dirtied meanwhile, until few are
//! left. It goes in steps that never wait for the link, so that orders are heard, and the guest is slowed where it
//! writes faster than it is copied.

use super::copy_pace::{CopyPace, Round};
use super::error::{KeepError, ShipError};
use super::news::KeeperNews;
use super::pairing::Pairing;
use super::setup::Setup;
use super::shipper::{Dispatch, Shipment};
use super::vm::Vm;
use crate::clock;
use crate::config::OnOverload;
use crate::disks::{Disks, EqualizeError, Equalizer, Tapped};
use ft_checkpoint::copy::{CopyProgress, FullCopy};
use ft_checkpoint::encoder::{CopyError, Encoder};
use ft_checkpoint::wire::{FrameType, WireSink};
use ft_ram::PageIndex;
use std::sync::Arc;
use std::time::Duration;

/// Pages of the full copy between two looks at the orders.
const STEP_PAGES: usize = 64;
/// Bytes of the copy that may wait in front of the connection.
const QUEUE_BYTES_MAX: usize = 1 << 20;
/// Until the link is looked at again.
const LINK_INTERVAL: Duration = Duration::from_millis(1);

/// A copy under way.
pub(super) struct Copying {
    pub(super) pairing: Arc<Pairing>,
    pub(super) encoder: Encoder,
    pub(super) dispatch: Dispatch,
    pub(super) disks: Option<CopyingDisks>,
    copy: FullCopy,
    pace: CopyPace,
    /// The pages that this round sends, and how many of them are sent. The first round sends all of memory.
    dirty: Vec<PageIndex>,
    sent: usize,
    /// How many it reads: in the first round so far.
    round_pages: u64,
    is_last: bool,
    /// The guest stands still, to be slow.
    pub(super) stands: bool,
    /// What waits in front of the connection is to go first, or the backup is to tell what it has kept.
    waits: bool,
    /// This round does not tell how fast pages are carried: its pages waited for the disks, or were there already.
    is_untimed: bool,
}

/// The writable disks' part in a copy.
pub(super) struct CopyingDisks {
    /// Ends first: then the equalizer waits for nobody.
    pub(super) tapped: Tapped,
    pub(super) equalizing: Equalizing,
}

/// What makes the backup's disks equal.
pub(super) struct Equalizing {
    disks: Arc<Disks>,
    equalizer: Arc<Equalizer>,
}

impl Drop for Equalizing {
    fn drop(&mut self) {
        self.disks.equalized();
    }
}

impl CopyingDisks {
    /// Their changes are told from now on, and what differs is sent.
    fn begin(disks: &Arc<Disks>, dispatch: &Dispatch) -> Result<Self, EqualizeError> {
        let work = dispatch.work.clone();
        let take = Box::new(move |told| work.send(Shipment::Ahead(told)).is_ok());
        let (tapped, equalizer) = disks.equalize(take)?;
        Ok(Self { tapped, equalizing: Equalizing { disks: Arc::clone(disks), equalizer } })
    }
}

/// How a copy stands after a step.
pub(super) enum CopyStep {
    /// There is more to do.
    Going,
    /// What is left makes a short pause.
    Converged,
    /// Nothing more is to be done: the connection is gone, or the copy will not end, and the core hears of it.
    Broken,
}

impl Copying {
    /// Begins a copy; none when the connection is already gone, which its closer has told the core.
    pub(super) fn begin(
        vm: &mut Vm,
        setup: &Setup,
        pairing: Arc<Pairing>,
    ) -> Result<Option<Self>, KeepError> {
        // Before the first page is read: what changes while it is copied is dirty afterwards.
        vm.machine.start_dirty_log()?;
        let mut encoder = Encoder::new(vm.ram.pages(), setup.shadow_bytes);
        let dispatch = Dispatch::open();
        let pace = CopyPace::begin(clock::now_us(), setup.service.speed_pct_min);
        // Before the backup hears of the copy: its maps may come at once.
        let disks = setup.disks.as_ref().map(|disks| CopyingDisks::begin(disks, &dispatch)).transpose();
        let disks = match disks {
            Ok(disks) => disks,
            Err(why) => {
                setup.tell(KeeperNews::PairingBroken { pairing: pairing.nonce, why: why.into() });
                return Ok(None);
            }
        };
        let begun = FullCopy::begin(&mut encoder, pairing.nonce, &vm.view, &mut pairing.copy_sink());
        let begun = begun.inspect_err(|e| tracing::debug!("full copy not begun: {e}")).ok();
        let Some(mut copy) = begun else { return Ok(None) };
        if let Some(kept) = &pairing.kept {
            copy = copy.comparing(Arc::clone(kept));
        }
        Ok(Some(Self {
            pairing,
            encoder,
            dispatch,
            disks,
            copy,
            pace,
            dirty: Vec::new(),
            sent: 0,
            round_pages: 0,
            is_last: false,
            stands: false,
            waits: false,
            is_untimed: false,
        }))
    }

    /// How long until there is something to do.
    pub(super) fn wait_limit(&self) -> Duration {
        if self.waits { LINK_INTERVAL } else { Duration::ZERO }
    }

    /// Copies some pages, or begins another round over what the guest dirtied meanwhile.
    pub(super) fn step(&mut self, vm: &mut Vm, setup: &Setup) -> Result<CopyStep, KeepError> {
        self.keep_pace(vm)?;
        self.waits = !self.pairing.has_copy_room(QUEUE_BYTES_MAX);
        if self.waits {
            return Ok(CopyStep::Going);
        }
        if let Err(e) = self.send_disks() {
            tracing::debug!("full copy stopped: {e}");
            self.let_run(vm)?;
            return Ok(CopyStep::Broken);
        }
        match self.send(vm) {
            Ok(Some(progress)) => {
                self.waits = progress.waits;
                if !progress.waits {
                    setup.telemetry.copying(progress);
                }
                Ok(CopyStep::Going)
            }
            Ok(None) => self.next_round(vm, setup),
            Err(e) => {
                tracing::debug!("full copy stopped: {e}");
                self.let_run(vm)?;
                Ok(CopyStep::Broken)
            }
        }
    }

    /// Sends what there is of the disks, as far as the link has room.
    fn send_disks(&mut self) -> Result<(), CopyError> {
        let Some(disks) = &self.disks else { return Ok(()) };
        let mut sink = self.pairing.copy_sink();
        while self.pairing.has_copy_room(QUEUE_BYTES_MAX)
            && let Ok(Shipment::Ahead(told)) = self.dispatch.queue.try_recv()
        {
            if told.kind == FrameType::Disk {
                self.encoder.change(&told.payload);
            }
            sink.shared(told.kind, 0, &told.payload)?;
            disks.equalizing.disks.tap().left(&told);
        }
        Ok(())
    }

    /// Sends the next pages of this round; none if it is over.
    fn send(&mut self, vm: &Vm) -> Result<Option<CopyProgress>, CopyError> {
        let Self { pairing, encoder, copy, dirty, sent, round_pages, is_untimed, .. } = self;
        let mut sink = pairing.copy_sink();
        if !copy.progress().is_complete() {
            let progress = copy.step(encoder, &vm.view, STEP_PAGES as u32, &mut sink)?;
            // How fast pages are carried, those in holes do not tell.
            *round_pages = progress.read_pages.into();
            *is_untimed |= progress.same_pages > 0;
            return Ok(Some(progress));
        }
        let pages = dirty.len().min(*sent + STEP_PAGES);
        if pages == *sent {
            return Ok(None);
        }
        let progress = copy.resend(encoder, &vm.view, &dirty[*sent..pages], &mut sink)?;
        *sent = pages;
        Ok(Some(progress))
    }

    /// Every page of this round is sent.
    fn next_round(&mut self, vm: &mut Vm, setup: &Setup) -> Result<CopyStep, KeepError> {
        if let Some(disks) = &self.disks {
            match disks.equalizing.equalizer.is_done() {
                Ok(true) => {}
                Ok(false) => {
                    // Pages wait for the disks, and not the other way round.
                    (self.waits, self.is_untimed) = (true, true);
                    return Ok(CopyStep::Going);
                }
                Err(why) => {
                    self.let_run(vm)?;
                    setup.tell(KeeperNews::PairingBroken { pairing: self.pairing.nonce, why: why.into() });
                    return Ok(CopyStep::Broken);
                }
            }
        }
        if self.is_last {
            return Ok(CopyStep::Converged);
        }
        (self.sent, self.is_last) = (0, false);
        self.dirty.clear();
        vm.machine.harvest(&mut self.dirty)?;
        let sent = std::mem::replace(&mut self.round_pages, self.dirty.len() as u64);
        let round = match std::mem::take(&mut self.is_untimed) {
            true => self.pace.round_over(clock::now_us()),
            false => self.pace.round(clock::now_us(), sent, self.round_pages),
        };
        let speed = self.pace.speed_permille();
        setup.telemetry.slowed((1000 - speed) as u16);
        tracing::debug!(sent, dirty = self.round_pages, speed, ?round, "a round of the full copy is over");
        match round {
            Round::Next => Ok(CopyStep::Going),
            Round::Hopeless if setup.on_overload == OnOverload::Yield => {
                self.let_run(vm)?;
                let why = ShipError::Overloaded(setup.service);
                setup.tell(KeeperNews::PairingBroken { pairing: self.pairing.nonce, why });
                Ok(CopyStep::Broken)
            }
            // What is dirtied while this is sent goes with the first checkpoint.
            Round::Last | Round::Hopeless => {
                self.is_last = true;
                Ok(CopyStep::Going)
            }
        }
    }

    /// Lets the guest run, or stand still, as its pace says.
    fn keep_pace(&mut self, vm: &mut Vm) -> Result<(), KeepError> {
        match self.pace.runs(clock::now_us()) {
            true => self.let_run(vm),
            false if self.stands => Ok(()),
            false => {
                vm.machine.pause()?;
                self.stands = true;
                Ok(())
            }
        }
    }

    /// The guest runs, unless it has come to its end.
    pub(super) fn let_run(&mut self, vm: &mut Vm) -> Result<(), KeepError> {
        if std::mem::take(&mut self.stands) && !vm.ended {
            vm.machine.resume()?;
        }
        Ok(())
    }
}
