//! The faults of a schedule, and what each does to the world. `draw` says which there are, and when.

use ft_arbiter::Cell;
use ft_checkpoint::wire::Message;
use ft_checkpoint::wire::message::Ack;
use ftd::role::{Event, Gone, GuestEnd, Micros, Times};
use rand::Rng;

use crate::model::{Image, Input, Msg, NAMES, Trip, index_of};
use crate::mutant::Mutant;
use crate::schedule::{Act, Hook};
use crate::stats::Count;
use crate::trace;
use crate::world::World;

/// Which node a fault hits.
#[derive(Clone, Copy, Debug)]
pub enum Whom {
    Owner,
    Other,
}

/// What the operator does to have the VM back.
#[derive(Clone, Copy, Debug)]
pub enum Return {
    /// He has it booted after it has ended.
    Boot(Whom),
    /// He gives a lost state up for it.
    BootFresh(Whom),
    /// The owner's host dies; he has the other one go on without it.
    Bury,
    Release(usize),
}

/// A fault, or a request from outside.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    Break {
        spread_us: Micros,
        one_side: bool,
    },
    Cut {
        from_owner: bool,
        from_other: bool,
        us: Micros,
    },
    Lag {
        us: Micros,
        lag_us: Micros,
    },
    ArbiterDown {
        owner: bool,
        other: bool,
        us: Micros,
    },
    ArbiterFlaky {
        us: Micros,
    },
    ArbiterSlow {
        us: Micros,
        latency_us: Micros,
    },
    /// What the storage has not made durable is gone.
    StorageCrash,
    /// Calls on the storage that are made in this time never return, or much later.
    Replaced {
        owner: bool,
        other: bool,
        us: Micros,
    },
    /// A node's next claim fails at its link, which is carried out later.
    LinkJams {
        whom: Whom,
    },
    /// For a while the cell's directory is another one: a copy so many generations older, or none at all.
    CellGoesBack {
        by: Option<u64>,
        us: Micros,
    },
    /// For a while a node's path to the cell leads to another cell, of so many generations, or to none.
    Elsewhere {
        whom: Whom,
        generations: u64,
        us: Micros,
    },
    /// A host dies and comes back with an empty disk: the node's record is gone.
    LoseDisk {
        whom: Whom,
        down_us: Micros,
    },
    /// For a while the disk of a node's state directory takes nothing.
    DiskHangs {
        whom: Whom,
        us: Micros,
    },
    /// The process comes to this after some more steps.
    Trip {
        whom: Whom,
        steps: u32,
        trip: Trip,
    },
    Slow {
        whom: Whom,
        us: Micros,
        step_us: Micros,
    },
    Switchover {
        whom: Whom,
        within_us: Micros,
    },
    Stop {
        whom: Whom,
        power_off: bool,
    },
    /// The operator has the VM back.
    Return(Return),
    /// A second process says that it is the backup.
    SecondSelf,
    /// The stream of the newest link swallows everything from now on; its pulse beats.
    Stick,
    Guest {
        kind: u8,
    },
    FailTakeOver {
        whom: Whom,
        times: u32,
    },
    FailLoad,
    /// The nodes lose each other for longer than a promise lasts, find each other while what the arbiter was asked
    /// meanwhile is still unanswered, and lose each other again.
    Flap {
        apart_us: Micros,
        together_us: Micros,
    },
    /// The owner cannot ship anything more to its backup.
    BreakPairing,
    /// The owner's host fails its machine.
    FailMachine,
    /// The host of the owner's backup fails the machine that stands ready there.
    FailStandby,
    /// The disks of the owner's backup fail: it can take nothing more, and what is sealed is beside them.
    FailDisks,
    /// So many machines that go on from an image on this node's disk fail soon after.
    FailRun {
        whom: Whom,
        times: u32,
    },
    /// The host goes down: its process is told so many times, and dies with it.
    HostDown {
        whom: Whom,
        asks: u32,
    },
    /// The next boot on this node fails.
    FailBoot {
        whom: Whom,
    },
    /// The operator declares another failure timeout.
    Retime {
        whom: Whom,
        failure_timeout_us: Micros,
    },
    /// No machine on this node's host takes a state over.
    Unfit {
        whom: Whom,
        us: Micros,
    },
    /// The nodes do not fit each other.
    Misfit {
        us: Micros,
    },
    /// The other one acks what was never sent.
    WildAck,
    /// The link carries less than the checkpoints need.
    Narrow {
        us: Micros,
        us_per_kib: Micros,
    },
    /// What the other one holds is not the VM's state any more, which it finds out at once or when it looks at all of
    /// it.
    Diverge {
        at_once: bool,
    },
}

/// The end of a fault that lasts.
#[derive(Clone, Copy, Debug)]
pub enum Undo {
    Cut(usize),
    Lag,
    Misfit,
    Unfit(usize),
    Narrow,
    ArbiterDown(usize),
    Replaced(usize),
    ArbiterFlaky,
    ArbiterSlow,
    CellGoesBack,
    Elsewhere(usize),
    Slow(usize),
}

/// When a fault happens.
#[derive(Clone, Copy, Debug)]
pub enum When {
    At(Micros),
    /// The `nth` time from now that this happens.
    On(Hook, u32),
}

impl World {
    fn owner_index(&self) -> usize {
        let cell = self.arbiter.cell.as_ref();
        cell.and_then(|cell| cell.owner.as_deref()).and_then(index_of).unwrap_or(0)
    }

    pub fn pick(&self, whom: Whom) -> usize {
        match whom {
            Whom::Owner => self.owner_index(),
            Whom::Other => 1 - self.owner_index(),
        }
    }

    /// Carries a fault out.
    pub fn inject(&mut self, fault: Fault) {
        trace!(self, "FAULT {fault:?}");
        let owner = self.owner_index();
        let ends = |on_owner: bool, on_other: bool| {
            [(owner, on_owner), (1 - owner, on_other)].into_iter().filter(|(_, hit)| *hit).map(|(n, _)| n)
        };
        match fault {
            Fault::Break { spread_us, one_side } => {
                self.stats.add(Count::FaultReset);
                self.break_newest(spread_us, one_side);
            }
            Fault::Cut { from_owner, from_other, us } => {
                self.stats.add(Count::FaultCut);
                for n in ends(from_owner, from_other) {
                    self.cut(n);
                    self.later(us, Act::Undo(Undo::Cut(n)));
                }
            }
            Fault::Lag { us, lag_us } => {
                self.stats.add(Count::FaultLag);
                self.net.lag_us = lag_us;
                self.later(us, Act::Undo(Undo::Lag));
            }
            Fault::ArbiterDown { owner, other, us } => {
                self.stats.add(Count::FaultArbiterDown);
                for n in ends(owner, other) {
                    self.arbiter.down[n] += 1;
                    self.later(us, Act::Undo(Undo::ArbiterDown(n)));
                }
            }
            Fault::ArbiterFlaky { us } => {
                self.stats.add(Count::FaultArbiterFlaky);
                self.arbiter.flaky += 1;
                self.later(us, Act::Undo(Undo::ArbiterFlaky));
            }
            Fault::ArbiterSlow { us, latency_us } => {
                self.stats.add(Count::FaultArbiterSlow);
                self.arbiter.slow_us = latency_us;
                self.later(us, Act::Undo(Undo::ArbiterSlow));
            }
            Fault::Replaced { owner, other, us } => {
                self.stats.add(Count::FaultReplaced);
                for n in ends(owner, other) {
                    self.arbiter.swallows[n] += 1;
                    self.later(us, Act::Undo(Undo::Replaced(n)));
                }
            }
            Fault::StorageCrash => self.crash_storage(),
            Fault::LinkJams { whom } => self.arbiter.jam[self.pick(whom)] = true,
            Fault::CellGoesBack { by, us } => self.put_cell_back(by, us),
            Fault::Elsewhere { whom, generations, us } => {
                self.mount_other(self.pick(whom), generations, us);
            }
            Fault::LoseDisk { whom, down_us } => self.lose_disk(self.pick(whom), down_us),
            Fault::DiskHangs { whom, us } => self.hang_disk(self.pick(whom), us),
            Fault::Trip { whom, steps, trip } => self.nodes[self.pick(whom)].trip = Some((steps, trip)),
            Fault::Slow { whom, us, step_us } => {
                self.stats.add(Count::FaultSlow);
                let n = self.pick(whom);
                self.nodes[n].slow_us = step_us;
                self.later(us, Act::Undo(Undo::Slow(n)));
            }
            Fault::Switchover { whom, within_us } => {
                let n = self.pick(whom);
                self.stats.add(Count::SwitchoversAsked);
                self.ask_switchover(n, within_us);
            }
            Fault::Stop { whom, power_off } => self.ask_stop(self.pick(whom), power_off),
            Fault::Return(back) => self.bring_back(owner, back),
            Fault::SecondSelf => self.second_self(1 - owner),
            Fault::Stick => self.stick_newest(),
            Fault::Guest { kind } => self.end_guest(owner, kind),
            Fault::Flap { apart_us, together_us } => self.flap(apart_us, together_us),
            Fault::FailTakeOver { whom, times } => self.nodes[self.pick(whom)].fail_takeovers = times,
            Fault::FailLoad => self.nodes[1 - owner].fail_load = true,
            Fault::Diverge { at_once } => self.diverge(1 - owner, at_once),
            Fault::FailMachine => self.fail_machine(owner),
            Fault::FailStandby => self.fail_standby(1 - owner),
            Fault::FailDisks => self.fail_disks(1 - owner),
            Fault::FailRun { whom, times } => self.nodes[self.pick(whom)].fail_runs = times,
            Fault::HostDown { whom, asks } => self.take_host_down(self.pick(whom), asks),
            Fault::FailBoot { whom } => self.nodes[self.pick(whom)].fail_boot = true,
            Fault::Unfit { whom, us } => self.make_unfit(self.pick(whom), us),
            Fault::Misfit { us } => self.misfit(us),
            Fault::WildAck => self.ack_wildly(owner),
            Fault::Narrow { us, us_per_kib } => {
                self.stats.add(Count::FaultNarrow);
                self.net.us_per_kib = us_per_kib;
                self.later(us, Act::Undo(Undo::Narrow));
            }
            Fault::Retime { whom, failure_timeout_us } => {
                self.stats.add(Count::Retimed);
                let takeover_delay_us = self.knobs.takeover_delay_us;
                let times = Times { failure_timeout_us, takeover_delay_us };
                self.incoming(self.pick(whom), Input::Event(Event::Retimed(times)));
            }
            Fault::BreakPairing => self.break_pairing(owner),
        }
    }

    fn put_cell_back(&mut self, by: Option<u64>, us: Micros) {
        if self.hide_cell(by) {
            let count = if by.is_some() { Count::FaultCellOlder } else { Count::FaultCellVanished };
            self.stats.add(count);
            self.later(us, Act::Undo(Undo::CellGoesBack));
        }
    }

    fn make_unfit(&mut self, n: usize, us: Micros) {
        self.stats.add(Count::FaultUnfit);
        self.nodes[n].unfit = true;
        self.later(us, Act::Undo(Undo::Unfit(n)));
    }

    fn misfit(&mut self, us: Micros) {
        self.stats.add(Count::FaultMisfit);
        self.net.misfit = true;
        self.later(us, Act::Undo(Undo::Misfit));
    }

    fn mount_other(&mut self, n: usize, generations: u64, us: Micros) {
        if self.lead_elsewhere(n, generations) {
            self.stats.add(Count::FaultElsewhere);
            self.later(us, Act::Undo(Undo::Elsewhere(n)));
        }
    }

    fn lose_disk(&mut self, n: usize, down_us: Micros) {
        let node = &mut self.nodes[n];
        if !node.up || node.acted == 0 {
            return;
        }
        self.stats.add(Count::FaultLoseDisk);
        node.ledger.record = None;
        node.disk = None;
        node.lost_disk = true;
        self.trip(n, Trip::Kill { silent: true, down_us, fresh: false });
    }

    fn flap(&mut self, apart_us: Micros, together_us: Micros) {
        self.stats.add(Count::FaultFlap);
        let apart_us = self.knobs.lease_us + apart_us;
        let whole_us = apart_us + 2 * together_us;
        self.inject(Fault::Cut { from_owner: true, from_other: true, us: apart_us });
        self.inject(Fault::ArbiterDown { owner: true, other: false, us: whole_us });
        self.inject(Fault::ArbiterSlow { us: whole_us, latency_us: apart_us });
        let again = Fault::Break { spread_us: 20_000, one_side: false };
        self.later(apart_us + together_us, Act::Inject(again));
    }

    fn diverge(&mut self, n: usize, at_once: bool) {
        let node = &mut self.nodes[n];
        // What was looked at to its end stands still.
        let executes = |image: Image| node.exec.verified != Some(image.epoch);
        let may = self.knobs.replay && node.up && !node.exec.diverged;
        if !may || !node.exec.image.is_some_and(executes) {
            return;
        }
        self.stats.add(Count::FaultDiverge);
        node.exec.diverged = true;
        node.exec.knows_diverged = at_once;
        self.check_copies("the backup diverged", true);
        if at_once {
            self.incoming(n, Input::Event(Event::StateLost("diverged".into())));
        }
    }

    fn break_pairing(&mut self, owner: usize) {
        let repl = self.nodes[owner].exec.repl.as_mut();
        let Some(repl) = repl.filter(|repl| !repl.copying) else { return };
        self.stats.add(Count::FaultPairing);
        repl.broken = true;
        let pairing = repl.pairing;
        let event = Event::PairingBroken { pairing, why: "no memory".into() };
        self.incoming(owner, Input::Event(event));
    }

    /// The host fails the machine: what was on this node is gone.
    fn fail_machine(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if !node.up || node.exec.vm.as_ref().is_none_or(|vm| vm.ended) {
            return;
        }
        self.stats.add(Count::FaultMachine);
        node.exec.vm = None;
        node.bereft_since = self.now;
        self.note_race(n);
        self.check_copies("the host failed the machine", true);
        let why = String::from("no memory");
        let event = match self.mutant {
            Some(Mutant::FailureIsACrash) => Event::GuestEnded(GuestEnd::Crashed(why)),
            _ => Event::MachineFailed(why),
        };
        self.incoming(n, Input::Event(event));
    }

    /// The host fails the machine of a backup: what is sealed is beside it. In replay mode it is in it, and that is
    /// what `diverge` does.
    fn fail_standby(&mut self, n: usize) {
        let node = &self.nodes[n];
        if node.up && node.exec.image.is_some() && !self.knobs.replay {
            self.stats.add(Count::FaultStandby);
            self.incoming(n, Input::Event(Event::MachineFailed("no memory".into())));
        }
    }

    /// A backup's disks do not take what comes in: the connection's reader ends, and says why.
    fn fail_disks(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let Some((conn, _)) = node.exec.recv.take_if(|_| node.up && node.frozen_until.is_none()) else {
            return;
        };
        self.stats.add(Count::FaultDisks);
        let why = Gone::Unable("a disk fails".into());
        self.incoming(n, Input::Event(Event::PeerGone { conn, why }));
    }

    /// Whether a node whose machine fails may be about to be alone in the cell.
    pub fn note_race(&mut self, n: usize) {
        let alone = |cell: &Cell| cell.owner.as_deref() == Some(NAMES[n]) && cell.standby.is_none();
        let races = self.arbiter.may_be_set(|n, inc| self.lives(n, inc)).any(alone);
        self.nodes[n].failed_in_race |= races;
    }

    /// The backup of this owner acks what it cannot have sealed, by the newest stamp there is.
    fn ack_wildly(&mut self, owner: usize) {
        let backup = &self.nodes[1 - owner];
        let Some((conn, _)) = backup.exec.recv.filter(|_| backup.up && backup.frozen_until.is_none()) else {
            return;
        };
        self.stats.add(Count::FaultAck);
        let stamp_us = self.nodes[owner].clock(self.now);
        self.send(1 - owner, conn, Msg::Said(Message::Ack(Ack { epoch: u64::MAX / 2, stamp_us })));
    }

    fn end_guest(&mut self, n: usize, kind: u8) {
        let node = &mut self.nodes[n];
        // A guest that stands still, as after its last checkpoint, does nothing.
        let stands = node.exec.repl.as_ref().is_some_and(|repl| repl.last.is_some());
        let Some(vm) = node.exec.vm.as_mut().filter(|vm| !vm.ended && !stands) else { return };
        if !node.up || node.frozen_until.is_some() {
            return;
        }
        vm.ended = true;
        node.may_end = true;
        let (count, end) = match kind {
            0 => (Count::GuestPowerOff, GuestEnd::PoweredOff),
            1 => (Count::GuestReset, GuestEnd::Reset),
            _ => (Count::GuestCrash, GuestEnd::Crashed("triple fault".into())),
        };
        self.stats.add(count);
        self.incoming(n, Input::Event(Event::GuestEnded(end)));
    }

    pub fn undo(&mut self, undo: Undo) {
        trace!(self, "over: {undo:?}");
        match undo {
            Undo::Cut(n) => self.heal_cut(n),
            Undo::Lag => self.net.lag_us = 0,
            Undo::Misfit => self.net.misfit = false,
            Undo::Unfit(n) => self.nodes[n].unfit = false,
            Undo::Narrow => self.net.us_per_kib = 0,
            Undo::ArbiterDown(n) => self.arbiter.down[n] = self.arbiter.down[n].saturating_sub(1),
            Undo::Replaced(n) => self.arbiter.swallows[n] = self.arbiter.swallows[n].saturating_sub(1),
            Undo::ArbiterFlaky => self.arbiter.flaky = self.arbiter.flaky.saturating_sub(1),
            Undo::ArbiterSlow => self.arbiter.slow_us = 0,
            Undo::CellGoesBack => self.unhide_cell(),
            Undo::Elsewhere(n) => self.lead_back(n),
            Undo::Slow(n) => self.nodes[n].slow_us = 0,
        }
    }

    /// A process comes to the step at which something happens to it.
    pub fn trip(&mut self, n: usize, trip: Trip) {
        trace!(self, "FAULT {trip:?} hits {}", NAMES[n]);
        match trip {
            Trip::Freeze { us } => {
                self.stats.add(Count::FaultFreeze);
                self.nodes[n].frozen_until = Some(self.now + us);
                if self.mutant == Some(Mutant::ClockStopsInFreeze) {
                    self.nodes[n].offset_us = self.nodes[n].offset_us.saturating_sub(us);
                }
                let inc = self.nodes[n].inc;
                self.later(us, Act::Thaw { n, inc });
            }
            Trip::Kill { silent, down_us, fresh } => {
                self.stats.add(if silent { Count::FaultCrash } else { Count::FaultKill });
                self.die(n, silent, "killed", true);
                self.later(down_us, Act::Start { n, fresh });
            }
        }
    }

    /// The faults stop; what is still broken is mended.
    pub fn heal(&mut self) {
        trace!(self, "HEAL: from here on nothing goes wrong");
        self.healed = true;
        self.hooks.clear();
        for n in 0..2 {
            self.net.cuts[n] = 0;
            self.heal_cut(n);
            self.arbiter.down[n] = 0;
            self.arbiter.swallows[n] = 0;
            let node = &mut self.nodes[n];
            node.trip = None;
            node.slow_us = 0;
            node.fail_takeovers = 0;
            node.fail_runs = 0;
            node.fail_load = false;
            node.fail_boot = false;
            node.unfit = false;
            node.must_end = false;
            if node.frozen_until.is_some() && !node.frozen_in_release {
                let inc = node.inc;
                self.thaw(n, inc, true);
            }
            let delay = self.rng.random_range(0..100_000);
            self.later(delay, Act::Start { n, fresh: false });
        }
        self.net.lag_us = 0;
        self.net.us_per_kib = 0;
        self.net.misfit = false;
        self.unhide_cell();
        (0..2).for_each(|n| self.lead_back(n));
        self.arbiter.jam = [false; 2];
        self.arbiter.flaky = 0;
        self.arbiter.slow_us = 0;
    }
}
